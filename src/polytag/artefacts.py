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

from polytag import plots, runs
from polytag.card import model_card
from polytag.config import Recipe, to_toml
from polytag.files import write_text, written_aside
from polytag.images import content_hash, decode
from polytag.method import Trained
from polytag.modelfile import ModelInfo
from polytag.pictures import Rows
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
        learnt: The columns that were trained.
        left_out: The other attributes, with the reason.
        probabilities: float32 (N, K) of the judged rows; NaN columns: not trained.
        thresholds: float64 (K,).
        evaluation: Of these probabilities.
        trained: What the method left.
        seconds: How long it took.
    """

    recipe: Recipe
    rows: Rows
    groups: NDArray[np.int64]
    learnt: list[int]
    left_out: dict[str, str]
    probabilities: NDArray[np.float32]
    thresholds: NDArray[np.float64]
    evaluation: Evaluation
    trained: Trained
    seconds: float


def write_run(run: Path, outcome: Outcome) -> dict[str, Any]:
    """Fill a run folder; model.onnx comes last, so that a folder which has one is finished.

    Returns:
        The content of ``metrics.json``.
    """
    _write_tables(run, outcome)
    info = _model_info(run, outcome)
    metrics = outcome.evaluation.to_dict() | {
        "method": outcome.recipe.method,
        "rows": len(outcome.rows.table),
        "judged": int(outcome.trained.judged.sum()),
        "skipped": len(outcome.rows.skipped),
        **outcome.trained.facts,
        "note": outcome.trained.note or None,
        "seconds": round(outcome.seconds, 1),
    }
    write_text(run / "config.toml", to_toml(outcome.recipe))
    write_text(run / "metrics.json", json.dumps(metrics, indent=1, ensure_ascii=False) + "\n")
    card = model_card(
        info,
        outcome.evaluation,
        outcome.recipe,
        len(outcome.rows.table),
        outcome.trained.judged_on,
        outcome.trained.facts,
        outcome.trained.note,
    )
    write_text(run / "README.md", card)
    _write_judged(run / "oof.parquet", outcome)
    plots.loss_curve(outcome.trained.history, outcome.recipe.title, run / "loss_curve.png")
    if outcome.trained.judged.any():
        plots.sample_predictions(
            _samples(outcome), outcome.rows.table.attributes, run / "sample_predictions.png"
        )
    outcome.trained.model.save(run / "weights.safetensors", info.attributes)
    outcome.trained.write(info, run / "model.onnx")
    return metrics


def versions() -> dict[str, str]:
    """Return the versions of what makes a model file."""
    return {name: version(name) for name in _PACKAGES} | {"python": platform.python_version()}


def _model_info(run: Path, outcome: Outcome) -> ModelInfo:
    table, whole = outcome.rows.table, outcome.evaluation.to_dict()
    kinds = ("present", "absent", "na")
    counts = zip(table.attributes, table.counts().tolist(), strict=True)
    return ModelInfo(
        attributes=tuple(table.attributes[k] for k in outcome.learnt),
        thresholds=tuple(float(outcome.thresholds[k]) for k in outcome.learnt),
        preprocess=outcome.trained.model.backbone.spec,
        left_out=outcome.left_out,
        counts={name: dict(zip(kinds, row, strict=True)) for name, row in counts},
        recipe=_without_places(outcome.recipe).model_dump(mode="json", exclude={"data"}),
        splits_hash=content_hash(run / "splits.csv"),
        metrics={"macro": whole["macro"], "over": whole["over"]},
        versions=versions(),
        weights_licence=outcome.trained.model.backbone.licence,
    )


def _without_places(recipe: Recipe) -> Recipe:
    """Return the recipe without folders of this machine: nobody's business who gets the model."""
    return recipe.replace({"backbone.weights": Path(recipe.backbone.weights).name})


def _write_tables(run: Path, outcome: Outcome) -> None:
    rows = outcome.rows
    history = outcome.trained.history
    runs.write_rows(run / "history.csv", history.header(), history.rows())
    runs.write_rows(
        run / "splits.csv",
        ["image", "content_hash", "group", "fold"],
        zip(rows.table.images, rows.hashes, outcome.groups, outcome.trained.folds, strict=True),
    )
    runs.write_rows(
        run / "skipped.csv",
        ["image", "where", "reason"],
        ([row.image, row.where, row.reason] for row in rows.skipped),
    )


def _write_judged(path: Path, outcome: Outcome) -> None:
    judged = np.flatnonzero(outcome.trained.judged).tolist()
    table, learnt = outcome.rows.table.select(judged), outcome.learnt
    names, rows = [table.attributes[k] for k in learnt], len(table)
    folded = outcome.trained.folds.dtype.kind == "i"
    folds = outcome.trained.folds[judged].tolist() if folded else [None] * rows
    long = pl.DataFrame(
        {
            "image": pl.Series([image for image in table.images for _ in names], dtype=pl.String),
            "attribute": pl.Series(names * rows, dtype=pl.String),
            "truth": pl.Series(table.values[:, learnt].ravel()).fill_nan(None).cast(pl.Int8),
            "probability_raw": outcome.probabilities[judged][:, learnt].ravel(),
            "probability_calibrated": pl.Series([None] * (rows * len(names)), dtype=pl.Float32),
            "fold": pl.Series([fold for fold in folds for _ in names], dtype=pl.Int64),
            "threshold": np.tile(outcome.thresholds[learnt], rows),
        }
    )
    with written_aside(path) as aside:
        long.write_parquet(aside)


def _samples(outcome: Outcome) -> list[plots.Sample]:
    rng = np.random.default_rng(outcome.recipe.seed)
    rows = sorted(rng.permutation(np.flatnonzero(outcome.trained.judged))[:_SAMPLES])
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
