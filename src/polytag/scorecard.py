"""Everything that is measured of a set of predictions: numbers, what a guess scores, intervals.

Arrays are those of `metrics`. A number that is not defined is NaN with a reason in words, never 0,
and a mean says over how many attributes it was taken and names the ones it lacks. ``chance`` is
what a guess scores that knows the prevalence p of the same cells, but never saw a picture:

- accuracy, Hamming accuracy, exact match: the majority class of each attribute (in a tie: present);
- average precision and precision: p; ROC-AUC and balanced accuracy: 1/2;
- F1: 2 p / (1 + p), always present; Brier score: p (1 - p); calibration error: 0;
- recall: the share of known cells decided present, as a blind guess with that rate gets;
- log loss: the entropy of p, in nats.

Intervals are of 95 %, about the same model with the same thresholds on other pictures of the same
kind, not about training once more. Where every row is a group of its own, AP has the logit interval
and AUC DeLong's. All else comes from `intervals.bootstrap` over groups: what is counted from
decisions by percentiles, the calibration error by `calibration_interval`, the rest by the spread of
the resamples around the number itself, on the logit scale. Percentiles of AP would lie too high: it
rises when a sample says less. Noise goes in a mean, that bias stays: it moves macro AP's interval.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from polytag import intervals
from polytag.errors import UserError
from polytag.intervals import Draws, Interval
from polytag.metrics import (
    average_precision,
    brier,
    by_counts,
    checked,
    decisions,
    exact_match,
    expected_calibration_error,
    hamming_accuracy,
    log_loss,
    roc_auc,
)
from polytag.results import METRICS, TOGETHER, AttributeMetrics, Evaluation, Mean, Value

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_TAILS = ((1 - intervals.CONFIDENCE) / 2, (1 + intervals.CONFIDENCE) / 2)


def evaluate_arrays(
    names: Sequence[str],
    values: ArrayLike,
    probabilities: ArrayLike,
    thresholds: ArrayLike,
    *,
    folds: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    not_trained: Mapping[str, str] | None = None,
) -> Evaluation:
    """Measure everything polytag knows about a set of predictions.

    The numbers are honest for rows that chose nothing: neither the model that gave their
    probabilities, nor its thresholds.

    Args:
        names: The K attributes.
        values: (N, K) in {0, 1, NaN}.
        probabilities: (N, K) in [0, 1]; NaN columns are attributes without a model output.
        thresholds: (K,) in [0, 1], or (N, K) where each row was decided by its own, as out of fold:
            the result then names none. A probability >= the threshold is decided present.
        folds: (N,) integers >= 0: the fold a row was held out in. Every mean then also holds the
            mean over folds (a macro mean: first of each attribute over the folds that define it).
        groups: (N,) integers: rows with one number belong together. None: no intervals.
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
    measured, probabilities, known = checked(given, probabilities, names)
    _, decided, _ = decisions(measured, probabilities, thresholds)
    missing = _why_not_measured(names, given, known, not_trained or {})
    overall = _overall(measured, probabilities, thresholds, missing)
    each = thresholds if thresholds.ndim == 1 else np.full(len(names), np.nan)
    attributes = tuple(
        _attribute(
            (name, float(each[k])),
            given[:, k],
            probabilities[:, k],
            decided[:, k],
            missing.get(name, ""),
        )
        for k, name in enumerate(names)
    )
    macro = {metric: _macro(attributes, metric) for metric in METRICS}
    evaluation = Evaluation(attributes, macro, **overall)
    if groups is not None and known.any():
        groups = _integers("groups", groups, len(given))
        draws = intervals.bootstrap(measured, probabilities, decided, groups)
        evaluation = _with_intervals(evaluation, draws, measured, probabilities, groups)
    if folds is None:
        return evaluation
    folds = _integers("folds", folds, len(given))
    held_out = [folds == fold for fold in np.unique(folds)]
    rows = [thresholds[r] if thresholds.ndim == 2 else thresholds for r in held_out]
    parts = [
        evaluate_arrays(names, given[r], probabilities[r], t)
        for r, t in zip(held_out, rows, strict=True)
    ]
    return _beside_folds(evaluation, parts)


def _integers(what: str, given: ArrayLike, count: int) -> NDArray[np.int64]:
    numbers = np.asarray(given)
    if numbers.shape != (count,) or numbers.dtype.kind not in "iu" or (numbers < 0).any():
        raise UserError(f"wrong {what}", expected=f"{count} integers >= 0, one a row")
    return numbers.astype(np.int64)


