"""`polytag export`: what it says, its exit codes, and that the file is used as others are."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.test_quantise import broken

from polytag import quantise as quantising

from .conftest import LEARNT, Answer


@pytest.fixture
def copy(run, tmp_path: Path) -> Path:
    shutil.copytree(run.path, tmp_path / "run")
    return tmp_path / "run"


def test_it_writes_both_files_and_tells_in_80_columns(copy, world, cli: Callable[..., Answer]):
    told = cli("export", copy, "--int8")
    assert told.code == 0, told.err
    assert (copy / "model.int8.onnx").is_file() and (copy / "model.int8.json").is_file()
    lines = told.out.splitlines()
    assert max(map(len, told.out.replace(str(copy), "").splitlines())) <= 80
    assert [line.split()[0] for line in lines[:5]] == ["AP", "macro", *LEARNT]
    assert lines[-1] == f"written: {copy / 'model.int8.onnx'}"
    assert "Increased scale" not in told.err
    said = cli("predict", copy / "model.int8.onnx", world.path(world.good[0]), "--json")
    assert said.code == 0, said.err
    assert set(said.json[0]["probabilities"]) == set(LEARNT)


def test_a_refusal_ends_with_1_and_says_why(copy, monkeypatch, cli: Callable[..., Answer]):
    monkeypatch.setattr(quantising, "quantise", broken)
    told = cli("export", copy, "--int8")
    assert told.code == 1, told.err
    assert "refused: macro AP falls by" in told.out
    assert told.out.splitlines()[-1] == "nothing was written"
    assert not (copy / "model.int8.onnx").exists() and not (copy / "model.int8.json").exists()


def test_json_is_all_that_stands_on_stdout(copy, tmp_path, cli: Callable[..., Answer]):
    out = tmp_path / "elsewhere" / "small.onnx"
    told = cli("export", copy, "--int8", "--out", out, "--json")
    assert told.code == 0, told.err
    assert told.json["file"] == str(out) and told.json["accepted"] is True
    assert sorted(p.name for p in out.parent.iterdir()) == ["small.json", "small.onnx"]
    assert not (copy / "model.int8.onnx").exists()


def test_without_a_wish_it_is_a_usage_error(copy, cli: Callable[..., Answer]):
    told = cli("export", copy)
    assert (told.code, told.out) == (2, "")
    assert "model.onnx in the run is the export" in told.err and "--int8" in told.err


def test_no_run_is_one_line(tmp_path, cli: Callable[..., Answer]):
    told = cli("export", tmp_path / "none", "--int8")
    assert told.code == 2 and len(told.err.splitlines()) == 1
    assert "no such run folder or model file" in told.err
