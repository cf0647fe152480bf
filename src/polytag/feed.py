"""What a training step is fed with: pictures in an order, varied, in parts for each process.

What is drawn by chance follows from (seed, stage, epoch, position) and nothing else: neither how
many threads decode nor where a run was interrupted has a say. Several processes take the same
pictures, varied in the same way; pictures are mixed within a process's share of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polytag.augment import make_augment, mix
from polytag.config import Recipe
from polytag.errors import UserError
from polytag.images import decode
from polytag.pipeline import stream
from polytag.preprocess import PreprocessSpec
from polytag.samplers import epoch_order

Floats = NDArray[np.float32]
Take = Callable[[NDArray[np.int64], int], tuple[Tensor, Tensor]]
"""Rows (B,) and an epoch to what was kept of them: maps (B, H, W, C), pooled features (B, P)."""

# What a seed is drawn for: no two draws share a stream of random numbers.
ORDER, AUGMENT, MIX, NETWORK = range(4)


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures and labels of one part of a table.

    Attributes:
        paths: N files.
        values: float32 (N, K) in {0, 1, NaN}.
    """

    paths: list[Path]
    values: Floats

    def __len__(self) -> int:
        return len(self.paths)


@dataclass(frozen=True, eq=False)
class Part:
    """What one process computes at a time: some pictures of a step, varied and mixed.

    Attributes:
        rows: int (R,), the pictures' rows, R <= B. Behind them may stand copies of which nothing is
            known: a process that has no picture takes part all the same, and BatchNorm layers
            cannot train on a single one.
        given: What the network is given: pictures uint8 or float32 (B, S, S, 3), 0 to 255; or,
            where frozen layers are computed already, maps (B, H, W, C) and pooled features (B, P).
        targets: float32 (B, K), 0 where not known.
        known: bool (B, K).
    """

    rows: NDArray[np.int64]
    given: tuple[Tensor, ...]
    targets: Tensor
    known: Tensor


def derived(seed: int, *numbers: int) -> np.random.Generator:
    """Return the generator that belongs to a seed and some numbers.

    Example:
        >>> bool(derived(1, ORDER, 2).random() == derived(1, ORDER, 2).random())
        True
    """
    return np.random.default_rng((seed, *numbers))


class Feed:
    """The training pictures, in steps.

    Args:
        pictures: What is trained on.
        recipe: Sampler, augmentation, batch, seed.
        spec: How pictures are judged.
        rank: Number of this process.
        world: How many processes there are.

    Attributes:
        kept: Where a stage takes its rows from instead of decoding pictures; None: from nowhere.
    """

    def __init__(
        self, pictures: Pictures, recipe: Recipe, spec: PreprocessSpec, rank: int, world: int
    ) -> None:
        self.pictures, self.recipe = pictures, recipe
        self.rank, self.world = rank, world
        self.kept: Take | None = None
        self.augment = make_augment(recipe.augment, spec)
        self.batch = recipe.training.batch
        self.rows_a_step = self.batch * recipe.training.accumulate
        self.steps_an_epoch = -(-len(pictures) // self.rows_a_step)

    def steps(
        self, stage: int, epoch: int, first: int, losses: Floats
    ) -> Generator[list[Part], None, None]:
        """Yield this process's parts of an epoch's steps, from step ``first`` on.

        Args:
            stage: Its number.
            epoch: Its number in the stage.
            first: Steps that are done already.
            losses: float32 (N,), each row's loss when last trained on; NaN: never yet.
        """
        rng = derived(self.recipe.seed, ORDER, stage, epoch)
        order = epoch_order(
            self.pictures.values,
            self.recipe.sampler,
            batch=self.batch,
            rng=rng,
            losses=None if np.isnan(losses).all() else losses,  # the first epoch sees every row
        )
        ends = range(first * self.rows_a_step + self.batch, len(order) + self.batch, self.batch)
        batches = [range(end - self.batch, min(end, len(order))) for end in ends]
        # Of each batch a process takes every world-th picture; if that is none, looks at the first.
        shares = [batch[self.rank :: self.world] for batch in batches]
        seen = [share or batch[:1] for share, batch in zip(shares, batches, strict=True)]
        if self.kept:
            ready = (self._kept_part(self.kept, order[list(share)], epoch) for share in shares)
            while step := list(islice(ready, self.recipe.training.accumulate)):
                yield step
            return

        def load(position: int) -> NDArray[np.uint8]:
            chance = derived(self.recipe.seed, AUGMENT, stage, epoch, position)
            return self.augment(decode(self.pictures.paths[order[position]]), chance)

        loaded = stream((i for positions in seen for i in positions), load, ahead=2 * self.batch)
        parts = (
            self._part(
                [_usable(result) for _, result in islice(loaded, len(positions))],
                order[list(share)],
                derived(self.recipe.seed, MIX, stage, epoch, positions.start),
            )
            for share, positions in zip(shares, seen, strict=True)
        )
        with closing(loaded):  # its threads end when nobody asks for more steps
            while step := list(islice(parts, self.recipe.training.accumulate)):
                yield step

    def _kept_part(self, take: Take, rows: NDArray[np.int64], epoch: int) -> Part:
        return self._whole(rows, take(rows, epoch), *map(torch.from_numpy, self._labels(rows)))

    def _part(
        self, pictures: list[NDArray[np.uint8]], rows: NDArray[np.int64], rng: np.random.Generator
    ) -> Part:
        arrays = np.stack(pictures), *self._labels(rows)
        mixed = mix(*arrays, self.recipe.augment, rng) if len(rows) else arrays
        images, targets, known = (torch.from_numpy(array) for array in mixed)
        return self._whole(rows, (images,), targets, known)

    def _labels(self, rows: NDArray[np.int64]) -> tuple[Floats, NDArray[np.bool_]]:
        values = self.pictures.values[rows]
        known = ~np.isnan(values)
        return np.where(known, values, 0).astype(np.float32), known

    def _whole(
        self, rows: NDArray[np.int64], given: tuple[Tensor, ...], targets: Tensor, known: Tensor
    ) -> Part:
        """Return a part with as many pictures as training needs at least; see `Part.rows`."""
        least = 2 if self.batch >= 2 * self.world else 1
        spare = least - len(rows)
        if spare > 0:
            targets, known = (
                torch.cat([labels, labels.new_zeros(spare, labels.shape[1])])
                for labels in (targets, known)
            )
            given = tuple(each.repeat(least, *[1] * (each.ndim - 1)) for each in given)
        return Part(rows, given, targets, known)


def _usable(result: Any) -> NDArray[np.uint8]:
    if isinstance(result, UserError):  # it was usable when training began
        raise result
    picture: NDArray[np.uint8] = result
    return picture
