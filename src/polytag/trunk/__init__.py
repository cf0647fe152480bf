"""Fine-tuning that computes what stays frozen once.

`Reuse` is the door: it says which stages of a recipe can be trained from kept maps, has those maps
computed, and gives the loop what is trained above them.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polytag.augment import make_augment
from polytag.cached import Held, describe, hold
from polytag.config import Recipe
from polytag.engine import open_engine, precision
from polytag.errors import ModelError
from polytag.feed import AUGMENT, Pictures, derived
from polytag.files import cache_folder, digest
from polytag.graph import export_module
from polytag.images import content_hash, decode
from polytag.model import Classifier
from polytag.pipeline import stream
from polytag.progress import waiting
from polytag.ranks import world
from polytag.trainable import frozen_depth
from polytag.trunk.lean import fast_form
from polytag.trunk.split import Split, Trunk, Upper, split_at
from polytag.trunk.trial import measured
from polytag.trunk.views import FORMAT, Run, Views, fitting, kept_views, row_type

__all__ = ["Reuse", "Split", "Upper", "settled", "split_at"]

log = logging.getLogger("polytag")
_ANEW = "frozen layers are computed anew in every epoch"


class _Trunks(torch.nn.Module):
    """Several trunks of one network, for one graph: what they share, an engine computes once."""

    def __init__(self, trunks: list[Trunk]) -> None:
        super().__init__()
        self.trunks = torch.nn.ModuleList(trunks)

    def forward(self, images: Tensor) -> list[Tensor]:
        return [tensor for trunk in self.trunks for tensor in trunk(images)]


class Reuse:
    """What the stages of a training can take from the cache instead of computing it.

    Args:
        model: As training begins; the frozen layers must still have these weights in every stage
            that takes anything from here, which is looked after here.
        recipe: As resolved.
        pictures: What is trained on.
        world: How many processes train.

    Attributes:
        splits: By stage, for those that can be trained from kept maps.
    """

    def __init__(self, model: Classifier, recipe: Recipe, pictures: Pictures, world: int) -> None:
        self.model, self.recipe, self.pictures = model, recipe, pictures
        self.device = model.backbone.mean.device
        self.splits: dict[int, Split] = {}
        self.views: Views | None = None
        self.held: Held | None = None
        if reason := _hindrance(model, recipe, world):
            if recipe.training.cache != "off":
                log.info("%s: %s", _ANEW, reason)
            return
        untouched = max(model.backbone.depths().values())
        made: dict[int, Split | None] = {}
        for number, stage in enumerate(recipe.stages):
            depth = frozen_depth(model.backbone, stage.frozen)
            untouched = min(untouched, depth)
            if depth < 0 or depth > untouched:  # an earlier stage has trained what is frozen now
                continue
            if depth not in made:
                made[depth] = split_at(model, depth)
            split = made[depth]
            if split:
                self.splits[number] = split
            else:
                words = "%s: this network cannot be parted there, so nothing is kept of it"
                log.info(words, stage.name)

    def split(self, stage: int, check: Callable[[], None]) -> Split | None:
        """Return how the model is parted in a stage, its views ready; None: it is trained whole.

        Args:
            stage: Its number.
            check: Called after every batch; what it raises ends the work.

        Raises:
            UserError: A picture cannot be decoded any more.
        """
        if stage in self.splits and self.views is None:
            self._prepare(check)
        return self.splits.get(stage)

    def take(self, split: Split, rows: NDArray[np.int64], epoch: int) -> tuple[Tensor, Tensor]:
        """Return what `Upper` is given of some rows in an epoch."""
        if self.views is None:
            raise RuntimeError("nothing is kept yet")
        return self.views.take(split.depth, rows, epoch)

    def trained(self, split: Split) -> Upper:
        """Return what is trained, in the form that takes this device the least time."""
        return fast_form(split, self.model, self.recipe.training)

    def _prepare(self, check: Callable[[], None]) -> None:
        config, spec = self.recipe.training, self.model.backbone.spec
        trunks = {split.depth: split.trunk for split in self.splits.values()}
        trunk = _Trunks(list(trunks.values())).eval()
        with torch.no_grad():
            blank = self.model.backbone.blank().to(self.device)
            kind = row_type([tensor.cpu().numpy() for tensor in trunk(blank)])
        epochs: dict[int, int] = {}
        for stage, split in self.splits.items():
            epochs[split.depth] = epochs.get(split.depth, 0) + self.recipe.stages[stage].epochs
        wanted = min(config.cache_views, max(epochs.values()))
        views = fitting(wanted, len(self.pictures), kind.itemsize, config.cache_gb)
        if not views:
            bound = "one view of every picture needs %.1f GB, training.cache_gb allows %g"
            size = len(self.pictures) * kind.itemsize / 1e9
            log.info(f"{_ANEW}: {bound}", size, config.cache_gb)
            self.splits = {}
            return
        augment, seed = make_augment(self.recipe.augment, spec), self.recipe.seed
        paths = self.pictures.paths

        def load(view: int, row: int) -> NDArray[np.uint8]:
            return augment(decode(paths[row]), derived(seed, AUGMENT, view, row))

        folder = cache_folder() / "trunks" / self._key(views)
        held = hold(folder)
        rows = kept_views(
            folder,
            (views, len(paths)),
            kind,
            lambda: self._run(trunk),
            load,
            check=check,
        )
        if rows is None:
            log.info("%s: there is no room on the disk, or in POLYTAG_CACHE_SIZE", _ANEW)
            self.splits = {}
            return
        name, size = self.model.backbone.name, spec.size
        describe(folder, {"backbone": name, "size": size, "views": views, "pictures": len(paths)})
        self.views = Views(rows, tuple(trunks), held)

    def _run(self, trunk: _Trunks) -> Run:
        """Return what computes the trunks: the recipe's engine for frozen layers."""
        if self.recipe.features.engine == "torch":
            return _torch_run(trunk, self.device)
        folder = cache_folder() / "backbones" / self._weights()
        self.held, path = hold(folder), folder / "trunk.onnx"
        names = [f"{what}{i}" for i in range(len(trunk.trunks)) for what in ("map", "pooled")]
        engine = self.recipe.features.engine

        def export() -> None:
            with waiting("exporting the frozen layers to ONNX: once"):
                export_module(trunk, self.model.backbone.spec.size, names, path)
            describe(folder, {"backbone": self.model.backbone.name, "part": "frozen layers"})

        if not path.is_file():
            export()
        try:
            return open_engine(engine, path, names)
        except ModelError:  # a disk's fault, as the file appears whole
            log.warning("a damaged file of the cache is made again: %s", path)
            export()
            return open_engine(engine, path, names)

    def _weights(self) -> str:
        depths = sorted({split.depth for split in self.splits.values()})
        backbone = self.model.backbone
        made_by = [torch.__version__, version("timm")]
        parts = [FORMAT, backbone.name, backbone.spec.size, depths, backbone.taps, made_by]
        return digest([backbone.fingerprint(), *parts])

    def _key(self, views: int) -> str:
        """Name everything that decides the numbers."""
        hashes = [str(found) for _, found in stream(self.pictures.paths, content_hash)]
        recipe, engine = self.recipe, self.recipe.features.engine
        computed = [engine, self.device.type if engine == "torch" else precision(engine)]
        parts = [recipe.augment.model_dump(), self.model.backbone.spec.to_dict(), recipe.seed]
        return digest([self._weights(), computed, views, hashes, *parts])


