"""How often `polytag compare` calls models of one quality different, on drawn data.

    python benchmarks/comparison.py [REPEATS]

draws scores of present and absent cells from two normal distributions (AUC .86) for two models
that err together (a share ``shared`` of the variance is common), compares them as polytag does, and
appends to benchmarks/results/comparison.csv how often an attribute's AP, AUC and the macro numbers
have a p value below .05 and .01, and how often anything of a kind is called better or worse after
Holm's rule. In groups of 2 the rows share nine tenths of the variance of their score.
"""

from __future__ import annotations

import csv
import datetime
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.special import expit

from polytag.compare import Difference, Said, differences

RESULTS = Path(__file__).parent / "results" / "comparison.csv"
COLUMNS = ("date", "commit", "scenario", "kind", "pairs", "below_05", "below_01", "claims")
ATTRIBUTES = 3


class Scenario(NamedTuple):
    """What is drawn."""

    present: int
    absent: int
    shared: float
    size: int = 1  # rows in a group


SCENARIOS = (
    *(Scenario(8, 392, 0.3), Scenario(8, 392, 0.9), Scenario(8, 392, 0.3, 2)),
    *(Scenario(20, 480, 0.3), Scenario(20, 480, 0.9), Scenario(20, 480, 0.3, 2)),
    *(Scenario(67, 933, 0.3), Scenario(67, 933, 0.9), Scenario(67, 933, 0.3, 2)),
    Scenario(300, 700, 0.3),
)


def normal(rng: np.random.Generator, shape: tuple[int, int], size: int) -> np.ndarray:
    """Return normal numbers, nine tenths of their variance shared by the rows of a group."""
    alone = rng.standard_normal(shape)
    if size == 1:
        return alone
    together = np.repeat(rng.standard_normal((shape[0] // size, shape[1])), size, axis=0)
    return 0.9**0.5 * together + 0.1**0.5 * alone


def compared(scenario: Scenario, rng: np.random.Generator) -> list[Difference]:
    """Draw two models of one quality and compare them."""
    rows = (scenario.present + scenario.absent) // scenario.size
    values = np.zeros((rows, ATTRIBUTES))
    for column in values.T:
        column[rng.permutation(rows)[: scenario.present // scenario.size]] = 1
    values = np.repeat(values, scenario.size, axis=0)
    shared = normal(rng, values.shape, scenario.size)
    sides = []
    for run in "ab":
        own = normal(rng, values.shape, scenario.size)
        z = 1.5 * values + scenario.shared**0.5 * shared + (1 - scenario.shared) ** 0.5 * own
        sides.append(Said(run, expit(z), z > 1))
    names = [f"attribute {k}" for k in range(ATTRIBUTES)]
    groups = np.arange(len(values)) // scenario.size
    return differences(names, values, sides[0], sides[1:], groups)


def main() -> None:
    """Measure every scenario and append what was found."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 800
    git = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    RESULTS.parent.mkdir(exist_ok=True)
    fresh = not RESULTS.exists()
    with RESULTS.open("a", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if fresh:
            writer.writerow(COLUMNS)
        for scenario in SCENARIOS:
            rng = np.random.default_rng(0)
            found: dict[str, list[list[Difference]]] = {"macro": [], "ap": [], "auc": []}
            for _ in range(repeats):
                everything = compared(scenario, rng)
                for kind, runs in found.items():
                    macro = kind == "macro"
                    runs.append(
                        [
                            d
                            for d in everything
                            if (d.attribute is None) == macro and (macro or d.metric == kind)
                        ]
                    )
            title = f"{scenario.present}/{scenario.absent} shared {scenario.shared:g}"
            title += f" groups of {scenario.size}" if scenario.size > 1 else ""
            for kind, runs in found.items():
                p_values = np.array([[d.p_value for d in run] for run in runs])
                claims = np.mean([any(d.words in ("better", "worse") for d in r) for r in runs])
                shares = [
                    f"{share:.4f}"
                    for share in ((p_values < 0.05).mean(), (p_values < 0.01).mean(), claims)
                ]
                row = [datetime.date.today().isoformat(), commit, title, kind, repeats, *shares]
                writer.writerow(row)
                file.flush()
                print(*row[2:])


if __name__ == "__main__":
    main()
