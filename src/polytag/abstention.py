"""Unsure: between two cuts an attribute is left undecided, so that what is decided can be trusted.

A cut is certified where the exact binomial upper bound of the error among the cells beyond it
(present cells called absent, or the reverse) is at most what is allowed. Cuts are tested in an
order fixed without the labels, each a little less strict than the one before, up to the first that
fails. So one error rate holds for the whole sequence (fixed-sequence testing: Angelopoulos et al.,
"Learn then Test", arXiv 2110.01052, section 3), and the last cut that passed is taken.

The first cut is the one that the calibrated probabilities expect to pass most clearly, (allowed -
expected error) sqrt(cells) at its largest. The strictest cut of all is a bad start: of the first 45
cells one may be wrong by chance, and nothing is certified, where 500 with 5 errors would have
been. On drawn sets, calibrated as a training does, this start decided as many cells as the
strictest, or up to half of all cells more. Where probabilities are grossly overconfident it starts
too far out and certifies less; never wrongly, as it looks at no label.

The count is binomial only over cells that are independent: of rows that belong together one is
taken. The certificate is about the models that gave the probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from polytag.errors import UserError
from polytag.intervals import clopper_pearson
from polytag.thresholds import known_cells, members

Floats = NDArray[np.float64]

_FEWEST = 30  # cells beyond the first cut; fewer say nothing, whatever the confidence
# Each cut has so many times the cells of the one before. On drawn data (max_error .05, confidence
# .9) testing every cell passed the true limit in up to 11 % of draws, steps of 1.1 in up to 3 %,
# with 3 to 6 % fewer cells decided; 1.05 lies between and stays under 7 %.
_STEP = 1.05
_MOST_NEEDED = 100_000  # more cells than this are not worth saying


@dataclass(frozen=True)
class Cuts:
    """Where an attribute is decided: absent below ``low``, present from ``high`` on, else unsure.

    Attributes:
        low: In (0, 1); None: never absent.
        high: In (0, 1), at least ``low``; None: never present.
        note: Why a cut is missing and how many more labels it would need, or empty.
    """

    low: float | None
    high: float | None
    note: str = ""


def choose_cuts(
    values: ArrayLike,
    probabilities: ArrayLike,
    thresholds: ArrayLike,
    *,
    max_error: float,
    confidence: float,
    groups: ArrayLike | None = None,
    seed: int = 0,
) -> list[Cuts]:
    """Choose two cuts for each attribute, each certified by itself.

    Of the cells decided present at most the share ``max_error`` is absent, with ``confidence``;
    of those decided absent at most this share is present. Where every cell can be decided both
    ways, nothing is unsure: both cuts are the threshold, moved to where either is certified
    (stricter cuts err less, as long as higher probabilities mean more present cells). What the
    threshold calls present is never called absent, nor the reverse.

    Args:
        values: (N, K) in {1, 0, NaN}.
        probabilities: (N, K) in [0, 1], calibrated, of rows that the model never saw; a cell
            where it is NaN counts as not known.
        thresholds: (K,) in (0, 1): what decides where nothing is unsure.
        max_error: In (0, 1).
        confidence: In (0, 1).
        groups: (N,) numbers of rows that belong together; one known row of each counts.
        seed: Which one.

    Returns:
        K pairs of cuts.

    Raises:
        UserError: A number is out of range, shapes differ, or a known cell holds something else.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> p = rng.uniform(size=(2000, 1))
        >>> cuts, = choose_cuts(rng.random(p.shape) < p, p, [0.5], max_error=0.2, confidence=0.9)
        >>> 0.2 < cuts.low < 0.4 < 0.6 < cuts.high < 0.8
        True
    """
    for name, number in (("max_error", max_error), ("confidence", confidence)):
        if not 0 < number < 1:
            raise UserError(f"wrong {name}", got=f"{number:g}", expected="a number in (0, 1)")
    values, probabilities, known = known_cells(values, probabilities)
    chosen = np.asarray(thresholds, np.float64)
    if chosen.shape != values.shape[1:]:
        expected = f"{values.shape[1]}, one an attribute"
        raise UserError("wrong thresholds", got=f"{chosen.shape}", expected=expected)
    alone = members(groups, len(values))
    # In an order drawn once, the first known row of each group is the one that counts.
    order = np.random.default_rng(seed).permutation(len(values))
    needed = cells_needed(0, max_error, confidence) or _MOST_NEEDED
    rule = _Rule(max_error, confidence, max(_FEWEST, needed))
    result = []
    for k, threshold in enumerate(chosen):
        rows = order[known[order, k]]
        rows = rows[np.unique(alone[rows], return_index=True)[1]]
        present, p = values[rows, k] == 1, probabilities[rows, k]
        high, why_high = rule.loosest(p, ~present, "present")
        sure_absent, why_low = rule.loosest(1 - p, present, "absent")
        low = None if sure_absent is None else 1 - sure_absent
        if low is not None and high is not None and low > high:
            low = high = float(np.clip(threshold, high, low))
        else:
            # Where one class is rarer than the errors allowed, all cells could be called the
            # other: but what the threshold calls present is not called absent, or the reverse.
            low = None if low is None else min(low, float(threshold))
            high = None if high is None else max(high, float(threshold))
        result.append(Cuts(low, high, "; ".join(filter(None, (why_high, why_low)))))
    return result


def cells_needed(error_rate: float, max_error: float, confidence: float) -> int | None:
    """Return how many cells with this share of errors certify ``max_error``; None: far too many.

    Exact up to 170, then up to the next of a grid in steps of .6 %.

    Example:
        >>> cells_needed(0, 0.1, 0.9), cells_needed(0, 0.05, 0.9), cells_needed(0.1, 0.1, 0.9)
        (22, 45, None)
    """
    if error_rate >= max_error:
        return None
    cells = np.unique(np.round(np.geomspace(1, _MOST_NEEDED, 2000)))
    errors = np.ceil(error_rate * cells - 1e-9)
    passed = clopper_pearson(errors, cells, confidence, "upper")[1] <= max_error
    return int(cells[np.argmax(passed)]) if passed.any() else None


@dataclass(frozen=True)
class _Rule:
    """What is promised of decided cells."""

    max_error: float
    confidence: float
    fewest: int  # cells beyond the first cut

    def loosest(
        self, score: Floats, wrong: NDArray[np.bool_], side: str
    ) -> tuple[float | None, str]:
        """Return the loosest certified cut on a score, or None and why there is none.

        Args:
            score: (n,) in [0, 1]: the calibrated probability that deciding so is right.
            wrong: (n,) that it is wrong.
            side: The decision, in a word.
        """
        fewest, count = self.fewest, len(score)
        if count < fewest:
            return None, (
                f"never {side}: {count} independent known cells, {fewest} are needed even without "
                f"an error, {fewest - count} more"
            )
        order = np.argsort(-score, kind="stable")
        score, errors = score[order], np.cumsum(wrong[order])
        last = np.flatnonzero(np.diff(score, append=-1))  # equal scores are decided together
        ranks = np.geomspace(fewest, count, int(np.log(count / fewest) / np.log(_STEP)) + 2)
        at = last[np.unique(np.searchsorted(last, np.round(ranks) - 1))]
        cells = at + 1
        expected = np.cumsum(1 - score)[at] / cells
        first = int(np.argmax((self.max_error - expected) * np.sqrt(cells)))
        at, cells = at[first:], cells[first:]
        bound = clopper_pearson(errors[at], cells, self.confidence, "upper")[1]
        passed = int(np.argmin(np.append(bound <= self.max_error, False)))
        if not passed:
            return None, self._why(side, int(errors[at[0]]), int(cells[0]), count)
        cut = at[passed - 1]
        below = score[cut + 1] if cut + 1 < count else 0.0
        return float(np.clip((score[cut] + below) / 2, 1e-6, 1 - 1e-6)), ""

    def _why(self, side: str, errors: int, cells: int, count: int) -> str:
        """Say why even the first cut failed, and how many more labels would mend it."""
        found = f"never {side}: of the {cells} surest of {count} known cells {errors} err"
        needed = cells_needed(errors / cells, self.max_error, self.confidence)
        if needed is None:
            return f"{found}; at this rate more labels would not change that"
        # The surest cells are the same share of more labels.
        more = int(np.ceil(needed * count / cells)) - count
        return f"{found}; at this rate it takes about {more} more labelled cells"
