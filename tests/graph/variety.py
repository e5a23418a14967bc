"""One model of every kind of site, with an input: what must hold for all is tried on these."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
from onnx import TensorProto

from .build import MS, Feeds, const, info, make, node, noise, single
from .test_einsum import einsum
from .test_gemm import gemm
from .test_probe import choose
from .test_recurrent import recurrent

Case = tuple[onnx.ModelProto, Feeds]


def matmul(weight, shape, left=False, bias=None, shared=False, **attrs) -> Case:
    """MatMul or FusedMatMul, with a bias added behind it, which may be read once more."""
    order = ["w", "x"] if left else ["x", "w"]
    op = "FusedMatMul" if attrs else "MatMul"
    first = node(op, order, ["h" if bias is not None else "y"], name="n", **attrs)
    nodes, outputs, constants = [first], ["y"], {"w": weight}
    if bias is not None:
        nodes.append(node("Add", ["h", "b"], ["y"], name="add"))
        constants["b"] = bias
    if shared:
        nodes.append(node("Neg", ["b"], ["z"]))
        outputs.append("z")
    return make(nodes, {"x": shape}, outputs, constants), {"x": noise(*shape, seed=1)}


def conv(group=1, bias="constant", fused=False, kernel=(3, 3), **attrs) -> Case:
    constants = {"w": noise(6, 4, *kernel)}
    inputs, feeds = {"x": (2, 4 * group, 9, 9)}, {"x": noise(2, 4 * group, 9, 9, seed=1)}
    order = ["x", "w"]
    if bias == "constant":
        constants["b"] = noise(6, seed=2)
    if bias == "dynamic":
        inputs["b"], feeds["b"] = (6,), noise(6, seed=2)
    if bias:
        order.append("b")
    attrs = {"group": group, **attrs} if group > 1 else attrs
    if fused:
        attrs = {"domain": MS, "activation": "Relu", **attrs}
    return single("FusedConv" if fused else "Conv", inputs, constants, order, **attrs), feeds


def branches(c: bool) -> Case:
    """A weight of the main graph, and one of a branch's own."""
    model = make(
        [
            node("MatMul", ["x", "v"], ["h"], name="before"),
            choose(
                [node("MatMul", ["h", "w"], ["t"], name="inside")],
                [node("Gemm", ["h", "w"], ["e"], name="other", alpha=0.5)],
            ),
            node("MatMul", ["y0", "u"], ["y"], name="behind"),
        ],
        {"x": (3, 5), "c": info("c", (), TensorProto.BOOL)},
        ["y"],
        {"v": noise(5, 5), "w": noise(5, 5, seed=8), "u": noise(5, 4)},
    )
    model.graph.node[1].output[0] = "y0"
    return model, {"x": noise(3, 5), "c": np.array(c)}


def shared_weight() -> Case:
    model = make(
        [
            node("MatMul", ["x", "w"], ["h"], name="first"),
            node("Relu", ["h"], ["r"]),
            node("Gemm", ["r", "w"], ["y"], name="second", transB=1),
        ],
        {"x": (4, 5)},
        ["y"],
        {"w": noise(5, 5)},
    )
    return model, {"x": noise(4, 5, seed=1)}


def typed(dtype: int, numpy_type: type) -> Case:
    """MatMul and bias in another type."""
    shape = (3, 6)
    model = make(
        [node("MatMul", ["x", "w"], ["h"], name="n"), node("Add", ["h", "b"], ["y"])],
        {"x": info("x", shape, dtype)},
        ["y"],
        {"w": noise(6, 5, dtype=numpy_type), "b": noise(5, seed=2, dtype=numpy_type)},
    )
    return model, {"x": noise(*shape, seed=1, dtype=numpy_type)}


def chained() -> Case:
    """The weight and its bias lie behind operators that move them."""
    model = make(
        [
            node("Transpose", ["v"], ["w"]),
            node("Identity", ["c"], ["b"]),
            node("Constant", [], ["u"], value=const("", noise(5, 4))),
            node("MatMul", ["x", "w"], ["h"], name="n"),
            node("Add", ["b", "h"], ["s"]),
            node("MatMul", ["s", "u"], ["y"], name="m"),
        ],
        {"x": (3, 6)},
        ["y"],
        {"v": noise(5, 6), "c": noise(5, seed=2)},
    )
    return model, {"x": noise(3, 6, seed=1)}


