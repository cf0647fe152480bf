"""What the recipes that train a network give on real photographs, and how long they take.

    python benchmarks/recipes.py labels.csv images/ RECIPE [KEY=VALUE ...]

trains one recipe, prints its numbers and appends them to benchmarks/results/recipes.csv with the
commit. Seconds are of this machine; compare rows of one day.
"""

from __future__ import annotations

import csv
import datetime
import logging
import os
import sys
import tempfile
from pathlib import Path

from quality import commit

from polytag import fit, read_table
from polytag.config import parse_changes

RESULTS = Path(__file__).parent / "results" / "recipes.csv"


def measure(labels: Path, images: Path, recipe: str, settings: list[str]) -> dict[str, object]:
    """Train a recipe with some settings and return a row of the results."""
    with tempfile.TemporaryDirectory() as folder:
        keep = os.environ.get("POLYTAG_RUNS", folder)  # where to look at a run afterwards
        changes = parse_changes(settings)
        run = fit(read_table(labels), images, recipe=recipe, changes=changes, folder=keep)
    found, ap = run.metrics, run.evaluation.macro["ap"]
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "data": labels.parent.name,
        "recipe": recipe,
        "settings": " ".join(settings),
        "judged": found["judged"],
        "macro_ap": f"{ap.value:.4f}",
        "guess": f"{ap.chance:.4f}",
        "log_loss": f"{run.evaluation.log_loss.value:.4f}",
        "training_loss": found["training_loss"],
        "best_epoch": found["best_epoch"],
        "seconds": found["seconds"],
    }


def main() -> None:
    """Measure one recipe and keep the row."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    labels, images, recipe, *settings = sys.argv[1:]
    row = measure(Path(labels), Path(images), recipe, settings)
    new = not RESULTS.exists()
    with RESULTS.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)
    print(", ".join(f"{key} {value}" for key, value in row.items()))


if __name__ == "__main__":
    main()
