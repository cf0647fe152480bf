"""What is taken from a network: which layers, pooled how, on which pixels; and what is refused."""

from __future__ import annotations

import importlib.abc
import logging
import random
import subprocess
import sys
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from polytag.backbone import Backbone, find_taps, import_timm, load_backbone
from polytag.config import BackboneConfig, FeaturesConfig, PreprocessConfig
from polytag.errors import ModelError, RecipeError
from polytag.graph import export_backbone
from polytag.preprocess import PreprocessSpec
from polytag.trainable import frozen_depth

timm = import_timm()
HALF = ((0.5,) * 3, (0.5,) * 3)


def load(name: str, size: int | str = 64, seed: int = 42, layers: str = "all") -> Backbone:
    return load_backbone(
        BackboneConfig(name=name, weights="none"),
        PreprocessConfig(size=size),
        FeaturesConfig(layers=layers),
        seed,
    )


def wrap(network: nn.Module, size: int, mean_std: Any = HALF) -> Backbone:
    """A backbone of a network that no name stands for."""
    return Backbone(
        network.eval(), "mine", PreprocessSpec(size), mean_std, find_taps(network)
    ).eval()


def pixels(size: int = 64, count: int = 3, seed: int = 0) -> Tensor:
    shape = (count, size, size, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.manual_seed(seed))


def seen_by(backbone: Backbone, images: Tensor, modules: list[nn.Module]) -> list[np.ndarray]:
    """What modules inside the network give for pictures, in float64."""
    seen: dict[int, Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _m, _x, y, at=at: seen.__setitem__(at, y.detach()))
        for at, module in enumerate(modules)
    ]
    try:
        with torch.no_grad():
            backbone(images)
    finally:
        for hook in hooks:
            hook.remove()
    return [seen[at].double().numpy() for at in range(len(modules))]


def values(backbone: Backbone, images: Tensor) -> np.ndarray:
    with torch.no_grad():
        return backbone(images).numpy()


def last_layer(backbone: Backbone, images: Tensor) -> np.ndarray:
    """What the network's own classifier sees, computed by timm's own forward."""
    x = (images.permute(0, 3, 1, 2).float() - backbone.mean) / backbone.std
    with torch.no_grad():
        return backbone.network(x).numpy()  # built without a classifier


def assert_features(backbone: Backbone, images: Tensor, parts: list[np.ndarray]) -> None:
    expected = np.concatenate([part.reshape(len(images), -1) for part in parts], axis=1)
    assert backbone.width == expected.shape[1]
    np.testing.assert_allclose(values(backbone, images), expected, atol=2e-5, rtol=1e-4)


def mean_and_std(maps: np.ndarray, axes: tuple[int, int] = (2, 3)) -> list[np.ndarray]:
    """By the formula: the square root of the mean squared distance from the mean."""
    mean = maps.mean(axis=axes, keepdims=True)
    return [mean, np.sqrt(((maps - mean) ** 2).mean(axis=axes))]


# --------------------------------------------------------------------------- the torchvision guard


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


USE = """
import torchvision
from torchvision.transforms import v2
picture = torch.zeros(3, 8, 8, dtype=torch.uint8)
assert v2.Resize((4, 4))(picture).shape == (3, 4, 4)
assert timm.create_model("test_resnet").eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 1000)
print("usable,", "mended" if backbone._keep_alive else "as it was")
"""


def test_timm_and_torchvision_work_whatever_the_installed_pair_of_torch_and_torchvision():
    said = python(
        "import torch\n"
        "try:\n    import torchvision\n    works = True\n"
        "except RuntimeError as error:\n"
        "    assert 'torchvision::nms' in str(error)\n    works = False\n"
        "from polytag import backbone\n"
        "timm = backbone.import_timm()\n"
        "assert bool(backbone._keep_alive) != works\n" + USE
    )
    assert said.startswith("usable")


