"""The stream that a site's output is added to, as networks have it."""

import numpy as np
import pytest

from onnxrank.graph.find import find_sites
from onnxrank.graph.model import load
from onnxrank.graph.residual import output_layout, stream
from onnxrank.graph.weights import weight_matrix
from onnxrank.linalg.layout import row_shape, rows

from .build import make, node, noise, run
from .test_einsum import einsum
from .variety import VARIETY, matmul

D = 6


def streams(proto):
    model = load(proto)
    return {site.name: stream(model, site) for site in find_sites(model)[0]}


def dense(name, x, y, bias=True):
    """A linear layer as PyTorch exports it."""
    first = node("MatMul", [x, f"{name}.w"], [f"{name}.h" if bias else y], name=name)
    return [first, node("Add", [f"{name}.b", f"{name}.h"], [y])] if bias else [first]


def network(nodes, outputs, inputs=None):
    read = {i for n in nodes for i in n.input}
    constants = {i: noise(D, D, seed=3) for i in read if i.endswith(".w")}
    constants |= {i: noise(D, seed=4) for i in read if i.endswith(".b")}
    for i in read:
        if i.endswith(".k"):
            constants[i] = noise(D, D, 3, 3, seed=5)
    return make(nodes, inputs or {"x": ("n", 5, D)}, outputs, constants)


def norm(x, y):
    return node("LayerNormalization", [x, "g.b"], [y])


def test_pre_norm():
    nodes = [
        norm("x", "a"),
        *dense("up", "a", "b"),
        node("Erf", ["b"], ["c"]),
        *dense("down", "c", "d"),
        node("Add", ["x", "d"], ["y"]),
        norm("y", "z"),
        *dense("next", "z", "out"),
    ]
    found = streams(network(nodes, ["out", "y"]))
    assert found == {"up": None, "down": "x", "next": None}


def test_post_norm():
    """As BERT has it: the sum is normalized, and read once behind that."""
    nodes = [
        *dense("q", "x", "a"),
        node("Softmax", ["a"], ["p"]),
        *dense("out", "p", "b"),
        node("Add", ["b", "x"], ["s"]),
        norm("s", "h"),
        *dense("up", "h", "u"),
        node("Relu", ["u"], ["r"]),
        *dense("down", "r", "d"),
        node("Add", ["d", "h"], ["t"]),
        norm("t", "y"),
    ]
    assert streams(network(nodes, ["y"])) == {"q": None, "out": "x", "up": None, "down": "h"}


def residual(shortcut, behind=()):
    """A block of two convolutions, and what is added to them."""
    last, name = [], "b"
    for k, op in enumerate(behind):
        last.append(node(op, [name], [f"p{k}"]))
        name = f"p{k}"
    nodes = [
        node("Conv", ["x", "one.k", "one.b"], ["a"], name="one", pads=[1] * 4),
        node("Relu", ["a"], ["r"]),
        node("Conv", ["r", "two.k"], ["b"], name="two", pads=[1] * 4),
        *last,
        *shortcut,
        node("Add", [name, "s" if shortcut else "x"], ["t"]),
        node("Relu", ["t"], ["y"]),
    ]
    return network(nodes, ["y"], {"x": (2, D, 8, 8)})


def test_a_shortcut():
    assert streams(residual([])) == {"one": None, "two": "x"}


def test_a_shortcut_with_a_map_of_its_own():
    """Each is added to the other; which of them has drifted is known when they are run."""
    own = [node("Conv", ["x", "own.k"], ["s"], name="own", pads=[1] * 4)]
    assert streams(residual(own)) == {"one": None, "two": "s", "own": "b"}


@pytest.mark.parametrize("op", ["Identity", "Dropout"])
def test_through_what_changes_nothing(op):
    assert streams(residual([], [op])) == {"one": None, "two": "x"}


@pytest.mark.parametrize("op", ["Relu", "Sigmoid", "MaxPool", "Neg"])
def test_not_through_what_changes_it(op):
    proto = residual([], [op])
    for n in proto.graph.node:
        if n.op_type == "MaxPool":
            n.attribute.extend(node("MaxPool", [], [], kernel_shape=[1, 1]).attribute)
    assert streams(proto)["two"] is None


def test_not_where_something_else_reads_it():
    twice = [*dense("n", "x", "a"), node("Add", ["a", "x"], ["y"]), node("Neg", ["a"], ["z"])]
    assert streams(network(twice, ["y", "z"])) == {"n": None}
    output = [*dense("n", "x", "a"), node("Add", ["a", "x"], ["y"])]
    assert streams(network(output, ["y", "a"])) == {"n": None}
    itself = [*dense("n", "x", "a"), node("Add", ["a", "a"], ["y"])]
    assert streams(network(itself, ["y"])) == {"n": None}


def test_nothing_behind_it():
    assert streams(network(dense("n", "x", "y"), ["y"])) == {"n": None}


def test_only_the_standard_add():
    other = [
        *dense("n", "x", "a"),
        node("Add", ["a", "x"], ["y"], domain="my.domain"),
    ]
    assert streams(network(other, ["y"])) == {"n": None}


def test_reshapes_are_followed():
    proto, _ = matmul(noise(D, D), (10, D))
    proto.graph.node[0].output[0] = "h"
    proto.graph.node.extend([node("Reshape", ["h", "s"], ["r"]), node("Add", ["r", "base"], ["y"])])
    proto.graph.initializer.append(
        make([], {}, [], {"s": np.array([2, 5, D])}).graph.initializer[0]
    )
    proto.graph.input.extend(make([], {"base": (2, 5, D)}, []).graph.input)
    assert streams(proto) == {"n": "base"}


@pytest.mark.parametrize(
    "name", ["matmul", "gemm", "gemm no c", "conv", "conv grouped", "conv 1x1"]
)
def test_rows_of_the_output_are_in_step_with_those_of_the_input(name):
    proto, feeds = VARIETY[name]()
    model = load(proto)
    (site,) = find_sites(model)[0]
    layout = output_layout(model, site)
    (y,) = run(proto, feeds)
    x = feeds["x"]
    read, made = rows(x, site.view.layout), rows(y, layout)
    assert made.shape == (site.groups, read.shape[1], site.d_out)
    assert np.prod(row_shape(x.shape, site.view.layout)) == read.shape[1]
    off = made - read @ weight_matrix(model, site)
    # All that is left is the bias, the same for every row.
    np.testing.assert_allclose(off, np.broadcast_to(off[:, :1], off.shape), atol=1e-4)


@pytest.mark.parametrize(
    "name",
    [
        "gemm left",
        "gemm alpha beta",
        "matmul left",
        "fused matmul",
        "lstm",
        "conv fused",
        "fused gemm",
    ],
)
def test_outputs_that_are_not_in_step(name):
    """Turned, scaled, or behind an activation."""
    model = load(VARIETY[name]()[0])
    assert output_layout(model, find_sites(model)[0][0]) is None


def test_einsum_has_axes_of_its_own():
    model = load(einsum("bsd,dhk->bhsk", 1, {})[0])
    (site,) = find_sites(model)[0]
    assert output_layout(model, site) is None
