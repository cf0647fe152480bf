"""What the choices of the default recipe are worth on real photographs.

    python benchmarks/quality.py labels.csv images/ [KEY=VALUE ...]

trains the default recipe and, one after the other, the variants below (or the settings given),
prints the out-of-fold numbers and appends them to benchmarks/results/quality.csv with the commit.
"""

from __future__ import annotations

import csv
import datetime
import subprocess
import sys
import tempfile
from pathlib import Path

from polytag import fit, read_table
from polytag.config import parse_changes

RESULTS = Path(__file__).parent / "results" / "quality.csv"
VARIANTS = (
    "",
    "preprocess.resize=squash",
    "preprocess.resize=pad",
    "preprocess.crop_fraction=1.0",
    "features.layers=last",
    "features.flip=false",
    "seed=1",
    "seed=2",
)
COLUMNS = ("date", "commit", "data", "settings", "macro_ap", "guess", "mean_over_folds", "log_loss")


def commit() -> str:
    """Return the commit that is measured, with a + where the tree differs from it."""
    described = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    return subprocess.run(described, capture_output=True, text=True, check=True).stdout.strip()


def measure(labels: Path, images: Path, settings: str) -> dict[str, str]:
    """Train with some settings and return a row of the results."""
    with tempfile.TemporaryDirectory() as folder:
        changes = parse_changes(settings.split())
        run = fit(read_table(labels), images, changes=changes, folder=folder)
    macro, loss = run.evaluation.macro["ap"], run.evaluation.log_loss
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "data": labels.parent.name,
        "settings": settings,
        "macro_ap": f"{macro.value:.4f}",
        "guess": f"{macro.chance:.4f}",
        "mean_over_folds": f"{macro.mean_over_folds:.4f}",
        "log_loss": f"{loss.value:.4f}",
    }


def main() -> None:
    """Measure every variant and keep the rows."""
    labels, images, *given = sys.argv[1:]
    new = not RESULTS.exists()
    with RESULTS.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        for settings in [" ".join(given)] if given else VARIANTS:
            row = measure(Path(labels), Path(images), settings)
            writer.writerow(row)
            file.flush()
            print(", ".join(f"{key} {value}" for key, value in row.items()))


if __name__ == "__main__":
    main()
