"""How sure a number is: intervals in closed form, tests, and resampled groups.

Rows that belong together (two copies of one picture, two pictures of one patient) say less than as
many rows that do not, so what is drawn anew is groups, each with all its rows. A resample gives
every group a weight from the exponential distribution (the Bayesian bootstrap, Rubin, Annals of
Statistics 9, 1981). Drawing groups with replacement would give whole numbers of the same mean and
variance, but could leave out the only three present cells of an attribute. Positive weights leave
both classes in every resample of every attribute: one set of resamples serves all of them, and with
them means over attributes and differences between two models.

benchmarks/intervals.py measures on drawn data how often these intervals hold what they shall.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from polytag.metrics import BINS, Ranked, cell_losses, checked
from polytag.results import METRICS, TOGETHER

Floats = NDArray[np.float64]
Interval = tuple[float, float]

CONFIDENCE = 0.95
# 1,485 rows x 23 attributes take some 2 s on one core. 200 know a deviation to 5 %: that of 100,000
# rows is below .001 for most numbers, so that the error is below what is printed.
MOST_RESAMPLES = 2000
CHUNK = 2**19  # weights of rows held at a time, 4 MB: they and their sums stay in the cache
_NORMAL = NormalDist()


# ------------------------------------------------------------------------------------ closed forms


def ap_logit_interval(ap: float, present: int, confidence: float = CONFIDENCE) -> Interval:
    """Return the logit interval of an average precision over independent rows.

    expit(logit(AP) +- z / sqrt(n+ AP (1 - AP))) (Boyd, Eng & Page, ECML PKDD 2013). Where AP
    is 1, `all_right` of the present cells.

    Args:
        ap: In (0, 1].
        present: n+, the number of present cells.
        confidence: In (0, 1).

    Example:
        >>> low, high = ap_logit_interval(0.288, 67)
        >>> round(low, 4), round(high, 4)
        (0.1925, 0.407)
    """
    if ap == 1:
        return all_right(present, confidence), 1.0
    half = _z(confidence) / math.sqrt(present * ap * (1 - ap))
    return _expit(_logit(ap) - half), _expit(_logit(ap) + half)


def all_right(count: int, confidence: float = CONFIDENCE) -> float:
    """Return the least mean that leaves a fair chance of ``count`` numbers that are all 1.

    It is the exact binomial bound, which holds for a mean of any numbers in [0, 1]: where
    everything was right no resample is wrong, and none says how wrong it could be.

    Example:
        >>> round(all_right(13), 3)
        0.753
    """
    return float(((1 - confidence) / 2) ** (1 / count))


def clopper_pearson(
    errors: ArrayLike,
    n: ArrayLike,
    confidence: float = CONFIDENCE,
    side: Literal["both", "upper", "lower"] = "both",
) -> tuple[Floats, Floats]:
    """Return the exact binomial bounds of a rate (Clopper & Pearson, Biometrika 26, 1934).

    Args:
        errors: How often it happened; any shape, one with ``n``.
        n: How often it could have; 0 says nothing: 0 to 1.
        confidence: Of both bounds together, or of the one that ``side`` names; the other is then
            0 or 1.
        side: Which bound is wanted.

    Example:
        Without an error, 22 rows certify at most 10 % of them with confidence 90 %; 21 do not.

        >>> clopper_pearson([0, 0], [21, 22], 0.9, "upper")[1].round(4)
        array([0.1038, 0.0994])
    """
    from scipy.special import betaincinv  # only training certifies, and evaluating has no scipy

    errors, n = np.asarray(errors, np.float64), np.asarray(n, np.float64)
    tail = (1 - confidence) / 2 if side == "both" else 1 - confidence
    # The beta distributions have positive parameters only where the bound is not 0 or 1 anyway.
    low = np.where(errors > 0, betaincinv(np.maximum(errors, 1), n - errors + 1, tail), 0.0)
    high = np.where(errors < n, betaincinv(errors + 1, np.maximum(n - errors, 1), 1 - tail), 1.0)
    return (
        np.zeros_like(low) if side == "upper" else low,
        np.ones_like(high) if side == "lower" else high,
    )


def holm(p_values: ArrayLike) -> Floats:
    """Return p values adjusted for several tests (Holm, Scand. J. Statistics 6, 1979).

    Args:
        p_values: (K,); NaN where no test was made: it stays NaN and counts for nothing.

    Example:
        >>> holm([0.01, 0.04, float("nan"), 0.03])
        array([0.03, 0.06,  nan, 0.06])
    """
    p_values = np.asarray(p_values, np.float64)
    adjusted = np.full(p_values.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(p_values))
    order = tested[np.argsort(p_values[tested], kind="stable")]
    steps = p_values[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted


# ------------------------------------------------------------------------------------------ DeLong


def delong(values: ArrayLike, scores: ArrayLike) -> tuple[Floats, Floats]:
    """Return the AUCs of several scorings of the same independent rows, and their covariance.

    DeLong, DeLong & Clarke-Pearson, Biometrics 44, 1988, from midranks in O(N log N)
    (Sun & Xu, IEEE Signal Processing Letters 21, 2014).

    Args:
        values: (N,) in {1, 0, NaN}.
        scores: (N, R), one column a scoring; anything where ``values`` is NaN.

    Returns:
        (R,), NaN without both classes; (R, R), NaN without two cells of both.

    Example:
        >>> auc, covariance = delong([0, 0, 1, 1], [[0.1], [0.4], [0.35], [0.8]])
        >>> auc, covariance
        (array([0.75]), array([[0.125]]))
    """
    values, scores = np.asarray(values, np.float64), np.asarray(scores, np.float64)
    present, absent = scores[values == 1], scores[values == 0]
    m, n = len(present), len(absent)
    if not m or not n:
        return np.full(scores.shape[1], np.nan), np.full((scores.shape[1],) * 2, np.nan)
    ranks = np.apply_along_axis(_midranks, 0, np.concatenate([present, absent]))
    # Of each cell the share of cells of the other class that it is ranked rightly against.
    wins = (ranks[:m] - np.apply_along_axis(_midranks, 0, present)) / n
    losses = 1 - (ranks[m:] - np.apply_along_axis(_midranks, 0, absent)) / m
    if min(m, n) < 2:
        return wins.mean(axis=0), np.full((scores.shape[1],) * 2, np.nan)
    covariance = np.atleast_2d(np.cov(wins.T)) / m + np.atleast_2d(np.cov(losses.T)) / n
    return wins.mean(axis=0), covariance


def delong_interval(
    values: ArrayLike, scores: ArrayLike, confidence: float = CONFIDENCE
) -> Interval:
    """Return the interval of an AUC over independent rows, on the logit scale: within [0, 1].

    `delong` gives the variance; the quantile is Student's for the cells of the rarer class, as few
    of them know their own spread badly. Where AUC is 1 (or 0), `all_right` of the rarer class.

    Args:
        values: (N,) in {1, 0, NaN}, of both classes.
        scores: (N,); anything where ``values`` is NaN.
        confidence: In (0, 1).

    Example:
        >>> low, high = delong_interval([0, 0, 0, 1, 1, 1], [0.1, 0.3, 0.5, 0.4, 0.8, 0.9])
        >>> 0 < low < 8 / 9 < high < 1
        True
    """
    values = np.asarray(values, np.float64)
    auc, variance = delong(values, np.asarray(scores, np.float64)[:, None])
    rarer = int(min((values == 1).sum(), (values == 0).sum()))
    deviation = math.sqrt(variance[0, 0])
    return bounded_interval(float(auc[0]), deviation, rarer, confidence)


def _midranks(scores: Floats) -> Floats:
    """Return the rank of each score from 1, equal ones sharing their mean."""
    _, block, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks: Floats = (np.cumsum(counts) - (counts - 1) / 2)[block]
    return ranks


# ----------------------------------------------------------------------------------- from resamples


def bounded_interval(
    value: float,
    deviation: float,
    clusters: int,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Return a normal interval on the logit scale, of a mean of numbers in [0, 1].

    Args:
        value: In [0, 1]; at an end `all_right` says how far the other one may be.
        deviation: Standard deviation of ``value``.
        clusters: Independent things it rests on: Student's quantile for so many. One says nothing.
        confidence: In (0, 1).

    Example:
        >>> low, high = bounded_interval(0.9, 0.05, 1000)
        >>> round(low, 3), round(high, 3)
        (0.752, 0.964)
    """
    if clusters < 2:
        return 0.0, 1.0
    if not 0 < value < 1:
        reach = 1 - all_right(clusters, confidence)
        return (1 - reach, 1.0) if value else (0.0, reach)
    half = student(clusters, confidence) * deviation / (value * (1 - value))
    return _expit(_logit(value) - half), _expit(_logit(value) + half)


