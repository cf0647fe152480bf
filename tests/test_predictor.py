"""A trained model, loaded and asked: from any kind of path, about any kind of picture."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import polytag
from polytag.errors import ModelError, RecipeError, UserError
from polytag.images import decode
from polytag.modelfile import KEY
from polytag.predictor import Predictor, load
from polytag.preprocess import PreprocessSpec, preprocess

from .conftest import LEARNT


@pytest.fixture(scope="module")
def predictor(run) -> Predictor:
    return load(run)


@pytest.fixture(scope="module")
def expected(predictor, world) -> dict[str, np.ndarray]:
    """The probabilities of every good picture, by name, one at a time."""
    found = {}
    for name in world.good:
        image = preprocess(decode(world.path(name)), predictor.info.preprocess)
        found[name] = predictor.probabilities(image[None])[0]
    return found


# ---------------------------------------------------------------------------------------- loading


def test_a_run_a_folder_a_link_to_it_and_a_bare_file_are_one_model(run, world, expected, tmp_path):
    bare = shutil.copy(run.path / "model.onnx", tmp_path / "renamed.onnx")
    name = world.good[0]
    for source in (run, run.path, str(run.path), run.path.parent / "latest", bare, str(bare)):
        answer = load(source).predict([world.path(name)])
        np.testing.assert_allclose(answer.probabilities[0], expected[name], atol=1e-6)


def test_a_model_answers_the_attributes_it_learnt_and_knows_the_others(predictor):
    assert predictor.info.attributes == LEARNT
    assert set(predictor.info.left_out) == {"always", "never said"}


@pytest.mark.parametrize("name", ["nowhere", "nowhere.onnx"])
def test_what_is_not_there_is_named(tmp_path, name):
    with pytest.raises(ModelError, match=f"{name}: no such run folder or model file"):
        load(tmp_path / name)


def test_a_folder_without_a_model_is_no_finished_run(tmp_path):
    with pytest.raises(ModelError, match=r"no finished run.*no model\.onnx.*polytag train"):
        load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"<html></html>", bytes(1000), b"\x08\x07"])
def test_a_file_that_is_no_model_is_one_line(tmp_path, content):
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(ModelError, match=r"m\.onnx: not a ") as caught:
        load(tmp_path / "m.onnx")
    assert "\n" not in str(caught.value)


def foreign(path: Path, metadata: dict[str, str] | None = None) -> Path:
    """A model that onnxruntime runs, but not one of polytag's."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "foreign",
        [value("x", TensorProto.FLOAT, [1])],
        [value("y", TensorProto.FLOAT, [1])],
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    helper.set_model_props(model, metadata or {})
    onnx.save(model, path)
    return path


def test_an_onnx_file_of_somebody_else_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"not a polytag model.*without polytag's metadata"):
        load(foreign(tmp_path / "m.onnx"))


@pytest.mark.parametrize(
    "metadata", ["", "{", "[]", "null", "7", '"text"', "{}", '{"format": 1}', '{"format": "x"}']
)
def test_metadata_that_cannot_be_read_is_one_line(tmp_path, metadata):
    with pytest.raises(ModelError, match=r"m\.onnx: ") as caught:
        load(foreign(tmp_path / "m.onnx", {KEY: metadata}))
    assert "\n" not in str(caught.value)


def changed(run: polytag.train.Run, path: Path, **fields: object) -> Path:
    """The run's model with other metadata."""
    model = onnx.load(run.path / "model.onnx")
    (entry,) = [entry for entry in model.metadata_props if entry.key == KEY]
    entry.value = json.dumps(json.loads(entry.value) | fields)
    onnx.save(model, path)
    return path


def test_a_model_of_a_future_format_says_to_upgrade(run, tmp_path):
    path = changed(run, tmp_path / "m.onnx", format=2, something_new={"a": 1})
    with pytest.raises(ModelError, match=r"newer than this polytag; got format 2.*upgrade polytag"):
        load(path)


