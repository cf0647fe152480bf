"""INT8: the same contract, numbers close to the float file's, and what loses AP is refused."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from polytag import quantise as quantising
from polytag.backbone import load_backbone
from polytag.config import BackboneConfig, FeaturesConfig, PreprocessConfig, load_recipe
from polytag.errors import ModelError, UserError
from polytag.graph import export_backbone
from polytag.modelfile import INT8_KEY, KEY
from polytag.modelfile import INT8_MODEL as NAME
from polytag.parity import Change, find_pictures, refusals
from polytag.predictor import load
from polytag.preprocess import picture
from polytag.quantise import Export, export_int8, quantise

from .conftest import LEARNT, World


@pytest.fixture(scope="module")
def copy(run, tmp_path_factory) -> Path:
    """The shared run, exported."""
    folder = tmp_path_factory.mktemp("int8") / "run"
    shutil.copytree(run.path, folder)
    return folder


@pytest.fixture(scope="module")
def exported(copy: Path) -> Export:
    return export_int8(copy)


@pytest.fixture
def fresh(run, tmp_path: Path) -> Path:
    """A run without an export."""
    shutil.copytree(run.path, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def images(run, world: World) -> np.ndarray:
    spec = load(run).info.preprocess
    return np.stack([picture(world.path(name), spec) for name in world.good[:12]])


def answers(path: Path, images: np.ndarray) -> list[np.ndarray]:
    return onnxruntime.InferenceSession(path).run(
        ["probabilities", "embedding"], {"images": images}
    )


def broken(model: Path, pictures: Iterator[np.ndarray], out: Path) -> None:
    """A quantiser that makes noise of every convolution."""
    graph, rng = onnx.load(str(model)), np.random.default_rng(0)
    for tensor in graph.graph.initializer:
        if len(tensor.dims) == 4 and tensor.dims[0] > 1:
            noise = rng.normal(0, 0.1, tuple(tensor.dims)).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(noise, tensor.name))
    onnx.save(graph, str(out))


def headless(model: Path, pictures: Iterator[np.ndarray], out: Path) -> None:
    """A quantiser that loses the weights of the head, and nothing else."""
    graph = onnx.load(str(model))
    (weight,) = (t for t in graph.graph.initializer if t.name == "polytag.head.weight")
    nothing = np.zeros(tuple(weight.dims), np.float32)
    weight.CopyFrom(numpy_helper.from_array(nothing, weight.name))
    onnx.save(graph, str(out))


def held(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


# -------------------------------------------------------------------------------------- the file


def test_it_is_one_file_of_the_same_contract_that_plain_onnxruntime_runs(exported, copy, images):
    assert exported.file == copy / NAME
    onnx.checker.check_model(onnx.load(str(exported.file)), full_check=True)
    before, after = (
        onnxruntime.InferenceSession(path) for path in (copy / "model.onnx", exported.file)
    )
    for ends in ("get_inputs", "get_outputs"):
        shapes = [
            [(end.name, end.type, end.shape) for end in getattr(session, ends)()]
            for session in (before, after)
        ]
        assert shapes[0] == shapes[1]
    for count in (1, 2, 7):
        together = after.run(None, {"images": images[:count]})
        assert [len(each) for each in together] == [count, count]


def test_convolutions_are_in_8_bits_a_scale_a_channel_and_the_head_is_not(exported, copy):
    graph = onnx.load(str(exported.file)).graph
    tensors = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    made_by = {name: node for node in graph.node for name in node.output}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert convolutions
    for node in convolutions:
        picture, weight = (made_by[name] for name in node.input[:2])
        assert picture.op_type == weight.op_type == "DequantizeLinear"
        assert tensors[weight.input[0]].dtype == np.int8
        assert tensors[weight.input[1]].shape == tensors[weight.input[0]].shape[:1]
        assert tensors[picture.input[2]].dtype == np.uint8
    before = onnx.load(str(copy / "model.onnx")).graph
    (head,) = (n for n in graph.node if n.name == "polytag.head")
    (same,) = (n for n in before.node if n.name == "polytag.head")
    assert list(head.input) == list(same.input)
    assert (copy / NAME).stat().st_size < 0.5 * (copy / "model.onnx").stat().st_size


def test_a_network_that_pads_as_tensorflow_does_is_quantised_too(tmp_path):
    """A padding that stood before the first convolution once kept the pixels from it."""
    config = BackboneConfig(name="tf_mobilenetv3_small_minimal_100", weights="none")
    normal = {"mean": (127 / 255,) * 3, "std": (128 / 255,) * 3}  # as the embedded network has it
    features = FeaturesConfig(layers="last")
    backbone = load_backbone(config, PreprocessConfig(size=32, **normal), features).eval()
    whole, small = tmp_path / "whole.onnx", tmp_path / "small.onnx"
    export_backbone(backbone, whole)
    noise = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), np.uint8)
    quantise(whole, iter([noise[:8], noise[8:]]), small)
    expected, found = (
        onnxruntime.InferenceSession(path).run(None, {"images": noise})[0]
        for path in (whole, small)
    )
    assert 0 < np.abs(found - expected).mean() < 0.3 * expected.std()
    kinds = {node.op_type for node in onnx.load(small).graph.node}
    assert "DequantizeLinear" in kinds and not kinds & {"Sub", "Pad"}


def test_its_answers_are_near_and_not_the_same(exported, copy, images):
    (p, x), (p8, x8) = (answers(copy / name, images) for name in ("model.onnx", NAME))
    assert 0 < np.abs(p8 - p).max() < 0.1
    assert np.abs(x8 - x).mean() < 0.05 * x.std(axis=0).mean() + 0.05 * np.abs(x).mean()


def test_what_it_says_is_what_model_onnx_says_and_what_it_cost(exported, copy):
    before, after = (
        onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
        for path in (copy / "model.onnx", exported.file)
    )
    assert after[KEY] == before[KEY] and set(after) == {KEY, INT8_KEY}
    assert json.loads(after[INT8_KEY]) == exported.report
    assert json.loads((copy / "model.int8.json").read_text()) == exported.report
    assert exported.report["accepted"] and not exported.report["refused"]


def test_every_verb_that_takes_a_model_takes_it(exported, world):
    predictor = load(exported.file)
    said = predictor.predict([world.path(world.good[0]), world.path(world.good[1])])
    assert said.attributes == LEARNT and np.isfinite(said.probabilities).all()
    assert np.array_equal(said.thresholds, load(exported.file.parent).info.thresholds)


def norm(tmp_path: Path, copy: Path, mean: list[float], std: list[float]) -> Path:
    """The run's model with another normalisation."""
    model = onnx.load(str(copy / "model.onnx"))
    for kind, numbers in (("Sub", mean), ("Div", std)):
        node = next(node for node in model.graph.node if node.op_type == kind)
        node.input[1] = f"own.{kind}"  # the exporter keeps equal constants once
        constant = np.array(numbers, np.float32).reshape(1, 3, 1, 1)
        model.graph.initializer.append(numpy_helper.from_array(constant, node.input[1]))
    onnx.save(model, str(tmp_path / "model.onnx"))
    return tmp_path / "model.onnx"


