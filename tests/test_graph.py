"""The model file: one file, plain onnxruntime, torch's numbers, and what it says about itself."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from polytag.backbone import load_backbone
from polytag.calibration import Calibration
from polytag.config import BackboneConfig, FeaturesConfig, PreprocessConfig
from polytag.graph import export_backbone, rewrite_info, write_model
from polytag.images import decode
from polytag.model import Classifier, load_classifier
from polytag.modelfile import FORMAT, KEY, LinearHead, ModelInfo
from polytag.preprocess import PreprocessSpec, preprocess

from .conftest import ATTRIBUTES, LEARNT

SIZE = 32  # of the pictures that the shared run takes


@pytest.fixture(scope="module")
def session(run) -> onnxruntime.InferenceSession:
    path = str(run.path / "model.onnx")
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def info(session) -> dict:
    return json.loads(session.get_modelmeta().custom_metadata_map[KEY])


@pytest.fixture(scope="module")
def images(world, info) -> np.ndarray:
    """Real pictures of the world, as the model takes them."""
    spec = PreprocessSpec.from_dict(info["preprocess"])
    return np.stack([preprocess(decode(world.path(name)), spec) for name in world.good[:12]])


@pytest.fixture(scope="module")
def calibration(info) -> Calibration:
    """Of the shared run; it changes every attribute's probabilities."""
    found = Calibration.from_dict(info["calibration"])
    assert "none" not in found.kinds
    return found


@pytest.fixture(scope="module")
def classifier(run, info) -> Classifier:
    """The same model in torch, from the run's weights.safetensors."""
    return load_classifier(run)


# ------------------------------------------------------------------------------ what it looks like


def test_input_and_outputs_have_the_names_types_and_shapes_of_the_contract(session):
    (given,) = session.get_inputs()
    assert (given.name, given.type) == ("images", "tensor(uint8)")
    assert given.shape[1:] == [SIZE, SIZE, 3] and isinstance(given.shape[0], str)
    probabilities, embedding = session.get_outputs()
    assert (probabilities.name, probabilities.type) == ("probabilities", "tensor(float)")
    assert (embedding.name, embedding.type) == ("embedding", "tensor(float)")
    assert probabilities.shape == [given.shape[0], len(LEARNT)]
    assert embedding.shape[0] == given.shape[0] and embedding.shape[1] == 896


@pytest.mark.parametrize("count", [1, 2, 7])
def test_any_number_of_pictures_goes_in_and_each_answer_is_its_own(session, images, count):
    both = session.run(["probabilities", "embedding"], {"images": images[:count]})
    for together, name in zip(both, ("probabilities", "embedding"), strict=True):
        alone = [session.run([name], {"images": images[i : i + 1]})[0][0] for i in range(count)]
        assert together.dtype == np.float32 and len(together) == count
        np.testing.assert_allclose(together, alone, atol=1e-5)


