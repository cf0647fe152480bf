"""A plan that fits a time budget: measure the machine, choose what to train, and say so.

What takes long is measured on a few of the user's own pictures. What the tests, the probe and the
numbers at the end take (intervals, report, model file) follows from the size of the table and from
how fast this machine multiplies. The plan may err; fine-tuning ends at a deadline, what comes after
it is estimated only.
"""

from __future__ import annotations

import copy
import logging
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from polytag.config import Recipe, StageConfig, load_recipe
from polytag.errors import RecipeError, UserError
from polytag.features import Extractor, count_missing, seconds_a_picture
from polytag.frozen import FrozenBackbone
from polytag.table import LabelTable

log = logging.getLogger("polytag")

# Seconds of the table's numbers, (fixed, a thousand cells at 2,848 features), of the probe and the
# tests before it, and of everything after it; on a machine whose matrix product takes _PRODUCT
# seconds. Measured on two cores with tables of 972 x 4 and 1,485 x 23.
_PROBE = (1.0, 0.62)
_CLOSING = (3.0, 0.17)
_PRODUCT = 0.022
_EXPORT = 3.0  # of the embedded network, trained, to ONNX
# Of the recipe's epochs. The ends are bounds of judgement: longer runs overfit kept views (the
# choosing rows' loss rises from the third epoch), shorter ones hardly move the probe.
_SCALES = (2.0, 1.5, 1.25, 1.0, 0.75, 0.5, 0.35, 0.25)
_SLACK = 0.9  # the share of a budget that is planned for: estimates err
_FEWEST = 100  # pictures
_SAMPLE = 96  # pictures that are measured with


@dataclass(frozen=True)
class Plan:
    """What is to be done in a budget.

    Attributes:
        recipe: With what fits.
        rows: So many pictures are used.
        seconds: What each part is expected to take.
        budget: Seconds.
        deadline: When training has to end, by `time.monotonic`; the rest is for the numbers.
    """

    recipe: Recipe
    rows: int
    seconds: Mapping[str, float]
    budget: float
    deadline: float

    def told(self, total: int) -> str:
        """Return the plan in words.

        Args:
            total: How many pictures there are.
        """
        parts = ", ".join(f"{name} {spoken(value)}" for name, value in self.seconds.items())
        what: str = self.recipe.method
        if what == "finetune":
            epochs = " + ".join(str(stage.epochs) for stage in self.recipe.stages)
            what = f"finetune, {epochs} epochs"
        if not self.recipe.features.flip:
            what += ", without mirrored pictures"
        if self.rows < total:
            what += f", {self.rows} of {total} pictures, drawn at random"
        whole = spoken(sum(self.seconds.values()))
        return f"plan for {spoken(self.budget)}: {what}; about {whole} ({parts})"

    def to_dict(self) -> dict[str, Any]:
        """Return the plan for metrics.json."""
        seconds = {name: round(value, 1) for name, value in self.seconds.items()}
        return {"seconds": self.budget, "planned": seconds, "pictures": self.rows}


def parse_budget(text: str) -> float:
    """Return the seconds in ``90s``, ``5m``, ``1h`` or ``1h30m``.

    Raises:
        RecipeError: Something else.

    Example:
        >>> parse_budget("5m"), parse_budget("1h30m"), parse_budget("90")
        (300.0, 5400.0, 90.0)
    """
    found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s?)?", text.strip().lower(), re.ASCII)
    hours, minutes, seconds = (int(part or 0) for part in found.groups()) if found else (0, 0, 0)
    total = float(3600 * hours + 60 * minutes + seconds)
    if not total:
        raise RecipeError(
            "not a time budget", where="budget", got=repr(text), expected="such as 90s, 5m, 1h30m"
        )
    return total


