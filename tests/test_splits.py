"""Folds: undivided groups, even classes and holes, the same again for the same seed."""

import csv

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polytag.errors import UserError
from polytag.groups import identical, joined, similar
from polytag.images import content_hash, decode
from polytag.looks import look
from polytag.splits import given_parts, leaks, read_split, stratified_folds, stratified_parts
from polytag.table import read_table

from .conftest import real_data


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


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 5), st.floats(0.3, 0.95), st.integers(0, 3))
def test_a_group_larger_than_a_fold_is_one_fold_and_the_others_are_not_empty(
    seed, count, share, attributes
):
    rng = np.random.default_rng(seed)
    rows = 60
    values = rng.integers(0, 2, (rows, attributes)).astype(np.float32)
    values[rng.random(values.shape) < 0.2] = np.nan
    groups = np.arange(rows)
    groups[: int(share * rows)] = 0
    groups = np.unique(groups, return_inverse=True)[1]
    if groups.max() + 1 < count:
        return
    folds = stratified_folds(values, groups, folds=count, seed=seed)
    assert len(set(folds[groups == 0].tolist())) == 1
    assert set(folds.tolist()) == set(range(count))


def test_rare_and_wide_attributes_are_evened_out_together():
    """Simulated tables of the size and prevalences of a real one, 7.6 % of it holes."""
    for seed in range(3):
        rng = np.random.default_rng(seed)
        rates = np.geomspace(0.035, 0.6, 20)
        values = (rng.random((1500, 20)) < rates).astype(np.float32)
        values[rng.random(values.shape) < 0.076] = np.nan
        groups = np.unique(rng.integers(0, 20_000, 1500), return_inverse=True)[1]
        folds = stratified_folds(values, groups, folds=5, seed=seed)
        assert worst_deviation(values, folds) <= 0.20
        assert prevalence_range(values, folds) <= 0.06


@pytest.mark.parametrize("shares", [[0.7, 0.15, 0.15], [0.5, 0.5]])
def test_parts_have_their_shares_of_every_class(shares):
    values, groups = drawn(3, rows=2000)
    parts = stratified_parts(values, groups, shares=shares, seed=0)
    for cells in (values == 1, values == 0, np.isnan(values), np.ones((2000, 1), bool)):
        found = [cells[parts == part].sum(axis=0) for part in range(len(shares))]
        expected = np.outer(shares, cells.sum(axis=0))
        assert (np.abs(found - expected) <= np.maximum(3, 0.1 * expected)).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_holes_are_spread_evenly_too(seed):
    values, groups = drawn(seed, rows=80, attributes=3)
    folds = stratified_folds(values, groups, folds=4, seed=1)
    holes = np.isnan(values)
    counts = np.array([holes[folds == fold].sum(axis=0) for fold in range(4)])
    assert (np.ptp(counts, axis=0) <= 6).all()


@pytest.mark.parametrize("seed", range(10))
def test_on_real_photographs_folds_are_even_and_no_group_is_parted(photographs, seed):
    values, groups = photographs
    folds = stratified_folds(values, groups, folds=5, seed=seed)
    assert worst_deviation(values, folds) <= 0.20
    assert prevalence_range(values, folds) <= 0.06
    assert len(np.unique(np.stack([groups, folds]), axis=1).T) == groups.max() + 1


@pytest.fixture(scope="module")
def photographs():
    folder = real_data("clothing-attributes")
    table = read_table(folder / "labels.csv")
    paths = [folder / "images" / name for name in table.images]
    same = identical([content_hash(path) for path in paths])
    sizes = np.bincount(same)
    assert ((sizes > 1).sum(), sizes[sizes > 1].sum()) == (39, 82)
    return table.values, joined(same, similar(np.stack([look(decode(path)) for path in paths])))


# --------------------------------------------------------------------------- a split of the user's


def test_words_are_parts_in_any_case():
    texts = ["train", "TRAINING ", "val", "Valid", "validation", "choose", "dev", "test"]
    given = given_parts([*texts, "Testing", " holdout"], "split")
    assert given.folds is None
    assert given.parts.tolist() == ["train"] * 2 + ["choose"] * 5 + ["holdout"] * 3


