"""What the test of learnability is worth where the answer is known: on drawn data.

    python benchmarks/learnability.py [ridge] [chance] [visible]

- ``ridge`` is what `polytag.learnability.RIDGE` was chosen by, before any real set was run: how
  often labels that hang on the features are found at p = .005, over sizes, spectra and the
  directions that carry the label. Chosen: the ridge that is never far behind the best for a
  spectrum and a kind of label.
- ``chance``: labels that hang on nothing. p-values must be uniform, and at most 5 % of tables may
  have an attribute that is called learnable. Tables have holes, and pictures that belong together.
- ``visible``: with as many groups as `needed` asks for, how often labels are found whose
  leave-one-out scores have an AUC of .70.

Prints the figures and appends them to benchmarks/results/learnability.csv.
"""

from __future__ import annotations

import csv
import datetime
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import scipy.stats
from quality import commit

from polytag.learnability import RIDGE, judge_learnability, leave_one_out, needed, rank_sums

RESULTS = Path(__file__).parent / "results" / "learnability.csv"
COLUMNS = ("date", "commit", "study", "setting", "figure", "value", "over")
RIDGES = (0.1, 0.3, 1, 3, 10, 30, 100)
SIZES = ((60, 30), (100, 15), (200, 20), (200, 80), (600, 20), (600, 100), (1500, 60), (1500, 600))
DECAYS = (0.5, 1.0, 1.5)  # the variance of the j-th direction is j^-decay
CARRIERS = {"first": (0, 1), "first 5": (0, 5), "first 50": (0, 50), "20 to 200": (20, 200)}
SHARES = (0.3, 0.5, 0.8)  # correlation of what is thresholded with the features
Row = tuple[str, str, float, int]  # setting, figure, value, over how many draws
rng = np.random.default_rng(0)


def pictures(count: int, width: int, decay: float) -> tuple[np.ndarray, np.ndarray]:
    """Draw coordinates (n, D) in directions of falling variance, and features (n, D)."""
    turn = np.linalg.qr(rng.normal(size=(width, width)).astype(np.float32))[0]
    along = rng.normal(size=(count, width)).astype(np.float32)
    spread = np.arange(1, width + 1, dtype=np.float32) ** np.float32(-decay / 2)
    return along, (along * spread) @ turn.T


def labelling(along: np.ndarray, carrier: str, share: float, present: int) -> np.ndarray:
    """Draw labels (n,): the ``present`` largest of a sum of some directions and of noise."""
    first, last = CARRIERS[carrier]
    weight = rng.normal(size=last - first)
    signal = along[:, first:last] @ (weight / np.linalg.norm(weight))
    score = share * signal + np.sqrt(1 - share**2) * rng.normal(size=len(along))
    return score >= np.sort(score)[-present]


def ridge() -> Iterator[Row]:
    """Measure the power of each ridge."""
    found: dict[tuple[float, str, float], list[float]] = defaultdict(list)
    for count, present in SIZES:
        for width in (500, 2000):
            for decay in DECAYS:
                along, features = pictures(count, width, decay)
                kinds = [(c, s) for c in CARRIERS for s in SHARES for _ in range(8)]
                labels = np.array([labelling(along, c, s, present) for c, s in kinds])
                chance = rng.permuted(np.tile(labels[0], (400, 1)), axis=1)
                both = np.concatenate([labels, chance])
                for strength in RIDGES:
                    scores = both.astype(np.float32) @ leave_one_out(features, strength).T
                    sums = rank_sums(scores, both)
                    reached = sums[: len(kinds)] > np.quantile(sums[len(kinds) :], 0.995)
                    for (carrier, _), hit in zip(kinds, reached, strict=True):
                        found[strength, carrier, decay].append(hit)
                        found[strength, f"n {count}, present {present}", 0].append(hit)
    power = {key: float(np.mean(hits)) for key, hits in found.items()}
    for strength in RIDGES:
        own = {key[1:]: value for key, value in power.items() if key[0] == strength}
        kinds_only = {key: value for key, value in own.items() if key[0] in CARRIERS}
        behind = [max(power[r, *key] for r in RIDGES) - own[key] for key in kinds_only]
        draws = sum(len(found[strength, *key]) for key in kinds_only)
        yield f"ridge {strength}", "power", float(np.mean(list(kinds_only.values()))), draws
        yield f"ridge {strength}", "most behind the best", max(behind), draws
        for (name, _), value in own.items():
            if name not in CARRIERS:
                yield f"ridge {strength}, {name}", "power", value, len(found[strength, name, 0])


