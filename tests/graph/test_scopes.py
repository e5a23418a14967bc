"""Sites in bodies of If, Loop and Scan: split in place, the factors in the main graph."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from onnxrank.graph.find import find_sites, find_units
from onnxrank.graph.model import load

from .build import (
    assert_full,
    body,
    codes,
    const,
    differ,
    full_rank,
    info,
    make,
    node,
    noise,
    random_pair,
    rewrite,
    run,
    single,
    split,
    tensors,
)
from .test_probe import choose, loop, scan

K = 5
BOOL, INT64 = TensorProto.BOOL, TensorProto.INT64
X = noise(3, K)
C = {"c": info("c", (), BOOL)}
COUNT = {"count": info("count", (), INT64)}


def body_of(proto, index=0, attribute=0):
    return proto.graph.node[index].attribute[attribute].g


@pytest.mark.parametrize("where", ["main", "inside", "Constant inside", "chain inside", "chain"])
def test_if(where):
    inner, constants, own = [], {}, {}
    outer = []
    if where == "main":
        constants["w"] = noise(K, K)
    if where == "inside":
        own["w"] = noise(K, K)
    if where == "Constant inside":
        inner.append(node("Constant", [], ["w"], value=const("", noise(K, K))))
    if where == "chain inside":
        constants["v"] = noise(K, K)
        inner.append(node("Transpose", ["v"], ["w"]))
    if where == "chain":
        constants["v"] = noise(K, K)
        outer.append(node("Transpose", ["v"], ["w"]))
    model = make(
        [
            *outer,
            choose(
                [*inner, node("MatMul", ["x", "w"], ["t"], name="n")],
                [node("Neg", ["x"], ["e"])],
                own,
            ),
        ],
        {"x": (3, K), **C},
        ["y"],
        constants,
    )
    for c in (True, False):
        written = assert_full(model, {"x": X, "c": np.array(c)}, 1)
    names = {"n/rank_in.weight", "n/rank_out.weight"}
    assert set(tensors(written)) == names
    branch = body_of(written, 0, 1 if "else" in written.graph.node[0].attribute[0].name else 0)
    then = next(a.g for a in written.graph.node[0].attribute if a.name == "then_branch")
    assert [n.op_type for n in then.node] == ["MatMul", "MatMul"] and not then.initializer
    assert branch is not None


def test_one_weight_in_many_graphs():
    """Both branches and the main graph read it; it is factored once and dropped once."""
    model = make(
        [
            node("MatMul", ["x", "w"], ["h"], name="outer"),
            choose(
                [node("MatMul", ["h", "w"], ["t"], name="one")],
                [node("Gemm", ["h", "w"], ["e"], name="two")],
            ),
        ],
        {"x": (3, K), **C},
        ["y"],
        {"w": noise(K, K)},
    )
    loaded = load(model)
    sites, _ = find_sites(loaded)
    (unit,) = find_units(loaded, sites)
    assert {s.name for s in unit.sites} == {"outer", "one", "two"} and not unit.tied
    for c in (True, False):
        written = assert_full(model, {"x": X, "c": np.array(c)}, 3)
    assert len(written.graph.initializer) == 2
    # The dense weight stays as long as a branch needs it.
    part = rewrite(loaded, [(s, full_rank(loaded, s)) for s in sites if s.name != "two"])
    assert "w" in tensors(part)
    assert (
        differ(
            run(model, {"x": X, "c": np.array(False)}), run(part, {"x": X, "c": np.array(False)})
        )
        < 1e-5
    )


def test_weights_of_one_name_in_two_branches():
    """The same name is another tensor in each body."""
    model = make(
        [
            choose(
                [node("MatMul", ["x", "w"], ["t"], name="a")],
                [node("MatMul", ["x", "w"], ["e"], name="b")],
                {"w": noise(K, K)},
            )
        ],
        {"x": (3, K), **C},
        ["y"],
    )
    other = next(a.g for a in model.graph.node[0].attribute if a.name == "else_branch")
    other.initializer.append(const("w", noise(K, K, seed=4)))
    loaded = load(model)
    sites, _ = find_sites(loaded)
    assert len(find_units(loaded, sites)) == 2
    for c in (True, False):
        feeds = {"x": X, "c": np.array(c)}
        assert_full(model, feeds, 2)
        one = rewrite(loaded, [(sites[0], full_rank(loaded, sites[0]))])
        assert differ(run(model, feeds), run(one, feeds)) < 1e-5


def test_unused_constant_of_the_same_name_stays():
    model = make(
        [
            choose(
                [node("MatMul", ["x", "w"], ["t"], name="a")],
                [node("Neg", ["x"], ["e"])],
                {"w": noise(K, K)},
            )
        ],
        {"x": (3, K), **C},
        ["y"],
    )
    other = next(a.g for a in model.graph.node[0].attribute if a.name == "else_branch")
    other.initializer.append(const("w", noise(2)))
    written, _ = split(model)
    other = next(a.g for a in written.graph.node[0].attribute if a.name == "else_branch")
    assert [t.name for t in other.initializer] == ["w"]


@pytest.mark.parametrize("count", [0, 3])
def test_loop(count):
    model = make(
        [
            loop(
                ["h"],
                [],
                [
                    node("MatMul", ["h", "w"], ["m"], name="n"),
                    node("Add", ["m", "b"], ["a"]),
                    node("Tanh", ["a"], ["h_out"]),
                ],
                inputs=["count", "", "x"],
            )
        ],
        {"x": (3, K), **COUNT},
        ["h_final"],
        {"w": noise(K, K), "b": noise(K)},
    )
    feeds = {"x": X, "count": np.array(count)}
    assert_full(model, feeds, 1)
    pair = random_pair(next(s for s in find_sites(load(model))[0]))
    written, _ = split(model, lambda *_: pair)  # the bias in the body takes the shift up
    inner = body_of(written)
    assert [n.op_type for n in inner.node] == ["Identity", "MatMul", "MatMul", "Add", "Tanh"]
    h = X
    for _ in range(count):
        h = np.tanh(h @ pair.product[0] + pair.bias[0] + noise(K))
    assert differ([h.astype(np.float32)], run(written, feeds)) < 1e-5


def test_carried_weights_are_named():
    """tf2onnx and jax2onnx pass weights through the loop's state."""
    model = make(
        [
            loop(
                ["h", "w"],
                [],
                [
                    node("MatMul", ["h", "w"], ["h_out"], name="n"),
                    node("Identity", ["w"], ["w_out"]),
                ],
                inputs=["count", "", "x", "v"],
                outs=["y", "z"],
            )
        ],
        {"x": (3, K), **COUNT},
        ["y"],
        {"v": noise(K, K)},
    )
    assert codes(model) == {"n": "loop_carried"}
    model = make(
        [
            scan(
                ["h"],
                ["w"],
                ["o"],
                [node("MatMul", ["h", "w"], ["h_out"], name="n"), node("Identity", ["h"], ["o"])],
                ["x", "v"],
                ["y", "z"],
            )
        ],
        {"x": (3, K)},
        ["y"],
        {"v": noise(4, K, K)},
    )
    assert codes(model) == {"n": "loop_carried"}


