"""Folds: groups undivided, every attribute's classes and holes spread evenly."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from polytag.errors import UserError

_TRIES = 10  # one try can leave a rare class of 23 off by .27 of its share, ten by .18


def stratified_folds(
    values: NDArray[np.float32], groups: NDArray[np.int64], *, folds: int, seed: int
) -> NDArray[np.int64]:
    """Give every row a fold by iterative stratification over groups.

    Sechidis, Tsoumakas and Vlahavas, "On the Stratification of Multi-label Data", ECML PKDD 2011,
    algorithm 1, on three columns an attribute (present, absent, not known) and on whole groups:
    the rarest column first, each of its groups to the fold that needs it most. That unknown cells
    are a column of their own keeps the prevalence of the known ones even between folds. Of
    several tries the one is taken whose worst class is most even.

    Args:
        values: float (N, K) in {0, 1, NaN}; NaN: not known.
        groups: int (N,); rows with one number stay together.
        folds: Number of folds.
        seed: Decides ties and tries.

    Returns:
        int64 (N,) in 0 .. folds - 1. The same input and seed give the same folds.

    Raises:
        UserError: Fewer groups than folds.

    Example:
        >>> values = np.array([[1], [1], [0], [0], [np.nan], [np.nan]], dtype=np.float32)
        >>> folds = stratified_folds(values, np.arange(6), folds=2, seed=0)
        >>> [int((folds[rows] == 0).sum()) for rows in (slice(0, 2), slice(2, 4), slice(4, 6))]
        [1, 1, 1]
    """
    counts = _group_counts(values, groups)
    if len(counts) < folds:
        raise UserError(
            "too few different pictures to split",
            got=str(len(counts)),
            expected=f"at least {folds}, one a fold",
            fix="label more pictures, or set split.folds lower",
        )
    rng = np.random.default_rng(seed)
    tries = [_assign(counts, folds, rng) for _ in range(_TRIES)]
    return min(tries, key=lambda found: _unevenness(counts, found, folds))[groups]


def _assign(counts: NDArray[np.int64], folds: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return a fold for every group."""
    tiebreak = rng.random((len(counts), folds))
    order = rng.permutation(len(counts))
    # What each fold still needs; the last column counts rows, so that sizes are evened out too.
    need = np.repeat(counts.sum(axis=0, dtype=float)[None] / folds, folds, axis=0)
    fold_of_group = np.full(len(counts), -1, dtype=np.int64)
    remaining = (counts > 0).sum(axis=0)
    while (open_columns := np.flatnonzero(remaining > 0)).size:
        column = open_columns[np.argmin(remaining[open_columns])]
        members = order[(counts[order, column] > 0) & (fold_of_group[order] < 0)]
        # Large groups first: the small ones can still even out what they upset.
        for group in members[np.argsort(-counts[members, -1], kind="stable")]:
            keys = (tiebreak[group], need[:, -1], need[:, column])  # lexsort: last key first
            fold = np.lexsort(keys)[-1]
            fold_of_group[group] = fold
            need[fold] -= counts[group]
            remaining -= counts[group] > 0
    return fold_of_group


def _unevenness(counts: NDArray[np.int64], fold_of_group: NDArray[np.int64], folds: int) -> float:
    """Return the worst relative deviation of a class from its even share.

    A class of fewer cells than folds cannot be even and has no say.
    """
    found = np.zeros((folds, counts.shape[1]))
    np.add.at(found, fold_of_group, counts)
    classes = found[:, : 2 * (counts.shape[1] // 3)]  # present and absent
    even = classes.mean(axis=0)
    deviation = np.abs(classes - even).max(axis=0, initial=0)
    return float(np.max(deviation[even >= 1] / even[even >= 1], initial=0))


def _group_counts(values: NDArray[np.float32], groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return int (G, 3 K + 1): present, absent, unknown cells and rows of every group."""
    unknown = np.isnan(values)
    rows = np.ones((len(values), 1), dtype=bool)
    columns = np.concatenate([values == 1, values == 0, unknown, rows], axis=1)
    counts = np.zeros((int(groups.max(initial=-1)) + 1, columns.shape[1]), dtype=np.int64)
    np.add.at(counts, groups, columns)
    return counts