def test_a_torchvision_that_works_is_left_as_it_is():
    # Where its operators do not load, declare them first: then its import works by itself.
    said = python(
        "import torch\n"
        "try:\n    import torchvision\n"
        "except RuntimeError:\n"
        "    import sys\n"
        "    for name in [n for n in sys.modules if n.startswith('torchvision')]:\n"
        "        del sys.modules[name]\n"
        "    library = torch.library.Library('torchvision', 'DEF')\n"
        "    for name in ('nms', 'qnms'):\n"
        "        library.define(name + '(Tensor a, Tensor b, float c) -> Tensor')\n"
        "    import torchvision\n"
        "before = torchvision\n"
        "from polytag import backbone\n"
        "timm = backbone.import_timm()\n"
        "import torchvision\n"
        "assert torchvision is before\n" + USE
    )
    assert said == "usable, as it was"


@pytest.mark.parametrize("error", [RuntimeError("CUDA is on fire"), ImportError("no torchvision")])
def test_any_other_trouble_with_torchvision_is_not_hidden(monkeypatch, error):
    class Refuse(importlib.abc.MetaPathFinder):
        def find_spec(self, name: str, path: object, target: object = None) -> None:
            if name == "torchvision":
                raise error

    monkeypatch.delitem(sys.modules, "torchvision")
    monkeypatch.setattr(sys, "meta_path", [Refuse(), *sys.meta_path])
    with pytest.raises(type(error), match=str(error)):
        import_timm()


# ----------------------------------------------------------------------------------- what is pooled


def test_a_cnn_gives_mean_and_deviation_of_each_stage_and_then_its_last_layer():
    backbone, images = load("test_resnet"), pixels()
    network: Any = backbone.network
    stages = [network.act1, network.layer1, network.layer2, network.layer3, network.layer4]
    maps = seen_by(backbone, images, stages)
    parts = [part for stage in maps for part in mean_and_std(stage)]
    assert_features(backbone, images, [*parts, last_layer(backbone, images)])


def test_every_stage_of_an_efficientnet_is_pooled():
    backbone, images = load("test_efficientnet"), pixels()
    stages = list(backbone.network.blocks)
    assert len(stages) == 5
    parts = [part for maps in seen_by(backbone, images, stages) for part in mean_and_std(maps)]
    assert_features(backbone, images, [*parts, last_layer(backbone, images)])


def test_the_default_backbone_has_all_its_seven_stages_pooled():
    backbone = load("tf_efficientnet_lite0")
    widths = [16, 24, 40, 80, 112, 192, 320]
    assert backbone.width == 2 * sum(widths) + 1280


def test_a_transformer_gives_class_token_and_patch_mean_of_its_last_four_blocks():
    backbone, images = load("test_vit"), pixels()
    network: Any = backbone.network
    assert len(network.blocks) > 4
    parts = []
    for tokens in seen_by(backbone, images, list(network.blocks)[-4:]):
        with torch.no_grad():
            tokens = network.norm(torch.from_numpy(tokens).float()).double().numpy()
        assert tokens.shape[1] == 1 + 16  # the class token, and patches of 16 of 64 pixels
        parts += [tokens[:, 0], tokens[:, 1:].mean(axis=1)]
    assert_features(backbone, images, [*parts, last_layer(backbone, images)])


@pytest.mark.parametrize("registers", [0, 2])
def test_a_transformer_without_a_class_token_gives_patch_means_only(registers):
    torch.manual_seed(0)
    network = timm.create_model(
        "test_vit", num_classes=0, img_size=64, class_token=False, global_pool="avg",
        reg_tokens=registers,
    )  # fmt: skip
    backbone, images = wrap(network, 64), pixels()
    parts = []
    for tokens in seen_by(backbone, images, list(network.blocks)[-4:]):
        with torch.no_grad():
            tokens = network.norm(torch.from_numpy(tokens).float()).double().numpy()
        assert tokens.shape[1] == registers + 16
        parts += [tokens[:, registers:].mean(axis=1)]
    assert_features(backbone, images, [*parts, last_layer(backbone, images)])


def test_a_transformer_that_keeps_a_grid_is_pooled_by_stage_whichever_axis_holds_its_channels():
    torch.manual_seed(0)
    network = timm.models.swin_transformer.SwinTransformer(
        img_size=64, patch_size=4, window_size=4, embed_dim=8, depths=(1, 2, 1),
        num_heads=(1, 2, 4), num_classes=0,
    )  # fmt: skip
    backbone, images = wrap(network, 64), pixels()
    maps = seen_by(backbone, images, list(network.layers))
    assert [stage.shape[1:] for stage in maps] == [(16, 16, 8), (8, 8, 16), (4, 4, 32)]
    parts = [part for stage in maps for part in mean_and_std(stage, axes=(1, 2))]
    assert_features(backbone, images, [*parts, last_layer(backbone, images)])


