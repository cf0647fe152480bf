"""Groups: copies are found, different pictures are not, and no chain makes a giant."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polytag import groups as rooms
from polytag.groups import by_column, identical, joined, similar, similar_pairs
from polytag.images import content_hash, decode
from polytag.looks import look
from polytag.table import read_table

from .conftest import draw, real_data

NUMBERS = st.integers(1, 40)


def random_looks(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)


def changed(looks: np.ndarray, levels: int, seed: int = 1) -> np.ndarray:
    """Looks with each value moved by `levels` up or down."""
    signs = np.random.default_rng(seed).choice([-levels, levels], looks.shape)
    return np.clip(looks.astype(int) + signs, 0, 255).astype(np.uint8)


def sizes(groups: np.ndarray) -> list[int]:
    return sorted(np.bincount(groups).tolist())


def together(groups: np.ndarray) -> np.ndarray:
    """bool (N, N): which rows share a group."""
    return groups[:, None] == groups


# ------------------------------------------------------------------------ columns and joined groups


def test_byte_identical_pictures_are_one_group():
    assert identical(["x", "y", "x", "z", "y"]).tolist() == [0, 1, 0, 2, 1]
    assert identical([]).tolist() == []


def test_rows_of_one_text_are_one_group_and_rows_without_are_alone():
    assert by_column(["7", "ann", "", "7 ", " ", "0", "", "ann"]).tolist() == [
        0,
        1,
        2,
        0,
        3,
        4,
        5,
        1,
    ]
    assert by_column([]).tolist() == []


@given(st.lists(st.lists(st.integers(0, 6), min_size=9, max_size=9), min_size=1, max_size=4))
def test_joined_groups_are_the_connected_ones(groupings):
    arrays = [np.array(grouping) for grouping in groupings]
    linked = np.any([together(groups) for groups in arrays], axis=0)
    for _ in range(9):  # the slow way: whoever is linked to a linked one is linked
        linked = linked @ linked
    found = joined(*arrays)
    assert np.array_equal(together(found), linked)
    first = np.unique(found, return_index=True)[1]
    assert found[first].tolist() == list(range(len(first))) and (np.diff(first) > 0).all()


# -------------------------------------------------------------------------------------- by looks


def test_copies_are_found_by_looks_alone_and_their_chains_too():
    looks = random_looks(30)
    rows = [looks, changed(looks[:4], 2), changed(looks[:2], 2, seed=2), looks[5:7, :, ::-1]]
    groups = similar(np.concatenate(rows))
    assert groups[:30].tolist() == list(range(30))
    assert groups[30:].tolist() == [0, 1, 2, 3, 0, 1, 5, 6]


def test_different_pictures_of_one_kind_are_not_merged():
    """Noisy plain pictures, as the tests' world has them: only noise tells some of them apart."""
    rng = np.random.default_rng(3)
    looks = np.stack([look(draw(*(rng.random(3) < 0.5), rng)) for _ in range(300)])
    assert similar(looks).max() == 299


def test_empty_pages_are_like_no_other():
    """Small marks on white, gone at 8 x 8 pixels: the looks are the same, the pictures are not."""
    pages = np.full((60, 300, 300, 3), 255, np.uint8)
    for row, page in enumerate(pages):
        page[5 * row, 20:24] = 0
    looks = np.stack([look(page) for page in pages])
    assert len(np.unique(looks, axis=0)) < 60
    assert similar(looks).max() == 59 and similar_pairs(looks) == []
    assert similar(looks, np.ones((60, 2, 4), np.float32)).max() == 59


def test_without_features_near_is_not_enough():
    looks = random_looks(60)
    both = np.concatenate([looks, changed(looks[:1], 8)])
    assert similar(both).max() == 60
    features = np.random.default_rng(0).normal(size=(61, 2, 32)).astype(np.float32)
    assert similar(both, features).max() == 60  # the features say no
    features[60] = features[0] * 0.9
    assert similar(both, features)[60] == 0
    assert similar(both, features[:, 0])[60] == 0  # plain views only
    assert similar_pairs(both, features)[0][:2] == (0, 60)


def test_a_mirrored_and_cropped_copy_is_found_by_the_mirrored_view():
    looks = random_looks(60)
    both = np.concatenate([looks, changed(looks[:1, :, ::-1], 8)])
    features = np.random.default_rng(0).normal(size=(61, 2, 32)).astype(np.float32)
    features[60, 0] = features[0, 1]
    assert similar(both, features)[60] == 0


def test_of_few_rows_features_are_not_asked():
    looks = random_looks(20)
    both = np.concatenate([looks, changed(looks[:1], 8)])
    assert similar(both, np.ones((21, 1, 4), np.float32)).max() == 20


