"""Whether keeping what frozen layers give takes less time than computing it anew: measured."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray

from polytag.augment import make_augment
from polytag.config import Recipe
from polytag.feed import AUGMENT, Pictures, derived
from polytag.images import decode
from polytag.model import Classifier
from polytag.pipeline import stream
from polytag.trainable import freeze, set_modes
from polytag.trunk.lean import fast_form
from polytag.trunk.split import split_at

_FORWARD = 1 / 3  # of a training step of what is trained wholly, that is
_EXPORT = 2.0  # seconds, of the embedded backbone's frozen layers to ONNX
_REPEATS = 5  # of which the fastest counts: another program only ever slows one down


@dataclass(frozen=True)
class Costs:
    """Seconds a picture.

    Attributes:
        decode: Reading and varying it, in all threads together.
        whole: A training step of the whole network.
        trunk: The frozen layers' output.
        upper: A training step of what stands above them.
        forward: The whole network's answer.
    """

    decode: float
    whole: float
    trunk: float
    upper: float
    forward: float

    def told(self) -> str:
        """Return them in milliseconds.

        Example:
            >>> Costs(2e-3, 1e-3, 2e-4, 5e-4, 4e-4).told()
            'decode 2.00, whole 1.00, trunk 0.20, upper 0.50, forward 0.40'
        """
        return ", ".join(f"{name} {1000 * value:.2f}" for name, value in vars(self).items())

    def pays(self, epochs: int, views: int) -> bool:
        """Say whether keeping views takes less time; decoding runs beside the computing.

        Example:
            >>> Costs(2e-3, 1e-3, trunk=2e-4, upper=5e-4, forward=4e-4).pays(epochs=10, views=4)
            True
            >>> Costs(1e-5, 1e-3, trunk=5e-4, upper=9e-4, forward=4e-4).pays(epochs=4, views=4)
            False
        """
        views = min(views, epochs)
        anew = epochs * max(self.decode, self.whole)
        return views * max(self.decode, self.trunk) + epochs * self.upper < anew


def measured(model: Classifier, recipe: Recipe, pictures: Pictures, depth: int) -> Costs:
    """Time a few batches each way; infinite where the network cannot be parted.

    Args:
        model: On its device; its weights are left as they are.
        recipe: Batch, augmentation.
        pictures: What is trained on.
        depth: Down to which the model is frozen; -1: not at all.
    """
    depthwise = recipe.training.freeze_depthwise
    freeze(model, "nothing" if depth < 0 else depth, depthwise=depthwise)
    batch, spec = recipe.training.batch, model.backbone.spec
    paths = list(islice(pictures.paths, batch))
    augment = make_augment(recipe.augment, spec)

    def load(row: int) -> NDArray[np.uint8]:
        return augment(decode(paths[row]), derived(recipe.seed, AUGMENT, 0, row))

    start = time.perf_counter()
    squares = [found for _, found in stream(range(len(paths)), load)]
    decoding = (time.perf_counter() - start) / len(paths)
    good = [square for square in squares if isinstance(square, np.ndarray)]
    images = torch.from_numpy(np.stack(good)).to(model.backbone.mean.device)

    def step(module: torch.nn.Module, *given: torch.Tensor) -> None:
        module(*given).float().square().mean().backward()
        module.zero_grad()

    def timed(act: Callable[[], object]) -> float:
        return _seconds(act, images.device) / len(good)

    set_modes(model, freeze_norm=True)  # so that no statistic moves
    whole = timed(lambda: step(model, images))
    with torch.no_grad():
        forward = timed(lambda: model(images))
    split = split_at(model, depth)
    if split is None:
        return Costs(decoding, whole, math.inf, math.inf, forward)
    trunk, upper = split.trunk, fast_form(split, model, recipe.training)
    set_modes(upper, freeze_norm=True)
    with torch.no_grad():
        seen = trunk(images)
        below = timed(lambda: trunk(images))
    return Costs(decoding, whole, below, timed(lambda: step(upper, *seen)), forward)


def seconds_of_training(
    recipe: Recipe, costs: Mapping[int, Costs], depths: Sequence[int], rows: Mapping[str, int]
) -> float:
    """Return about how long a training takes on a CPU, where decoding takes its share of it.

    What it predicts at its end is not in it: `seconds_of_answers`.

    Args:
        recipe: Its stages.
        costs: By depth.
        depths: Down to which each stage is frozen.
        rows: How many are in each part: ``train`` and ``choose`` are looked at.

    Example:
        >>> recipe = Recipe(method="finetune").replace({"stages.0.epochs": 5})
        >>> rows = {"train": 100, "choose": 10}
        >>> round(seconds_of_training(recipe, {-1: Costs(0.0, 0.1, 0, 0, 0.04)}, [-1], rows), 2)
        52.0
    """
    training, kept = 0.0, set()
    for stage, depth in zip(recipe.stages, depths, strict=True):
        each = costs[depth]
        reused = recipe.training.cache != "off" and math.isfinite(each.upper)
        step = each.upper if reused else each.decode + each.whole
        judged = each.upper * _FORWARD if reused else each.decode + each.forward
        training += stage.epochs * (rows["train"] * step + rows["choose"] * judged)
        if reused:
            kept.add(depth)
    epochs = sum(stage.epochs for stage in recipe.stages)
    views = min(recipe.training.cache_views, epochs)
    deepest = max(kept, default=None)
    if deepest is not None:
        once = costs[deepest].decode + costs[deepest].trunk
        training += views * rows["train"] * once + _EXPORT
    return training


def seconds_of_answers(costs: Mapping[int, Costs], rows: Mapping[str, int]) -> float:
    """Return about how long a trained network takes for the rows that it is judged by.

    Args:
        costs: By depth.
        rows: How many are in each part: ``choose`` and ``holdout`` are looked at.

    Example:
        >>> each = Costs(decode=0.01, whole=0.3, trunk=0, upper=0, forward=0.1)
        >>> round(seconds_of_answers({-1: each}, {"choose": 10, "holdout": 20}), 2)
        3.3
    """
    each = max(each.decode + each.forward for each in costs.values())
    return (rows["choose"] + rows["holdout"]) * each


def _seconds(act: Callable[[], object], device: torch.device) -> float:
    """Return the shortest time of a few calls, the first one not counted."""
    times = []
    for _ in range(_REPEATS + 1):
        start = time.perf_counter()
        act()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])
