"""Small networks as training leaves them: larger than their task, on rows of few dimensions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxrank.graph.model import Model, load
from onnxrank.moments import Moments
from onnxrank.runtime.batch import DataSource
from onnxrank.runtime.data import open_data
from onnxrank.runtime.session import Run
from onnxrank.stages.budget import Planner
from onnxrank.stages.collect import collect
from onnxrank.stages.measure import Measured, measure
from onnxrank.stages.survey import silent
from onnxrank.stages.work import rows_of_data

from ..graph.build import info, make, node

RUN = Run(provider="cpu", threads=1, batch_size=16)
D, TOKENS, CLASSES = 24, 6, 10


class Layers:
    """Collects nodes and weights; a weight's directions matter less and less."""

    def __init__(self, seed: int = 0, decay: float = 0.3) -> None:
        self.rng = np.random.default_rng(seed)
        self.decay = decay
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, NDArray[np.float32]] = {}
        self.count = 0

    def weight(self, d_in: int, d_out: int) -> NDArray[np.float64]:
        size = min(d_in, d_out)
        left = np.linalg.qr(self.rng.standard_normal((d_in, size)))[0]
        right = np.linalg.qr(self.rng.standard_normal((d_out, size)))[0]
        scale = np.exp(-self.decay * np.arange(size)) * np.sqrt(size)
        return (left * scale) @ right.T

    def add(self, op: str, inputs: list[str], name: str = "", **attrs: object) -> str:
        self.count += 1
        made = f"t{self.count}"
        self.nodes.append(node(op, inputs, [made], name=name or f"{op}{self.count}", **attrs))
        return made

    def constant(self, name: str, value: NDArray[np.floating]) -> str:
        self.constants[name] = np.asarray(value, np.float32)
        return name

    def bias(self, name: str, size: int) -> str:
        return self.constant(name, 0.1 * self.rng.standard_normal(size))

    def linear(self, x: str, name: str, d_in: int, d_out: int, bias: bool = True) -> str:
        weight = self.constant(f"{name}.w", self.weight(d_in, d_out))
        made = self.add("MatMul", [x, weight], name)
        return self.add("Add", [made, self.bias(f"{name}.b", d_out)]) if bias else made

    def gemm(self, x: str, name: str, d_in: int, d_out: int) -> str:
        weight = self.constant(f"{name}.w", self.weight(d_in, d_out).T)
        return self.add("Gemm", [x, weight, self.bias(f"{name}.b", d_out)], name, transB=1)

    def conv(self, x: str, name: str, d_in: int, d_out: int, bias=True, k=3, **attrs) -> str:
        rows = self.weight(d_in * k * k, d_out).T.reshape(d_out, d_in, k, k)
        inputs = [x, self.constant(f"{name}.w", rows / k)]
        if bias:
            inputs.append(self.bias(f"{name}.b", d_out))
        return self.add("Conv", inputs, name, **attrs)

    def norm(self, x: str, size: int) -> str:
        return self.add("LayerNormalization", [x, self.constant(f"g{size}", np.ones(size))])

    def model(self, shape: list[object], y: str, out: list[object]) -> onnx.ModelProto:
        self.nodes[-1].output[0] = "y"
        proto = make(self.nodes, {"x": info("x", shape)}, ["y"], self.constants)
        proto.graph.output[0].CopyFrom(info("y", out))
        return proto


def mlp(bias: bool = True, depth: int = 4, decay: float = 0.3, seed: int = 0) -> onnx.ModelProto:
    """Layers of one width with an activation between; classes at the end."""
    layers, x = Layers(seed, decay), "x"
    for k in range(depth):
        x = layers.add("Tanh", [layers.linear(x, f"fc{k}", D, D, bias)])
    return layers.model(["n", D], layers.gemm(x, "head", D, CLASSES), ["n", CLASSES])


