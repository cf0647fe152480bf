"""The story: from pictures and a label table with holes to a run folder. Read it top to bottom."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polytag import finetune, probe, runs
from polytag.artefacts import Outcome, write_run
from polytag.backbone import Backbone, load_backbone, resolve_device
from polytag.checkpoint import interrupted
from polytag.config import Recipe, load_recipe
from polytag.errors import ModelError, RecipeError, UserError
from polytag.features import Extractor, make_extractor, rows_with_features
from polytag.files import remove_remains
from polytag.groups import identical
from polytag.method import Prepared, Trained
from polytag.metrics import evaluate_arrays
from polytag.pictures import MAX_SKIPPED, locate, refuse_too_many, skipped_rows
from polytag.processes import from_main
from polytag.results import Evaluation
from polytag.table import LabelTable, read_table
from polytag.trainable import frozen_depth
from polytag.usable import usable_rows

METHODS = {"probe": probe.train, "finetune": finetune.train}
log = logging.getLogger("polytag")
Floats = NDArray[np.float32]


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

    Every number it reports was measured on pictures that chose nothing. A probe predicts each
    picture by a model that was fitted, its L2 penalty chosen, on other folds; the model that is
    kept is refitted on all pictures. A fine-tuned network is judged on pictures held out for
    that; a recipe that holds none out reports its training loss only.

    Args:
        table: Labels with holes.
        images: The folder of pictures.
        recipe: A recipe's name, a TOML file (a run's ``config.toml`` repeats that run), a recipe.
        changes: Dotted keys of the recipe and their values, for example ``{"probe.l2": 0.1}``.
        name: Of the run; None: after the recipe, ``probe-1``, ``probe-2`` ...
        folder: Where run folders are.
        strict: Whether one picture that cannot be used stops everything.
        max_skipped: Share of pictures that may be skipped.

    Returns:
        The run: its path and the content of its ``metrics.json``.

    Raises:
        UserError: The table, the recipe, the pictures or the weights cannot be used.
        SkippedError: Too many pictures cannot be used.
        KeyboardInterrupt: Ctrl-C. `resume` goes on with a fine-tuning.

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
    chosen = load_recipe(recipe, changes)
    known = isinstance(recipe, str) and not recipe.endswith(".toml")
    stem = str(recipe) if known else chosen.method
    place = runs.Place(Path(folder), name, stem)
    return _fit(table, Path(images), chosen, place, strict=strict, max_skipped=max_skipped)


def resume(
    run: str | os.PathLike[str],
    table: LabelTable | None = None,
    images: str | os.PathLike[str] | None = None,
) -> runs.Run:
    """Go on with a fine-tuning that was interrupted, from its last checkpoint.

    On a CPU with the same number of threads it ends with the weights, bit for bit, that it would
    have ended with.

    Args:
        run: Its folder.
        table: The labels it was begun with; None: read again from where they were.
        images: The folder of pictures; None: where it was.

    Raises:
        ModelError: There is no checkpoint, or the run is finished.
        UserError: Labels, pictures or parts are not those that it was begun with.

    Example:
        Not run: it needs a run that was interrupted; the tests interrupt one.

        >>> resume("runs/finetune-1").metrics["macro"]["ap"]["value"]  # doctest: +SKIP
        0.73
    """
    path = Path(run).resolve()
    if not (path / "checkpoint.safetensors").is_file():
        finished = (path / "model.onnx").is_file()
        raise ModelError(
            "nothing to go on with",
            where=str(run),
            got="a finished run" if finished else "no checkpoint",
            fix="" if finished else "only a fine-tuning that has begun leaves one: train anew",
        )
    recipe = load_recipe(path / "config.toml")
    remove_remains(path)
    data = recipe.data
    if table is None and not data.labels:
        raise UserError(
            "where the labels came from is not known", where=str(run), fix="give resume the table"
        )
    if table is None:
        table = read_table(
            data.labels,
            attributes=data.attributes or None,
            ignore=data.ignore,
            values=data.values or None,
            image_column=data.image_column or None,
        )
    place = runs.Place(path.parent, path.name, path.name, made=path)
    return _fit(table, Path(images or data.images), recipe, place, strict=False, max_skipped=1)


def _fit(
    table: LabelTable,
    images: Path,
    chosen: Recipe,
    place: runs.Place,
    *,
    strict: bool,
    max_skipped: float,
) -> runs.Run:
    start = time.perf_counter()
    resuming = place.made is not None
    # 1. Every name of the recipe becomes a thing first, so that a mistake costs no time.
    chosen = chosen.replace({"device": resolve_device(chosen.device)})
    _check(chosen)
    located = locate(table, images)
    refuse_too_many(skipped_rows(table, located[1]), len(table), strict=strict, most=max_skipped)
    _trainable(table)
    if not resuming:
        runs.check_run_name(place.runs, place.name)
    backbone = _load(chosen)
    from_probe = chosen.method == "probe" or (chosen.head.init == "probe" and not resuming)
    extractor = make_extractor(backbone, chosen.features, chosen.device) if from_probe else None
    recipe = _resolved(chosen, backbone, extractor, table, images)

    # 2. Every picture is decoded once: to features, or to see whether it can be. What cannot is
    #    skipped, and too much stops.
    features = None
    if extractor:
        rows, features = rows_with_features(table, *located, extractor)
    else:
        rows = usable_rows(table, *located)
    refuse_too_many(rows.skipped, len(table), strict=strict, most=max_skipped)
    learnt, left_out = _trainable(rows.table)
    _warn(rows.table, left_out, chosen.split.folds)

    # 3. Identical pictures form groups, which no split divides.
    groups = identical(rows.hashes)

    # 4. The method trains, and predicts rows that chose nothing.
    train = METHODS[recipe.method]
    trained = train(
        Prepared(recipe, backbone, extractor, rows, features, groups, learnt, place, resuming)
    )
    probabilities = _spread(trained.logits, learnt, rows.table.values.shape)
    thresholds = np.full(len(table.attributes), recipe.threshold)

    # 5. The run folder.
    outcome = Outcome(
        recipe=recipe,
        rows=rows,
        groups=groups,
        learnt=learnt,
        left_out=left_out,
        probabilities=probabilities,
        thresholds=thresholds,
        evaluation=_evaluate(rows.table, probabilities, thresholds, trained, left_out),
        trained=trained,
        seconds=time.perf_counter() - start,
    )
    return _leave(outcome, place)


def _load(recipe: Recipe) -> Backbone:
    """Return the backbone, if it has as many blocks as are to be frozen."""
    backbone = load_backbone(recipe.backbone, recipe.preprocess, recipe.features, recipe.seed)
    for stage in recipe.stages if recipe.method == "finetune" else ():
        frozen_depth(backbone, stage.frozen)
    return backbone


def _check(recipe: Recipe) -> None:
    """Refuse fields that do not go together."""
    if recipe.method == "finetune":
        finetune.check(recipe)
        return
    if recipe.split.holdout or recipe.split.choose:
        raise RecipeError(
            "a probe is judged out of fold, on all pictures: it holds none out",
            where="split.holdout" if recipe.split.holdout else "split.choose",
            fix="leave it out, or take a recipe that fine-tunes",
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RecipeError("a probe is fitted in one process", fix="start it without torchrun")


def _evaluate(
    table: LabelTable,
    probabilities: Floats,
    thresholds: NDArray[np.float64],
    trained: Trained,
    left_out: dict[str, str],
) -> Evaluation:
    """Measure the judged rows; where there are none, every number has that for its reason."""
    judged, folds = trained.judged, trained.folds
    return evaluate_arrays(
        table.attributes,
        table.values[judged],
        probabilities[judged],
        thresholds,
        folds=folds[judged] if folds.dtype.kind == "i" and judged.any() else None,
        not_trained=left_out,
    )


def _leave(outcome: Outcome, place: runs.Place) -> runs.Run:
    """Write the run folder; of several processes the main one does."""
    run = place.make()
    metrics = from_main(lambda: _write(run, outcome))
    return runs.Run(run, outcome.evaluation, metrics)


def _write(run: Path, outcome: Outcome) -> dict[str, Any]:
    """Write the run folder and return its metrics; if that fails, leave what can go on, or none."""
    checkpoint = run / "checkpoint.safetensors"
    try:
        metrics = write_run(run, outcome)
        checkpoint.unlink(missing_ok=True)
    except KeyboardInterrupt:
        raise interrupted(run) from None
    finally:
        if not (run / "model.onnx").is_file() and not checkpoint.is_file():
            shutil.rmtree(run, ignore_errors=True)
    runs.mark_latest(run)
    return metrics


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
            words = "%s is known to be %s in %d pictures only: its numbers say little"
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
    extractor: Extractor | None,
    table: LabelTable,
    images: Path,
) -> Recipe:
    """Return the recipe with every ``auto`` replaced that would be decided the same again.

    ``probe.l2`` stays as it is: it is chosen by the data, anew in every fold.
    """
    spec, weights = backbone.spec, recipe.backbone.weights
    return recipe.replace(
        {
            "backbone.weights": str(Path(weights).absolute()) if Path(weights).suffix else weights,
            "features.engine": extractor.engine if extractor else recipe.features.engine,
            "preprocess.size": spec.size,
            "preprocess.crop_fraction": spec.crop_fraction,
            "preprocess.interpolation": spec.interpolation,
            "preprocess.mean": backbone.mean_std[0],
            "preprocess.std": backbone.mean_std[1],
            "data.labels": str(Path(table.source).absolute()) if table.source else "",
            "data.images": str(images.absolute()),
            "data.attributes": table.attributes,
        }
    )
