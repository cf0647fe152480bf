"""Numbers about predictions, measured on known cells only, each beside what guessing scores.

Everywhere in this module ``values`` is (N, K), 1 = present, 0 = absent, NaN = not known, and
``probabilities`` is (N, K) in [0, 1]. A cell that is not known is left out of every count, sum and
ranking: what stands under it, in either array, changes no number by one bit. An attribute whose
known cells all have probability NaN is one without a model output, and left out like a hole; any
other NaN probability is an error.

A number that is not defined is NaN with a reason in words, never 0, and a mean says over how many
attributes it was taken and names the ones it lacks. ``chance`` is what a guess scores that knows
the prevalence p of the same cells, but never saw a picture:

- accuracy, Hamming accuracy, exact match: the majority class of each attribute (in a tie: present);
- average precision and precision: p; ROC-AUC: 1/2; F1: 2 p / (1 + p), always present;
- recall: the share of known cells decided present, as a blind guess with that rate gets;
- log loss: the entropy of p, in nats.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from polytag.errors import UserError
from polytag.results import METRICS, AttributeMetrics, Evaluation, Mean, Value

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def log_loss(values: ArrayLike, probabilities: ArrayLike) -> float:
    """Return the mean negative log-likelihood of the known cells, in nats; NaN if there is none.

    Probabilities are first clipped to [e, 1 - e], e = 2^-23, the resolution of float32 beside 1:
    they travel as float32 (in the model file), and a loss beyond -log e would measure rounding.

    Args:
        values: (N, K) in {0, 1, NaN}.
        probabilities: (N, K) in [0, 1]; anything where ``values`` is NaN.

    Raises:
        UserError: Shapes differ, or a known cell holds something else.

    Example:
        >>> round(log_loss([[1, 0], [np.nan, 1]], [[0.5, 0.5], [0.9, 0.5]]), 4)
        0.6931
    """
    values, probabilities, known = _checked(values, probabilities)
    p = np.clip(probabilities[known], 2.0**-23, 1 - 2.0**-23)
    return float(-np.log(np.where(values[known] == 1, p, 1 - p)).mean()) if p.size else np.nan


def hamming_accuracy(values: ArrayLike, probabilities: ArrayLike, thresholds: ArrayLike) -> float:
    """Return correct known cells / known cells over the whole data set; NaN if there is none.

    Arguments and errors: see `log_loss`; thresholds are (K,) in [0, 1], and a probability >= the
    threshold is decided present.

    Example:
        >>> hamming_accuracy([[1, 0], [np.nan, 1]], [[0.9, 0.2], [0.1, 0.3]], [0.5, 0.5])
        0.6666666666666666
    """
    right, known = _decide(values, probabilities, thresholds)
    return float(right[known].mean()) if known.any() else np.nan


def exact_match(values: ArrayLike, probabilities: ArrayLike, thresholds: ArrayLike) -> float:
    """Return the share of rows with a known cell whose known cells are all correct.

    NaN if no cell is known. Arguments and errors: see `hamming_accuracy`.

    Example:
        >>> exact_match([[1, 0], [np.nan, 1]], [[0.9, 0.2], [0.1, 0.3]], [0.5, 0.5])
        0.5
    """
    right, known = _decide(values, probabilities, thresholds)
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


def evaluate_arrays(
    names: Sequence[str],
    values: ArrayLike,
    probabilities: ArrayLike,
    thresholds: ArrayLike,
    *,
    folds: ArrayLike | None = None,
    not_trained: Mapping[str, str] | None = None,
) -> Evaluation:
    """Measure everything this module knows about a set of predictions.

    The numbers are honest for rows that chose nothing: neither the model that gave their
    probabilities, nor its thresholds.

    Args:
        names: The K attributes.
        values: (N, K) in {0, 1, NaN}.
        probabilities: (N, K) in [0, 1]; NaN columns are attributes without a model output.
        thresholds: (K,) in [0, 1]; a probability >= the threshold is decided present.
        folds: (N,) integers >= 0: the fold a row was held out in. Every mean then also holds the
            mean over folds (a macro mean: first of each attribute over the folds that define it).
        not_trained: Why the model has no output for an attribute, by its name.

    Raises:
        UserError: Shapes differ, a known cell or a threshold holds something else, or
            ``not_trained`` names an attribute that is not there or has an output.

    Example:
        >>> result = evaluate_arrays(
        ...     ["hat", "scarf"], [[1, 0], [0, 0], [np.nan, 0]], [[0.9, 0.1]] * 3, [0.5, 0.5])
        >>> result.hamming.value, result.macro["auc"].over, result.macro["auc"].missing
        (0.8, '1 of 2 attributes', {'scarf': 'no present cell among 3 known'})
    """
    given, thresholds = np.asarray(values, np.float64), np.asarray(thresholds, np.float64)
    measured, probabilities, known = _checked(given, probabilities, names)
    missing = _why_not_measured(names, given, known, not_trained or {})
    overall = _overall(measured, probabilities, thresholds, missing)  # checks the thresholds too
    attributes = tuple(
        _attribute(name, given[:, k], probabilities[:, k], thresholds[k], missing.get(name, ""))
        for k, name in enumerate(names)
    )
    macro = {metric: _macro(attributes, metric) for metric in METRICS}
    evaluation = Evaluation(attributes, macro, **overall)
    if folds is None:
        return evaluation
    folds = np.asarray(folds)
    if folds.shape != (len(given),) or folds.dtype.kind not in "iu" or (folds < 0).any():
        raise UserError("wrong folds", expected=f"{len(given)} integers >= 0, one a row")
    held_out = [folds == fold for fold in np.unique(folds)]
    parts = [evaluate_arrays(names, given[r], probabilities[r], thresholds) for r in held_out]
    return _beside_folds(evaluation, parts)


def _attribute(
    name: str, values: Floats, probabilities: Floats, threshold: float, reason: str
) -> AttributeMetrics:
    """Measure one attribute, given as columns (N,), unless there is a reason why not."""
    present, absent = int((values == 1).sum()), int((values == 0).sum())
    measured: dict[str, Any] = dict.fromkeys(METRICS, Value(reason=reason))
    if not reason:
        decided = probabilities >= threshold
        tp, fp = int(decided[values == 1].sum()), int(decided[values == 0].sum())
        ranked = values[:, None], probabilities[:, None]
        ap, auc = float(average_precision(*ranked)[0]), float(roc_auc(*ranked)[0])
        measured = _values(present, absent, tp, fp, ap, auc)
    counts = present, absent, len(values) - present - absent
    return AttributeMetrics(name, *counts, **measured, threshold=float(threshold))


def _values(present: int, absent: int, tp: int, fp: int, ap: float, auc: float) -> dict[str, Value]:
    """Return METRICS of an attribute that has a known cell, each beside its chance."""
    known, decided = present + absent, tp + fp
    p = present / known
    accuracy = Value((tp + absent - fp) / known, max(p, 1 - p))
    if not present or not absent:
        # Whatever the model says, these could be nothing but 0, 1 or undefined here: counted, they
        # would move the mean for what the data lack.
        lacking = "absent" if present else "present"
        none = Value(reason=f"no {lacking} cell among {known} known")
        return dict.fromkeys(METRICS, none) | {"accuracy": accuracy}
    undecided = "" if decided else f"no cell decided present among {known} known"
    # 2 tp / (2 tp + fp + fn): defined, and 0, when every present cell is missed.
    f1, always_present = 2 * tp / (decided + present), 2 * p / (1 + p)
    return {
        "ap": Value(ap, p),
        "auc": Value(auc, 0.5),
        "f1": Value(f1, always_present, undecided and f"{undecided}: every present one is missed"),
        "precision": Value(reason=undecided) if undecided else Value(tp / decided, p),
        "recall": Value(tp / present, decided / known),
        "accuracy": accuracy,
    }


def _macro(attributes: Sequence[AttributeMetrics], metric: str) -> Mean:
    """Average one metric over the attributes that have it."""
    measured: dict[str, Value] = {a.name: getattr(a, metric) for a in attributes}
    missing = {name: v.reason for name, v in measured.items() if np.isnan(v.value)}
    value, chance = ([getattr(v, side) for v in measured.values()] for side in ("value", "chance"))
    return Mean(_mean(value), _mean(chance), **_coverage(missing, len(measured)))


def _overall(
    values: Floats, probabilities: Floats, thresholds: Floats, missing: dict[str, str]
) -> dict[str, Any]:
    """Measure all cells together that are known and have a model output."""
    # The guess that never saw a picture is judged by the same functions as the model.
    rate = np.nansum(values, axis=0) / np.maximum((~np.isnan(values)).sum(axis=0), 1)
    model = values, probabilities, thresholds
    guess = values, np.broadcast_to(rate, values.shape), np.full(len(rate), 0.5)
    coverage = _coverage(missing, len(rate))
    return {
        "log_loss": Mean(log_loss(*model[:2]), log_loss(*guess[:2]), **coverage),
        "hamming": Mean(hamming_accuracy(*model), hamming_accuracy(*guess), **coverage),
        "exact_match": Mean(exact_match(*model), exact_match(*guess), **coverage),
    }


def _coverage(missing: dict[str, str], count: int) -> dict[str, Any]:
    """Say over which attributes a mean is taken, in the fields of Mean."""
    over = f"{count - len(missing)} of {count} attributes"
    reason = "" if len(missing) < count else "no attribute has it"
    return {"reason": reason, "over": over, "missing": missing}


def _beside_folds(evaluation: Evaluation, parts: Sequence[Evaluation]) -> Evaluation:
    """Put the mean over folds beside every pooled mean."""

    def beside(name: str, pooled: Mean) -> Mean:
        sources = [part.attributes if name in METRICS else [part] for part in parts]
        values = [[getattr(source, name) for source in row] for row in sources]
        cells = np.array([[value.value for value in row] for row in values])
        chance = np.array([[value.chance for value in row] for row in values])
        unit = "attribute folds" if name in METRICS else "folds"
        over = f"{np.isfinite(cells).sum()} of {cells.size} {unit}"
        return replace(
            pooled,
            mean_over_folds=_mean(map(_mean, cells.T)),
            chance_over_folds=_mean(map(_mean, chance.T)),
            over_folds=over,
        )

    macro = {name: beside(name, mean) for name, mean in evaluation.macro.items()}
    overall = ("log_loss", "hamming", "exact_match")
    together: dict[str, Any] = {name: beside(name, getattr(evaluation, name)) for name in overall}
    return replace(evaluation, macro=macro, **together)


def _blocks(
    values: ArrayLike, probabilities: ArrayLike
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield each attribute's present and absent cells at or above each distinct probability."""
    values, probabilities, known = _checked(values, probabilities)
    for column, scores, there in zip(values.T, probabilities.T, known.T, strict=True):
        order = np.argsort(-scores[there])
        last = np.flatnonzero(np.diff(scores[there][order], append=-1))  # of each block
        tp = np.cumsum(column[there][order], dtype=np.int64)[last]
        yield tp, last + 1 - tp