def encoder(blocks: int = 2) -> onnx.ModelProto:
    """Blocks of a transformer, norms first, without heads; the mean is classified."""
    layers, x = Layers(1, 0.2), "x"
    for k in range(blocks):
        a = layers.norm(x, D)
        q, key, v = (layers.linear(a, f"b{k}.{name}", D, D) for name in "qkv")
        turned = layers.add("Transpose", [key], perm=[0, 2, 1])
        scores = layers.add("Softmax", [layers.add("MatMul", [q, turned])])
        mixed = layers.linear(layers.add("MatMul", [scores, v]), f"b{k}.out", D, D)
        x = layers.add("Add", [mixed, x])
        hidden = layers.add("Relu", [layers.linear(layers.norm(x, D), f"b{k}.up", D, 2 * D)])
        x = layers.add("Add", [x, layers.linear(hidden, f"b{k}.down", 2 * D, D)])
    mean = layers.add("ReduceMean", [layers.norm(x, D)], axes=[1], keepdims=0)
    return layers.model(["n", TOKENS, D], layers.gemm(mean, "head", D, CLASSES), ["n", CLASSES])


def convnet(bias: bool = True) -> onnx.ModelProto:
    """A stem, a residual block, a step down, and a head."""
    layers = Layers(2, 0.15)
    x = layers.add("Relu", [layers.conv("x", "stem", 4, 16, bias, pads=[1] * 4)])
    inner = layers.add("Relu", [layers.conv(x, "one", 16, 16, bias, pads=[1] * 4)])
    x = layers.add("Add", [layers.conv(inner, "two", 16, 16, bias, pads=[1] * 4), x])
    x = layers.add("Relu", [x])
    x = layers.add("Relu", [layers.conv(x, "down", 16, 24, bias, strides=[2, 2])])
    x = layers.add("Flatten", [layers.add("GlobalAveragePool", [x])])
    return layers.model(["n", 4, 9, 9], layers.gemm(x, "head", 24, CLASSES), ["n", CLASSES])


def data(shape: tuple[int, ...], n: int = 0, rank: int = 6, noise: float = 0.05, seed: int = 1):
    """Samples whose last axis (of images: the channels) has few directions."""
    rng = np.random.default_rng(seed)
    n = n or (512 if len(shape) < 3 else 160)
    width = shape[-1] if len(shape) < 3 else shape[0]
    basis = np.random.default_rng(7).standard_normal((rank, width))
    grid = shape[:-1] if len(shape) < 3 else shape[1:]
    rows = rng.standard_normal((n, *grid, rank)) @ basis + noise * rng.standard_normal(
        (n, *grid, width)
    )
    return {"x": (rows if len(shape) < 3 else np.moveaxis(rows, -1, 1)).astype(np.float32)}


NETWORKS = {
    "mlp": (mlp, (D,)),
    "mlp without biases": (lambda: mlp(bias=False), (D,)),
    "encoder": (encoder, (TOKENS, D)),
    "convnet": (convnet, (4, 9, 9)),
    "convnet without biases": (lambda: convnet(bias=False), (4, 9, 9)),
}


@dataclass(frozen=True, eq=False)
class Setting:
    """A network with its calibration data, measured."""

    proto: onnx.ModelProto
    model: Model
    source: DataSource
    moments: Moments
    measured: Measured
    rows: dict[str, float]

    def planner(self, **more: object) -> Planner:
        more = {"allow_unstable": True, "align": 1, **more}
        return Planner(self.measured, self.source, RUN, self.rows, **more)  # type: ignore[arg-type]


def setting(proto: onnx.ModelProto, samples, run: Run = RUN) -> Setting:
    model = load(proto)
    source = open_data(samples, model.inputs, run)
    moments = collect(model, source, run=run)
    measured = measure(model, moments, energy=0.99, centered=False, selection=None, progress=silent)
    return Setting(proto, model, source, moments, measured, rows_of_data(model, source, run))


def named(name: str, **more) -> Setting:
    network, shape = NETWORKS[name]
    return setting(network(), data(shape, **more))
