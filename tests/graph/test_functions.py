"""Model-local functions: inlined where they hold weights; the rest of the model stays."""

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxrank.errors import ModelError
from onnxrank.graph.find import find_sites
from onnxrank.graph.model import load
from onnxrank.graph.rewrite import rewrite

from .build import (
    codes,
    const,
    differ,
    full_rank,
    make,
    node,
    noise,
    ops,
    run,
    split,
    tensors,
)

K = 6
X = {"x": noise(3, K, seed=1)}
OPS = [helper.make_opsetid("", 17), helper.make_opsetid("my", 1)]


def function(name, inputs, outputs, nodes, attributes=(), domain="my", **more):
    return helper.make_function(
        domain,
        name,
        list(inputs),
        list(outputs),
        list(nodes),
        OPS,
        attributes=list(attributes),
        **more,
    )


def call(name, inputs, outputs, label, **attrs):
    return node(name, inputs, outputs, name=label, domain="my", **attrs)


def linear():
    """y = x W + b, with the weight as an argument."""
    return function(
        "Linear",
        "xwb",
        "y",
        [node("MatMul", ["x", "w"], ["h"], name="mm"), node("Add", ["h", "b"], ["y"], name="add")],
    )


def twice():
    return make(
        [
            call("Linear", ["x", "w", "b"], ["h"], "one"),
            node("Relu", ["h"], ["r"], name="relu"),
            call("Linear", ["r", "v", "b"], ["y"], "two"),
        ],
        {"x": (3, K)},
        ["y"],
        {"w": noise(K, K), "v": noise(K, K, seed=2), "b": noise(K)},
        functions=[linear()],
    )


def same(model, sites, tolerance=1e-5, feeds=X):
    """Splits at full rank and agrees; functions and the call-free rest are kept."""
    before = model.SerializeToString(deterministic=True)
    written, made = split(model)
    assert len(made) == sites
    assert differ(run(model, feeds), run(written, feeds)) < tolerance
    assert model.SerializeToString(deterministic=True) == before
    for field in ("functions", "opset_import", "ir_version", "producer_name", "doc_string"):
        assert getattr(written, field) == getattr(model, field)
    assert written.graph.input == model.graph.input
    assert written.graph.output == model.graph.output
    return written


def test_weights_as_arguments():
    model = twice()
    assert list(codes(model).values()) == ["site", "site"]
    written = same(model, 2)
    assert ops(written)["MatMul"] == 4 and not {"w", "v"} & set(tensors(written))


def test_one_call_of_two_is_split():
    model = load(twice())
    sites, _ = find_sites(model)
    one = rewrite(model, [(sites[1], full_rank(model, sites[1]))])
    assert "w" in tensors(one) and "v" not in tensors(one)
    assert differ(run(model.proto, X), run(one, X)) < 1e-5


def test_weights_inside():
    """A Constant in the body; every call has the same weight."""
    body = function(
        "Layer",
        "x",
        "y",
        [
            node("Constant", [], ["w"], value=const("", noise(K, K))),
            node("MatMul", ["x", "w"], ["y"]),
        ],
    )
    model = make(
        [call("Layer", ["x"], ["h"], "one"), call("Layer", ["h"], ["y"], "two")],
        {"x": (3, K)},
        ["y"],
        functions=[body],
    )
    written = same(model, 2)
    assert len(written.graph.initializer) == 2  # equal factors are stored once


def test_a_site_at_the_end_of_a_function():
    """Its output bears the name of the call's, which must not be taken for it."""
    layer = function(
        "Layer", "xw", "y", [node("Relu", ["x"], ["h"]), node("MatMul", ["h", "w"], ["y"])]
    )
    model = make(
        [call("Layer", ["x", "w"], ["y"], "one")],
        {"x": (3, K)},
        ["y"],
        {"w": noise(K, K)},
        functions=[layer],
    )
    assert ops(same(model, 1)) == {"Relu": 1, "MatMul": 2}


def test_nested_calls_and_attributes():
    inner = function(
        "Product",
        "xw",
        "y",
        [helper.make_node("Gemm", ["x", "w"], ["y"])],
        ["alpha"],
    )
    ref = onnx.AttributeProto(name="alpha", ref_attr_name="alpha", type=onnx.AttributeProto.FLOAT)
    inner.node[0].attribute.append(ref)
    outer = function(
        "Block",
        "xwb",
        "y",
        [
            call("Product", ["x", "w"], ["h"], "p", alpha=0.5),
            node("Add", ["h", "b"], ["y"]),
        ],
    )
    model = make(
        [
            call("Block", ["x", "w", "b"], ["h"], "one"),
            call("Product", ["h", "v"], ["y"], "two", alpha=2.0),
        ],
        {"x": (3, K)},
        ["y"],
        {"w": noise(K, K), "v": noise(K, K, seed=2), "b": noise(K)},
        functions=[inner, outer],
    )
    same(model, 2)


def test_names_that_clash():
    """Inner names are also names of the main graph."""
    model = make(
        [
            node("Mul", ["x", "x"], ["h"], name="mm"),
            call("Linear", ["h", "w", "y0"], ["y1"], "add"),
            call("Linear", ["y1", "w", "y0"], ["y"], "other"),
        ],
        {"x": (3, K)},
        ["y"],
        {"w": noise(K, K), "y0": noise(K)},
        functions=[linear()],
    )
    same(model, 2)