def test_a_chain_of_doubtful_pairs_ends():
    """Each picture of a film is near the next two only: the ends have nothing in common."""
    ends = random_looks(2, seed=5).astype(float)
    share = np.linspace(0, 1, 20)[:, None, None, None]
    film = np.round(ends[0] * (1 - share) + ends[1] * share).astype(np.uint8)
    looks = np.concatenate([film, random_looks(80, seed=6)])
    features = np.ones((100, 1, 8), np.float32)
    features[:, 0, :4] = np.random.default_rng(0).normal(size=(100, 4))
    features[:20] = 5  # all of the film alike
    pairs = {pair[:2] for pair in similar_pairs(looks, features)}
    assert pairs == {(i, i + k) for i in range(20) for k in (1, 2) if i + k < 20}
    groups = similar(looks, features)
    assert 2 <= np.bincount(groups[:20]).max() <= 6
    assert sizes(groups[20:] - groups[:20].max() - 1) == [1] * 80


def test_what_is_joined_has_most_pairs_near():
    rng = np.random.default_rng(8)
    for _ in range(200):
        count = 12
        linked = np.triu(rng.random((count, count)) < 0.25, 1)
        first, second = np.nonzero(linked)
        away = rng.uniform(4, 12, len(first)).astype(np.float32)
        near = rooms._Near(first, second, away)
        parents = list(range(count))
        rooms._join_where_most_are_near(parents, near)
        # The slow way: the nearest pair first, counting the pairs between two sets each time.
        sets = {row: {row} for row in range(count)}
        for k in np.argsort(away, kind="stable"):
            one, other = sets[first[k]], sets[second[k]]
            between = sum(bool(linked[min(a, b), max(a, b)]) for a in one for b in other)
            if one is not other and 2 * between >= len(one) * len(other):
                merged = one | other
                sets.update(dict.fromkeys(merged, merged))
        expected = joined(np.array([min(sets[row]) for row in range(count)]))
        assert rooms._numbered(parents).tolist() == expected.tolist()


@given(NUMBERS, st.integers(0, 1000))
def test_the_order_of_rows_changes_no_group_of_sure_pairs(count, seed):
    looks = random_looks(count, seed)
    looks = np.concatenate([looks, changed(looks[: count // 2], 2, seed)])
    order = np.random.default_rng(seed).permutation(len(looks))
    assert np.array_equal(
        together(similar(looks))[np.ix_(order, order)], together(similar(looks[order]))
    )


@pytest.mark.parametrize("cells", [1, 7, 10**6])
def test_blocks_of_any_size_find_the_same_pairs(monkeypatch, cells):
    looks = random_looks(12)
    looks = np.concatenate([looks, changed(looks, 2), looks[:3]])
    whole = similar_pairs(looks)
    monkeypatch.setattr(rooms, "_CELLS", cells)
    monkeypatch.setattr(rooms, "_PAIRS", 1 + cells)
    assert similar_pairs(looks) == whole and len(whole) >= 15
    assert all(pair.first < pair.second and 0 <= pair.similarity <= 1 for pair in whole)


def test_a_thousand_copies_are_one_group_and_few_pairs():
    looks = np.concatenate([np.repeat(random_looks(1), 1000, axis=0), random_looks(3, seed=2)])
    assert sizes(similar(looks)) == [1, 1, 1, 1000]
    assert len(similar_pairs(looks)) == 999


def test_nothing_and_one_picture_have_groups():
    assert similar(random_looks(0)).tolist() == [] and similar_pairs(random_looks(0)) == []
    assert similar(random_looks(1), np.ones((1, 2, 3), np.float32)).tolist() == [0]
    assert joined(np.arange(0)).tolist() == []


def test_memory_is_bounded():
    looks = random_looks(4000)
    tracemalloc.start()
    try:
        similar(looks)
        assert tracemalloc.get_traced_memory()[1] < 60e6  # all distances at once: 128 MB
    finally:
        tracemalloc.stop()


# ------------------------------------------------------------------------------------- real data


@pytest.mark.parametrize(
    ("name", "labels", "least", "most"),
    [("clothing-attributes", "labels.csv", 39, 45), ("dresses", "labels.txt", 15, 25)],
)
def test_on_real_photographs_groups_are_few_and_small(name, labels, least, most):
    """Seen by eye: 41 groups in the one, 19 in the other, all of one photograph each."""
    folder = real_data(name)
    table = read_table(folder / labels)
    paths = [folder / "images" / image for image in table.images]
    paths = [path for path in paths if path.is_file()]
    same = identical([content_hash(path) for path in paths])
    groups = similar(np.stack([look(decode(path)) for path in paths]))
    assert np.array_equal(joined(groups, same), groups)  # identical files look the same
    found = np.bincount(groups)
    assert least <= (found > 1).sum() <= most and found.max() <= 4
