"""Operators of com.microsoft, and graphs that onnxruntime has optimized."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from onnxrank.graph.sites import Selection

from .build import (
    MS,
    assert_full,
    codes,
    const,
    differ,
    found,
    info,
    make,
    node,
    noise,
    only,
    ops,
    random_pair,
    run,
    run_plain,
    single,
    split,
    tensors,
)

B, S, D = 2, 4, 12


@pytest.mark.parametrize("bias", ["constant", "dynamic"])
@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("sizes", [None, (12, 12, 12), (6, 6, 10)])
def test_attention(sizes, mask, bias):
    total = 36 if sizes is None else sum(sizes)
    inputs = {"x": (B, S, D)}
    constants = {"w": noise(D, total)}
    feeds = {"x": noise(B, S, D, seed=1)}
    if bias == "constant":
        constants["b"] = noise(total, seed=2)
    else:
        inputs["b"], feeds["b"] = (total,), noise(total, seed=2)
    order = ["x", "w", "b"]
    if mask:
        order.append("m")
        constants["m"] = np.array([3, 2], np.int32)
    attrs = {"num_heads": 2, **({"qkv_hidden_sizes": list(sizes)} if sizes else {})}
    model = single("Attention", inputs, constants, order, domain=MS, **attrs)
    assert ops(assert_full(model, feeds, 1)) == {"MatMul": 1, "Attention": 1}
    pair = random_pair(only(model))
    written, _ = split(model, lambda *_: pair)
    changed = {**tensors(model), "w": pair.product[0].astype(np.float32)}
    if bias == "constant":
        changed["b"] = changed["b"] + pair.bias[0].astype(np.float32)
    dense = make(list(model.graph.node), inputs, ["y"], changed)
    moved = dict(feeds)
    if bias == "dynamic":
        moved["b"] = feeds["b"] + pair.bias[0].astype(np.float32)
    assert differ(run(dense, moved), run(written, feeds)) < 1e-5


def test_attention_reasons():
    def one(weight, inputs=None, **attrs):
        constants = {} if weight is None else {"w": weight}
        return codes(
            single(
                "Attention", inputs or {"x": (B, S, D)}, constants, ["x", "w"], num_heads=2, **attrs
            )
        )

    assert one(noise(D, 36), domain=MS) == {"n": "site"}
    assert one(noise(1, D, 36), domain=MS) == {"n": "layout"}
    assert one(None, {"x": (B, S, D), "w": (D, 36)}, domain=MS) == {"n": "no_constant_weight"}


def test_multi_head_attention_holds_no_weight():
    names = ["q", "k", "v", "b"]
    model = single(
        "MultiHeadAttention",
        {n: (B, S, D) for n in names[:3]},
        {"b": noise(36)},
        names,
        domain=MS,
        num_heads=2,
    )
    assert codes(model) == {}


def transformer() -> onnx.ModelProto:
    """MatMul + bias, Gemm + Relu, Conv + Relu, LayerNorm: what onnxruntime fuses."""
    return make(
        [
            node("Conv", ["x", "k", "kb"], ["c"], name="conv", pads=[1, 1]),
            node("Relu", ["c"], ["cr"], name="relu1"),
            node("MatMul", ["cr", "w"], ["m"], name="mm"),
            node("Add", ["m", "b"], ["a"], name="add"),
            node("Transpose", ["a"], ["t"], name="tr", perm=[0, 2, 1]),
            node("MatMul", ["t", "v"], ["p"], name="mm2"),
            node("Flatten", ["p"], ["f"], name="flat"),
            node("Gemm", ["f", "g", "gb"], ["h"], name="gemm"),
            node("LeakyRelu", ["h"], ["y"], name="relu2"),
        ],
        {"x": (2, 8, 6)},
        ["y"],
        {
            "k": noise(8, 8, 3),
            "kb": noise(8, seed=1),
            "w": noise(6, 5),
            "b": noise(5),
            "v": noise(8, 4),
            "g": noise(20, 3),
            "gb": noise(3),
        },
    )


def test_files_saved_by_onnxruntime(tmp_path):
    """Whatever it fuses is either split or named."""
    feeds = {"x": noise(2, 8, 6, seed=1)}
    for level in (
        ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
        ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
        ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    ):
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = level
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        ort.InferenceSession(
            transformer().SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        model = onnx.load(tmp_path / "optimized.onnx")
        weights = {
            n.name
            for n in model.graph.node
            if any(p in n.op_type for p in ("Conv", "Gemm", "MatMul"))
        }
        assert set(codes(model)) >= weights
        assert_full(model, feeds)


def test_blocked_weights_are_named():
    model = single(
        "Conv",
        {"x": (1, 8, 5, 5)},
        {"w": noise(8, 8, 3, 3)},
        ["x", "w"],
        domain="com.microsoft.nchwc",
    )
    assert codes(model) == {"n": "ort_optimized"}


QUANTIZED = {
    "MatMulInteger": ("", ["x", "w"]),
    "ConvInteger": ("", ["x", "w"]),
    "QLinearMatMul": ("", ["x", "s", "z", "w", "s", "z", "s", "z"]),
    "MatMulNBits": (MS, ["f", "w", "s"]),
    "DynamicQuantizeMatMul": (MS, ["f", "w", "s"]),
    "QAttention": (MS, ["x", "w", "f", "s", "s"]),
    "MatMulBnb4": (MS, ["f", "w", "s"]),
}


@pytest.mark.parametrize("op", QUANTIZED)
def test_quantized_operators_are_named(op):
    domain, order = QUANTIZED[op]
    model = single(
        op,
        {"x": info("x", (3, 4), 2), "f": (3, 4)},
        {"w": np.ones((4, 4), np.uint8), "s": np.float32(1), "z": np.uint8(0)},
        order,
        domain=domain,
    )
    sites, skips = found(model)
    assert not sites and [s.code for s in skips] == ["quantized"]
    assert skips[0].parameters == 16


@pytest.mark.parametrize("ask", [False, True])
@pytest.mark.parametrize("form", ["dq", "qdq", "dq_transposed", "per_channel", "blocked", "int4"])
def test_dequantized_weights(form, ask):
    """Analyzed; split into float factors on request alone."""
    w = np.clip(
        np.round(noise(8, 6) * 20), -8 if form == "int4" else -127, 7 if form == "int4" else 127
    )
    scale, nodes, constants, read = np.float32(0.05), [], {}, "w"
    attrs = {}
    opset = 17
    if form == "per_channel":
        scale, attrs = (0.01 + 0.01 * np.arange(6)).astype(np.float32), {"axis": 1}
    if form == "blocked":
        scale, attrs, opset = 0.05 * np.ones((2, 6), np.float32), {"axis": 0, "block_size": 4}, 21
    if form == "qdq":
        constants["f"] = noise(8, 6)
        nodes.append(node("QuantizeLinear", ["f", "s", "z"], ["q"]))
        constants["z"] = np.int8(0)
    elif form == "int4":
        opset = 21
    else:
        constants["q"] = w.astype(np.int8)
    constants["s"] = scale
    tensors_ = [const(k, v) for k, v in constants.items()]
    if form == "int4":
        tensors_.append(
            onnx.helper.make_tensor("q", onnx.TensorProto.INT4, (8, 6), w.astype(int).ravel())
        )
    nodes.append(
        node("DequantizeLinear", ["q", "s", "z"][: 3 if form == "qdq" else 2], ["w"], **attrs)
    )
    if form == "dq_transposed":
        nodes.append(node("Transpose", ["w"], ["wt"], perm=[1, 0]))
        read = "wt"
    nodes.append(node("Gemm", ["x", read], ["y"], name="n", transB=int(form == "dq_transposed")))
    model = make(nodes, {"x": (3, 8)}, ["y"], tensors_, opset=opset, ir=10)
    feeds = {"x": noise(3, 8, seed=1)}
    selection = Selection(quantized=ask)
    assert codes(model, selection)["n"] == ("site" if ask else "hold:quantized")
    written = assert_full(model, feeds, int(ask), selection=selection, runner=run_plain)
    if ask:
        assert ops(written) == {"Gemm": 2} and not {"q", "s"} & set(tensors(written))


def test_fused_operator_without_the_standard_set():
    """New nodes are of the standard operator set, which a model need not import."""
    model = single(
        "FusedGemm", {"x": (3, 4)}, {"w": noise(4, 5)}, ["x", "w"], domain=MS, activation="Relu"
    )
    del model.opset_import[0]
    assert codes(model) == {"n": "hold:opset"}