def _attribute(
    title: tuple[str, float], values: Floats, probabilities: Floats, decided: Bools, reason: str
) -> AttributeMetrics:
    """Measure one attribute (name, threshold), given as columns (N,), unless there is a reason."""
    present, absent = int((values == 1).sum()), int((values == 0).sum())
    measured: dict[str, Any] = dict.fromkeys(METRICS, Value(reason=reason))
    if not reason:
        tp, fp = int(decided[values == 1].sum()), int(decided[values == 0].sum())
        found = by_counts(*np.array([tp, fp, present - tp, absent - fp], np.float64))
        columns = values[:, None], probabilities[:, None]
        functions = (average_precision, roc_auc, brier, expected_calibration_error)
        for metric, function in zip(("ap", "auc", "brier", "ece"), functions, strict=True):
            found[metric] = function(*columns)[0]
        measured = _values({k: float(v) for k, v in found.items()}, present, absent, tp + fp)
    counts = present, absent, len(values) - present - absent
    return AttributeMetrics(title[0], *counts, **measured, threshold=title[1])


def _values(
    found: Mapping[str, float], present: int, absent: int, decided: int
) -> dict[str, Value]:
    """Return METRICS of an attribute that has a known cell, each beside its chance."""
    known = present + absent
    p = present / known
    always = {
        "accuracy": Value(found["accuracy"], max(p, 1 - p)),
        "brier": Value(found["brier"], p * (1 - p)),
        "ece": Value(found["ece"], 0.0),
    }
    if not present or not absent:
        # Whatever the model says, the others could be nothing but 0, 1 or undefined here: counted,
        # they would move the mean for what the data lack.
        lacking = "absent" if present else "present"
        return (
            dict.fromkeys(METRICS, Value(reason=f"no {lacking} cell among {known} known")) | always
        )
    undecided = "" if decided else f"no cell decided present among {known} known"
    missed = undecided and f"{undecided}: every present one is missed"
    return always | {
        "ap": Value(found["ap"], p),
        "auc": Value(found["auc"], 0.5),
        "f1": Value(found["f1"], 2 * p / (1 + p), missed),
        "precision": Value(reason=undecided) if undecided else Value(found["precision"], p),
        "recall": Value(found["recall"], decided / known),
        "balanced_accuracy": Value(found["balanced_accuracy"], 0.5),
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


# --------------------------------------------------------------------------------------- intervals


def calibration_interval(gaps: Floats, draws: Floats) -> Interval:
    """Return the interval of a calibration error, or of the mean error of several attributes.

    An error is a sum of sizes, so noise makes it larger, in resamples once more than in the sample:
    their percentiles would deny that probabilities are calibrated when they are. A test is inverted
    instead: were the true gaps s times those measured, with the noise that the resamples show, for
    which s >= 0 would the error that was measured not be surprising?

    Args:
        gaps: (K, BINS), as `metrics.Ranked.measure` gives them, measured.
        draws: (B, K, BINS), of the resamples.

    Example:
        >>> noise = np.random.default_rng(0).normal(0, 0.01, (999, 1, 10))
        >>> calibration_interval(noise[0], noise + noise[0])[0]
        0.0
    """
    noise = draws - gaps
    found = float(np.abs(gaps).sum(axis=1).mean())
    if np.abs(noise).max() < 1e-12:
        return 0.0, 1.0  # a single group, which says nothing about noise

    def errors(scale: float) -> Floats:
        return np.asarray(np.abs(scale * gaps + noise).sum(axis=2).mean(axis=1))

    def end(tail: float, low: float, high: float) -> float:
        """Return the scale at which the error that was measured is that quantile of the errors."""
        for _ in range(16):
            middle = (low + high) / 2
            below = np.quantile(errors(middle), tail) < found
            low, high = (middle, high) if below else (low, middle)
        return low * found

    if found == 0:
        return 0.0, float(np.quantile(errors(0), _TAILS[1]))
    ceiling = 2.0
    while np.quantile(errors(ceiling), _TAILS[0]) < found:
        ceiling *= 2
    return end(_TAILS[1], 0, 1), max(end(_TAILS[0], 0, ceiling), found)


def _with_intervals(
    evaluation: Evaluation,
    draws: Draws,
    values: Floats,
    probabilities: Floats,
    groups: NDArray[np.int64],
) -> Evaluation:
    """Put an interval around every number that is defined."""
    single = len(np.unique(groups)) == len(groups)
    clusters = _clusters(values, groups)
    noise = (draws.gaps - draws.measured_gaps) * intervals.wider(clusters["ece"])[:, None]
    draws = replace(draws, gaps=draws.measured_gaps + noise)
    attributes = []
    for k, each in enumerate(evaluation.attributes):
        found = {metric: number for metric in METRICS if _defined(number := getattr(each, metric))}
        for metric, number in found.items():
            if metric == "ap" and single:
                interval = intervals.ap_logit_interval(number.value, each.present)
            elif metric == "auc" and single:
                interval = intervals.delong_interval(values[:, k], probabilities[:, k])
            elif metric == "ece":
                interval = calibration_interval(draws.measured_gaps[[k]], draws.gaps[:, [k]])
            elif metric in clusters:
                count = int(clusters[metric][k])
                deviation = float(draws.metrics[metric][:, k].std()) * intervals.narrow(count)
                interval = intervals.bounded_interval(number.value, deviation, count)
            else:
                low, high = np.quantile(draws.metrics[metric][:, k], _TAILS)
                interval = float(low), float(high)
            found[metric] = _around(number, interval)
        attributes.append(replace(each, **found))
    evaluation = replace(evaluation, attributes=tuple(attributes))
    macro = {
        metric: _around(mean, _macro_interval(metric, evaluation, draws, clusters))
        for metric, mean in evaluation.macro.items()
        if _defined(mean)
    }
    known = len(np.unique(groups[~np.isnan(values).all(axis=1)]))
    together: dict[str, Any] = {}
    for name in TOGETHER:
        mean, deviation = getattr(evaluation, name), float(draws.together[name].std())
        interval = intervals.bounded_interval(mean.value, deviation, known)
        if name == "log_loss":  # it has no upper end: its logarithm is taken for normal
            if known < 2:
                continue
            factor = float(np.exp(intervals.student(known) * deviation / mean.value))
            interval = mean.value / factor, mean.value * factor
        together[name] = _around(mean, interval)
    return replace(evaluation, macro={**evaluation.macro, **macro}, **together)


def _macro_interval(
    metric: str, evaluation: Evaluation, draws: Draws, clusters: Mapping[str, NDArray[np.int64]]
) -> Interval:
    """Return the interval of a mean over the attributes that have the metric."""
    numbers: list[Value] = [getattr(each, metric) for each in evaluation.attributes]
    there = [k for k, number in enumerate(numbers) if _defined(number)]
    if len(there) == 1:
        return numbers[there[0]].low or 0.0, numbers[there[0]].high or 0.0
    if metric == "ece":
        return calibration_interval(draws.measured_gaps[there], draws.gaps[:, there])
    value, columns = evaluation.macro[metric].value, draws.metrics[metric][:, there]
    spread = columns - columns.mean(axis=0)
    if metric in clusters:
        deviation = float((spread * intervals.wider(clusters[metric][there])).mean(axis=1).std())
        rests = 10**9 if 0 < value < 1 else int(clusters["auc"][there].min())
        low, high = intervals.bounded_interval(value, deviation, rests)
    else:
        low, high = map(float, value + np.quantile(spread.mean(axis=1), _TAILS))
    # A mean lies nowhere that no attribute's own interval would let it.
    ends = np.array([(numbers[k].low, numbers[k].high) for k in there], dtype=float).mean(axis=0)
    low, high = max(low, ends[0]), min(high, ends[1])
    # AP lies above that of endless pictures, by more than it rises in the resamples: so much goes.
    lift = max(float(columns.mean()) - value, 0) if metric == "ap" else 0
    return max(low - lift, 0.0), high - lift


def _clusters(values: Floats, groups: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """Return how many groups a metric rests on: a ranking on the rarer class, a mean on all."""
    rows: list[list[int]] = []
    for column in values.T:
        parts = (column == 1, column == 0, ~np.isnan(column))
        rows.append([len(np.unique(groups[part])) for part in parts])
    present, absent, known = np.array(rows).T
    rarer = np.minimum(present, absent)
    return {"ap": rarer, "auc": rarer, "brier": known, "ece": np.where(rarer, rarer, known)}


def _defined(number: Value) -> bool:
    return not np.isnan(number.value)


def _around(number: Any, interval: Interval) -> Any:
    """Return a Value or Mean with an interval, which holds the number itself."""
    low, high = min(interval[0], number.value), max(interval[1], number.value)
    return replace(number, low=low, high=high)


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
    together: dict[str, Any] = {name: beside(name, getattr(evaluation, name)) for name in TOGETHER}
    return replace(evaluation, macro=macro, **together)


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
