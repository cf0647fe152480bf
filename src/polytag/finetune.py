"""Fine-tuning: a network is built as its recipe says, trained on one part, judged on another.

The held-out part judges and does nothing else. The choosing part decides when to stop, when to
lower the learning rate, and which epoch is kept. Everything counted (weights of the loss, the
probe that a head starts from) is counted on the training part.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from polytag.backbone import Backbone
from polytag.config import LossConfig, Recipe, SplitConfig
from polytag.errors import RecipeError, UserError
from polytag.feed import Pictures
from polytag.heads import HEADS, Linear
from polytag.history import History
from polytag.logistic import moments
from polytag.loop import CellLoss, Loop
from polytag.losses import LOSSES
from polytag.model import Classifier, build_classifier
from polytag.probe import fit_probe, fits
from polytag.progress import progress
from polytag.splits import stratified_folds, stratified_parts
from polytag.trainable import all_finite
from polytag.trunk import settled

Floats = NDArray[np.float32]
PARTS = ("train", "choose", "holdout")


@dataclass(frozen=True, eq=False)
class Tuned:
    """What fine-tuning leaves.

    Attributes:
        model: With the weights that are kept, on the CPU, in evaluation mode.
        history: Of its training.
        logits: float32 (N, K) of the choosing and the held-out rows; NaN in the others.
    """

    model: Classifier
    history: History
    logits: Floats


@dataclass(frozen=True, eq=False)
class Task:
    """What is to be learnt from which rows.

    Attributes:
        attributes: K names.
        paths: N files.
        values: float32 (N, K) in {0, 1, NaN}.
        groups: int (N,); rows of one number are in one part.
        parts: str (N,), each one of `PARTS`.
        features: float32 (N, V, D) of the frozen backbone; None where no probe is fitted.
    """

    attributes: tuple[str, ...]
    paths: Sequence[Path]
    values: Floats
    groups: NDArray[np.int64]
    parts: NDArray[np.str_]
    features: Floats | None

    def pictures(self, part: str) -> Pictures:
        """Return the rows of one part."""
        rows = np.flatnonzero(self.parts == part).tolist()
        return Pictures([self.paths[row] for row in rows], self.values[rows])

    def fingerprint(self) -> str:
        """Return a sha256 of names, labels and parts; the pictures' bytes are not in it."""
        digest = hashlib.sha256(json.dumps([self.attributes, self.parts.tolist()]).encode())
        digest.update(np.nan_to_num(self.values, nan=2).astype(np.uint8).tobytes())
        return digest.hexdigest()


def check(recipe: Recipe) -> None:
    """Refuse a recipe whose fields do not go together, before any work is done for it.

    Raises:
        RecipeError: With the field that does not fit.
    """
    training, loss = recipe.training, recipe.loss
    names = [stage.name for stage in recipe.stages]
    if len(set(names)) < len(names):
        raise RecipeError(
            "two stages have one name", where="stages", got=", ".join(names), expected="different"
        )
    chooses = {
        'training.keep = "best"': training.keep == "best",
        'training.schedule = "plateau"': training.schedule == "plateau",
        "training.early_stop": training.early_stop > 0,
    }
    for field, needed in chooses.items():
        if needed and not recipe.split.choose:
            fix = "--set split.choose=0.15"
            raise RecipeError(f"{field} needs rows to choose by", where="split.choose", fix=fix)
    if recipe.head.init == "probe" and HEADS[recipe.head.kind] is not Linear:
        raise RecipeError(
            "only a linear head can start as a probe",
            where="head.init",
            got=f"head.kind = {recipe.head.kind}",
            fix="--set head.init=random",
        )
    if loss.pos_weight != "none" and loss.name not in ("bce", "focal"):
        raise RecipeError(
            f"pos_weight does not go with {loss.name}, which has weights of its own",
            where="loss.pos_weight",
            fix="--set loss.pos_weight=none",
        )


def settle(recipe: Recipe, backbone: Backbone, attributes: int, paths: Sequence[Path]) -> Recipe:
    """Return a recipe with what is decided once for a run, by measuring where that is needed.

    Args:
        recipe: As resolved but for that.
        backbone: With its weights; left as it is.
        attributes: K.
        paths: Pictures that can be measured with.
    """
    if recipe.training.cache != "auto":
        return recipe
    model = build_classifier(recipe, backbone, attributes)
    pictures = Pictures(list(paths), np.zeros((len(paths), attributes), np.float32))
    return recipe.replace({"training.cache": settled(recipe, model, pictures)})


