"""Where weights lie, who else uses them, and what is dropped when they are split."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxrank.graph.find import find_sites, find_units
from onnxrank.graph.model import load
from onnxrank.graph.sites import Selection

from .build import (
    assert_full,
    codes,
    const,
    differ,
    found,
    info,
    make,
    node,
    noise,
    ops,
    random_pair,
    run,
    split,
    tensors,
)

K, N = 6, 4
X = {"x": noise(3, K, seed=1)}


def matmul(read="w", **more):
    return node("MatMul", ["x", read], ["y"], name="n", **more)


def units(proto, selection=None):
    model = load(proto)
    sites, _ = find_sites(model, selection or Selection())
    return find_units(model, sites)


@pytest.mark.parametrize(
    "nodes,value",
    [
        ([node("Identity", ["v"], ["w"])], noise(K, N)),
        ([node("Identity", ["v"], ["u"]), node("Identity", ["u"], ["w"])], noise(K, N)),
        ([node("Transpose", ["v"], ["w"])], noise(N, K)),
        ([node("Cast", ["v"], ["w"], to=1)], noise(K, N, dtype=np.float64)),
        ([node("Reshape", ["v", "s"], ["w"])], noise(K * N)),
        ([node("Squeeze", ["v"], ["w"])], noise(1, K, N)),
        ([node("Flatten", ["v"], ["w"])], noise(K, 2, N // 2)),
        ([node("Unsqueeze", ["v", "z"], ["w"])], noise(K, N)),
        ([node("Split", ["v"], ["w", "u"], axis=1)], noise(K, 2 * N)),
        ([node("Slice", ["v", "z", "i", "i"], ["w"])], noise(K, N + 1)),
    ],
)
@pytest.mark.parametrize("form", ["initializer", "Constant"])
def test_chains(nodes, value, form):
    """The chain and its root go with the dense weight; other constants stay."""
    constants = {"s": np.array([K, N]), "z": np.array([0]), "i": np.array([1])}
    if nodes[0].op_type == "Slice":
        constants["i"] = np.array([N])
        constants["one"] = np.array([1])
        nodes = [node("Slice", ["v", "z", "i", "one"], ["w"])]
    used = {name for n in nodes for name in n.input} - {"v", "u"}
    constants = {k: v for k, v in constants.items() if k in used}
    if form == "Constant":
        nodes = [node("Constant", [], ["v"], value=const("", value)), *nodes]
    else:
        constants["v"] = value
    model = make([*nodes, matmul()], {"x": (3, K)}, ["y"], constants)
    written = assert_full(model, X, 1)
    assert ops(written) == {"MatMul": 2}
    assert set(tensors(written)) == {"n/rank_in.weight", "n/rank_out.weight"}


def test_constant_node_forms():
    for attrs, code in (
        ({"value_floats": [1.0, 2.0, 3.0]}, "vector"),
        ({"value_float": 1.0}, "vector"),
        ({"value_ints": [1, 2]}, "vector"),
        ({"value_string": "a"}, "constant_kind"),
    ):
        model = make([node("Constant", [], ["w"], **attrs), matmul()], {"x": (3, 3)}, ["y"])
        assert codes(model) == {"n": code}
    odd = node("Constant", [], ["w"], domain="my.domain", value=const("", noise(K, N)))
    model = make([odd, matmul()], {"x": (3, K)}, ["y"])
    assert codes(model)["n"] == "no_constant_weight"


def test_computed_weights_are_named():
    """A weight that onnx's own constant folding would reveal."""
    model = make(
        [node("Mul", ["v", "g"], ["u"]), node("Transpose", ["u"], ["w"]), matmul()],
        {"x": (3, K)},
        ["y"],
        {"v": noise(N, K), "g": noise(N, 1)},
    )
    assert codes(model)["n"] == "computed_weight"
    model = make(
        [node("Mul", ["v", "g"], ["w"]), matmul()],
        {"x": (3, K), "g": (1,)},
        ["y"],
        {"v": noise(K, N)},
    )
    assert codes(model)["n"] == "no_constant_weight"


