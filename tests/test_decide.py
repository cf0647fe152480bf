"""From logits to decisions: who chooses what, for whom, and the same in the model file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from tests.judged import TUNED, no_drawings
from tests.tiny import one_thread

from polytag.calibration import Calibration, fit_calibration
from polytag.config import DecisionsConfig
from polytag.decide import Basis, Calibrated, Decided, calibrate, decide, judge
from polytag.graph import write_model
from polytag.history import History
from polytag.images import decode
from polytag.method import Choosing, Trained
from polytag.metrics import roc_auc
from polytag.model import load_classifier
from polytag.modelfile import KEY, LinearHead, ModelInfo
from polytag.preprocess import PreprocessSpec, preprocess
from polytag.runs import Run
from polytag.table import LabelTable

from .conftest import World

ROWS, FOLDS = 360, 3
NOBODY = np.zeros(ROWS, dtype=bool)


@pytest.fixture(scope="module", autouse=True)
def quick(run):  # the shared run is made first, with its drawings
    with one_thread(), no_drawings():
        yield


# --------------------------------------------------------------------------- drawn predictions


def drawn(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits of a network that is twice too sure, and labels with holes, (ROWS, 3) each."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(0, 2, (ROWS, 3))
    values = (rng.random(truth.shape) < 1 / (1 + np.exp(-truth))).astype(np.float32)
    values[rng.random(values.shape) < 0.3] = np.nan
    return (2 * truth + 1).astype(np.float32), values


def in_folds(logits: np.ndarray) -> Trained:
    """As a probe leaves it: each fold judged by what the others' rows choose."""
    folds = np.arange(ROWS) % FOLDS
    choosing = []
    for fold in range(FOLDS):
        inside = folds == fold
        own = np.where(inside[:, None], np.float32(np.nan), logits + np.float32(0.1 * fold))
        choosing.append(Choosing(own, np.where(inside, -1, folds), inside))
    return made(logits, ~NOBODY, choosing, Choosing(logits, folds, NOBODY))


def made(
    logits: np.ndarray, judged: np.ndarray, choosing: list[Choosing], deployed: Choosing | None
) -> Trained:
    return Trained(
        logits=logits,
        judged=judged,
        parts=np.zeros(ROWS),
        choosing=choosing,
        deployed=deployed,
        history=History(("a", "b", "c")),
        save=lambda path, names: None,
        write=lambda info, path: None,
        facts={},
        judged_on="",
    )


def both(trained: Trained, values: np.ndarray, **config: object) -> tuple[Calibrated, Decided]:
    decisions = DecisionsConfig.model_validate(config)
    calibrated = calibrate(trained, values, decisions)
    return calibrated, decide(calibrated, values, np.arange(ROWS), decisions, seed=1)


UNSURE = {"max_error": 0.2, "confidence": 0.8}


def test_each_fold_is_decided_by_what_the_other_folds_chose():
    logits, values = drawn()
    trained = in_folds(logits)
    calibrated, decided = both(trained, values, **UNSURE)
    assert decided.cuts is not None and (np.ptp(decided.cuts, axis=0) > 0).any()
    for fold in range(FOLDS):
        rows = np.arange(ROWS) % FOLDS == fold
        changed = values.copy()
        changed[rows] = 1 - changed[rows]
        others, again = both(trained, changed, **UNSURE)
        assert others.probabilities[rows].tobytes() == calibrated.probabilities[rows].tobytes()
        assert again.thresholds[rows].tobytes() == decided.thresholds[rows].tobytes()
        assert again.cuts[rows].tobytes() == decided.cuts[rows].tobytes()
        assert (again.thresholds[~rows] != decided.thresholds[~rows]).all()
        assert (others.probabilities[~rows] != calibrated.probabilities[~rows]).any()


def test_a_folds_calibration_is_fitted_on_its_choosing_rows():
    logits, values = drawn()
    trained = in_folds(logits)
    calibrated, _ = both(trained, values)
    for fold, choosing in enumerate(trained.choosing):
        rows = np.arange(ROWS) % FOLDS == fold
        fitted = fit_calibration(choosing.logits[~rows], values[~rows])
        expected = fitted.probabilities(logits[rows])
        np.testing.assert_allclose(calibrated.probabilities[rows], expected, rtol=1e-12)
        assert np.isnan(calibrated.bases[fold].probabilities[rows]).all()
    assert calibrated.calibration.kinds == ("platt",) * 3
    np.testing.assert_allclose(calibrated.calibration.a, 0.5, atol=0.2)


