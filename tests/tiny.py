"""A training that takes a second: a few small pictures, labels with holes, a tiny network."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import binary_cross_entropy_with_logits

from polytag.backbone import load_backbone
from polytag.config import Recipe, load_recipe
from polytag.feed import Pictures
from polytag.finetune import make_cell_loss
from polytag.images import decode
from polytag.loop import Loop
from polytag.model import Classifier, build_classifier
from polytag.preprocess import preprocess

from .conftest import TINY

NAMES = ("red", "bright", "striped")
NO_MOVE = 1e-300  # a learning rate that is 0 in float32: not even a bias of 0 moves
# Two stages, and everything that carries something from one step or epoch to the next.
EVERYTHING: dict[str, object] = {
    "head.dropout": 0.3,
    "sampler.hard": 0.3,
    "augment.crop": "resized",
    "augment.flip": 0.5,
    "augment.mixup": 0.3,
    "training.batch": 5,
    "training.accumulate": 2,
    "training.schedule": "plateau",
    "training.plateau_patience": 0,
    "training.clip": 1.0,
    "training.ema": 0.1,
    "training.early_stop": 2,
    "training.keep": "best",
    "split.choose": 0.25,
    "stages": [
        {"name": "head", "epochs": 2, "lr": 0.1, "frozen": "backbone"},
        {"name": "blocks", "epochs": 6, "lr": 0.05, "backbone_lr": 0.015, "frozen": 2},
    ],
}


def tiny_recipe(changes: Mapping[str, object] | None = None) -> Recipe:
    """A recipe of one epoch in steps of 8 on the CPU, changed."""
    basis = {"training.batch": 8, "stages.*.epochs": 1, "stages.*.lr": 1e-3}
    plain = Recipe(method="finetune", device="cpu")
    return load_recipe(plain, TINY | basis | dict(changes or {}))


def save_pictures(folder: Path, count: int, seed: int = 0) -> Pictures:
    """Draw pictures 32 x 32 of three attributes that can be seen, a quarter of them holes."""
    rng = np.random.default_rng(seed)
    truth = rng.random((count, 3)) < 0.5
    paths = []
    folder.mkdir(exist_ok=True)
    for i, (red, bright, striped) in enumerate(truth):
        level = 170 if bright else 70
        pixels = np.full((32, 32, 3), level) * ([1.3, 0.8, 0.6] if red else [0.6, 0.8, 1.3])
        pixels[::4] *= 0.5 if striped else 1
        pixels = np.clip(pixels + rng.normal(0, 12, pixels.shape), 0, 255)
        paths.append(folder / f"{i:02}.png")
        Image.fromarray(pixels.astype(np.uint8)).save(paths[-1])
    values = np.where(rng.random(truth.shape) < 0.25, np.nan, truth).astype(np.float32)
    return Pictures(paths, values)


def tiny_model(recipe: Recipe) -> Classifier:
    backbone = load_backbone(recipe.backbone, recipe.preprocess, recipe.features, recipe.seed)
    return build_classifier(recipe, backbone, len(NAMES))


def tiny_loop(
    recipe: Recipe, train: Pictures, choose: Pictures | None = None, **options: Any
) -> Loop:
    """A loop on a fresh model, its loss as the recipe says."""
    cell_loss = make_cell_loss(recipe.loss, train.values)
    return Loop(tiny_model(recipe), recipe, train, choose, cell_loss, NAMES, **options)


def still(**training: object) -> dict[str, object]:
    """Changes under which neither a weight nor a statistic moves."""
    changes = {f"training.{key}": value for key, value in training.items()}
    return changes | {"training.freeze_norm": True, "stages.*.lr": NO_MOVE}


def pixels(pictures: Pictures, rows: Sequence[int]) -> torch.Tensor:
    spec = tiny_model(tiny_recipe()).backbone.spec
    return torch.from_numpy(
        np.stack([preprocess(decode(pictures.paths[row]), spec) for row in rows])
    )


def by_cell(logits: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The mean cross-entropy of the known cells, in plain torch."""
    known = ~values.isnan()
    return binary_cross_entropy_with_logits(logits[known], values[known])


def plain_gradients(
    recipe: Recipe,
    pictures: Pictures,
    rows: Sequence[int],
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = by_cell,
) -> tuple[dict[str, torch.Tensor], float]:
    """Gradients and value of a loss of some rows together, every norm frozen."""
    model = tiny_model(recipe).eval()
    value = loss(model(pixels(pictures, rows)), torch.from_numpy(pictures.values[list(rows)]))
    value.backward()
    return {name: p.grad for name, p in model.named_parameters()}, value.item()


def before_each_step(loop: Loop, act: Callable[[], None]) -> None:
    """Let something happen when a step's gradient is there and the weights have not moved."""
    begin = loop._begin_stage

    def begin_and_watch() -> None:
        begin()
        move = loop.stepper.step
        loop.stepper.step = lambda: (act(), move())

    loop._begin_stage = begin_and_watch  # type: ignore[method-assign]


def gradients(loop: Loop) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in loop.model.named_parameters() if p.grad is not None}


def recorded_gradients(loop: Loop) -> list[dict[str, torch.Tensor]]:
    """The gradients of every step, once the loop has run."""
    seen: list[dict[str, torch.Tensor]] = []
    before_each_step(loop, lambda: seen.append(gradients(loop)))
    return seen


def rows_of_steps(loop: Loop) -> list[list[int]]:
    """The rows of every step, once the loop has run."""
    seen: list[list[int]] = []
    step = loop._step
    loop._step = lambda parts: (seen.append([int(r) for p in parts for r in p.rows]), step(parts))[
        1
    ]
    return seen


def the_same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    """Whether two states agree bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute as the processes of these tests do; more threads make a tiny network slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
