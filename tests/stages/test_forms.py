"""Forms of convolutions: what curves and costs say of them is so of what is written."""

import numpy as np
import pytest

from onnxrank.graph.cost import model_macs, parameters_of
from onnxrank.graph.find import find_sites
from onnxrank.graph.model import load
from onnxrank.graph.rewrite import rewrite
from onnxrank.runtime.session import execute, open_session
from onnxrank.stages.blocks import Block
from onnxrank.stages.costs import Costs
from onnxrank.stages.curves import UnitCurve
from onnxrank.stages.forms import FORMS
from onnxrank.stages.measure import unit_moment
from onnxrank.stages.tasks import centred
from onnxrank.stages.work import rows_of_data

from .networks import RUN, Layers, data, setting

GEOMETRIES = {
    "plain": {},
    "same": {"pads": [1, 1, 1, 1]},
    "strided": {"strides": [2, 2], "pads": [1, 1, 1, 1]},
    "uneven": {"strides": [2, 1], "pads": [0, 2, 1, 0], "dilations": [1, 2]},
    "auto": {"auto_pad": "SAME_LOWER", "strides": [1, 2]},
}


@pytest.fixture(scope="module", params=GEOMETRIES)
def ready(request):
    """One convolution of 6 to 8 channels on images of 9 by 9, and its moments."""
    layers = Layers(3, 0.2)
    layers.conv("x", "one", 6, 8, True, **GEOMETRIES[request.param])
    return setting(layers.model(["n", 6, 9, 9], "y", ["n", 8, "h", "w"]), data((6, 9, 9), 40))


def written(found, unit, form, rank):
    """The model with a form as fitted to all rows."""
    weight, moment = Block.of(unit).weight(found.model), unit_moment(found.moments, unit)
    factors = centred(weight, moment, rank, form.cut(unit.sites[0]))
    return rewrite(found.model, [(unit.sites[0], factors)])


def outputs(found, proto):
    session = open_session(proto, None, RUN)
    found = [execute(session, ["y"], b.feeds, where="")[0] for b in found.source.batches()]
    return np.concatenate(found).astype(np.float64)  # a copy: the session goes


@pytest.mark.parametrize("form", FORMS)
def test_costs_are_those_of_what_is_written(ready, form):
    (unit,) = ready.measured.survey.units
    params, macs = (Costs(ready.measured.survey, k, ready.rows) for k in ("params", "macs"))
    for rank in range(1, FORMS[form].full(unit.sites[0]) + 1):
        proto = written(ready, unit, FORMS[form], rank)
        saved = [cost.dense(unit) - cost.cut(unit, FORMS[form], rank) for cost in (params, macs)]
        assert params.whole - saved[0] == parameters_of(proto)
        model = load(proto)
        counted = model_macs(find_sites(model)[0], rows_of_data(model, ready.source, RUN))
        assert macs.whole - saved[1] == pytest.approx(counted)


@pytest.mark.parametrize("form", sorted(set(FORMS) - {"pair"}))
def test_curves_are_the_errors_of_what_is_written(ready, form):
    """Fitted to all rows and judged on them."""
    (unit,) = ready.measured.survey.units
    weight, moment = Block.of(unit).weight(ready.model), unit_moment(ready.moments, unit)
    tail = FORMS[form].tails(unit.sites[0], weight, moment, moment)
    assert len(tail) == FORMS[form].full(unit.sites[0]) + 1 and (np.diff(tail) <= 0).all()
    wanted = outputs(ready, ready.proto)
    for rank in range(1, UnitCurve(unit, {form: tail}).most(form) + 1):
        got = outputs(ready, written(ready, unit, FORMS[form], rank))
        error = np.square(got - wanted).sum()
        near = 0.2 if len(tail) > 7 else 1e-3  # some are interpolated
        assert error == pytest.approx(tail[rank], rel=near, abs=1e-6 * tail[0])
