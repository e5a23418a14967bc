"""Weights as inputs: one session then runs a model with any weights that are fed to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxrank.graph import operators
from onnxrank.graph.constants import evaluate
from onnxrank.graph.edit import Edit, splice
from onnxrank.graph.model import Model
from onnxrank.graph.nodes import Namer, make_node, make_tensor
from onnxrank.graph.rewrite import names_of
from onnxrank.graph.scopes import Scope
from onnxrank.graph.sites import Site
from onnxrank.graph.weights import to_type, unmatrix


@dataclass(frozen=True, eq=False)
class Overridden:
    """A copy of a document whose sites read weights and shifts that a caller may feed.

    Attributes
    ----------
    proto : ModelProto
        Run without feeding any of them it computes what the original does.
    weights : mapping of str to str
        Input name of the weight, by site name.
    shifts : mapping of str to str
        Input name of the shift that is added to the output, by site name; not every operator
        has one.
    """

    proto: onnx.ModelProto
    sites: Mapping[str, Site]
    weights: Mapping[str, str]
    shifts: Mapping[str, str]
    model: Model

    def feeds(
        self, name: str, weight: NDArray[np.float64], shift: NDArray[np.float64] | None = None
    ) -> dict[str, NDArray[np.generic]]:
        """What to feed so that a site maps ``x -> x weight + shift``.

        Parameters
        ----------
        name : str
            The site.
        weight : ndarray of float64, shape (groups, d_in, d_out)
            Its matrix.
        shift : ndarray of float64, shape (groups, d_out), optional
            What to add to its output; not for sites that are not in `shifts`.
        """
        site = self.sites[name]
        where = f"{self.model.name}: node '{name}'"
        dtype = site.weight.dtype
        fed = {self.weights[name]: to_type(unmatrix(site, weight), dtype, where)}
        if shift is not None:
            node = self.model.index.producers[site.scope][site.output]
            value = _spread(node)(self.model, site, node, shift)
            fed[self.shifts[name]] = to_type(value, dtype, where)
        return fed


def override(model: Model, sites: Sequence[Site]) -> Overridden:
    """Expose the weights of sites as inputs with defaults, and their shifts, which are zero."""
    exposing = _Exposing(model, Namer(names_of(model.document)))
    for site in sites:
        exposing.add(site)
    edits = [Edit(scope, key, tuple(nodes)) for (scope, key), nodes in exposing.nodes.items()]
    tensors = exposing.tensors
    proto = splice(model.document, edits, tensors)
    if proto.ir_version < 4:  # every initializer has become an input, but could not be fed
        proto.ir_version = 4
    else:
        proto.graph.input.extend(
            onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in tensors
        )
    named = {site.name: site for site in sites}
    return Overridden(proto, named, exposing.weights, exposing.shifts, model)


@dataclass(eq=False)
class _Exposing:
    """Collects the changed nodes; one node may hold the weights of several sites."""

    model: Model
    namer: Namer
    nodes: dict[tuple[Scope, str], list[onnx.NodeProto]] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)
    shifts: dict[str, str] = field(default_factory=dict)
    tensors: list[onnx.TensorProto] = field(default_factory=list)

    def add(self, site: Site) -> None:
        original = self.model.index.producers[site.scope][site.output]
        key = (site.scope, site.output)
        if key not in self.nodes:
            node = onnx.NodeProto()
            node.CopyFrom(original)
            self.nodes[key] = [node]
        nodes = self.nodes[key]
        (node,) = (n for n in nodes if n.op_type == original.op_type)
        name = self.namer(f"{site.name}/weight")
        self.weights[site.name] = name
        self.tensors.append(make_tensor(name, evaluate(self.model, site.weight)))
        node.input[site.operand] = name
        if site.centers and site.hold is None:
            self._shift(site, original, node, nodes)

    def _shift(
        self,
        site: Site,
        original: onnx.NodeProto,
        node: onnx.NodeProto,
        nodes: list[onnx.NodeProto],
    ) -> None:
        """Add a constant behind the node, or to its bias where an activation would follow."""
        operator = operators.operator(original)
        assert operator is not None
        name = self.shifts[site.name] = self.namer(f"{site.name}/shift")
        zero = _spread(original)(self.model, site, original, np.zeros((site.groups, site.d_out)))
        self.tensors.append(make_tensor(name, to_type(zero, site.weight.dtype, site.name)))
        label = self.namer(f"{site.name}/add")
        if operator.spread is not None:
            node.output[0] = self.namer(f"{site.name}/unshifted")
            nodes.append(make_node("Add", [node.output[0], name], [site.output], label))
            return
        assert operator.bias is not None
        index, _ = operator.bias
        node.input.extend([""] * (index + 1 - len(node.input)))
        if node.input[index]:
            shifted = self.namer(f"{site.name}/shifted")
            nodes.insert(0, make_node("Add", [node.input[index], name], [shifted], label))
            name = shifted
        node.input[index] = name


def _spread(node: onnx.NodeProto) -> operators.Spread:
    """How a shift of the map is written, where override adds it."""
    operator = operators.operator(node)
    assert operator is not None
    spread = operator.spread or (operator.bias and operator.bias[1])
    assert spread is not None
    return spread