def test_scan():
    model = make(
        [scan([], ["u"], ["o"], [node("MatMul", ["u", "w"], ["o"], name="n")], ["x"], ["y"])],
        {"x": (4, 3, K)},
        ["y"],
        {"w": noise(K, K)},
    )
    assert_full(model, {"x": noise(4, 3, K)}, 1)


def test_deep_nesting():
    made = [node("MatMul", ["x", "w"], ["t0"], name="n0")]
    name = "t0"
    for k in range(1, 20):
        made = [
            choose(made, [node("Neg", ["x"], [f"e{k}"])], names=(name, f"e{k}"), outputs=(f"t{k}",))
        ]
        made[0].name = f"if{k}"
        name = f"t{k}"
    model = make(made, {"x": (3, K), **C}, [name], {"w": noise(K, K)})
    assert_full(model, {"x": X, "c": np.array(True)}, 1)


def test_initializers_as_inputs_and_bodies():
    model = make(
        [choose([node("MatMul", ["x", "w"], ["t"], name="n")], [node("Neg", ["x"], ["e"])])],
        {"x": (3, K), **C},
        ["y"],
        {"w": noise(K, K)},
        ir=3,
        opset=8,
    )
    assert codes(model) == {"n": "body"}  # operator set 8 cannot be measured inside
    model = make(
        [choose([node("MatMul", ["x", "w"], ["t"], name="n")], [node("Neg", ["x"], ["e"])])],
        {"x": (3, K), **C},
        ["y"],
        {"w": noise(K, K)},
        ir=3,
        opset=9,
    )
    written = assert_full(model, {"x": X, "c": np.array(True)}, 1)
    assert "w" not in {v.name for v in written.graph.input}
    assert set(tensors(written)) <= {v.name for v in written.graph.input}