class LastOnly(nn.Module):
    """A network that shows no inner layers."""

    def forward_features(self, x: Tensor) -> Tensor:
        return x[:, :, ::2, ::2]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        assert pre_logits
        return x.amax((2, 3), keepdim=True)  # some heads leave 1 x 1 maps


def test_a_network_that_shows_no_inner_layers_gives_its_last_layer_and_says_so(caplog):
    with caplog.at_level(logging.WARNING, "polytag"):
        backbone = wrap(LastOnly(), 8)
    assert "only its last layer" in caplog.text
    images = pixels(8)
    expected = images.numpy()[:, ::2, ::2].max(axis=(1, 2)) / 127.5 - 1
    np.testing.assert_allclose(values(backbone, images), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_the_last_layer_alone_is_the_end_of_all_layers(name):
    both = [load(name, layers=layers) for layers in ("all", "last")]
    features = [values(backbone, pixels()) for backbone in both]
    assert both[1].width < both[0].width
    np.testing.assert_allclose(features[0][:, -both[1].width :], features[1], atol=1e-6)


def test_the_deviation_of_a_stage_of_one_position_is_zero_and_not_nan():
    backbone = load("test_resnet", 8)  # its last stages are 1 x 1
    assert np.isfinite(values(backbone, pixels(8))).all()


# ------------------------------------------------------------------------------------ what goes in


class Echo(nn.Module):
    """Gives its input back: what a network is shown."""

    def forward_features(self, x: Tensor) -> Tensor:
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return x.flatten(1)


@pytest.mark.filterwarnings("ignore")
def test_pixels_are_normalised_by_channel_as_the_weights_want_them():
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.8)
    backbone, images = wrap(Echo(), 4, (mean, std)), pixels(4)
    expected = np.moveaxis((images.numpy() / 255 - mean) / std, -1, 1).reshape(3, -1)
    np.testing.assert_allclose(values(backbone, images), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["test_resnet", "mobilenetv3_small_050"])
def test_the_normalisation_is_that_of_the_weights(name):
    backbone, cfg = load(name), timm.get_pretrained_cfg(name)
    np.testing.assert_allclose(backbone.mean.flatten(), np.multiply(cfg.mean, 255), rtol=1e-6)
    np.testing.assert_allclose(backbone.std.flatten(), np.multiply(cfg.std, 255), rtol=1e-6)


def test_auto_takes_size_crop_and_interpolation_from_the_weights():
    spec, cfg = load("test_resnet", "auto").spec, timm.get_pretrained_cfg("test_resnet")
    assert spec == PreprocessSpec(160, "crop", cfg.interpolation, cfg.crop_pct)
    assert (cfg.interpolation, cfg.crop_pct) == ("bilinear", 0.95)


def test_what_the_recipe_says_about_preprocessing_wins():
    said = PreprocessConfig(size=48, resize="pad", crop_fraction=0.5, interpolation="lanczos")
    tiny = BackboneConfig(name="test_resnet", weights="none")
    spec = load_backbone(tiny, said, FeaturesConfig()).spec
    assert spec == PreprocessSpec(48, "pad", "lanczos", 0.5)


# ----------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize("size", [32, 64, 96])
@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_a_size_of_ones_own_is_taken_also_by_networks_built_for_one_size(name, size):
    backbone = load(name, size)
    assert backbone.spec.size == size
    assert values(backbone, pixels(size)).shape == (3, backbone.width)


@pytest.mark.parametrize(("name", "size"), [("test_vit", 50), ("efficientformer_l1", 64)])
def test_a_size_that_a_network_cannot_take_is_an_error_that_says_what_to_do(name, size):
    with pytest.raises(ModelError, match=rf'{name}: .*{size}.*set preprocess\.size = "auto"'):
        load(name, size)


