"""Judging a model on a labelled table: right numbers, matched by name, and honest about itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

import polytag
from polytag.errors import SkippedError, UserError
from polytag.predictor import load
from polytag.table import LabelTable

from .conftest import ATTRIBUTES, LEARNT, World, draw_world

NA = np.nan


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Pictures that the run has not seen."""
    return draw_world(tmp_path_factory.mktemp("other"), seed=9, pictures=30)


def table_of(
    world: World, attributes: tuple[str, ...] = LEARNT, values: np.ndarray | None = None
) -> LabelTable:
    """The good pictures of a world with the attributes of that name, or with other values."""
    rows = range(len(world.good))
    if values is None:
        values = world.values[np.ix_(rows, [ATTRIBUTES.index(a) for a in attributes])]
    return LabelTable(tuple(world.good), attributes, values)


def numbers(judged: polytag.evaluation.Judged) -> dict[str, tuple[float, float]]:
    return {a.name: (a.ap.value, a.auc.value) for a in judged.evaluation.attributes}


# ------------------------------------------------------------------------------------------ numbers


def test_the_numbers_are_those_of_the_models_predictions_on_known_cells(run, other):
    judged = polytag.evaluate(run, other.table(), other.images)
    said = load(run).predict([other.path(name) for name in other.good]).probabilities
    right = known_cells = 0
    for k, name in enumerate(LEARNT):
        truth = other.values[: len(other.good), k]
        known = ~np.isnan(truth)
        entry = judged.evaluation.attributes[k]
        assert entry.name == name
        assert entry.ap.value == pytest.approx(
            average_precision_score(truth[known], said[known, k])
        )
        assert entry.auc.value == pytest.approx(roc_auc_score(truth[known], said[known, k]))
        assert entry.ap.chance == pytest.approx(truth[known].mean())
        assert entry.na == (~known).sum()
        right += (truth[known] == (said[known, k] >= 0.5)).sum()
        known_cells += known.sum()
    assert judged.evaluation.hamming.value == pytest.approx(right / known_cells)
    assert judged.rows == len(other.good)


def test_what_was_learnt_holds_on_new_pictures(run, other):
    assert polytag.evaluate(run, other.table(), other.images).evaluation.macro["auc"].value > 0.9


@pytest.mark.parametrize("form", ["run", "path", "text", "file", "predictor"])
def test_a_run_a_path_a_bare_file_and_a_predictor_are_judged_the_same(run, other, form, tmp_path):
    model = {
        "run": run,
        "path": run.path,
        "text": str(run.path),
        "file": shutil.copy(run.path / "model.onnx", tmp_path / "m.onnx"),
        "predictor": load(run),
    }[form]
    judged = polytag.evaluate(model, table_of(other), other.images)
    assert judged.evaluation == polytag.evaluate(run, table_of(other), other.images).evaluation


def test_other_thresholds_change_decisions_and_no_ranking(run, other):
    table = table_of(other)
    usual = polytag.evaluate(run, table, other.images).evaluation
    strict = load(run).with_thresholds(0.999)
    judged = polytag.evaluate(strict, table, other.images).evaluation
    assert judged.macro["ap"].value == usual.macro["ap"].value
    assert judged.hamming.value < usual.hamming.value
    assert [a.threshold for a in judged.attributes] == [0.999] * 3


# ---------------------------------------------------------------------------- matched by their name


def test_columns_are_matched_by_name_in_the_tables_order(run, other):
    straight = numbers(polytag.evaluate(run, table_of(other), other.images))
    turned = polytag.evaluate(run, table_of(other, LEARNT[::-1]), other.images)
    assert [a.name for a in turned.evaluation.attributes] == list(LEARNT[::-1])
    assert numbers(turned) == straight


def test_an_attribute_without_labels_is_named_and_not_measured(run, other):
    judged = polytag.evaluate(run, table_of(other, ("bright",)), other.images)
    assert judged.unlabelled == ("red", "striped")
    assert [a.name for a in judged.evaluation.attributes] == ["bright"]
    assert judged.evaluation.over == "1 of 1 attributes"


def test_attributes_that_the_model_cannot_answer_have_null_and_the_reason(run, other):
    values = np.column_stack([other.truth[:, :2], other.truth[:, 0]])[: len(other.good)]
    table = table_of(other, ("red", "always", "brand new"), values)
    by_name = {a.name: a for a in polytag.evaluate(run, table, other.images).evaluation.attributes}
    assert by_name["red"].auc.value > 0.9
    assert np.isnan(by_name["always"].ap.value)
    assert "one class only" in by_name["always"].ap.reason
    assert "does not know it" in by_name["brand new"].ap.reason


def test_a_table_of_other_attributes_is_refused_and_both_lists_are_shown(run, other):
    table = LabelTable(tuple(other.good), ("cat", "dog"), np.zeros((len(other.good), 2)))
    with pytest.raises(UserError, match=r"share no attribute; got cat, dog, expected red, bright"):
        polytag.evaluate(run, table, other.images)