@pytest.mark.parametrize("target", [0.3, "0.3", "f1", "precision=0.9", "cost=5", "prevalence"])
def test_without_rows_to_choose_by_thresholds_are_a_half_or_what_was_set(target):
    logits, values = drawn()
    held_out = np.arange(ROWS) >= 300
    trained = made(logits, held_out, [], None)
    calibrated, decided = both(trained, values, target=target, **UNSURE)
    expected = 0.3 if str(target) == "0.3" else 0.5
    assert [each.value for each in decided.deployed] == [expected] * 3
    assert all("no rows were left" in each.note for each in decided.deployed)
    assert (decided.thresholds[held_out] == expected).all()
    assert np.isnan(decided.thresholds[~held_out]).all()
    assert decided.deployed_cuts is None
    raw = 1 / (1 + np.exp(-logits[held_out].astype(float)))
    np.testing.assert_allclose(calibrated.probabilities[held_out], raw, rtol=1e-12)
    assert set(calibrated.calibration.kinds) == {"none"}


@pytest.mark.parametrize("target", [0.37, "0.37"])
def test_a_number_is_the_threshold_of_every_attribute_and_row(target):
    logits, values = drawn()
    _, decided = both(in_folds(logits), values, target=target)
    assert (decided.thresholds == 0.37).all()
    assert [(each.value, each.low) for each in decided.deployed] == [(0.37, None)] * 3


def test_cuts_are_chosen_only_where_an_error_is_promised():
    logits, values = drawn()
    _, decided = both(in_folds(logits), values)
    assert decided.cuts is None and decided.deployed_cuts is None
    _, decided = both(in_folds(logits), values, **UNSURE)
    assert len(decided.deployed_cuts) == 3 and decided.cuts.shape == (ROWS, 3, 2)
    lows, highs = decided.cuts[:, :, 0], decided.cuts[:, :, 1]
    assert ((lows == -1) | ((lows > 0) & (lows < 1))).all()
    assert ((highs == 2) | ((highs > 0) & (highs < 1))).all()


def test_rows_that_judge_nothing_get_no_probability_though_a_fold_is_theirs():
    logits, values = drawn()
    trained = in_folds(logits)
    leaked = np.arange(ROWS) % 40 == 0
    calibrated, decided = both(replace(trained, judged=~leaked), values)
    assert calibrated.judged.tolist() == (~leaked).tolist()
    assert np.isnan(decided.thresholds[leaked]).all()
    whole, _ = both(trained, values)
    assert np.array_equal(calibrated.probabilities[~leaked], whole.probabilities[~leaked])


@settings(max_examples=8)
@given(st.integers(0, 2**32 - 1))
def test_what_stands_under_a_cell_that_is_not_known_chooses_nothing(seed):
    logits, values = drawn()
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 30, logits.shape).astype(np.float32)
    holes = np.isnan(values)
    trained = in_folds(logits)
    choosing = [
        replace(each, logits=np.where(holes, noise, each.logits)) for each in trained.choosing
    ]
    hidden = replace(
        trained,
        choosing=choosing,
        deployed=replace(trained.deployed, logits=np.where(holes, noise, logits)),
    )
    one, decided = both(trained, values, **UNSURE)
    other, again = both(hidden, values, **UNSURE)
    assert one.probabilities.tobytes() == other.probabilities.tobytes()
    assert one.calibration.to_dict() == other.calibration.to_dict()
    assert decided.thresholds.tobytes() == again.thresholds.tobytes()
    assert decided.cuts.tobytes() == again.cuts.tobytes()
    assert decided.deployed == again.deployed and decided.deployed_cuts == again.deployed_cuts


