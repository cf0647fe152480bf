"""What calibration is worth: on drawn logits whose true probabilities are known, on real ones.

    python benchmarks/calibration.py                        # drawn, two minutes
    python benchmarks/calibration.py labels.csv images/     # the probe's out-of-fold logits

appends to benchmarks/results/calibration.csv. Drawn: scores of two normal classes with an AUC of
.85, each distorted as a loss or a network distorts it; fitted on as many cells as an attribute of
real tables has, judged on fresh draws by the true probabilities, so that nothing but the
calibration's own error is left: its excess log loss (mean Kullback-Leibler divergence, nats) and
its calibration error (mean |q - p|). Real: log loss, and calibration error in ten bins of equal
size an attribute, on out-of-fold rows, calibration cross-fitted. "kind" is what was asked for;
"none" is the raw logit, "gain G" is auto with another `_BETA_GAIN`.
"""

from __future__ import annotations

import csv
import datetime
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from polytag import calibration, read_table
from polytag.backbone import load_backbone
from polytag.config import load_recipe
from polytag.features import make_extractor, rows_with_features
from polytag.groups import identical
from polytag.losses import masked_asymmetric, masked_focal
from polytag.pictures import locate
from polytag.probe import fit_probe
from polytag.splits import stratified_folds

RESULTS = Path(__file__).parent / "results" / "calibration.csv"
COLUMNS = ("date", "commit", "data", "present", "absent", "kind", "log_loss", "ece", "made")
DRAWS = 40
SEPARATION = 1.466  # of the classes' means, in standard deviations: an AUC of .85
# Present and absent cells: five rare attributes to share a temperature, then three sizes of the
# clothing attributes.
SIZES = ((13, 335),) * 5 + ((67, 1677), (211, 1528), (620, 1124))
ROWS = 1744
KINDS = ("none", "auto", "gain 1", "gain 3", "temperature", "platt", "beta")
TRUE = np.linspace(-30, 30, 6001)


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def minimiser(loss: Callable[..., Tensor], **options: float) -> np.ndarray:
    """Return the logits at which a loss has its population minimum, for the true logits TRUE.

    Within 15 either way, as far as networks go: where an attribute is all but certain, asymmetric
    losses have their minimum at infinity.
    """
    target = torch.tensor(sigmoid(TRUE))[None]
    low, high = torch.full_like(target, -15), torch.full_like(target, 15)
    for _ in range(60):
        middle = ((low + high) / 2).requires_grad_()
        loss(middle, target, target >= 0, per="none", **options).sum().backward()
        below = middle.grad < 0
        middle = middle.detach()
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return ((low + high) / 2).numpy()[0]


FOCAL = minimiser(masked_focal)
ASYMMETRIC = minimiser(masked_asymmetric)
STRONGLY_ASYMMETRIC = minimiser(masked_asymmetric, gamma_positive=0.0)

# From true logits, present and absent cells to what a network gives.
DISTORTIONS: dict[str, Callable[[np.ndarray, int, int], np.ndarray]] = {
    "calibrated": lambda t, present, absent: t,
    "pos_weight": lambda t, present, absent: t + np.log(min(absent / present, 20)),
    "temperature 2": lambda t, present, absent: 2 * t,
    "slope by size": lambda t, present, absent: t * (2.5 if present < 30 else 1.2),
    "focal": lambda t, present, absent: np.interp(t, TRUE, FOCAL),
    "asymmetric 4/1": lambda t, present, absent: np.interp(t, TRUE, ASYMMETRIC),
    "asymmetric 4/0": lambda t, present, absent: np.interp(t, TRUE, STRONGLY_ASYMMETRIC),
}


def draw(present: np.ndarray, prior: float, rng: np.random.Generator) -> np.ndarray:
    """Return true logits of cells whose class is given."""
    side = np.where(present, 1, -1) * SEPARATION**2 / 2
    return prior + rng.normal(side, SEPARATION)