def chance(tables: int = 2000) -> Iterator[Row]:
    """Measure p-values and false alarms of labels that hang on nothing."""
    p_values: list[float] = []
    alarms = 0
    for seed in range(tables):
        count, width, attributes = int(rng.integers(60, 300)), 200, 6
        _, features = pictures(count, width, 1.0)
        # Every fifth picture is there five times, each time with the labels of the first.
        again = np.concatenate([np.arange(count), np.repeat(np.arange(0, count, 5), 4)])
        rates = rng.uniform(0.1, 0.5, attributes)
        values = (rng.random((count, attributes)) < rates).astype(np.float32)[again]
        values[rng.random(values.shape) < 0.15] = np.nan
        judged = judge_learnability(features[again], values, again, seed=seed, permutations=399)
        p_values += [found.p_value for found in judged if not np.isnan(found.p_value)]
        alarms += any(found.verdict.startswith("learnable") for found in judged)
    setting = "6 attributes, duplicates, holes"
    yield setting, "tables with a false alarm", alarms / tables, tables
    yield setting, "p at most .05", float(np.mean(np.array(p_values) <= 0.05)), len(p_values)
    # Steps of 1/400 are spread out: then uniform is continuous, as the KS test wants it.
    spread = np.array(p_values) - rng.random(len(p_values)) / 400
    test = scipy.stats.kstest(spread, "uniform")
    yield setting, "KS distance from uniform", float(test.statistic), len(p_values)
    yield setting, "KS p", float(test.pvalue), len(p_values)


def visible(sets: int = 20) -> Iterator[Row]:
    """Measure how often scores of AUC .70 are found with as many groups as `needed` says."""
    strengths = np.linspace(0.3, 1, 8)  # of which AUC and power are taken, and read off at .70
    for ratio in (1, 4, 20):
        for attributes in (1, 4, 23):
            level = 0.05 / attributes
            few = needed(1, ratio, level)
            count = few * (ratio + 1)
            of_score: dict[str, list[np.ndarray]] = defaultdict(list)
            for _ in range(sets):
                along, features = pictures(count, 1000, 1.0)
                to_scores = leave_one_out(features, RIDGE).T
                chance = rng.permuted(np.tile(np.arange(count) < few, (2000, 1)), axis=1)
                limit = np.quantile(_aucs(chance, to_scores), 1 - level)
                for carrier in ("first 5", "first 50"):
                    for strength in strengths:
                        drawn = [labelling(along, carrier, strength, few) for _ in range(20)]
                        aucs = _aucs(np.array(drawn), to_scores)
                        of_score[carrier].append(np.array([aucs.mean(), (aucs > limit).mean()]))
            for carrier, pairs in of_score.items():
                auc, power = np.reshape(pairs, (sets, len(strengths), 2)).mean(axis=0).T
                if auc[-1] > 0.70:
                    setting = f"{few} of {count} present, level .05/{attributes}, {carrier}"
                    yield setting, "found", float(np.interp(0.70, auc, power)), sets * 20


def seconds() -> Iterator[Row]:
    """Time one judgement of a table as large as clothing-attributes, holes in each column."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(1485, 2848)).astype(np.float32)
    values = (rng.random((1485, 23)) < 0.2).astype(np.float32)
    values[rng.random(values.shape) < 0.08] = np.nan
    start = time.perf_counter()
    judge_learnability(features, values, np.arange(1485))
    yield "23 attributes, 1485 pictures, 2848 features", "seconds", time.perf_counter() - start, 1


def _aucs(labels: np.ndarray, to_scores: np.ndarray) -> np.ndarray:
    """Return the AUC (B,) of the leave-one-out scores of labels (B, n)."""
    present = labels.sum(axis=1)
    sums = rank_sums(labels.astype(np.float32) @ to_scores, labels)
    return (sums - present * (present - 1) / 2) / (present * (labels.shape[1] - present))


STUDIES = {"ridge": ridge, "chance": chance, "visible": visible, "seconds": seconds}


def main() -> None:
    """Run the studies named, or all of them, and keep the figures."""
    new = not RESULTS.exists()
    with RESULTS.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if new:
            writer.writerow(COLUMNS)
        for study in sys.argv[1:] or STUDIES:
            start = time.perf_counter()
            for setting, figure, value, over in STUDIES[study]():
                row = (study, setting, figure, f"{value:.4f}", over)
                writer.writerow((datetime.date.today().isoformat(), commit(), *row))
                file.flush()
                print(*row, sep=", ")
            print(f"{study}: {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
