"""The story: from pictures and a label table with holes to a run folder. Read it top to bottom."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polytag import probe, runs
from polytag.artefacts import Outcome, write_run
from polytag.budget import chosen_rows, make_plan, parse_budget
from polytag.checkpoint import has_checkpoint, interrupted, remove_checkpoints
from polytag.config import Recipe, load_recipe
from polytag.decide import calibrate, check_decisions, decide, judge
from polytag.devices import resolve_device
from polytag.errors import ModelError, RecipeError, UserError
from polytag.features import Extractor, make_extractor, rows_with_features
from polytag.files import remove_remains
from polytag.frozen import FrozenBackbone, freeze_backbone
from polytag.learnability import judge_learnability
from polytag.method import Prepared, Trained
from polytag.parting import given_split, group_rows
from polytag.pictures import MAX_SKIPPED, locate, refuse_too_many, skipped_rows
from polytag.progress import waiting
from polytag.ranks import from_main, world
from polytag.results import with_verdicts
from polytag.table import LabelTable, read_table

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
    if not has_checkpoint(path):
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
            extra=recipe.split.columns,
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
    given = _prepare(table, images, chosen, place, strict=strict, max_skipped=max_skipped)
    recipe, values, groups = given.recipe, given.values, given.groups

    # 4. Do the pictures show the attributes at all?
    verdicts = _verdicts(given.rows.table, given.features[:, 0], groups)

    # 5. The method trains, and predicts rows that chose nothing.
    trained = METHODS[recipe.method](given).without(given.leaked)

    # 6. Calibration and thresholds, for every judged row chosen without it; then the numbers.
    calibrated = calibrate(trained, values, recipe.decisions)
    decided = decide(calibrated, values, groups, recipe.decisions, recipe.seed)
    measured = judge(given.rows.table, given.learnt, calibrated, decided, groups, given.left_out)
    evaluation = with_verdicts(measured, verdicts)

    # 7. The run folder.
    seconds = time.perf_counter() - start
    return _leave(Outcome(given, trained, calibrated, decided, evaluation, seconds), place)


def _prepare(
    table: LabelTable,
    images: Path,
    chosen: Recipe,
    place: runs.Place,
    *,
    strict: bool,
    max_skipped: float,
) -> Prepared:
    resuming = place.made is not None
    started = time.monotonic()
    # 1. Every name of the recipe becomes a thing first, so that a mistake costs no time.
    chosen = chosen.replace({"device": resolve_device(chosen.device)})
    _check(chosen)
    located = locate(table, images)
    refuse_too_many(skipped_rows(table, located[1]), len(table), strict=strict, most=max_skipped)
    _trainable(table)
    if not resuming:
        runs.check_run_name(place.runs, place.name)
    frozen = _freeze(chosen)
    extractor = make_extractor(frozen, chosen.features, chosen.device)
    plan = None
    if chosen.budget:
        plan = make_plan(chosen, frozen, extractor, table, located[0], started)
        chosen, table = plan.recipe, chosen_rows(plan, table)
        located = locate(table, images)
        extractor = make_extractor(frozen, chosen.features, chosen.device)
    recipe = _resolved(chosen, frozen, extractor, table, images, located[0])

    # 2. Every picture is decoded once, to features. What cannot be is skipped; too much stops.
    rows, features = rows_with_features(table, *located, extractor)
    refuse_too_many(rows.skipped, len(table), strict=strict, most=max_skipped)
    learnt, left_out = _trainable(rows.table)
    for name, reason in left_out.items():
        log.warning("%s is not trained: %s", name, reason)

    # 3. Pictures that belong together form groups, which no split divides; a split of the user's
    #    own is kept, but a row whose like was trained on judges nothing.
    alike, groups, grouped = group_rows(rows, features, recipe.split.group_by)
    given, leaked = given_split(rows.table, recipe.split.given, groups)
    return Prepared(
        recipe=recipe,
        frozen=frozen,
        extractor=extractor,
        rows=rows,
        features=features,
        alike=alike,
        groups=groups,
        grouped=grouped,
        given=given,
        leaked=leaked,
        learnt=learnt,
        left_out=left_out,
        place=place,
        resuming=resuming,
        plan=plan,
    )


def _fine_tune(given: Prepared) -> Trained:
    from polytag import rounds  # loads torch, which a probe can do without

    return rounds.train(given)


METHODS = {"probe": probe.train, "finetune": _fine_tune}


def _freeze(recipe: Recipe) -> FrozenBackbone:
    """Return the backbone, if it has as many blocks as are to be frozen."""
    frozen = freeze_backbone(recipe.backbone, recipe.preprocess, recipe.features, recipe.seed)
    if recipe.method == "finetune":
        from polytag.trainable import frozen_depth

        for stage in recipe.stages:
            frozen_depth(frozen.module(), stage.frozen)
    return frozen


def _check(recipe: Recipe) -> None:
    """Refuse fields that do not go together, and names that nothing has."""
    check_decisions(recipe.decisions)
    if recipe.budget:
        parse_budget(recipe.budget)
        if world() > 1:
            raise RecipeError("a budget is kept by one process only", where="budget")
    if recipe.method == "finetune":
        from polytag import finetune

        finetune.check(recipe)
        return
    if recipe.split.holdout or recipe.split.choose:
        raise RecipeError(
            "a probe is judged out of fold, on all pictures: it holds none out",
            where="split.holdout" if recipe.split.holdout else "split.choose",
            fix="leave it out, or take a recipe that fine-tunes",
        )
    if world() > 1:
        raise RecipeError("a probe is fitted in one process", fix="start it without torchrun")


def _verdicts(
    table: LabelTable, features: NDArray[np.float32], groups: NDArray[np.int64]
) -> dict[str, tuple[str, float, float]]:
    """Return each attribute's verdict, its p and its adjusted p."""
    with waiting("testing whether the pictures show the attributes"):
        found = judge_learnability(features, table.values, groups)
    notes = {name: each.note for name, each in zip(table.attributes, found, strict=True)}
    if said := [f"{name} {note}" for name, note in notes.items() if note]:
        more = " and so on" if len(said) > 1 else ""
        log.info("tested on a part of what is known: %s%s", said[0], more)
    told = [(each.verdict, each.p_value, each.p_holm) for each in found]
    return dict(zip(table.attributes, told, strict=True))


