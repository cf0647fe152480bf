"""The difference of two models on the same pictures, with an interval and a test.

The difference d is measured on resamples of groups of pictures, the same ones for both models
(`polytag.intervals`). Of an attribute whose rarer class is known in c groups, the resamples spread
by s; exponential weights make the spread of a mean of c numbers too small by the square root of
(c - 1) / (c + 1), which is put right. The interval is d +- t s, and d / s is held against Student's
distribution with c - 1 degrees of freedom; for a mean over attributes with those of Welch and
Satterthwaite (Biometrics Bulletin 2, 1946, equation 17).

Of drawn pairs of models of one quality, whose numbers differ by chance, 0 to 2 of 100 were called
different in any attribute with 8 present of 400, 2 to 6 with 20 of 500, 4 to 8 with 67 of 1,000
(benchmarks/comparison.py; 5 are promised). It is about these predictions: another seed's differ.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from polytag.intervals import CONFIDENCE, bootstrap, holm
from polytag.metrics import average_precision, roc_auc

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

LEVEL = 1 - CONFIDENCE
METRICS = ("ap", "auc", "f1")
_RESAMPLES = 1000  # the deviation of a difference is then known to 2 %


@dataclass(frozen=True)
class Difference:
    """How far one number of a model is from the reference's, on the same pictures."""

    run: str
    metric: str  # ap, auc, f1
    attribute: str | None  # None: the mean over attributes
    reference: float
    value: float
    low: float = math.nan  # of value - reference
    high: float = math.nan
    p_value: float = math.nan
    p_holm: float = math.nan  # over all tests of this kind in the comparison
    reason: str = ""  # why there is no test

    @property
    def difference(self) -> float:
        """Value less the reference's."""
        return self.value - self.reference

    @property
    def words(self) -> str:
        """``better`` and ``worse`` with evidence only."""
        if not self.p_holm < LEVEL:
            return "no evidence of a difference"
        return "better" if self.difference > 0 else "worse"

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        content = asdict(self) | {"difference": self.difference, "words": self.words}
        return {key: None if value != value else value for key, value in content.items()}  # NaN


@dataclass(frozen=True, eq=False)
class Said:
    """What one model said about N pictures.

    Attributes:
        run: Its name.
        probabilities: float64 (N, K), no NaN where a cell is known.
        present: bool (N, K): what it decided.
    """

    run: str
    probabilities: Floats
    present: Bools


def numbers(values: Floats, said: Said) -> dict[str, Floats]:
    """Return METRICS of each attribute, (K,), NaN where known cells are not of both classes.

    Args:
        values: (N, K) in {1, 0, NaN}.
        said: About them.

    Example:
        >>> found = numbers(np.array([[1.0], [0.0]]), Said("a", np.array([[0.9], [0.2]]),
        ...                                                np.array([[True], [True]])))
        >>> {metric: round(float(value[0]), 3) for metric, value in found.items()}
        {'ap': 1.0, 'auc': 1.0, 'f1': 0.667}
    """
    present, known = values == 1, ~np.isnan(values)
    both = present.any(axis=0) & (values == 0).any(axis=0)
    cells = (said.present & known).sum(axis=0) + present.sum(axis=0)
    found = {
        "ap": average_precision(values, said.probabilities),
        "auc": roc_auc(values, said.probabilities),
        "f1": 2 * (said.present & present).sum(axis=0) / np.maximum(cells, 1),
    }
    return {metric: np.where(both, column, np.nan) for metric, column in found.items()}


