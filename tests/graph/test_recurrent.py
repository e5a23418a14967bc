"""LSTM, GRU and RNN: input weights are split exactly, recurrent ones are held."""

import numpy as np
import pytest

from .build import (
    assert_full,
    codes,
    const,
    differ,
    found,
    make,
    node,
    noise,
    only,
    random_pair,
    reference,
    run,
    single,
    split,
    tensors,
)

T, B, D, H = 4, 3, 10, 5
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
OUTPUTS = {"LSTM": ("Y", "Yh", "Yc"), "GRU": ("Y", "Yh"), "RNN": ("Y", "Yh")}


def recurrent(
    op,
    direction="forward",
    bias=True,
    states=False,
    lens=False,
    peep=False,
    outputs=None,
    dynamic_bias=False,
    **attrs,
):
    dirs = 2 if direction == "bidirectional" else 1
    rows = GATES[op] * H
    layout = attrs.get("layout", 0)
    inputs = {"x": (B, T, D) if layout else (T, B, D)}
    constants = {"w": 0.5 * noise(dirs, rows, D), "r": 0.5 * noise(dirs, rows, H, seed=2)}
    feeds = {"x": noise(*inputs["x"], seed=1)}
    order = ["x", "w", "r"] + [""] * 5
    if dynamic_bias:
        inputs["b"], feeds["b"] = (dirs, 2 * rows), noise(dirs, 2 * rows, seed=3)
        order[3] = "b"
    elif bias:
        constants["b"] = noise(dirs, 2 * rows, seed=3)
        order[3] = "b"
    if lens:
        constants["lens"] = np.array([T, 1, 2], np.int32)
        order[4] = "lens"
    if states:
        shape = (B, dirs, H) if layout else (dirs, B, H)
        for k, name in ((5, "h0"), (6, "c0")):
            if name == "h0" or op == "LSTM":
                inputs[name], feeds[name] = shape, noise(*shape, seed=k)
                order[k] = name
    if peep:
        constants["p"] = noise(dirs, 3 * H, seed=4)
        order[7] = "p"
    while not order[-1]:
        order.pop()
    names = OUTPUTS[op] if outputs is None else outputs
    attrs = {"hidden_size": H, "direction": direction, **attrs}
    return single(op, inputs, constants, order, outputs=names, **attrs), feeds


def check(model, feeds):
    assert_full(model, feeds, 1)
    site = only(model)
    pair = random_pair(site)
    written, _ = split(model, lambda *_: pair)
    w = tensors(model)["w"]
    changed = pair.product[0].T.reshape(w.shape).astype(np.float32)
    shift = pair.bias[0].reshape(w.shape[:2])
    shift = np.concatenate([shift, 0 * shift], axis=1).astype(np.float32)
    constants = {**tensors(model), "w": changed}
    original = type(model.graph.node[0])()
    original.CopyFrom(model.graph.node[0])
    if "b" in feeds:
        feeds = {**feeds, "b": feeds["b"] + shift}
    else:
        constants["b"] = constants.get("b", 0) + shift
        while len(original.input) < 4:
            original.input.append("")
        original.input[3] = "b"
    inputs = {k: v.shape for k, v in feeds.items()}
    dense = make([original], inputs, [o.name for o in model.graph.output], constants)
    before = {k: v for k, v in feeds.items()}
    if "b" in feeds:
        before["b"] = feeds["b"] - shift
    assert differ(run(dense, feeds), run(written, before)) < 2e-5


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("op", GATES)
def test_options(op, direction):
    for bias in (True, False):
        for states in (True, False):
            for lens in (True, False):
                check(*recurrent(op, direction, bias, states, lens))
    check(*recurrent(op, direction, dynamic_bias=True))
    dirs = 2 if direction == "bidirectional" else 1
    if op == "LSTM":
        check(*recurrent(op, direction, peep=True))
        check(*recurrent(op, direction, peep=True, bias=False, clip=0.5, input_forget=1))
        check(*recurrent(op, direction, activations=["Sigmoid", "Relu", "Tanh"] * dirs))
    if op == "GRU":
        check(*recurrent(op, direction, linear_before_reset=1))
        check(*recurrent(op, direction, linear_before_reset=1, bias=False))
    if op == "RNN":
        check(*recurrent(op, direction, activations=["Relu"] * dirs))


