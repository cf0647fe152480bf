"""A run's card, report and numbers say the same, and none of them where they were made."""

from __future__ import annotations

import html
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.judged import QUICK, TUNED, cells_of, no_drawings, no_export, rows_of, with_columns
from tests.tiny import one_thread

from polytag.kept import read_run
from polytag.modelfile import ModelInfo
from polytag.predictor import load
from polytag.runs import Run
from polytag.views import write_views

from .conftest import ATTRIBUTES, LEARNT, World


@pytest.fixture(scope="module", autouse=True)
def quick(run):  # the shared run is made first, with its drawings
    with one_thread(), no_drawings():
        yield


def read(run: Run, name: str) -> str:
    return (run.path / name).read_text(encoding="utf-8")


def words_of(run: Run) -> str:
    """The report's text without its marks; dashes of all kinds are one."""
    text = re.sub(r"<(style|script)\b.*?</\1>", " ", read(run, "report.html"), flags=re.DOTALL)
    text = html.unescape(re.sub(r"<[^>]*>", " ", text))
    return re.sub(r"\s+", " ", text.replace("−", "-").replace("\u00ad", ""))


def card_rows(run: Run) -> dict[str, list[str]]:
    rows = [
        line.strip("|").split("|") for line in read(run, "README.md").splitlines() if "|" in line
    ]
    return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in rows}


def by_name(run: Run) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in run.metrics["attributes"]}


# ------------------------------------------------------------------------------------ they agree


@pytest.mark.parametrize("name", LEARNT)
def test_the_card_has_the_numbers_of_metrics_json(run, name):
    each, cells = by_name(run)[name], card_rows(run)[name]
    assert cells[0] == each["verdict"]
    assert cells[1:4] == [str(each[kind]) for kind in ("present", "absent", "na")]
    for cell, metric in zip(cells[4:7], ("ap", "auc", "f1"), strict=True):
        number = each[metric]
        assert cell == (
            f"{number['value']:.3f} [{number['low']:.3f}, {number['high']:.3f}]"
            f" ({number['chance']:.3f})"
        )
    threshold = run.metrics["decisions"]["attributes"][name]["threshold"]
    assert cells[7] == f"{threshold:.3g}" and each["threshold"] == threshold


@pytest.mark.parametrize("name", LEARNT)
def test_the_report_has_the_numbers_of_metrics_json(run, name):
    each, text = by_name(run)[name], words_of(run)
    for metric in ("ap", "auc", "f1", "precision", "recall", "brier", "ece"):
        number = each[metric]
        shown = f"{number['value']:.3f} {number['low']:.3f} to {number['high']:.3f}"
        assert shown in text, metric


def test_the_macro_mean_is_the_same_everywhere(run):
    ap = run.metrics["macro"]["ap"]
    assert f"Macro AP {ap['value']:.3f} [{ap['low']:.3f}, {ap['high']:.3f}]" in read(
        run, "README.md"
    )
    assert f"{ap['value']:.3f} {ap['low']:.3f} to {ap['high']:.3f}" in words_of(run)
    assert load(run).info.metrics["macro"]["ap"] == ap


def test_what_only_the_report_shows_is_in_metrics_json_too(run):
    shown = json.loads(read(run, "metrics.json"))["report"]
    assert shown == json.loads(json.dumps(run.metrics["report"]))
    cells = cells_of(run)
    decided = cells["probability_calibrated"] >= cells["threshold"]
    for k, name in enumerate(LEARNT):
        (counts,) = (each for each in shown["confusion"] if each["name"] == name)
        truth = cells["truth"][:, k]
        assert counts["true_present"] == int((decided[:, k] & (truth == 1)).sum())
        assert counts["false_present"] == int((decided[:, k] & (truth == 0)).sum())
        assert counts["false_absent"] == int((~decided[:, k] & (truth == 1)).sum())
        assert counts["true_absent"] == int((~decided[:, k] & (truth == 0)).sum())
    assert shown["duplicates"]["count"] == 1 and shown["duplicates"]["conflicts"] == 1
    assert shown["duplicates"]["first"][0]["images"] == ["more/00.png", "twin.png"]
    learnable = sum(each["verdict"].startswith("learnable") for each in by_name(run).values())
    assert shown["verdicts"]["learnable"] == learnable == 3


