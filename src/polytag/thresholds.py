"""From which probability on an attribute is decided present: one threshold an attribute.

Thresholds are chosen on calibrated probabilities of cells that the model (and its calibration)
never saw. How well a threshold does is measured on rows that had no say in it: `nested_thresholds`.

**Best F.** Two estimates are joined on the logit scale. The one from labels is where F is best on
the known cells; a maximum over few cells jumps, so it is the mean over resamples. The one from
probabilities needs no label: where they are calibrated, the best expected F_b, F*, is reached by
deciding present from F* / (1 + b^2) on (Lipton, Elkan & Naryanaswamy, ECML 2014, theorem 1, there
for b = 1). It hardly moves, but goes wrong with the calibration. With n+ present cells the labels
get the weight n+ / (n+ + 100), and the result against the threshold that would be best for all
attributes together gets n+ / (n+ + 2). benchmarks/thresholds.py compares this with its
alternatives on drawn data.

**Precision, recall at least.** What a threshold promises is the lower end of a one-sided 90 %
score interval (Wilson, JASA 22, 1927) of its share on the known cells, counted together with a few
cells of the share that the probabilities expect. On drawn data about nine of ten such promises
held on new data; the plain share holds every other time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from polytag.errors import RecipeError, UserError
from polytag.metrics import checked

Floats = NDArray[np.float64]

# Present cells at which labels and probabilities count alike. Drawn data, 13 to 620 present of
# 1,744, calibration right and wrong: 30 to 100 were best, and 100 was least optimistic.
_LABELS = 100
# Present cells at which an attribute's own threshold counts as much as the common one. Drawn sets
# of 8 attributes: 1 to 3 were best for those with 5 to 20 present, from 7 on it did harm.
_OWN = 2
# Cells that the probabilities are worth beside the labels, and the one-sided 90 % quantile. Drawn
# data, 13 to 620 present cells, precision .6 and .9, recall .7 and .9: from 20 on precision was
# kept as often as promised (without, hardly ever in the worst case), while more than 5 make
# recall follow a wrong calibration.
_EXPECTED = {"precision": 30, "recall": 5}
_QUANTILE = 1.2816
_RESAMPLES = 200
# Cells that all resamples may hold. Beyond it there are fewer resamples (50 at least): a million
# cells leave so little noise that 50 say enough about it.
_WORK = 4 * 10**8
_CHUNK = 2**18  # cells of one chunk of resamples: what the processor's cache holds
_CUTS = 2000  # that are tried; with more, neighbours differ by half a percent of the cells above
_EDGE = 1e-6  # thresholds stay this far from 0 and 1

_FORMS = (
    "f1, f0.5 or f2 (best F), precision=0.9 or recall=0.9 (at least), cost=5 (a missed present "
    "cell costs five false alarms), prevalence (as many decided present as are), 0.5 (for all)"
)


@dataclass(frozen=True)
class Target:
    """What thresholds are chosen for.

    Attributes:
        kind: ``f``, ``precision``, ``recall``, ``cost``, ``prevalence`` or ``fixed``.
        value: Beta, the least precision or recall, the cost of a miss in false alarms, the
            threshold; 0 for ``prevalence``.
    """

    kind: str
    value: float


@dataclass(frozen=True)
class Threshold:
    """The threshold of one attribute.

    Attributes:
        value: In (0, 1): a probability of at least this is decided present.
        low: With ``high`` the middle 95 % of what resamples of the rows would have chosen; None
            where nothing was searched for.
        high: See ``low``.
        note: What there is to say, in words, or empty.
    """

    value: float
    low: float | None = None
    high: float | None = None
    note: str = ""


def parse_target(text: str) -> Target:
    """Return the target a text names.

    Raises:
        RecipeError: It names none, or a number is out of range.

    Example:
        >>> parse_target("f1"), parse_target("precision=0.9"), parse_target("0.5")
        (Target(kind='f', value=1.0), Target(kind='precision', value=0.9),
         Target(kind='fixed', value=0.5))
    """
    plain = text.strip().lower()
    number = r"(\d+\.?\d*|\.\d+)"
    if plain == "prevalence":
        return Target("prevalence", 0.0)
    forms = {"f": f"f{number}", "fixed": number}
    forms |= {kind: f"{kind}={number}" for kind in ("precision", "recall", "cost")}
    for kind, form in forms.items():
        match = re.fullmatch(form, plain, re.ASCII)
        if match:
            value = float(match[1])
            if 0 < value < (100 if kind in ("f", "cost") else 1):
                return Target(kind, value)
    raise RecipeError("wrong target for thresholds", got=repr(text), expected=_FORMS)


def f_scores(hits: Floats, kept: Floats, beta: float = 1.0) -> Floats:
    """Return F_b of deciding the first cells present, for each number of them.

    (1 + b^2) hits / (kept + b^2 all hits). With true labels it is the F reached; with calibrated
    probabilities in their place, the F expected.

    Args:
        hits: (..., m) present cells among those decided present; the last: among all.
        kept: (..., m) cells decided present.
        beta: Above 0; recall weighs so many times as much as precision.

    Example:
        Calibrated probabilities spread evenly over (0, 1): F* is 3 - sqrt 5, and the best
        threshold its half.

        >>> p = (np.arange(1000)[::-1] + 0.5) / 1000
        >>> float(f_scores(np.cumsum(p), np.arange(1.0, 1001)).max().round(7))
        0.763932
    """
    square = beta**2
    return (1 + square) * hits / (kept + square * hits[..., -1:])


def choose_thresholds(
    values: ArrayLike,
    probabilities: ArrayLike,
    target: Target,
    *,
    groups: ArrayLike | None = None,
    seed: int = 0,
) -> list[Threshold]:
    """Choose a threshold for each attribute, on its known cells.

    Args:
        values: (N, K) in {1, 0, NaN}.
        probabilities: (N, K) in [0, 1], calibrated, of rows that the model never saw; a cell
            where it is NaN counts as not known.
        target: What for; see `parse_target`.
        groups: (N,) numbers of rows that belong together: resamples draw them together. None:
            each row is its own group.
        seed: Of the resamples.

    Returns:
        K thresholds. Where an attribute has not both classes, the common threshold (for best F)
        or .5, and a note.

    Raises:
        UserError: Shapes differ, or a known cell holds something else.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> p = rng.beta(0.5, 5, size=(2000, 1))
        >>> chosen, = choose_thresholds(rng.random(p.shape) < p, p, Target("f", 1.0))
        >>> 0.15 < chosen.low < chosen.value < chosen.high < 0.3
        True
    """
    values, probabilities, known = known_cells(values, probabilities)
    attributes = values.shape[1]
    if target.kind in ("fixed", "cost"):
        # Calibrated: missing costs p times the price, a false alarm 1 - p; equal at 1 / (1 + price)
        value = target.value if target.kind == "fixed" else 1 / (1 + target.value)
        return [Threshold(value)] * attributes
    member = members(groups, len(values))
    weights = _resamples(member, attributes, seed)
    columns = [
        _Column(values[rows, k], probabilities[rows, k], np.flatnonzero(rows), member)
        for k, rows in enumerate(known.T)
    ]
    learnable = [column for column in columns if column.present and column.absent]
    common = _common(learnable, target.value) if target.kind == "f" and learnable else None
    return [_choose(column, target, common, weights) for column in columns]


class _Column:
    """The known cells of an attribute, from the highest probability down."""

    def __init__(
        self,
        present: Floats,
        scores: Floats,
        rows: NDArray[np.int64],
        member: NDArray[np.int64],
    ) -> None:
        order = np.argsort(-scores, kind="stable")
        self.scores = np.clip(scores[order], _EDGE, 1 - _EDGE)
        self.labels, self.rows = present[order], rows[order]
        self.present, self.absent = int(present.sum()), int((1 - present).sum())
        # Equal probabilities are decided together: a cut lies below the last of each block.
        last = np.flatnonzero(np.diff(self.scores, append=-1))
        if len(last) > _CUTS:
            # One more cell among hundreds above a cut changes nothing that can be measured.
            ranks = np.geomspace(1, len(rows), _CUTS)
            last = last[np.unique(np.searchsorted(last, ranks - 1))]
        self.starts = np.append(0, last[:-1] + 1)  # the first cell of each block
        below = np.append(self.scores, 0)[last + 1]
        cuts = np.clip((self.scores[last] + below) / 2, _EDGE, 1 - _EDGE)
        self.cuts: Floats = np.log(cuts / (1 - cuts))
        # Rows of one group say less than as many others: bounds count groups.
        self.independent = len(np.unique(member[rows])) / max(len(rows), 1)

    def sums(self, weights: Floats | None = None) -> _Sums:
        """Count what stands above each cut, in each of B weightings (B, N) of all rows."""
        one = np.ones((1, len(self.rows)))
        cells = one if weights is None else np.take(weights, self.rows, axis=1)

        def above(cells: Floats) -> Floats:
            total: Floats = np.cumsum(np.add.reduceat(cells, self.starts, axis=1), axis=1)
            return total

        return _Sums(above(cells), above(cells * self.labels), above(cells * self.scores))


@dataclass(frozen=True)
class _Sums:
    """Above each of m cuts, in each of B resamples: (B, m), the last cut below everything."""

    kept: Floats  # cells
    hits: Floats  # present cells
    expected: Floats  # the sum of their probabilities


def _choose(
    column: _Column, target: Target, common: float | None, weights: list[Floats]
) -> Threshold:
    """Choose one attribute's threshold; ``common`` is a logit, and there is one for best F."""
    if not column.present or not column.absent:
        which = "present" if column.absent else "absent"
        known = len(column.labels)
        lacking = f"no {which} cell among {known} known" if known else "no known cell"
        if common is None:
            return Threshold(0.5, note=f"{lacking} to choose a threshold by: it is .5")
        note = f"{lacking} to choose a threshold by: it is the one best for the others together"
        return Threshold(_expit(common), note=note)
    plain, note = column.sums(), ""
    parts = (column.sums(chunk) for chunk in weights)
    if common is not None:  # best F
        by_labels, by_scores = _best_f(column, parts, target.value)
        share = column.present / (column.present + _LABELS)
        own = column.present / (column.present + _OWN)
        _, steady = _best_f(column, [plain], target.value)
        value = own * (share * by_labels.mean() + (1 - share) * steady[0]) + (1 - own) * common
        drawn = own * (share * by_labels + (1 - share) * by_scores) + (1 - own) * common
    elif target.kind == "prevalence":
        value = _as_many(column, plain)[0]
        drawn = np.concatenate([_as_many(column, part) for part in parts])
    else:
        logits, bound = _at_least(column, plain, target)
        value = logits[0]
        drawn = np.concatenate([_at_least(column, part, target)[0] for part in parts])
        if bound[0] < target.value:
            note = (
                f"no threshold promises {target.kind} {target.value:g} here: the most is "
                f"{np.floor(bound[0] * 100) / 100:.2f} (in 9 of 10 cases), which this one promises"
            )
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Threshold(_expit(value), _expit(min(low, value)), _expit(max(high, value)), note)