def differences(
    names: Sequence[str], values: Floats, reference: Said, others: Sequence[Said], groups: Ints
) -> list[Difference]:
    """Compare models with a reference: macro AP and F1, then each attribute's AP and AUC.

    Args:
        names: The K attributes.
        values: (N, K) in {1, 0, NaN}; what was said about a cell that is not known changes nothing.
        reference: The model that the others are compared with.
        others: At least one.
        groups: int (N,): rows of one number are drawn together.

    Returns:
        For each of the others 2 + 2 K differences. p values are adjusted by Holm's rule over all
        macro numbers, over all APs and over all AUCs.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> values = (np.arange(200) < 50).astype(float)[:, None]
        >>> good, poor = (values + rng.normal(0, noise, (200, 1)) for noise in (0.3, 3.0))
        >>> good, poor = (Said(run, 1 / (1 + np.exp(-z)), z > 0.5)
        ...               for run, z in (("good", good), ("poor", poor)))
        >>> [d.words for d in differences(["red"], values, poor, [good], np.arange(200))]
        ['better', 'better', 'better', 'better']
    """
    clusters = _rarer_groups(values, groups)
    freedom = clusters - 1
    widened = np.sqrt((clusters + 1) / np.maximum(freedom, 1))
    before, there = numbers(values, reference), _draws(values, reference, groups)
    found: list[Difference] = []
    for said in others:
        after, here = numbers(values, said), _draws(values, said, groups)
        spread = {metric: widened * (here[metric] - there[metric]) for metric in METRICS}
        for metric in ("ap", "f1"):
            base = Difference(said.run, metric, None, mean(before[metric]), mean(after[metric]))
            found.append(_tested(base, *_joint(spread[metric], freedom)))
        for metric in ("ap", "auc"):
            for k, name in enumerate(names):
                sides = float(before[metric][k]), float(after[metric][k])
                base = Difference(said.run, metric, name, *sides)
                found.append(_tested(base, float(np.std(spread[metric][:, k])), freedom[k]))
    return _adjusted(found)


def _draws(values: Floats, said: Said, groups: Ints) -> Mapping[str, Floats]:
    """Return METRICS in resamples that are the same for every model, (B, K)."""
    return bootstrap(values, said.probabilities, said.present, groups, count=_RESAMPLES).metrics


def _joint(draws: Floats, freedom: Ints) -> tuple[float, float]:
    """Return the deviation of the mean over attributes, and its degrees of freedom."""
    there = ~np.isnan(draws).any(axis=0)
    parts = np.var(draws[:, there], axis=0)
    shares = (parts**2 / np.maximum(freedom[there], 1)).sum()
    together = float(parts.sum() ** 2 / shares) if shares else 1.0
    return float(np.std(draws[:, there].mean(axis=1))) if there.any() else math.nan, together


def _adjusted(found: list[Difference]) -> list[Difference]:
    kinds = np.array(["macro" if d.attribute is None else d.metric for d in found])
    p_values, adjusted = np.array([d.p_value for d in found]), np.full(len(found), np.nan)
    for kind in np.unique(kinds):
        adjusted[kinds == kind] = holm(p_values[kinds == kind])
    return [replace(d, p_holm=float(p)) for d, p in zip(found, adjusted, strict=True)]


def _tested(base: Difference, deviation: float, freedom: float) -> Difference:
    """Add the interval and the p value."""
    if math.isnan(base.difference):
        return replace(base, reason="the known cells are not of both classes")
    if freedom < 1:
        return replace(base, reason="one class is known in a single group of pictures")
    half = float(stdtrit(freedom, 1 - LEVEL / 2)) * deviation
    if deviation > 0:
        p_value = 2 * float(stdtr(freedom, -abs(base.difference) / deviation))
    else:
        p_value = 1.0 if base.difference == 0 else math.nan
    low, high = base.difference - half, base.difference + half
    return replace(base, low=low, high=high, p_value=p_value)


def _rarer_groups(values: Floats, groups: Ints) -> Ints:
    """Return in how many groups each attribute's rarer class is known, int64 (K,)."""
    _, numbered = np.unique(groups, return_inverse=True)
    counts = []
    for kind in (1, 0):
        there = np.zeros((numbered.max() + 1, values.shape[1]), dtype=bool)
        np.logical_or.at(there, numbered, values == kind)
        counts.append(there.sum(axis=0))
    rarer: Ints = np.minimum(*counts)
    return rarer


def mean(column: Floats) -> float:
    """Return the mean of what is defined; NaN if nothing is."""
    there = column[~np.isnan(column)]
    return float(there.mean()) if there.size else math.nan
