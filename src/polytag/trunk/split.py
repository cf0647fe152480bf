"""A network in two parts: the trunk that stays frozen, and what is trained above it.

Both parts are the network itself, its parameters and buffers shared, with the other part's layers
replaced by ones that do nothing. No architecture is known by name: whether the two parts together
still compute what the whole does is tried on a few random pictures.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from polytag.backbone import Backbone
from polytag.heads import Head
from polytag.model import Classifier

_TOLERANCE = 1e-4  # of a feature, relative and absolute; both parts run the whole's own operators


class Trunk(nn.Module):
    """The frozen part: pictures in, its last map and the pooled features of its stages out."""

    def __init__(self, part: Backbone) -> None:
        super().__init__()
        self.part = part

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the map (B, H, W, C) and pooled features float32 (B, P), P >= 0.

        Args:
            images: (B, S, S, 3), values 0 to 255.
        """
        network: Any = self.part.network
        x = self.part._normalised(images)
        if self.part.taps is None:
            last, stages = network.forward_features(x), []
        else:
            last, stages = network.forward_intermediates(x, **self.part.taps)
        pooled = [part for stage in stages for part in _mean_and_std(stage)]
        none = last.flatten(1)[:, :0]
        return last.permute(0, 2, 3, 1), torch.cat(pooled, dim=1) if pooled else none


class Upper(nn.Module):
    """What is trained above a trunk: its map and pooled features in, logits out.

    Its parameters have the names they have in the whole classifier.

    Attributes:
        bf16: Whether the backbone is computed in bfloat16.
    """

    def __init__(self, backbone: Backbone, head: Head) -> None:
        super().__init__()
        self.backbone, self.head, self.bf16 = backbone, head, False

    def forward(self, maps: Tensor, pooled: Tensor) -> Tensor:
        """Return logits (B, K) of what `Trunk` gives."""
        kind = maps.device.type
        with torch.autocast(kind, dtype=torch.bfloat16) if self.bf16 else nullcontext():
            features = self.backbone(maps)
        logits: Tensor = self.head(torch.cat([pooled, features.float()], dim=1))
        return logits


@dataclass(frozen=True, eq=False)
class Split:
    """A classifier's two parts.

    Attributes:
        depth: Down to which the trunk reaches.
        trunk: Pictures to map and pooled features.
        upper: Both of them to logits.
    """

    depth: int
    trunk: Trunk
    upper: Upper


def drawn_pictures(backbone: Backbone) -> Tensor:
    """Return two pictures of noise, uint8 (2, S, S, 3), always the same."""
    side = backbone.spec.size
    pixels = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), np.uint8)
    return torch.from_numpy(pixels).to(backbone.mean.device)


def split_at(model: Classifier, depth: int) -> Split | None:
    """Part a classifier behind a depth; None: the parts would not compute what the whole does.

    Args:
        model: In evaluation mode or not; it is not changed.
        depth: As `Backbone.depths` counts; what stands deeper is above the trunk.

    Example:
        Not run: it needs a network; the tests part several.

        >>> split = split_at(model, 8)                          # doctest: +SKIP
        >>> torch.equal(split.upper(*split.trunk(images)), model(images)) # doctest: +SKIP
        True
    """
    backbone = model.backbone
    if depth < 0 or model.head.takes_tokens or (backbone.taps and "norm" in backbone.taps):
        return None
    images = drawn_pictures(backbone)
    with torch.no_grad():
        try:
            return _tried(model, depth, images)
        except Exception:  # layers that are fed what they do not expect raise nearly anything
            return None


def _tried(model: Classifier, depth: int, images: Tensor) -> Split | None:
    """Return the first division of the taps with which both parts give the whole's features."""
    whole = shared_copy(model.backbone).eval()
    features, taps = whole(images), _taps(whole, images)
    # The trunk has the first so many of the taps, as many as it can.
    for own in range(len(taps), -1, -1):
        below, above = (_part(model.backbone, depth, keep, images) for keep in ("below", "above"))
        below.taps = {**(whole.taps or {}), "indices": taps[:own]} if own else None
        above.taps = {**(whole.taps or {}), "indices": taps[own:]} if taps[own:] else None
        split = Split(depth, Trunk(below), Upper(above, model.head))
        maps, pooled = split.trunk(images)
        found = torch.cat([pooled, above(maps)], dim=1)
        if found.shape == features.shape and torch.allclose(
            found, features, rtol=_TOLERANCE, atol=_TOLERANCE
        ):
            return split
    return None


def _taps(backbone: Backbone, images: Tensor) -> list[int]:
    """Return the numbers by which timm knows the stages that are pooled."""
    if backbone.taps is None:
        return []
    network: Any = backbone.network
    listed = backbone.taps.get("indices")
    if isinstance(listed, list):
        return listed
    count = len(network.forward_intermediates(backbone._normalised(images), **backbone.taps)[1])
    return list(range(-count, 0))


def _part(backbone: Backbone, depth: int, keep: str, images: Tensor) -> Backbone:
    """Return one part of a network: what stands at most so deep, or what stands deeper."""
    part: Backbone = shared_copy(backbone).eval()
    if keep == "above":  # it takes a map as if it were a picture of C channels, as it is
        part.register_buffer("mean", images.new_zeros(1).float(), persistent=False)
        part.register_buffer("std", images.new_ones(1).float(), persistent=False)
        _cut(part.network, "network.", backbone.depths(), lambda at: at <= depth, -1)
    else:
        _cut(part.network, "network.", backbone.depths(), lambda at: at > depth, -1)
    return part


def _cut(
    module: nn.Module,
    prefix: str,
    depths: Mapping[str, int],
    drop: Callable[[int], bool],
    before: int,
) -> int:
    """Replace the layers to drop and return the depth of the last one seen.

    A layer without parameters (an activation, a pooling) stands as deep as the one before it.
    """
    for name, child in list(module.named_children()):
        own = f"{prefix}{name}."
        inside = {at for key, at in depths.items() if key.startswith(own)}
        if len({drop(at) for at in inside}) > 1:
            before = _cut(child, own, depths, drop, before)
            continue
        before = max(inside, default=before)
        behind_all = not inside and before == max(depths.values())  # the pooling, which stays
        if drop(before) and not behind_all:
            setattr(module, name, nn.Identity())
    return before


def shared_copy(module: Any) -> Any:
    """Return a copy of a module's layers that has its very parameters and buffers.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> shared_copy(layer).weight is layer.weight
        True
    """
    tensors = chain(module.parameters(), module.buffers())
    return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})


def _mean_and_std(stage: Tensor) -> tuple[Tensor, Tensor]:
    return stage.mean((2, 3)), stage.std((2, 3), correction=0)