@pytest.mark.parametrize(
    "fields",
    [
        {"attributes": ["red", "bright"]},
        {"thresholds": [0.5]},
        {"thresholds": ["a", "b", "c"]},
        {"cuts": [[0.1, 0.9]]},
        {"cuts": [[0.1, 0.9], None, [0.1, 1.2]]},
        {"cuts": [[0.1, 0.9], None, [-0.1, 0.2]]},
        {"cuts": [[0.1, 0.9], None, ["a", None]]},
        {"cuts": 3},
        {"cuts": [0.1, 0.2, 0.3]},
        {"cuts": [[0.1], None, None]},
        {"cuts": [[0.9, 0.1], None, None]},
        {"cuts": []},
        {"preprocess": PreprocessSpec(48).to_dict()},
        {"preprocess": {"size": 10**9}},
        {"unknown": 1},
    ],
)
def test_metadata_that_contradicts_itself_or_the_graph_is_refused_when_loaded(
    run, tmp_path, fields
):
    with pytest.raises(ModelError, match=r"m\.onnx: "):
        load(changed(run, tmp_path / "m.onnx", **fields))


# ----------------------------------------------------------------------------------------- asking


def test_files_bytes_and_pixels_of_one_picture_get_one_answer(predictor, world, expected):
    path = world.path(world.good[7])
    forms = [path, str(path), path.read_bytes(), decode(path)]
    answer = predictor.predict(forms)
    assert answer.images == (str(path), str(path), "picture 2", "picture 3")
    for row in answer.probabilities:
        np.testing.assert_allclose(row, expected[world.good[7]], atol=1e-6)
    assert answer.errors == (None,) * 4


def test_rows_come_in_the_order_asked_and_as_often(predictor, world, expected):
    order = [5, 2, 5, 0]
    answer = predictor.predict([world.path(world.good[i]) for i in order])
    assert answer.images == tuple(str(world.path(world.good[i])) for i in order)
    for row, i in zip(answer.probabilities, order, strict=True):
        np.testing.assert_allclose(row, expected[world.good[i]], atol=1e-6)


def test_a_folder_stands_for_the_pictures_in_it_and_below(predictor, world):
    answer = predictor.predict([world.images])
    assert len(answer) == len(world.good) + 1  # all but the missing one
    failed = [name for name, error in zip(answer.images, answer.errors, strict=True) if error]
    assert failed == [str(world.path("broken.png"))]
    row = answer.images.index(failed[0])
    assert np.isnan(answer.probabilities[row]).all() and "broken.png" in answer.errors[row]
    assert np.isnan(answer.probabilities).any(axis=1).sum() == 1


def test_a_pattern_stands_for_what_it_matches(predictor, world):
    answer = predictor.predict([str(world.images / "more" / "0?.png")])
    assert len(answer) == 9  # one of ten is called otherwise


def test_nothing_asked_is_nothing_answered(predictor):
    answer = predictor.predict([])
    assert len(answer) == 0 and answer.probabilities.shape == (0, 3)


def test_a_folder_or_a_pattern_without_pictures_is_an_error(predictor, tmp_path):
    for source in (tmp_path, str(tmp_path / "*.png")):
        with pytest.raises(UserError, match="no picture"):
            predictor.predict([source])


def test_a_missing_picture_has_its_error_and_the_others_their_answers(predictor, world, tmp_path):
    answer = predictor.predict([tmp_path / "none.jpg", world.path(world.good[0]), b"", b"GIF89a"])
    assert [error is None for error in answer.errors] == [False, True, False, False]
    assert "none.jpg" in answer.errors[0] and "picture 2" in answer.errors[2]


def test_pixels_that_are_no_picture_are_an_error_of_their_row(predictor, world):
    good = decode(world.path(world.good[0]))
    answer = predictor.predict([good, good / 255, good[..., 0], np.empty((0, 4, 3), np.uint8)])
    assert [error is None for error in answer.errors] == [True, False, False, False]
    assert all("picture" in error and "uint8" in error for error in answer.errors[1:])


