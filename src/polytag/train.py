"""The story: from pictures and a label table with holes to a run folder. Read it top to bottom."""

from __future__ import annotations

import json
import logging
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polytag import plots, runs
from polytag.backbone import Backbone, load_backbone
from polytag.card import model_card
from polytag.config import Recipe, load_recipe, to_toml
from polytag.errors import RecipeError, UserError
from polytag.features import extract, make_extractor
from polytag.files import write_text, written_aside
from polytag.graph import write_model
from polytag.groups import identical
from polytag.images import decode
from polytag.metrics import Evaluation, evaluate_arrays
from polytag.model import Classifier
from polytag.modelfile import ModelInfo
from polytag.pictures import MAX_SKIPPED, Skipped, locate, refuse_too_many, skipped_rows
from polytag.probe import ProbeFit, fit_probe, fits
from polytag.progress import progress
from polytag.splits import stratified_folds
from polytag.table import LabelTable

log = logging.getLogger("polytag")

_SAMPLES = 12  # pictures in sample_predictions.png: what a screen shows at once
_PACKAGES = ("polytag", "numpy", "onnxruntime", "pillow", "scipy", "timm", "torch")


def fit(
    table: LabelTable,
    images: str | os.PathLike[str],
    *,
    recipe: str | os.PathLike[str] | Recipe = "probe",
    changes: Mapping[str, object] | None = None,
    name: str | None = None,
    folder: str | os.PathLike[str] = "runs",
    strict: bool = False,
    max_skipped: float = MAX_SKIPPED,
) -> runs.Run:
    """Train a classifier, judge it, and leave a run folder.

    Every number it reports was measured on pictures that chose nothing: each picture is predicted
    by a model that was fitted, its L2 penalty chosen, on other folds. The model that is kept is
    refitted on all pictures.

    Args:
        table: Labels with holes.
        images: The folder of pictures.
        recipe: A recipe's name, a TOML file (a run's ``config.toml`` repeats that run), a recipe.
        changes: Dotted keys of the recipe and their values, for example ``{"probe.l2": 0.1}``.
        name: Of the run; None: ``probe-1``, ``probe-2`` ...
        folder: Where run folders are.
        strict: Whether one picture that cannot be used stops everything.
        max_skipped: Share of pictures that may be skipped.

    Returns:
        The run: its path and the content of its ``metrics.json``.

    Raises:
        UserError: The table, the recipe, the pictures or the weights cannot be used.
        SkippedError: Too many pictures cannot be used.

    Example:
        >>> table = read_table("labels.txt")                           # doctest: +SKIP
        >>> run = fit(table, images="images", recipe="probe")          # doctest: +SKIP
        >>> load(run).predict(["photo.jpg"])                           # doctest: +SKIP
    """
    start = time.perf_counter()
    # 1. Every name of the recipe becomes a thing, so that a mistake costs no time.
    chosen = load_recipe(recipe if isinstance(recipe, Recipe) else os.fspath(recipe), changes)
    device = resolve_device(chosen.device)
    engine = _resolve_engine(chosen.features.engine, device)
    paths, errors = locate(table, Path(images))
    refuse_too_many(skipped_rows(table, errors), len(table), strict=strict, most=max_skipped)
    learnt, left_out = _trainable(table)

    # 2. Pictures become features, once; what cannot be decoded is skipped and said.
    backbone = load_backbone(chosen.backbone, chosen.preprocess, chosen.features, chosen.seed)
    extractor = make_extractor(
        backbone,
        engine=engine,
        device=device,
        flip=chosen.features.flip,
        batch=chosen.features.batch,
    )
    features, hashes, broken = extract(
        [path for row, path in enumerate(paths) if row not in errors], extractor
    )
    there = [row for row in range(len(table)) if row not in errors]
    errors |= {there[position]: error for position, error in broken.items()}
    skipped = skipped_rows(table, errors)
    refuse_too_many(skipped, len(table), strict=strict, most=max_skipped)
    good = [position for position in range(len(there)) if position not in broken]
    features, hashes = features[good], [hashes[position] for position in good]
    used = table.select([there[position] for position in good])
    used_paths = [paths[there[position]] for position in good]

    # 3. Folds: identical pictures on one side, every attribute's holes and classes spread evenly.
    learnt, left_out = _trainable(used)  # again: the skipped rows may have held the last case
    groups = identical(hashes)
    folds = stratified_folds(used.values, groups, folds=chosen.split.folds, seed=chosen.seed)

    # 4. The probe: out-of-fold predictions for the numbers, a refit on all rows to keep.
    with progress("probe", fits(chosen.probe, chosen.split.folds), "fits") as advance:
        probe = fit_probe(features, used.values[:, learnt], folds, chosen.probe, advance)
    probabilities = np.full(used.values.shape, np.nan, dtype=np.float32)
    probabilities[:, learnt] = _sigmoid(probe.logits)
    thresholds = np.full(len(used.attributes), chosen.threshold)
    evaluation = evaluate_arrays(
        used.attributes,
        used.values,
        probabilities,
        thresholds,
        folds=folds,
        not_trained=left_out,
    )

    # 5. The run folder. model.onnx comes last: a folder that has one is a finished run.
    resolved = _resolved(chosen, backbone, device, engine, table, images)
    info = ModelInfo(
        attributes=tuple(used.attributes[k] for k in learnt),
        thresholds=tuple(float(thresholds[k]) for k in learnt),
        preprocess=backbone.spec,
        left_out=left_out,
        counts=_counts(used),
        recipe=resolved.model_dump(exclude={"data"}),
        metrics=_headline_metrics(evaluation),
        versions={package: version(package) for package in _PACKAGES}
        | {"python": platform.python_version()},
        weights_licence=backbone.licence,
    )
    run = runs.new_run_folder(Path(folder), name, chosen.method)
    outcome = Outcome(used, used_paths, hashes, groups, folds, probabilities, probe)
    metrics = evaluation.to_dict() | {
        "rows": len(used),
        "skipped": len(skipped),
        "folds": chosen.split.folds,
        "l2": probe.l2,
        "l2_of_fold": list(probe.l2_of_fold),
        "deployed": "refitted on all rows",
        "seconds": round(time.perf_counter() - start, 1),
    }
    write_text(run / "config.toml", to_toml(resolved))
    write_text(run / "metrics.json", json.dumps(metrics, indent=1, ensure_ascii=False) + "\n")
    write_text(run / "README.md", model_card(info, evaluation, resolved, len(used)))
    _write_tables(run, outcome, thresholds, learnt, skipped)
    _draw(run, outcome, thresholds, chosen)
    _write_weights(run, backbone, probe, extractor.graph, info)
    runs.mark_latest(run)
    return runs.Run(run, metrics)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What was learnt about each of N rows."""

    table: LabelTable
    paths: list[Path]
    hashes: list[str]
    groups: NDArray[np.int64]
    folds: NDArray[np.int64]
    probabilities: NDArray[np.float32]  # (N, K), out of fold; NaN columns: not trained
    probe: ProbeFit


def resolve_device(device: str) -> str:
    """Return the torch device to use; ``auto``: a GPU if there is one.

    Raises:
        RecipeError: There is no such device here.

    Example:
        >>> resolve_device("cpu")
        'cpu'
    """
    import torch

    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if device == "auto":
        return "cuda" if cuda else "mps" if mps else "cpu"
    kind = device.partition(":")[0]
    here = ["cpu", *(["cuda"] if cuda else []), *(["mps"] if mps else [])]
    try:
        torch.device(device)
        if kind in here:
            return device
    except RuntimeError:
        pass
    raise RecipeError(
        "no such device here", where="device", got=repr(device), expected=f"auto, {', '.join(here)}"
    )


def _resolve_engine(engine: str, device: str) -> str:
    if engine != "auto":
        return engine
    return "onnxruntime" if device == "cpu" else "torch"


def _trainable(table: LabelTable) -> tuple[list[int], dict[str, str]]:
    """Return the columns that can be learnt, and why the others cannot."""
    left_out = dict(table.warnings)
    learnt = [k for k, name in enumerate(table.attributes) if name not in left_out]
    if not learnt:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise UserError(
            "nothing can be learnt from this table",
            where=table.source,
            got=reasons,
            expected="an attribute that is known to be present in one picture and absent in another",
        )
    return learnt, left_out


def _sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    return (0.5 * (1 + np.tanh(0.5 * logits.astype(np.float64)))).astype(np.float32)


def _resolved(
    recipe: Recipe,
    backbone: Backbone,
    device: str,
    engine: str,
    table: LabelTable,
    images: str | os.PathLike[str],
) -> Recipe:
    """Return the recipe with every ``auto`` replaced that decides the same again.

    ``probe.l2`` stays as it is: it is chosen by the data, anew in every fold.
    """
    spec = backbone.spec
    return recipe.replace(
        {
            "device": device,
            "features.engine": engine,
            "preprocess.size": spec.size,
            "preprocess.crop_fraction": spec.crop_fraction,
            "preprocess.interpolation": spec.interpolation,
            "data.labels": str(Path(table.source).absolute()) if table.source else "",
            "data.images": str(Path(images).absolute()),
        }
    )


def _counts(table: LabelTable) -> dict[str, dict[str, int]]:
    kinds = ("present", "absent", "na")
    return {
        name: dict(zip(kinds, map(int, row), strict=True))
        for name, row in zip(table.attributes, table.counts(), strict=True)
    }


def _headline_metrics(evaluation: Evaluation) -> dict[str, Any]:
    whole = evaluation.to_dict()
    return {"macro": whole["macro"], "over": whole["over"]}


def _write_tables(
    run: Path,
    outcome: Outcome,
    thresholds: NDArray[np.float64],
    learnt: list[int],
    skipped: list[Skipped],
) -> None:
    """Write history.csv, splits.csv, skipped.csv and oof.parquet."""
    table = outcome.table
    runs.write_rows(
        run / "history.csv",
        ["iteration_number", "training_loss", "lr", "stage"],
        ([i, f"{loss:.8g}", None, "probe"] for i, loss in enumerate(outcome.probe.losses, 1)),
    )
    columns = (table.images, outcome.hashes, outcome.groups, outcome.folds)
    runs.write_rows(
        run / "splits.csv",
        ["image", "content_hash", "group", "fold"],
        zip(*columns, strict=True),
    )
    runs.write_rows(
        run / "skipped.csv",
        ["image", "where", "reason"],
        ([row.image, row.where, row.reason] for row in skipped),
    )
    import polars as pl

    rows, width = len(table), len(learnt)
    names = [table.attributes[k] for k in learnt]
    long = pl.DataFrame(
        {
            "image": [image for image in table.images for _ in names],
            "attribute": names * rows,
            "truth": pl.Series(table.values[:, learnt].ravel()).fill_nan(None).cast(pl.Int8),
            "probability_raw": outcome.probabilities[:, learnt].ravel(),
            "probability_calibrated": pl.Series([None] * (rows * width), dtype=pl.Float32),
            "fold": np.repeat(outcome.folds, width),
            "threshold": np.tile(thresholds[learnt], rows),
        }
    )
    with written_aside(run / "oof.parquet") as aside:
        long.write_parquet(aside)


def _draw(run: Path, outcome: Outcome, thresholds: NDArray[np.float64], recipe: Recipe) -> None:
    plots.loss_curve(outcome.probe.losses, recipe.title, run / "loss_curve.png")
    rng = np.random.default_rng(recipe.seed)
    rows = sorted(rng.permutation(len(outcome.table))[:_SAMPLES])
    samples = [
        plots.Sample(
            outcome.table.images[row],
            decode(outcome.paths[row]),
            outcome.table.values[row],
            outcome.probabilities[row],
            thresholds,
        )
        for row in rows
    ]
    plots.sample_predictions(samples, outcome.table.attributes, run / "sample_predictions.png")


def _write_weights(
    run: Path, backbone: Backbone, probe: ProbeFit, graph: Path, info: ModelInfo
) -> None:
    """Write weights.safetensors and, last of all, model.onnx."""
    from safetensors.torch import save_file

    classifier = Classifier(backbone.cpu(), len(info.attributes))
    classifier.set_head(probe.head)
    with written_aside(run / "weights.safetensors") as aside:
        state = {key: value.contiguous() for key, value in classifier.state_dict().items()}
        save_file(state, aside)
    write_model(graph, probe.head, info, run / "model.onnx")
