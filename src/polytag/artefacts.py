"""What a run leaves behind: its tables, pictures, card, weights and model file."""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from safetensors.torch import save

from polytag import plots, runs
from polytag.backbone import Backbone
from polytag.card import model_card
from polytag.config import Recipe, to_toml
from polytag.features import Rows
from polytag.files import write_text, written_aside
from polytag.graph import write_model
from polytag.images import content_hash, decode
from polytag.model import Classifier
from polytag.modelfile import ModelInfo
from polytag.probe import ProbeFit
from polytag.results import Evaluation

_SAMPLES = 12  # pictures in sample_predictions.png: what a screen shows at once
_PACKAGES = ("polytag", "numpy", "onnxruntime", "pillow", "scipy", "timm", "torch")


@dataclass(frozen=True, eq=False)
class Outcome:
    """Everything a finished training knows.

    Attributes:
        recipe: As resolved.
        rows: The N rows that were used, K attributes; and those that were not.
        groups: int (N,); rows of one number stayed on one side.
        folds: int (N,).
        learnt: The columns that were trained.
        left_out: The other attributes, with the reason.
        probabilities: float32 (N, K), out of fold; NaN columns: not trained.
        thresholds: float64 (K,).
        evaluation: Of these probabilities.
        probe: The fitted probe.
        backbone: The network under it.
        graph: The network's ONNX file.
        seconds: How long it took.
    """

    recipe: Recipe
    rows: Rows
    groups: NDArray[np.int64]
    folds: NDArray[np.int64]
    learnt: list[int]
    left_out: dict[str, str]
    probabilities: NDArray[np.float32]
    thresholds: NDArray[np.float64]
    evaluation: Evaluation
    probe: ProbeFit
    backbone: Backbone
    graph: Path
    seconds: float


def write_run(run: Path, outcome: Outcome) -> dict[str, Any]:
    """Fill a run folder; model.onnx comes last, so that a folder which has one is finished.

    Returns:
        The content of ``metrics.json``.
    """
    _write_tables(run, outcome)
    info = _model_info(run, outcome)
    note = _note(outcome)
    metrics = outcome.evaluation.to_dict() | {
        "rows": len(outcome.rows.table),
        "skipped": len(outcome.rows.skipped),
        "folds": outcome.recipe.split.folds,
        "l2": outcome.probe.l2,
        "l2_of_fold": list(outcome.probe.l2_of_fold),
        "note": note or None,
        "deployed": "refitted on all rows",
        "seconds": round(outcome.seconds, 1),
    }
    write_text(run / "config.toml", to_toml(outcome.recipe))
    write_text(run / "metrics.json", json.dumps(metrics, indent=1, ensure_ascii=False) + "\n")
    card = model_card(info, outcome.evaluation, outcome.recipe, len(outcome.rows.table), note)
    write_text(run / "README.md", card)
    _write_out_of_fold(run / "oof.parquet", outcome)
    plots.loss_curve(outcome.probe.losses, outcome.recipe.title, run / "loss_curve.png")
    plots.sample_predictions(
        _samples(outcome), outcome.rows.table.attributes, run / "sample_predictions.png"
    )
    classifier = Classifier(outcome.backbone.cpu(), len(outcome.learnt))
    classifier.set_head(outcome.probe.head)
    with written_aside(run / "weights.safetensors") as aside:
        # As bytes, so that a full disk is an ordinary error and the file as readable as others.
        aside.write_bytes(save({k: v.contiguous() for k, v in classifier.state_dict().items()}))
    write_model(outcome.graph, outcome.probe.head, info, run / "model.onnx")
    return metrics


def _note(outcome: Outcome) -> str:
    """Say it in words if held-out pictures were best predicted without looking at them."""
    config = outcome.recipe.probe
    if config.l2 != "auto" or len(config.l2_grid) < 2 or outcome.probe.l2 < max(config.l2_grid):
        return ""
    return (
        "The strongest penalty predicted held-out pictures best: on the whole, looking at the "
        "pictures did not help, and this model answers hardly more than the base rates."
    )


def _model_info(run: Path, outcome: Outcome) -> ModelInfo:
    table, whole = outcome.rows.table, outcome.evaluation.to_dict()
    kinds = ("present", "absent", "na")
    counts = zip(table.attributes, table.counts().tolist(), strict=True)
    versions = {package: version(package) for package in _PACKAGES}
    return ModelInfo(
        attributes=tuple(table.attributes[k] for k in outcome.learnt),
        thresholds=tuple(float(outcome.thresholds[k]) for k in outcome.learnt),
        preprocess=outcome.backbone.spec,
        left_out=outcome.left_out,
        counts={name: dict(zip(kinds, row, strict=True)) for name, row in counts},
        recipe=_without_places(outcome.recipe).model_dump(mode="json", exclude={"data"}),
        splits_hash=content_hash(run / "splits.csv"),
        metrics={"macro": whole["macro"], "over": whole["over"]},
        versions=versions | {"python": platform.python_version()},
        weights_licence=outcome.backbone.licence,
    )


def _without_places(recipe: Recipe) -> Recipe:
    """Return the recipe without folders of this machine: nobody's business who gets the model."""
    return recipe.replace({"backbone.weights": Path(recipe.backbone.weights).name})


def _write_tables(run: Path, outcome: Outcome) -> None:
    rows = outcome.rows
    runs.write_rows(
        run / "history.csv",
        ["iteration_number", "training_loss", "lr", "stage"],
        ([i, f"{loss:.8g}", None, "probe"] for i, loss in enumerate(outcome.probe.losses)),
    )
    runs.write_rows(
        run / "splits.csv",
        ["image", "content_hash", "group", "fold"],
        zip(rows.table.images, rows.hashes, outcome.groups, outcome.folds, strict=True),
    )
    runs.write_rows(
        run / "skipped.csv",
        ["image", "where", "reason"],
        ([row.image, row.where, row.reason] for row in rows.skipped),
    )


def _write_out_of_fold(path: Path, outcome: Outcome) -> None:
    table, learnt = outcome.rows.table, outcome.learnt
    names, rows = [table.attributes[k] for k in learnt], len(table)
    long = pl.DataFrame(
        {
            "image": [image for image in table.images for _ in names],
            "attribute": names * rows,
            "truth": pl.Series(table.values[:, learnt].ravel()).fill_nan(None).cast(pl.Int8),
            "probability_raw": outcome.probabilities[:, learnt].ravel(),
            "probability_calibrated": pl.Series([None] * (rows * len(names)), dtype=pl.Float32),
            "fold": np.repeat(outcome.folds, len(names)),
            "threshold": np.tile(outcome.thresholds[learnt], rows),
        }
    )
    with written_aside(path) as aside:
        long.write_parquet(aside)


def _samples(outcome: Outcome) -> list[plots.Sample]:
    rng = np.random.default_rng(outcome.recipe.seed)
    rows = sorted(rng.permutation(len(outcome.rows.table))[:_SAMPLES])
    return [
        plots.Sample(
            outcome.rows.table.images[row],
            decode(outcome.rows.paths[row]),
            outcome.rows.table.values[row],
            outcome.probabilities[row],
            outcome.thresholds,
        )
        for row in rows
    ]