@pytest.mark.parametrize(
    ("texts", "folds"),
    [
        (["1", "2", "3", "2"], [0, 1, 2, 1]),
        (["7", "0", "10", "0"], [1, 0, 2, 0]),
        (["0.0", "1.0", "2", "02"], [0, 1, 2, 2]),
    ],
)
def test_fold_numbers_are_folds_from_0(texts, folds):
    given = given_parts(texts, "fold")
    assert given.parts is None
    assert given.folds.tolist() == folds and given.folds.dtype == np.int64


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["train", "tset", "x"], r"mine, row 2: .*got 'tset', expected train, val or test"),
        (["train", "", "test"], r"mine, row 2: a row without a part; got ''"),
        ([" ", "train", "test"], r"mine, row 1: a row without a part"),
        (["1", "2", "3", "test"], r"mine, row 4: .*got 'test', expected a fold number"),
        (["train", "1"], r"mine, row 2: .*got '1'"),
        (["1", "2", "2.5"], r"mine, row 3: .*got '2.5'"),
        (["-1", "0", "1"], r"mine, row 1: .*got '-1'"),
        (["0", "1", "0"], r"mine: too few folds; got 0, 1, expected at least 3.*train and test"),
        (["train", "train"], r"mine: a split without two sides; got train, expected"),
        (["test", "val"], r"mine: a split without two sides; got test, val"),
        ([], r"mine: a split without two sides; got no row"),
    ],
)
def test_what_is_no_split_says_which_row_and_why(texts, message):
    with pytest.raises(UserError, match=message):
        given_parts(texts, "mine")


@given(
    st.lists(st.tuples(st.sampled_from(["train", "val", "test"]), st.integers(0, 5)), max_size=12)
)
def test_leaks_between_parts_are_those_of_the_slow_way(rows):
    rows = [("train", 9), ("test", 8), *rows]
    given, groups = given_parts([part for part, _ in rows], ""), np.array([g for _, g in rows])
    learns = {"test": ("train", "val"), "val": ("train",), "train": ()}
    slow = [any(g == other and p in learns[part] for p, other in rows) for part, g in rows]
    assert leaks(given, groups).tolist() == slow


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5)), max_size=12))
def test_leaks_between_folds_are_those_of_the_slow_way(rows):
    rows = [(0, 90), (1, 91), (2, 92), *rows]
    given, groups = given_parts([str(f) for f, _ in rows], ""), np.array([g for _, g in rows])
    slow = [any(g == other and f != fold for f, other in rows) for fold, g in rows]
    assert leaks(given, groups).tolist() == slow


def test_a_split_file_is_read_in_the_order_of_the_images(tmp_path):
    path = tmp_path / "splits.csv"
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file).writerows(
            [
                ["image", "content_hash", "group", "fold"],
                ["a, b.jpg", "ff", 0, 2],
                ["./c.jpg", "00", 1, 0],
                ["not asked for.jpg", "", 2, 1],
            ]
        )
    assert read_split(path, ["c.jpg", "a, b.jpg"]) == ["0", "2"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,split\na.jpg,train\n", r"b.jpg has no row in this split \(and 1 more such image"),
        ("image,split\na.jpg,train\na.jpg,test\n", r"csv:3: a.jpg stands in two parts; got 'test'"),
        ("name,split\na.jpg,train\n", r"not a split; got the columns name, split, expected"),
        ("image,part\na.jpg,train\n", r"not a split; got the columns image, part"),
        ("", r"not a split; got an empty file"),
        ("image,fold\n../a.jpg,1\n", r"csv:2: the image name leads out"),
        ("image,fold\n,1\n", r"csv:2: "),
    ],
)
def test_a_file_that_is_no_split_says_what_is_wrong(tmp_path, content, message):
    path = tmp_path / "mine.csv"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_split(path, ["a.jpg", "b.jpg", "c.jpg"])


def test_a_split_file_that_is_missing_or_no_text_is_an_error(tmp_path):
    with pytest.raises(UserError, match="cannot be read; got No such file"):
        read_split(tmp_path / "none.csv", [])
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\xfa\x00\xd8")
    with pytest.raises(UserError, match=r"binary.csv"):
        read_split(tmp_path / "binary.csv", [])


def test_a_short_row_of_a_split_file_is_a_row_without_a_part(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("image,split\na.jpg\nb.jpg,train\n")
    texts = read_split(path, ["a.jpg", "b.jpg"])
    with pytest.raises(UserError, match="row 1: a row without a part"):
        given_parts(texts, "mine.csv")