def test_judging_looks_at_judged_rows_and_names_what_was_not_trained():
    logits, values = drawn()
    judged = np.arange(ROWS) % FOLDS != 1
    calibrated, decided = both(replace(in_folds(logits), judged=judged), values)
    wide = np.concatenate([values[:, :1], np.ones((ROWS, 1)), values[:, 1:]], axis=1)
    names = ("a", "always", "b", "c")
    table = LabelTable(tuple(map(str, range(ROWS))), names, wide)
    found = judge(
        table, [0, 2, 3], calibrated, decided, np.arange(ROWS), {"always": "one class only"}
    )
    assert [a.present for a in found.attributes] == [
        int((column[judged] == 1).sum()) for column in wide.T
    ]
    assert "one class only" in found.attributes[1].ap.reason
    assert [a.threshold for a in found.attributes if a.name != "always"] == [
        each.value for each in decided.deployed
    ]


def test_where_nothing_is_judged_every_number_says_so():
    logits, values = drawn()
    trained = made(np.full_like(logits, np.nan), NOBODY, [], None)
    calibrated, decided = both(trained, values)
    table = LabelTable(tuple(map(str, range(ROWS))), ("a", "b", "c"), values)
    found = judge(table, [0, 1, 2], calibrated, decided, np.arange(ROWS), {})
    assert not calibrated.judged.any() and np.isnan(found.macro["ap"].value)
    assert all(np.isnan(a.ap.value) and a.ap.reason for a in found.attributes)


# --------------------------------------------------------------------------- in the model file


@pytest.fixture(scope="module")
def a_graph(tmp_path_factory) -> Path:
    """A backbone's graph that does nothing: its one feature is the first pixel's red, less 128."""
    path = tmp_path_factory.mktemp("graph") / "backbone.onnx"
    starts, ends = (
        helper.make_tensor(name, TensorProto.INT64, [3], numbers)
        for name, numbers in (("starts", [0, 0, 0]), ("ends", [1, 1, 1]))
    )
    nodes = [
        helper.make_node("Slice", ["images", "starts", "ends", "axes"], ["pixel"]),
        helper.make_node("Cast", ["pixel"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["number"], ["flat"], axis=1),
        helper.make_node("Sub", ["flat", "middle"], ["embedding"]),
    ]
    graph = helper.make_graph(
        nodes,
        "nothing",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 8, 8, 3])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", 1])],
        [
            starts,
            ends,
            helper.make_tensor("axes", TensorProto.INT64, [3], [1, 2, 3]),
            helper.make_tensor("middle", TensorProto.FLOAT, [1], [128]),
        ],
    )
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), str(path))
    return path


def of_kind(kind: str) -> Calibration:
    logits, values = drawn()
    return fit_calibration(logits, values, kind=kind)


CALIBRATIONS = {
    "none": lambda: Calibration.identity(3),
    "temperature": lambda: of_kind("temperature"),
    "platt": lambda: of_kind("platt"),
    "beta": lambda: of_kind("beta"),
    "bent by hand": lambda: Calibration(
        ("beta",) * 3,
        np.array([0.05, 20.0, 1.3]),
        np.array([20.0, 0.05, 0.7]),
        np.array([-3.0, 4.0, 0.1]),
    ),
}


