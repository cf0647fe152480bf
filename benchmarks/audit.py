"""Do label errors stand at the top of the audit's list? Real labels, some turned round.

    python benchmarks/audit.py labels.csv images/ [SEED ...]

turns 3 % of the known cells round, drawn by chance, audits that table, and counts how many of the
turned cells stand in the first 3 % of the ranking, beside what a random order would hold: over the
attributes whose AUC is above .85, by the labels as they were and by those with the errors. The
rows go to benchmarks/results/audit.csv with the commit.
"""

from __future__ import annotations

import csv
import datetime
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from polytag import read_table
from polytag.audit import Material, gather
from polytag.metrics import roc_auc
from polytag.suspects import eligible, rank_cells, suspected

RESULTS = Path(__file__).parent / "results" / "audit.csv"
SHARE = 0.03
GOOD = 0.85
COLUMNS = (
    *("date", "commit", "data", "seed", "over", "attributes", "cells", "turned", "first", "found"),
    *("times_chance", "suspected", "suspects_right"),
)


def commit() -> str:
    """Return the commit that is measured, with a + where the tree differs from it."""
    described = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    return subprocess.run(described, capture_output=True, text=True, check=True).stdout.strip()


def turn_round(values: np.ndarray, seed: int) -> np.ndarray:
    """Return bool (N, K): the cells to turn round, a share of the known ones."""
    known = np.argwhere(~np.isnan(values))
    drawn = np.random.default_rng(seed).permutation(len(known))[: round(SHARE * len(known))]
    turned = np.zeros(values.shape, dtype=bool)
    turned[tuple(known[drawn].T)] = True
    return turned


def count(material: Material, turned: np.ndarray, columns: np.ndarray) -> dict[str, object]:
    """Count turned cells at the top of the ranking of some attributes."""
    learnable = [one.verdict.startswith("learnable") for one in material.verdicts]
    looked_at = eligible(material.values, learnable, material.identical)
    values = np.where(columns, looked_at, np.nan)
    rows, order = rank_cells(values, material.probabilities)
    first = round(SHARE * len(rows))
    hits = turned[rows, order]
    suspects = suspected(values, material.probabilities)
    return {
        "attributes": int(columns.sum()),
        "cells": len(rows),
        "turned": int(hits.sum()),
        "first": first,
        "found": int(hits[:first].sum()),
        "times_chance": f"{hits[:first].mean() / hits.mean():.1f}",
        "suspected": int(suspects.sum()),
        "suspects_right": f"{turned[suspects].mean():.3f}",
    }


def measure(labels: Path, images: Path, seed: int) -> list[dict[str, object]]:
    """Return the rows of one draw."""
    table = read_table(labels)
    turned = turn_round(table.values, seed)
    material = gather(
        replace(table, values=np.where(turned, 1 - table.values, table.values)), images
    )
    row_of = {name: row for row, name in enumerate(table.images)}
    used = [row_of[name] for name in material.names]
    p = np.where(np.isnan(material.probabilities), 0.5, material.probabilities)
    by_truth = roc_auc(table.values[used], p) > GOOD
    by_labels = roc_auc(material.values, p) > GOOD
    parts = {
        "AUC > .85 on the labels as they were": by_truth,
        "AUC > .85 on the labels with errors": by_labels,
        "all": np.ones_like(by_truth),
    }
    about = {
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "data": labels.parent.name,
        "seed": seed,
    }
    return [
        about | {"over": words} | count(material, turned[used], columns)
        for words, columns in parts.items()
    ]


def main() -> None:
    """Measure every seed and keep the rows."""
    labels, images, *seeds = sys.argv[1:]
    new = not RESULTS.exists()
    with RESULTS.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        for seed in map(int, seeds or ("0", "1", "2")):
            for row in measure(Path(labels), Path(images), seed):
                writer.writerow(row)
                file.flush()
                print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)


if __name__ == "__main__":
    main()