@pytest.mark.parametrize(
    ("mean", "std", "as_they_are"),
    [
        ([127.0] * 3, [128.0] * 3, True),
        ([127.5] * 3, [128.0] * 3, False),
        ([127.0] * 3, [128.0, 128.0, 100.0], False),
        ([123.0, 116.0, 103.0], [58.0] * 3, False),
    ],
)
def test_the_first_layer_takes_pixels_as_they_are_where_that_is_exact(
    copy, images, tmp_path, mean, std, as_they_are
):
    plain = norm(tmp_path, copy, mean, std)
    quantise(plain, iter([images]), tmp_path / NAME)
    graph = onnx.load(str(tmp_path / NAME)).graph
    first = next(node for node in graph.node if node.op_type == "Conv")
    (given,) = (node for node in graph.node if first.input[0] in node.output)
    (source,) = (node for node in graph.node if given.input[0] in node.output)
    assert source.op_type == ("Transpose" if as_they_are else "QuantizeLinear")
    assert ("Div" in {node.op_type for node in graph.node}) is not as_they_are
    near = np.abs(answers(tmp_path / NAME, images)[1] - answers(plain, images)[1])
    assert near.mean() < 0.1 * np.abs(answers(plain, images)[1]).mean()


# ------------------------------------------------------------------------------------- its price


