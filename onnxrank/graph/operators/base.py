"""What operators get to see and to use: a Context to recognise from, a Job to split with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxrank.graph.attributes import attributes
from onnxrank.graph.constants import NotConstant, WeightRef, evaluate, resolve
from onnxrank.graph.model import Model, Shape
from onnxrank.graph.nodes import make_node
from onnxrank.graph.scopes import Scope
from onnxrank.graph.sites import Hold, Orientation, Selection, Site, Skip, View
from onnxrank.graph.weights import FLOATS, unmatrix
from onnxrank.linalg.layout import Layout


@dataclass(frozen=True, eq=False)
class Context:
    """One node, and what can be asked about it."""

    model: Model
    scope: Scope
    node: onnx.NodeProto
    name: str
    selection: Selection

    @property
    def op(self) -> str:
        """Operator with its domain, unless that is the standard one."""
        domain = self.node.domain
        return (
            f"{domain}.{self.node.op_type}" if domain not in ("", "ai.onnx") else self.node.op_type
        )

    @property
    def opset(self) -> int:
        """Version of the standard operator set; 0 if the model does not import it."""
        return self.model.opsets.get("", 0)

    @cached_property
    def attributes(self) -> dict[str, Any]:
        """Attribute values by name."""
        return attributes(self.node)

    def has(self, index: int) -> bool:
        """Whether the node's input `index` is given."""
        return index < len(self.node.input) and bool(self.node.input[index])

    def constant(self, index: int) -> WeightRef | NotConstant:
        """Input `index` as a constant, or why it is none."""
        if not self.has(index):
            return NotConstant("activation", "the input is not given")
        name = self.node.input[index]
        found = resolve(self.model, self.scope, name, overridable=self.selection.overridable)
        home = self.model.index.resolve(self.scope, name)
        if isinstance(found, NotConstant) and (home, name) in self.model.index.computed:
            if found.code == "activation":
                return NotConstant(
                    "computed_weight",
                    f"its weight '{name}' is computed from constants; fold them first",
                )
        return found

    def value(self, index: int) -> NDArray[Any] | None:
        """Value of a constant input, or None."""
        ref = self.constant(index)
        return evaluate(self.model, ref) if isinstance(ref, WeightRef) else None

    def shape(self, name: str) -> Shape | None:
        """Shape of a tensor, as far as it is known."""
        return self.model.shape(self.scope, name)

    def skip(self, code: str, reason: str, parameters: int = 0, *, suffix: str = "") -> Skip:
        """The node left alone, for a reason."""
        return Skip(self.name + suffix, self.op, self.scope, parameters, code, reason)

    def site(
        self,
        weight: WeightRef,
        tensor: str,
        layout: Layout,
        orientation: Orientation,
        sizes: tuple[int, int, int],
        *,
        rows: int | None,
        centers: bool = True,
        hold: Hold | None = None,
        suffix: str = "",
    ) -> Site | Skip:
        """The node as a site of `sizes` (groups, d_in, d_out); a Skip if the weight forbids it."""
        groups, d_in, d_out = sizes
        parameters = groups * d_in * d_out
        if weight.dtype not in FLOATS:
            known = onnx.TensorProto.DataType.values()
            kind = "unknown"
            if weight.dtype in known:
                kind = onnx.TensorProto.DataType.Name(weight.dtype).lower()
            text = f"its weight is of type {kind}, not a float"
            return self.skip("type", text, parameters, suffix=suffix)
        if parameters == 0:
            return self.skip("empty", "its weight has no entries", suffix=suffix)
        if hold is None and not self.opset:
            hold = Hold("opset", "factors need the standard operator set, which is not imported")
        if hold is None and weight.quantized and not self.selection.quantized:
            hold = Hold("quantized", "its weight is quantized; ask for float factors to split it")
        made = next(name for name in self.node.output if name)
        read = weight.chain[-1] if weight.chain else weight.name
        return Site(
            name=self.name + suffix,
            op=self.op,
            scope=self.scope,
            output=made,
            view=View(self.scope, tensor, layout),
            weight=weight,
            orientation=orientation,
            d_in=d_in,
            d_out=d_out,
            groups=groups,
            operand=list(self.node.input).index(read),
            centers=centers,
            hold=hold,
            rows=rows,
        )

    def no_weight(self, *reasons: NotConstant) -> Skip | None:
        """The Skip of a linear node without a constant weight: the most telling of `reasons`."""
        telling = [r for r in reasons if r.code != "activation"]
        if telling:
            return self.skip(telling[0].code, telling[0].reason)
        return self.skip("no_constant_weight", "none of its operands is a constant")


def row_count(shape: Shape | None, dropped: Sequence[int]) -> int | None:
    """Rows a sample gives: the product of the dimensions but `dropped`, a symbolic batch as one.

    A batch is a leading dimension that is not a fixed number; None if another one is unknown.
    """
    if shape is None:
        return None
    out = {axis % len(shape) for axis in dropped if -len(shape) <= axis < len(shape)}
    count = 1
    for axis, dim in enumerate(shape):
        if axis in out:
            continue
        if isinstance(dim, int):
            count *= dim
        elif axis != 0:
            return None
    return count