def _best_f(
    column: _Column, parts: Iterator[_Sums] | list[_Sums], beta: float
) -> tuple[Floats, Floats]:
    """Return in each resample the logit of best F, by labels and by probabilities, (B,) each."""
    by_labels, by_scores = [], []
    for sums in parts:
        by_labels.append(column.cuts[f_scores(sums.hits, sums.kept, beta).argmax(axis=1)])
        best = f_scores(sums.expected, sums.kept, beta).max(axis=1) / (1 + beta**2)
        best = np.clip(best, _EDGE, 1 - _EDGE)
        by_scores.append(np.log(best / (1 - best)))
    return np.concatenate(by_labels), np.concatenate(by_scores)


def _as_many(column: _Column, sums: _Sums) -> Floats:
    """Return in each resample the cut with as many cells above it as are present."""
    nearest: Floats = column.cuts[np.abs(sums.kept - sums.hits[:, -1:]).argmin(axis=1)]
    return nearest


def _at_least(column: _Column, sums: _Sums, target: Target) -> tuple[Floats, Floats]:
    """Return in each resample the cut that keeps precision or recall, and its bound, (B,) each.

    Precision: the lowest cut whose bound is high enough; recall: the highest. If there is none,
    the cut with the highest bound.
    """
    if target.kind == "precision":
        share, expected, cells = sums.hits / sums.kept, sums.expected / sums.kept, sums.kept
    else:
        cells = sums.hits[:, -1:]
        share, expected = sums.hits / cells, sums.expected / sums.expected[:, -1:]
    cells = cells * column.independent
    more, z = _EXPECTED[target.kind], _QUANTILE**2
    share, cells = (share * cells + expected * more) / (cells + more), cells + more
    spread = np.maximum(share * (1 - share) / cells, 0) + z / (4 * cells**2)
    bound = (share + z / (2 * cells) - _QUANTILE * np.sqrt(spread)) / (1 + z / cells)
    good = bound >= target.value
    last = good.shape[1] - 1
    found = last - good[:, ::-1].argmax(axis=1) if target.kind == "precision" else good.argmax(1)
    at = np.where(good.any(axis=1), found, bound.argmax(axis=1))
    return column.cuts[at], np.take_along_axis(bound, at[:, None], axis=1)[:, 0]


