"""Slow references in plain Python, written from the formulas, and the tables they are compared on.

Nothing here imports polytag or scikit-learn. Values are 1, 0 or NaN (not known). A metric is None
where it is not defined.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

NAN = math.nan
Table = list[list[float]]

HOLES = (
    "no holes",
    "30 % holes",
    "a column all NA",
    "a row all NA",
    "everything NA",
    "one class only",
    "ties",
)


def draw(case: str, seed: int, rows: int = 40, columns: int = 4) -> tuple[Table, Table]:
    """Return values and probabilities, rows x columns, with the holes that ``case`` names."""
    rng = random.Random(f"{case} {seed}")
    rates = [0.1, 0.3, 0.5, 0.9]
    values = [[float(rng.random() < rates[k % 4]) for k in range(columns)] for _ in range(rows)]
    scores = [[_sigmoid(rng.gauss(2 * v - 1, 1.5)) for v in row] for row in values]
    for i in range(rows):
        for k in range(columns):
            if case == "30 % holes" and rng.random() < 0.3:
                values[i][k] = NAN
            if case == "everything NA" or (case == "a column all NA" and k == 1):
                values[i][k] = NAN
            if case == "a row all NA" and i == rows // 2:
                values[i][k] = NAN
            if case == "one class only" and k < 2:
                values[i][k] = float(k)
            if case == "ties":
                scores[i][k] = round(scores[i][k], 1)
    return values, scores


# --------------------------------------------------------------------------------------- metrics


def known_pairs(values: Table, scores: Table, k: int) -> list[tuple[float, float]]:
    """Return (value, score) of the known cells of column k."""
    pairs = [(row[k], other[k]) for row, other in zip(values, scores, strict=True)]
    return [(v, s) for v, s in pairs if not math.isnan(v)]


def counts(pairs: list[tuple[float, float]], threshold: float) -> tuple[int, int, int, int]:
    """Return true positives, false positives, false negatives, true negatives."""
    tp = sum(1 for v, s in pairs if v == 1 and s >= threshold)
    fp = sum(1 for v, s in pairs if v == 0 and s >= threshold)
    fn = sum(1 for v, s in pairs if v == 1 and s < threshold)
    tn = sum(1 for v, s in pairs if v == 0 and s < threshold)
    return tp, fp, fn, tn


def average_precision(pairs: list[tuple[float, float]]) -> float | None:
    """Sum of precision x gain in recall over the distinct scores, from the highest down."""
    present = sum(1 for v, _ in pairs if v == 1)
    if not present:
        return None
    total, recall_before = 0.0, 0.0
    for score in sorted({s for _, s in pairs}, reverse=True):
        tp, fp, _, _ = counts(pairs, score)
        total += (tp / present - recall_before) * tp / (tp + fp)
        recall_before = tp / present
    return total


def roc_auc(pairs: list[tuple[float, float]]) -> float | None:
    """Share of (present, absent) pairs in the right order, equal scores counting half."""
    present = [s for v, s in pairs if v == 1]
    absent = [s for v, s in pairs if v == 0]
    if not present or not absent:
        return None
    won = sum(1.0 if p > a else 0.5 if p == a else 0.0 for p in present for a in absent)
    return won / (len(present) * len(absent))


def calibration_error(pairs: list[tuple[float, float]], bins: int = 10) -> float:
    """Sum over bins of |sum of (value - score)| / cells; equal scores go where their middle lies.

    The cells in order of their scores fill the bins one after the other, equally many in each.
    """
    gaps = [0.0] * bins
    for v, s in pairs:
        middle = sum(1 for _, t in pairs if t < s) + sum(1 for _, t in pairs if t == s) / 2
        gaps[math.floor(middle * bins / len(pairs))] += v - s
    return sum(abs(gap) for gap in gaps) / len(pairs)


def attribute(pairs: list[tuple[float, float]], threshold: float) -> dict[str, tuple | None]:
    """Return for each metric (value, chance), None where it is not defined."""
    tp, fp, fn, tn = counts(pairs, threshold)
    n = len(pairs)
    if n == 0:
        names = ("ap", "auc", "f1", "precision", "recall", "accuracy")
        return dict.fromkeys((*names, "balanced_accuracy", "brier", "ece"))
    p = (tp + fn) / n
    some = tp + fn > 0 and tn + fp > 0  # both classes
    auc = roc_auc(pairs)
    return {
        "ap": (average_precision(pairs), p) if some else None,
        "auc": None if auc is None else (auc, 0.5),
        "f1": (2 * tp / (2 * tp + fp + fn), 2 * p / (1 + p)) if some else None,
        "precision": (tp / (tp + fp), p) if some and tp + fp else None,
        "recall": (tp / (tp + fn), (tp + fp) / n) if some else None,
        "accuracy": ((tp + tn) / n, max(p, 1 - p)),
        "balanced_accuracy": ((tp / (tp + fn) + tn / (tn + fp)) / 2, 0.5) if some else None,
        "brier": (sum((v - s) ** 2 for v, s in pairs) / n, p * (1 - p)),
        "ece": (calibration_error(pairs), 0.0),
    }


def _known_cells(values: Table) -> list[tuple[int, int]]:
    return [(i, k) for i, row in enumerate(values) for k, v in enumerate(row) if not math.isnan(v)]


def log_loss(values: Table, scores: Table) -> tuple[float, float] | None:
    """Return the mean of -log(probability of what is true), and the mean entropy of the rates."""
    cells = _known_cells(values)
    if not cells:
        return None
    terms, entropies = [], []
    for i, k in cells:
        s = min(max(scores[i][k], 2**-23), 1 - 2**-23)
        terms.append(-math.log(s if values[i][k] == 1 else 1 - s))
        p = _rate(values, k)
        entropies.append(-sum(q * math.log(q) for q in (p, 1 - p) if q > 0))
    return math.fsum(terms) / len(cells), math.fsum(entropies) / len(cells)


def hamming(values: Table, scores: Table, thresholds: list[float]) -> tuple[float, float] | None:
    """Return correct / known cells, and the same for the majority class of each column."""
    cells = _known_cells(values)
    if not cells:
        return None
    right = sum((scores[i][k] >= thresholds[k]) == (values[i][k] == 1) for i, k in cells)
    blind = sum((_rate(values, k) >= 0.5) == (values[i][k] == 1) for i, k in cells)
    return right / len(cells), blind / len(cells)


def exact_match(
    values: Table, scores: Table, thresholds: list[float]
) -> tuple[float, float] | None:
    """Return the share of rows without a wrong known cell, and the same for the majority class."""
    rows = sorted({i for i, _ in _known_cells(values)})
    if not rows:
        return None
    wrong, blind_wrong = set(), set()
    for i, k in _known_cells(values):
        if (scores[i][k] >= thresholds[k]) != (values[i][k] == 1):
            wrong.add(i)
        if (_rate(values, k) >= 0.5) != (values[i][k] == 1):
            blind_wrong.add(i)
    return 1 - len(wrong) / len(rows), 1 - len(blind_wrong) / len(rows)


def _rate(values: Table, k: int) -> float:
    column = [row[k] for row in values if not math.isnan(row[k])]
    return sum(column) / len(column)


# ---------------------------------------------------------------------------------------- losses


def _sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def bce(z: float, y: float, pos_weight: float = 1.0) -> float:
    """Binary cross-entropy of one cell."""
    p = _sigmoid(z)
    return -pos_weight * y * math.log(p) - (1 - y) * math.log(1 - p)


def focal(
    z: float, y: float, gamma: float = 2.0, alpha: float | None = None, pos_weight: float = 1.0
) -> float:
    """Focal loss of one cell, y in {0, 1}: -w_t a_t (1 - p_t)^gamma log p_t."""
    p_t = _sigmoid(z) if y == 1 else 1 - _sigmoid(z)
    a_t = 1.0 if alpha is None else alpha if y == 1 else 1 - alpha
    w_t = pos_weight if y == 1 else 1.0
    return -w_t * a_t * (1 - p_t) ** gamma * math.log(p_t)


def class_weights(counts: list[float], beta: float) -> list[float]:
    """Return the inverse effective numbers of classes of so many cells, scaled to sum to 2."""
    inverse = [(1 - beta) / (1 - beta ** max(n, 1)) for n in counts]
    return [2 * weight / sum(inverse) for weight in inverse]


def class_balanced(
    z: float, y: float, counts: list[float], beta: float = 0.999, gamma: float = 0.0
) -> float:
    """Class-balanced loss of one cell, y in {0, 1}; counts: present and absent cells."""
    present, absent = class_weights(counts, beta)
    return (present if y == 1 else absent) * focal(z, y, gamma)


def asymmetric(
    z: float, y: float, gamma_negative: float = 4.0, gamma_positive: float = 1.0, clip: float = 0.05
) -> float:
    """Asymmetric loss of one cell, y in {0, 1}."""
    p = _sigmoid(z)
    m = max(p - clip, 0.0)
    if y == 1:
        return -((1 - p) ** gamma_positive) * math.log(p)
    return -(m**gamma_negative) * math.log(1 - m)


def soft(cell: Callable[..., float], z: float, y: float, **options: float) -> float:
    """Return the mean loss of a cell that is present with chance y, the label smoothed first."""
    smoothing = options.pop("label_smoothing", 0.0)
    chance = (1 - smoothing) * y + smoothing / 2
    return chance * cell(z, 1.0, **options) + (1 - chance) * cell(z, 0.0, **options)


def mean_loss(cells: Table, values: Table, per: str) -> float:
    """Average losses of cells over the known ones, or over columns of means over known ones."""
    columns = []
    for k in range(len(values[0])):
        column = [cells[i][k] for i in range(len(values)) if not math.isnan(values[i][k])]
        columns.append(column)
    if per == "attribute":
        means = [math.fsum(column) / len(column) for column in columns if column]
        return math.fsum(means) / len(means) if means else 0.0
    known = [loss for column in columns for loss in column]
    return math.fsum(known) / len(known) if known else 0.0


# ------------------------------------------------------------------------------------- intervals


def delong_variance(pairs: list[tuple[float, float]]) -> float:
    """Variance of an AUC from every (present, absent) pair, as DeLong et al. define it."""
    present = [s for v, s in pairs if v == 1]
    absent = [s for v, s in pairs if v == 0]
    won = [[1.0 if p > a else 0.5 if p == a else 0.0 for a in absent] for p in present]
    of_present = [sum(row) / len(absent) for row in won]
    of_absent = [sum(row[j] for row in won) / len(present) for j in range(len(absent))]

    def spread(numbers: list[float]) -> float:
        mean = sum(numbers) / len(numbers)
        return sum((number - mean) ** 2 for number in numbers) / (len(numbers) - 1)

    return spread(of_present) / len(present) + spread(of_absent) / len(absent)


def weighted(
    cells: list[tuple[float, float, bool, float]],
) -> dict[str, float]:
    """Return metrics of cells (value, score, decided present, weight) of both classes."""

    def mass(chosen: Callable[[float, float, bool], bool]) -> float:
        return math.fsum(w for v, s, d, w in cells if chosen(v, s, d))

    tp, fp = mass(lambda v, s, d: d and v == 1), mass(lambda v, s, d: d and v == 0)
    fn, tn = mass(lambda v, s, d: not d and v == 1), mass(lambda v, s, d: not d and v == 0)
    present, absent = tp + fn, fp + tn
    ap = auc = 0.0
    for value, score, _, weight in cells:
        if value == 1:
            above = mass(lambda v, s, d, at=score: s >= at)
            ap += weight / present * mass(lambda v, s, d, at=score: v == 1 and s >= at) / above
            beaten = mass(lambda v, s, d, at=score: v == 0 and s < at)
            equal = mass(lambda v, s, d, at=score: v == 0 and s == at)
            auc += weight / present * (beaten + equal / 2) / absent
    return {
        "ap": ap,
        "auc": auc,
        "f1": 2 * tp / (2 * tp + fp + fn),
        "recall": tp / present,
        "accuracy": (tp + tn) / (present + absent),
        "balanced_accuracy": (tp / present + tn / absent) / 2,
        "brier": math.fsum(w * (v - s) ** 2 for v, s, _, w in cells) / (present + absent),
    }
