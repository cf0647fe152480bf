"""How often 95 % intervals hold the number that endless pictures would give, on drawn data.

    python benchmarks/intervals.py [NAME ...]

draws scores of present and absent cells from two normal distributions with AUC .85, calibrated
probabilities from them (or logits that are too high), measures them with intervals as polytag
does, and appends how many of the intervals hold the truth to benchmarks/results/intervals.csv. In
groups of 2 the rows share their value and nine tenths of the variance of their score.
"""

from __future__ import annotations

import csv
import datetime
import subprocess
import sys
from pathlib import Path
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from polytag.metrics import BINS, cell_losses
from polytag.results import METRICS, TOGETHER, Evaluation, Value
from polytag.scorecard import evaluate_arrays

RESULTS = Path(__file__).parent / "results" / "intervals.csv"
COLUMNS = (
    *("date", "commit", "scenario", "metric", "truth", "mean", "runs"),
    *("covered", "truth_below", "truth_above", "width"),
)
DISTANCE = 2**0.5 * NormalDist().inv_cdf(0.85)  # of the two means, in standard deviations
THRESHOLD = 0.2
# Shares of present cells as in photographs of clothes with 23 attributes.
CLOTHES = (
    *(0.36, 0.08, 0.10, 0.62, 0.05, 0.58, 0.20, 0.05, 0.12, 0.12, 0.04, 0.06),
    *(0.06, 0.70, 0.06, 0.08, 0.65, 0.04, 0.06, 0.14, 0.11, 0.26, 0.04),
)


class Scenario(NamedTuple):
    """What is drawn."""

    rows: int
    rates: tuple[float, ...]  # of present cells, one an attribute
    size: int = 1  # rows in a group
    exact: bool = True  # as many present cells as the rate says, or by chance
    shift: float = 0.0  # added to every logit: 0 is calibrated
    runs: int = 500


SCENARIOS = {
    "67/1677": Scenario(1744, (67 / 1744,)),
    "67/1677 by chance": Scenario(1744, (67 / 1744,), exact=False),
    "67/1677 logits +.7": Scenario(1744, (67 / 1744,), shift=0.7),
    "67/1677 groups of 2": Scenario(1744, (67 / 1744,), size=2, exact=False),
    "13/335": Scenario(348, (13 / 348,)),
    "13/335 groups of 2": Scenario(348, (13 / 348,), size=2, exact=False),
    "211/1528": Scenario(1739, (211 / 1739,)),
    "211/1528 groups of 2": Scenario(1739, (211 / 1739,), size=2, exact=False),
    "23 attributes": Scenario(1450, CLOTHES, exact=False, runs=150),
    "23 attributes groups of 2": Scenario(1450, CLOTHES, size=2, exact=False, runs=150),
    "23 attributes of 13/335": Scenario(348, (13 / 348,) * 23, exact=False, runs=150),
}


def probability(score: np.ndarray, rate: float, shift: float) -> np.ndarray:
    """Return the probability of present at a score, calibrated but for the shift of its logit."""
    logit = np.log(rate / (1 - rate)) + DISTANCE * score - DISTANCE**2 / 2 + shift
    return 1 / (1 + np.exp(-logit))


