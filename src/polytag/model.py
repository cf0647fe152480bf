"""The whole model in torch: what is trained, and what its ONNX file computes."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from polytag.backbone import Backbone, load_backbone
from polytag.config import Recipe, load_recipe
from polytag.errors import ModelError
from polytag.files import written_aside
from polytag.heads import HEADS, Head, make_head


class Classifier(nn.Module):
    """A backbone and a head: pictures in, logits out.

    Its state dict is what a run's ``weights.safetensors`` holds.

    Args:
        backbone: The headless network.
        head: From `polytag.heads.make_head`: features, or tokens, to logits.
    """

    def __init__(self, backbone: Backbone, head: Head) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def save(self, path: Path, attributes: Sequence[str]) -> None:
        """Write all weights as safetensors, the names of the K attributes in its header."""
        tensors = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        with written_aside(path) as aside:
            # As bytes, so that a full disk is an ordinary error and the file as readable as others.
            aside.write_bytes(save(tensors, {"attributes": json.dumps(list(attributes))}))

    def embed(self, images: Tensor) -> Tensor:
        """Return what the head sees: features (B, D), or tokens (B, T, D)."""
        if self.head.takes_tokens:
            return self.backbone.tokens(images)
        features: Tensor = self.backbone(images)
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K) of ``images`` (B, S, S, 3), values 0 to 255."""
        logits: Tensor = self.head(self.embed(images))
        return logits


def build_classifier(recipe: Recipe, backbone: Backbone, attributes: int) -> Classifier:
    """Return the classifier that a recipe describes, its head drawn from the recipe's seed.

    Args:
        recipe: Its head and seed are looked at.
        backbone: With its weights.
        attributes: K.
    """
    tokens = None
    if HEADS[recipe.head.kind].takes_tokens:
        with torch.no_grad():
            tokens = backbone.tokens(backbone.blank()).shape[2]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return Classifier(backbone, make_head(recipe.head, backbone.width, attributes, tokens))


def load_classifier(run: str | os.PathLike[str]) -> Classifier:
    """Return a run's model as a torch module, for those who go on with it in torch.

    Args:
        run: A run folder.

    Returns:
        In evaluation mode, on the CPU: uint8 (B, S, S, 3), preprocessed by ``backbone.spec``, to
        logits float32 (B, K), in the order of the attributes that the run answers.

    Raises:
        UserError: The folder has no ``config.toml``, or no weights.

    Example:
        Not run: it needs a trained run; the tests train one.

        >>> model = load_classifier("runs/latest")                      # doctest: +SKIP
        >>> model(torch.zeros(1, 224, 224, 3, dtype=torch.uint8)).shape # doctest: +SKIP
        torch.Size([1, 4])
    """
    folder = Path(run)
    recipe = load_recipe(folder / "config.toml")
    weights = folder / "weights.safetensors"
    try:
        with safe_open(weights, framework="pt") as file:
            attributes = json.loads(file.metadata()["attributes"])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, TypeError, KeyError) as error:
        raise ModelError("not a run's weights", where=str(weights), got=str(error)) from None
    # The weights come from the file, so none need be fetched.
    plain = recipe.backbone.model_copy(update={"weights": "none"})
    backbone = load_backbone(plain, recipe.preprocess, recipe.features)
    model = build_classifier(recipe, backbone, len(attributes))
    model.load_state_dict(state)
    return model.eval()


class Answers(nn.Module):
    """What a model file is exported from: logits (B, K) and ``embedding`` (B, D).

    Of a head that looks at all positions the embedding is the mean over them.
    """

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and embedding of ``images`` uint8 (B, S, S, 3)."""
        seen = self.classifier.embed(images)
        return self.classifier.head(seen), seen.mean(1) if seen.ndim == 3 else seen
