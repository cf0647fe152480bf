"""Fine-tuning as a method: one training judged on held-out rows, or one a fold and one to keep."""

from __future__ import annotations

import copy
import hashlib
import math
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polytag.checkpoint import has_checkpoint, interrupted
from polytag.config import Recipe, to_toml
from polytag.files import write_text
from polytag.finetune import PARTS, Task, Tuned, finetune, split_parts
from polytag.graph import write_classifier
from polytag.history import History
from polytag.method import Choosing, Prepared, Trained
from polytag.processes import make_accelerator
from polytag.ranks import from_main, is_main
from polytag.splits import stratified_folds

Floats = NDArray[np.float32]
Words = NDArray[np.str_]
_NOT_JUDGED = (
    "No honest number: this recipe holds no picture out, so all that can be told is the training "
    "loss. --holdout 0.2 sets a fifth aside and judges on it."
)
_NOT_BETTER = (
    "No epoch was better on the choosing rows than the probe that training began with: that probe "
    "was kept."
)
_CHOSEN_BY_FOLDS = (
    "No rows were kept to choose by (split.choose), so each fold's calibration and thresholds were "
    "chosen by the other folds' predictions, whose models had trained on that fold."
)
_CHOOSING_FOLDS = 5  # of the choosing rows: calibrated by four parts, a threshold sees the fifth


def train(given: Prepared) -> Trained:
    """Fine-tune the network on one part of the rows, chosen by another, judged on a third.

    In folds, this happens once a fold, and once more with nothing held out for what is kept.
    """
    recipe = given.recipe
    plans = _plans(given)
    make_accelerator(recipe)  # several processes meet here, before one of them makes a folder
    run = given.place.made = from_main(given.place.make)
    try:
        if is_main() and not given.resuming:
            write_text(run / "config.toml", to_toml(recipe))
        tuned: list[Tuned] = []
        for place, parts in plans.items():
            share = 1 / (len(plans) - len(tuned))  # of the time that is left
            tuned.append(_tune(given, parts, run / place, share))
    except KeyboardInterrupt:
        raise interrupted(run) from None
    finally:
        if is_main() and not has_checkpoint(run):
            shutil.rmtree(run, ignore_errors=True)
    logits = np.full_like(given.values, np.nan)
    folds = np.full(len(logits), -1)
    for fold, (parts, each) in enumerate(zip(plans.values(), tuned, strict=True)):
        judges = parts == "holdout"
        logits[judges], folds[judges] = each.logits[judges], fold
    chosen = [
        _choosing(given, parts, each.logits)
        for parts, each in zip(plans.values(), tuned, strict=True)
    ]
    deployed, notes = chosen[-1], []
    if len(plans) > 1:  # all rows were predicted by models that had not seen them
        deployed = Choosing(logits, folds, np.zeros(len(folds), dtype=bool))
        notes = [] if all(chosen[:-1]) else [_CHOSEN_BY_FOLDS]
        by_fold = enumerate(chosen[:-1])
        chosen = [each or _other_folds(logits, folds, fold) for fold, each in by_fold]
    kept, parts = tuned[-1], [*plans.values()][-1]
    return Trained(
        logits=logits,
        judged=folds >= 0,
        parts=folds if len(plans) > 1 else parts,
        choosing=[each for each in chosen if each and each.judges.any()],
        deployed=deployed,
        history=kept.history,
        save=kept.model.save,
        write=lambda info, path: write_classifier(kept.model, info, path),
        **_told(recipe, kept.history, parts, len(plans) - 1, notes),
    )


def _plans(given: Prepared) -> dict[str, Words]:
    """Return each training's parts (N,) by the folder it is kept in; the last one's is deployed."""
    recipe, split, own = given.recipe, given.recipe.split, given.given
    values, groups = given.rows.table.values, given.groups
    if own and own.parts is not None:
        if (own.parts == "choose").any() or not split.choose:
            return {"": own.parts}
        return {"": _held_out(given, own.parts == "holdout")}
    if own is None and split.holdout != "folds":
        return {"": split_parts(values, groups, split, recipe.seed)}
    if own and own.folds is not None:
        folds = own.folds
    else:
        folds = stratified_folds(values, groups, folds=split.folds, seed=recipe.seed)
    plans = {f"fold-{fold}": _held_out(given, folds == fold) for fold in range(folds.max() + 1)}
    return plans | {"kept": _held_out(given, folds < 0)}


