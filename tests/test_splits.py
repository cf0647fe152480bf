"""Folds: undivided groups, even classes and holes, the same again for the same seed."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polytag.errors import UserError
from polytag.groups import identical
from polytag.splits import stratified_folds
from polytag.table import read_table

DATA = Path(os.environ.get("POLYTAG_DATA", Path(__file__).parents[2] / "shared" / "data"))


def drawn(seed, rows=400, attributes=6):
    rng = np.random.default_rng(seed)
    rates = np.geomspace(0.05, 0.8, attributes)
    values = (rng.random((rows, attributes)) < rates).astype(np.float32)
    values[rng.random(values.shape) < 0.2] = np.nan
    groups = np.unique(rng.integers(0, rows * 2, rows), return_inverse=True)[1]
    return values, groups.astype(np.int64)


def worst_deviation(values, folds):
    positives = np.array([(values[folds == f] == 1).sum(axis=0) for f in range(folds.max() + 1)])
    return np.abs(positives / positives.mean(axis=0) - 1).max()


def prevalence_range(values, folds):
    parts = [values[folds == f] for f in range(folds.max() + 1)]
    rates = np.array([np.nanmean(part, axis=0) for part in parts])
    return (rates.max(axis=0) - rates.min(axis=0)).max()


@pytest.mark.parametrize("seed", range(4))
def test_folds_are_more_even_than_random_ones(seed):
    values, groups = drawn(seed)
    folds = stratified_folds(values, groups, folds=5, seed=seed)
    rng = np.random.default_rng(seed)
    chance = [rng.integers(0, 5, groups.max() + 1)[groups] for _ in range(20)]
    assert worst_deviation(values, folds) < 0.5 * np.mean(
        [worst_deviation(values, f) for f in chance]
    )
    assert prevalence_range(values, folds) < 0.7 * np.mean(
        [prevalence_range(values, f) for f in chance]
    )
    sizes = np.bincount(folds, minlength=5)
    assert sizes.max() - sizes.min() <= 0.05 * len(values)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6), st.integers(8, 60), st.integers(1, 4))
def test_no_group_is_divided_and_no_fold_is_empty(seed, count, rows, attributes):
    values, groups = drawn(seed, rows, attributes)
    if groups.max() + 1 < count:
        return
    folds = stratified_folds(values, groups, folds=count, seed=seed)
    assert set(folds.tolist()) == set(range(count))
    for group in np.unique(groups):
        assert len(np.unique(folds[groups == group])) == 1


@pytest.mark.parametrize("fill", [np.nan, 0.0, 1.0])
def test_tables_of_one_kind_of_cell_are_split_by_size(fill):
    folds = stratified_folds(np.full((23, 2), fill, np.float32), np.arange(23), folds=5, seed=0)
    assert sorted(np.bincount(folds).tolist()) == [4, 4, 5, 5, 5]


def test_the_same_seed_gives_the_same_folds_and_another_seed_others():
    values, groups = drawn(0)
    first, again, other = (stratified_folds(values, groups, folds=5, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_an_attribute_with_fewer_positives_than_folds_stops_nothing():
    values = np.zeros((40, 1), np.float32)
    values[:2] = 1
    folds = stratified_folds(values, np.arange(40), folds=5, seed=0)
    assert len(set(folds[:2].tolist())) == 2


def test_fewer_groups_than_folds_is_an_error():
    with pytest.raises(UserError, match="got 3, expected at least 5"):
        stratified_folds(np.ones((9, 1), np.float32), np.arange(9) % 3, folds=5, seed=0)


def test_byte_identical_pictures_are_one_group():
    assert identical(["x", "y", "x", "z", "y"]).tolist() == [0, 1, 0, 2, 1]
    assert identical([]).tolist() == []


@pytest.mark.skipif(not DATA.is_dir(), reason="the measuring data is not here")
def test_on_real_photographs_folds_are_even_and_no_twin_is_parted():
    folder = DATA / "clothing-attributes"
    table = read_table(folder / "labels.csv")
    hashes = [
        hashlib.sha256((folder / "images" / name).read_bytes()).hexdigest() for name in table.images
    ]
    groups = identical(hashes)
    sizes = np.bincount(groups)
    assert ((sizes > 1).sum(), sizes[sizes > 1].sum()) == (39, 82)
    folds = stratified_folds(table.values, groups, folds=5, seed=42)
    assert worst_deviation(table.values, folds) <= 0.20
    assert prevalence_range(table.values, folds) <= 0.06