def test_shadowed_names():
    """A body may make a tensor that bears the name of one outside."""
    model = make(
        [
            node("Relu", ["x"], ["h"], name="r"),
            choose(
                [node("Neg", ["x"], ["h"]), node("MatMul", ["h", "w"], ["t"], name="n")],
                [node("MatMul", ["h", "v"], ["e"], name="m")],
            ),
        ],
        {"x": (3, K), **C},
        ["y"],
        {"w": noise(K, K), "v": noise(K, K, seed=1)},
    )
    sites, _ = find_sites(load(model))
    assert len(sites) == 2
    split(model)


def rich() -> onnx.ModelProto:
    """Every field of a model filled, around three sites, one of them in a body."""
    model = make(
        [
            node("MatMul", ["x", "w"], ["h"], name="first"),
            node("Add", ["h", "b"], ["a"], name="bias"),
            choose(
                [node("Gemm", ["a", "v"], ["t"], name="inner", transB=1)],
                [node("Neg", ["a"], ["e"])],
            ),
            node("Conv", ["y3", "k"], ["z"], name="conv"),
        ],
        {"x": (3, K), "y3": (1, 2, 6), **C},
        ["y", "z"],
        {
            "unused0": noise(2),
            "w": noise(K, K),
            "b": noise(K),
            "v": noise(K, K, seed=1),
            "k": noise(3, 2, 3),
            "unused1": noise(3),
        },
        ir=10,
        opset=21,
    )
    model.producer_name, model.producer_version = "prod", "1"
    model.domain, model.model_version, model.doc_string = "dom", 7, "doc"
    model.metadata_props.add(key="a", value="b")
    model.opset_import.add(domain="ai.onnx.ml", version=3)
    model.opset_import.add(domain="", version=21)  # twice, as skl2onnx writes it
    model.training_info.add().initialization.node.append(node("Identity", ["b"], ["bb"]))
    model.functions.append(
        onnx.helper.make_function(
            "f",
            "Idle",
            ["x"],
            ["y"],
            [node("Relu", ["x"], ["y"])],
            [onnx.helper.make_opsetid("", 21)],
        )
    )
    graph = model.graph
    graph.doc_string = "graph"
    graph.metadata_props.add(key="c", value="d")
    graph.quantization_annotation.add(tensor_name="a").quant_parameter_tensor_names.add(
        key="SCALE_TENSOR", value="unused0"
    )
    for k, name in enumerate(("w", "h", "a", "v", "y", "ghost")):
        value = info(name, (K, K) if name in "wv" else (3, K))
        value.doc_string = f"value {k}"
        value.metadata_props.add(key="v", value=str(k))
        graph.value_info.append(value)
    for value in (*graph.input, *graph.output):
        value.doc_string = "value"
        value.metadata_props.add(key="i", value="o")
    for n in graph.node:
        n.doc_string = f"node {n.name}"
        n.metadata_props.add(key="n", value=n.name)
    for t in graph.initializer:
        t.doc_string = "tensor"
        t.metadata_props.add(key="t", value=t.name)
    graph.sparse_initializer.append(
        onnx.helper.make_sparse_tensor(const("s", noise(1)), const("s_i", np.array([0])), [4])
    )
    inner = body_of(model, 2)
    inner.doc_string = "body"
    inner.value_info.append(info("ghost2", (1,)))
    inner.metadata_props.add(key="g", value="h")
    return model