def split_parts(
    values: Floats, groups: NDArray[np.int64], split: SplitConfig, seed: int
) -> NDArray[np.str_]:
    """Give every row its part: train, choose or holdout.

    Args:
        values: float32 (N, K) in {0, 1, NaN}.
        groups: int (N,); rows of one number stay together.
        split: Shares. ``choose`` is a share of what is not held out; in folds nothing is, here.
        seed: Decides ties.

    Returns:
        str (N,).
    """
    holdout = 0.0 if split.holdout == "folds" else split.holdout
    choose = (1 - holdout) * split.choose
    wanted = {"train": 1 - holdout - choose, "choose": choose, "holdout": holdout}
    names = [name for name, share in wanted.items() if share]
    shares = [wanted[name] for name in names]
    parts = np.array(names)[stratified_parts(values, groups, shares=shares, seed=seed)]
    missing = [name for name in names if name not in parts]
    if missing:
        raise UserError(
            "too few different pictures to split",
            got=f"{len(values)} rows, none of them left to {missing[0]}",
            fix="label more pictures, or set split.holdout and split.choose otherwise",
        )
    return parts


def make_cell_loss(config: LossConfig, values: Floats) -> CellLoss:
    """Return the loss of cells, its weights counted on the training rows.

    Args:
        config: Which, and its options.
        values: float32 (N, K) in {0, 1, NaN} of the training rows.
    """
    present, absent = ((values == value).sum(axis=0) for value in (1, 0))
    smoothing = {"label_smoothing": config.label_smoothing}
    weight: dict[str, Any] = {}
    if config.pos_weight == "balanced":
        # An attribute of one kind only has no such ratio: it weighs 1.
        both = (present > 0) & (absent > 0)
        ratio = np.where(both, absent / np.maximum(present, 1), 1.0)
        bounded = np.minimum(ratio, config.pos_weight_cap or np.inf)
        weight = {"pos_weight": torch.from_numpy(bounded.astype(np.float32))}
    alpha = None if config.alpha == "none" else config.alpha
    gammas = {"gamma_negative": config.gamma_negative, "gamma_positive": config.gamma_positive}
    counts = torch.from_numpy(np.stack([present, absent]))
    options: dict[str, dict[str, Any]] = {
        "bce": weight | smoothing,
        "focal": {"gamma": config.gamma, "alpha": alpha} | weight | smoothing,
        "asymmetric": gammas | {"clip": config.clip} | smoothing,
        "class_balanced": {"counts": counts, "beta": config.beta} | smoothing,
    }
    loss, chosen = LOSSES[config.name], options[config.name]
    return lambda logits, targets, known: loss(logits, targets, known, per="none", **chosen)


def finetune(
    recipe: Recipe,
    backbone: Backbone,
    task: Task,
    *,
    folder: Path | None = None,
    pictures_hash: str = "",
    resume: bool = False,
    deadline: float = math.inf,
) -> Tuned:
    """Train a network as the recipe says and predict the held-out rows.

    Args:
        recipe: As resolved.
        backbone: With its weights; it is trained itself.
        task: Rows, labels and parts.
        folder: Where checkpoints are kept; None: nowhere.
        pictures_hash: Of the pictures' bytes, in the order of the rows.
        resume: Go on from the checkpoint in ``folder``.
        deadline: What `time.monotonic` may come to; then training ends with the best so far.

    Raises:
        UserError: Fields do not go together, memory ran out, the loss is no number, or the data
            has changed since the checkpoint.
    """
    model = build_classifier(recipe, backbone, len(task.attributes))
    if task.features is not None and not resume:
        _start_from_probe(model, recipe, task)
    train = task.pictures("train")
    choose = task.pictures("choose")
    loop = Loop(
        model,
        recipe,
        train,
        choose if len(choose) else None,
        make_cell_loss(recipe.loss, train.values),
        task.attributes,
        folder,
        f"{task.fingerprint()} {pictures_hash}",
    )
    history = loop.run(resume=resume, deadline=deadline)
    logits = np.full(task.values.shape, np.nan, dtype=np.float32)
    unseen = [part for part in ("choose", "holdout") if (task.parts == part).any()]
    for part in unseen:
        logits[task.parts == part] = loop.predict(task.pictures(part))
    answered = np.isfinite(logits[np.isin(task.parts, unseen)]).all()
    if not all_finite(model.state_dict().values()) or not answered:
        raise UserError(
            "training left weights that are no numbers, or answer none",
            fix="lower the learning rate (--set 'stages.*.lr=...') or set training.clip=1",
        )
    return Tuned(model.cpu().eval(), history, logits)


def _start_from_probe(model: Classifier, recipe: Recipe, task: Task) -> None:
    """Give a linear head the weights of a probe that was fitted on the training rows."""
    rows = task.parts == "train"
    values, groups = task.values[rows], np.unique(task.groups[rows], return_inverse=True)[1]
    features = np.asarray(task.features)[rows]
    folds = stratified_folds(values, groups, folds=recipe.split.folds, seed=recipe.seed)
    with progress("probe", fits(recipe.split.folds), "fits") as advance:
        probe = fit_probe(features, values, folds, recipe.probe, advance)
    mean, scale = moments(features.reshape(-1, features.shape[2]))
    if not isinstance(model.head, Linear):
        raise TypeError("only a linear head can start as a probe")
    model.head.set_probe(probe.head.weight, probe.head.bias, mean, scale)
