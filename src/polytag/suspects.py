"""Which known labels are likely wrong, by what a model that never saw them thinks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

# Cells of either class. Confident learning estimates how sure a model is of a class from that
# class's own cells, and its authors warn of rare classes.
FEWEST = 20


def eligible(
    values: NDArray[np.floating], learnable: Sequence[bool], groups: Ints
) -> NDArray[np.float32]:
    """Return float32 (N, K): the labels to look at; NaN elsewhere.

    Only of attributes that are learnable and not rare: where pictures carry nothing, a model's
    doubt says only which class is rare. Identical pictures that contradict each other are left
    out, as one of them is wrong whatever a model thinks.

    Args:
        values: (N, K) in {1, 0, NaN}.
        learnable: K.
        groups: int (N,): rows with one number have identical pictures.

    Example:
        >>> values = np.repeat([[1.0], [0.0]], 20, axis=0)
        >>> int(np.isnan(eligible(values, [True], np.arange(40))).sum())
        0
        >>> int(np.isnan(eligible(values, [False], np.arange(40))).sum())
        40
    """
    looked_at = np.where(conflicting(values, groups), np.nan, values)
    few = np.minimum((looked_at == 1).sum(axis=0), (looked_at == 0).sum(axis=0)) < FEWEST
    looked_at[:, few | ~np.array(learnable, dtype=bool)] = np.nan
    return looked_at.astype(np.float32)


def conflicting(values: NDArray[np.floating], groups: Ints) -> NDArray[np.bool_]:
    """Return bool (N, K): known cells of groups that hold both answers.

    Example:
        >>> values = np.array([[1.0], [0.0], [np.nan], [1.0]])
        >>> conflicting(values, np.array([0, 0, 0, 1])).ravel().tolist()
        [True, True, False, False]
    """
    both = np.ones((int(groups.max(initial=-1)) + 1, values.shape[1]), dtype=bool)
    for value in (0, 1):
        some = np.zeros_like(both)
        np.logical_or.at(some, groups, values == value)
        both &= some
    found: NDArray[np.bool_] = both[groups] & ~np.isnan(values)
    return found


def rank_cells(values: NDArray[np.floating], probabilities: Doubles) -> tuple[Ints, Ints]:
    """Order all known cells, the likeliest error first.

    By 1 - self-confidence: the probability that the cell says the opposite. If a share e of labels
    is flipped, a label y with probability p of its class is an error with odds
    e (1 - p) / ((1 - e) p), which falls with p: so for calibrated probabilities no other order of
    cells, of all attributes together, finds more of them.

    Args:
        values: (N, K) in {1, 0, NaN}; NaN: not known, never in the list.
        probabilities: float64 (N, K), out of fold and calibrated; cells with NaN are left out.

    Returns:
        Rows and columns, int64 (cells,).

    Example:
        >>> values = np.array([[1, np.nan], [0, 1], [1, 0]])
        >>> rows, columns = rank_cells(values, np.array([[0.9, 0.1], [0.8, 0.7], [0.4, 0.1]]))
        >>> list(zip(rows.tolist(), columns.tolist()))
        [(1, 0), (2, 0), (1, 1), (0, 0), (2, 1)]
    """
    rows, columns = np.nonzero(~np.isnan(values) & ~np.isnan(probabilities))
    p = probabilities[rows, columns]
    confidence = np.where(values[rows, columns] == 1, p, 1 - p)
    order = np.argsort(confidence, kind="stable")
    return rows[order], columns[order]


def suspected(values: NDArray[np.floating], probabilities: Doubles) -> NDArray[np.bool_]:
    """Return bool (N, K): what confident learning calls an error, attribute by attribute.

    A cell is suspected whose other class is at least as likely as it is, on average, for cells of
    that class (Northcutt, Jiang and Chuang, "Confident Learning", JAIR 2021, equation 2), by
    cleanlab, on known cells only.

    Example:
        >>> values = np.array([[1.0], [1.0], [0.0], [0.0], [0.0], [np.nan]])
        >>> p = np.array([[0.9], [0.8], [0.1], [0.2], [0.95], [0.99]])
        >>> suspected(values, p).ravel().tolist()
        [False, False, False, False, True, False]
    """
    from cleanlab.filter import find_label_issues

    found = np.zeros(values.shape, dtype=bool)
    usable = ~np.isnan(values) & ~np.isnan(probabilities)
    for k in range(values.shape[1]):
        rows = np.flatnonzero(usable[:, k])
        if len(np.unique(values[rows, k])) < 2:
            continue
        p = probabilities[rows, k]
        found[rows, k] = find_label_issues(
            values[rows, k].astype(np.int64),
            np.stack([1 - p, p], axis=1),
            filter_by="confident_learning",
            n_jobs=1,
        )
    return found
