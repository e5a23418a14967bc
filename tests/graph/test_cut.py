"""Segments: every node once, in the order of their levels, with all that they need."""

from collections import Counter

import pytest
from hypothesis import given, settings

from onnxrank.graph.cut import cut, submodel
from onnxrank.graph.find import find_sites
from onnxrank.graph.model import captured, load
from onnxrank.graph.override import override

from .build import const, info, make, node, noise
from .networks import networks
from .variety import VARIETY


def of(proto):
    model = load(proto)
    overridden = override(model, [s for s in find_sites(model)[0] if not s.hold])
    return overridden, cut(overridden)


def check(proto):
    """What holds for every document."""
    overridden, found = of(proto)
    graph, segments = overridden.proto.graph, found.segments
    exposed = {*overridden.weights.values(), *overridden.shifts.values()}
    constants = {t.name for t in graph.initializer}
    known = {v.name for v in graph.input if v.name not in constants}
    seen = Counter(id(n) for s in segments for n in s.nodes)
    made_by = {}
    for k, segment in enumerate(segments):
        assert set(segment.reads) <= known
        assert k == 0 or segment.sites or not segment.nodes, "a level begins with a site"
        here = {o for n in segment.nodes for o in n.output}
        for n in segment.nodes:
            assert captured(n) <= known | constants | here
        assert segment.takes <= exposed
        known |= set(segment.makes)
        made_by.update(dict.fromkeys(segment.makes, k))
    fixed = constant_nodes(graph, constants - exposed)
    for n in graph.node:
        if id(n) not in fixed:
            assert seen[id(n)] == 1, n.name
    # Every site in one segment, whose weights and shifts it takes.
    sites = [name for segment in segments for name in segment.sites]
    assert sorted(sites) == sorted(overridden.weights)
    for segment in segments:
        for name in segment.sites:
            assert {overridden.weights[name], overridden.shifts[name]} <= segment.takes
    # What is read later is made, and kept for no longer than that.
    for name, k in made_by.items():
        readers = [j for j, s in enumerate(segments) if name in s.reads]
        output = name in {o.name for o in graph.output}
        assert found.last[name] == (len(segments) if output else max(readers)) > k
    return overridden, found


def constant_nodes(graph, known):
    """Nodes made of constants alone."""
    known, fixed, size = set(known), set(), -1
    while len(fixed) > size:
        size = len(fixed)
        for n in graph.node:
            if captured(n) <= known and id(n) not in fixed:
                fixed.add(id(n))
                known |= set(n.output)
    return fixed


@pytest.mark.parametrize("name", VARIETY)
def test_every_kind_of_site(name):
    check(VARIETY[name]()[0])


@settings(deadline=None, max_examples=100)
@given(networks())
def test_any_network(proto):
    check(proto)


def test_levels_count_the_sites_on_the_longest_way():
    model = make(
        [
            node("MatMul", ["x", "a"], ["h"], name="first"),
            node("Relu", ["h"], ["r"]),
            node("MatMul", ["r", "b"], ["s"], name="second"),
            node("MatMul", ["x", "c"], ["t"], name="beside"),
            node("Add", ["s", "t"], ["u"]),
            node("MatMul", ["u", "d"], ["y"], name="third"),
        ],
        {"x": (2, 4)},
        ["y"],
        {name: noise(4, 4, seed=k) for k, name in enumerate("abcd")},
    )
    _, found = check(model)
    assert [s.sites for s in found.segments] == [(), ("beside", "first"), ("second",), ("third",)]
    assert found.last["x"] == 1 and found.last["t"] == 2 and found.last["y"] == 4


def test_an_output_of_constants_alone_is_computed():
    model = make(
        [node("Neg", ["c"], ["z"]), node("MatMul", ["x", "w"], ["y"], name="n")],
        {"x": (2, 4)},
        ["y", "z"],
        {"w": noise(4, 4), "c": noise(2)},
    )
    _, found = check(model)
    assert found.segments[0].makes == ("z",)


def test_weights_are_inputs_only_where_they_are_fed():
    model = make(
        [node("MatMul", ["x", "w"], ["y"], name="n")], {"x": (2, 4)}, ["y"], {"w": noise(4, 4)}
    )
    overridden, found = of(model)
    types = {v.name: v.type for v in overridden.proto.graph.input}
    plain, fed = (submodel(overridden, found.segments[1], types, fed=f) for f in (False, True))
    assert [v.name for v in plain.graph.input] == ["x"]
    assert {v.name for v in fed.graph.input} == {"x", "n/weight", "n/shift"}
    assert {t.name for t in plain.graph.initializer} == {"n/weight", "n/shift"}


def test_inputs_with_defaults_are_inputs():
    model = make(
        [node("Add", ["x", "d"], ["h"]), node("MatMul", ["h", "w"], ["y"], name="n")],
        {"x": (2, 4), "d": info("d", (4,))},
        ["y"],
        [const("w", noise(4, 4)), const("d", noise(4))],
    )
    overridden, found = of(model)
    assert found.segments[0].reads == ("d", "x")
    types = {v.name: v.type for v in overridden.proto.graph.input}
    first = submodel(overridden, found.segments[0], types, fed=False)
    assert not first.graph.initializer


def test_without_sites_it_is_one_segment():
    model = make([node("Relu", ["x"], ["y"])], {"x": (2, 4)}, ["y"])
    _, found = check(model)
    assert len(found.segments) == 1
