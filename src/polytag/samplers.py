"""Which rows an epoch takes, in which order."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from polytag.config import SamplerConfig
from polytag.errors import UserError

_MOST = 10.0  # times a row is drawn in an epoch, on average: more, and it is learnt by heart


def epoch_order(
    values: NDArray[np.float32],
    config: SamplerConfig,
    *,
    batch: int,
    rng: np.random.Generator,
    losses: NDArray[np.floating] | None = None,
) -> NDArray[np.int64]:
    """Return the rows of one epoch; ``batch`` consecutive ones are a batch.

    With ``config.hard`` = h > 0 and losses, the last round(h n) places of every batch of n rows
    (the last batch may be shorter) are drawn anew: without replacement, with probability
    proportional to loss, from the rows that are not in the batch already. So mining puts no row
    twice into a batch, and the rows whose places it takes are left out of this epoch. A row
    without a loss yet counts as much as the hardest one.

    Args:
        values: float (N, K) in {1, 0, NaN}, N >= 1; NaN: not known.
        config: Kind of the base order, and h.
        batch: Rows in a batch, >= 1. Hard places take time in proportion to N for every batch.
        rng: Decides everything that is drawn; the same state gives the same order.
        losses: float (N,) >= 0, each row's loss when it was last trained on, NaN: never yet. None:
            the base order, as with h = 0. All NaN or all 0: hard places are drawn uniformly.

    Returns:
        int64 (N,) in 0 .. N - 1.

    Raises:
        UserError: ``losses`` is not (N,).

    Example:
        >>> values = np.ones((4, 1), dtype=np.float32)
        >>> order = epoch_order(values, SamplerConfig(), batch=2, rng=np.random.default_rng(0))
        >>> sorted(order.tolist())
        [0, 1, 2, 3]
    """
    order = SAMPLERS[config.kind](values, rng)
    if config.hard == 0 or losses is None:
        return order
    if losses.shape != order.shape:
        got, expected = str(losses.shape), str(order.shape)
        raise UserError("losses do not fit the rows", got=got, expected=expected)
    weights = _hardness(losses)
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]  # a view: what is drawn goes into the order
        places = round(config.hard * len(rows))
        if places:
            kept, rows = rows[:-places], rows[-places:]
            rows[:] = _draw(weights, places, kept, rng)
    return order


def shuffled(values: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.int64]:
    """Return every row once, int64 (N,).

    Example:
        >>> sorted(shuffled(np.zeros((3, 1), dtype=np.float32), np.random.default_rng(0)).tolist())
        [0, 1, 2]
    """
    return rng.permutation(len(values))


def rare(values: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.int64]:
    """Return N rows, int64 (N,), drawn with replacement with the weights of `rarity`.

    Example:
        >>> values = np.array([[1], [0]] * 500, dtype=np.float32)  # weights 2, 1, 2, 1, ...
        >>> order = rare(values, np.random.default_rng(0))
        >>> len(order), round(float(np.mean(order % 2 == 0)), 1)
        (1000, 0.7)
    """
    weights = rarity(values)
    return rng.choice(len(values), size=len(values), p=weights / weights.sum())


SAMPLERS: dict[str, Callable[[NDArray[np.float32], np.random.Generator], NDArray[np.int64]]] = {
    "shuffled": shuffled,
    "rare": rare,
}


def rarity(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return a weight for every row: how rare the rarest attribute is that it shows.

    The weight is the largest 1 / share over the attributes that the row shows, share = present
    cells / known cells of the attribute; a row that shows nothing weighs 1. It is the largest and
    not the sum, because a sum would draw a picture of many common attributes as often as one of a
    rare attribute, and pictures with few holes more often than the others.

    No row is expected more than 10 times an epoch: weights above w are cut to w, the largest for
    which that holds. A single picture of an attribute could else fill the epoch.

    Args:
        values: float (N, K) in {1, 0, NaN}; NaN: not known.

    Returns:
        float64 (N,), >= 1.

    Example:
        >>> rarity(np.array([[1, 1], [1, 0], [0, np.nan], [1, 0]], dtype=np.float32)).round(2)
        array([3.  , 1.33, 1.  , 1.33])
    """
    present = values == 1
    counts = present.sum(axis=0)
    inverse = (~np.isnan(values)).sum(axis=0) / np.maximum(counts, 1)
    every = np.broadcast_to(inverse, values.shape)
    weights: NDArray[np.float64] = np.max(every, axis=1, where=present, initial=1.0)
    return np.minimum(weights, _cap(weights))


def _cap(weights: NDArray[np.float64]) -> float:
    """Return the largest w for which no min(weight, w) is above 10 times the mean of them all.

    If the m largest weights are cut, w = 10 (m w + rest) / N, so w = 10 rest / (N - 10 m); the
    smallest m is right for which no other weight is above w.
    """
    ordered = np.sort(weights)[::-1]
    cut = np.arange(len(weights))
    cut = cut[_MOST * cut < len(weights)]
    rest = np.cumsum(ordered[::-1])[::-1][cut]
    caps = _MOST * rest / (len(weights) - _MOST * cut)
    return float(caps[np.argmax(ordered[cut] <= caps)])


def _hardness(losses: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return weights > 0 (N,) proportional to the losses, missing ones filled."""
    measured = np.isfinite(losses)
    largest = np.max(losses, where=measured, initial=0.0)
    if largest == 0:
        return np.ones(len(losses))
    filled: NDArray[np.float64] = np.where(measured, losses, largest) / largest
    return np.maximum(filled, 1e-9)  # rows of loss 0 come in when the others are used up


def _draw(
    weights: NDArray[np.float64], count: int, kept: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Draw rows one after the other, without replacement, from those that are not kept.

    Of exponential times with the weights as rates, the earliest are such a draw (Efraimidis &
    Spirakis 2006, "Weighted random sampling with a reservoir", algorithm A).
    """
    times = rng.exponential(size=len(weights)) / weights
    times[kept] = np.inf
    return np.argpartition(times, count - 1)[:count]