def test_a_probe_is_judged_out_of_fold_as_the_run_was(exported, run):
    macro, *each = exported.changes
    assert macro.attribute is None and [change.attribute for change in each] == list(LEARNT)
    recorded = {a["name"]: a["ap"]["value"] for a in run.metrics["attributes"]}
    for change in each:
        # Ranked by logits before calibration here, after it there.
        assert change.plain == pytest.approx(recorded[change.attribute], abs=0.02)
        assert change.low <= change.difference <= change.high
    assert macro.plain == pytest.approx(np.mean([change.plain for change in each]))
    assert "head that had not seen its fold" in exported.report["judged_on"]
    assert exported.report["pictures"] == 60


def test_the_report_can_be_read_by_anything(exported):
    report = json.loads(json.dumps(exported.report, allow_nan=False))
    assert set(report["speed"]) == {"batch_32", "batch_1"}
    for speed in report["speed"].values():
        assert speed["ratio"] == pytest.approx(speed["float"] / speed["int8"])
    assert report["bytes"]["int8"] == pytest.approx(exported.file.stat().st_size, rel=0.1)
    assert 0 < report["probabilities"]["mean_change"] < report["probabilities"]["largest_change"]
    assert 0 <= report["decisions_changed"] < 0.05
    assert [change["attribute"] for change in report["ap"]] == [None, *LEARNT]


def test_what_loses_ap_is_refused_and_nothing_is_written(fresh, monkeypatch):
    before = held(fresh)
    monkeypatch.setattr(quantising, "quantise", broken)
    refused = export_int8(fresh)
    assert refused.file is None and not refused.report["accepted"]
    assert any("macro AP falls by" in reason for reason in refused.report["refused"])
    assert held(fresh) == before


def test_what_loses_the_head_that_out_of_fold_heads_cannot_see_is_refused(fresh, monkeypatch):
    monkeypatch.setattr(quantising, "quantise", headless)
    refused = export_int8(fresh)
    assert [change.difference for change in refused.changes] == [0.0] * 4
    assert refused.file is None and "decisions change" in refused.report["refused"][0]


def test_a_refusal_leaves_an_older_export_as_it_was(exported, copy, monkeypatch):
    before = held(copy)
    monkeypatch.setattr(quantising, "quantise", broken)
    assert export_int8(copy).file is None
    assert held(copy) == before


def change(attribute: str | None, difference: float, p_fall: float) -> Change:
    return Change(attribute, 0.7, 0.7 + difference, difference - 0.1, difference + 0.1, p_fall)


@pytest.mark.parametrize(
    ("changes", "changed", "words"),
    [
        ([change(None, -0.0049, math.nan), change("red", -0.3, 0.06)], 0.049, []),
        ([change(None, 0.0, math.nan), change("red", 0.0, 1.0)], 0.051, ["decisions change"]),
        ([change(None, -0.0051, math.nan), change("red", -0.3, 0.06)], 0.0, ["macro AP"]),
        ([change(None, 0.0, math.nan), change("red", -0.02, 0.04)], 0.0, ["AP of red"]),
        ([change(None, 0.0, math.nan), change("red", -0.02, math.nan)], 0.0, []),
        ([], 0.049, []),
        ([], 0.051, ["decisions change"]),
    ],
)
def test_what_is_refused(changes, changed, words):
    found = refusals(changes, changed)
    assert len(found) == len(words)
    assert all(word in reason for word, reason in zip(words, found, strict=True))


# --------------------------------------------------------------------------------- the pictures