def _common(columns: list[_Column], beta: float) -> float:
    """Return the logit of the threshold with the best mean of expected F over attributes."""
    grid = np.linspace(4, -8, 241)  # .982 to .0003: the best threshold for F1 is at most .5
    total = np.zeros_like(grid)
    for column in columns:
        kept = np.searchsorted(-column.scores, -1 / (1 + np.exp(-grid)), side="right")
        kept = np.append(kept, len(column.scores))
        hits = np.concatenate([[0.0], np.cumsum(column.scores)])[kept]
        total += f_scores(hits, kept.astype(np.float64), beta)[:-1]
    return float(grid[total.argmax()])


def _resamples(member: NDArray[np.int64], attributes: int, seed: int) -> list[Floats]:
    """Return chunks (B, N) of row weights: each group's, from the exponential distribution.

    Rubin, Annals of Statistics 9, 1981. Unlike whole numbers, positive weights leave every
    attribute its present cells, however few.
    """
    rows = len(member)
    count = int(np.clip(_WORK // max(rows * attributes, 1), 50, _RESAMPLES))
    rng = np.random.default_rng(seed)
    size = max(_CHUNK // max(rows, 1), 1)
    return [
        rng.exponential(size=(min(size, count - start), int(member.max(initial=-1)) + 1))[:, member]
        for start in range(0, count, size)
    ]


def known_cells(
    values: ArrayLike, probabilities: ArrayLike
) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Return both as float64, and what is known; a cell of probability NaN is not.

    Raises:
        UserError: See `polytag.metrics.checked`.

    Example:
        >>> known_cells([[1, 0], [1, np.nan]], [[0.9, np.nan], [0.8, 0.1]])[2].tolist()
        [[True, False], [True, False]]
    """
    values, probabilities = np.asarray(values, np.float64), np.asarray(probabilities, np.float64)
    if values.shape == probabilities.shape:
        values = np.where(np.isnan(probabilities), np.nan, values)
    return checked(values, probabilities)


def members(groups: ArrayLike | None, rows: int) -> NDArray[np.int64]:
    """Return the number of each row's group, from 0; without groups each row is its own.

    Raises:
        UserError: ``groups`` are not one a row.

    Example:
        >>> members([7, 3, 7], 3), members(None, 2)
        (array([1, 0, 1]), array([0, 1]))
    """
    if groups is None:
        return np.arange(rows)
    if np.shape(groups) != (rows,):
        raise UserError("wrong groups", got=f"{np.shape(groups)}", expected=f"({rows},)")
    return np.unique(groups, return_inverse=True)[1].astype(np.int64)


def _expit(logit: float) -> float:
    return float(np.clip(1 / (1 + np.exp(-logit)), _EDGE, 1 - _EDGE))
