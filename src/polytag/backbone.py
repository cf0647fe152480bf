"""A timm network without its head, that turns uint8 pictures into one row of features each.

What "pooled features" are:

* A network with feature maps (every CNN, and transformers that keep a grid, such as Swin): the
  mean and the standard deviation over the positions of each stage's output, then the pooled
  last layer that the network's own classifier sees. "Later stages" are those nearest the head.
* A network of blocks on tokens (ViT, DeiT, EVA, DINOv2): the class token, where there is one,
  and the mean of the patch tokens of each of the last four blocks, then the pooled last layer.
  "Later stages" are the last blocks.
"""

from __future__ import annotations

import inspect
import logging
import sys
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from polytag import weights as weight_files
from polytag.config import BackboneConfig, FeaturesConfig, PreprocessConfig
from polytag.errors import ModelError, RecipeError, did_you_mean
from polytag.preprocess import PreprocessSpec

log = logging.getLogger("polytag")
_keep_alive: list[object] = []  # torch forgets operators whose Library is collected
_BLOCKS = 4  # as in DINOv2's linear evaluation (Oquab et al. 2023, arXiv 2304.07193)
_MOST_STAGES = 7


def import_timm() -> ModuleType:
    """Import timm, also where torchvision's compiled operators do not load.

    timm imports torchvision. A CPU build of torch beside the index's torchvision lacks the
    operator ``torchvision::nms``, on which torchvision's import stumbles though nobody calls it:
    declaring the two operators' schemas lets the import go through.
    """
    try:
        import torchvision  # noqa: F401 - to see whether it can be imported
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library: Any = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _keep_alive.append(library)
    import timm

    return timm


class Backbone(nn.Module):
    """uint8 pictures in, features out; normalisation included.

    Attributes:
        name: The timm name.
        spec: How a picture becomes the square that ``forward`` takes.
        licence: Licence of the weights as far as it is known, else ``"unknown"``.
        width: D, the number of features.
        mean_std: What is subtracted from channels in [0, 1], and what they are divided by.
    """

    def __init__(
        self,
        network: nn.Module,
        name: str,
        spec: PreprocessSpec,
        mean_std: tuple[tuple[float, ...], tuple[float, ...]],
        taps: dict[str, Any] | None,
        licence: str = "unknown",
    ) -> None:
        super().__init__()
        self.network, self.name, self.spec, self.licence = network, name, spec, licence
        self.taps, self.mean_std = taps, mean_std
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) * 255 for values in mean_std)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        with torch.no_grad():
            self.width = int(self.eval()(self.blank()).shape[1])

    def forward(self, images: Tensor) -> Tensor:
        """Return features float32 (B, D) of ``images`` (B, S, S, 3), values 0 to 255."""
        x = self._normalised(images)
        network: Any = self.network
        if self.taps is None:
            return _flat(network.forward_head(network.forward_features(x), pre_logits=True))
        last, stages = network.forward_intermediates(x, **self.taps)
        pooled: list[Tensor] = []
        for stage in stages:
            if "norm" in self.taps:  # blocks of tokens; with prefix tokens they come as pairs
                patches, prefix = stage if isinstance(stage, tuple) else (stage, None)
                if prefix is not None and _has_class_token(network):
                    pooled += [prefix[:, 0]]
                pooled += [patches.mean((2, 3))]
            else:
                pooled += [stage.mean((2, 3)), stage.std((2, 3), correction=0)]
        pooled += [_flat(network.forward_head(last, pre_logits=True))]
        return torch.cat(pooled, dim=1)

    def blank(self) -> Tensor:
        """Return one black picture, uint8 (1, S, S, 3)."""
        return torch.zeros(1, self.spec.size, self.spec.size, 3, dtype=torch.uint8)

    def tokens(self, images: Tensor) -> Tensor:
        """Return the last layer at all positions, float32 (B, T, D'), for a head that looks there.

        Of a network of blocks on tokens these are its tokens, the class token among them.
        """
        network: Any = self.network
        last: Any = network.forward_features(self._normalised(images))
        if not isinstance(last, Tensor) or last.ndim not in (3, 4):
            raise RecipeError(
                "this backbone does not show its positions",
                where="head.kind",
                got=f"attention on {self.name}",
                fix="choose another head or another backbone",
            )
        if last.ndim == 4:
            grid_last = getattr(network, "output_fmt", "NCHW") == "NHWC"  # Swin and its kin
            last = last.flatten(1, 2) if grid_last else last.flatten(2).transpose(1, 2)
        positions: Tensor = last
        return positions

    def depths(self) -> dict[str, int]:
        """Return the depth of every parameter: 0 the stem, then the blocks, from the picture on.

        What stands behind the last block (a last convolution, a last norm) counts with it. These
        are timm's own groups, with which it scales learning rates by layer.
        """
        from timm.models import group_parameters

        network: Any = self.network
        if not hasattr(network, "group_matcher"):  # it does not say what its blocks are
            return {f"network.{name}": 0 for name, _ in network.named_parameters()}
        groups = group_parameters(network, network.group_matcher(coarse=False), reverse=True)
        return {f"network.{name}": int(depth) for name, depth in groups.items()}

    def _normalised(self, images: Tensor) -> Tensor:
        return (images.permute(0, 3, 1, 2).float() - self.mean) / self.std

    def fingerprint(self) -> str:
        """Return a sha256 of everything that decides the features, the picture aside."""
        return weight_files.state_hash(self)