def test_shared_weight_is_stored_once():
    model = make(
        [matmul(), node("Gemm", ["x2", "w"], ["z"], name="g")],
        {"x": (3, K), "x2": (2, K)},
        ["y", "z"],
        {"w": noise(K, N)},
    )
    (unit,) = units(model)
    assert [s.name for s in unit.sites] == ["n", "g"] and not unit.tied
    written = assert_full(model, {**X, "x2": noise(2, K, seed=2)}, 2)
    assert len(written.graph.initializer) == 2


@pytest.mark.parametrize("op", ["Identity", "Transpose", "Cast", "Reshape"])
def test_equal_chains_are_one_unit(op):
    attrs = {"Cast": {"to": TensorProto.FLOAT}}.get(op, {})
    more = ["s"] if op == "Reshape" else []
    constants = {"v": noise(K, K), "s": np.array([K, K])}
    model = make(
        [
            node(op, ["v", *more], ["a"], **attrs),
            node(op, ["v", *more], ["b"], **attrs),
            node("MatMul", ["x", "a"], ["h"], name="n"),
            node("MatMul", ["h", "b"], ["y"], name="m"),
        ],
        {"x": (3, K)},
        ["y"],
        constants if more else {"v": constants["v"]},
    )
    (unit,) = units(model)
    assert len(unit.sites) == 2 and not unit.tied
    written = assert_full(model, X, 2)
    assert len(written.graph.initializer) == 2


def test_other_orientations_are_other_units():
    model = make(
        [matmul(), node("Gemm", ["y", "w"], ["z"], name="g", transB=1)],
        {"x": (3, K)},
        ["z"],
        {"w": noise(K, N)},
    )
    assert [u.tied for u in units(model)] == [True, True]
    written = assert_full(model, X, 2)
    assert "w" not in tensors(written) and len(written.graph.initializer) == 4
    model = make(
        [node("Transpose", ["w"], ["t"]), matmul("t"), matmul_z()],
        {"x": (3, K)},
        ["y", "z"],
        {"w": noise(K, K)},
    )
    assert [u.tied for u in units(model)] == [True, True]
    assert_full(model, X, 2)


def matmul_z():
    return node("MatMul", ["x", "w"], ["z"], name="m")


def test_parts_of_one_tensor():
    """Three projections cut from one weight: it goes when all three are split."""
    model = make(
        [
            node("Split", ["v"], ["a", "b", "c"], axis=1),
            *(node("MatMul", ["x", w], [f"y{w}"], name=w) for w in "abc"),
        ],
        {"x": (3, K)},
        ["ya", "yb", "yc"],
        {"v": noise(K, 3 * K)},
        opset=13,
    )
    assert [u.tied for u in units(model)] == [True] * 3
    assert "v" not in tensors(assert_full(model, X, 3))
    loaded = load(model)
    sites, _ = find_sites(loaded)
    from onnxrank.graph.rewrite import rewrite

    from .build import full_rank

    one = rewrite(loaded, [(sites[0], full_rank(loaded, sites[0]))])
    assert "v" in tensors(one) and "Split" in ops(one)
    assert differ(run(model, X), run(one, X)) < 1e-5


USERS = {
    "Gather": node("Gather", ["w", "i"], ["z"]),
    "Mul": node("Mul", ["w", "w"], ["z"]),
    "Shape": node("Shape", ["w"], ["z"]),
    "Transpose": node("Transpose", ["w"], ["z"]),
}


@pytest.mark.parametrize("user", USERS)
def test_dense_stays_with_another_user(user):
    model = make(
        [matmul(), USERS[user]],
        {"x": (3, K), "i": info("i", (2,), TensorProto.INT64)},
        ["y", "z"],
        {"w": noise(K, N)},
    )
    assert [u.tied for u in units(model)] == [True]
    assert codes(model).get("Gather", "embedding") == "embedding"
    written = assert_full(model, {**X, "i": np.array([0, 2])}, 1)
    assert set(tensors(written)) == {"w", "n/rank_in.weight", "n/rank_out.weight"}


