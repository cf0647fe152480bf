"""Unsure, from training to an answer: promised errors, cuts in the model, and what it says."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from tests.judged import QUICK, cells_of, no_drawings, rows_of
from tests.tiny import one_thread

import polytag
from polytag.abstention import choose_cuts
from polytag.kept import read_run
from polytag.predictor import Predictor
from polytag.runs import Run

from .conftest import LEARNT, TINY, Answer, World, draw_world

MAX_ERROR, CONFIDENCE = 0.1, 0.6
PROMISE = {"decisions.max_error": MAX_ERROR, "decisions.confidence": CONFIDENCE}


@pytest.fixture(scope="module", autouse=True)
def quick(run):  # the shared run is made first, with its drawings
    with one_thread(), no_drawings():
        yield


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> World:
    """A world with pictures enough for a promise, every twentieth label of them wrong."""
    world = draw_world(tmp_path_factory.mktemp("wide"), seed=5, pictures=160)
    rows = rows_of(world.labels)
    wrong = {"0": "1", "1": "0", "NA": "NA"}
    for row in rows[5::20]:
        row |= {name: wrong[row[name]] for name in LEARNT}
    with world.labels.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return world


@pytest.fixture(scope="module")
def promised(wide: World, tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("promised")
    return polytag.fit(wide.table(), wide.images, folder=folder, changes=TINY | QUICK | PROMISE)


@pytest.fixture(scope="module")
def predictor(promised: Run) -> Predictor:
    return polytag.load(promised)


@pytest.fixture(scope="module")
def words(wide: World, predictor: Predictor) -> dict[str, dict[str, str]]:
    """What is to be said of each picture, by its probabilities and the model's cuts."""
    names = wide.good[:80]
    found = predictor.predict([wide.path(name) for name in names])
    said: dict[str, dict[str, str]] = {}
    for name, row in zip(names, found.probabilities, strict=True):
        said[name] = {}
        for attribute, p, (low, high) in zip(LEARNT, row, predictor.info.cuts, strict=True):
            present, absent = high is not None and p >= high, low is not None and p < low
            said[name][attribute] = "present" if present else "absent" if absent else "unsure"
    kinds = {word for row in said.values() for word in row.values()}
    assert kinds == {"present", "absent", "unsure"}
    return said


def decisions(run: Run) -> dict[str, Any]:
    return run.metrics["decisions"]["attributes"]


# ------------------------------------------------------------------------------- what is trained


def test_the_model_carries_its_cuts_and_what_they_promise(promised, predictor):
    info = predictor.info
    for name, pair in zip(info.attributes, info.cuts, strict=True):
        told = decisions(promised)[name]["unsure"]
        assert pair == (told["absent_below"], told["present_from"])
    assert any(None not in pair for pair in info.cuts)
    assert (info.unsure["max_error"], info.unsure["confidence"]) == (MAX_ERROR, CONFIDENCE)
    assert "had not seen" in info.unsure["certified"]
    card = (promised.path / "README.md").read_text()
    assert "Unsure is said where at most 0.1 errors" in card and "confidence of 0.6" in card


def test_what_is_said_to_be_decided_is_what_a_recount_finds(promised):
    """From the files alone: cuts by the other folds' rows, applied cell by cell."""
    kept = read_run(promised.path)
    cells = cells_of(promised)
    counted = {name: dict.fromkeys(("present", "absent", "unsure"), 0) for name in LEARNT}
    wrong = {name: {"present": 0, "absent": 0} for name in LEARNT}
    for fold, basis in enumerate(kept.calibrated.bases):
        rows = cells["fold"][:, 0] == fold
        chosen = ~np.isnan(basis.probabilities).any(axis=1)
        assert not (chosen & rows).any()
        cuts = choose_cuts(
            kept.values[chosen],
            basis.probabilities[chosen],
            cells["threshold"][rows][0],
            max_error=MAX_ERROR,
            confidence=CONFIDENCE,
            groups=kept.groups[chosen],
            seed=42,
        )
        for row in np.flatnonzero(rows):
            for k, (name, cut) in enumerate(zip(LEARNT, cuts, strict=True)):
                truth = cells["truth"][row, k]
                p = cells["probability_calibrated"][row, k]
                if np.isnan(truth):
                    continue
                if cut.high is not None and p >= cut.high:
                    counted[name]["present"] += 1
                    wrong[name]["present"] += truth == 0
                elif cut.low is not None and p < cut.low:
                    counted[name]["absent"] += 1
                    wrong[name]["absent"] += truth == 1
                else:
                    counted[name]["unsure"] += 1
    assert sum(count["unsure"] for count in counted.values()) > 0
    for name in LEARNT:
        told = decisions(promised)[name]["unsure"]
        for kind in ("present", "absent"):
            assert told[f"{kind}_decided"] == counted[name][kind]
            assert told[f"{kind}_wrong"] == wrong[name][kind]
        known = sum(counted[name].values())
        assert told["unsure_share"] == pytest.approx(counted[name]["unsure"] / known)