def spoken(seconds: float) -> str:
    """Write a time for people.

    Example:
        >>> spoken(7.2), spoken(95), spoken(3720)
        ('7 s', '1 min 35 s', '1 h 2 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min" + (f" {whole % 60} s" if whole % 60 else "")
    return f"{whole // 3600} h" + (f" {whole % 3600 // 60} min" if whole % 3600 // 60 else "")


def make_plan(
    recipe: Recipe,
    frozen: FrozenBackbone,
    extractor: Extractor,
    table: LabelTable,
    paths: Sequence[Path],
    started: float,
) -> Plan:
    """Measure the machine on a few pictures and choose what fits.

    A recipe that fine-tunes gets more or fewer epochs, and is given up for the probe if not even a
    quarter of its own fits. A probe goes without mirrored pictures, then without some of the
    pictures.

    Args:
        recipe: Its budget, and what would be trained if there were time.
        frozen: Its backbone.
        extractor: How its features are computed.
        table: N rows, K attributes.
        paths: Files of the rows; some may be missing.
        started: When the training began, by `time.monotonic`.

    Raises:
        RecipeError: The budget cannot be read, or not even the least that can be done fits.
    """
    budget = parse_budget(recipe.budget)
    end = started + budget
    there = [path for path in paths if path.is_file()]
    if not there:
        raise UserError("no picture of the table is there")
    rng = np.random.default_rng(recipe.seed)
    sample = [there[row] for row in rng.permutation(len(there))[:_SAMPLE]]
    missing = count_missing(there, extractor)
    each = seconds_a_picture(sample, extractor)
    cells = len(table) * len(table.attributes) / 1000 * frozen.width / 2848
    slow = _slowness()
    probe, numbers = (slow * (fixed + rate * cells) for fixed, rate in (_PROBE, _CLOSING))
    known = {"features": each * missing, "probe": probe, "numbers": numbers}
    plan = None
    if recipe.method == "finetune":
        view = each / (1 + recipe.features.flip)
        cost, answers = _cost_of_training(recipe, frozen, table, sample, view)
        longer = known | {"predictions": answers, "numbers": numbers + slow * _EXPORT}
        left = _SLACK * (end - time.monotonic()) - sum(longer.values())
        if chosen := _tuned(recipe, cost, left):
            deadline = end - (answers + longer["numbers"]) / _SLACK
            plan = Plan(chosen[0], len(table), longer | {"training": chosen[1]}, budget, deadline)
        else:
            log.info("fine-tuning does not fit %s: the probe is trained", spoken(budget))
    plan = plan or _probe_plan(recipe, len(table), known, budget, end)
    log.info("%s", plan.told(len(table)))
    return plan


def _probe_plan(
    recipe: Recipe, count: int, known: dict[str, float], budget: float, end: float
) -> Plan:
    """Return the plan of a probe, on as many of N pictures as fit."""
    left = _SLACK * (end - time.monotonic())
    if recipe.method == "finetune":
        recipe = probe_of(recipe)
    if sum(known.values()) > left and recipe.features.flip and known["features"]:
        recipe = recipe.replace({"features.flip": False})
        known = known | {"features": known["features"] / 2}
    whole = sum(known.values())
    share = min(1.0, max(0.0, left) / whole)
    rows = math.floor(share * count)
    if rows < min(_FEWEST, count):
        least = budget + (min(1.0, _FEWEST / count) * whole - left) / _SLACK
        raise RecipeError(
            "the budget is too short to train anything",
            where="budget",
            got=spoken(budget),
            expected=f"at least about {spoken(math.ceil(least))}",
        )
    seconds = {name: share * value for name, value in known.items()}
    return Plan(recipe, rows, seconds, budget, end)


def probe_of(recipe: Recipe) -> Recipe:
    """Return the probe on a fine-tuning's backbone, with its splits, decisions and seed.

    Example:
        >>> probe_of(load_recipe("finetune", {"seed": 7})).method
        'probe'
    """
    plain = load_recipe("probe")
    shared = ("seed", "device", "title", "backbone", "preprocess", "features", "probe", "data")
    kept = {name: getattr(recipe, name) for name in (*shared, "decisions")}
    split = recipe.split.model_copy(update={"holdout": 0.0, "choose": 0.0})
    return plain.model_copy(update=kept | {"split": split})


def chosen_rows(plan: Plan, table: LabelTable) -> LabelTable:
    """Return the rows that a plan has time for, drawn at random, in their order."""
    if plan.rows >= len(table):
        return table
    rng = np.random.default_rng(plan.recipe.seed)
    return table.select(sorted(rng.choice(len(table), plan.rows, replace=False).tolist()))


def _slowness() -> float:
    """Return how many times longer arithmetic takes here than where the constants come from."""
    matrix = np.random.default_rng(0).normal(size=(1500, 1500)).astype(np.float32)
    times = []
    for _ in range(4):
        start = time.perf_counter()
        matrix @ matrix
        times.append(time.perf_counter() - start)
    return max(0.3, min(times[1:]) / _PRODUCT)


def _tuned(
    recipe: Recipe, cost: Callable[[Sequence[StageConfig]], float], left: float
) -> tuple[Recipe, float] | None:
    """Return a fine-tuning with as many epochs as fit in ``left`` seconds; None: too few do."""
    for scale in _SCALES:
        stages = tuple(_scaled(stage, scale) for stage in recipe.stages)
        seconds = cost(stages)
        if seconds <= left:
            return recipe.model_copy(update={"stages": stages}), seconds
    return None


def _scaled(stage: StageConfig, scale: float) -> StageConfig:
    return stage.model_copy(update={"epochs": max(1, round(scale * stage.epochs))})


def _cost_of_training(
    recipe: Recipe, frozen: FrozenBackbone, table: LabelTable, sample: list[Path], view: float
) -> tuple[Callable[[Sequence[StageConfig]], float], float]:
    """Return what tells the seconds of a fine-tuning by its stages, from a few measured steps.

    And the seconds of the last training's predictions, which come after it has ended.
    """
    from polytag.feed import Pictures  # these load torch
    from polytag.model import build_classifier
    from polytag.trainable import frozen_depth
    from polytag.trunk.trial import measured, seconds_of_answers, seconds_of_training

    count = len(table.attributes)
    model = build_classifier(recipe, copy.deepcopy(frozen.module()), count).to(recipe.device)
    some = sample[: recipe.training.batch]
    pictures = Pictures(some, np.zeros((len(some), count), np.float32))
    depths = [frozen_depth(model.backbone, stage.frozen) for stage in recipe.stages]
    costs = {depth: measured(model, recipe, pictures, depth) for depth in set(depths)}
    # The engine that extracts features, of a whole network in ``view`` seconds, computes frozen
    # layers too; what was measured is torch.
    costs = {d: replace(each, trunk=min(each.trunk, view)) for d, each in costs.items()}
    split = recipe.split
    folds, held = (split.folds, 0.0) if split.holdout == "folds" else (0, split.holdout)
    last = _rows_of_parts(len(table), held, split.choose)  # in folds, with nothing held out
    of_fold = _rows_of_parts(len(table), 1 / split.folds, split.choose)
    answers = seconds_of_answers(costs, last)

    def cost(stages: Sequence[StageConfig]) -> float:
        tried = recipe.model_copy(update={"stages": stages})
        each = seconds_of_training(tried, costs, depths, of_fold)
        each += seconds_of_answers(costs, of_fold)
        return folds * each + seconds_of_training(tried, costs, depths, last)

    return cost, answers


def _rows_of_parts(count: int, held: float, choose: float) -> dict[str, int]:
    shares = {"train": (1 - held) * (1 - choose), "choose": (1 - held) * choose, "holdout": held}
    return {part: round(share * count) for part, share in shares.items()}