def test_pictures_that_moved_are_named_by_images(fresh, world, tmp_path):
    config = (fresh / "config.toml").read_text()
    here = load_recipe(fresh / "config.toml").data.images
    (fresh / "config.toml").write_text(config.replace(here, str(tmp_path / "gone")))
    with pytest.raises(UserError, match=r"no such folder of pictures.*--images"):
        export_int8(fresh)
    found = find_pictures(fresh, world.images)
    assert len(found.paths) == len(found.calibrate) == 60 and found.folds


def test_other_pictures_under_the_same_names_are_refused(fresh, world, tmp_path):
    shutil.copytree(world.images, tmp_path / "images")
    other = world.path(world.good[0]).read_bytes()
    for name in world.good[1:20]:
        (tmp_path / "images" / name).write_bytes(other)
    with pytest.raises(UserError, match=r"19 of the run's 60 .*not the picture that the run knows"):
        find_pictures(fresh, tmp_path / "images")


def test_some_missing_pictures_are_left_out(fresh, world, tmp_path):
    shutil.copytree(world.images, tmp_path / "images")
    for name in world.good[1:5]:
        (tmp_path / "images" / name).unlink()
    assert len(find_pictures(fresh, tmp_path / "images").paths) == 56


def test_held_out_rows_judge_and_the_others_give_the_ranges(fresh, world):
    path = fresh / "splits.csv"
    lines = path.read_text().splitlines()
    parts = ["holdout" if i % 3 == 0 else "train" for i in range(len(lines) - 1)]
    changed = [
        f"{line.rpartition(',')[0]},{part}" for line, part in zip(lines[1:], parts, strict=True)
    ]
    path.write_text("\n".join([lines[0], *changed]) + "\n")
    found = find_pictures(fresh, None)
    assert (len(found.paths), len(found.calibrate)) == (20, 40)
    assert not set(found.paths) & set(found.calibrate) and not found.folds
    assert "held out" in found.judged_on
    # Both files answer these rows; the kept head has seen them here, which does not matter.
    told = export_int8(fresh)
    p = load(fresh).predict(found.paths).probabilities
    assert told.report["pictures"] == len(p) == 20
    assert [change.attribute for change in told.changes] == [None, *LEARNT]


def test_a_model_without_labels_is_compared_by_probabilities(run, world, tmp_path):
    shutil.copy(run.path / "model.onnx", tmp_path)
    with pytest.raises(UserError, match=r"without pictures.*--images"):
        export_int8(tmp_path / "model.onnx")
    shutil.copytree(world.images, tmp_path / "images")
    told = export_int8(tmp_path / "model.onnx", images=tmp_path / "images")
    assert told.file == tmp_path / NAME and told.changes == []
    assert told.report["judged_on"] is None and told.report["ap"] == []


def test_a_network_that_gives_no_numbers_is_an_error(fresh, monkeypatch):
    def nothing(model: Path, pictures: Iterator[np.ndarray], out: Path) -> None:
        graph = onnx.load(str(model))
        (bias,) = (t for t in graph.graph.initializer if t.name == "polytag.head.bias")
        gone = np.full(tuple(bias.dims), np.nan, np.float32)
        bias.CopyFrom(numpy_helper.from_array(gone, bias.name))
        onnx.save(graph, str(out))

    before = held(fresh)
    monkeypatch.setattr(quantising, "quantise", nothing)
    with pytest.raises(ModelError, match="gives no numbers"):
        export_int8(fresh)
    assert held(fresh) == before


def test_int8_of_int8_and_over_the_model_itself_are_refused(exported, copy):
    with pytest.raises(ModelError, match="already INT8"):
        export_int8(exported.file, out=copy / "again.onnx")
    with pytest.raises(UserError, match="would replace the model"):
        export_int8(copy, out=copy / "model.onnx")


def test_what_fails_in_the_writing_leaves_the_folder_as_it_was(fresh, monkeypatch):
    before = held(fresh)

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr("polytag.quantise.onnx.checker.check_model", fail)
        with pytest.raises(ZeroDivisionError):
            export_int8(fresh)
    assert held(fresh) == before
