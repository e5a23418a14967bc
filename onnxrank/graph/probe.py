"""Make views visible: a tensor as one more output, or its moments reduced inside the graph.

The numpy twin of the reduction is ``linalg.layout.rows`` with ``linalg.gram``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from onnxrank.graph.model import Model
from onnxrank.graph.nodes import Namer, make_node, make_tensor
from onnxrank.graph.rename import unshadow
from onnxrank.graph.rewrite import names_of
from onnxrank.graph.scopes import MAIN, Scope, bodies, walk
from onnxrank.graph.sites import View
from onnxrank.linalg.layout import Patches

Names = str | tuple[str, str, str]

# The first operator set with all that a reduction needs (ConstantOfShape, Where).
OLDEST = 9


@dataclass(frozen=True, eq=False)
class Probed:
    """An instrumented copy of a document.

    Attributes
    ----------
    proto : ModelProto
        The model's own outputs are still there, first.
    names : mapping of View to str or (str, str, str)
        The output that is the view's tensor; or the outputs that are its n (int64 scalar), sum
        (groups, d) and Gram matrix (groups, d, d) of one run, float64.
    """

    proto: onnx.ModelProto
    names: Mapping[View, Names]


def probe(
    model: Model, views: Iterable[View], widths: Mapping[View, int], *, reduce: bool = False
) -> Probed:
    """Instrument a model.

    Parameters
    ----------
    model : Model
        Left untouched.
    views : iterable of View
        What to make visible.
    widths : mapping of View to int
        Columns of one group's rows (d_in of its sites).
    reduce : bool
        Reduce in the graph what is `reducible`; views in bodies of If, Loop and Scan always are,
        since their tensors live once an iteration.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(model.document)
    document = _Document(proto)
    names: dict[View, Names] = {}
    for view in views:
        if view.scope == MAIN and not (reduce and reducible(model, view)):
            names[view] = view.tensor
            document.expose(view.tensor)
            continue
        home = model.index.resolve(view.scope, view.tensor) or view.scope
        tensor = document.renamed.get((home, view.tensor), view.tensor)
        rank = len(model.shape(view.scope, view.tensor) or ())
        made = _Reducer(document, view, tensor, widths[view], rank).run()
        for name in made:
            document.expose(name)
        names[view] = made
    document.insert()
    return Probed(proto, names)


def reducible(model: Model, view: View) -> bool:
    """Whether the moments of a view can be reduced in the graph."""
    if model.opsets.get("", 0) < OLDEST:
        return False
    layout = view.layout
    if isinstance(layout, Patches) or layout.axes == (-1,):
        return True
    rank = len(model.shape(view.scope, view.tensor) or ())
    return all(-rank <= axis < rank for axis in layout.axes)


class _Document:
    """A proto under change: its graphs as they were found, and what is to be put into them."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.proto = proto
        self.names = Namer(names_of(proto))
        self.graphs = dict(walk(proto.graph))
        self.holders = {
            scope.child(node, name): node
            for scope, graph in self.graphs.items()
            for node in graph.node
            for name, _ in bodies(node)
        }
        self.renamed = unshadow(proto, self.names)
        self._outputs = {output.name for output in proto.graph.output}
        self._behind: dict[Scope, dict[str, list[onnx.NodeProto]]] = defaultdict(dict)
        self._before: dict[Scope, dict[str, list[onnx.NodeProto]]] = defaultdict(dict)

    def expose(self, name: str) -> None:
        """One more output; onnxruntime finds its type."""
        if name not in self._outputs:
            self._outputs.add(name)
            self.proto.graph.output.append(onnx.ValueInfoProto(name=name))

    def behind(self, scope: Scope, tensor: str, nodes: list[onnx.NodeProto]) -> None:
        """Put nodes right behind a tensor's producer, so that the tensor need not live on."""
        self._behind[scope].setdefault(tensor, []).extend(nodes)

    def before(self, scope: Scope, output: str, nodes: list[onnx.NodeProto]) -> None:
        """Put nodes before the one that makes `output`."""
        output = self.renamed.get((scope, output), output)
        self._before[scope].setdefault(output, []).extend(nodes)

    def insert(self) -> None:
        """Do what `behind` and `before` have noted, in one go for each graph."""
        for scope, graph in self.graphs.items():
            made = {output: k for k, node in enumerate(graph.node) for output in node.output}
            wanted = [(made[o], nodes) for o, nodes in self._before[scope].items()]
            # What the graph does not make is there before its first node.
            wanted += [(made.get(t, -1) + 1, nodes) for t, nodes in self._behind[scope].items()]
            for position, nodes in sorted(wanted, key=lambda w: w[0], reverse=True):
                for offset, node in enumerate(nodes):
                    graph.node.insert(position + offset, node)


