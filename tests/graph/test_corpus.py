"""Graphs that others made: the onnx package's and those of exporters, split at full rank."""

from collections.abc import Iterable

import pytest

from . import corpus
from .corpus import Case, Outcome, judge

LINEAR = (
    "matmul", "gemm", "conv", "einsum", "lstm", "gru", "rnn", "attention", "linear", "deform",
    "loop", "scan", "if_", "sequence",
)  # fmt: skip


def judged(cases: Iterable[Case]) -> list[Outcome]:
    outcomes = [judge(case) for case in cases]
    bad = [o for o in outcomes if not o.good]
    assert not bad, bad
    return outcomes


def test_models_that_onnx_ships():
    outcomes = judged(corpus.stored())
    assert len(outcomes) > 100 and sum(o.split for o in outcomes) > 20
    assert not any(o.refused for o in outcomes)


def test_a_whole_network():
    """SqueezeNet as stored, its weights made by ConstantOfShape, and with random weights."""
    outcomes = judged(c for c in corpus.light() if "squeezenet" in c.name)
    plain, filled = outcomes
    assert not plain.sites and plain.skipped["computed_weight"] == 26
    assert filled.split == 26 and filled.error is not None


@pytest.fixture(scope="module")
def generated():
    return corpus.generated()


def test_operator_tests(generated):
    """Those of linear operators, and every thirtieth other, also with inputs as weights."""
    chosen = [
        c
        for k, c in enumerate(generated)
        if any(word in c.name for word in LINEAR) and "expanded" not in c.name or k % 30 == 0
    ]
    outcomes = judged(v for c in chosen for v in (c, *corpus.weighted(c)))
    assert sum(o.split for o in outcomes) > 70
    assert not any(o.refused for o in outcomes)


@pytest.mark.slow
def test_all_operator_tests(generated):
    judged(v for c in generated for v in (c, *corpus.weighted(c)))


@pytest.mark.slow
def test_all_networks():
    judged(corpus.light())


def test_fixtures():
    """Every export is read as its line of the manifest says, and split without a difference."""
    found = {o.name: o.found for o in judged(corpus.fixtures())}
    wanted = {entry["file"]: entry["expect"] for entry in corpus.manifest()}
    assert {k: (v, wanted[k]) for k, v in found.items() if v != wanted[k]} == {}
    assert found.keys() == wanted.keys()


def test_the_judge_sees_faults(monkeypatch):
    """A wrong factor, a changed field and an operator without a reason are noticed."""
    from .build import make, node, noise, single

    k = 4
    good = single("MatMul", {"x": (3, k)}, {"w": noise(k, k)}, ["x", "w"])
    case = Case("case", good, {"x": noise(3, k)})
    assert judge(case).good and judge(case).split == 1
    right = corpus.factors

    def wrong(model, site):
        pair = right(model, site)
        return type(pair)((pair.parts[0] * 1.01, pair.parts[1]))

    monkeypatch.setattr(corpus, "factors", wrong)
    assert not judge(case).good
    monkeypatch.setattr(corpus, "factors", right)
    monkeypatch.setattr(corpus, "differences", lambda *_: ["x"])
    assert not judge(case).good
    monkeypatch.undo()
    monkeypatch.setattr(corpus, "find_sites", lambda *_: ([], []))
    assert judge(case).unexplained
    odd = make([node("Relu", ["x"], ["y"])], {"x": (1,)}, ["y"])
    monkeypatch.setattr(corpus, "find_sites", lambda *_: 1 / 0)
    assert judge(Case("odd", odd, {})).raised
