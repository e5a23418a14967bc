"""Models of every kind that a server must take, each with feeds; the same bytes every time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Feeds = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Kind:
    """How to write a model into a folder, and what to ask it."""

    write: Callable[[Path], Path]
    feeds: Callable[[], Feeds]


def weight(name: str, *shape: int, dtype: type = np.float32, seed: int = 0) -> onnx.TensorProto:
    value = np.random.default_rng(seed).standard_normal(shape) / np.sqrt(shape[0])
    return numpy_helper.from_array(value.astype(dtype), name)


def value(name: str, dtype: int, shape: list[int | str | None] | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    initializers: list[onnx.TensorProto] | None = None,
    opset: int = 17,
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers or [])
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def text(rank: int | None = None, d: int = 64, hidden: int = 48) -> onnx.ModelProto:
    """Like a sentence transformer; its output's shape is left to inference. `rank` factorizes."""
    weights = [weight("table", 100, d), weight("w", d, hidden, seed=1)]
    product = [helper.make_node("MatMul", ["e", "w"], ["h"], name="fc")]
    if rank is not None:
        u, s, vt = np.linalg.svd(numpy_helper.to_array(weights[1]), full_matrices=False)
        weights[1:] = [
            numpy_helper.from_array(u[:, :rank] * s[:rank], "w_in"),
            numpy_helper.from_array(vt[:rank], "w_out"),
        ]
        product = [
            helper.make_node("MatMul", ["e", "w_in"], ["z"], name="fc/rank_in"),
            helper.make_node("MatMul", ["z", "w_out"], ["h"], name="fc/rank_out"),
        ]
    axis = numpy_helper.from_array(np.array([1], np.int64), "axis")
    last = numpy_helper.from_array(np.array([2], np.int64), "last")
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["e"]),
        *product,
        helper.make_node("Cast", ["attention_mask"], ["m"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["m", "last"], ["m3"]),
        helper.make_node("Mul", ["h", "m3"], ["hm"]),
        helper.make_node("ReduceSum", ["hm", "axis"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["m", "axis"], ["n"], keepdims=1),
        helper.make_node("Div", ["sum", "n"], ["embedding"]),
    ]
    inputs = [
        value(name, TensorProto.INT64, ["batch", "sequence"])
        for name in ("input_ids", "attention_mask")
    ]
    output = value("embedding", TensorProto.FLOAT, None)
    return model(nodes, inputs, [output], [*weights, axis, last])


def text_feeds(batch: int = 2, length: int = 5) -> Feeds:
    ids = np.random.default_rng(3).integers(0, 100, (batch, length))
    mask = np.ones((batch, length), np.int64)
    mask[-1, -2:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def fixed() -> onnx.ModelProto:
    """A convolution of one image, all dimensions fixed."""
    nodes = [
        helper.make_node("Conv", ["image", "k"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Flatten", ["p"], ["scores"]),
    ]
    return model(
        nodes,
        [value("image", TensorProto.FLOAT, [1, 3, 8, 8])],
        [value("scores", TensorProto.FLOAT, [1, 4])],
        [weight("k", 4, 3, 3, 3)],
    )


def fixed_feeds() -> Feeds:
    image = np.random.default_rng(4).standard_normal((1, 3, 8, 8))
    return {"image": image.astype(np.float32)}


def scalars() -> onnx.ModelProto:
    """A scalar in and a scalar out beside an open batch."""
    nodes = [
        helper.make_node("Mul", ["x", "scale"], ["y"]),
        helper.make_node("ReduceMean", ["y"], ["mean"], keepdims=0),
    ]
    return model(
        nodes,
        [value("x", TensorProto.FLOAT, ["n", 4]), value("scale", TensorProto.FLOAT, [])],
        [value("y", TensorProto.FLOAT, ["n", 4]), value("mean", TensorProto.FLOAT, [])],
    )


def scalars_feeds() -> Feeds:
    x = np.random.default_rng(5).standard_normal((3, 4)).astype(np.float32)
    return {"x": x, "scale": np.array(1.5, np.float32)}


def half() -> onnx.ModelProto:
    """Float16 in, weights and out."""
    return model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [value("x", TensorProto.FLOAT16, ["n", 8])],
        [value("y", TensorProto.FLOAT16, ["n", 6])],
        [weight("w", 8, 6, dtype=np.float16)],
    )


def half_feeds() -> Feeds:
    return {"x": np.random.default_rng(6).standard_normal((2, 8)).astype(np.float16)}


def strings() -> onnx.ModelProto:
    """Strings in and out, and their being equal."""
    nodes = [
        helper.make_node("StringConcat", ["first", "second"], ["both"]),
        helper.make_node("Identity", ["first"], ["same"]),
    ]
    shape: list[int | str | None] = ["n"]
    return model(
        nodes,
        [value("first", TensorProto.STRING, shape), value("second", TensorProto.STRING, shape)],
        [value("both", TensorProto.STRING, shape), value("same", TensorProto.STRING, shape)],
        opset=20,
    )


def strings_feeds() -> Feeds:
    words = {"first": ["a", "naïve", ""], "second": ["b", "café ☕", 'quote " \\ end']}
    return {name: np.array(texts, dtype=object) for name, texts in words.items()}


def vectors() -> onnx.ModelProto:
    """One number a sample: a batched tensor of rank one."""
    return model(
        [helper.make_node("Mul", ["x", "x"], ["y"])],
        [value("x", TensorProto.FLOAT, ["n"])],
        [value("y", TensorProto.FLOAT, ["n"])],
    )


def with_default() -> onnx.ModelProto:
    """An input that an initializer gives a default: bias is one."""
    return model(
        [helper.make_node("Add", ["x", "bias"], ["y"])],
        [value("x", TensorProto.FLOAT, ["n", 2]), value("bias", TensorProto.FLOAT, [2])],
        [value("y", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(np.ones(2, np.float32), "bias")],
    )


def saved(make: Callable[[], onnx.ModelProto]) -> Callable[[Path], Path]:
    """Write a model as one file."""

    def write(folder: Path) -> Path:
        path = folder / "model.onnx"
        onnx.save(make(), str(path))
        return path

    return write


def with_external(folder: Path) -> Path:
    """The text model with its weights in two files, one of them in a folder."""
    proto = text()
    (folder / "weights").mkdir()
    for name, location in (("table", "weights/table.bin"), ("w", "w.data")):
        tensor = next(t for t in proto.graph.initializer if t.name == name)
        (folder / location).write_bytes(tensor.raw_data)
        size = len(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, entry in (("location", location), ("offset", 0), ("length", size)):
            tensor.external_data.add(key=key, value=str(entry))
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


KINDS = {
    "text": Kind(saved(text), text_feeds),
    "compressed": Kind(saved(lambda: text(rank=16)), text_feeds),
    "external": Kind(with_external, text_feeds),
    "fixed": Kind(saved(fixed), fixed_feeds),
    "scalars": Kind(saved(scalars), scalars_feeds),
    "half": Kind(saved(half), half_feeds),
    "strings": Kind(saved(strings), strings_feeds),
}