def test_nothing_else_changes():
    model = rich()
    feeds = {"x": X, "y3": noise(1, 2, 6), "c": np.array(True)}
    written = assert_full(model, feeds, 3)
    assert {e.key for e in written.metadata_props} == {"a"}
    # Descriptions of a node go to the one that makes its output.
    last = next(n for n in written.graph.node if n.name == "first/rank_out")
    assert last.doc_string == "node first" and last.metadata_props[0].value == "first"


def test_provenance_is_the_only_metadata_added():
    from .lossless import differences

    model = load(rich())
    sites, _ = find_sites(model)
    pairs = [(s, full_rank(model, s)) for s in sites]
    written = rewrite(model, pairs, {"onnxrank.version": "1"})
    assert not list(differences(model.proto, written, sites))
    assert [e.key for e in written.metadata_props] == ["a", "onnxrank.version"]
    again = rewrite(load(written), [], {"onnxrank.version": "2"})
    assert [(e.key, e.value) for e in again.metadata_props][1:] == [("onnxrank.version", "2")]


def test_the_same_input_gives_the_same_bytes():
    one, two = (split(rich())[0].SerializeToString(deterministic=True) for _ in range(2))
    assert one == two


def test_unknown_fields_survive():
    """A field of a future IR version, at the end of the message."""
    data = rich().SerializeToString() + bytes([0xFA, 0x3F, 3]) + b"abc"
    model = onnx.ModelProto()
    model.ParseFromString(data)
    written, _ = split(model)
    assert written.SerializeToString().endswith(bytes([0xFA, 0x3F, 3]) + b"abc")


def test_lossless_check_sees_changes():
    """The helper of these tests is no rubber stamp."""
    from .lossless import differences

    model = load(rich())
    sites, _ = find_sites(model)
    good = rewrite(model, [(s, full_rank(model, s)) for s in sites])
    assert not list(differences(model.proto, good, sites))

    def spoil(change):
        bad = onnx.ModelProto()
        bad.CopyFrom(good)
        change(bad)
        return list(differences(model.proto, bad, sites))

    changes = [
        lambda m: setattr(m, "doc_string", "x"),
        lambda m: setattr(m, "ir_version", 9),
        lambda m: m.metadata_props.add(key="x", value="y"),
        lambda m: m.opset_import.pop(),
        lambda m: m.training_info.pop(),
        lambda m: m.functions.pop(),
        lambda m: setattr(m.graph, "name", "x"),
        lambda m: m.graph.value_info.pop(),
        lambda m: m.graph.value_info.add(name="new"),
        lambda m: m.graph.quantization_annotation.pop(),
        lambda m: m.graph.sparse_initializer.pop(),
        lambda m: m.graph.initializer.pop(0),
        lambda m: m.graph.initializer.append(const("more", noise(1))),
        lambda m: m.graph.input[0].metadata_props.pop(),
        lambda m: m.graph.output.pop(),
        lambda m: setattr(m.graph.node[2], "doc_string", "x"),
        lambda m: m.graph.node.pop(),
        lambda m: m.graph.node.append(node("Relu", ["x"], ["q"])),
        lambda m: m.graph.node.insert(0, m.graph.node.pop()),
        lambda m: setattr(body_of(m, 3), "doc_string", "x"),
        lambda m: body_of(m, 3).node.add(op_type="Relu"),
    ]
    missed = [k for k, change in enumerate(changes) if not spoil(change)]
    assert not missed


def test_fields_of_other_node_kinds_are_kept():
    model = single("MatMul", {"x": (3, K)}, {"w": noise(K, K)}, ["x", "w"])
    model.graph.node.append(
        node(
            "Loop",
            ["m", "", "x"],
            ["q"],
            name="l",
            body=body(
                [node("Identity", ["k"], ["ko"]), node("Relu", ["h"], ["ho"])],
                [info("i", (), INT64), info("k", (), BOOL), info("h", None)],
                [info("ko", (), BOOL), info("ho", None)],
            ),
        )
    )
    model.graph.initializer.append(const("m", np.array(2)))
    assert_full(model, {"x": X}, 1)
