"""A frozen network as files: its graph, its weights, and what has to be known of it.

A network is loaded in torch and exported once. From then on training a probe needs neither torch
nor timm: features are computed by the graph, and a head is appended to it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from polytag.cached import Held, describe, hold
from polytag.config import BackboneConfig, FeaturesConfig, PreprocessConfig
from polytag.files import cache_folder, digest, write_json, written_aside
from polytag.images import content_hash
from polytag.modelfile import LinearHead
from polytag.preprocess import PreprocessSpec
from polytag.progress import waiting
from polytag.weights import embedded_file

if TYPE_CHECKING:
    from polytag.backbone import Backbone

log = logging.getLogger("polytag")
FORMAT = 5  # of these files and of features: raised when what is computed changes
_GRAPH, _WEIGHTS, _ABOUT = "backbone.onnx", "weights.safetensors", "backbone.json"


@dataclass(frozen=True, eq=False)
class FrozenBackbone:
    """What is known of a network whose weights do not change.

    Attributes:
        name: The timm name.
        spec: How a picture becomes the square that the graph takes.
        mean_std: What is subtracted from channels in [0, 1], and what they are divided by.
        licence: Of the weights, as far as it is known, else ``"unknown"``.
        width: D, the number of features.
        graph: ONNX: ``images`` uint8 (B, S, S, 3) to ``embedding`` float32 (B, D).
        graph_hash: sha256 of that file: it stands for the network, its weights, its normalisation
            and its layers.
        weights: safetensors of the torch network's state.
        module: Loads the network in torch, once.
        held: Keeps the files in the cache as long as this lives.
    """

    name: str
    spec: PreprocessSpec
    mean_std: tuple[tuple[float, ...], tuple[float, ...]]
    licence: str
    width: int
    graph: Path
    graph_hash: str
    weights: Path
    module: Callable[[], Backbone]
    held: Held | None


def freeze_backbone(
    backbone: BackboneConfig, preprocess: PreprocessConfig, features: FeaturesConfig, seed: int = 42
) -> FrozenBackbone:
    """Return a network's files from the cache, exporting them if it is new here.

    Args:
        backbone: Name and source of the weights.
        preprocess: Size and resizing.
        features: Which layers are pooled.
        seed: For ``weights = none``.

    Raises:
        RecipeError: timm knows no such model.
        ModelError: The weights cannot be had or do not fit.

    Example:
        >>> tiny = BackboneConfig(name="test_resnet", weights="none")
        >>> frozen = freeze_backbone(tiny, PreprocessConfig(size=32), FeaturesConfig())
        >>> frozen.graph.is_file(), frozen.width == frozen.module().width
        (True, True)
    """

    @cache
    def module() -> Backbone:
        from polytag.backbone import load_backbone  # loads torch and timm

        return load_backbone(backbone, preprocess, features, seed)

    weights = _identity(backbone, seed) or module().fingerprint()
    parts = {
        "format": FORMAT,
        "name": backbone.name,
        "weights": weights,
        "preprocess": preprocess.model_dump(mode="json"),
        "layers": features.layers,
        "made by": [version("torch"), version("timm")],
    }
    folder = cache_folder() / "backbones" / digest(parts)
    held = hold(folder)
    found = _read(folder, module, held)
    if found is None:
        with waiting("exporting the backbone to ONNX: once"):
            _write(folder, module())
        found = _read(folder, module, held)
    if found is None:
        raise RuntimeError(f"{folder} was written and cannot be read")
    return found


def save_with_head(
    frozen: FrozenBackbone, head: LinearHead, attributes: Sequence[str], path: Path
) -> None:
    """Write the weights of a network and its linear head, as `model.Classifier.save` does.

    Args:
        frozen: The network.
        head: On its features.
        attributes: K names.
        path: A ``.safetensors`` file.
    """
    from safetensors.numpy import load_file, save

    tensors = {f"backbone.{name}": array for name, array in load_file(frozen.weights).items()}
    tensors["head.linear.weight"] = np.ascontiguousarray(head.weight.T)
    tensors["head.linear.bias"] = head.bias
    with written_aside(path) as aside:
        aside.write_bytes(save(tensors, {"attributes": json.dumps(list(attributes))}))


def _identity(backbone: BackboneConfig, seed: int) -> str | None:
    """Return what stands for the weights; None: only who has loaded them knows (a hub's)."""
    if backbone.weights == "hub":
        return None
    if backbone.weights == "none":
        return f"drawn by seed {seed}"
    embedded = backbone.weights == "embedded"
    path = embedded_file(backbone.name) if embedded else Path(backbone.weights)
    return content_hash(path) if path.is_file() else None


def _write(folder: Path, module: Backbone) -> None:
    """Export a network; the file that says what is there comes last."""
    from safetensors.torch import save

    from polytag.graph import export_backbone  # loads onnx

    export_backbone(module, folder / _GRAPH)
    with written_aside(folder / _WEIGHTS) as aside:
        aside.write_bytes(save({k: v.contiguous() for k, v in module.state_dict().items()}))
    about = {
        "name": module.name,
        "spec": module.spec.to_dict(),
        "mean_std": module.mean_std,
        "licence": module.licence,
        "width": module.width,
        "sha256": {name: content_hash(folder / name) for name in (_GRAPH, _WEIGHTS)},
    }
    write_json(folder / _ABOUT, about)
    describe(folder, {"backbone": module.name, "size": module.spec.size})


def _read(folder: Path, module: Callable[[], Backbone], held: Held | None) -> FrozenBackbone | None:
    """Return what `_write` wrote; None: it is not there, or not as it was written."""
    if not (folder / _ABOUT).is_file():
        return None
    try:
        about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
        for name, expected in about["sha256"].items():
            if content_hash(folder / name) != expected:
                raise ValueError(f"{name} is not as it was written")
        mean, std = map(tuple, about["mean_std"])
        return FrozenBackbone(
            name=about["name"],
            spec=PreprocessSpec.from_dict(about["spec"]),
            mean_std=(mean, std),
            licence=about["licence"],
            width=about["width"],
            graph=folder / _GRAPH,
            graph_hash=about["sha256"][_GRAPH],
            weights=folder / _WEIGHTS,
            module=module,
            held=held,
        )
    except Exception as error:  # a disk's fault; readers raise many kinds
        log.warning("a damaged backbone in the cache is exported again: %s (%s)", folder, error)
        return None