def settled(recipe: Recipe, model: Classifier, pictures: Pictures) -> str:
    """Decide ``training.cache = "auto"``: on, where a GPU does not find that it takes longer.

    Args:
        recipe: With its device resolved.
        model: As training begins; it is left as it is.
        pictures: What is trained on.

    Returns:
        What it is from now on, to be kept with the run: one that goes on must not decide anew.
    """
    if recipe.training.cache != "auto":
        return recipe.training.cache
    if world() > 1:
        return "off"
    if recipe.device == "cpu":
        return "on"
    depths = [frozen_depth(model.backbone, stage.frozen) for stage in recipe.stages]
    stages = [(d, s.epochs) for d, s in zip(depths, recipe.stages, strict=True) if d >= 0]
    moved = copy.deepcopy(model).to(recipe.device)
    pays = False
    for depth in sorted({depth for depth, _ in stages}):
        epochs = sum(count for at, count in stages if at == depth)
        costs = measured(moved, recipe, pictures, depth)
        log.info("frozen down to block %d, milliseconds a picture: %s", depth, costs.told())
        pays = pays or costs.pays(epochs, recipe.training.cache_views)
    return "on" if pays else "off"


def _hindrance(model: Classifier, recipe: Recipe, world: int) -> str:
    """Return why nothing can be reused; empty: as far as can be told here, it can."""
    if recipe.training.cache == "off":
        return "training.cache is off"
    if recipe.augment.mixup or recipe.augment.cutmix:
        return "MixUp and CutMix mix pictures, not what frozen layers make of them"
    if world > 1:
        return "several processes train"
    if model.head.takes_tokens:
        return "the head looks at positions"
    return ""


def _torch_run(trunk: _Trunks, device: torch.device) -> Run:
    def run(images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        with torch.inference_mode():
            found: Any = trunk(torch.from_numpy(images).to(device))
        return [tensor.float().cpu().numpy() for tensor in found]

    return run