@dataclass(eq=False)
class Job:
    """Everything to split one site: its node, its factors, and a place for new constants.

    Attributes
    ----------
    first, second : ndarray of float64
        ``A`` (groups, d_in, r) and ``B`` (groups, r, d_out).
    shift : ndarray of float64, shape (groups, d_out), or None
        What to add to the output ``x A B``.
    """

    model: Model
    site: Site
    node: onnx.NodeProto
    first: NDArray[np.float64]
    second: NDArray[np.float64]
    shift: NDArray[np.float64] | None
    store: Callable[[str, NDArray[Any], Site], str]
    names: Callable[[str], str]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    others: dict[str, onnx.NodeProto] = field(default_factory=dict)

    def also(self, key: str, changed: onnx.NodeProto) -> None:
        """Replace a neighbouring node (by its first output) of the same scope as well."""
        self.others[key] = changed

    @property
    def rank(self) -> int:
        """Columns of ``A``."""
        return int(self.first.shape[2])

    @property
    def opset(self) -> int:
        """Version of the standard operator set."""
        return self.model.opsets.get("", 1)

    @cached_property
    def attributes(self) -> dict[str, Any]:
        """Attribute values of the node by name."""
        return attributes(self.node)

    @cached_property
    def middle(self) -> str:
        """Name of the tensor between the two new nodes."""
        return self.names(f"{self.site.name}/rank_in_output")

    @property
    def output(self) -> str:
        """Name of the node's output, which the last new node takes over."""
        return self.site.output

    def input(self, index: int) -> str:
        """Name of the node's input `index`, '' if it is not given."""
        return self.node.input[index] if index < len(self.node.input) else ""

    def constant(self, label: str, value: NDArray[Any]) -> str:
        """Name of a new constant in the model's own type; equal ones are stored once."""
        return self.store(f"{self.site.name}/{label}", value, self.site)

    def ref(self, index: int) -> WeightRef | None:
        """Input `index` as a constant, or None."""
        if not self.input(index):
            return None
        found = resolve(self.model, self.site.scope, self.input(index), overridable=False)
        return found if isinstance(found, WeightRef) else None

    def add(
        self,
        label: str,
        op: str,
        inputs: Sequence[str],
        output: str,
        *,
        domain: str = "",
        extra: Mapping[str, Any] | None = None,
        without: Sequence[str] | None = None,
    ) -> None:
        """Append a node ``SITE/label``.

        `extra` are new attributes; with `without`, the original's attributes are taken over except
        these.
        """
        copied = (
            []
            if without is None
            else [
                a
                for a in self.node.attribute
                if a.name not in without and a.name not in (extra or {})
            ]
        )
        outputs = list(self.node.output) if output == self.output else [output]
        made = make_node(
            op,
            inputs,
            outputs,
            self.names(f"{self.site.name}/{label}"),
            domain=domain,
            attributes=extra,
            copied=copied,
        )
        self.nodes.append(self._described(made) if label == "rank_out" else made)

    def _described(self, made: onnx.NodeProto) -> onnx.NodeProto:
        """The new node with the descriptions of the old one; they may be no valid text."""
        node = onnx.NodeProto()
        node.CopyFrom(self.node)
        for described, _ in node.ListFields():
            if described.name not in ("doc_string", "metadata_props"):
                node.ClearField(described.name)
        node.MergeFrom(made)
        return node

    def refitted(self) -> onnx.NodeProto:
        """A copy of the node that reads `first` in the place of its weight."""
        node = onnx.NodeProto()
        node.CopyFrom(self.node)
        weight = unmatrix(self.site, self.first)
        node.input[self.site.operand] = self.constant("refitted.weight", weight)
        return node

    def shifted(self, index: int, shift: NDArray[np.float64] | None) -> str:
        """Input `index`, a bias, with `shift` added: a new constant, or an Add before the node."""
        old = self.input(index)
        if shift is None:
            return old
        if not old:
            return self.constant("rank_bias", shift)
        ref = self.ref(index)
        if ref is not None:
            return self.constant("rank_bias", evaluate(self.model, ref).astype(np.float64) + shift)
        moved = self.names(f"{self.site.name}/rank_bias_output")
        self.add("rank_bias", "Add", [old, self.constant("rank_shift", shift)], moved)
        return moved

    def finish(self, shift: NDArray[np.float64] | None) -> str:
        """Where the last product must put its result so that `shift` is still added to it."""
        if shift is None:
            return self.output
        return self.names(f"{self.site.name}/rank_out_output")

    def close(self, produced: str, shift: NDArray[np.float64] | None) -> list[onnx.NodeProto]:
        """The nodes, with an Add of `shift` at the end where there is one."""
        if shift is not None:
            constant = self.constant("rank_bias", shift)
            self.add("rank_bias", "Add", [produced, constant], self.output)
        return self.nodes