@pytest.mark.parametrize("op", GATES)
def test_which_outputs(op):
    for outputs in (("Y",), ("Y", ""), ("", "Yh")):
        model, feeds = recurrent(op, outputs=outputs)
        check(model, feeds)
        answer = codes(model)
        assert answer["n"] == "site"
        assert answer["n/recurrent"] == ("hold:recurrent" if outputs[0] else "recurrent")


@pytest.mark.parametrize("op", GATES)
def test_layout_1(op):
    """onnxruntime runs it for none of them on a CPU; onnx's evaluator does."""
    model, feeds = recurrent(op, layout=1, outputs=("Y", "Yh"))
    assert_full(model, feeds, 1, runner=reference)
    model, _ = recurrent(op, "bidirectional" if op == "LSTM" else "forward", layout=1)
    sites, _ = found(model)
    assert [s.view.layout.axes for s in sites] == [(-1,), (2, 3)]
    written, _ = split(model)
    first, last = written.graph.node
    assert first.op_type == "MatMul" and last.op_type == op
    assert {a.name for a in last.attribute} == {"hidden_size", "direction", "layout"}


def test_rows_are_steps():
    model, _ = recurrent("LSTM")
    assert only(model).rows == T


def test_reasons():
    w, r = noise(1, 4 * H, D), noise(1, 4 * H, H)

    def one(constants, order=("x", "w", "r"), inputs=None):
        return codes(single("LSTM", inputs or {"x": (T, B, D)}, constants, order, hidden_size=H))

    assert one({"w": w, "r": r}) == {"n": "site", "n/recurrent": "hold:recurrent"}
    assert one({"w": w[0], "r": r})["n"] == "layout"
    assert one({"w": w, "r": r[0]})["n/recurrent"] == "recurrent"
    dynamic = one({"w": w}, inputs={"x": (T, B, D), "r": r.shape})
    assert dynamic == {"n": "site"}
    dynamic = one({"r": r}, inputs={"x": (T, B, D), "w": w.shape})
    assert dynamic == {"n": "no_constant_weight", "n/recurrent": "hold:recurrent"}
    assert one({}, inputs={"x": (T, B, D), "w": w.shape, "r": r.shape}) == {
        "n": "no_constant_weight"
    }


def test_names_stay_apart():
    """A node that is called what the second site of another would be."""
    model, _ = recurrent("RNN", outputs=("Y",))
    model.graph.node.append(node("MatMul", ["Y", "m"], ["n/recurrent"], name="n/recurrent"))
    model.graph.initializer.append(const("m", noise(H, H)))
    model.graph.output.add(name="n/recurrent")
    assert codes(model) == {
        "n": "site",
        "n/recurrent": "hold:recurrent",
        "main/n/recurrent": "site",
    }


def test_shared_recurrent_and_input_weight():
    """W and R may be one tensor; only W is replaced."""
    model = single(
        "RNN",
        {"x": (T, B, H)},
        {"w": 0.3 * noise(1, H, H)},
        ["x", "w", "w"],
        hidden_size=H,
        outputs=("Y",),
    )
    written = assert_full(model, {"x": noise(T, B, H)}, 1)
    assert "w" in tensors(written)


def test_unrolled_cell_shares_one_weight():
    """Keras unrolls: one recurrent matrix is used by every step, and factored once."""
    nodes, h = [], "h0"
    for t in range(3):
        nodes += [
            node("MatMul", [h, "w"], [f"m{t}"], name=f"mm{t}"),
            node("Tanh", [f"m{t}"], [f"h{t + 1}"], name=f"tanh{t}"),
        ]
        h = f"h{t + 1}"
    model = make(nodes, {"h0": (2, H)}, [h], {"w": noise(H, H)})
    written = assert_full(model, {"h0": noise(2, H, seed=1)}, 3)
    assert len(written.graph.initializer) == 2
