"""Frozen features: the right rows, computed once, and a cache that survives whatever happens."""

from __future__ import annotations

import logging
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from polytag.backbone import Backbone
from polytag.config import BackboneConfig, FeaturesConfig, PreprocessConfig
from polytag.engine import open_engine
from polytag.errors import RecipeError
from polytag.features import (
    Engine,
    Extractor,
    extract,
    make_extractor,
    torch_engine,
)
from polytag.frozen import FrozenBackbone, freeze_backbone
from polytag.images import content_hash, decode
from polytag.looks import look
from polytag.preprocess import preprocess

TOLERANCE = 1e-4  # between engines; features here are at most 3

# One engine, as a trial of a network this small would be decided by chance.
ONE_ENGINE = FeaturesConfig(engine="onnxruntime")


def freeze(name: str = "test_resnet", seed: int = 42, **preprocess: object) -> FrozenBackbone:
    return freeze_backbone(
        BackboneConfig(name=name, weights="none"),
        PreprocessConfig(**{"size": 32, "resize": "squash"} | preprocess),
        FeaturesConfig(),
        seed,
    )


@pytest.fixture(scope="module")
def frozen(cache) -> FrozenBackbone:
    return freeze()  # exports it to the shared cache


@pytest.fixture
def own_cache(frozen, cache, tmp_path, monkeypatch) -> Path:
    """A cache of the test's own, in which the backbone is exported already."""
    shutil.copytree(cache / "backbones", tmp_path / "cache" / "backbones")
    monkeypatch.setenv("POLYTAG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Counted:
    """An extractor whose engine counts the pictures it is given."""

    def __init__(self, extractor: Extractor) -> None:
        self.pictures = self.loaded = 0
        self.of = replace(extractor, load=lambda: self.load(extractor.load))

    def load(self, make: Callable[[], Engine]) -> Engine:
        self.loaded += 1
        engine = make()

        def run(images: np.ndarray) -> np.ndarray:
            self.pictures += len(images)
            return engine(images)

        return run


@pytest.fixture
def counted(frozen, own_cache) -> Counted:
    return Counted(make_extractor(frozen, ONE_ENGINE, "cpu"))


@pytest.fixture
def pictures(tmp_path) -> list[Path]:
    """Ten drawn pictures of 32 x 32, so that no resampling comes in."""
    rng = np.random.default_rng(5)
    paths = [tmp_path / f"{i}.png" for i in range(10)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    return paths


def shards(cache: Path) -> list[Path]:
    return sorted((cache / "features").rglob("*.npy"))


# --------------------------------------------------------------------------------- what comes out


def test_features_are_the_engines_for_each_picture_and_its_mirror_image(counted, pictures, frozen):
    features, hashes, errors, looks = extract(pictures, counted.of)
    images = np.stack([preprocess(decode(path), frozen.spec) for path in pictures])
    run = open_engine("onnxruntime", frozen.graph, ["embedding"])
    assert features.shape == (10, 2, frozen.width) and features.dtype == np.float32
    np.testing.assert_allclose(features[:, 0], run(images)[0], atol=1e-6)
    mirrored = np.ascontiguousarray(images[:, :, ::-1])
    np.testing.assert_allclose(features[:, 1], run(mirrored)[0], atol=1e-6)
    assert hashes == [content_hash(path) for path in pictures]
    assert errors == {}
    assert np.array_equal(looks, [look(decode(path)) for path in pictures])


def test_the_flipped_view_is_the_plain_view_of_the_mirrored_picture(counted, pictures, tmp_path):
    mirrored = []
    for path in pictures:
        mirrored.append(tmp_path / f"mirrored {path.name}")
        with Image.open(path) as image:
            image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(mirrored[-1])
    features = extract(pictures, counted.of)[0]
    of_mirrored = extract(mirrored, counted.of)[0]
    np.testing.assert_allclose(features[:, 1], of_mirrored[:, 0], atol=1e-6)
    np.testing.assert_allclose(features[:, 0], of_mirrored[:, 1], atol=1e-6)
    assert np.abs(features[:, 0] - features[:, 1]).max() > 1e-3


def test_without_flip_there_is_one_view(frozen, own_cache, pictures):
    one = make_extractor(frozen, ONE_ENGINE.model_copy(update={"flip": False}), "cpu")
    two = make_extractor(frozen, ONE_ENGINE, "cpu")
    features = extract(pictures, one)[0]
    assert features.shape[:2] == (10, 1)
    assert np.array_equal(features[:, 0], extract(pictures, two)[0][:, 0])


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_torch_and_onnxruntime_agree(name, pictures):
    frozen = freeze(name)
    images = np.stack([decode(path) for path in pictures])
    by_onnx = make_extractor(frozen, FeaturesConfig(engine="onnxruntime"), "cpu").load()(images)
    by_torch = make_extractor(frozen, FeaturesConfig(engine="torch"), "cpu").load()(images)
    assert by_torch.dtype == by_onnx.dtype == np.float32
    np.testing.assert_allclose(by_torch, by_onnx, atol=TOLERANCE)
    assert np.array_equal(by_torch, torch_engine(frozen.module(), "cpu")(images))


def test_the_batch_size_changes_no_feature(frozen, own_cache, pictures):
    features = []
    for batch in (1, 3, 32):
        shutil.rmtree(own_cache / "features", ignore_errors=True)
        extractor = make_extractor(frozen, ONE_ENGINE.model_copy(update={"batch": batch}), "cpu")
        features.append(extract(pictures, extractor)[0])
    np.testing.assert_allclose(features[0], features[2], atol=1e-6)
    np.testing.assert_allclose(features[1], features[2], atol=1e-6)


def test_a_picture_that_is_missing_or_broken_has_its_error_and_no_features(counted, pictures):
    content = pictures[3].read_bytes()
    pictures[3].write_bytes(content[: len(content) // 2])
    pictures[5].unlink()
    features, hashes, errors, looks = extract(pictures, counted.of)
    assert set(errors) == {3, 5}
    assert "3.png" in str(errors[3]) and "5.png" in str(errors[5])
    assert [i for i, text in enumerate(hashes) if not text] == [3, 5]
    assert np.isnan(features[[3, 5]]).all() and not looks[[3, 5]].any()
    good = [i for i in range(10) if i not in errors]
    assert np.isfinite(features[good]).all()
    again = extract([pictures[i] for i in good], counted.of)[0]
    assert np.array_equal(features[good], again)


def test_two_broken_pictures_of_equal_bytes_are_two_errors(counted, pictures):
    for path in pictures[:2]:
        path.write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    assert set(extract(pictures, counted.of)[2]) == {0, 1}


def test_nothing_but_broken_pictures_is_no_crash(counted, pictures):
    for path in pictures:
        path.write_bytes(b"")
    features, hashes, errors, _ = extract(pictures, counted.of)
    assert len(features) == len(hashes) == len(errors) == 10


def test_no_pictures_give_no_features(counted):
    features, hashes, errors, looks = extract([], counted.of)
    assert (len(features), hashes, errors, looks.shape) == (0, [], {}, (0, 8, 8, 3))
    assert counted.loaded == 0


# ------------------------------------------------------------------------------- computed only once


def test_what_comes_from_the_cache_is_what_was_computed_bit_for_bit(counted, pictures):
    fresh = extract(pictures, counted.of)
    kept = extract(pictures, counted.of)
    assert fresh[0].tobytes() == kept[0].tobytes()
    assert fresh[1:3] == kept[1:3]
    assert fresh.looks.any() and np.array_equal(fresh.looks, kept.looks)


def test_a_second_extraction_computes_nothing_and_loads_no_engine(counted, pictures):
    extract(pictures, counted.of)
    assert (counted.pictures, counted.loaded) == (20, 1)
    extract(pictures, counted.of)
    extract(pictures[::-1], counted.of)
    assert (counted.pictures, counted.loaded) == (20, 1)


def test_only_added_pictures_are_computed(counted, pictures):
    extract(pictures[:6], counted.of)
    counted.pictures = 0
    features = extract(pictures, counted.of)[0]
    assert counted.pictures == 8
    assert np.isfinite(features).all()


def test_a_picture_that_changes_under_its_name_is_computed_again(counted, pictures):
    before = extract(pictures, counted.of)[0]
    Image.new("RGB", (32, 32), "green").save(pictures[4])
    counted.pictures = 0
    after = extract(pictures, counted.of)[0]
    assert counted.pictures == 2
    changed = [i for i in range(10) if not np.array_equal(before[i], after[i])]
    assert changed == [4]


def test_a_picture_under_another_name_or_twice_is_not_computed_again(counted, pictures, tmp_path):
    extract(pictures, counted.of)
    copy = shutil.copy(pictures[2], tmp_path / "copy.png")
    counted.pictures = 0
    features, hashes, _, looks = extract([*pictures, copy, pictures[2]], counted.of)
    assert counted.pictures == 0
    assert hashes[2] == hashes[10] == hashes[11]
    assert np.array_equal(features[2], features[10]) and np.array_equal(features[2], features[11])
    assert np.array_equal(looks[2], looks[10]) and np.array_equal(looks[2], looks[11])


def test_identical_pictures_are_computed_once_also_when_they_are_new(counted, pictures, tmp_path):
    copy = shutil.copy(pictures[2], tmp_path / "copy.png")
    extract([*pictures, copy], counted.of)
    assert counted.pictures == 20


def test_rows_come_in_the_order_of_the_paths_from_any_number_of_shards(counted, pictures):
    for path in pictures[::-1]:
        extract([path], counted.of)
    counted.pictures = 0
    order = [3, 1, 9, 0, 0, 7]
    features = extract([pictures[i] for i in order], counted.of)[0]
    assert counted.pictures == 0
    assert np.array_equal(features, extract(pictures, counted.of)[0][order])


# --------------------------------------------------------------------- what decides the cache's key


@pytest.fixture
def quick_export(monkeypatch, tmp_path) -> None:
    """Exports nothing: the file's content is what a graph's content depends on."""

    def export(backbone: Backbone, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        said = [backbone.fingerprint(), backbone.taps, backbone.spec.size, backbone.name]
        path.write_text(repr(said))

    monkeypatch.setattr("polytag.graph.export_backbone", export)
    monkeypatch.setenv("POLYTAG_CACHE", str(tmp_path / "empty"))


def key(features: FeaturesConfig | None = None, **options: object) -> str:
    seed, name = options.pop("seed", 42), options.pop("name", "test_resnet")
    features = features or ONE_ENGINE
    frozen = freeze_backbone(
        BackboneConfig(name=name, weights="none"),
        PreprocessConfig(**{"size": 32} | options),
        features,
        seed,
    )
    return make_extractor(frozen, features, "cpu").key


@pytest.mark.usefixtures("quick_export")
def test_whatever_changes_features_changes_the_key():
    keys = [
        key(),
        key(seed=43),
        key(name="test_vit"),
        key(size=64),
        key(resize="pad"),
        key(resize="squash"),
        key(crop_fraction=0.8),
        key(interpolation="lanczos"),
        key(mean=(0.1, 0.2, 0.3)),
        key(std=(0.1, 0.2, 0.3)),
        key(FeaturesConfig(engine="onnxruntime", flip=False)),
        key(FeaturesConfig(engine="onnxruntime", layers="last")),
        key(FeaturesConfig(engine="torch")),
    ]
    assert len(set(keys)) == len(keys)


@pytest.mark.usefixtures("quick_export")
def test_what_changes_no_feature_changes_no_key():
    assert key() == key() == key(FeaturesConfig(engine="onnxruntime", batch=7))


@pytest.mark.usefixtures("quick_export")
def test_onnxruntime_is_refused_on_another_device_before_anything_is_computed(frozen):
    with pytest.raises(RecipeError, match=r"features\.engine.*device cuda.*--device cpu"):
        make_extractor(frozen, FeaturesConfig(engine="onnxruntime"), "cuda")


def test_a_cache_that_is_too_small_says_so_and_keeps_what_is_needed(
    counted, pictures, monkeypatch, caplog
):
    monkeypatch.setenv("POLYTAG_CACHE_SIZE", "1kB")
    with caplog.at_level(logging.WARNING, "polytag"):
        assert np.isfinite(extract(pictures, counted.of)[0]).all()
    assert "beyond POLYTAG_CACHE_SIZE" in caplog.text


# ---------------------------------------------------------------------------- what a cache survives


def test_a_process_killed_in_the_middle_of_writing_leaves_a_cache_that_reads(
    counted, pictures, own_cache, caplog
):
    before = extract(pictures[:4], counted.of)[0]
    folder = own_cache / "features" / counted.of.key
    killed = subprocess.run(
        [
            *(sys.executable, "-c"),
            "import io, os, signal, sys, pathlib, numpy as np\n"
            "from polytag.store import FeatureStore\n"
            "save = np.save\n"
            "def half(path, table):\n"
            "    content = io.BytesIO()\n"
            "    save(content, table)\n"
            "    with open(path, 'wb') as file:\n"
            "        file.write(content.getvalue()[: len(content.getvalue()) // 2])\n"
            "        file.flush()\n"
            "        os.kill(os.getpid(), signal.SIGKILL)\n"
            "np.save = half\n"
            "store = FeatureStore(pathlib.Path(sys.argv[1]))\n"
            "count = len(sys.argv) - 2\n"
            "features = np.ones((count, 2, 896), np.float32)\n"
            "store.add(sys.argv[2:], features, np.zeros((count, 8, 8, 3), np.uint8))\n",
            *(str(folder), *map(content_hash, pictures[4:])),
        ],
        timeout=60,
    )
    assert killed.returncode == -signal.SIGKILL
    assert list(folder.glob(".*.npy")), "the process was killed before it wrote anything"
    counted.pictures = 0
    with caplog.at_level(logging.WARNING, "polytag"):
        after = extract(pictures, counted.of)[0]
    assert caplog.records == []
    assert counted.pictures == 12
    assert np.array_equal(before, after[:4])
    assert np.isfinite(after).all() and np.ptp(after[4:], axis=0).max() > 0


def test_two_processes_can_fill_one_cache_at_once(counted, pictures, own_cache, tmp_path, frozen):
    program = (
        "import sys, time, pathlib, numpy as np\n"
        "from polytag.engine import open_engine\n"
        "from polytag.features import Extractor, extract\n"
        "from polytag.preprocess import PreprocessSpec\n"
        "start, graph, key, out, *paths = sys.argv[1:]\n"
        "graph = pathlib.Path(graph)\n"
        "spec = PreprocessSpec(32, 'squash', 'bilinear', 0.95)\n"
        "embed = open_engine('onnxruntime', graph, ['embedding'])\n"
        "run = lambda images: embed(images)[0]\n"
        "made = Extractor('onnxruntime', spec, True, 896, key, {}, lambda: run, 2)\n"
        "while not pathlib.Path(start).exists(): time.sleep(0.001)\n"
        "for end in range(1, len(paths) + 1):\n"  # a shard each time
        "    features = extract([pathlib.Path(p) for p in paths[:end]], made)[0]\n"
        "np.save(out, features)\n"
    )
    assert (frozen.spec.interpolation, frozen.spec.crop_fraction) == ("bilinear", 0.95)
    words = [str(tmp_path / "start"), str(frozen.graph), counted.of.key]
    outs = [tmp_path / f"out{i}.npy" for i in range(2)]
    processes = [
        subprocess.Popen([sys.executable, "-c", program, *words, str(out), *map(str, pictures)])
        for out in outs
    ]
    (tmp_path / "start").touch()
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    counted.pictures = 0
    expected = extract(pictures, counted.of)[0]
    assert counted.pictures == 0
    for out in outs:
        np.testing.assert_allclose(np.load(out), expected, atol=1e-6)


def with_another_bit(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 64]) + content[place + 1 :]


DAMAGES = {
    "cut in half": lambda content: content[: len(content) // 2],
    "a bit of a feature": lambda content: with_another_bit(content, len(content) - 9),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_left_out_with_a_warning_and_computed_again(
    counted, pictures, own_cache, caplog, damage
):
    extract(pictures[:5], counted.of)
    good = extract(pictures[5:], counted.of)[0]
    fresh = extract(pictures, counted.of)
    counted.pictures = 0
    victim = next(
        shard
        for shard in shards(own_cache)
        if bytes.fromhex(content_hash(pictures[0])) in shard.read_bytes()
    )
    victim.write_bytes(DAMAGES[damage](victim.read_bytes()))
    with caplog.at_level(logging.WARNING, "polytag"):
        again = extract(pictures, counted.of)
    assert str(victim) in caplog.text and caplog.text.count("\n") == 1
    assert 0 < counted.pictures <= 10  # of the shard's five pictures, none of the other shard's
    assert again.features.tobytes() == fresh.features.tobytes()
    assert np.array_equal(again.looks, fresh.looks)
    assert np.array_equal(again.features[5:], good)
