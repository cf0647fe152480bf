"""Rows that belong together: they stay on one side of every split."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from polytag.looks import codes, differences, mirrored, plain

# All fixed on drawn pictures (garments on backgrounds, garments on plain white, noisy plain ones:
# 404,250 pairs of different pictures) and copies of them: saved again at quality 40, shrunk to a
# third, enlarged, stretched, mirrored, 12 % darker or brighter, 15 % more contrast, cropped.
_COPY_BITS, _COPY_LEVELS = 8, 3.0  # a copy by its look alone: no different pair came so near
_NEAR_BITS, _NEAR_LEVELS = 16, 12.0  # a copy if the features say so, too ...
_NEAR_COSINE = 0.85  # ... from here on, less their mean: 7 pairs that look alike came so near
_ROWS_FOR_A_MEAN = 50  # with fewer rows the features' mean says little, and looks decide alone
_CELLS = 1_000_000  # of a block of comparisons: 8 MB
_PAIRS = 4096  # whose features are looked at at a time: some 50 MB each

Ints = NDArray[np.int64]
Looks = NDArray[np.uint8]
Floats = NDArray[np.float32]


class Pair(NamedTuple):
    """Two rows whose pictures are copies of one another.

    Attributes:
        first: The lower row.
        second: The other row.
        similarity: Of the two pictures at 8 x 8 pixels, 1 for no difference, brightness aside.
    """

    first: int
    second: int
    similarity: float


def identical(hashes: Sequence[str]) -> Ints:
    """Number the groups of byte-identical pictures, in the order in which they first appear.

    Args:
        hashes: One content hash a row, N of them.

    Returns:
        int64 (N,): the number of each row's group, from 0.

    Example:
        >>> identical(["a", "b", "a"]).tolist()
        [0, 1, 0]
    """
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(text, len(numbers)) for text in hashes], dtype=np.int64)


def by_column(texts: Sequence[str]) -> Ints:
    """Number the groups of rows with one text (a patient, a product, a video).

    Args:
        texts: One a row, N of them; space around it does not count, and a row without a text is
            a group of its own.

    Returns:
        int64 (N,), as `identical`.

    Example:
        >>> by_column(["ann", "", "bob", " ann", ""]).tolist()
        [0, 1, 2, 0, 3]
    """
    # No text that was stripped begins with a space.
    return identical([text.strip() or f" {row}" for row, text in enumerate(texts)])


def joined(*groupings: Ints) -> Ints:
    """Join groupings of the same rows: what one of them holds together stays together.

    Args:
        groupings: int (N,) each; at least one.

    Returns:
        int64 (N,), numbered from 0 in the order in which groups first appear.

    Example:
        >>> joined(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 2])).tolist()
        [0, 0, 0, 1]
    """
    parents = list(range(len(groupings[0])))
    for groups in groupings:
        first: dict[int, int] = {}
        for row, group in enumerate(groups.tolist()):
            _join(parents, first.setdefault(group, row), row)
    return _numbered(parents)


def similar(looks: Looks, features: Floats | None = None) -> Ints:
    """Number the groups of pictures that are copies of one another, mirrored ones too.

    Pictures with the very same look belong together. Other copies join two groups, the nearest
    first, if at least half of all pairs between the two are copies: a chain of which each picture
    is near the next one only, such as a film, is cut, and grows into no giant group. Pictures
    that are of one colour at 8 x 8 pixels are like no other.

    Args:
        looks: uint8 (N, 8, 8, 3), see `polytag.looks.look`.
        features: float32 (N, V, D), the first view plain and the second, if any, mirrored; or
            (N, D), plain. None: copies are found that were saved again, resized, darkened or
            mirrored, but hardly cropped ones.

    Returns:
        int64 (N,), as `identical`.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> looks = rng.integers(0, 200, (3, 8, 8, 3), dtype=np.uint8)
        >>> similar(np.concatenate([looks, looks[:2] + 1, looks[2:, :, ::-1]])).tolist()
        [0, 1, 2, 0, 1, 2]
    """
    same = _same(looks)
    near = _near(looks, same, features)
    parents = same.tolist()
    _join_where_most_are_near(parents, near)
    return _numbered(parents)


def similar_pairs(looks: Looks, features: Floats | None = None) -> list[Pair]:
    """Return the pairs that `similar` builds its groups on, the most similar first.

    Of pictures with the very same look each is paired with the first of them only.

    Args:
        looks: As for `similar`.
        features: As for `similar`.

    Example:
        >>> looks = np.full((3, 8, 8, 3), 100, np.uint8)
        >>> looks[::2, :4] = 0
        >>> similar_pairs(looks)
        [Pair(first=0, second=2, similarity=1.0)]
    """
    near = _near(looks, _same(looks), features)
    order = np.lexsort((near.second, near.first, near.away))
    similarity = 1 - near.away.astype(np.float64) / 255
    columns = (column[order].tolist() for column in (near.first, near.second, similarity))
    return [Pair(*row) for row in zip(*columns, strict=True)]


class _Near(NamedTuple):
    """P pairs of rows: the rows, and their difference in grey levels."""

    first: Ints
    second: Ints
    away: Floats


def _same(looks: Looks) -> Ints:
    """Return int64 (N,): the first row of the very same look; of a plain one the row itself."""
    texts = [one.tobytes().hex() for one in looks]
    for row in np.flatnonzero(plain(looks)):
        texts[row] = f"row {row}"
    numbers = identical(texts)
    first: Ints = np.unique(numbers, return_index=True)[1]
    return first[numbers]


def _near(looks: Looks, same: Ints, features: Floats | None) -> _Near:
    """Return the pairs of copies; rows of the very same look count as the first of them."""
    views, mean = None, None
    if features is not None and len(looks) >= _ROWS_FOR_A_MEAN:
        views = features.reshape(len(looks), -1, features.shape[-1])
        mean = views[:, 0].mean(axis=0)
    again = np.flatnonzero(same != np.arange(len(looks)))
    rows = np.flatnonzero((same == np.arange(len(looks))) & ~plain(looks))
    found = [_Near(same[again], again, np.zeros(len(again), dtype=np.float32))]
    for one, other, bits in _alike(looks[rows], _COPY_BITS if views is None else _NEAR_BITS):
        first, second = rows[one], rows[other]
        image, other_image = looks[first], looks[second]
        away = np.minimum(
            differences(other_image, image), differences(other_image, mirrored(image))
        )
        near = (bits <= _COPY_BITS) & (away <= _COPY_LEVELS)
        if views is not None and mean is not None:
            ask = np.flatnonzero(~near & (away <= _NEAR_LEVELS))
            near[ask] = _cosines(views, mean, first[ask], second[ask]) >= _NEAR_COSINE
        found.append(_Near(first[near], second[near], away[near]))
    return _Near(*(np.concatenate(column) for column in zip(*found, strict=True)))


def _alike(looks: Looks, most: int) -> Iterator[tuple[Ints, Ints, NDArray[np.uint8]]]:
    """Yield rows, later rows and bits between them where these, or a mirrored one's, are few."""
    plain, turned = codes(looks), codes(mirrored(looks))
    start = 0
    while start < len(looks):
        stop = start + max(1, _CELLS // (len(looks) - start))
        later = plain[start:]
        bits = np.bitwise_count(plain[start:stop, None] ^ later)
        np.minimum(bits, np.bitwise_count(turned[start:stop, None] ^ later), out=bits)
        one, other = np.nonzero(bits <= most)
        after = other > one
        one, other = one[after], other[after]
        for part in range(0, len(one), _PAIRS):
            rows, others = one[part : part + _PAIRS], other[part : part + _PAIRS]
            yield rows + start, others + start, bits[rows, others]
        start = stop


def _cosines(features: Floats, mean: Floats, first: Ints, second: Ints) -> Floats:
    """Return the cosine of every pair's features without their mean, the larger of both views."""
    others = features[second, 0] - mean
    best = np.full(len(first), -1, dtype=np.float32)
    for view in range(features.shape[1]):
        ones = features[first, view] - mean
        size = np.linalg.norm(ones, axis=1) * np.linalg.norm(others, axis=1)
        dot = np.einsum("pd,pd->p", ones, others)
        np.maximum(best, dot / np.maximum(size, np.finfo(np.float32).tiny), out=best)
    return best


def _join_where_most_are_near(parents: list[int], near: _Near) -> None:
    """Join groups, the nearest pair first, between which at least half of all pairs are near."""
    order = np.argsort(near.away, kind="stable")
    pairs = list(zip(near.first[order].tolist(), near.second[order].tolist(), strict=True))
    # Whoever is joined already counts as one: only the first of them stands in pairs.
    sizes = dict.fromkeys(parents, 1)
    links: dict[int, Counter[int]] = defaultdict(Counter)
    for one, other in pairs:
        a, b = parents[one], parents[other]
        if a != b:
            links[a][b] += 1
            links[b][a] += 1
    for one, other in pairs:
        a, b = _root(parents, one), _root(parents, other)
        if a == b or 2 * links[a][b] < sizes[a] * sizes[b]:
            continue
        kept = _join(parents, a, b)
        gone = a + b - kept
        sizes[kept] += sizes.pop(gone)
        for third, count in links.pop(gone).items():
            del links[third][gone]
            if third != kept:
                links[kept][third] += count
                links[third][kept] += count


def _root(parents: list[int], row: int) -> int:
    while parents[row] != row:
        parents[row] = parents[parents[row]]
        row = parents[row]
    return row


def _join(parents: list[int], one: int, other: int) -> int:
    """Join the groups of two rows and return the group's root, its lowest row."""
    low, high = sorted((_root(parents, one), _root(parents, other)))
    parents[high] = low
    return low


def _numbered(parents: list[int]) -> Ints:
    return identical([str(_root(parents, row)) for row in range(len(parents))])
