"""What choosing thresholds and cuts is worth, on drawn data whose truth is known.

    python benchmarks/thresholds.py [DRAWS]

draws sets of 1,744 rows and 8 attributes (13, 67, 211, 620 present; AUC .85 and .95), calibrates
and chooses as a training does, and appends to benchmarks/results/thresholds.csv:

- f1: for each way to choose, the true F1 of the threshold, and the optimism of the F1 measured on
  the rows that chose it (naive) and on rows that chose nothing (nested);
- precision, recall: how often the promise is made, how often it then holds, and the true share;
- unsure: the share of cells decided, and how often the true error is above what is promised.

Shapes: `binormal`, where a logistic calibration is right; `mixture`, where of the present cells
the share 1 - AUC looks like absent ones, so that it is wrong.
"""

from __future__ import annotations

import csv
import datetime
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from polytag.abstention import choose_cuts
from polytag.calibration import Calibration, cross_fitted, fit_calibration
from polytag.splits import stratified_folds
from polytag.thresholds import choose_thresholds, f_scores, parse_target

RESULTS = Path(__file__).parent / "results" / "thresholds.csv"
COLUMNS = ("date", "commit", "draws", "question", "shape", "attribute", "way", "measure", "value")
ROWS, PRESENT, AUC, FOLDS = 1744, (13, 67, 211, 620) * 2, (0.85,) * 4 + (0.95,) * 4, 5
HIDDEN = {"binormal": 0, "mixture": 1}  # 1 - AUC times this: present cells that look absent

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class World:
    """Present cells score N(shift, 1), the hidden ones and the absent ones N(0, 1)."""

    hidden: float
    shift: float
    rate: float

    def shares(self, score: Floats | float) -> tuple[Floats, Floats]:
        """Return the shares of all cells that are present, or absent, and score at least this."""
        above = norm.sf(score)
        seen = (1 - self.hidden) * norm.sf(score - self.shift) + self.hidden * above
        return self.rate * seen, (1 - self.rate) * above


@dataclass(frozen=True)
class Draw:
    """One drawn table with its calibrated probabilities."""

    worlds: list[World]
    values: Floats
    folds: NDArray[np.int64]
    probabilities: Floats
    calibration: Calibration

    def score(self, k: int, probability: float) -> float:
        """Return the score from which on the kept model's probability is at least this."""
        grid = np.linspace(-9, 12, 4001)
        logits = self.calibration.logits(np.repeat(grid[:, None], len(self.worlds), 1))[:, k]
        return float(np.interp(np.log(probability / (1 - probability)), logits, grid))

    def truth(self, k: int, probability: float) -> tuple[float, float, float]:
        """Return true precision, recall and F1 of a threshold."""
        hits, alarms = self.worlds[k].shares(self.score(k, probability))
        rate = self.worlds[k].rate
        return hits / (hits + alarms), hits / rate, 2 * hits / (hits + alarms + rate)


def draw(rng: np.random.Generator, mixture: int) -> Draw:
    """Draw labels and scores; calibrate as a training does."""
    values = np.zeros((ROWS, len(PRESENT)))
    scores = rng.normal(size=values.shape)
    worlds = []
    for k, (present, auc) in enumerate(zip(PRESENT, AUC, strict=True)):
        hidden = mixture * (1 - auc)
        shift = norm.ppf((auc - hidden / 2) / (1 - hidden)) * np.sqrt(2)
        worlds.append(World(hidden, shift, present / ROWS))
        rows = rng.permutation(ROWS)[:present]
        values[rows, k] = 1
        scores[rows, k] += shift * (rng.random(present) >= hidden)
    folds = stratified_folds(values, np.arange(ROWS), folds=FOLDS, seed=0)
    crossed = cross_fitted(scores, values, folds)
    return Draw(worlds, values, folds, crossed, fit_calibration(scores, values))


# ----------------------------------------------------------------------------------- ways to choose


def curves(present: Floats, p: Floats) -> tuple[Floats, Floats, Floats]:
    """Return cuts below each cell from the highest down, F by labels, F by probabilities."""
    order = np.argsort(-p)
    kept = np.arange(1.0, len(p) + 1)
    cuts = (p[order] + np.append(p[order][1:], 0)) / 2
    by_labels = f_scores(np.cumsum(present[order]), kept)
    return cuts, by_labels, f_scores(np.cumsum(p[order]), kept)


def empirical(present: Floats, p: Floats) -> float:
    """Return the threshold that is best on the labels."""
    cuts, by_labels, _ = curves(present, p)
    return float(cuts[by_labels.argmax()])


def plug_in(present: Floats, p: Floats) -> float:
    """Return the threshold that the probabilities expect to be best."""
    return float(curves(present, p)[2].max() / 2)