def load_backbone(
    backbone: BackboneConfig, preprocess: PreprocessConfig, features: FeaturesConfig, seed: int = 42
) -> Backbone:
    """Build a backbone with its weights, in evaluation mode on the CPU.

    Args:
        backbone: Name and source of the weights.
        preprocess: Size and resizing; ``auto`` is filled from what the weights were trained with.
        features: Which layers are pooled.
        seed: For ``weights = none``.

    Raises:
        RecipeError: timm knows no such model.
        ModelError: The weights cannot be had or do not fit.

    Example:
        >>> tiny = BackboneConfig(name="test_resnet", weights="none")
        >>> network = load_backbone(tiny, PreprocessConfig(size=32), FeaturesConfig())
        >>> network(torch.zeros(2, 32, 32, 3, dtype=torch.uint8)).shape == (2, network.width)
        True
    """
    timm = import_timm()
    name = backbone.name
    if not timm.is_model(name) or not _has_tag(timm, name):
        base = name.partition(".")[0]
        tags = timm.list_pretrained(f"{base}.*")
        fix = did_you_mean(name, tags) if tags else did_you_mean(base, timm.list_models())
        if fix.startswith("known"):
            fix = "python -c 'import timm; print(timm.list_models())' lists them"
        raise RecipeError("timm has no such model", where="backbone.name", got=repr(name), fix=fix)
    if backbone.weights == "embedded":
        weight_files.embedded_file(name)  # fails before anything is built
    network = _create(timm, name, backbone.weights, preprocess.size, seed)
    cfg = network.pretrained_cfg
    if backbone.weights not in ("hub", "none"):
        heads = cfg.get("classifier") or ()
        heads = (heads,) if isinstance(heads, str) else tuple(heads)
        weight_files.load_weights(network, name, backbone.weights, heads)
    spec = PreprocessSpec(
        size=cfg["input_size"][1] if preprocess.size == "auto" else preprocess.size,
        resize=preprocess.resize,
        interpolation=_interpolation(cfg, preprocess),
        crop_fraction=cfg.get("crop_pct", 0.875)
        if preprocess.crop_fraction == "auto"
        else preprocess.crop_fraction,
    )
    embedded = backbone.weights == "embedded"
    licence = str(cfg.get("license") or "unknown") if backbone.weights == "hub" else "unknown"
    mean, std = (
        weight_files.EMBEDDED_MEAN_STD if embedded else (tuple(cfg["mean"]), tuple(cfg["std"]))
    )
    mean = mean if preprocess.mean == "auto" else preprocess.mean
    std = std if preprocess.std == "auto" else preprocess.std
    try:
        return Backbone(
            network,
            name,
            spec,
            (mean, std),
            find_taps(network) if features.layers == "all" else None,
            "Apache-2.0" if embedded else licence,
        ).eval()
    except (RuntimeError, AssertionError) as error:  # layers' answers to a size they cannot take
        if preprocess.size == "auto":
            raise
        raise _refused_size(name, preprocess.size, error) from None


def find_taps(network: nn.Module) -> dict[str, Any] | None:
    """Return arguments for timm's ``forward_intermediates``; None where a model has none."""
    offer = getattr(network, "forward_intermediates", None)
    if offer is None:
        log.warning("this backbone shows no inner layers: only its last layer is used")
        return None
    arguments = inspect.signature(offer).parameters
    if "return_prefix_tokens" in arguments:
        prefix = getattr(network, "num_prefix_tokens", 0) > 0
        return {"indices": _BLOCKS, "norm": True, "return_prefix_tokens": prefix}
    if "extra_blocks" in arguments:
        # EfficientNet's kin list five of their seven stages unless asked; 0 is the stem.
        stages: Any = network.blocks
        return {"indices": list(range(1, len(stages) + 1)), "extra_blocks": True}
    listed: Any = getattr(network, "feature_info", ())
    # So many are not stages but blocks, and their features would be tens of thousands.
    return {"indices": _BLOCKS} if len(listed) > _MOST_STAGES else {}


def _create(timm: ModuleType, name: str, weights: str, size: int | str, seed: int) -> Any:
    options: dict[str, Any] = {"num_classes": 0}

    def create() -> Any:
        with torch.random.fork_rng(
            devices=[]
        ):  # random weights must neither use nor move the caller's state
            torch.manual_seed(seed)
            return timm.create_model(name, pretrained=weights == "hub", **options)

    def attempt() -> Any:
        return weight_files.download(create, name) if weights == "hub" else create()

    if size == "auto":
        return attempt()
    if not timm.get_pretrained_cfg(name).fixed_input_size:
        return attempt()
    options["img_size"] = size  # a network with a position for each patch is built for a size
    try:
        return attempt()
    except (TypeError, ValueError, AssertionError) as error:
        raise _refused_size(name, size, error) from None


def _refused_size(name: str, size: int | str, error: Exception) -> ModelError:
    return ModelError(
        "this backbone cannot take this size",
        where=name,
        got=f"preprocess.size = {size} ({error})",
        fix='set preprocess.size = "auto"',
    )


def _has_tag(timm: ModuleType, name: str) -> bool:
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError:  # timm's answer to resnet18.no_such_tag
        return False
    return True


def _has_class_token(network: Any) -> bool:
    holders = (network, getattr(network, "embeds", None))  # else the prefix is registers only
    return any(getattr(holder, "cls_token", None) is not None for holder in holders)


def _interpolation(cfg: dict[str, Any], preprocess: PreprocessConfig) -> Any:
    if preprocess.interpolation != "auto":
        return preprocess.interpolation
    trained = cfg.get("interpolation", "bicubic")
    return trained if trained in ("bilinear", "bicubic", "lanczos") else "bicubic"


def _flat(x: Tensor) -> Tensor:
    """Return (B, D) from what a head gives before its classifier; some leave 1 x 1 maps."""
    return x.flatten(1) if x.ndim == 4 else x