def test_what_cannot_be_promised_says_how_many_more_labels_it_takes(train, tmp_path):
    run = train(tmp_path, QUICK | {"decisions.max_error": 0.02})
    for name, pair in zip(LEARNT, polytag.load(run).info.cuts, strict=True):
        told = decisions(run)[name]["unsure"]
        assert pair == (None, None)
        assert "never present" in told["note"] and "never absent" in told["note"]
        assert "more" in told["note"] and told["unsure_share"] == 1
        assert told["present_decided"] == 0 and told["present_error_low"] is None
    predictor = polytag.load(run)
    assert set(predictor.info.unsure["notes"]) == set(LEARNT)


def test_without_a_promise_nothing_is_unsure(run: Run):
    info = polytag.load(run).info
    assert info.cuts is None and not info.unsure
    assert all("unsure" not in each for each in decisions(run).values())
    assert "Unsure" not in (run.path / "README.md").read_text()


# -------------------------------------------------------------------------------- what it answers


def test_an_answer_in_text_says_unsure_and_between_which_cuts(
    promised, predictor, words, wide, cli: Callable[..., Answer]
):
    for name in list(words)[:12]:
        told = cli("predict", promised, wide.path(name))
        assert told.code == 0, told.err
        lines = {line.split()[1]: line for line in told.out.splitlines() if "%" in line}
        for attribute, word in words[name].items():
            assert f" {word} " in lines[attribute]
            assert (
                lines[attribute].strip()[0] == {"present": "✓", "unsure": "?", "absent": "✗"}[word]
            )
        present = [attribute for attribute, word in words[name].items() if word == "present"]
        last = next(line for line in told.out.splitlines() if "attributes present:" in line)
        found = last.split(": ")[1].split(", ")
        assert sorted(found) == sorted(present or ["none"])


@pytest.mark.parametrize("form", ["json", "jsonl", "csv", "parquet"])
def test_every_form_says_unsure(promised, words, wide, tmp_path, cli: Callable[..., Answer], form):
    out = tmp_path / f"answers.{form}"
    pictures = [wide.path(name) for name in words]
    told = cli("predict", promised, *pictures, "--format", form, "--out", out)
    assert told.code == 0, told.err
    if form in ("json", "jsonl"):
        text = out.read_text()
        records = json.loads(text) if form == "json" else map(json.loads, text.splitlines())
        found = [record["decisions"] for record in records]
    else:
        frame = (
            csv.DictReader(io.StringIO(out.read_text()))
            if form == "csv"
            else pl.read_parquet(out).iter_rows(named=True)
        )
        found = [{name: row[f"{name}_decision"] for name in LEARNT} for row in frame]
    assert found == list(words.values())


def test_a_threshold_by_hand_leaves_nothing_unsure(predictor, words, wide):
    pictures = [wide.path(name) for name in words]
    found = predictor.with_thresholds(0.5).predict(pictures)
    assert found.cuts is None or set(found.cuts) == {None}
    assert (found.decisions == np.where(found.probabilities >= 0.5, "present", "absent")).all()
    one = predictor.with_thresholds(each={"red": 0.5}).predict(pictures)
    assert "unsure" not in one.decisions[:, 0]
    kept = [[row[name] for name in LEARNT[1:]] for row in words.values()]
    assert one.decisions[:, 1:].tolist() == kept


def test_the_command_lines_threshold_wins_over_cuts(
    promised, words, wide, cli: Callable[..., Answer]
):
    pictures = [wide.path(name) for name in words]
    told = cli("predict", promised, *pictures, "--format", "json", "--threshold", "0.5")
    assert told.code == 0, told.err
    said = {word for record in told.json for word in record["decisions"].values()}
    assert said == {"present", "absent"}


def test_evaluate_counts_what_was_left_unsure(promised, wide, cli: Callable[..., Answer]):
    told = cli("evaluate", promised, wide.labels, "--images", wide.images, "--json")
    assert told.code == 0, told.err
    table = wide.table()
    rows = [table.images.index(name) for name in wide.good]
    found = polytag.load(promised).predict([wide.path(name) for name in wide.good])
    known = ~np.isnan(table.values[rows, :3])
    expected = ((found.decisions == "unsure") & known).sum(axis=0)
    expected = {name: int(n) for name, n in zip(LEARNT, expected, strict=True) if n}
    assert told.json["unsure"] == expected and expected
    assert told.json["seen_in_training"] == len(rows)
    text = cli("evaluate", promised, wide.labels, "--images", wide.images)
    assert "Left unsure" in text.out
    by_hand = cli(
        *("evaluate", promised, wide.labels, "--images", wide.images, "--json"),
        *("--threshold", "0.5"),
    )
    assert by_hand.json["unsure"] == {}


def test_the_flags_of_train_ask_for_the_promise(world, tmp_path: Path, cli: Callable[..., Answer]):
    told = cli(
        *("train", world.labels, "--images", world.images, "--runs", tmp_path, "--json"),
        *("--backbone", TINY["backbone.name"], "--weights", "none", "--folds", "3"),
        *("--set", "preprocess.size=32", "--set", "probe.l2=1"),
        *("--max-error", "0.25", "--confidence", "0.6", "--target", "precision=0.7"),
    )
    assert told.code == 0, told.err
    asked = told.json["decisions"]
    assert (asked["max_error"], asked["confidence"]) == (0.25, 0.6)
    assert asked["target"] == "precision=0.7"
    assert set(asked["attributes"]) == set(LEARNT)
