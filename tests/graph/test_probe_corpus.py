"""Reducing in the graph against fetching, over the graphs of exporters and of the onnx package."""

import numpy as np
import pytest

from onnxrank.graph.find import find_sites
from onnxrank.graph.model import load
from onnxrank.graph.probe import probe
from onnxrank.linalg.layout import rows

from . import corpus
from .build import differ


def compare(case):
    """How many views of a case were reduced in the graph, and found equal."""
    model = load(case.model)
    sites, _ = find_sites(model)
    views = {site.view: site.d_in for site in sites}
    run = corpus.runner(model)
    own = [output.name for output in model.proto.graph.output]
    before = corpus.attempt(lambda: run(model.proto, case.feeds, own))
    if not views or before is None:
        return 0
    found = []
    for reduce in (False, True):
        probed = probe(model, list(views), views, reduce=reduce)
        names = [n for v in views for n in _names(probed.names[v])]
        values = run(probed.proto, case.feeds, [*own, *names])
        half = any(site.weight.dtype in (10, 16) for site in sites)
        assert differ(before, values[: len(own)]) < (1e-2 if half else 1e-4)
        found.append({v: probed.names[v] for v in views})
        found.append(dict(zip([*own, *names], values, strict=True)))
    fetched, tensors, reduced, moments = found
    count = 0
    for view, d in views.items():
        if isinstance(reduced[view], str):
            continue
        n, total, gram = (moments[name] for name in reduced[view])
        assert gram.shape == (view.layout.groups, d, d)
        count += 1
        if not isinstance(fetched[view], str):
            continue  # in a body
        x = rows(tensors[fetched[view]], view.layout).astype(np.float64)
        right = x.swapaxes(1, 2) @ x
        if np.isfinite(right).all():
            assert n == x.shape[1] and x.shape[2] == d
            close = 1e-2 if half else 1e-4
            np.testing.assert_allclose(gram, right, close, close * np.abs(right).max(initial=1e-9))
            size = np.abs(x).sum(axis=1).max(initial=1e-9)
            np.testing.assert_allclose(total, x.sum(axis=1), close, close * size)
    return count


def _names(name):
    return [name] if isinstance(name, str) else list(name)


def test_models_that_onnx_ships():
    """Too old an operator set to reduce in the graph: their views are fetched."""
    assert sum(map(compare, corpus.stored())) == 0


@pytest.mark.skipif(not (corpus.FIXTURES / "manifest.json").exists(), reason="no fixtures yet")
def test_fixtures():
    assert sum(map(compare, corpus.fixtures())) > 400


@pytest.mark.slow
def test_all_operator_tests():
    cases = (v for c in corpus.generated() for v in corpus.weighted(c))
    assert sum(map(compare, cases)) > 50
