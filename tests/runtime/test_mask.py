import numpy as np
import pytest

from onnxrank.errors import MomentsError
from onnxrank.graph.scopes import MAIN
from onnxrank.graph.sites import View
from onnxrank.linalg.layout import Axis
from onnxrank.runtime.mask import rows_kept
from onnxrank.runtime.waves import plan_waves

MASK = np.array([[1, 1, 0], [1, 0, 0]])
FLAT = MASK.reshape(-1) != 0


@pytest.mark.parametrize("grid", [(2, 3), (6,), (2, 1, 3), (2, 3, 1)])
def test_mask_fits_rows_in_its_own_order(grid):
    kept, reason = rows_kept(MASK, grid)
    assert (kept == FLAT).all() and not reason


def test_mask_repeats_over_trailing_axes():
    assert (rows_kept(MASK, (2, 3, 2))[0] == np.repeat(FLAT, 2)).all()
    assert (rows_kept(MASK, (6, 4))[0] == np.repeat(FLAT, 4)).all()
    assert (rows_kept(MASK[:, None, None], (2, 3))[0] == FLAT).all()
    assert (rows_kept(MASK.astype(bool), (2, 3))[0] == FLAT).all()
    assert (rows_kept(MASK[:1], (3,))[0] == FLAT[:3]).all()
    assert (rows_kept(MASK[:1], (1, 3, 5))[0] == np.repeat(FLAT[:3], 5)).all()


@pytest.mark.parametrize("grid", [(2,), (3, 2), (2, 4, 3), (), (3,)])
def test_mask_that_does_not_fit_says_why(grid):
    kept, reason = rows_kept(MASK, grid)
    assert kept is None and reason.startswith("a mask of shape [2, 3] does not fit rows along [")


def view(name):
    return View(MAIN, name, Axis())


def test_waves_keep_the_order_and_fit():
    need = {view(name): size for name, size in zip("abcdef", [4, 4, 2, 9, 1, 10], strict=True)}
    waves = plan_waves(need, 10)
    assert [[v.tensor for v in wave] for wave in waves] == [["a", "b", "c"], ["d", "e"], ["f"]]
    assert [[v.tensor for v in wave] for wave in plan_waves(need, 0)] == [list("abcdef")]
    assert plan_waves({}, 10) == []
    with pytest.raises(MomentsError, match="tensor 'd' take 9"):
        plan_waves({v: size * 2**20 for v, size in need.items()}, 8 * 2**20)
