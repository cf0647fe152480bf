"""The story: from pictures and a label table with holes to a run folder. Read it top to bottom."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from polytag import runs
from polytag.artefacts import Outcome, write_run
from polytag.backbone import Backbone, load_backbone, resolve_device
from polytag.config import Recipe, load_recipe
from polytag.errors import UserError
from polytag.features import Extractor, extract, make_extractor
from polytag.groups import identical
from polytag.metrics import evaluate_arrays
from polytag.pictures import MAX_SKIPPED, Skipped, locate, refuse_too_many, skipped_rows
from polytag.probe import fit_probe, fits
from polytag.progress import progress
from polytag.splits import stratified_folds
from polytag.table import LabelTable


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
        See ``examples/from_python.py``.
    """
    start = time.perf_counter()
    # 1. Every name of the recipe becomes a thing first, so that a mistake costs no time.
    chosen = load_recipe(recipe, changes)
    chosen = chosen.replace({"device": resolve_device(chosen.device)})
    located = locate(table, Path(images))
    refuse_too_many(skipped_rows(table, located[1]), len(table), strict=strict, most=max_skipped)
    _trainable(table)
    backbone = load_backbone(chosen.backbone, chosen.preprocess, chosen.features, chosen.seed)
    extractor = make_extractor(backbone, chosen.features, chosen.device)

    # 2. Pictures become features, once. What cannot be decoded is skipped, and too much stops.
    rows = _usable(table, *located, extractor)
    refuse_too_many(rows.skipped, len(table), strict=strict, most=max_skipped)
    learnt, left_out = _trainable(rows.table)

    # 3. Folds: identical pictures on one side, classes and holes of every attribute spread evenly.
    groups = identical(rows.hashes)
    values = rows.table.values
    folds = stratified_folds(values, groups, folds=chosen.split.folds, seed=chosen.seed)

    # 4. The probe: out-of-fold predictions for the numbers, a refit on all rows to keep.
    with progress("probe", fits(chosen.probe, chosen.split.folds), "fits") as advance:
        probe = fit_probe(rows.features, values[:, learnt], folds, chosen.probe, advance)
    probabilities = np.full(values.shape, np.nan, dtype=np.float32)
    probabilities[:, learnt] = 1 / (1 + np.exp(-probe.logits.astype(np.float64)))
    thresholds = np.full(values.shape[1], chosen.threshold)
    evaluation = evaluate_arrays(
        table.attributes, values, probabilities, thresholds, folds=folds, not_trained=left_out
    )

    # 5. The run folder.
    outcome = Outcome(
        recipe=_resolved(chosen, backbone, extractor.engine, table, images),
        table=rows.table,
        paths=rows.paths,
        hashes=rows.hashes,
        groups=groups,
        folds=folds,
        skipped=rows.skipped,
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
    run = runs.new_run_folder(Path(folder), name, chosen.method)
    metrics = write_run(run, outcome)
    runs.mark_latest(run)
    return runs.Run(run, evaluation, metrics)


@dataclass(frozen=True, eq=False)
class _Rows:
    """The rows whose picture can be used, N of them, and the others."""

    table: LabelTable
    paths: list[Path]
    hashes: list[str]
    features: NDArray[np.float32]  # (N, V, D)
    skipped: list[Skipped]


def _usable(
    table: LabelTable, paths: list[Path], errors: dict[int, UserError], extractor: Extractor
) -> _Rows:
    there = [row for row in range(len(table)) if row not in errors]
    features, hashes, broken = extract([paths[row] for row in there], extractor)
    good = [position for position in range(len(there)) if position not in broken]
    rows = [there[position] for position in good]
    unusable = errors | {there[position]: error for position, error in broken.items()}
    return _Rows(
        table=table.select(rows),
        paths=[paths[row] for row in rows],
        hashes=[hashes[position] for position in good],
        features=features[good],
        skipped=skipped_rows(table, unusable),
    )


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
    backbone: Backbone,
    engine: str,
    table: LabelTable,
    images: str | os.PathLike[str],
) -> Recipe:
    """Return the recipe with every ``auto`` replaced that would be decided the same again.

    ``probe.l2`` stays as it is: it is chosen by the data, anew in every fold.
    """
    spec = backbone.spec
    return recipe.replace(
        {
            "features.engine": engine,
            "preprocess.size": spec.size,
            "preprocess.crop_fraction": spec.crop_fraction,
            "preprocess.interpolation": spec.interpolation,
            "data.labels": str(Path(table.source).absolute()) if table.source else "",
            "data.images": str(Path(images).absolute()),
        }
    )