# -------------------------------------------------------------------------------------------- holes


def test_everything_na_is_no_crash_and_no_number(run, other):
    table = table_of(other, values=np.full((len(other.good), 3), NA))
    judged = polytag.evaluate(run, table, other.images)
    assert np.isnan(judged.evaluation.macro["ap"].value)
    assert np.isnan(judged.evaluation.hamming.value)
    assert all("no known cell" in a.ap.reason for a in judged.evaluation.attributes)


def test_a_column_of_one_class_has_its_accuracy_but_no_auc(run, other):
    values = np.array(other.values[: len(other.good), :3])
    values[:, 1] = 1
    judged = polytag.evaluate(run, table_of(other, values=values), other.images)
    entry = judged.evaluation.attributes[1]
    assert np.isnan(entry.auc.value) and entry.auc.reason
    assert 0 <= entry.accuracy.value <= 1
    assert judged.evaluation.macro["auc"].over == "2 of 3 attributes"


def test_a_hole_more_takes_one_cell_out_of_every_count(run, other):
    values = np.array(other.values[: len(other.good), :3])
    row = int(np.flatnonzero(values[:, 0] == 1)[0])
    before = polytag.evaluate(run, table_of(other, values=values), other.images).evaluation
    values[row, 0] = NA
    after = polytag.evaluate(run, table_of(other, values=values), other.images).evaluation
    assert after.attributes[0].present == before.attributes[0].present - 1
    assert after.attributes[0].na == before.attributes[0].na + 1
    assert after.attributes[1:] == before.attributes[1:]


# ------------------------------------------------------------------------- pictures that fail


def test_missing_and_broken_pictures_are_left_out_and_listed(run, other):
    judged = polytag.evaluate(run, other.table(), other.images)
    assert [row.image for row in judged.skipped] == ["missing.png", "broken.png"]
    assert judged.skipped[0].reason == "no such file"
    assert str(other.path("broken.png")) not in judged.skipped[1].reason
    assert judged.skipped[1].where.endswith(f"labels.csv:{len(other.names) + 1}")


def test_strict_and_too_many_skipped_stop(run, other):
    with pytest.raises(UserError, match=r"2 of 33 .*--strict"):
        polytag.evaluate(run, other.table(), other.images, strict=True)
    with pytest.raises(SkippedError, match="2 of 33"):
        polytag.evaluate(run, other.table(), other.images, max_skipped=0.05)
    polytag.evaluate(run, other.table(), other.images, max_skipped=2 / 33)


def test_no_usable_picture_at_all_is_an_error(run, other, tmp_path):
    with pytest.raises(UserError, match="no row of the table has a usable picture"):
        polytag.evaluate(run, other.table(), tmp_path, max_skipped=1.0)
    with pytest.raises(UserError, match="no such folder"):
        polytag.evaluate(run, other.table(), tmp_path / "nowhere")


# ------------------------------------------------------------------------ honest about what it saw


def test_pictures_that_were_trained_on_are_counted_and_warned_about(run, world):
    judged = polytag.evaluate(run, world.table(), world.images)
    assert judged.seen == judged.rows == len(world.good)
    assert "WARNING: 60 of them were trained on" in judged.warning


def test_pictures_that_are_new_are_said_to_be(run, other):
    judged = polytag.evaluate(run, other.table(), other.images)
    assert judged.seen == 0
    assert (
        judged.warning
        == "None of them is byte-identical to a picture that was trained on or chosen by."
    )


def test_a_picture_is_known_again_by_its_content_under_any_name(run, world, other, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for i, source in enumerate([world.path(world.good[3]), *map(other.path, other.good[:4])]):
        shutil.copy(source, images / f"{i}.png")
    table = LabelTable(tuple(f"{i}.png" for i in range(5)), LEARNT, np.eye(5, 3))
    assert polytag.evaluate(run, table, images).seen == 1


def test_a_bare_model_file_cannot_tell_what_it_saw(run, world, tmp_path):
    bare = Path(shutil.copy(run.path / "model.onnx", tmp_path))
    judged = polytag.evaluate(bare, world.table(), world.images)
    assert judged.seen is None and "cannot tell" in judged.warning


def test_everything_is_told_as_json_too(run, other):
    judged = polytag.evaluate(run, other.table(), other.images)
    told = json.loads(json.dumps(judged.to_dict(), allow_nan=False))
    assert told["seen_in_training"] == 0 and told["rows"] == len(other.good)
    assert [row["image"] for row in told["skipped"]] == ["missing.png", "broken.png"]
    assert [a["name"] for a in told["attributes"]] == list(ATTRIBUTES)
    assert told["attributes"][3]["ap"]["value"] is None
    assert told["macro"]["ap"]["value"] == judged.evaluation.macro["ap"].value
