import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxrank.runtime import folds


@given(st.integers(1, 2000), st.integers(1, 40))
def test_blocks_are_whole_batches_and_folds_balance(batches, fixed):
    n = batches * fixed
    units = folds.block_units(n, fixed)
    fold = folds.assign(units, np.ones(n, bool))
    assert (fold.reshape(-1, fixed) == fold[::fixed, None]).all()
    assert abs((fold == 0).sum() - (fold == 1).sum()) <= folds.block_length(n, fixed)


def test_block_is_a_sixteenth_up_to_32():
    assert [folds.block_length(n) for n in (1, 15, 32, 160, 512, 5000)] == [1, 1, 2, 10, 32, 32]
    assert folds.block_length(1000, 24) == 24


@given(st.lists(st.integers(0, 8), min_size=1, max_size=200), st.sampled_from([1, 2, 5]))
def test_folds_part_neither_sources_nor_fixed_batches(groups, fixed):
    groups = np.array((groups * fixed)[: len(groups) // fixed * fixed or fixed])
    groups = np.resize(groups, max(fixed, len(groups)))
    units = folds.group_units(groups, fixed)
    fold = folds.assign(units, np.ones(len(groups), bool))
    for source in np.unique(groups):
        assert len(set(fold[groups == source])) == 1
    for start in range(0, len(groups), fixed):
        assert len(set(fold[start : start + fixed])) == 1
    assert units[0] == 0


def test_sources_of_unequal_size_balance():
    groups = np.repeat(np.arange(9), [50, 10, 10, 10, 10, 5, 5, 3, 3])
    fold = folds.assign(folds.group_units(groups), np.ones(len(groups), bool))
    assert abs((fold == 0).sum() - (fold == 1).sum()) <= 6


@given(st.integers(2, 5000))
def test_holding_out_leaves_most_and_spreads(n):
    units = folds.block_units(n)
    used = np.ones(n, bool)
    held = folds.hold(units, used, 1 / 8, 512)
    assert 0 < held.sum() <= max(n // 2, 1)
    assert held.sum() <= 544
    rest = folds.assign(units, used & ~held)
    assert not (held & (rest >= 0)).any()


def test_nothing_is_held_out_of_one_unit():
    assert not folds.hold(np.zeros(9, np.int64), np.ones(9, bool), 1 / 8, 512).any()


@pytest.mark.parametrize("n", [7, 64, 1000])
def test_shards_are_a_partition(n):
    parts = [folds.shard(n, k, 3, folds.block_length(n)) for k in (1, 2, 3)]
    assert (sum(part.astype(int) for part in parts) == 1).all()