@dataclass(frozen=True)
class Draws:
    """What B resamples of the same groups score.

    Attributes:
        metrics: (B, K) by the name of the metric; NaN where no cell of the attribute is known, AP
            and AUC also where the known ones are of one class.
        gaps: (B, K, BINS) of the calibration bins, as `metrics.Ranked.measure` gives them.
        measured_gaps: (K, BINS) of the rows themselves.
        together: (B,) log loss, Hamming accuracy and exact match.
    """

    metrics: dict[str, Floats]
    gaps: Floats
    measured_gaps: Floats
    together: dict[str, Floats]


def resample(groups: ArrayLike, count: int, rng: np.random.Generator) -> Iterator[Floats]:
    """Yield weights of groups, (b, G) at a time, ``count`` in all; their mean is 1.

    Args:
        groups: int (N,): rows with one number are drawn together; G different numbers, whose
            weights come in the order of the numbers.
        count: How many resamples.
        rng: What they are drawn from: the same state gives the same weights, whatever is measured,
            so that numbers are paired which were drawn apart.

    Example:
        >>> [weights.shape for weights in resample([0, 0, 7], 5, np.random.default_rng(0))]
        [(5, 2)]
    """
    rows, number = len(np.asarray(groups)), len(np.unique(groups))
    chunk = max(16, CHUNK // max(rows, 1))
    for done in range(0, count, chunk):
        yield rng.exponential(size=(min(chunk, count - done), number))


def bootstrap(
    values: ArrayLike,
    probabilities: ArrayLike,
    decided: ArrayLike,
    groups: ArrayLike,
    *,
    count: int | None = None,
    seed: int = 0,
) -> Draws:
    """Measure every metric in resamples of the groups, the same ones for all attributes.

    Two models are compared by two calls with the same rows, groups, count and seed: then resample b
    of one is resample b of the other, and the spread of their difference is that of the two.

    Where decisions are counted, each of true and false positives, false and true negatives gets
    half a group more, also drawn: of independent rows that gives recall and precision Jeffreys'
    distribution, Beta(right + 1/2, wrong + 1/2), which knows that 5 of 5 is not certainty.

    Args:
        values: (N, K) in {1, 0, NaN}.
        probabilities: (N, K) in [0, 1]; anything where ``values`` is NaN.
        decided: bool (N, K): which cells are decided present.
        groups: int (N,): rows with one number belong together.
        count: How many resamples; None: 2,000, of large tables fewer.
        seed: Of the random numbers.

    Example:
        >>> draws = bootstrap([[1], [0], [1]], [[0.9], [0.2], [0.4]], [[True], [False], [False]],
        ...                   [0, 1, 2], count=500)
        >>> draws.metrics["recall"].shape, bool((draws.metrics["auc"] == 1).all())
        ((500, 1), True)
    """
    values, probabilities, known = checked(values, probabilities)
    decided, (_, groups) = np.asarray(decided, bool), np.unique(groups, return_inverse=True)
    if count is None:
        count = int(np.clip(1.6e8 / max(values.size, 1), 200, MOST_RESAMPLES))
    metrics = {name: np.full((count, values.shape[1]), np.nan) for name in METRICS}
    gaps = np.full((count, values.shape[1], BINS), np.nan)
    measured = np.full(gaps.shape[1:], np.nan)
    attributes = []
    for k in np.flatnonzero(known.any(axis=0)):
        there = known[:, k]
        cells = Ranked(values[there, k], probabilities[there, k], decided[there, k])
        members = groups[there][cells.order]
        measured[k] = cells.measure(np.ones((1, len(members))))[1][0]
        attributes.append((k, cells, members, len(members) / len(np.unique(members))))
    totals = _group_totals(values, probabilities, decided, groups)
    together = np.full((3, count), np.nan)
    prior, first = np.random.default_rng([seed, 1]), 0
    for weights in resample(groups, count, np.random.default_rng([seed, 0])):
        part = slice(first, first := first + len(weights))
        if known.any():
            loss, right, cells_known, whole, rows = (weights @ totals).T
            together[:, part] = loss / cells_known, right / cells_known, whole / rows
        for k, cells, members, size in attributes:
            half = size * prior.gamma(0.5, size=(len(weights), 4))
            found, gaps[part, k] = cells.measure(weights[:, members], half)
            for name, column in found.items():
                metrics[name][part, k] = column
    metrics["ece"] = np.abs(gaps).sum(axis=2)
    return Draws(metrics, gaps, measured, dict(zip(TOGETHER, together, strict=True)))


def _group_totals(values: Floats, probabilities: Floats, decided: Any, groups: Any) -> Floats:
    """Return of each group the loss, right cells, cells, rows all right and rows, (G, 5)."""
    known = ~np.isnan(values)
    losses = np.where(known, cell_losses(values, np.where(known, probabilities, 0.5)), 0)
    right = known & (decided == (values == 1))
    rows = known.any(axis=1)
    whole = rows & (right | ~known).all(axis=1)
    columns = losses.sum(axis=1), right.sum(axis=1), known.sum(axis=1), whole, rows
    return np.column_stack([np.bincount(groups, column) for column in columns])


def narrow(clusters: int) -> float:
    """Return how much too narrow means spread: Dirichlet's variance has m + 1 and not m - 1."""
    return float(np.sqrt((clusters + 1) / (clusters - 1))) if clusters > 1 else 1.0


def wider(clusters: NDArray[np.int64]) -> Floats:
    """Return how much wider each attribute's resamples must spread for the normal quantiles."""
    counts, normal = np.maximum(clusters, 2).tolist(), student(10**9)
    return np.array([narrow(m) * student(m) / normal for m in counts])


def _z(confidence: float) -> float:
    return _NORMAL.inv_cdf((1 + confidence) / 2)


def student(clusters: int, confidence: float = CONFIDENCE) -> float:
    """Return the two-sided quantile of Student's t for so many independent things.

    By the expansion in Abramowitz & Stegun, 26.7.5: beside the exact one .7 % too small for four
    things, and a fifth too small for two, where the interval spans nearly everything anyway.

    Example:
        >>> round(student(13), 3), round(student(10_000), 3)
        (2.179, 1.96)
    """
    freedom = clusters - 1
    z = _z(confidence)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + float(sum(term / freedom**power for power, term in enumerate(terms, start=1)))


def _logit(p: float) -> float:
    return math.log(p / (1 - p))


def _expit(z: float) -> float:
    return 1 / (1 + math.exp(-z))