def test_it_is_one_file_that_passes_onnxs_checker(run):
    model = onnx.load(run.path / "model.onnx", load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    assert [p.name for p in run.path.iterdir() if "onnx" in p.name] == ["model.onnx"]


def test_it_runs_from_its_bytes_alone_without_polytag(run, images, session, tmp_path):
    np.save(tmp_path / "images.npy", images)
    (tmp_path / "moved.onnx").write_bytes((run.path / "model.onnx").read_bytes())
    subprocess.run(
        [
            *(sys.executable, "-c"),
            "import sys, numpy, onnxruntime\n"
            "session = onnxruntime.InferenceSession('moved.onnx')\n"
            "answer = session.run(['probabilities'], {'images': numpy.load('images.npy')})[0]\n"
            "numpy.save('answer.npy', answer)\n"
            "assert not any(m.startswith(('polytag', 'torch')) for m in sys.modules)\n",
        ],
        cwd=tmp_path,
        check=True,
        timeout=60,
    )
    ours = session.run(["probabilities"], {"images": images})[0]
    np.testing.assert_allclose(np.load(tmp_path / "answer.npy"), ours, atol=1e-6)


def test_it_holds_no_path_of_the_machine_that_made_it(run):
    content = (run.path / "model.onnx").read_bytes()
    for folder in (sys.prefix, run.path.parent):
        assert str(folder).encode() not in content
    assert b"site-packages" not in content


# -------------------------------------------------------------------------------- its numbers


def test_its_probabilities_are_torchs_calibrated(session, classifier, calibration, images):
    found = session.run(["probabilities"], {"images": images})[0]
    with torch.no_grad():
        logits = classifier(torch.from_numpy(images)).numpy()
    expected = calibration.probabilities(logits)
    assert np.ptp(expected, axis=0).min() > 0.5  # these pictures differ in every attribute
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_embedding_is_exactly_what_the_head_sees(session, classifier, calibration, images):
    probabilities, embedding = session.run(["probabilities", "embedding"], {"images": images})
    state = classifier.state_dict()
    weight, bias = (state[f"head.linear.{part}"].double().numpy() for part in ("weight", "bias"))
    expected = calibration.probabilities(embedding @ weight.T + bias)
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    with torch.no_grad():
        of_torch = classifier.backbone(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(embedding, of_torch, atol=1e-4)


def test_the_calibration_in_the_file_is_the_one_it_tells_of_in_float32(run, calibration):
    model = onnx.load(run.path / "model.onnx")
    held = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    for name in "abc":
        expected = getattr(calibration, name).astype(np.float32)
        assert held[f"polytag.calibration.{name}"].dtype == np.float32
        assert np.array_equal(held[f"polytag.calibration.{name}"], expected)


BENT = Calibration(
    ("platt", "beta", "offset", "none"),
    np.array([0.5, 2.5, 1.0, 1.0]),
    np.array([0.5, 0.3, 1.0, 1.0]),
    np.array([1.0, -0.5, -3.0, 0.0]),
)


@pytest.fixture(scope="module")
def graph(run, cache, session) -> tuple[Path, int]:
    """The exported backbone of the shared run, and its width."""
    width = session.get_outputs()[1].shape[1]
    files = (cache / "backbones").glob("*/backbone.onnx")
    return next(path for path in files if _width(path) == (SIZE, width)), width


@pytest.mark.parametrize("logit", [-1e4, -90, -20, -3.5, -1e-3, 0, 1e-3, 0.7, 20, 90, 1e4])
def test_the_graph_calibrates_as_the_formula_says_from_end_to_end(graph, images, tmp_path, logit):
    path, width = graph
    head = LinearHead(np.zeros((width, 4), np.float32), np.full(4, logit, np.float32))
    names = ("platt", "beta", "offset", "none")
    info = ModelInfo(names, (0.5,) * 4, PreprocessSpec(SIZE), calibration=BENT.to_dict())
    write_model(path, head, info, tmp_path / "m.onnx")
    bent = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    answer = bent.run(["probabilities"], {"images": images[:2]})[0]
    z = np.float64(np.float32(logit))
    up, down = np.logaddexp(0, z), np.logaddexp(0, -z)
    wanted = 1 / (1 + np.exp(-np.clip(BENT.c + BENT.b * up - BENT.a * down, -700, 700)))
    # The runtime's sigmoid is right to some 1e-8.
    np.testing.assert_allclose(answer, np.tile(wanted, (2, 1)), rtol=1e-5, atol=1e-7)


def test_what_a_model_says_can_be_replaced_and_its_answers_stay(run, images, session, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes((run.path / "model.onnx").read_bytes())
    text = session.get_modelmeta().custom_metadata_map[KEY]
    before = ModelInfo.from_json(text, "model.onnx")
    cuts = ((0.1, 0.9), (None, 0.7), None)
    after = replace(before, thresholds=(0.1, 0.2, 0.3), cuts=cuts, unsure={"max_error": 0.1})
    rewrite_info(path, after)
    again = onnxruntime.InferenceSession(path)
    assert ModelInfo.from_json(again.get_modelmeta().custom_metadata_map[KEY], "") == after
    for one, other in zip(
        session.run(None, {"images": images}), again.run(None, {"images": images}), strict=True
    ):
        assert one.tobytes() == other.tobytes()
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_the_head_in_the_file_is_the_head_in_the_weights_bit_for_bit(run, classifier):
    model = onnx.load(run.path / "model.onnx")
    held = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    state = classifier.state_dict()
    assert np.array_equal(held["polytag.head.weight"], state["head.linear.weight"].numpy().T)
    assert np.array_equal(held["polytag.head.bias"], state["head.linear.bias"].numpy())


def test_saturated_logits_give_probabilities_and_no_nan(tmp_path, graph, images):
    path, width = graph
    head = LinearHead(np.zeros((width, 2), np.float32), np.array([1e4, -1e4], np.float32))
    info = ModelInfo(("on", "off"), (0.5, 0.5), PreprocessSpec(SIZE))
    write_model(path, head, info, tmp_path / "m.onnx")
    extreme = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    answer = extreme.run(["probabilities"], {"images": images})[0]
    assert np.array_equal(answer, np.tile([1.0, 0.0], (len(images), 1)))


def _width(path: Path) -> tuple[int, int]:
    session = onnxruntime.InferenceSession(path)
    return session.get_inputs()[0].shape[1], session.get_outputs()[0].shape[1]


def test_the_export_is_the_same_file_every_time(tmp_path):
    for name in ("a", "b"):
        backbone = load_backbone(
            BackboneConfig(name="test_efficientnet", weights="none"),
            PreprocessConfig(size=SIZE),
            FeaturesConfig(layers="last"),
        )
        export_backbone(backbone, tmp_path / f"{name}.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.onnx", "b.onnx"]


# ---------------------------------------------------------------------- what it says about itself


def test_it_says_what_it_answers_and_from_when_on(info, run):
    assert info["format"] == FORMAT
    assert info["attributes"] == list(LEARNT)
    chosen = run.metrics["decisions"]["attributes"]
    assert info["thresholds"] == [chosen[name]["threshold"] for name in LEARNT]
    assert all(0 < threshold < 1 for threshold in info["thresholds"])
    assert len(set(info["thresholds"])) == 3  # each chosen for its attribute
    assert info["preprocess"] == {
        "size": SIZE,
        "resize": "crop",
        "interpolation": "bilinear",
        "crop_fraction": 0.95,
    }
    assert (info["cuts"], info["unsure"]) == (None, {})
    assert info["verdicts"] == {a["name"]: a["verdict"] for a in run.metrics["attributes"][:3]}
    assert all(words.startswith("learnable") for words in info["verdicts"].values())


def test_it_says_how_its_probabilities_were_calibrated(info, run):
    assert set(info["calibration"]) == {"kinds", "a", "b", "c"}
    assert {len(numbers) for numbers in info["calibration"].values()} == {3}
    words = Calibration.from_dict(info["calibration"]).words()
    assert run.metrics["calibration"] == dict(zip(LEARNT, words, strict=True))


def test_it_says_what_it_was_trained_on_and_what_was_left_out(info, world):
    table = world.table().select([world.names.index(name) for name in world.good])
    for name, (present, absent, na) in zip(ATTRIBUTES, table.counts().tolist(), strict=True):
        assert info["counts"][name] == {"present": present, "absent": absent, "na": na}
    assert set(info["left_out"]) == {"always", "never said"}
    assert "one class only" in info["left_out"]["always"]
    assert info["left_out"]["never said"] == "no known cell"


def test_it_says_how_good_it_is_and_what_is_not_computed_is_null(info, run):
    ap = info["metrics"]["macro"]["ap"]
    assert ap["value"] == run.metrics["macro"]["ap"]["value"] and 0 < ap["chance"] < ap["value"]
    assert 0 < ap["low"] < ap["value"] < ap["high"] <= 1
    assert [a["ap"]["value"] for a in run.metrics["attributes"][3:]] == [None, None]
    assert info["metrics"]["over"] == "3 of 5 attributes"


def test_it_says_how_it_was_made_but_not_where_the_data_lay(info, world, run):
    recipe = info["recipe"]
    assert (recipe["method"], recipe["seed"], recipe["device"]) == ("probe", 42, "cpu")
    assert recipe["backbone"] == {"name": "test_resnet", "weights": "none"}
    assert recipe["features"]["engine"] == "onnxruntime"
    assert "data" not in recipe
    assert str(world.images.parent) not in json.dumps(info)
    for package in ("polytag", "torch", "timm", "numpy", "onnxruntime", "python"):
        assert info["versions"][package][0].isdigit()
    assert info["weights_licence"] == "unknown"


def test_a_model_file_reads_back_as_it_was_written(session, info):
    text = session.get_modelmeta().custom_metadata_map[KEY]
    read = ModelInfo.from_json(text, "model.onnx")
    assert json.loads(read.to_json()) == info