def _held_out(given: Prepared, rows: NDArray[np.bool_]) -> Words:
    """Return parts (N,) with these rows held out, the others to train on and to choose by."""
    recipe = given.recipe
    values, groups = given.rows.table.values[~rows], given.groups[~rows]
    groups = np.unique(groups, return_inverse=True)[1]
    split = recipe.split.model_copy(update={"holdout": 0.0})
    parts = np.full(len(rows), "holdout")
    parts[~rows] = split_parts(values, groups, split, recipe.seed)
    return parts


def _tune(given: Prepared, parts: Words, folder: Path, share: float) -> Tuned:
    """Train, or read what a training that had ended left before the run was interrupted."""
    now, end = time.monotonic(), given.plan.deadline if given.plan else math.inf
    from_main(lambda: folder.mkdir(exist_ok=True))
    return finetune(
        given.recipe,
        copy.deepcopy(given.frozen.module()),
        _task(given, parts),
        folder=folder,
        pictures_hash=hashlib.sha256("".join(given.rows.hashes).encode()).hexdigest(),
        resume=given.resuming and has_checkpoint(folder),
        deadline=now + share * (end - now),
    )


def _task(given: Prepared, parts: Words) -> Task:
    features = given.features if given.recipe.head.init == "probe" else None
    return Task(given.names, given.rows.paths, given.values, given.groups, parts, features)


def _choosing(given: Prepared, parts: Words, logits: Floats) -> Choosing | None:
    """Return the predictions of the choosing rows, in a few folds of their own."""
    rows = parts == "choose"
    groups = np.unique(given.groups[rows], return_inverse=True)[1]
    count = min(_CHOOSING_FOLDS, int(groups.max(initial=-1)) + 1)
    if count < 2:
        return None
    folds = np.full(len(parts), -1)
    values = given.rows.table.values[rows]
    folds[rows] = stratified_folds(values, groups, folds=count, seed=given.recipe.seed)
    chosen = np.where(rows[:, None], logits, np.float32(np.nan))
    return Choosing(chosen, folds, parts == "holdout")


def _other_folds(logits: Floats, folds: NDArray[np.int64], fold: int) -> Choosing:
    """Return the held-out predictions of the other folds, where none had choosing rows."""
    judges = folds == fold
    chosen = np.where(judges[:, None], np.float32(np.nan), logits)
    return Choosing(chosen, np.where(judges, -1, folds), judges)


def _told(
    recipe: Recipe, history: History, parts: Words, folds: int, notes: list[str]
) -> dict[str, Any]:
    """Return what `Trained` says in words and for metrics.json."""
    best = history.best
    kept = best or history.epochs[-1]
    judged = bool(folds) or bool((parts == "holdout").any())
    notes = [*notes, *([] if judged else [_NOT_JUDGED])]
    if best and best.number == 0:
        notes.append(_NOT_BETTER)
    trained_on = "the model that was trained on the training part"
    deployed = f"{trained_on}, whose held-out rows gave the numbers" if judged else trained_on
    if folds:
        deployed = "one more model, trained with no fold held out; the numbers are its siblings'"
    unseen = f"pictures that the judging models had not seen ({folds} folds)"
    held_out = "pictures that were held out to judge it" if judged else ""
    return {
        "facts": {
            "folds": folds or None,
            "parts": {part: int((parts == part).sum()) for part in PARTS},
            "training_loss": None if math.isnan(kept.training_loss) else kept.training_loss,
            "best_epoch": None if best is None else f"{best.stage} {best.number}",
            "deployed": deployed,
        },
        "judged_on": unseen if folds else held_out,
        "note": " ".join(notes),
    }
