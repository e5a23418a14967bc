"""One part in the place of a pair: the same node with another weight; and what a shift adds."""

import numpy as np
import pytest

from onnxrank.errors import ModelError
from onnxrank.graph import operators
from onnxrank.graph.bias import shift_parameters, takes_shift
from onnxrank.graph.constants import evaluate
from onnxrank.graph.cost import parameters_of
from onnxrank.graph.find import find_sites
from onnxrank.graph.model import load
from onnxrank.graph.rewrite import rewrite
from onnxrank.graph.weights import unmatrix, weight_matrix
from onnxrank.linalg.factorize import Factors

from .build import differ, noise, ops, random_pair, run, tensors
from .lossless import assert_lossless
from .variety import VARIETY, gemm, matmul

ROUGH = {"float16": 5e-2}
TAKES = {
    "gemm", "gemm alpha beta", "gemm full c", "gemm opset 9", "matmul leading one", "matmul bias",
    "fused matmul bias", "conv", "conv grouped", "conv 1x1", "conv fused", "lstm", "attention",
    "fused gemm", "float16", "float64", "chains", "ir 3", "ir 4", "gemm beta 0",
}  # fmt: skip


def sites_of(name):
    proto, feeds = VARIETY[name]()
    model = load(proto)
    return model, [s for s in find_sites(model)[0] if not s.hold], feeds


def refittable(model, site):
    node = model.index.producers[site.scope][site.output]
    return operators.operator(node).refit is not None


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("name", VARIETY)
def test_one_part_is_as_good_as_two(name, shift):
    model, sites, feeds = sites_of(name)
    for site in sites:
        pair = random_pair(site, shift=shift and site.centers)
        whole = Factors((pair.product,), pair.bias)
        if not refittable(model, site):
            with pytest.raises(ModelError, match="another weight"):
                rewrite(model, [(site, whole)])
            continue
        written = rewrite(model, [(site, whole)])
        expected = run(rewrite(model, [(site, pair)]), feeds)
        assert differ(expected, run(written, feeds)) < ROUGH.get(name, 2e-5)
        assert_lossless(model.proto, written, [site])


@pytest.mark.parametrize("name", VARIETY)
def test_nothing_but_the_weight_changes(name):
    """Without a shift the nodes are as many as before, and so are the parameters."""
    model, sites, feeds = sites_of(name)
    for site in sites:
        if refittable(model, site):
            same = Factors((weight_matrix(model, site),))
            written = rewrite(model, [(site, same)])
            assert differ(run(model.proto, feeds), run(written, feeds)) < ROUGH.get(name, 1e-6)
            if name not in ("shared weight", "then", "else"):  # there the others keep theirs
                assert parameters_of(written) == parameters_of(model.proto)
            names = {n.name for n in written.graph.node if n.name}
            assert names <= {n.name for n in model.proto.graph.node}


@pytest.mark.parametrize("name", VARIETY)
def test_unmatrix_undoes_weight_matrix(name):
    model, sites, _ = sites_of(name)
    for site in sites:
        original = evaluate(model, site.weight)
        assert np.array_equal(unmatrix(site, weight_matrix(model, site)), original)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("name", VARIETY)
def test_what_a_shift_adds_to_the_parameters(name, parts):
    model, sites, _ = sites_of(name)
    for site in sites:
        if parts == 1 and not refittable(model, site):
            continue
        pair = random_pair(site)
        chosen = Factors((pair.product,), pair.bias) if parts == 1 else pair
        shifted = rewrite(model, [(site, chosen)])
        still = rewrite(model, [(site, Factors(chosen.parts))])
        added = parameters_of(shifted) - parameters_of(still)
        assert added == shift_parameters(model, site), site.name


@pytest.mark.parametrize("name", VARIETY)
def test_biases_that_take_a_shift(name):
    model, sites, _ = sites_of(name)
    for site in sites:
        if takes_shift(model, site):
            assert shift_parameters(model, site) <= 0
    first = sites[0]
    assert takes_shift(model, first) == (name in TAKES), name


def test_a_bias_that_others_read_stays():
    proto, feeds = matmul(noise(7, 5), (3, 7), bias=noise(5), shared=True)
    model = load(proto)
    (site,) = find_sites(model)[0]
    pair = random_pair(site)
    written = rewrite(model, [(site, Factors((pair.product,), pair.bias))])
    assert "b" in tensors(written)
    assert differ(run(rewrite(model, [(site, pair)]), feeds), run(written, feeds)) < 1e-5


def test_the_node_stays_what_it_is():
    proto, _ = gemm(1, 1, 0.5, 2.0, "N")
    proto.graph.node[0].doc_string = "kept"
    model = load(proto)
    (site,) = find_sites(model)[0]
    pair = random_pair(site)
    written = rewrite(model, [(site, Factors((pair.product,), pair.bias))])
    (got,), (original,) = written.graph.node, proto.graph.node
    assert ops(written) == {"Gemm": 1}
    assert got.attribute == original.attribute
    assert (got.name, got.doc_string, list(got.output)) == ("n", "kept", ["y"])
    assert set(tensors(written)) == {"n/refitted.weight", "n/rank_bias"}
    expected = pair.product[0].T.reshape(tensors(proto)["w"].shape)
    np.testing.assert_allclose(tensors(written)["n/refitted.weight"], expected, rtol=1e-6)