def _decide(
    values: ArrayLike, probabilities: ArrayLike, thresholds: ArrayLike
) -> tuple[Bools, Bools]:
    """Return which cells are decided rightly, and which are known."""
    values, probabilities, known = _checked(values, probabilities)
    thresholds = np.asarray(thresholds, np.float64)
    fits = thresholds.shape == values.shape[1:]
    if not fits or not (((thresholds >= 0) & (thresholds <= 1)) | ~known.any(axis=0)).all():
        expected = f"{values.shape[1]} numbers in [0, 1], one an attribute"
        raise UserError("wrong thresholds", got=str(thresholds.tolist()), expected=expected)
    return (probabilities >= thresholds) == (values == 1), known


def _checked(
    values: ArrayLike, probabilities: ArrayLike, names: Sequence[str] | None = None
) -> tuple[Floats, Floats, Bools]:
    """Return both as float64, values NaN where there is no model output, and what is known."""
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


def _why_not_measured(
    names: Sequence[str], values: Floats, known: Bools, not_trained: Mapping[str, str]
) -> dict[str, str]:
    """Return the attributes without a cell that is known and has a model output, and why."""
    reasons = {}
    for name, cells, measured in zip(names, values.T, np.any(known, axis=0), strict=True):
        if not measured and (name in not_trained or not np.isnan(cells).all()):
            why = not_trained.get(name, "the model has no output for it")
            reasons[name] = f"not trained: {why}"
        elif not measured:
            reasons[name] = f"no known cell among {len(values)} rows"
    for name in set(not_trained).difference(reasons):
        expected = f"an attribute without a model output: {', '.join(reasons) or 'none'}"
        raise UserError("wrong name in not_trained", got=repr(name), expected=expected)
    return reasons


def _mean(values: Iterable[float]) -> float:
    """Return the mean of the values that are not NaN; NaN if there is none."""
    there = [value for value in values if not np.isnan(value)]
    return float(np.mean(there)) if there else np.nan