def test_suspects_are_labels_that_their_own_probability_contradicts(run):
    cells = cells_of(run)
    at = {image: row for row, image in enumerate(cells["image"][:, 0])}
    suspects = run.metrics["report"]["suspects"]["first"]
    assert suspects
    for each in suspects:
        row, k = at[each["image"]], LEARNT.index(each["attribute"])
        assert each["label"] == cells["truth"][row, k]
        assert each["probability"] == cells["probability_calibrated"][row, k]
        assert (each["probability"] >= 0.5) != bool(each["label"])
    # The twins contradict each other: that is said among the duplicates.
    assert ("twin.png", "red") not in {(each["image"], each["attribute"]) for each in suspects}


def test_attributes_that_were_not_trained_are_named_with_their_reason(run):
    for name in set(ATTRIBUTES) - set(LEARNT):
        reason = run.metrics["left_out"][name]
        assert f"- {name}: {reason}" in read(run, "README.md")
        assert name in words_of(run)
        assert card_rows(run)[name][4:] == ["-"] * 4


def test_written_again_they_are_the_same(run, world: World, tmp_path):
    shutil.copytree(run.path, tmp_path / run.path.name)
    names = ("README.md", "report.html", "metrics.json")
    for name in names[:2]:
        (tmp_path / run.path.name / name).unlink()
    kept = read_run(tmp_path / run.path.name)
    info: ModelInfo = load(run).info
    metrics = write_views(kept, info, [world.path(name) for name in kept.table.images])
    assert metrics == json.loads(read(run, "metrics.json"))
    for name in names:
        assert (tmp_path / run.path.name / name).read_bytes() == (run.path / name).read_bytes()


def test_without_its_pictures_the_report_still_has_its_numbers(run, tmp_path):
    shutil.copytree(run.path, tmp_path / "copy")
    kept = read_run(tmp_path / "copy")
    gone = [tmp_path / "gone" / name for name in kept.table.images]
    metrics = write_views(kept, load(run).info, gone)
    assert metrics["report"] == run.metrics["report"]
    report = (tmp_path / "copy" / "report.html").read_text()
    assert "data:image/jpeg" not in report and "data:image/webp" not in report
    assert f"{run.metrics['macro']['ap']['value']:.3f}" in report


def test_a_run_that_judged_nothing_has_a_card_and_a_report(train: Callable[..., Run], tmp_path):
    with no_export():
        run = train(tmp_path, TUNED | {"split.holdout": 0}, recipe="finetune")
    note = run.metrics["note"]
    assert note in read(run, "README.md") and note in words_of(run)
    assert "Macro AP" not in read(run, "README.md")
    assert all(card_rows(run)[name][4:7] == ["-"] * 3 for name in LEARNT)


# ----------------------------------------------------------------- nothing of this machine in them


@pytest.fixture(scope="module")
def secret(run: Run, world: World, train, tmp_path_factory) -> tuple[Run, Path]:
    """A run of data, weights and a split that lie where nobody needs to know."""
    folder = tmp_path_factory.mktemp("secret-place")
    shutil.copytree(world.images, folder / "images")
    shutil.copy(run.path / "weights.safetensors", folder / "own-weights.safetensors")
    splits = rows_of(run.path / "splits.csv")
    lines = [f"{row['image']},{int(row['fold']) % 3}" for row in splits]
    (folder / "own-split.csv").write_text("\n".join(["image,fold", *lines]))
    shutil.copy(world.labels, folder / "labels.csv")
    changes = QUICK | {
        "backbone.weights": str(folder / "own-weights.safetensors"),
        "split.given": str(folder / "own-split.csv"),
    }
    table = with_columns(world.table(), source=world.names)
    return train(folder / "runs", changes, table=table, images=folder / "images"), folder


@pytest.mark.parametrize("name", ["report.html", "README.md", "metrics.json", "model.onnx"])
def test_no_folder_of_this_machine_is_in(secret, world, name):
    run, folder = secret
    content = (run.path / name).read_bytes()
    for place in (folder, world.images.parent, Path.home(), Path.cwd()):
        assert str(place).encode() not in content, place
        assert json.dumps(str(place))[1:-1].encode() not in content
    assert b"secret-place" not in content


def test_but_what_was_taken_is_named_and_the_config_finds_it(secret):
    run, folder = secret
    assert "own-weights.safetensors" in read(run, "README.md")
    assert "own-weights.safetensors" in words_of(run)
    config = read(run, "config.toml")
    for path in ("images", "own-weights.safetensors", "own-split.csv"):
        assert str(folder / path) in config


def test_all_cells_of_a_probe_are_judged_once(run):
    assert cells_of(run)["image"][:, 0].tolist() == [
        row["image"] for row in rows_of(run.path / "splits.csv")
    ]
    assert not np.isnan(cells_of(run)["probability_calibrated"]).any()