def bootstrap_median(present: Floats, p: Floats) -> float:
    """Return the median of what resamples find best."""
    rng = np.random.default_rng(0)
    rows = rng.integers(len(p), size=(50, len(p)))
    return float(np.median([empirical(present[r], p[r]) for r in rows if present[r].any()]))


def each(choose: Callable[[Floats, Floats], float]) -> Callable[[Floats, Floats], Floats]:
    """Apply a way to choose to every attribute by itself."""
    return lambda values, p: np.array(
        [choose(*column) for column in zip(values.T, p.T, strict=True)]
    )


def polytag(values: Floats, p: Floats) -> Floats:
    """Choose as polytag does."""
    return np.array([t.value for t in choose_thresholds(values, p, parse_target("f1"))])


WAYS = {
    "empirical": each(empirical),
    "plug-in": each(plug_in),
    "bootstrap median": each(bootstrap_median),
    "polytag, no common": each(lambda y, p: float(polytag(y[:, None], p[:, None])[0])),
    "polytag": polytag,
}
NESTED = ("empirical", "polytag")

# ---------------------------------------------------------------------------------------- questions

Answer = tuple[str, int, str, str, float]  # question, attribute, way, measure, value


def f1(values: Floats, decided: NDArray[np.bool_]) -> Floats:
    """Return F1 of each attribute."""
    return 2 * (values * decided).sum(0) / (values.sum(0) + decided.sum(0))


def ask_f1(drawn: Draw) -> Iterator[Answer]:
    """How good is each way, and how wrong is what is said about it?"""
    values, p, folds = drawn.values, drawn.probabilities, drawn.folds
    for name, way in WAYS.items():
        chosen = way(values, p)
        naive, nested = f1(values, p >= chosen), np.full_like(p, np.nan)
        for fold in range(FOLDS) if name in NESTED else ():
            nested[folds == fold] = way(values[folds != fold], p[folds != fold])
        honest = f1(values, p >= nested)
        for k, threshold in enumerate(chosen):
            true = drawn.truth(k, threshold)[2]
            yield "f1", k, name, "true F1", true
            yield "f1", k, name, "naive optimism", naive[k] - true
            if name in NESTED:
                yield "f1", k, name, "nested optimism", honest[k] - true


def ask_promises(drawn: Draw) -> Iterator[Answer]:
    """How often does precision, or recall, of at least so much hold?"""
    for text, part in (("precision=0.6", 0), ("precision=0.9", 0), ("recall=0.9", 1)):
        target = parse_target(text)
        found = choose_thresholds(drawn.values, drawn.probabilities, target)
        for k, threshold in enumerate(found):
            promised = not threshold.note
            yield text, k, "polytag", "promised", promised
            if promised:
                true = drawn.truth(k, threshold.value)
                yield text, k, "polytag", "kept, of promised", true[part] >= target.value
                yield text, k, "polytag", "true " + text.partition("=")[0], true[part]


def ask_unsure(drawn: Draw) -> Iterator[Answer]:
    """How often is the true error of what is decided above what is promised?"""
    for max_error in (0.1, 0.05):
        question, plain = f"max_error={max_error}", np.full(len(PRESENT), 0.5)
        cuts = choose_cuts(
            drawn.values, drawn.probabilities, plain, max_error=max_error, confidence=0.9
        )
        for k, cut in enumerate(cuts):
            for side, at in (("absent", cut.low), ("present", cut.high)):
                share = error = 0.0
                if at is not None:
                    present, absent = map(float, drawn.worlds[k].shares(drawn.score(k, at)))
                    if side == "absent":
                        rate = drawn.worlds[k].rate
                        present, absent = 1 - rate - absent, rate - present
                    share, error = present + absent, absent / (present + absent)
                yield question, k, side, "decided", share
                yield question, k, side, "broken", error > max_error


def commit() -> str:
    """Return the commit that is measured, with a + where the tree differs from it."""
    described = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    return subprocess.run(described, capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    """Ask everything of many draws and keep the means."""
    draws = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    found: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for shape, mixture in HIDDEN.items():
        for seed in range(draws):
            drawn = draw(np.random.default_rng(seed), mixture)
            for ask in (ask_f1, ask_promises, ask_unsure):
                for question, k, way, measure, value in ask(drawn):
                    attribute = f"{PRESENT[k]} present, AUC {AUC[k]}"
                    found[question, shape, attribute, way, measure].append(float(value))
    new = not RESULTS.exists()
    with RESULTS.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if new:
            writer.writerow(COLUMNS)
        about = datetime.date.today().isoformat(), commit(), draws
        for key, values in sorted(found.items()):
            writer.writerow([*about, *key, f"{np.mean(values):.4f}"])


if __name__ == "__main__":
    main()