def _leave(outcome: Outcome, place: runs.Place) -> runs.Run:
    """Write the run folder; of several processes the main one does."""
    run = place.make()
    metrics = from_main(lambda: _write(run, outcome))
    return runs.Run(run, outcome.evaluation, metrics)


def _write(run: Path, outcome: Outcome) -> dict[str, Any]:
    """Write the run folder and return its metrics; if that fails, leave what can go on, or none."""
    try:
        metrics = write_run(run, outcome)
        remove_checkpoints(run)
    except KeyboardInterrupt:
        raise interrupted(run) from None
    finally:
        if not (run / "model.onnx").is_file() and not has_checkpoint(run):
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


def _resolved(
    recipe: Recipe,
    frozen: FrozenBackbone,
    extractor: Extractor,
    table: LabelTable,
    images: Path,
    paths: Sequence[Path],
) -> Recipe:
    """Return the recipe with every ``auto`` replaced that would be decided the same again.

    ``probe.l2`` stays as it is: it is chosen by the data, anew in every fold.
    """
    spec, weights, given = frozen.spec, recipe.backbone.weights, recipe.split.given
    if recipe.method == "finetune":
        from polytag.finetune import settle

        recipe = settle(recipe, frozen.module(), len(table.attributes), paths)
    return recipe.replace(
        {
            "backbone.weights": str(Path(weights).absolute()) if Path(weights).suffix else weights,
            "features.engine": extractor.engine,
            "preprocess.size": spec.size,
            "preprocess.crop_fraction": spec.crop_fraction,
            "preprocess.interpolation": spec.interpolation,
            "preprocess.mean": frozen.mean_std[0],
            "preprocess.std": frozen.mean_std[1],
            "split.given": str(Path(given).absolute()) if given.endswith(".csv") else given,
            "data.labels": str(Path(table.source).absolute()) if table.source else "",
            "data.images": str(images.absolute()),
            "data.attributes": table.attributes,
            "budget": "",  # what fitted stands in the other fields
        }
    )