class _Reducer:
    """Builds n, sum and Gram matrix of one view where it lives, and carries them out."""

    def __init__(self, document: _Document, view: View, tensor: str, width: int, rank: int) -> None:
        self.document, self.view, self.tensor = document, view, tensor
        self.width, self.rank = width, rank
        self.groups = view.layout.groups
        self.prefix = f"onnxrank/{view.scope}/{view.tensor}"

    def run(self) -> tuple[str, str, str]:
        made = self._reduce()
        scope = self.view.scope
        while scope.path:
            made = self._lift(scope, made)
            scope = scope.parent
        return made

    def name(self, wish: str) -> str:
        return self.document.names(f"{self.prefix}/{wish}")

    def constant(self, wish: str, value: object) -> str:
        tensor = make_tensor(self.name(wish), np.asarray(value))
        proto = self.document.proto
        proto.graph.initializer.append(tensor)
        if proto.ir_version < 4:
            info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            proto.graph.input.append(info)
        return tensor.name

    def _reduce(self) -> tuple[str, str, str]:
        nodes: list[onnx.NodeProto] = []

        def emit(op: str, *inputs: str, **attributes: object) -> str:
            output = self.name(op)
            nodes.append(make_node(op, inputs, [output], output, attributes=attributes))
            return output

        flat = self._rows(emit)  # (groups, n, d), float32
        turned = emit("Transpose", flat, perm=[0, 2, 1])
        count = emit("Shape", flat)
        n = emit("Gather", count, self.constant("one", np.int64(1)), axis=0)
        some = emit("Cast", n, to=onnx.TensorProto.BOOL)
        zero = self.constant("zero", np.float64(0))

        def summed(other: str) -> str:
            """A product over the rows. onnxruntime leaves it unset where there are none."""
            product = emit("MatMul", turned, other)
            return emit("Where", some, emit("Cast", product, to=onnx.TensorProto.DOUBLE), zero)

        unit = self.constant("unit", np.ones((1, 1, 1), np.float32))
        total = summed(emit("Expand", unit, self._tall(emit, count)))
        shape = self.constant("sum_shape", np.array([self.groups, self.width]))
        made = n, emit("Reshape", total, shape), summed(flat)
        self.document.behind(self.view.scope, self.tensor, nodes)
        return made

    def _tall(self, emit: object, count: str) -> str:
        """Shape (groups, n, 1)."""
        scale = self.constant("tall", np.array([1, 1, 0], np.int64))
        shift = self.constant("thin", np.array([0, 0, 1], np.int64))
        return emit("Add", emit("Mul", count, scale), shift)  # type: ignore[operator,no-any-return]

    def _rows(self, emit: object) -> str:
        layout, call = self.view.layout, emit
        assert callable(call)
        x = call("Cast", self.tensor, to=onnx.TensorProto.FLOAT)
        if isinstance(layout, Patches):
            x = self._patches(call, x, layout)
            last = self._last(call, x, len(layout.kernel) + 2, (1,))
        else:
            last = self._last(call, x, self.rank, layout.axes)
        if self.groups > 1:
            shape = self.constant("vectors", np.array([-1, self.groups, self.width], np.int64))
            last = call("Transpose", call("Reshape", last, shape), perm=[1, 0, 2])
        # Also where nothing is left to reshape: onnxruntime fuses a transposition of the batch
        # axis into the product, and that kernel divides by zero where there are no rows.
        shape = self.constant("rows", np.array([self.groups, -1, self.width], np.int64))
        return str(call("Reshape", last, shape))

    def _last(self, call: object, x: str, rank: int, axes: tuple[int, ...]) -> str:
        """Move `axes` behind all others."""
        assert callable(call)
        if axes == (-1,) or (rank and axes == (rank - 1,)):
            return x
        moved = [axis % rank for axis in axes]
        return str(call("Transpose", x, perm=[a for a in range(rank) if a not in moved] + moved))

    def _patches(self, call: object, x: str, layout: Patches) -> str:
        """im2col as a convolution with unit kernels, channel first."""
        assert callable(call)
        size = int(np.prod(layout.kernel))
        channels = self.width // size * layout.groups
        kernel = np.tile(np.eye(size, dtype=np.float32), (channels, 1))
        weight = self.constant("im2col", kernel.reshape(channels * size, 1, *layout.kernel))
        geometry: dict[str, object] = {
            "kernel_shape": list(layout.kernel),
            "strides": list(layout.strides),
            "dilations": list(layout.dilations),
            "group": channels,
        }
        if layout.auto_pad == "NOTSET":
            geometry["pads"] = list(layout.pads)
        else:
            geometry["auto_pad"] = layout.auto_pad
        return str(call("Conv", x, weight, **geometry))

    def _lift(self, scope: Scope, made: tuple[str, str, str]) -> tuple[str, str, str]:
        """Bring three tensors of a body out of the node that holds it."""
        holder = self.document.holders[scope]
        outside = tuple(self.name(f"{kind}_out") for kind in ("n", "sum", "gram"))
        if holder.op_type == "If":
            self._lift_if(holder, scope.path[-1][1], made)
            holder.output.extend(outside)
        else:
            self._lift_loop(scope, holder, made, outside)
        return outside  # type: ignore[return-value]

    def _kinds(self) -> list[tuple[int, list[int]]]:
        g, d = self.groups, self.width
        double = onnx.TensorProto.DOUBLE
        return [(onnx.TensorProto.INT64, []), (double, [g, d]), (double, [g, d, d])]

    def _zeros(self) -> tuple[list[onnx.NodeProto], list[str]]:
        """Nodes that make an empty n, sum and Gram matrix."""
        nodes, names = [], []
        for kind, shape in self._kinds():
            zero = onnx.helper.make_tensor("zero", kind, [1], [0])
            output = self.name("zeros")
            size = self.constant("size", np.array(shape, np.int64))
            node = make_node("ConstantOfShape", [size], [output], output)
            node.attribute.append(onnx.helper.make_attribute("value", zero))
            nodes.append(node)
            names.append(output)
        return nodes, names

    def _lift_if(self, holder: onnx.NodeProto, attribute: str, made: tuple[str, str, str]) -> None:
        """The other branch reports nothing seen."""
        for name, branch in bodies(holder):
            outputs = list(made)
            if name != attribute:
                nodes, outputs = self._zeros()
                branch.node.extend(nodes)
            for output, (kind, shape) in zip(outputs, self._kinds(), strict=True):
                branch.output.append(onnx.helper.make_tensor_value_info(output, kind, shape))

    def _lift_loop(
        self,
        scope: Scope,
        holder: onnx.NodeProto,
        made: tuple[str, str, str],
        outside: tuple[str, ...],
    ) -> None:
        """Loop and Scan carry running sums as further state, ahead of their scans."""
        body = self.document.graphs[scope]
        loop = holder.op_type == "Loop"
        given = {a.name: a.i for a in holder.attribute}
        scanned = 0 if loop else given.get("num_scan_inputs", 0)
        states = len(body.input) - scanned - (2 if loop else 0)
        nodes, zeros = self._zeros()
        sums = []
        for index, (kind, shape) in enumerate(self._kinds()):
            before = self.name("carried")
            after = self.name("carried_out")
            body.node.append(make_node("Add", [before, made[index]], [after], after))
            info = onnx.helper.make_tensor_value_info(before, kind, shape)
            body.input.insert(len(body.input) - scanned, info)
            sums.append(onnx.helper.make_tensor_value_info(after, kind, shape))
        shift = 1 if loop else 0  # the condition is a Loop body's first output
        for index, info in enumerate(sums):
            body.output.insert(shift + states + index, info)
        self._insert_names(holder.input, len(holder.input) - scanned, zeros)
        self._insert_names(holder.output, states, list(outside))
        self.document.before(scope.parent, scope.path[-1][0], nodes)

    @staticmethod
    def _insert_names(field: Any, position: int, names: list[str]) -> None:
        for offset, name in enumerate(names):
            field.insert(position + offset, name)
