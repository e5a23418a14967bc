"""Shapes that the model states or onnx infers, on a copy without the weights."""

import numpy as np
import onnx
from onnx import TensorProto

from onnxrank.graph import shapes
from onnxrank.graph.model import load
from onnxrank.graph.scopes import MAIN, Scope

from .build import const, info, make, node, noise, single
from .test_probe import choose, loop

K = 40


def test_inferred_through_reshapes_of_any_storage(tmp_path):
    """The target shape lies in an initializer, a Constant, or another file."""
    nodes = [
        node("Constant", [], ["s"], value=const("", np.array([6, 4, K // 4]))),
        node("Reshape", ["x", "s"], ["h"]),
        node("Reshape", ["h", "t"], ["g"]),
        node("MatMul", ["g", "w"], ["y"], name="n"),
    ]
    model = make(nodes, {"x": (6, K)}, ["y"], {"t": np.array([3, 2, -1]), "w": noise(K, K)})
    inside, path = load(model.__class__.FromString(model.SerializeToString())), tmp_path / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, size_threshold=0, convert_attribute=True)
    for loaded in (inside, load(path)):
        assert loaded.shape(MAIN, "h") == (6, 4, K // 4)
        assert loaded.shape(MAIN, "g") == (3, 2, K)
        assert loaded.shape(MAIN, "y") == (3, 2, K)
        assert loaded.shape(MAIN, "w") == (K, K)
        assert loaded.shape(MAIN, "none") is None


def test_symbols_and_unknowns():
    model = make(
        [node("MatMul", ["x", "w"], ["y"], name="n"), node("Relu", ["z"], ["q"])],
        {"x": ("n", None, K), "z": None},
        ["y", "q"],
        {"w": noise(K, 3)},
    )
    loaded = load(model)
    shape = loaded.shape(MAIN, "y")
    assert shape is not None and shape[0] == "n" and shape[2] == 3
    assert loaded.shape(MAIN, "q") is None


def test_bodies_see_what_is_around_them():
    model = make(
        [
            node("Constant", [], ["big"], value=const("", noise(K, K))),
            choose(
                [node("MatMul", ["x", "big"], ["t"], name="n")],
                [
                    node("Constant", [], ["own"], value=const("", noise(K, K))),
                    node("MatMul", ["x", "own"], ["e"], name="m"),
                ],
            ),
            loop(["h"], [], [node("MatMul", ["h", "big"], ["h_out"])], inputs=["m", "", "y"]),
        ],
        {"x": (3, K), "c": info("c", (), TensorProto.BOOL), "m": info("m", (), TensorProto.INT64)},
        ["h_final"],
    )
    loaded = load(model)
    for branch, name in (("then_branch", "t"), ("else_branch", "e"), ("else_branch", "own")):
        inside = Scope((("y", branch),))
        assert loaded.shape(inside, name) == ((K, K) if name == "own" else (3, K))
    assert loaded.shape(Scope((("y", "then_branch"),)), "x") == (3, K)


def test_the_copy_is_light():
    model = make(
        [
            node("Constant", [], ["c"], value=const("", noise(400, 400))),
            node("MatMul", ["x", "w"], ["h"]),
            node("MatMul", ["h", "c"], ["y"]),
        ],
        {"x": (3, 400)},
        ["y"],
        {"w": noise(400, 400)},
    )
    light = shapes._light(load(model), set())
    assert light.ByteSize() < 2000


def test_initializers_as_inputs():
    model = make(
        [
            node("Constant", [], ["c"], value=const("", noise(K, K))),
            node("MatMul", ["x", "w"], ["h"]),
            node("MatMul", ["h", "c"], ["y"]),
        ],
        {"x": (3, K)},
        ["y"],
        {"w": noise(K, K)},
        ir=3,
        opset=8,
    )
    assert load(model).shape(MAIN, "y") == (3, K)


def test_inference_that_fails_leaves_what_is_declared():
    model = single("MatMul", {"x": (3, 7)}, {"w": noise(K, K)}, ["x", "w"])
    model.graph.value_info.append(info("y", (3, K)))
    model.graph.node.append(node("NoSuchOperator", ["y"], ["z"]))
    loaded = load(model)
    assert loaded.shape(MAIN, "x") == (3, 7) and loaded.shape(MAIN, "y") == (3, K)


def kernel_beyond(size, *more):
    """A convolution that leaves less than nothing, or not, and a Slice of it."""
    constants = {"k": noise(2, 2, 3), "s": np.array([0]), "e": np.array([1]), "a": np.array([2])}
    slice_ = node("Slice", ["h", "s", "e", "a"], ["y"])
    return make(
        [node("Conv", ["x", "k"], ["h"], name="n"), slice_, *more],
        {"x": (1, 2, size)},
        ["y"],
        constants,
    )


def test_inference_that_would_end_the_process():
    """onnx aborts at a Slice of an axis of negative length."""
    assert load(kernel_beyond(5)).shape(MAIN, "y") == (1, 2, 1)
    assert load(kernel_beyond(1)).shape(MAIN, "h") is None
    assert load(kernel_beyond(1)).shape(MAIN, "y") is None
    again = [node("Conv", ["y", "k"], ["g"]), node("Slice", ["g", "s", "e", "a"], ["z"])]
    loaded = load(kernel_beyond(5, *again))
    assert loaded.shape(MAIN, "y") == (1, 2, 1) and loaded.shape(MAIN, "z") is None


def test_declared_negative_dimensions_are_unknown():
    model = make(
        [node("Slice", ["x", "s", "s", "a"], ["y"])],
        {"x": (-1, 4)},
        ["y"],
        {"s": np.array([0]), "a": np.array([0])},
    )
    loaded = load(model)
    assert loaded.shape(MAIN, "x") == (None, 4) and loaded.inputs[0].shape == (None, 4)


def test_negative_dimensions_within_functions_and_bodies():
    from .test_functions import function

    constants = [
        node("Constant", [], [n], value_ints=[v]) for n, v in (("s", 0), ("e", 1), ("a", 2))
    ]
    cut = function(
        "Cut",
        "xk",
        "y",
        [
            *constants,
            node("Conv", ["x", "k"], ["h"]),
            node("Slice", ["h", "s", "e", "a"], ["y"]),
        ],
    )
    model = make(
        [node("Cut", ["x", "k"], ["y"], domain="my")],
        {"x": (1, 2, 1)},
        ["y"],
        {"k": noise(2, 2, 3)},
        functions=[cut],
    )
    load(model).shape(MAIN, "y")
    relu = function(
        "Cut",
        "xk",
        "y",
        [
            *constants,
            node("MaxPool", ["x"], ["h"], kernel_shape=[3]),
            node("Slice", ["h", "s", "e", "a"], ["y"]),
        ],
    )
    model.functions[0].CopyFrom(relu)  # no weight in it, so it is not inlined
    assert load(model).shape(MAIN, "y") is None
    inner = [node("Conv", ["x", "k"], ["h"]), node("Slice", ["h", "s", "e", "a"], ["t"])]
    model = make(
        [choose(inner, [node("Neg", ["x"], ["e2"])], names=("t", "e2"))],
        {"x": (1, 2, 1), "c": info("c", (), TensorProto.BOOL)},
        ["y"],
        {"k": noise(2, 2, 3), "s": np.array([0]), "e": np.array([1]), "a": np.array([2])},
    )
    load(model).shape(MAIN, "y")
