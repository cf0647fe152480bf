"""Whether pooled out-of-fold numbers are what the models score on new pictures, on drawn data.

    python benchmarks/pooling.py [DRAWS]

draws features and labels, noise or a signal, fits the probe out of fold, calibrates as training
does, and compares macro AUC and AP, pooled as probabilities and pooled as polytag ranks them, with
the truth: 1/2 and the prevalence for noise, for a signal what the folds' models score on 20,000 new
rows. Appends rows to benchmarks/results/pooling.csv.
"""

from __future__ import annotations

import csv
import datetime
import sys
from pathlib import Path

import numpy as np
from quality import commit

from polytag.config import DecisionsConfig, ProbeConfig
from polytag.decide import Calibrated, calibrate
from polytag.logistic import PathSolver
from polytag.metrics import average_precision, roc_auc
from polytag.probe import fit_probe
from polytag.scorecard import evaluate_arrays
from polytag.splits import stratified_folds

RESULTS = Path(__file__).parent / "results" / "pooling.csv"
COLUMNS = (
    *("date", "commit", "rows", "attributes", "signal", "draws", "metric", "truth"),
    *("as_probabilities", "as_ranked", "mean_over_folds", "covered", "below_truth"),
)
WIDTH, FOLDS = 30, 5


class _Method:
    """What `calibrate` asks of a trained method."""

    def __init__(self, logits: np.ndarray, choosing: list[object], deployed: object) -> None:
        self.logits, self.choosing, self.deployed = logits, choosing, deployed
        self.judged = np.ones(len(logits), dtype=bool)


def draw(rng: np.random.Generator, rows: int, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return features (N, 1, D) and values (N, K); about a quarter of the cells are present."""
    features = rng.normal(size=(rows, 1, WIDTH)).astype(np.float32)
    logits = features[:, 0] @ weight - 1.2
    return features, (rng.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(np.float32)


def once(seed: int, rows: int, attributes: int, signal: float) -> dict[str, list[float]]:
    """Return of each metric: truth, pooled as probabilities, as ranked, folds, low, high."""
    from polytag.method import Choosing

    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(WIDTH, attributes)) * signal / WIDTH**0.5
    features, values = draw(rng, rows, weight)
    groups = np.arange(rows)
    folds = stratified_folds(values, groups, folds=FOLDS, seed=seed)
    fit = fit_probe(features, values, folds, ProbeConfig())
    choosing = [
        Choosing(inner, np.where(folds == k, -1, folds), folds == k)
        for k, inner in enumerate(fit.inner)
    ]
    whole = Choosing(fit.logits, folds, np.zeros(rows, dtype=bool))
    found: Calibrated = calibrate(
        _Method(fit.logits, choosing, whole),  # type: ignore[arg-type]
        values,
        DecisionsConfig(),
    )
    names = [str(k) for k in range(attributes)]
    ways = [
        evaluate_arrays(names, values, p, [0.5] * attributes, folds=folds, groups=groups)
        for p in (found.probabilities, found.ranking)
    ]
    truth = {"auc": 0.5, "ap": float(values.mean())}
    if signal:
        new, labels = draw(rng, 20000, weight)
        solver = PathSolver(features, values, ProbeConfig())
        scores = []
        for k, l2 in enumerate(fit.l2_of_fold):
            w, b = next(solver.path((l2,), folds != k))
            p = 1 / (1 + np.exp(-(new[:, 0] @ w + b)))
            scores.append((roc_auc(labels, p).mean(), average_precision(labels, p).mean()))
        truth = dict(zip(("auc", "ap"), np.mean(scores, axis=0).tolist(), strict=True))
    result = {}
    for metric in ("auc", "ap"):
        plain, ranked = (way.macro[metric] for way in ways)
        numbers = [truth[metric], plain.value, ranked.value, ranked.mean_over_folds]
        result[metric] = [float(x or 0) for x in (*numbers, ranked.low, ranked.high)]
    return result


def main() -> None:
    """Measure every setting and keep the rows."""
    draws = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    new = not RESULTS.exists()
    with RESULTS.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if new:
            writer.writerow(COLUMNS)
        for rows, attributes in ((200, 8), (200, 20), (400, 20), (1000, 20)):
            for signal in (0.0, 1.5):
                seen = [once(seed, rows, attributes, signal) for seed in range(draws)]
                for metric in ("auc", "ap"):
                    cells = np.array([one[metric] for one in seen])
                    truth, plain, ranked, over_folds, low, high = cells.T
                    numbers = [truth.mean(), plain.mean(), ranked.mean(), over_folds.mean()]
                    numbers += [((low <= truth) & (truth <= high)).mean(), (high < truth).mean()]
                    row = [datetime.date.today().isoformat(), commit(), rows, attributes, signal]
                    row += [draws, metric, *(f"{number:.4f}" for number in numbers)]
                    print(*row)
                    writer.writerow(row)
                file.flush()


if __name__ == "__main__":
    main()
