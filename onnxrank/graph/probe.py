"""Make views visible: a tensor as one more output, or its moments reduced inside the graph.

The numpy twin of the reduction is ``linalg.layout.rows`` with ``linalg.gram``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from onnxrank.errors import ModelError
from onnxrank.graph.model import Model
from onnxrank.graph.nodes import Namer, make_node, make_tensor
from onnxrank.graph.rewrite import names_of
from onnxrank.graph.scopes import MAIN, bodies, node_key
from onnxrank.graph.sites import View
from onnxrank.linalg.layout import Patches

Names = str | tuple[str, str, str]


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
        Reduce in the graph; views in bodies of If, Loop and Scan always are, since their tensors
        live once an iteration.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(model.document)
    namer = Namer(names_of(proto))
    names: dict[View, Names] = {}
    for view in views:
        if view.scope == MAIN and not reduce:
            names[view] = view.tensor
            _expose(proto.graph, view.tensor)
            continue
        rank = len(model.shape(view.scope, view.tensor) or ())
        made = _Reducer(proto, namer, view, widths[view], rank).run()
        for name in made:
            _expose(proto.graph, name)
        names[view] = made
    return Probed(proto, names)


def _expose(graph: onnx.GraphProto, name: str) -> None:
    """One more output; onnxruntime finds its type."""
    if all(output.name != name for output in graph.output):
        graph.output.append(onnx.ValueInfoProto(name=name))


class _Reducer:
    """Builds n, sum and Gram matrix of one view where it lives, and carries them out."""

    def __init__(
        self, proto: onnx.ModelProto, namer: Namer, view: View, width: int, rank: int
    ) -> None:
        self.proto, self.namer, self.view = proto, namer, view
        self.width, self.rank = width, rank
        self.groups = view.layout.groups
        self.prefix = f"onnxrank/{view.scope}/{view.tensor}"

    def run(self) -> tuple[str, str, str]:
        graphs = self._path()
        made = self._reduce(graphs[-1][1])
        for depth in range(len(graphs) - 1, 0, -1):
            made = self._lift(graphs[depth - 1][1], graphs[depth], made)
        return made

    def _path(self) -> list[tuple[str, onnx.GraphProto]]:
        """The graphs from the main one down to the view's, with their attribute names."""
        graphs = [("", self.proto.graph)]
        for key, attribute in self.view.scope.path:
            holder = next(n for n in graphs[-1][1].node if node_key(n) == key)
            graphs.append((attribute, dict(bodies(holder))[attribute]))
        return graphs

    def name(self, wish: str) -> str:
        return self.namer(f"{self.prefix}/{wish}")

    def constant(self, wish: str, value: object) -> str:
        tensor = make_tensor(self.name(wish), np.asarray(value))
        self.proto.graph.initializer.append(tensor)
        if self.proto.ir_version < 4:
            info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            self.proto.graph.input.append(info)
        return tensor.name

    def _reduce(self, graph: onnx.GraphProto) -> tuple[str, str, str]:
        nodes: list[onnx.NodeProto] = []

        def emit(op: str, *inputs: str, **attributes: object) -> str:
            output = self.name(op)
            nodes.append(make_node(op, inputs, [output], output, attributes=attributes))
            return output

        flat = self._rows(emit)  # (groups, n, d), float32
        turned = emit("Transpose", flat, perm=[0, 2, 1])
        gram = emit("Cast", emit("MatMul", turned, flat), to=onnx.TensorProto.DOUBLE)
        count = emit("Shape", flat)
        n = emit("Gather", count, self.constant("one", np.int64(1)), axis=0)
        ones = emit(
            "Expand", self.constant("unit", np.ones((1, 1, 1), np.float32)), self._tall(emit, count)
        )
        total = emit("Cast", emit("MatMul", turned, ones), to=onnx.TensorProto.DOUBLE)
        flat_sum = emit(
            "Reshape", total, self.constant("sum_shape", np.array([self.groups, self.width]))
        )
        self._place(graph, nodes)
        return n, flat_sum, gram

    def _tall(self, emit: object, count: str) -> str:
        """Shape (groups, n, 1)."""
        scale = self.constant("tall", np.array([1, 1, 0], np.int64))
        shift = self.constant("thin", np.array([0, 0, 1], np.int64))
        return emit("Add", emit("Mul", count, scale), shift)  # type: ignore[operator,no-any-return]

    def _rows(self, emit: object) -> str:
        layout, call = self.view.layout, emit
        assert callable(call)
        x = call("Cast", self.view.tensor, to=onnx.TensorProto.FLOAT)
        if isinstance(layout, Patches):
            x = self._patches(call, x, layout)
            last = self._last(call, x, len(layout.kernel) + 2, (1,))
        else:
            last = self._last(call, x, self.rank, layout.axes)
        flat = call("Reshape", last, self._shape())
        return str(call("Transpose", flat, perm=[1, 0, 2]))

    def _shape(self) -> str:
        return self.constant("rows", np.array([-1, self.groups, self.width], np.int64))

    def _last(self, call: object, x: str, rank: int, axes: tuple[int, ...]) -> str:
        """Move `axes` behind all others."""
        assert callable(call)
        if axes == (-1,) or (rank and axes == (rank - 1,)):
            return x
        if not rank:
            raise ModelError(
                f"the rank of tensor '{self.view.tensor}' is not known",
                where=str(self.view.scope),
                hint="leave the node out with --exclude",
            )
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

    def _place(self, graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
        """Right behind the tensor's producer, so that the tensor need not live on."""
        made = [k for k, n in enumerate(graph.node) if self.view.tensor in n.output]
        position = made[0] + 1 if made else 0
        for offset, node in enumerate(nodes):
            graph.node.insert(position + offset, node)

    def _lift(
        self,
        outer: onnx.GraphProto,
        inner: tuple[str, onnx.GraphProto],
        made: tuple[str, str, str],
    ) -> tuple[str, str, str]:
        """Bring three tensors of a body out of the node that holds it."""
        attribute, body = inner
        holder = next(
            n for n in outer.node if any(a == attribute and b is body for a, b in bodies(n))
        )
        outside = tuple(self.name(f"{kind}_out") for kind in ("n", "sum", "gram"))
        if holder.op_type == "If":
            self._lift_if(holder, attribute, made)
            holder.output.extend(outside)
        else:
            self._lift_loop(outer, holder, body, made, outside)
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
        outer: onnx.GraphProto,
        holder: onnx.NodeProto,
        body: onnx.GraphProto,
        made: tuple[str, str, str],
        outside: tuple[str, ...],
    ) -> None:
        """Loop and Scan carry running sums as further state, ahead of their scans."""
        scan = holder.op_type == "Scan"
        scanned = (
            onnx.helper.get_attribute_value(
                next(a for a in holder.attribute if a.name == "num_scan_inputs")
            )
            if scan
            else 0
        )
        states = len(body.input) - scanned - (0 if scan else 2)
        nodes, zeros = self._zeros()
        position = next(k for k, n in enumerate(outer.node) if node_key(n) == node_key(holder))
        sums = []
        for index, (kind, shape) in enumerate(self._kinds()):
            before = self.name("carried")
            after = self.name("carried_out")
            body.node.append(make_node("Add", [before, made[index]], [after], after))
            info = onnx.helper.make_tensor_value_info(before, kind, shape)
            body.input.insert(len(body.input) - scanned, info)
            sums.append(onnx.helper.make_tensor_value_info(after, kind, shape))
        shift = 0 if scan else 1  # the condition is a Loop body's first output
        for index, info in enumerate(sums):
            body.output.insert(shift + states + index, info)
        self._insert_names(holder.input, len(holder.input) - scanned, zeros)
        self._insert_names(holder.output, states, list(outside))
        for offset, node in enumerate(nodes):
            outer.node.insert(position + offset, node)

    @staticmethod
    def _insert_names(field: object, position: int, names: list[str]) -> None:
        for offset, name in enumerate(names):
            field.insert(position + offset, name)  # type: ignore[attr-defined]
