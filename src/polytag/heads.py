"""What answers for the attributes on top of a backbone.

A head maps features (B, D) to logits (B, K); one with ``takes_tokens`` maps tokens (B, T, D), the
backbone's last layer at each of its T positions. Layers start as torch's defaults have it: weights
and biases uniform in +-1 / sqrt(inputs). All that is drawn comes from torch's generator, so
``torch.manual_seed`` decides it. All heads can be exported to ONNX with a dynamic B.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from polytag.config import HeadConfig
from polytag.errors import RecipeError

Floats = NDArray[np.float32]


class Head(nn.Module):
    """Base of all heads.

    Attributes:
        takes_tokens: Whether ``forward`` takes tokens (B, T, D) instead of features (B, D).
    """

    takes_tokens: ClassVar[bool] = False


def make_head(
    config: HeadConfig, width: int, attributes: int, tokens_width: int | None = None
) -> Head:
    """Build a head.

    Args:
        config: Kind, hidden width, dropout, start.
        width: D of the features.
        attributes: K.
        tokens_width: D of the tokens; None: the backbone gives none.

    Raises:
        RecipeError: The head takes tokens, and there are none.

    Example:
        >>> head = make_head(HeadConfig(kind="mlp"), width=8, attributes=3)
        >>> head(torch.zeros(2, 8)).shape
        torch.Size([2, 3])
    """
    make = HEADS[config.kind]
    if not make.takes_tokens:
        return make(config, width, attributes)
    if tokens_width is None:
        raise RecipeError(
            "this head needs a backbone that shows its positions",
            where="head.kind",
            got=repr(config.kind),
            fix="choose another head or another backbone",
        )
    return make(config, tokens_width, attributes)


class Standardise(nn.Module):
    """(x - mean) / scale, with fixed ``mean`` and ``scale`` (D,); 0 and 1 at the start."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))

    def forward(self, features: Tensor) -> Tensor:
        """Return standardised features (B, D)."""
        return (features - self.mean) / self.scale


class Linear(Head):
    """Dropout and one linear layer.

    A head that starts as a probe standardises its features first: they are of very different
    sizes, and so one learning rate fits them all, and dropout puts their mean in their place
    instead of 0.
    """

    def __init__(self, config: HeadConfig, width: int, attributes: int) -> None:
        super().__init__()
        self.standardise = Standardise(width) if config.init == "probe" else None
        self.dropout = nn.Dropout(config.dropout)
        self.linear = nn.Linear(width, attributes)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (B, K) of ``features`` (B, D)."""
        if self.standardise is not None:
            features = self.standardise(features)
        logits: Tensor = self.linear(self.dropout(features))
        return logits

    def set_probe(self, weight: Floats, bias: Floats, mean: Floats, scale: Floats) -> None:
        """Become a logistic regression, logits = features @ weight + bias.

        Args:
            weight: float32 (D, K), on the features as the backbone gives them.
            bias: float32 (K,).
            mean: float32 (D,), what the head is to subtract from the features ...
            scale: float32 (D,), > 0, ... and to divide them by: these decide how it learns, not
                what it answers. Unused by a head that does not standardise.

        Example:
            >>> head = Linear(HeadConfig(init="probe"), 1, 1)
            >>> head.set_probe(*(np.array(x, np.float32) for x in ([[2]], [1], [3], [4])))
            >>> head(torch.tensor([[5.0]])).item()  # 2 * 5 + 1
            11.0
        """
        weights, biases = weight.astype(np.float64), bias.astype(np.float64)
        with torch.no_grad():
            if self.standardise is not None:
                self.standardise.mean.copy_(torch.from_numpy(mean))
                self.standardise.scale.copy_(torch.from_numpy(scale))
                biases = biases + mean.astype(np.float64) @ weights
                weights = weights * scale[:, None]
            self.linear.weight.copy_(torch.from_numpy(weights.T))
            self.linear.bias.copy_(torch.from_numpy(biases))


class Mlp(Head):
    """One hidden layer that all attributes share."""

    def __init__(self, config: HeadConfig, width: int, attributes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, config.hidden),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.hidden, attributes),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (B, K) of ``features`` (B, D)."""
        logits: Tensor = self.layers(features)
        return logits


class PerAttribute(nn.Module):
    """One vector w_k and number b_k an attribute: (B, K, H) to (B, K), w_k . x_k + b_k."""

    def __init__(self, attributes: int, hidden: int) -> None:
        super().__init__()
        bound = hidden**-0.5
        self.weight = nn.Parameter(torch.empty(attributes, hidden).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(attributes).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, K) of ``x`` (B, K, H)."""
        return torch.einsum("bkh,kh->bk", x, self.weight) + self.bias


class Separate(Head):
    """An mlp of its own for every attribute; they share nothing but the features.

    The K first layers are one matrix, as all of them take the same features. It has D x K x hidden
    numbers, which is why a small ``hidden`` becomes this head.
    """

    def __init__(self, config: HeadConfig, width: int, attributes: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, attributes * config.hidden)
        self.inner = nn.Sequential(
            nn.Unflatten(1, (attributes, config.hidden)), nn.GELU(), nn.Dropout(config.dropout)
        )
        self.last = PerAttribute(attributes, config.hidden)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (B, K) of ``features`` (B, D)."""
        logits: Tensor = self.last(self.inner(self.first(features)))
        return logits


class Attention(Head):
    """A learned query an attribute looks at all positions: ML-Decoder.

    Ridnik et al. 2021, arXiv 2111.12933, with one query an attribute (group size 1) and without
    attention between queries, so that attributes do not read one another. Queries start normal of
    deviation 1, as `torch.nn.Embedding` does.
    """

    takes_tokens = True

    def __init__(self, config: HeadConfig, width: int, attributes: int) -> None:
        super().__init__()
        hidden = config.hidden
        heads = next(count for count in (8, 4, 2, 1) if hidden % count == 0)
        self.project = nn.Sequential(nn.Linear(width, hidden), nn.ReLU())
        self.queries = nn.Parameter(torch.randn(attributes, hidden))
        self.attention = nn.MultiheadAttention(hidden, heads, batch_first=True)
        self.attention_norm = nn.LayerNorm(hidden)
        self.feed_forward = nn.Sequential(
            nn.Linear(hidden, 2 * hidden),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(2 * hidden, hidden),
        )
        self.feed_forward_norm = nn.LayerNorm(hidden)
        self.dropout = nn.Dropout(config.dropout)
        self.last = PerAttribute(attributes, hidden)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (B, K) of ``tokens`` (B, T, D)."""
        tokens = self.project(tokens)
        queries = self.queries.expand(tokens.shape[0], -1, -1)
        seen, _ = self.attention(queries, tokens, tokens, need_weights=False)
        x = self.attention_norm(queries + seen)
        x = self.feed_forward_norm(x + self.feed_forward(x))
        logits: Tensor = self.last(self.dropout(x))
        return logits


HEADS: dict[str, type[Linear | Mlp | Separate | Attention]] = {
    "linear": Linear,
    "mlp": Mlp,
    "separate": Separate,
    "attention": Attention,
}