def test_tied_embedding():
    """Looked up by rows, and read again, transposed, by the last layer."""
    model = make(
        [
            node("Gather", ["e", "i"], ["h"], name="look"),
            node("Transpose", ["e"], ["t"], name="tr"),
            node("MatMul", ["h", "t"], ["y"], name="head"),
        ],
        {"i": info("i", (2, 3), TensorProto.INT64)},
        ["y"],
        {"e": noise(10, K)},
    )
    assert codes(model) == {"look": "embedding", "head": "site"}
    assert units(model)[0].tied
    written = assert_full(model, {"i": np.arange(6).reshape(2, 3)}, 1)
    assert "e" in tensors(written) and "Transpose" not in ops(written)


def test_weight_is_an_output():
    model = make([matmul()], {"x": (3, K)}, ["y", "w"], {"w": noise(K, N)})
    assert units(model)[0].tied
    written = assert_full(model, X, 1)
    assert "w" in tensors(written)
    model = make(
        [node("Identity", ["v"], ["w"]), matmul()], {"x": (3, K)}, ["y", "w"], {"v": noise(K, N)}
    )
    assert units(model)[0].tied
    assert "v" in tensors(assert_full(model, X, 1))


def test_quantization_annotation_keeps_the_weight():
    model = make([matmul()], {"x": (3, K)}, ["y"], {"w": noise(K, N), "s": noise(1)})
    annotation = model.graph.quantization_annotation.add(tensor_name="w")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="s")
    assert units(model)[0].tied
    assert {"w", "s"} <= set(tensors(assert_full(model, X, 1)))


@pytest.mark.parametrize("how", ["node", "output", "binding"])
def test_training_information_keeps_the_weight(how):
    model = make([matmul()], {"x": (3, K)}, ["y"], {"w": noise(K, N)})
    training = model.training_info.add()
    name = "w" if how != "binding" else "other"
    if how == "node":
        training.algorithm.node.append(node("Identity", ["w"], ["w_new"]))
    if how == "output":
        training.algorithm.output.add(name="w")
    if how == "binding":
        training.update_binding.add(key="w", value=name)
    assert units(model)[0].tied
    assert "w" in tensors(assert_full(model, X, 1))


def test_unused_constants_stay():
    model = make([matmul()], {"x": (3, K)}, ["y"], {"w": noise(K, N), "unused": noise(3)})
    model.graph.node.insert(0, node("Constant", [], ["idle"], value_ints=[1]))
    written = assert_full(model, X, 1)
    assert "unused" in tensors(written) and "Constant" in ops(written)


def test_value_info_of_what_goes_goes():
    model = make(
        [node("Transpose", ["v"], ["w"]), matmul(), node("Relu", ["y"], ["z"])],
        {"x": (3, K)},
        ["z"],
        {"v": noise(N, K)},
    )
    for name, shape in (("v", (N, K)), ("w", (K, N)), ("y", (3, N)), ("ghost", (1,))):
        model.graph.value_info.append(info(name, shape))
    written = assert_full(model, X, 1)
    assert [v.name for v in written.graph.value_info] == ["y", "ghost"]


@pytest.mark.parametrize("ir", [3, 4, 8, 10])
def test_initializers_as_inputs(ir):
    """Before IR 4 they had to be; later they may be fed, so they are skipped by default."""
    model = make([matmul()], {"x": (3, K)}, ["y"], {"w": noise(K, N)}, ir=ir, opset=8)
    if ir >= 4:
        model.graph.input.append(info("w", (K, N)))
        assert codes(model) == {"n": "overridable"}
        asked = Selection(overridable=True)
        assert units(model, asked)[0].tied
        written = assert_full(model, X, 1, selection=asked)
        assert "w" in tensors(written) and len(written.graph.input) == 2
    else:
        written = assert_full(model, X, 1)
        assert {v.name for v in written.graph.input} == {"x", *tensors(written)}
        written.graph.output[0].CopyFrom(info("y", (3, N)))
        onnx.checker.check_model(written)