def old(ir: int) -> Case:
    """Where every initializer is an input."""
    model = make(
        [node("Gemm", ["x", "w", "b"], ["h"], name="n"), node("MatMul", ["h", "u"], ["y"])],
        {"x": (3, 6)},
        ["y"],
        {"w": noise(6, 5), "b": noise(5, seed=2), "u": noise(5, 4)},
        ir=ir,
        opset=9,
    )
    return model, {"x": noise(3, 6, seed=1)}


def attention() -> Case:
    constants = {"w": noise(12, 36), "b": noise(36, seed=2)}
    model = single(
        "Attention", {"x": (2, 4, 12)}, constants, ["x", "w", "b"], domain=MS, num_heads=2
    )
    return model, {"x": noise(2, 4, 12, seed=1)}


def fused_gemm(c: bool) -> Case:
    constants = {"w": noise(6, 5), **({"c": noise(5, seed=2)} if c else {})}
    model = single(
        "FusedGemm",
        {"x": (3, 6)},
        constants,
        ["x", "w", "c"][: 2 + c],
        domain=MS,
        activation="LeakyRelu",
        activation_alpha=0.1,
        alpha=0.5,
        beta=2.0,
    )
    return model, {"x": noise(3, 6, seed=1)}


VARIETY: Mapping[str, Callable[[], Case]] = {
    "gemm": lambda: gemm(),
    "gemm alpha beta": lambda: gemm(0, 1, 0.5, 2.0, "1N"),
    "gemm beta 0": lambda: gemm(0, 0, 3.0, 0.0, "N"),
    "gemm no c": lambda: gemm(1, 0, c="absent"),
    "gemm scalar c": lambda: gemm(c="scalar"),
    "gemm full c": lambda: gemm(c="MN"),
    "gemm dynamic c": lambda: gemm(c="N", dynamic=True),
    "gemm left": lambda: gemm(0, 1, left=True),
    "gemm opset 9": lambda: gemm(opset=9),
    "matmul": lambda: matmul(noise(7, 5), (2, 3, 7)),
    "matmul vector": lambda: matmul(noise(7, 5), (7,)),
    "matmul leading one": lambda: matmul(noise(1, 7, 5), (2, 3, 7), bias=noise(1, 5)),
    "matmul bias": lambda: matmul(noise(7, 5), (2, 3, 7), bias=noise(5)),
    "matmul shared bias": lambda: matmul(noise(7, 5), (3, 7), bias=noise(5), shared=True),
    "matmul other bias": lambda: matmul(noise(7, 5), (3, 7), bias=noise(3, 5)),
    "matmul left": lambda: matmul(noise(5, 7), (2, 7, 4), left=True),
    "matmul left bias": lambda: matmul(noise(4, 7), (7, 4), left=True, bias=noise(4)),
    "matmul left vector": lambda: matmul(noise(5, 7), (7,), left=True),
    "fused matmul": lambda: matmul(noise(5, 7), (3, 7), domain=MS, alpha=0.5, transB=1),
    "fused matmul bias": lambda: matmul(noise(7, 5), (3, 7), bias=noise(5), domain=MS, alpha=0.5),
    "conv": lambda: conv(pads=[1] * 4, strides=[2, 1]),
    "conv no bias": lambda: conv(bias="", dilations=[2, 2]),
    "conv dynamic bias": lambda: conv(bias="dynamic"),
    "conv grouped": lambda: conv(2, auto_pad="SAME_LOWER"),
    "conv 1x1": lambda: conv(kernel=(1, 1)),
    "conv fused": lambda: conv(fused=True),
    "conv fused no bias": lambda: conv(bias="", fused=True),
    "einsum": lambda: einsum("bsd,dhk->bhsk", 1, {}),
    "einsum left": lambda: einsum("de,bsd->bse", 0, {"e": 6}),
    "lstm": lambda: recurrent("LSTM", "bidirectional"),
    "gru no bias": lambda: recurrent("GRU", bias=False),
    "rnn dynamic bias": lambda: recurrent("RNN", dynamic_bias=True),
    "attention": attention,
    "fused gemm": lambda: fused_gemm(True),
    "fused gemm no c": lambda: fused_gemm(False),
    "then": lambda: branches(True),
    "else": lambda: branches(False),
    "shared weight": shared_weight,
    "float16": lambda: typed(TensorProto.FLOAT16, np.float16),
    "float64": lambda: typed(TensorProto.DOUBLE, np.float64),
    "chains": chained,
    "ir 3": lambda: old(3),
    "ir 4": lambda: old(4),
}
