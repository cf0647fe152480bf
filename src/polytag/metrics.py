"""Numbers about predictions, measured on known cells only.

Everywhere in this module ``values`` is (N, K), 1 = present, 0 = absent, NaN = not known, and
``probabilities`` is (N, K) in [0, 1]. A cell that is not known is left out of every count, sum and
ranking: what stands under it, in either array, changes no number by one bit. An attribute whose
known cells all have probability NaN is one without a model output, and left out like a hole; any
other NaN probability is an error. ``thresholds`` is (K,) in [0, 1], or (N, K) where rows were
decided by different ones; a probability >= its threshold is decided present.

Everything is computed in float64, and a number that is not defined is NaN, never 0. `scorecard`
puts the numbers together, with intervals and beside what a guess scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from polytag.errors import UserError

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Integers = NDArray[np.int64]

# Calibration is compared in so many bins of equal mass. More of them see finer shapes but measure
# more noise: drawn calibrated probabilities of 67 present and 1,677 absent cells have an error of
# .007 in 5 bins, .009 in 10 and .013 in 20, where logits .7 too high make one of .029 in each.
BINS = 10


def log_loss(values: ArrayLike, probabilities: ArrayLike) -> float:
    """Return the mean negative log-likelihood of the known cells, in nats; NaN if there is none.

    See `cell_losses`.

    Args:
        values: (N, K) in {0, 1, NaN}.
        probabilities: (N, K) in [0, 1]; anything where ``values`` is NaN.

    Raises:
        UserError: Shapes differ, or a known cell holds something else.

    Example:
        >>> round(log_loss([[1, 0], [np.nan, 1]], [[0.5, 0.5], [0.9, 0.5]]), 4)
        0.6931
    """
    values, probabilities, known = checked(values, probabilities)
    losses = cell_losses(values[known], probabilities[known])
    return float(losses.mean()) if losses.size else np.nan


def cell_losses(values: Floats, probabilities: Floats) -> Floats:
    """Return the negative log-likelihood of known cells, in nats, of any shape.

    Probabilities are first clipped to [e, 1 - e], e = 2^-23, the resolution of float32 beside 1:
    they travel as float32 (in the model file), and a loss beyond -log e would measure rounding.

    Example:
        >>> cell_losses(np.array([1.0, 1.0]), np.array([1.0, 0.5])).round(4)
        array([0.    , 0.6931])
    """
    p = np.clip(probabilities, 2.0**-23, 1 - 2.0**-23)
    losses: Floats = -np.log(np.where(values == 1, p, 1 - p))
    return losses


def hamming_accuracy(values: ArrayLike, probabilities: ArrayLike, thresholds: ArrayLike) -> float:
    """Return correct known cells / known cells over the whole data set; NaN if there is none.

    Arguments and errors: see `log_loss` and the top of the module.

    Example:
        >>> hamming_accuracy([[1, 0], [np.nan, 1]], [[0.9, 0.2], [0.1, 0.3]], [0.5, 0.5])
        0.6666666666666666
    """
    values, decided, known = decisions(values, probabilities, thresholds)
    right = decided == (values == 1)
    return float(right[known].mean()) if known.any() else np.nan


def exact_match(values: ArrayLike, probabilities: ArrayLike, thresholds: ArrayLike) -> float:
    """Return the share of rows with a known cell whose known cells are all correct.

    NaN if no cell is known. Arguments and errors: see `hamming_accuracy`.

    Example:
        >>> exact_match([[1, 0], [np.nan, 1]], [[0.9, 0.2], [0.1, 0.3]], [0.5, 0.5])
        0.5
    """
    values, decided, known = decisions(values, probabilities, thresholds)
    right = decided == (values == 1)
    rows = np.all(right | ~known, axis=1)[np.any(known, axis=1)]
    return float(rows.mean()) if rows.size else np.nan


def average_precision(values: ArrayLike, probabilities: ArrayLike) -> Floats:
    """Return the average precision of each attribute, (K,) in (0, 1].

    AP = sum over n of (R_n - R_(n-1)) P_n over the distinct probabilities from the highest down,
    equal ones taken as one block, without interpolation, as in scikit-learn. NaN where no cell is
    known to be present. Arguments and errors: see `log_loss`.

    Example:
        >>> average_precision([[0], [0], [1], [1]], [[0.1], [0.4], [0.35], [0.8]]).round(7)
        array([0.8333333])
    """
    result = np.full(np.shape(values)[1:], np.nan)
    for k, (tp, fp) in enumerate(_blocks(values, probabilities)):
        if tp.any():
            result[k] = np.sum(np.diff(tp, prepend=0) * (tp / (tp + fp))) / tp[-1]
    return result


def roc_auc(values: ArrayLike, probabilities: ArrayLike) -> Floats:
    """Return the area under the ROC curve of each attribute, (K,) in [0, 1].

    It is the share of (present, absent) pairs whose present cell has the higher probability, equal
    ones counting half (Hanley & McNeil 1982). NaN where the known cells are not of both classes.
    Arguments and errors: see `log_loss`.

    Example:
        >>> roc_auc([[0], [0], [1], [1]], [[0.1], [0.4], [0.35], [0.8]])
        array([0.75])
    """
    result = np.full(np.shape(values)[1:], np.nan)
    for k, (tp, fp) in enumerate(_blocks(values, probabilities)):
        if tp.any() and fp.any():
            # An absent cell loses to the present cells above its block and to half of those in it.
            twice = np.diff(fp, prepend=0) * (2 * tp - np.diff(tp, prepend=0))
            result[k] = twice.sum() / (2 * tp[-1] * fp[-1])
    return result


def balanced_accuracy(values: ArrayLike, probabilities: ArrayLike, thresholds: ArrayLike) -> Floats:
    """Return the mean of the shares of present and of absent cells decided rightly, (K,).

    NaN where the known cells are not of both classes. Arguments and errors: see `hamming_accuracy`.

    Example:
        >>> balanced_accuracy([[1], [0], [0], [0]], [[0.9], [0.8], [0.1], [0.1]], [0.5]).round(3)
        array([0.833])
    """
    values, decided, _ = decisions(values, probabilities, thresholds)
    cells = [decided & (values == 1), decided & (values == 0)]
    cells += [~decided & (values == 1), ~decided & (values == 0)]
    return by_counts(*(cell.sum(axis=0, dtype=np.float64) for cell in cells))["balanced_accuracy"]


def by_counts(tp: Floats, fp: Floats, fn: Floats, tn: Floats) -> dict[str, Floats]:
    """Return what follows from counts of decided cells, or from their summed weights.

    Args:
        tp: Present cells decided present; of any shape, like the others.
        fp: Absent cells decided present.
        fn: Present cells decided absent.
        tn: Absent cells decided absent.

    Returns:
        By the metric's name; NaN where it is 0 / 0.

    Example:
        >>> counts = (np.array(count) for count in (1.0, 1.0, 0.0, 2.0))
        >>> {name: round(float(value), 3) for name, value in by_counts(*counts).items()}
        {'f1': 0.667, 'precision': 0.5, 'recall': 1.0, 'accuracy': 0.75, 'balanced_accuracy': 0.833}
    """
    with np.errstate(invalid="ignore"):
        recall = tp / (tp + fn)
        return {
            "f1": 2 * tp / (2 * tp + fp + fn),  # defined, and 0, when every present cell is missed
            "precision": tp / (tp + fp),
            "recall": recall,
            "accuracy": (tp + tn) / (tp + fp + fn + tn),
            "balanced_accuracy": (recall + tn / (tn + fp)) / 2,
        }


def brier(values: ArrayLike, probabilities: ArrayLike) -> Floats:
    """Return the mean squared distance of probability and value of each attribute, (K,) in [0, 1].

    Half of the score in Brier, Monthly Weather Review 78, 1950, which sums over both classes. NaN
    where no cell is known. Arguments and errors: see `log_loss`.

    Example:
        >>> brier([[1], [0], [np.nan]], [[0.9], [0.3], [0.5]]).round(3)
        array([0.05])
    """
    values, probabilities, known = checked(values, probabilities)
    squares = np.where(known, (np.where(known, probabilities, 0) - values) ** 2, 0)
    with np.errstate(invalid="ignore"):
        return np.asarray(squares.sum(axis=0) / known.sum(axis=0))


def expected_calibration_error(values: ArrayLike, probabilities: ArrayLike) -> Floats:
    """Return the mean gap between probability and share of present cells, (K,) in [0, 1].

    ECE = sum over bins of (cells in the bin / cells) |share present - mean probability| (Naeini,
    Cooper & Hauskrecht, AAAI 2015), over the `calibration_bins`. Even calibrated probabilities have
    one above 0, the more so the fewer cells there are. NaN where no cell is known. Arguments and
    errors: see `log_loss`.

    Example:
        >>> expected_calibration_error([[1], [0], [0], [1]], [[0.9], [0.2], [0.2], [0.7]]).round(3)
        array([0.2])
    """
    values, probabilities, known = checked(values, probabilities)
    result = np.full(values.shape[1], np.nan)
    for k, there in enumerate(known.T):
        if there.any():
            p = probabilities[there, k]
            gaps = np.bincount(calibration_bins(p), values[there, k] - p)
            result[k] = np.abs(gaps).sum() / len(p)
    return result


def calibration_bins(probabilities: Floats) -> Integers:
    """Return the bin of each of n probabilities, from 0 to `BINS` - 1, of nearly equal mass.

    Equal probabilities share the bin of the middle one of them.

    Example:
        >>> calibration_bins(np.arange(20) / 20).tolist()
        [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9]
        >>> calibration_bins(np.array([0.1, 0.1, 0.1, 0.9])).tolist()
        [3, 3, 3, 8]
    """
    _, block, counts = np.unique(probabilities, return_inverse=True, return_counts=True)
    twice_middle = 2 * np.cumsum(counts) - counts  # of the block, counted in cells
    return np.asarray((twice_middle * BINS // (2 * len(probabilities)))[block], np.int64)


class Ranked:
    """The known cells of one attribute, sorted once, to be measured under many sets of weights.

    Args:
        values: (n,) in {0, 1}.
        probabilities: (n,) in [0, 1].
        decided: (n,) which of them are decided present.

    Attributes:
        order: (n,) the cells from the highest probability down, in which weights are given.

    Example:
        >>> cells = Ranked(np.array([1, 0, 0.0]), np.array([0.9, 0.2, 0.7]), np.array([True] * 3))
        >>> cells.order
        array([0, 2, 1])
        >>> cells.measure(np.array([[1, 1, 1], [1, 0, 2.0]]))[0]["precision"].round(3)
        array([0.333, 0.333])
    """

    def __init__(self, values: Floats, probabilities: Floats, decided: Bools) -> None:
        self.order = np.lexsort((values, -probabilities))  # of equal ones the absent cells first
        y, p, d = values[self.order], probabilities[self.order], decided[self.order]
        starts = np.flatnonzero(np.diff(p, prepend=np.inf))  # of blocks of equal ones
        ends = np.append(starts[1:], len(p))
        present = np.diff(np.cumsum(y)[ends - 1], prepend=0).astype(np.int64)
        # Where each block with present cells starts, where they start in it, and where it ends.
        self._bounds = np.stack([starts, ends - present, ends], axis=1)[present > 0]
        self._absent = bool((y == 0).any())
        counts = [d & (y == 1), d & (y == 0), ~d & (y == 1), ~d & (y == 0)]
        self._columns = np.column_stack([*counts, (p - y) ** 2])
        self._bins, self._bin_starts = np.unique(-calibration_bins(p), return_index=True)
        self._gaps = y - p

    def measure(self, weights: Floats, prior: ArrayLike = 0.0) -> tuple[dict[str, Floats], Floats]:
        """Return each metric under B sets of weights, and the gaps of the calibration bins.

        Args:
            weights: (B, n) > 0, in ``order``.
            prior: (B, 4) more weight of true and false positives, false and true negatives.

        Returns:
            (B,) by the name of the metric, without the calibration error; (B, BINS) the share of
            present cells less the mean probability, times the share of all cells in the bin: the
            error is the sum of their sizes.
        """
        sums, total = weights @ self._columns, weights.sum(axis=1)
        found = by_counts(*(sums[:, :4] + prior).T)
        found["ap"], found["auc"] = self._ranking(weights)
        found["brier"] = sums[:, 4] / total
        gaps = np.zeros((len(weights), BINS))
        gaps[:, -self._bins] = np.add.reduceat(weights * self._gaps, self._bin_starts, axis=1)
        return found, gaps / total[:, None]

    def _ranking(self, weights: Floats) -> tuple[Floats, Floats]:
        """Return average precision and AUC, (B,) each, by the formulas of the functions above."""
        if not len(self._bounds) or not self._absent:
            return np.full(len(weights), np.nan), np.full(len(weights), np.nan)
        sums = np.zeros((len(weights), len(self.order) + 1))
        np.cumsum(weights, axis=1, out=sums[:, 1:])
        start, middle, end = (np.take(sums, at, axis=1) for at in self._bounds.T)
        present = end - middle
        tp = np.cumsum(present, axis=1)
        all_present, all_absent = tp[:, -1], sums[:, -1] - tp[:, -1]
        # Absent cells above a block, and half of those in it, have won against its present cells.
        lost = (present * ((start + middle) / 2 - tp + present)).sum(axis=1)
        ap = (present * tp / end).sum(axis=1) / all_present
        return ap, 1 - lost / (all_present * all_absent)


def decisions(
    values: ArrayLike, probabilities: ArrayLike, thresholds: ArrayLike
) -> tuple[Floats, Bools, Bools]:
    """Return values as `checked` does, which cells are decided present, and which are known.

    Raises:
        UserError: As `checked`, or a known cell has no threshold in [0, 1].

    Example:
        >>> decisions([[1, 0]], [[0.7, 0.7]], [0.5, 0.9])[1]
        array([[ True, False]])
    """
    values, probabilities, known = checked(values, probabilities)
    thresholds = np.asarray(thresholds, np.float64)
    fits = thresholds.shape in (values.shape, values.shape[1:])
    if not fits or not (((thresholds >= 0) & (thresholds <= 1)) | ~known).all():
        expected = f"{values.shape[1]} numbers in [0, 1], one an attribute, or so many a row"
        got = str(thresholds.tolist()) if thresholds.size < 100 else f"shape {thresholds.shape}"
        raise UserError("wrong thresholds", got=got, expected=expected)
    return values, probabilities >= thresholds, known


def checked(
    values: ArrayLike, probabilities: ArrayLike, names: Sequence[str] | None = None
) -> tuple[Floats, Floats, Bools]:
    """Return both as float64, values NaN where there is no model output, and what is known.

    Args:
        values: (N, K) in {0, 1, NaN}.
        probabilities: (N, K) in [0, 1]; anything where ``values`` is NaN.
        names: The K attributes, for the messages.

    Raises:
        UserError: Shapes differ, a known cell holds something else, or names occur twice.

    Example:
        >>> checked([[1, 0], [0, 1]], [[0.5, np.nan], [0.5, np.nan]])[0]
        array([[ 1., nan], [ 0., nan]])
    """
    values, probabilities = np.asarray(values, np.float64), np.asarray(probabilities, np.float64)
    if values.ndim != 2 or values.shape != probabilities.shape:
        got = f"{values.shape} and {probabilities.shape}"
        raise UserError("values and probabilities do not match", got=got, expected="twice (N, K)")
    if names is not None and not len(names) == len(set(names)) == values.shape[1]:
        raise UserError("wrong names", expected=f"{values.shape[1]} different ones, one a column")
    holes = np.isnan(values)
    _require((values == 0) | (values == 1) | holes, values, "1, 0 or NaN (not known)", names)
    holes |= (np.isnan(probabilities) | holes).all(axis=0)
    inside = (probabilities >= 0) & (probabilities <= 1)
    _require(inside | holes, probabilities, "a probability in [0, 1]", names)
    return np.where(holes, np.nan, values), probabilities, ~holes


def _require(good: Bools, cells: Floats, expected: str, names: Sequence[str] | None) -> None:
    if not good.all():
        row, k = np.argwhere(~good)[0]
        where = f"row {row}, {names[k] if names else f'column {k}'}"
        raise UserError("wrong cell", where=where, got=f"{cells[row, k]:g}", expected=expected)


def _blocks(values: ArrayLike, probabilities: ArrayLike) -> Iterator[tuple[Integers, Integers]]:
    """Yield each attribute's present and absent cells at or above each distinct probability."""
    values, probabilities, known = checked(values, probabilities)
    for column, scores, there in zip(values.T, probabilities.T, known.T, strict=True):
        order = np.argsort(-scores[there])
        last = np.flatnonzero(np.diff(scores[there][order], append=-1))  # of each block
        tp = np.cumsum(column[there][order], dtype=np.int64)[last]
        yield tp, last + 1 - tp