def test_ir_3_with_a_weight_that_is_no_input():
    """Exporters did that, and onnxruntime runs it."""
    model = make([matmul()], {"x": (3, K)}, ["y"], {"w": noise(K, N)}, ir=3, opset=8)
    del model.graph.input[1]
    assert_full(model, X, 1)


def test_sparse_weights_are_named():
    model = make([matmul()], {"x": (3, K)}, ["y"], {"v": noise(2)}, ir=8)
    values, indices = const("w", noise(3)), const("w_indices", np.array([0, 5, 9]))
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [K, N]))
    assert codes(model) == {"n": "sparse"}
    sparse = helper.make_sparse_tensor(const("", noise(3)), const("", np.array([0, 5, 9])), [K, N])
    model = make([node("Constant", [], ["w"], sparse_value=sparse), matmul()], {"x": (3, K)}, ["y"])
    assert codes(model) == {"n": "constant_kind"}


def test_two_initializers_of_one_name():
    """onnxruntime takes the last one and runs; so do we."""
    twice = [const("w", noise(K, N, seed=9)), const("w", noise(K, N))]
    model = make([matmul()], {"x": (3, K)}, ["y"], twice)
    written, _ = split(model)
    assert differ(run(model, X), run(written, X)) < 1e-5


def test_names_that_are_taken():
    """Names of new nodes and tensors clash with nothing, wherever it stands in the model."""
    model = make(
        [matmul(), node("Relu", ["y"], ["n/rank_in.weight"], name="n/rank_out")],
        {"x": (3, K)},
        ["n/rank_in.weight"],
        {"w": noise(K, N), "n/rank_out.weight": noise(2)},
    )
    model.graph.value_info.append(info("n/rank_in_output", (7, 7)))
    written = assert_full(model, X, 1)
    named = [n.name for n in written.graph.node]
    assert len(set(named)) == len(named)


def test_unnamed_and_repeated_names():
    model = make(
        [
            node("MatMul", ["x", "w"], ["a"]),
            node("MatMul", ["a", "v"], ["b"], name="same"),
            node("MatMul", ["b", "v"], ["c"], name="same"),
            node("Relu", ["c"], ["y"], name="a"),
        ],
        {"x": (3, K)},
        ["y"],
        {"w": noise(K, N), "v": noise(N, N)},
    )
    assert codes(model) == {"main/a": "site", "b": "site", "c": "site"}
    model.graph.node[2].name = "other"  # onnxruntime refuses two nodes of one name
    assert_full(model, X, 3)


def test_factors_beyond_float16_are_refused():
    model = make(
        [matmul()],
        {"x": info("x", (3, K), TensorProto.FLOAT16)},
        ["y"],
        {"w": noise(K, N, dtype=np.float16)},
    )
    from onnxrank.errors import ModelError
    from onnxrank.linalg.factorize import Factors

    def huge(_, site):
        pair = random_pair(site, shift=False)
        return Factors((pair.parts[0] * 1e6, pair.parts[1]))

    with pytest.raises(ModelError, match="overflows float16.*--exclude"):
        split(model, huge)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_no_numbers(bad):
    from onnxrank.errors import ModelError

    w = noise(K, N)
    w[2, 1] = bad
    model = make([matmul()], {"x": (3, K)}, ["y"], {"w": w})
    assert codes(model) == {"n": "site"}
    with pytest.raises(ModelError, match="'w' holds NaN or infinity"):
        split(model)


def test_selection():
    model = make(
        [matmul(), node("MatMul", ["y", "v"], ["z"], name="m")],
        {"x": (3, K)},
        ["z"],
        {"w": noise(K, N), "v": noise(N, N)},
    )
    assert codes(model, Selection(include=("m*",))) == {"n": "excluded", "m": "site"}
    assert codes(model, Selection(exclude=("m",))) == {"n": "site", "m": "excluded"}
    sites, skips = found(model, Selection(include=("n",), exclude=("n",)))
    assert not sites and {s.parameters for s in skips} == {K * N, N * N}
