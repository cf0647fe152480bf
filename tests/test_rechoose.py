"""Thresholds chosen anew: `polytag thresholds`, without training and without pictures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import polars as pl
import pytest
import torch
from safetensors.torch import save_file
from tests.judged import cells_of, no_drawings
from tests.tiny import one_thread

import polytag
from polytag.backbone import import_timm
from polytag.config import load_recipe
from polytag.errors import ModelError, RecipeError
from polytag.importing import import_weights
from polytag.modelfile import INT8_KEY, KEY
from polytag.rechoose import choose_anew
from polytag.runs import Run

from .conftest import LEARNT, Answer, World


@pytest.fixture(scope="module", autouse=True)
def quick(run):  # the shared run is made first, with its drawings
    with one_thread(), no_drawings():
        yield


@pytest.fixture
def copy(run: Run, tmp_path: Path) -> Path:
    """A run that may be changed."""
    shutil.copytree(run.path, tmp_path / "copy")
    return tmp_path / "copy"


def metrics(run: Path) -> dict[str, Any]:
    return json.loads((run / "metrics.json").read_text(encoding="utf-8"))


def info(run: Path) -> dict[str, Any]:
    model = onnx.load(str(run / "model.onnx"))
    return json.loads({entry.key: entry.value for entry in model.metadata_props}[KEY])


def graph(run: Path) -> bytes:
    return onnx.load(str(run / "model.onnx")).graph.SerializeToString()


def texts(run: Path) -> dict[str, str]:
    names = ("config.toml", "metrics.json", "README.md", "report.html")
    return {name: (run / name).read_text(encoding="utf-8") for name in names}


def thresholds(run: Path) -> dict[str, float]:
    attributes = metrics(run)["decisions"]["attributes"]
    return {name: each["threshold"] for name, each in attributes.items()}


def test_the_same_target_again_changes_nothing(run, copy):
    chosen = choose_anew(copy, {"decisions.target": "f1"})
    assert texts(copy)["config.toml"] == texts(run.path)["config.toml"]
    before, after = metrics(run.path), metrics(copy)
    assert before["attributes"] == after["attributes"]
    assert before == after
    assert info(copy) == info(run.path) and graph(copy) == graph(run.path)
    for name in ("oof.parquet", "choosing.parquet", "README.md", "splits.csv"):
        assert (copy / name).read_bytes() == (run.path / name).read_bytes(), name
    assert chosen.path == copy and chosen.evaluation.to_dict() == run.evaluation.to_dict()


def test_another_target_changes_decisions_and_no_probability(run, copy, world: World):
    chosen = choose_anew(copy, {"decisions.target": "recall=0.9"})
    before, after = thresholds(run.path), thresholds(copy)
    assert set(after) == set(LEARNT) and all(before[name] != after[name] for name in LEARNT)
    assert info(copy)["thresholds"] == list(after.values())
    assert graph(copy) == graph(run.path)
    pictures = [world.path(name) for name in world.good[:5]]
    one, other = (polytag.load(path).predict(pictures) for path in (run.path, copy))
    assert np.array_equal(one.probabilities, other.probabilities)
    assert other.thresholds.tolist() == list(after.values())
    one, other = cells_of(run), cells_of(copy)
    for key in ("image", "probability_raw", "probability_calibrated", "fold"):
        assert one[key].tolist() == other[key].tolist()
    assert (one["threshold"] != other["threshold"]).any(axis=0).all()
    # The numbers are those of the new thresholds, ranking apart.
    for old, new in zip(run.metrics["attributes"], chosen.metrics["attributes"], strict=True):
        assert old["ap"] == new["ap"] and old["verdict"] == new["verdict"]
    red = chosen.metrics["attributes"][0]
    known = ~np.isnan(other["truth"][:, 0])
    said = (other["probability_calibrated"] >= other["threshold"])[known, 0]
    truth = other["truth"][known, 0] == 1
    assert red["recall"]["value"] == pytest.approx(said[truth].mean())
    assert red["precision"]["value"] == pytest.approx(truth[said].mean())


def test_what_the_run_says_of_itself_is_brought_up_to_date(run, copy):
    chosen = choose_anew(copy, {"decisions.target": "precision=0.8"})
    before, after = texts(run.path), texts(copy)
    assert all(before[name] != after[name] for name in before)
    assert load_recipe(copy / "config.toml").decisions.target == "precision=0.8"
    assert "thresholds: precision=0.8" in after["README.md"]
    assert info(copy)["recipe"]["decisions"]["target"] == "precision=0.8"
    for threshold in thresholds(copy).values():
        assert f"| {threshold:.3g} |" in after["README.md"]
    assert metrics(copy) == json.loads(json.dumps(chosen.metrics))
    assert metrics(copy)["decisions"]["target"] == "precision=0.8"
    assert metrics(copy)["seconds"] == metrics(run.path)["seconds"]
    assert info(copy)["metrics"]["macro"] == metrics(copy)["macro"]
    assert sorted(p.name for p in copy.iterdir()) == sorted(p.name for p in run.path.iterdir())


def test_an_int8_model_beside_it_is_brought_up_to_date_too(copy):
    model = onnx.load(str(copy / "model.onnx"))
    entry = model.metadata_props.add()
    entry.key, entry.value = INT8_KEY, "{}"
    onnx.save(model, str(copy / "model.int8.onnx"))
    choose_anew(copy, {"decisions.target": "precision=0.8"})
    found = onnx.load(str(copy / "model.int8.onnx"))
    said = {entry.key: entry.value for entry in found.metadata_props}
    assert json.loads(said[KEY]) == info(copy) and said[INT8_KEY] == "{}"
    assert found.graph.SerializeToString() == graph(copy)


def test_there_and_back_again_is_where_it_was(run, copy):
    choose_anew(copy, {"decisions.target": "f2", "decisions.max_error": 0.1})
    assert info(copy)["cuts"] is not None
    assert "unsure" in metrics(copy)["decisions"]["attributes"]["red"]
    choose_anew(copy, {"decisions.target": "f1", "decisions.max_error": 0.0})
    assert metrics(copy) == metrics(run.path) and info(copy) == info(run.path)


def test_it_needs_no_pictures(run, copy, tmp_path):
    config = (copy / "config.toml").read_text()
    here = load_recipe(copy / "config.toml").data.images
    (copy / "config.toml").write_text(config.replace(here, str(tmp_path / "gone")))
    chosen = choose_anew(copy, {"decisions.target": 0.3})
    assert set(thresholds(copy).values()) == {0.3}
    assert chosen.metrics["macro"]["ap"] == run.metrics["macro"]["ap"]


# ----------------------------------------------------------------------------------- refused


def test_a_run_that_kept_no_rows_to_choose_by_says_what_would(copy):
    path = copy / "choosing.parquet"
    pl.read_parquet(path).clear().write_parquet(path)
    before = {p.name: p.read_bytes() for p in copy.iterdir()}
    with pytest.raises(RecipeError, match="kept no rows that thresholds could be chosen by"):
        choose_anew(copy, {"decisions.target": "f2"})
    assert before == {p.name: p.read_bytes() for p in copy.iterdir()}


@pytest.mark.parametrize("target", ["f0", "precision=2", "best", ""])
def test_a_target_that_is_none_changes_nothing(copy, cli: Callable[..., Answer], target):
    before = {p.name: p.read_bytes() for p in copy.iterdir()}
    told = cli("thresholds", copy, "--target", target)
    assert (told.code, told.out) == (2, "") and "precision=0.9 or recall=0.9" in told.err
    assert before == {p.name: p.read_bytes() for p in copy.iterdir()}


def test_an_imported_model_has_nothing_to_choose_by(tmp_path, cli: Callable[..., Answer]):
    torch.manual_seed(0)
    network = import_timm().create_model("test_resnet", pretrained=False, num_classes=2)
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    run = import_weights(
        tmp_path / "w.safetensors",
        backbone="test_resnet",
        attributes=("hat", "tie"),
        changes={"preprocess.size": 32},
        folder=tmp_path / "runs",
    )
    before = {p.name: p.read_bytes() for p in run.path.iterdir()}
    told = cli("thresholds", run.path, "--target", "f1")
    assert told.code == 2 and len(told.err.splitlines()) == 1
    assert str(run.path) in told.err and "cannot be read" in told.err
    assert before == {p.name: p.read_bytes() for p in run.path.iterdir()}


def test_a_bare_model_file_has_nothing_to_choose_by(run, tmp_path):
    shutil.copy(run.path / "model.onnx", tmp_path)
    with pytest.raises(ModelError, match="cannot be read"):
        choose_anew(tmp_path / "model.onnx", {"decisions.target": "f1"})


@pytest.mark.parametrize("failing", ["rewrite_info", "write_views", "write_judged"])
def test_what_fails_leaves_a_whole_model_and_can_be_done_again(run, copy, monkeypatch, failing):
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    before = (copy / "model.onnx").read_bytes()
    names = {p.name for p in copy.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(f"polytag.rechoose.{failing}", fail)
        with pytest.raises(ZeroDivisionError):
            choose_anew(copy, {"decisions.target": "f2"})
    assert (copy / "model.onnx").read_bytes() == before
    assert {p.name for p in copy.iterdir()} == names
    choose_anew(copy, {"decisions.target": "f1"})
    assert metrics(copy) == metrics(run.path) and info(copy) == info(run.path)


# ---------------------------------------------------------------------------- the command line


def test_the_command_says_what_the_thresholds_do(copy, cli: Callable[..., Answer]):
    told = cli("thresholds", copy, "--target", "recall=0.9")
    assert told.code == 0, told.err
    assert "recall=0.9" in told.out and f"run: {copy}" in told.out
    assert all(name in told.out for name in LEARNT)
    assert max(map(len, told.out.replace(str(copy), "").splitlines())) <= 80


def test_json_is_all_that_stands_on_stdout(copy, cli: Callable[..., Answer]):
    told = cli("thresholds", copy, "--target", "0.25", "--json")
    assert told.code == 0, told.err
    assert told.json == {"run": str(copy)} | metrics(copy)
    assert told.json["decisions"]["target"] == 0.25
    assert {each["threshold"] for each in told.json["attributes"] if each["ap"]["value"]} == {0.25}


def test_without_a_wish_it_is_a_usage_error(copy, cli: Callable[..., Answer]):
    told = cli("thresholds", copy)
    assert (told.code, told.out) == (2, "") and "--target or --max-error" in told.err


def test_unsure_is_promised_and_taken_away_again(run, copy, cli: Callable[..., Answer]):
    told = cli("thresholds", copy, "--max-error", "0.1", "--confidence", "0.6")
    assert told.code == 0, told.err
    assert info(copy)["unsure"]["max_error"] == 0.1
    assert load_recipe(copy / "config.toml").decisions.confidence == 0.6
    assert cli("thresholds", copy, "--max-error", "0", "--confidence", "0.9").code == 0
    assert info(copy) == info(run.path) and metrics(copy) == metrics(run.path)