@pytest.mark.parametrize("name", CALIBRATIONS)
def test_the_graph_calibrates_as_numpy_does(a_graph, tmp_path, name):
    calibration = CALIBRATIONS[name]()
    scale = np.array([[1.0, 0.5, -0.6]], dtype=np.float32)
    head = LinearHead(scale, np.array([0.0, 0.2, -0.1], dtype=np.float32))
    tree = None if name == "none" else calibration.to_dict()
    info = ModelInfo(("a", "b", "c"), (0.5,) * 3, PreprocessSpec(8), calibration=tree)
    write_model(a_graph, head, info, tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    pixels = np.arange(256, dtype=np.uint8)
    images = np.tile(pixels[:, None, None, None], (1, 8, 8, 3))
    found, embedding = session.run(["probabilities", "embedding"], {"images": images})
    assert embedding.ravel().tolist() == list(range(-128, 128))
    expected = calibration.probabilities(embedding @ scale + head.bias)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.isfinite(found).all() and found.dtype == np.float32
    read = ModelInfo.from_json(session.get_modelmeta().custom_metadata_map[KEY], "m.onnx")
    assert read.calibration == tree


def test_a_calibration_survives_extreme_logits_in_the_graph(a_graph, tmp_path):
    a, b = np.array([20.0, 0.05]), np.array([0.05, 20.0])
    calibration = Calibration(("beta",) * 2, a, b, np.zeros(2))
    head = LinearHead(np.full((1, 2), 1e3, np.float32), np.zeros(2, np.float32))
    info = ModelInfo(("a", "b"), (0.5,) * 2, PreprocessSpec(8), calibration=calibration.to_dict())
    write_model(a_graph, head, info, tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    images = np.tile(np.uint8([0, 127, 128, 129, 255])[:, None, None, None], (1, 8, 8, 3))
    (found,) = session.run(["probabilities"], {"images": images})
    assert found[[0, -1]].tolist() == [[0, 0], [1, 1]] and np.isfinite(found).all()
    np.testing.assert_allclose(
        found, calibration.probabilities([[-128e3], [-1e3], [0], [1e3], [127e3]]), atol=1e-5
    )


@pytest.fixture(scope="module")
def tuned(train: Callable[..., Run], tmp_path_factory) -> Run:
    """A fine-tuned network that is really exported."""
    folder = tmp_path_factory.mktemp("tuned")
    return train(folder, TUNED | {"decisions.calibrate": "beta"}, recipe="finetune")


@pytest.mark.parametrize("which", ["run", "tuned"])
def test_a_model_file_answers_what_torch_and_its_calibration_do(which, request, world: World):
    run = request.getfixturevalue(which)
    path = str(run.path / "model.onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    info = json.loads(session.get_modelmeta().custom_metadata_map[KEY])
    spec = PreprocessSpec.from_dict(info["preprocess"])
    images = np.stack([preprocess(decode(world.path(name)), spec) for name in world.good[:20]])
    with torch.no_grad():
        logits = load_classifier(run.path)(torch.from_numpy(images)).numpy()
    calibration = Calibration.from_dict(info["calibration"])
    expected = calibration.probabilities(logits)
    (found,) = session.run(["probabilities"], {"images": images})
    np.testing.assert_allclose(found, expected, atol=1e-5)
    raw = 1 / (1 + np.exp(-logits))
    assert np.abs(raw - expected).max() > 1e-3  # the calibration does something
    assert run.metrics["calibration"] == dict(
        zip(info["attributes"], calibration.words(), strict=True)
    )


def test_rows_that_leak_neither_judge_nor_choose():
    logits, values = drawn()
    leaked = np.arange(ROWS) % 40 == 0
    apart = in_folds(logits).without(leaked)
    calibrated, decided = both(apart, values)
    assert calibrated.judged.tolist() == (~leaked).tolist()
    turned = np.where(leaked[:, None], 1 - values, values)
    again, otherwise = both(apart, turned)
    assert np.array_equal(calibrated.probabilities, again.probabilities, equal_nan=True)
    assert decided.deployed == otherwise.deployed


def test_folds_without_a_signal_do_not_rank_below_chance_when_taken_together():
    """A model that knows only its base rate: the lower, the more present cells were held out."""
    rng = np.random.default_rng(3)
    values = (rng.random((100, 40)) < 0.3).astype(np.float32)
    folds = np.arange(100) % FOLDS
    rates = np.stack([values[folds != fold].mean(axis=0) for fold in range(FOLDS)])
    logits = np.log(rates / (1 - rates))[folds] + rng.normal(0, 1e-3, values.shape)
    p = 1 / (1 + np.exp(-logits))
    bases = [Basis(np.full(p.shape, np.nan), folds == fold) for fold in range(FOLDS)]
    calibrated = Calibrated(p, bases, None, Calibration.identity(40))
    assert roc_auc(values, p).mean() < 0.46
    assert roc_auc(values, calibrated.ranking).mean() == pytest.approx(0.5, abs=0.02)
    for fold in range(FOLDS):
        rows = folds == fold
        assert (
            roc_auc(values[rows], p[rows]) == roc_auc(values[rows], calibrated.ranking[rows])
        ).all()
    alone = Calibrated(p, bases[:1], None, Calibration.identity(6))
    assert alone.ranking is alone.probabilities
