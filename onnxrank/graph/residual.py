"""The stream that a site's output is added to: the other operand of the Add that follows."""

from __future__ import annotations

from onnxrank.graph.attributes import attributes
from onnxrank.graph.constants import WeightRef, resolve
from onnxrank.graph.model import Model
from onnxrank.graph.sites import Site
from onnxrank.linalg.layout import Axis, Layout

_PASS = {"Identity", "Dropout", "Reshape", "Cast"}


def output_layout(model: Model, site: Site) -> Layout | None:
    """How the output of a site becomes rows in step with its input's; None if it does not.

    What is added to those rows must be added to the map itself: nothing may scale its output.
    """
    node = model.index.producers[site.scope][site.output]
    if float(attributes(node).get("alpha", 1.0)) != 1.0:
        return None
    if site.op == "Conv":  # FusedConv has an activation behind it
        return Axis((1,), site.groups)
    if site.op in ("MatMul", "Gemm") and site.operand == 1:
        return Axis((-1,))
    return None


def stream(model: Model, site: Site) -> str | None:
    """The tensor that the output of a site is added to, once; None if there is none.

    Followed are constant biases and operators that pass values on, as long as nothing else reads
    them: then what is added to the sum can be added to the site's output as well.
    """
    scope, name = site.scope, site.output
    while True:
        uses = model.index.uses(scope, name)
        if len(uses) != 1 or uses[0].node is None or uses[0].scope != scope:
            return None
        node, position = uses[0].node, uses[0].index
        if node.domain not in ("", "ai.onnx"):
            return None
        if node.op_type == "Add":
            other = node.input[1 - position]
            if not isinstance(resolve(model, scope, other), WeightRef):
                return str(other)
        elif node.op_type not in _PASS or position != 0:
            return None
        name = node.output[0]
