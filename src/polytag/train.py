"""The story: from pictures and a label table with holes to a run folder. Read it top to bottom."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from polytag import runs
from polytag.artefacts import Outcome, write_run
from polytag.backbone import Backbone, load_backbone, resolve_device
from polytag.config import Recipe, load_recipe
from polytag.errors import UserError
from polytag.features import make_extractor, usable_rows
from polytag.groups import identical
from polytag.metrics import evaluate_arrays
from polytag.pictures import MAX_SKIPPED, locate, refuse_too_many, skipped_rows
from polytag.probe import fit_probe, fits
from polytag.progress import progress
from polytag.splits import stratified_folds
from polytag.table import LabelTable

log = logging.getLogger("polytag")


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
        >>> import tempfile
        >>> from polytag.drawing import draw_dataset
        >>> from polytag.table import read_table
        >>> with tempfile.TemporaryDirectory() as place:
        ...     drawn = draw_dataset(Path(place) / "drawn", count=40)
        ...     tiny = {"backbone.name": "test_resnet", "backbone.weights": "none"}
        ...     run = fit(read_table(drawn.labels), drawn.images, folder=place, changes=tiny)
        ...     run.path.name, run.metrics["rows"], run.metrics["skipped"]
        ('probe-1', 36, 4)
    """
    start = time.perf_counter()
    # 1. Every name of the recipe becomes a thing first, so that a mistake costs no time.
    chosen = load_recipe(recipe, changes)
    chosen = chosen.replace({"device": resolve_device(chosen.device)})
    located = locate(table, Path(images))
    refuse_too_many(skipped_rows(table, located[1]), len(table), strict=strict, most=max_skipped)
    _trainable(table)
    runs.check_run_name(Path(folder), name)
    backbone = load_backbone(chosen.backbone, chosen.preprocess, chosen.features, chosen.seed)
    extractor = make_extractor(backbone, chosen.features, chosen.device)

    # 2. Pictures become features, once. What cannot be decoded is skipped, and too much stops.
    rows = usable_rows(table, *located, extractor)
    refuse_too_many(rows.skipped, len(table), strict=strict, most=max_skipped)
    learnt, left_out = _trainable(rows.table)
    _warn(rows.table, left_out, chosen.split.folds)

    # 3. Folds: identical pictures on one side, classes and holes of every attribute spread evenly.
    groups = identical(rows.hashes)
    values = rows.table.values
    folds = stratified_folds(values, groups, folds=chosen.split.folds, seed=chosen.seed)

    # 4. The probe: out-of-fold predictions for the numbers, a refit on all rows to keep.
    with progress("probe", fits(chosen.probe, chosen.split.folds), "fits") as advance:
        probe = fit_probe(rows.features, values[:, learnt], folds, chosen.probe, advance)
    thresholds = np.full(values.shape[1], chosen.threshold)
    probabilities = _spread(probe.logits, learnt, values.shape)
    evaluation = evaluate_arrays(
        table.attributes, values, probabilities, thresholds, folds=folds, not_trained=left_out
    )

    # 5. The run folder.
    outcome = Outcome(
        recipe=_resolved(chosen, backbone, extractor.engine, table, images),
        rows=rows,
        groups=groups,
        folds=folds,
        learnt=learnt,
        left_out=left_out,
        probabilities=probabilities,
        thresholds=thresholds,
        evaluation=evaluation,
        probe=probe,
        backbone=backbone,
        graph=extractor.graph,
        seconds=time.perf_counter() - start,
    )
    return _leave(outcome, Path(folder), name)


def _leave(outcome: Outcome, folder: Path, name: str | None) -> runs.Run:
    """Write the run folder; one that cannot be finished is not left lying about."""
    run = runs.new_run_folder(folder, name, outcome.recipe.method)
    try:
        metrics = write_run(run, outcome)
    finally:
        if not (run / "model.onnx").is_file():
            shutil.rmtree(run, ignore_errors=True)
    runs.mark_latest(run)
    return runs.Run(run, outcome.evaluation, metrics)


def _trainable(table: LabelTable) -> tuple[list[int], dict[str, str]]:
    """Return the columns that can be learnt, and why the others cannot."""
    left_out = dict(table.warnings)
    learnt = [k for k, name in enumerate(table.attributes) if name not in left_out]
    if not learnt:
        raise UserError(
            "nothing can be learnt from this table",
            where=table.source,
            got="; ".join(f"{name}: {reason}" for name, reason in left_out.items()) or "no row",
            expected="an attribute that some pictures show and some do not",
        )
    return learnt, left_out


def _warn(table: LabelTable, left_out: dict[str, str], folds: int) -> None:
    for name, (present, absent, _) in zip(table.attributes, table.counts().tolist(), strict=True):
        if name in left_out:
            log.warning("%s is not trained: %s", name, left_out[name])
        elif min(present, absent) < folds:
            kind = "present" if present < absent else "absent"
            count = min(present, absent)
            words = (
                "%s is known to be %s in %d pictures only, fewer than folds: its numbers say little"
            )
            log.warning(words, name, kind, count)


def _spread(
    logits: NDArray[np.float32], learnt: list[int], shape: tuple[int, ...]
) -> NDArray[np.float32]:
    """Return probabilities (N, K) with NaN columns for what was not learnt."""
    probabilities = np.full(shape, np.nan, dtype=np.float32)
    probabilities[:, learnt] = 1 / (1 + np.exp(-logits.astype(np.float64)))
    return probabilities


def _resolved(
    recipe: Recipe,
    backbone: Backbone,
    engine: str,
    table: LabelTable,
    images: str | os.PathLike[str],
) -> Recipe:
    """Return the recipe with every ``auto`` replaced that would be decided the same again.

    ``probe.l2`` stays as it is: it is chosen by the data, anew in every fold.
    """
    spec, weights = backbone.spec, recipe.backbone.weights
    return recipe.replace(
        {
            "backbone.weights": str(Path(weights).absolute()) if Path(weights).suffix else weights,
            "features.engine": engine,
            "preprocess.size": spec.size,
            "preprocess.crop_fraction": spec.crop_fraction,
            "preprocess.interpolation": spec.interpolation,
            "data.labels": str(Path(table.source).absolute()) if table.source else "",
            "data.images": str(Path(images).absolute()),
            "data.attributes": table.attributes,
        }
    )