def sample(name: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return distorted logits and values (N, K) of one attribute a size."""
    logits, values = np.zeros((ROWS, len(SIZES))), np.full((ROWS, len(SIZES)), np.nan)
    for k, (present, absent) in enumerate(SIZES):
        values[:present, k], values[present : present + absent, k] = 1, 0
        true = draw(values[:, k] == 1, np.log(present / absent), rng)
        logits[:, k] = DISTORTIONS[name](true, present, absent)
    return logits, values


def fitted(logits: np.ndarray, values: np.ndarray, kind: str) -> calibration.Calibration:
    usual = calibration._BETA_GAIN
    if kind.startswith("gain"):
        kind, calibration._BETA_GAIN = "auto", float(kind.split()[1])
    try:
        return calibration.fit_calibration(logits, values, kind=kind)
    finally:
        calibration._BETA_GAIN = usual


def drawn() -> Iterator[dict[str, object]]:
    """Measure every distortion, size and kind."""
    for name in DISTORTIONS:
        found: dict[tuple[tuple[int, int], str], list[tuple[float, float, str]]] = {}
        for seed in range(DRAWS):
            rng = np.random.default_rng(seed)
            logits, values = sample(name, rng)
            fresh = np.empty((4000, len(SIZES)))
            true = np.empty_like(fresh)
            for k, (present, absent) in enumerate(SIZES):
                there = rng.random(len(fresh)) < present / (present + absent)
                true[:, k] = draw(there, np.log(present / absent), rng)
                fresh[:, k] = DISTORTIONS[name](true[:, k], present, absent)
            p = sigmoid(true)
            for kind in KINDS:
                made = fitted(logits, values, kind)
                q = np.clip(made.probabilities(fresh), 2.0**-23, 1 - 2.0**-23)
                excess = (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean(axis=0)
                error = np.abs(p - q).mean(axis=0)
                for k, size in enumerate(SIZES):
                    found.setdefault((size, kind), []).append((excess[k], error[k], made.kinds[k]))
        for ((present, absent), kind), rows in found.items():
            excess, error, kinds = zip(*rows, strict=True)
            shares = {made: kinds.count(made) / len(kinds) for made in sorted(set(kinds))}
            yield {
                "data": f"drawn: {name}",
                "present": present,
                "absent": absent,
                "kind": kind,
                "log_loss": f"{np.mean(excess):.5f}",
                "ece": f"{np.mean(error):.5f}",
                "made": " ".join(f"{made} {share:.2f}" for made, share in shares.items()),
            }


def real(labels: Path, images: Path) -> Iterator[dict[str, object]]:
    """Measure the probe's out-of-fold logits, raw and calibrated."""
    recipe = load_recipe("probe")
    backbone = load_backbone(recipe.backbone, recipe.preprocess, recipe.features, recipe.seed)
    table = read_table(labels)
    extractor = make_extractor(backbone, recipe.features, "cpu")
    rows, features = rows_with_features(table, *locate(table, images), extractor)
    values, groups = rows.table.values, identical(rows.hashes)
    folds = stratified_folds(values, groups, folds=recipe.split.folds, seed=recipe.seed)
    logits = fit_probe(features, values, folds, recipe.probe).logits
    made = calibration.fit_calibration(logits, values)
    shares = {kind: made.kinds.count(kind) for kind in sorted(set(made.kinds))}
    slopes = f"slope a {made.a.min():.2f} to {made.a.max():.2f}"
    for kind in ("none", "auto", "temperature", "platt", "beta"):
        p = calibration.cross_fitted(logits, values, folds, kind=kind)
        per_attribute = [judge(values[:, k], p[:, k]) for k in range(values.shape[1])]
        loss, error = np.mean(per_attribute, axis=0)
        yield {
            "data": labels.parent.name,
            "present": int(np.nansum(values)),
            "absent": int(np.sum(values == 0)),
            "kind": kind,
            "log_loss": f"{loss:.5f}",
            "ece": f"{error:.5f}",
            "made": f"{shares}, {slopes}" if kind == "auto" else "",
        }


def judge(values: np.ndarray, p: np.ndarray) -> tuple[float, float]:
    """Return log loss and calibration error of an attribute's known cells."""
    known = ~np.isnan(values)
    values, p = values[known], p[known]
    loss = -np.log(np.clip(np.where(values == 1, p, 1 - p), 2.0**-23, 1)).mean()
    bins = np.array_split(np.argsort(p, kind="stable"), 10)
    error = sum(abs(np.sum(values[rows] - p[rows])) for rows in bins) / len(p)
    return float(loss), float(error)


def commit() -> str:
    """Return the commit that is measured, with a + where the tree differs from it."""
    described = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    return subprocess.run(described, capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    """Measure and keep the rows."""
    given = [Path(word) for word in sys.argv[1:]]
    stamp = {"date": datetime.date.today().isoformat(), "commit": commit()}
    new = not RESULTS.exists()
    with RESULTS.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        for row in real(*given) if given else drawn():
            writer.writerow(stamp | row)
            file.flush()
            print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)


if __name__ == "__main__":
    main()
