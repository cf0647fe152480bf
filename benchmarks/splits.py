"""How even five folds are, grouped and stratified, beside folds drawn at random.

    python benchmarks/splits.py labels.csv images/

takes the folds of ten seeds, prints for each the worst relative deviation of the positives and
the widest range of prevalence between folds, both over attributes, and how many groups of pictures
that are the same or nearly so are divided; appends all to benchmarks/results/splits.csv.
"""

from __future__ import annotations

import csv
import datetime
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from polytag import read_table
from polytag.backbone import load_backbone
from polytag.config import load_recipe
from polytag.features import make_extractor, rows_with_features
from polytag.groups import identical, joined, similar
from polytag.pictures import locate
from polytag.splits import stratified_folds

RESULTS = Path(__file__).parent / "results" / "splits.csv"
SEEDS, FOLDS = range(10), 5
COLUMNS = ("date", "commit", "data", "kind", "seed", "deviation", "range", "divided", "seconds")


def commit() -> str:
    """Return the commit that is measured, with a + where the tree differs from it."""
    described = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    return subprocess.run(described, capture_output=True, text=True, check=True).stdout.strip()


def measure(values: np.ndarray, groups: np.ndarray, folds: np.ndarray) -> dict[str, str]:
    """Return how even folds are and how many groups they divide."""
    parts = [values[folds == fold] for fold in range(FOLDS)]
    present = np.array([(part == 1).sum(axis=0) for part in parts])
    prevalence = np.array([np.nanmean(part, axis=0) for part in parts])
    pieces = np.unique(np.stack([groups, folds]), axis=1)[0]
    return {
        "deviation": f"{np.abs(present / present.mean(axis=0) - 1).max():.3f}",
        "range": f"{np.ptp(prevalence, axis=0).max():.4f}",
        "divided": str((np.bincount(pieces) > 1).sum()),
    }


def main() -> None:
    """Measure folds of every seed and keep the rows."""
    labels, images = map(Path, sys.argv[1:])
    table, recipe = read_table(labels), load_recipe("probe")
    backbone = load_backbone(recipe.backbone, recipe.preprocess, recipe.features, recipe.seed)
    extractor = make_extractor(backbone, recipe.features, "cpu")
    rows, features = rows_with_features(table, *locate(table, images), extractor)
    groups = joined(identical(rows.hashes), similar(rows.looks, features))
    values = rows.table.values
    sizes = np.bincount(groups)
    several = sizes[sizes > 1]
    print(f"{len(values)} pictures; {len(several)} groups of several, {several.sum()} pictures")
    new = not RESULTS.exists()
    with RESULTS.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        for seed in SEEDS:
            start = time.perf_counter()
            found = {"stratified": stratified_folds(values, groups, folds=FOLDS, seed=seed)}
            seconds = time.perf_counter() - start
            rng = np.random.default_rng(seed)
            found["random"] = rng.permutation(np.arange(len(values)) % FOLDS)
            for kind, folds in found.items():
                row = {
                    "date": datetime.date.today().isoformat(),
                    "commit": commit(),
                    "data": labels.parent.name,
                    "kind": kind,
                    "seed": str(seed),
                    **measure(values, groups, folds),
                    "seconds": f"{seconds:.2f}" if kind == "stratified" else "",
                }
                writer.writerow(row)
                print(", ".join(f"{key} {value}" for key, value in row.items()))


if __name__ == "__main__":
    main()
