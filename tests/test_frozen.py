"""A frozen network as files: exported once, whole or not at all, and torch only to make them."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from polytag.config import BackboneConfig, FeaturesConfig, HeadConfig, PreprocessConfig
from polytag.engine import open_session
from polytag.frozen import FrozenBackbone, freeze_backbone, save_with_head
from polytag.heads import Linear
from polytag.model import Classifier
from polytag.modelfile import LinearHead


def freeze(weights: str = "none", seed: int = 42, **preprocess: object) -> FrozenBackbone:
    return freeze_backbone(
        BackboneConfig(name="test_resnet", weights=weights),
        PreprocessConfig(**{"size": 32} | preprocess),
        FeaturesConfig(),
        seed,
    )


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("POLYTAG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def exports(monkeypatch) -> list[Path]:
    """The graphs that were exported; each holds what the network's numbers are."""
    made: list[Path] = []

    def export(backbone, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(backbone.fingerprint())
        made.append(path)

    monkeypatch.setattr("polytag.graph.export_backbone", export)
    return made


def test_the_files_are_the_network(own_cache):
    frozen = freeze()
    module = frozen.module()
    assert frozen.graph.parent.parent == own_cache / "backbones"
    assert (frozen.spec, frozen.mean_std) == (module.spec, module.mean_std)
    assert (frozen.name, frozen.licence, frozen.width) == ("test_resnet", "unknown", module.width)
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8))
    [found] = open_session(frozen.graph).run(["embedding"], {"images": images.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(found, module(images).numpy(), atol=1e-4)
    state = load_file(frozen.weights)
    assert state.keys() == module.state_dict().keys()
    assert all(torch.equal(state[name], each) for name, each in module.state_dict().items())


def test_a_network_is_exported_once(exports):
    assert freeze().graph == freeze().graph
    assert len(exports) == 1
    assert freeze(seed=43).graph != freeze().graph
    assert freeze(mean=(0.1, 0.2, 0.3)).graph != freeze().graph
    assert len(exports) == 3


def test_another_file_of_weights_under_the_same_name_is_another_network(exports, tmp_path):
    path = tmp_path / "weights.safetensors"
    first, second = freeze(seed=1).module(), freeze(seed=2).module()
    hashes = []
    for module in (first, second, first):
        save_file(module.network.state_dict(), path)
        hashes.append(freeze(str(path)).graph_hash)
    assert hashes[0] == hashes[2] != hashes[1]


@pytest.mark.parametrize("name", ["backbone.onnx", "weights.safetensors", "backbone.json"])
@pytest.mark.parametrize("damage", ["cut", "gone", "another bit"])
def test_a_damaged_file_is_exported_again(exports, caplog, name, damage):
    path = freeze().graph.parent / name
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 64]) + content[middle + 1 :])
    with caplog.at_level(logging.WARNING, "polytag"):
        again = freeze()
    # A bit of the JSON may be one of a number that only the network's own check would find.
    if (name, damage) != ("backbone.json", "another bit"):
        assert len(exports) == 2 and path.read_bytes() == content
        assert ("a damaged backbone" in caplog.text) == (
            (name, damage) != ("backbone.json", "gone")
        )
    assert again.graph_hash


def test_a_second_time_nothing_heavy_is_loaded(own_cache):
    freeze()
    program = (
        "import sys\n"
        "from polytag.config import BackboneConfig, FeaturesConfig, PreprocessConfig\n"
        "from polytag.frozen import freeze_backbone\n"
        "tiny = BackboneConfig(name='test_resnet', weights='none')\n"
        "frozen = freeze_backbone(tiny, PreprocessConfig(size=32), FeaturesConfig())\n"
        "print(frozen.graph_hash, *{name.partition('.')[0] for name in sys.modules})\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found, *loaded = done.stdout.split()
    assert found == freeze().graph_hash
    assert not {"torch", "timm", "onnx", "safetensors", "scipy", "onnxruntime"} & set(loaded)


def test_weights_with_a_head_are_those_of_the_classifier(tmp_path):
    frozen = freeze()
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(frozen.width, 2)).astype(np.float32)
    bias = rng.normal(size=2).astype(np.float32)
    save_with_head(frozen, LinearHead(weight, bias), ("red", "blue"), tmp_path / "w.safetensors")
    head = Linear(HeadConfig(), frozen.width, 2)
    nothing = np.zeros(frozen.width, np.float32)
    head.set_probe(weight, bias, nothing, nothing + 1)
    Classifier(frozen.module(), head).save(tmp_path / "torch.safetensors", ("red", "blue"))
    ours, theirs = (load_file(tmp_path / f"{name}.safetensors") for name in ("w", "torch"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    heads = [
        json.loads(path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")])
        for path in (tmp_path / "w.safetensors", tmp_path / "torch.safetensors")
    ]
    assert heads[0]["__metadata__"] == heads[1]["__metadata__"] == {"attributes": '["red", "blue"]'}
