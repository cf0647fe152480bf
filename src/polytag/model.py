"""The same model in torch, for those who want to go on training it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from polytag.backbone import Backbone
from polytag.modelfile import LinearHead


class Classifier(nn.Module):
    """A backbone and a linear head: uint8 pictures in, logits out.

    Its state dict is what a run's ``weights.safetensors`` holds.

    Args:
        backbone: The headless network; D is its width.
        attributes: K, the number of attributes.
    """

    def __init__(self, backbone: Backbone, attributes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.width, attributes)

    def set_head(self, head: LinearHead) -> None:
        """Take over weight (D, K) and bias (K,) of a fitted head."""
        with torch.no_grad():
            self.head.weight.copy_(torch.from_numpy(head.weight.T))
            self.head.bias.copy_(torch.from_numpy(head.bias))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits float32 (B, K) of ``images`` uint8 (B, S, S, 3)."""
        logits: Tensor = self.head(self.backbone(images))
        return logits
