"""The same function in fewer passes over memory, for training on a CPU.

A BatchNorm layer that keeps its statistics is a factor and a summand of each channel, so it goes
into the weights of the convolution before it. And a depthwise convolution is computed in float32
where everything else is bfloat16: its gradient in bfloat16 takes a CPU four times as long.
"""

from __future__ import annotations

from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from polytag.config import TrainingConfig
from polytag.model import Classifier
from polytag.trunk.split import Split, Upper, drawn_pictures, shared_copy


def fast_form(split: Split, model: Classifier, config: TrainingConfig) -> Upper:
    """Return a split's upper part in the form whose training takes a device the least time.

    Args:
        split: Of ``model``; its upper part is not changed.
        model: On its device.
        config: Whether norms keep their statistics, and the precision.

    Returns:
        With the parameters of the model itself. In bfloat16 where ``precision = "auto"`` and the
        processor multiplies in it.
    """
    upper: Upper = shared_copy(split.upper)
    if model.backbone.mean.device.type != "cpu":
        return upper
    if config.freeze_norm:
        make_lean(upper)
        with torch.no_grad():
            seen = split.trunk.eval()(drawn_pictures(model.backbone))
            one, other = split.upper.eval()(*seen), upper.eval()(*seen)
        if not torch.allclose(one, other, rtol=1e-3, atol=1e-3):
            upper = shared_copy(split.upper)
    upper.bf16 = config.precision == "auto" and has_bf16()
    upper.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return upper


def has_bf16() -> bool:
    """Say whether this processor multiplies in bfloat16.

    Example:
        >>> has_bf16() in (True, False)
        True
    """
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


class LeanConv(nn.Module):
    """A convolution and the BatchNorm layer behind it, whose statistics are kept."""

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv, self.norm = conv, norm
        # timm's norms have their activation in them.
        after: Any = [getattr(norm, name) for name in ("drop", "act") if hasattr(norm, name)]
        self.after = nn.Sequential(*after)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the two layers return."""
        conv, norm = self.conv, self.norm
        mean, variance = norm.running_mean, norm.running_var
        if mean is None or variance is None:
            raise TypeError("this norm keeps no statistics")
        scale = norm.weight * torch.rsqrt(variance + norm.eps)
        bias = norm.bias - mean * scale
        if conv.bias is not None:
            bias = bias + conv.bias * scale
        padding: Any = conv.padding
        places = (conv.stride, padding, conv.dilation, conv.groups)
        # Joined, a weight that is frozen would have to be walked back through for the scale's sake.
        joined = conv.weight.requires_grad or conv.groups == 1
        full = torch.autocast(x.device.type, enabled=False) if conv.groups > 1 else nullcontext()
        with full:
            x = x.float() if conv.groups > 1 else x
            if joined:
                y = conv2d(x, conv.weight * scale.view(-1, 1, 1, 1), bias, *places)
            else:
                y = conv2d(x, conv.weight, None, *places)
                y = torch.addcmul(bias.view(1, -1, 1, 1), y, scale.view(1, -1, 1, 1))
        found: Tensor = self.after(y)
        return found


class FullConv(nn.Module):
    """A depthwise convolution that is computed in float32."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        """Return what the layer returns, in float32."""
        with torch.autocast(x.device.type, enabled=False):
            found: Tensor = self.conv(x.float())
        return found


def make_lean(module: nn.Module) -> None:
    """Join every convolution to the BatchNorm layer registered behind it, where that is the same.

    Whether the layers really follow each other is for the caller to try.

    Args:
        module: Changed; its norms must be in evaluation mode and stay there.

    Example:
        >>> layers = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)).eval()
        >>> x = torch.randn(2, 3, 5, 5)
        >>> before = layers(x)
        >>> make_lean(layers)
        >>> torch.allclose(layers(x), before, atol=1e-6), type(layers[1]).__name__
        (True, 'Identity')
    """
    for part in list(module.modules()):
        children = list(part.named_children())
        for (first, conv), (second, norm) in pairwise(children):
            if not isinstance(conv, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
                continue
            plain = type(conv) is nn.Conv2d and conv.padding_mode == "zeros"
            if plain and norm.affine and norm.track_running_stats:
                setattr(part, first, LeanConv(conv, norm))
                setattr(part, second, nn.Identity())
            elif conv.groups > 1:
                setattr(part, first, FullConv(conv))
