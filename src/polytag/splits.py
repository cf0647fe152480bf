"""Parts of a table: groups undivided, every attribute's classes and holes spread evenly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from polytag.errors import UserError

_TRIES = 10  # one try can leave a rare class of 23 off by .27 of its share, ten by .18


def stratified_folds(
    values: NDArray[np.float32], groups: NDArray[np.int64], *, folds: int, seed: int
) -> NDArray[np.int64]:
    """Give every row one of several folds of equal size; see `stratified_parts`.

    Example:
        >>> values = np.array([[1], [1], [0], [0], [np.nan], [np.nan]], dtype=np.float32)
        >>> folds = stratified_folds(values, np.arange(6), folds=2, seed=0)
        >>> [int((folds[rows] == 0).sum()) for rows in (slice(0, 2), slice(2, 4), slice(4, 6))]
        [1, 1, 1]
    """
    return stratified_parts(values, groups, shares=[1 / folds] * folds, seed=seed)


def stratified_parts(
    values: NDArray[np.float32],
    groups: NDArray[np.int64],
    *,
    shares: Sequence[float],
    seed: int,
) -> NDArray[np.int64]:
    """Give every row a part by iterative stratification over groups.

    Sechidis, Tsoumakas and Vlahavas, "On the Stratification of Multi-label Data", ECML PKDD 2011,
    algorithm 1, on three columns an attribute (present, absent, not known) and on whole groups:
    the rarest column first, each of its groups to the part that needs it most. That unknown cells
    are a column of their own keeps the prevalence of the known ones even between parts. Of
    several tries the one is taken whose worst class is most even.

    Args:
        values: float (N, K) in {0, 1, NaN}; NaN: not known.
        groups: int (N,); rows with one number stay together.
        shares: Of the rows, one a part, each above 0; together 1.
        seed: Decides ties and tries.

    Returns:
        int64 (N,) in 0 .. parts - 1. The same input and seed give the same parts.

    Raises:
        UserError: Fewer groups than parts.

    Example:
        >>> values = np.tile(np.array([[1], [0]], dtype=np.float32), (50, 1))
        >>> parts = stratified_parts(values, np.arange(100), shares=[0.8, 0.2], seed=0)
        >>> int((parts == 1).sum()), float(values[parts == 1].mean())
        (20, 0.5)
    """
    counts = _group_counts(values, groups)
    if len(counts) < len(shares):
        raise UserError(
            "too few different pictures to split",
            got=str(len(counts)),
            expected=f"at least {len(shares)}, one a part",
            fix="label more pictures, or set split.folds lower",
        )
    rng = np.random.default_rng(seed)
    wanted = np.array(shares, dtype=float)
    tries = [_assign(counts, wanted, rng) for _ in range(_TRIES)]
    return min(tries, key=lambda found: _unevenness(counts, found, wanted))[groups]


def _assign(
    counts: NDArray[np.int64], shares: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Return a part for every group."""
    tiebreak = rng.random((len(counts), len(shares)))
    order = rng.permutation(len(counts))
    # What each part still needs; the last column counts rows, so that sizes are evened out too.
    need = np.outer(shares, counts.sum(axis=0, dtype=float))
    part_of_group = np.full(len(counts), -1, dtype=np.int64)
    remaining = (counts > 0).sum(axis=0)
    while (open_columns := np.flatnonzero(remaining > 0)).size:
        column = open_columns[np.argmin(remaining[open_columns])]
        members = order[(counts[order, column] > 0) & (part_of_group[order] < 0)]
        # Large groups first: the small ones can still even out what they upset.
        for group in members[np.argsort(-counts[members, -1], kind="stable")]:
            keys = (tiebreak[group], need[:, -1], need[:, column])  # lexsort: last key first
            part = np.lexsort(keys)[-1]
            part_of_group[group] = part
            need[part] -= counts[group]
            remaining -= counts[group] > 0
    return part_of_group


def _unevenness(
    counts: NDArray[np.int64], part_of_group: NDArray[np.int64], shares: NDArray[np.float64]
) -> float:
    """Return the worst relative deviation of a class from its even share.

    A class of which a part's share is less than a cell cannot be even and has no say.
    """
    found = np.zeros((len(shares), counts.shape[1]))
    np.add.at(found, part_of_group, counts)
    classes = found[:, : 2 * (counts.shape[1] // 3)]  # present and absent
    even = np.outer(shares, classes.sum(axis=0))
    some = even >= 1
    return float(np.max(np.abs(classes - even)[some] / even[some], initial=0))


def _group_counts(values: NDArray[np.float32], groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return int (G, 3 K + 1): present, absent, unknown cells and rows of every group."""
    unknown = np.isnan(values)
    rows = np.ones((len(values), 1), dtype=bool)
    columns = np.concatenate([values == 1, values == 0, unknown, rows], axis=1)
    counts = np.zeros((int(groups.max(initial=-1)) + 1, columns.shape[1]), dtype=np.int64)
    np.add.at(counts, groups, columns)
    return counts