# ----------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("resnet81", "did you mean 'resnet18'?"),
        ("test_resnett.r160_in1k", "did you mean 'test_resnet'?"),
        ("zzzzzzzz", "timm.list_models"),
        ("", "timm.list_models"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_one_or_where_to_look(name, hint):
    with pytest.raises(RecipeError) as caught:
        load(name)
    assert str(caught.value).startswith(f"backbone.name: timm has no such model; got {name!r}")
    assert hint in str(caught.value) and "\n" not in str(caught.value)


def test_an_unknown_tag_behind_a_known_name_is_refused_too():
    with pytest.raises((RecipeError, ModelError), match="nonsense"):
        load("test_resnet.nonsense")


def test_a_name_with_its_tag_is_the_same_network():
    assert load("test_resnet.r160_in1k").fingerprint() == load("test_resnet").fingerprint()


@pytest.mark.parametrize("name", timm.list_models("test_*"))
def test_every_tiny_network_of_timm_works(name):
    backbone, images = load(name), pixels()
    features = values(backbone, images)
    assert features.shape == (3, backbone.width) and features.dtype == np.float32
    assert np.isfinite(features).all()
    assert np.ptp(features, axis=0).max() > 0  # three pictures are not one


# --------------------------------------------------------------------------------- random weights


def test_random_weights_are_decided_by_the_seed():
    prints = [load("test_resnet", seed=seed).fingerprint() for seed in (1, 1, 2)]
    assert prints[0] == prints[1] != prints[2]


def test_building_a_backbone_neither_uses_nor_moves_anybodys_random_numbers():
    for seed in (3, 4):
        torch.manual_seed(seed), np.random.seed(seed), random.seed(seed)
        before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
        print_of_it = load("test_resnet").fingerprint()
        after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
        assert torch.equal(before[0], after[0]) and before[1:] == after[1:]
        assert print_of_it == load("test_resnet").fingerprint()


def test_a_fingerprint_changes_with_any_number_of_the_network_or_its_normalisation():
    def change(backbone: Backbone, key: str) -> str:
        with torch.no_grad():
            backbone.state_dict()[key].view(-1)[0] += 1
        return backbone.fingerprint()

    keys = ["network.layer1.0.conv1.weight", "network.bn1.running_mean", "mean", "std"]
    prints = {load("test_resnet").fingerprint()} | {change(load("test_resnet"), k) for k in keys}
    assert len(prints) == 5


def test_a_backbone_is_in_evaluation_mode():
    backbone = load("test_resnet")
    assert not any(module.training for module in backbone.modules())
    before = backbone.fingerprint()
    values(backbone, pixels())
    assert backbone.fingerprint() == before  # no batch norm has moved


def test_random_weights_have_no_licence_that_is_known():
    assert load("test_resnet").licence == "unknown"


# -------------------------------------------------------------------------------------- export


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "deit_tiny_patch16_224"])
def test_a_real_architecture_at_a_small_size_exports_and_gives_torchs_features(name, tmp_path):
    backbone = load(name)
    export_backbone(backbone, tmp_path / "b.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "b.onnx", providers=["CPUExecutionProvider"])
    for count in (1, 3):
        images = pixels(count=count)
        (found,) = session.run(["embedding"], {"images": images.numpy()})
        np.testing.assert_allclose(found, values(backbone, images), atol=1e-4)


def test_a_backbone_that_does_not_name_its_blocks_is_trained_whole_or_not_at_all(monkeypatch):
    tiny = BackboneConfig(name="test_resnet", weights="none")
    backbone = load_backbone(tiny, PreprocessConfig(size=32), FeaturesConfig())
    blocks = max(backbone.depths().values())
    assert frozen_depth(backbone, "nothing") == -1 and frozen_depth(backbone, "backbone") == blocks
    monkeypatch.delattr(type(backbone.network), "group_matcher")
    assert set(backbone.depths().values()) == {0}
    with pytest.raises(RecipeError, match="fewer blocks than are to be frozen"):
        frozen_depth(backbone, 3)


def test_a_backbone_that_does_not_show_its_positions_says_so(monkeypatch):
    tiny = BackboneConfig(name="test_resnet", weights="none")
    backbone = load_backbone(tiny, PreprocessConfig(size=32), FeaturesConfig())
    monkeypatch.setattr(backbone.network, "forward_features", lambda x: [x, x])
    with pytest.raises(RecipeError, match="does not show its positions"):
        backbone.tokens(backbone.blank())