def test_a_model_sees_what_it_learnt(predictor, world, expected):
    known = [(name, i) for i, name in enumerate(world.names) if name in expected]
    said = np.array([expected[name] for name, _ in known]) > 0.5
    truth = world.truth[[i for _, i in known], :3] == 1
    assert (said == truth).mean() > 0.9  # this holds or hides no metric: it is a check of wiring


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_the_batch_size_changes_no_answer(predictor, world, expected, batch):
    names = world.good[:10]
    chunks = list(predictor.stream([(n, world.path(n)) for n in names], batch=batch))
    assert [len(chunk) for chunk in chunks] == [
        min(batch, 10 - start) for start in range(0, 10, batch)
    ]
    answers = np.concatenate([chunk.probabilities for chunk in chunks])
    np.testing.assert_allclose(answers, [expected[name] for name in names], atol=1e-6)


# --------------------------------------------------------------------------------- endless streams


class Endless:
    """Ever new pictures, that counts how many were taken."""

    def __init__(self) -> None:
        self.taken = 0

    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        while True:
            self.taken += 1
            yield f"picture {self.taken}", np.full((8, 8, 3), self.taken % 256, np.uint8)


def test_a_stream_is_taken_only_as_far_as_answers_are_asked_for(predictor):
    endless = Endless()
    answers = predictor.stream(endless, batch=4)
    assert endless.taken == 0
    for number in range(1, 40):
        chunk = next(answers)
        assert chunk.images[0] == f"picture {4 * number - 3}"
        assert endless.taken <= 4 * number + 2 * 4  # two batches ahead keep the threads busy
    answers.close()
    assert endless.taken < 200
    assert not [t for t in threading.enumerate() if t.name.startswith("polytag")]


def test_a_stream_of_nothing_but_broken_pictures_goes_on_too(predictor):
    broken = ((f"{i}", b"broken") for i in range(10**9))
    answers = predictor.stream(broken, batch=4)
    for _ in range(20):
        chunk = next(answers)
        assert len(chunk) == 4 and all(chunk.errors)
    answers.close()


class Pixels(np.ndarray):
    """An array that a set can count while it lives."""

    __hash__ = object.__hash__


@pytest.mark.parametrize("good", [True, False])
def test_while_streaming_only_a_bounded_number_of_pictures_is_alive(predictor, good):
    alive: weakref.WeakSet[Pixels] = weakref.WeakSet()
    most = 0

    def source() -> Iterator[tuple[str, np.ndarray]]:
        nonlocal most
        for number in range(400):
            shape = (8, 8, 3) if good else (8, 8)
            pixels = np.zeros(shape, np.uint8).view(Pixels)
            alive.add(pixels)
            most = max(most, len(alive))
            yield f"{number}", pixels
            del pixels

    rows = sum(len(chunk) for chunk in predictor.stream(source(), batch=4))
    assert rows == 400
    assert most <= 4 + 2 * 4 + 4  # a batch being answered, two ahead, one being gathered


def test_the_next_pictures_are_decoded_while_the_engine_runs(predictor, monkeypatch):
    running, decoded = threading.Event(), threading.Event()

    def bring(source: bytes, *_: object) -> np.ndarray:
        if int(source) >= 4:  # of the second batch
            assert running.wait(timeout=10)
            decoded.set()
        return np.zeros((32, 32, 3), np.uint8)

    def run(images: np.ndarray) -> list[np.ndarray]:
        running.set()
        assert decoded.wait(timeout=10)
        return [np.zeros((len(images), len(LEARNT)), np.float32)]

    other = predictor.with_thresholds()
    monkeypatch.setattr("polytag.predictor.picture", bring)
    monkeypatch.setattr(other, "_run", run)
    answers = list(other.stream(((f"{i}", b"%d" % i) for i in range(12)), batch=4))
    assert [len(chunk) for chunk in answers] == [4, 4, 4]


# ------------------------------------------------------------------------------------------ engines


