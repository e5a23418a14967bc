"""Run a graph on torch tensors: the same function as onnxruntime's, and one with gradients."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Collection, Iterator, Mapping, MutableMapping, Sequence
from graphlib import TopologicalSorter
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import torch
from torch import Tensor

from onnxrank.differentiable.alone import Alone
from onnxrank.differentiable.operators import FLAT, find
from onnxrank.differentiable.windows import UnsupportedError
from onnxrank.errors import ModelError, OnnxRankError
from onnxrank.graph.attributes import attributes
from onnxrank.graph.constants import to_array
from onnxrank.graph.index import captured
from onnxrank.graph.model import Model
from onnxrank.graph.scopes import node_key

Values = MutableMapping[str, Any]

_AGAIN = "train the model where it was exported from, or report the operator"


class Network:
    """A model as a function of its inputs and of some of its constants.

    Half precision is computed in single. Nodes that no trained constant lies before may be of any
    kind: onnxruntime runs those that torch has no operator for.

    Parameters
    ----------
    model : Model
        Its calls of functions are inlined.
    trained : collection of str
        Initializers of the main graph that are given with every call.
    outputs : sequence of str
        What is wanted; nodes that only other outputs need are never run.
    device : str
        Where torch computes.
    """

    def __init__(
        self, model: Model, trained: Collection[str], outputs: Sequence[str], device: str = "cpu"
    ) -> None:
        self._model, self.device, self.outputs = model, torch.device(device), tuple(outputs)
        proto = model.proto
        if proto.functions:
            proto = onnx.inliner.inline_local_functions(proto)
        opsets = {"" if o.domain == "ai.onnx" else o.domain: o.version for o in proto.opset_import}
        self._opset = opsets.get("", 1)
        self._alone = Alone(proto)
        self._constants: dict[str, Any] = {}
        nodes = _needed(proto.graph, self.outputs)
        read = {name for node in nodes for name in captured(node)}.union(self.outputs)
        for tensor in proto.graph.initializer:
            if tensor.name in read and tensor.name not in trained:
                self._constants[tensor.name] = self._tensor(to_array(model, tensor))
        self._nodes = list(self._fold(nodes, {value.name for value in proto.graph.input}))

    def __call__(
        self, feeds: Mapping[str, Any], trained: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The outputs for one batch.

        Raises
        ------
        ModelError
            A node cannot be run, or no gradient goes through it.
        """
        values: Values = ChainMap({}, self._constants)
        values.update({name: self._tensor(value) for name, value in feeds.items()})
        values.update(trained)
        self._run(self._nodes, values)
        return {name: values[name] for name in self.outputs}

    def _fold(
        self, nodes: Sequence[onnx.NodeProto], inputs: Collection[str]
    ) -> Iterator[onnx.NodeProto]:
        """Run what depends on constants alone, once; give the other nodes."""
        for node in nodes:
            fixed = all(n in self._constants and n not in inputs for n in captured(node))
            if fixed and "Random" not in node.op_type:
                self._run([node], self._constants)
            else:
                yield node

    def _tensor(self, value: Any) -> Any:
        """On the device; what is no array of numbers stays what it is."""
        if not isinstance(value, np.ndarray) or value.dtype.kind in "OSU":
            return value
        if value.dtype.name in ("float16", "bfloat16"):
            value = value.astype(np.float32)
        try:
            tensor = torch.from_numpy(np.array(value))  # its own memory, writable
        except TypeError:  # integers of four bits, floats of eight: for onnxruntime alone
            return value
        return tensor.to(self.device)

    def _run(self, nodes: Sequence[onnx.NodeProto], values: Values) -> None:
        for node in nodes:
            try:
                made = self._node(node, values)
            except OnnxRankError:
                raise
            except Exception as error:  # noqa: BLE001 - whatever torch raises, the node is named
                text = (str(error).strip() or type(error).__name__).splitlines()[0]
                if isinstance(error, KeyError):
                    text = f"its input {text} is no tensor that can be read here"
                raise ModelError(text, where=self._where(node), hint=_AGAIN) from error
            values.update(
                (name, value) for name, value in zip(node.output, made, strict=False) if name
            )

    def _where(self, node: onnx.NodeProto) -> str:
        return f"{self._model.name}: {node.op_type} node '{node.name or node_key(node)}'"

    def _node(self, node: onnx.NodeProto, values: Values) -> Sequence[Any]:
        if node.op_type in _BODIES and node.domain in ("", "ai.onnx"):
            made: Sequence[Any] = _BODIES[node.op_type](self, node, values)
            return made
        if node.op_type == "Constant":
            return [self._constant(node)]
        inputs = [values[name] if name else None for name in node.input]
        function, learns = find(node), any(_learns(value) for value in inputs)
        if function is not None and all(x is None or isinstance(x, Tensor) for x in inputs):
            try:
                found = function(self._attributes(node), *inputs)
                return found if isinstance(found, tuple) else [found]
            except Exception:  # noqa: BLE001 - whatever it is, onnxruntime may do better
                if learns:
                    raise
        elif learns and node.op_type not in FLAT:
            raise UnsupportedError("no gradient goes through this operator here")
        return [self._tensor(value) for value in self._alone(node, inputs, self._where(node))]

    def _attributes(self, node: onnx.NodeProto) -> dict[str, Any]:
        return {**attributes(node), "opset": self._opset, "outputs": len(node.output)}

    def _constant(self, node: onnx.NodeProto) -> Any:
        value = onnx.helper.get_attribute_value(node.attribute[0])
        if isinstance(value, onnx.TensorProto):
            return self._tensor(to_array(self._model, value))
        kind = {"value_float": np.float32, "value_floats": np.float32}
        array = np.asarray(value, kind.get(node.attribute[0].name))
        return self._tensor(array)

    def _body(self, graph: onnx.GraphProto, values: Values) -> list[Any]:
        """Run a body, whose inputs are among the values; its outputs."""
        for tensor in graph.initializer:
            values[tensor.name] = self._tensor(to_array(self._model, tensor))
        self._run(graph.node, values)
        return [values[output.name] for output in graph.output]

    def _if(self, node: onnx.NodeProto, values: Values) -> list[Any]:
        wanted = "then_branch" if bool(values[node.input[0]].item()) else "else_branch"
        return self._body(attributes(node)[wanted], ChainMap({}, values))

    def _loop(self, node: onnx.NodeProto, values: Values) -> list[Any]:
        graph = attributes(node)["body"]
        limit, goes_on = (values[name] if name else None for name in node.input[:2])
        carried = [values[name] for name in node.input[2:]]
        stacks: list[list[Any]] = [[] for _ in graph.output[1 + len(carried) :]]
        goes_on = torch.tensor(True) if goes_on is None else goes_on
        step = 0
        while bool(goes_on.item()) and (limit is None or step < int(limit.item())):
            given = [torch.tensor(step, device=self.device), goes_on, *carried]
            names = [value.name for value in graph.input]
            inner: Values = ChainMap(dict(zip(names, given, strict=True)), values)
            goes_on, *rest = self._body(graph, inner)
            carried, slices = rest[: len(carried)], rest[len(carried) :]
            for stack, value in zip(stacks, slices, strict=True):
                stack.append(value)
            step += 1
        return [*carried, *(self._stacked(stack, graph) for stack in stacks)]

    def _stacked(self, stack: list[Any], graph: onnx.GraphProto) -> Any:
        if not stack:
            raise UnsupportedError("a Loop without a step has nothing to stack")
        return torch.stack(stack)

    def _scan(self, node: onnx.NodeProto, values: Values) -> list[Any]:
        given = attributes(node)
        graph, count = given["body"], given["num_scan_inputs"]
        if self._opset < 9 or any(
            any(given.get(f"scan_{kind}", ()))
            for kind in ("input_axes", "output_axes", "input_directions", "output_directions")
        ):
            raise UnsupportedError("a Scan along other axes or backwards is not run here")
        inputs = [values[name] for name in node.input]
        carried, scanned = inputs[:-count], inputs[-count:]
        names = [value.name for value in graph.input]
        stacks: list[list[Any]] = [[] for _ in graph.output[len(carried) :]]
        for slices in zip(*scanned, strict=True):
            inner: Values = ChainMap(dict(zip(names, (*carried, *slices), strict=True)), values)
            found = self._body(graph, inner)
            carried, rest = found[: len(carried)], found[len(carried) :]
            for stack, value in zip(stacks, rest, strict=True):
                stack.append(value)
        return [*carried, *(self._stacked(stack, graph) for stack in stacks)]


_BODIES = {"If": Network._if, "Loop": Network._loop, "Scan": Network._scan}


def _learns(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _needed(graph: onnx.GraphProto, outputs: Sequence[str]) -> list[onnx.NodeProto]:
    """The nodes that some outputs depend on, each after those it reads from."""
    makers = {name: k for k, node in enumerate(graph.node) for name in node.output if name}
    sources: dict[int, set[int]] = {}
    waiting = [makers[name] for name in outputs if name in makers]
    while waiting:
        k = waiting.pop()
        if k not in sources:
            sources[k] = {makers[name] for name in captured(graph.node[k]) if name in makers}
            waiting += sources[k]
    return [graph.node[k] for k in TopologicalSorter(sources).static_order()]
