"""Thresholds chosen anew, without training: from the probabilities that a run has kept."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from polytag import runs
from polytag.artefacts import decision_fields, decisions_told
from polytag.config import DecisionsConfig, to_toml
from polytag.decide import check_decisions, decide, judge
from polytag.errors import RecipeError
from polytag.files import write_json, write_text
from polytag.graph import rewrite_info
from polytag.kept import read_run, write_judged
from polytag.modelfile import INT8_MODEL, MODEL
from polytag.names import safe_join
from polytag.predictor import load
from polytag.results import with_verdicts
from polytag.views import write_views

log = logging.getLogger("polytag")


def choose_anew(run: str | os.PathLike[str], changes: Mapping[str, object]) -> runs.Run:
    """Choose a run's thresholds for another target, and measure what they do.

    The model and its calibration stay as they are. Each judged row is decided by thresholds that
    were chosen without it, from the same predictions that training chose by. The run's numbers,
    card and report are replaced, and last what its model file says.

    Args:
        run: Its folder.
        changes: Of ``decisions.target``, ``decisions.max_error`` and ``decisions.confidence``.

    Returns:
        The run, with its new numbers.

    Raises:
        ModelError: The run does not have what it was judged by.
        RecipeError: No such target; or the run kept no rows that could choose.

    Example:
        Not run: it needs a trained run; the tests train one.

        >>> run = choose_anew("runs/latest", {"decisions.target": "f2"})  # doctest: +SKIP
        >>> run.metrics["decisions"]["attributes"]["black"]["threshold"]  # doctest: +SKIP
        0.21
    """
    predictor = load(run)
    kept = read_run(predictor.path.parent)
    if changes.get("decisions.max_error") == 0:  # a confidence of no promise has no meaning
        changes = {"decisions.confidence": DecisionsConfig().confidence, **changes}
    recipe = kept.recipe.replace(changes)
    check_decisions(recipe.decisions)
    if kept.calibrated.deployed is None:
        raise RecipeError(
            "this run kept no rows that thresholds could be chosen by",
            where=str(run),
            fix="train with --set split.choose=0.15, or say --threshold to predict and evaluate",
        )
    values, names = kept.values, kept.attributes
    decided = decide(kept.calibrated, values, kept.groups, recipe.decisions, recipe.seed)
    left_out = kept.metrics["left_out"]
    learnt = [kept.table.attributes.index(name) for name in names]
    measured = judge(kept.table, learnt, kept.calibrated, decided, kept.groups, left_out)
    evaluation = with_verdicts(measured, kept.verdicts)
    whole = evaluation.to_dict()
    chosen = decisions_told(values, kept.calibrated, decided, names, recipe)
    metrics = {**kept.metrics, **whole, "decisions": chosen}
    info = replace(
        predictor.info,
        **decision_fields(decided, names, recipe.decisions),
        recipe={**predictor.info.recipe, "decisions": recipe.decisions.model_dump(mode="json")},
        metrics={"macro": whole["macro"], "over": whole["over"]},
    )
    folder = kept.run
    write_judged(folder, kept.table, names, kept.raw, kept.calibrated, decided)
    write_text(folder / "config.toml", to_toml(recipe))
    write_json(folder / "metrics.json", metrics)
    images = Path(recipe.data.images)
    paths = [safe_join(images, name, name) for name in kept.table.images]
    if missing := sum(not path.is_file() for path in paths):
        words = "%d of %d pictures are not in %s any more: the report is without them"
        log.warning(words, missing, len(paths), images)
    metrics = write_views(read_run(folder), info, paths)
    for name in (MODEL, INT8_MODEL):
        if (folder / name).is_file():
            rewrite_info(folder / name, info)
    return runs.Run(folder, evaluation, metrics)