def test_bodies_within_functions():
    branch = helper.make_graph(
        [node("MatMul", ["x", "w"], ["t"])], "then", [], [onnx.ValueInfoProto(name="t")]
    )
    other = helper.make_graph(
        [node("Identity", ["x"], ["e"])], "else", [], [onnx.ValueInfoProto(name="e")]
    )
    choice = function(
        "Choose",
        ["c", "x", "w"],
        "y",
        [node("If", ["c"], ["y"], then_branch=branch, else_branch=other)],
    )
    model = make(
        [call("Choose", ["c", "x", "w"], ["y"], "one")],
        {"x": (3, K), "c": helper.make_tensor_value_info("c", 9, [])},
        ["y"],
        {"w": noise(K, K)},
        functions=[choice],
    )
    for c in (True, False):
        same(model, 1, feeds={**X, "c": np.array(c)})


def test_functions_without_weights_stay_calls():
    act = function("Act", "x", "y", [node("Relu", ["x"], ["y"])])
    model = make(
        [node("MatMul", ["x", "w"], ["h"], name="n"), call("Act", ["h"], ["y"], "act")],
        {"x": (3, K)},
        ["y"],
        {"w": noise(K, K)},
        functions=[act],
    )
    written = same(model, 1)
    assert [n.op_type for n in written.graph.node] == ["MatMul", "MatMul", "Act"]


def test_an_edit_outside_functions_inlines_nothing():
    from .lossless import assert_lossless

    model = twice()
    model.graph.node.insert(0, node("MatMul", ["x", "u"], ["x2"], name="first"))
    model.graph.initializer.append(const("u", noise(K, K, seed=7)))
    model.graph.node[1].input[0] = "x2"
    loaded = load(model)
    (site,) = [s for s in find_sites(loaded)[0] if s.name == "first"]
    written = rewrite(loaded, [(site, full_rank(loaded, site))])
    assert_lossless(model, written, [site])
    assert ops(written)["Linear"] == 2
    assert differ(run(model, X), run(written, X)) < 1e-5


def test_everything_else_survives_inlining():
    model = twice()
    model.doc_string, model.producer_name, model.domain = "doc", "prod", "dom"
    model.metadata_props.add(key="k", value="v")
    model.graph.doc_string = "graph doc"
    model.graph.metadata_props.add(key="g", value="v")
    model.graph.node[1].doc_string = "node doc"
    model.graph.node[1].metadata_props.add(key="n", value="v")
    annotation = model.graph.quantization_annotation.add(tensor_name="r")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="b")
    model.graph.initializer.append(const("unused", noise(2)))
    model.graph.value_info.append(helper.make_tensor_value_info("r", 1, [3, K]))
    model.graph.initializer[2].doc_string = "tensor doc"
    written = same(model, 2)
    for field in ("domain", "metadata_props"):
        assert getattr(written, field) == getattr(model, field)
    for field in ("doc_string", "metadata_props", "quantization_annotation", "name"):
        assert getattr(written.graph, field) == getattr(model.graph, field)
    assert model.graph.node[1] in list(written.graph.node)
    assert model.graph.value_info[0] in list(written.graph.value_info)
    assert [t for t in written.graph.initializer if t.name == "b"] == [model.graph.initializer[2]]
    assert "unused" in tensors(written)


@pytest.mark.parametrize("ring", [1, 2])
def test_functions_that_call_themselves_are_refused(ring):
    made = [
        function(
            f"F{k}",
            "xw",
            "y",
            [
                node("MatMul", ["x", "w"], ["h"]),
                call(f"F{(k + 1) % ring}", ["h", "w"], ["y"], "c"),
            ],
        )
        for k in range(ring)
    ]
    model = make(
        [call("F0", ["x", "w"], ["y"], "one")],
        {"x": (3, K)},
        ["y"],
        {"w": noise(K, K)},
        functions=made,
    )
    with pytest.raises(ModelError, match="function 'my.F0' calls itself"):
        load(model)


def test_functions_that_grow_without_end_are_not_inlined():
    """Each calls the one before twice: a million million nodes from thirty lines."""
    first = function("F0", "xw", "y", [node("MatMul", ["x", "w"], ["y"])])
    more = [
        function(
            f"F{k}",
            "xw",
            "y",
            [
                call(f"F{k - 1}", ["x", "w"], ["h"], "a"),
                call(f"F{k - 1}", ["h", "w"], ["y"], "b"),
            ],
        )
        for k in range(1, 41)
    ]
    model = make(
        [node("MatMul", ["x", "w"], ["h"], name="n"), call("F40", ["h", "w"], ["y"], "big")],
        {"x": (3, K)},
        ["y"],
        {"w": noise(K, K)},
        functions=[first, *more],
    )
    assert codes(model) == {"n": "site", "big": "function"}


def test_overloads():
    """Two functions of one name."""
    one = function("F", "xw", "y", [node("MatMul", ["x", "w"], ["y"])], overload="a")
    two = function("F", "xw", "y", [node("Gemm", ["x", "w"], ["y"])], overload="b")
    model = make(
        [call("F", ["x", "w"], ["h"], "one"), call("F", ["h", "w"], ["y"], "two")],
        {"x": (3, K)},
        ["y"],
        {"w": noise(K, K)},
        functions=[one, two],
        ir=10,
    )
    model.graph.node[0].overload, model.graph.node[1].overload = "a", "b"
    answer = codes(model)
    assert set(answer.values()) <= {"site", "function"} and len(answer) == 2


def test_optional_arguments_and_unused_functions():
    body = function("Maybe", "xwb", "y", [node("Gemm", ["x", "w", "b"], ["y"])])
    unused = function("Unused", "x", "y", [node("MatMul", ["x", "x"], ["y"])])
    model = make(
        [call("Maybe", ["x", "w"], ["y"], "one")],
        {"x": (3, K)},
        ["y"],
        {"w": noise(K, K)},
        functions=[body, unused],
    )
    same(model, 1)