def draw(scenario: Scenario, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Return values and probabilities (N, K), and groups (N,)."""
    groups = np.arange(scenario.rows) // scenario.size
    count = groups[-1] + 1
    # A row's own part of the score is the same for all attributes in a fifth of its variance.
    common = rng.standard_normal((count, 1)) * 0.2**0.5
    values, probabilities = [], []
    for rate in scenario.rates:
        present = rng.random(count) < rate
        if scenario.exact:
            present = rng.permutation(count) < round(rate * count)
        noise = common[:, 0] + 0.8**0.5 * rng.standard_normal(count)
        if scenario.size > 1:
            own = rng.standard_normal(scenario.rows)
            noise = 0.9**0.5 * noise[groups] + 0.1**0.5 * own
        value = present[groups].astype(float)
        values.append(value)
        probabilities.append(probability(noise + DISTANCE * value, rate, scenario.shift))
    return np.column_stack(values), np.column_stack(probabilities), groups


def truth(rate: float, shift: float, points: int = 200_000) -> dict[str, float]:
    """Return what endless rows would give, by quadrature over quantiles of both classes."""
    normal = NormalDist()
    quantiles = np.array([normal.inv_cdf((i + 0.5) / points) for i in range(points)])
    score = np.concatenate([quantiles + DISTANCE, quantiles])
    value = np.repeat([1.0, 0.0], points)
    mass = np.where(value == 1, rate, 1 - rate) / points
    order = np.argsort(-score)
    score, value, mass = score[order], value[order], mass[order]
    p = probability(score, rate, shift)
    tp, fp = np.cumsum(mass * value), np.cumsum(mass * (1 - value))
    at = np.searchsorted(-p, -THRESHOLD, side="right") - 1
    recall, fallout = tp[at] / rate, fp[at] / (1 - rate)
    bins = np.minimum((np.cumsum(mass) * BINS).astype(int), BINS - 1)
    return {
        "ap": float(np.sum(mass * value * tp / (tp + fp)) / rate),
        "auc": 0.85,
        "f1": 2 * tp[at] / (tp[at] + fp[at] + rate),
        "precision": tp[at] / (tp[at] + fp[at]),
        "recall": recall,
        "accuracy": 1 - fp[at] - rate + tp[at],
        "balanced_accuracy": (recall + 1 - fallout) / 2,
        "brier": float(np.sum(mass * (p - value) ** 2)),
        "ece": float(np.abs(np.bincount(bins, mass * (value - p))).sum()),
        "log_loss": float(np.sum(mass * cell_losses(value, p))),
    }


def found(evaluation: Evaluation, name: str) -> Value:
    """Return the number of one attribute, or the mean over several."""
    if name in TOGETHER:
        return getattr(evaluation, name)
    several = len(evaluation.attributes) > 1
    return evaluation.macro[name] if several else getattr(evaluation.attributes[0], name)


def measure(name: str, scenario: Scenario) -> list[dict[str, str]]:
    """Return one row of the results for each metric."""
    rng = np.random.default_rng(0)
    each = [truth(rate, scenario.shift) for rate in scenario.rates]
    true = {metric: float(np.mean([t[metric] for t in each])) for metric in each[0]}
    true["hamming"] = true["accuracy"]
    names, thresholds = [str(k) for k in range(len(each))], np.full(len(each), THRESHOLD)
    runs = []
    for _ in range(scenario.runs):
        values, probabilities, groups = draw(scenario, rng)
        runs.append(evaluate_arrays(names, values, probabilities, thresholds, groups=groups))
    described = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    commit = subprocess.run(described, capture_output=True, text=True, check=True).stdout.strip()
    rows = []
    for metric in (*METRICS, "log_loss", "hamming"):
        numbers = [found(run, metric) for run in runs]
        numbers = [number for number in numbers if number.low is not None]
        value, low, high = (
            np.array([getattr(number, side) for number in numbers], dtype=float)
            for side in ("value", "low", "high")
        )
        below, above = true[metric] < low, true[metric] > high
        # A hair's breadth for the quadrature: a true error of 0 is not exactly 0 there.
        below &= ~np.isclose(low, true[metric], atol=1e-4)
        row = {
            "date": datetime.date.today().isoformat(),
            "commit": commit,
            "scenario": name,
            "metric": metric,
            "truth": f"{true[metric]:.4f}",
            "mean": f"{value.mean():.4f}",
            "runs": str(len(numbers)),
            "covered": f"{1 - (below | above).mean():.3f}",
            "truth_below": f"{below.mean():.3f}",
            "truth_above": f"{above.mean():.3f}",
            "width": f"{(high - low).mean():.4f}",
        }
        rows.append(row)
    return rows


def main() -> None:
    """Measure every scenario, or those named, and keep the rows."""
    new = not RESULTS.exists()
    with RESULTS.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        for name in sys.argv[1:] or SCENARIOS:
            for row in measure(name, SCENARIOS[name]):
                writer.writerow(row)
                print(", ".join(f"{key} {value}" for key, value in row.items()))
            file.flush()


if __name__ == "__main__":
    main()