def test_openvino_answers_as_onnxruntime_does(run, predictor, world):
    pytest.importorskip("openvino")
    other = load(run, engine="openvino")
    assert other.info == predictor.info and other.properties == predictor.properties
    paths = [world.path(name) for name in world.good]
    expected, found = predictor.predict(paths), other.predict(paths)
    # bf16 has three digits; the logits of this network of random weights reach 10.
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=0.05)
    assert (found.decisions == expected.decisions).mean() > 0.95


def test_metadata_are_checked_whatever_the_engine(run, tmp_path):
    pytest.importorskip("openvino")
    with pytest.raises(ModelError, match=r"not a polytag model.*without polytag's metadata"):
        load(foreign(tmp_path / "m.onnx"), engine="openvino")
    with pytest.raises(ModelError, match=r"m\.onnx: the model's graph and polytag's metadata"):
        load(
            changed(run, tmp_path / "m.onnx", preprocess=PreprocessSpec(48).to_dict()),
            engine="openvino",
        )


def test_an_unknown_engine_is_refused_with_the_known_ones(run, cli, world):
    with pytest.raises(RecipeError, match=r"got 'tpu'; known: onnxruntime, openvino"):
        load(run, engine="tpu")
    answer = cli("predict", run, world.path("twin.png"), "--engine", "opnvino")
    assert (answer.code, answer.out) == (2, "")
    assert "did you mean 'openvino'?" in answer.err and answer.err.count("\n") == 1


