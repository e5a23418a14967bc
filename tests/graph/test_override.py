"""Weights as inputs: unfed the original, fed the model with other weights and biases."""

import numpy as np
import pytest

from onnxrank.graph.find import find_sites, find_units
from onnxrank.graph.model import load
from onnxrank.graph.override import override
from onnxrank.graph.rewrite import rewrite

from .build import differ, noise, only, random_pair, run, tensors
from .variety import VARIETY, gemm, matmul

ROUGH = {"float16": 5e-2}


def opened(name):
    """A model, its sites that can be split, and the copy that takes weights."""
    proto, feeds = VARIETY[name]()
    model = load(proto)
    sites = [s for s in find_sites(model)[0] if not s.hold]
    assert sites
    return model, sites, override(model, sites), feeds


def pairs(sites, model):
    """A pair a unit: sites of one weight have one."""
    units = find_units(model, sites)
    made = {u.name: random_pair(u.sites[0], shift=u.sites[0].centers) for u in units}
    return [(site, made[u.name]) for u in units for site in u.sites]


def fed(overridden, chosen):
    feeds = {}
    for site, pair in chosen:
        feeds.update(overridden.feeds(site.name, pair.product, pair.bias))
    return feeds


@pytest.mark.parametrize("name", VARIETY)
def test_unfed_it_is_the_original(name):
    model, sites, overridden, feeds = opened(name)
    assert differ(run(model.proto, feeds), run(overridden.proto, feeds)) < ROUGH.get(name, 1e-5)
    assert set(overridden.weights) == set(overridden.shifts) == {site.name for site in sites}


@pytest.mark.parametrize("name", VARIETY)
def test_fed_it_is_what_is_written(name):
    model, sites, overridden, feeds = opened(name)
    chosen = pairs(sites, model)
    written = run(rewrite(model, chosen), feeds)
    got = run(overridden.proto, {**feeds, **fed(overridden, chosen)})
    assert differ(written, got) < ROUGH.get(name, 2e-5)
    assert differ(run(model.proto, feeds), got) > 1e-3


@pytest.mark.parametrize("name", VARIETY)
def test_one_site_alone(name):
    """The others keep their own weights, also those of the same unit."""
    model, sites, overridden, feeds = opened(name)
    for site in sites:
        pair = random_pair(site, shift=site.centers)
        written = run(rewrite(model, [(site, pair)]), feeds)
        got = run(overridden.proto, {**feeds, **fed(overridden, [(site, pair)])})
        assert differ(written, got) < ROUGH.get(name, 2e-5)


def test_against_numpy():
    model, feeds = gemm(0, 1, 0.5, 2.0, "N")
    site = only(model)
    overridden = override(load(model), [site])
    weight, shift = noise(1, site.d_in, site.d_out, seed=7), noise(1, site.d_out, seed=8)
    got = run(overridden.proto, {**feeds, **overridden.feeds("n", weight, shift)})[0]
    expected = 0.5 * (feeds["x"] @ weight[0] + shift[0]) + 2 * tensors(model)["c"]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_held_sites_take_weights_too():
    """Recurrent weights, which share their node with the input weights."""
    proto, feeds = VARIETY["lstm"]()
    model = load(proto)
    sites, _ = find_sites(model)
    overridden = override(model, sites)
    assert len(overridden.weights) == 2 and len(overridden.shifts) == 1
    assert differ(run(proto, feeds), run(overridden.proto, feeds)) < 1e-5
    changed = {name: 0 * tensors(overridden.proto)[name] for name in overridden.weights.values()}
    still = [run(overridden.proto, {"x": k * feeds["x"], **changed}) for k in (1, 2)]
    assert differ(*still) == 0
    assert differ(run(proto, feeds), still[0]) > 1e-2


def test_the_original_is_left_alone():
    proto, _ = matmul(noise(7, 5), (3, 7), bias=noise(5))
    before = proto.SerializeToString(deterministic=True)
    model = load(proto)
    override(model, find_sites(model)[0])
    assert proto.SerializeToString(deterministic=True) == before