def test_without_openvino_the_command_line_says_what_to_install(run, cli, world, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    answer = cli("predict", run, world.path("twin.png"), "--engine", "openvino")
    assert (answer.code, answer.out) == (2, "")
    assert "pip install polytag[openvino]" in answer.err and answer.err.count("\n") == 1


def test_the_command_line_runs_the_engine_asked_for(run, cli, world, monkeypatch):
    asked = []

    def spy(path: str, engine: str) -> Predictor:
        asked.append(engine)
        return load(path)

    monkeypatch.setattr("polytag.predictor.load", spy)
    assert cli("predict", run, world.path("twin.png")).code == 0
    assert cli("predict", run, world.path("twin.png"), "--engine", "openvino").code == 0
    assert asked == ["onnxruntime", "openvino"]


def test_of_many_broken_pictures_the_command_line_shows_a_few_and_counts_all(run, cli, tmp_path):
    for number in range(30):
        (tmp_path / f"{number:02}.jpg").write_bytes(b"broken")
    answer = cli("predict", run, tmp_path, "--format", "csv")
    assert answer.code == 3 and len(answer.out.splitlines()) == 31
    lines = answer.err.splitlines()
    assert [f"{number:02}.jpg" in line for number, line in enumerate(lines)][:20] == [True] * 20
    assert "and 10 more" in lines[20] and "30 of 30 pictures could not be read" in lines[-1]


# ------------------------------------------------------------------------------------- thresholds


@pytest.fixture(scope="module")
def chosen(run) -> tuple[float, ...]:
    """The thresholds that the shared run has chosen."""
    decided = run.metrics["decisions"]["attributes"]
    found = tuple(decided[name]["threshold"] for name in LEARNT)
    assert 0.5 not in found
    return found


def test_other_thresholds_decide_otherwise_and_leave_the_first_model_alone(
    predictor, world, chosen
):
    path = world.path("twin.png")
    p = dict(zip(LEARNT, predictor.predict([path]).probabilities[0], strict=True))
    just_above = min(float(p["red"]) + 0.001, 0.999)
    other = predictor.with_thresholds(0.001, {"red": just_above})
    decided = dict(zip(LEARNT, other.predict([path]).decisions[0], strict=True))
    assert decided == {"red": "absent", "bright": "present", "striped": "present"}
    assert other.info.thresholds == (just_above, 0.001, 0.001)
    assert predictor.info.thresholds == chosen
    np.testing.assert_array_equal(other.predict([path]).probabilities[0], list(p.values()))


def test_one_attributes_threshold_leaves_the_others(predictor, chosen):
    assert predictor.with_thresholds(each={"striped": 0.7}).info.thresholds == (*chosen[:2], 0.7)
    assert predictor.with_thresholds(0.2).info.thresholds == (0.2,) * 3
    assert predictor.with_thresholds().info == predictor.info


@pytest.mark.parametrize("value", [0, 1, -0.1, 30, float("nan"), float("inf")])
def test_a_threshold_out_of_range_is_refused(predictor, value):
    with pytest.raises(RecipeError, match=r"out of range.*above 0 and below 1"):
        predictor.with_thresholds(value)
    with pytest.raises(RecipeError, match="bright: a threshold is out of range"):
        predictor.with_thresholds(each={"bright": value})


def test_a_threshold_for_an_unknown_attribute_names_the_nearest_known(predictor):
    with pytest.raises(RecipeError, match=r"stripd: .*did you mean 'striped'\?"):
        predictor.with_thresholds(each={"stripd": 0.5})


def test_a_threshold_for_an_attribute_left_out_says_why_it_was(predictor):
    with pytest.raises(RecipeError, match=r"always: .*not trained: one class only"):
        predictor.with_thresholds(each={"always": 0.5})


# ------------------------------------------------------------------------------ unsure, verdicts


CUTS = [[0.2, 0.8], [None, 0.6], None]


@pytest.fixture(scope="module")
def unsure(run, tmp_path_factory) -> Predictor:
    """The shared run's model with cuts for two of its attributes, and doubts about one."""
    verdicts = {"red": "learnable: so it is", "bright": "too few to tell: 3 present"}
    path = tmp_path_factory.mktemp("cuts") / "m.onnx"
    return load(changed(run, path, cuts=CUTS, verdicts=verdicts))


def test_between_its_cuts_an_attribute_is_unsure(unsure, world, expected, chosen):
    answer = unsure.predict([world.path(name) for name in world.good])
    assert (unsure.info.cuts, answer.cuts) == (tuple(c and tuple(c) for c in CUTS),) * 2
    p = np.array([expected[name] for name in world.good])
    red = np.where(p[:, 0] >= 0.8, "present", np.where(p[:, 0] < 0.2, "absent", "unsure"))
    bright = np.where(p[:, 1] >= 0.6, "present", "unsure")  # never absent
    striped = np.where(p[:, 2] >= chosen[2], "present", "absent")
    assert answer.decisions.tolist() == np.stack([red, bright, striped], axis=1).tolist()
    assert {"unsure", "present"} <= set(bright.tolist()) and "unsure" in red.tolist()


def test_where_a_threshold_is_given_nothing_is_unsure(unsure, world):
    paths = [world.path(name) for name in world.good]
    one = unsure.with_thresholds(each={"bright": 0.5})
    assert one.info.cuts == ((0.2, 0.8), None, None)
    assert "unsure" not in one.predict(paths).decisions[:, 1]
    assert one.predict(paths).decisions[:, 0].tolist() == (
        unsure.predict(paths).decisions[:, 0].tolist()
    )
    everything = unsure.with_thresholds(0.5)
    assert not any(everything.info.cuts or ())
    assert "unsure" not in everything.predict(paths).decisions
    assert unsure.with_thresholds().info == unsure.info
    assert unsure.info.cuts == ((0.2, 0.8), (None, 0.6), None)


def test_verdicts_of_training_travel_with_the_answers(unsure, predictor, world, run):
    path = world.path(world.good[0])
    assert unsure.predict([path]).verdicts == unsure.info.verdicts
    entries = run.metrics["attributes"][:3]
    assert predictor.predict([path]).verdicts == {e["name"]: e["verdict"] for e in entries}


# ------------------------------------------------------------------------------------ public names


def test_the_public_way_from_path_to_answer(run, world):
    answer = polytag.load(run).predict([world.path(world.good[0])])
    assert isinstance(answer, polytag.Predictions)
    assert answer.attributes == LEARNT
    assert os.fspath(run) == str(run.path)


def test_one_picture_need_not_stand_in_a_list(run, world):
    path = world.path("twin.png")
    for picture in (str(path), path, path.read_bytes()):
        assert len(load(run).predict(picture)) == 1
