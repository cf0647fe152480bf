"""Judging a model on a labelled table: right numbers, matched by name, and honest about itself."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

import polytag
import polytag.cli.judging
from polytag.answers import Answers, read_answers
from polytag.errors import SkippedError, UserError
from polytag.predictions import Predictions, write_csv
from polytag.predictor import load
from polytag.table import LabelTable

from .conftest import ATTRIBUTES, LEARNT, World, draw_world, write_labels

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


# ----------------------------------------------------------------- anybody's predictions, as files


def said_about(
    table: LabelTable, noise: float = 0.3, seed: int = 0, **options: object
) -> Predictions:
    """Predictions that are right up to some noise, about every row of a table."""
    rng = np.random.default_rng(seed)
    logits = 2 * np.nan_to_num(table.values) - 1 + rng.normal(0, noise, table.values.shape)
    probabilities = (1 / (1 + np.exp(-3 * logits))).astype(np.float32)
    thresholds = np.full(len(table.attributes), 0.5)
    errors = (None,) * len(table)
    return Predictions(table.images, table.attributes, probabilities, thresholds, errors, **options)


def drawn_table(rows: int = 60, holes: float = 0.25, seed: int = 1) -> LabelTable:
    rng = np.random.default_rng(seed)
    values = (rng.random((rows, 3)) < 0.4).astype(float)
    values[rng.random(values.shape) < holes] = NA
    return LabelTable(tuple(f"{i}.jpg" for i in range(rows)), ("red", "bright", "striped"), values)


def csv_of(predictions: Predictions, path: Path) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        write_csv([predictions], file)
    return path


def test_a_models_own_csv_is_judged_as_the_model_is(run, other, tmp_path):
    predictor = load(run)
    path = csv_of(
        predictor.predict([other.images / name for name in other.good]), tmp_path / "p.csv"
    )
    model = polytag.evaluate(predictor, other.table(), other.images).evaluation
    table = polytag.evaluate(path, other.table(), other.images).evaluation
    for a, b in zip(model.attributes[:3], table.attributes[:3], strict=True):
        assert (a.present, a.absent, a.na) == (b.present, b.absent, b.na)
        for metric in ("f1", "precision", "recall", "accuracy", "balanced_accuracy"):
            assert getattr(a, metric) == getattr(b, metric)  # its decisions, not those of 0.5
        assert b.ap.value == pytest.approx(a.ap.value) and b.ap.low == pytest.approx(a.ap.low)
        assert np.isnan(b.threshold)
    assert table.hamming.value == model.hamming.value
    assert table.exact_match.value == model.exact_match.value
    assert "no column in" in table.attributes[4].ap.reason


def test_rows_are_matched_by_name_and_the_rest_is_counted():
    table = drawn_table()
    whole = said_about(table)
    order = np.random.default_rng(3).permutation(60)[:57]
    shuffled = replace(
        whole,
        images=(*(f"new/{table.images[i]}" for i in order), "new/x.jpg"),
        probabilities=np.vstack([whole.probabilities[order], whole.probabilities[:1]]),
        errors=(None,) * 58,
    )
    judged = polytag.evaluate(shuffled, table)
    assert judged.rows == 57 and len(judged.skipped) == 3
    assert {row.reason for row in judged.skipped} == {"no row about it in the predictions"}
    kept = table.select(sorted(order.tolist()))
    assert judged.evaluation == polytag.evaluate(whole, kept).evaluation
    with pytest.raises(SkippedError, match="3 of 60 rows have no prediction") as caught:
        polytag.evaluate(shuffled, table, max_skipped=0.01)
    assert "predict these pictures" in str(caught.value) and "mend" not in str(caught.value)
    with pytest.raises(UserError, match="--strict"):
        polytag.evaluate(shuffled, table, strict=True)


def test_predictions_of_other_pictures_or_attributes_are_refused(tmp_path):
    table = drawn_table(4)
    others = replace(said_about(table), images=tuple("wxyz"))
    with pytest.raises(UserError, match=r"share no picture; got w, x, y, expected .*0.jpg"):
        polytag.evaluate(others, table)
    path = csv_of(said_about(table), tmp_path / "p.csv")
    with pytest.raises(UserError, match="share no attribute"):
        polytag.evaluate(path, LabelTable(table.images, ("hat",), table.values[:, :1]))


def test_a_model_needs_pictures_and_predictions_do_not(run, other):
    with pytest.raises(UserError, match=r"a model is judged on pictures; give .* --images"):
        polytag.evaluate(run, other.table())


def test_failed_rows_are_skipped_and_cells_without_a_probability_left_out():
    table = drawn_table()
    said = said_about(table)
    probabilities = said.probabilities.copy()
    probabilities[0], probabilities[5:9, 1] = NA, NA
    errors = ("0.jpg: cannot decode", *said.errors[1:])
    judged = polytag.evaluate(replace(said, probabilities=probabilities, errors=errors), table)
    assert [(row.image, row.reason) for row in judged.skipped] == [("0.jpg", "cannot decode")]
    assert judged.unanswered == (~np.isnan(table.values[5:9, 1])).sum() > 0
    values = table.values.copy()
    values[5:9, 1] = NA
    rest = LabelTable(table.images, table.attributes, values).select(range(1, 60))
    assert judged.evaluation == polytag.evaluate(said, rest).evaluation


@given(seed=st.integers(0, 99), under=st.floats(0, 1))
@settings(max_examples=15, deadline=None)
def test_what_is_said_about_an_unknown_cell_changes_nothing(seed, under):
    table = drawn_table(seed=seed)
    said = said_about(table, seed=seed, cuts=((0.3, 0.7), None, (None, 0.9)))
    holes = np.isnan(table.values)
    other = replace(said, probabilities=np.where(holes, np.float32(under), said.probabilities))
    a, b = (polytag.evaluate(one, table).to_dict() for one in (said, other))
    assert json.dumps(a) == json.dumps(b)


# ------------------------------------------------------------------------------------------ unsure


def test_unsure_cells_are_neither_right_nor_wrong_and_rank_all_the_same():
    table = drawn_table(200)
    plain, said = (said_about(table, 0.9, cuts=c) for c in (None, ((0.3, 0.7), None, None)))
    judged, usual = polytag.evaluate(said, table), polytag.evaluate(plain, table)
    truth, p = table.values[:, 0], said.probabilities[:, 0]
    sure = ~np.isnan(truth) & ((p < 0.3) | (p >= 0.7))
    red = judged.evaluation.attributes[0]
    assert red.accuracy.value == pytest.approx(((p >= 0.7) == (truth == 1))[sure].mean())
    assert red.recall.value == pytest.approx((p >= 0.7)[sure & (truth == 1)].mean())
    assert judged.unsure == {"red": int((~np.isnan(truth)).sum() - sure.sum())}
    assert judged.unsure_share == judged.unsure["red"] / (~np.isnan(table.values)).sum()
    assert judged.evaluation.attributes[1:] == usual.evaluation.attributes[1:]
    for metric in ("ap", "auc", "brier", "ece"):
        assert judged.evaluation.macro[metric] == usual.evaluation.macro[metric]
    assert judged.evaluation.macro["accuracy"].value > usual.evaluation.macro["accuracy"].value
    assert judged.evaluation.hamming.value > usual.evaluation.hamming.value
    assert red.present + red.absent == (~np.isnan(truth)).sum()
    assert not usual.unsure and usual.unsure_share == 0
    told = json.loads(json.dumps(judged.to_dict(), allow_nan=False))
    assert told["unsure"] == judged.unsure


def test_the_share_of_unsure_cells_is_of_answered_attributes():
    table = drawn_table()
    judged = polytag.evaluate(said_about(table, cuts=((None, None), None, None)), table)
    more = LabelTable(
        table.images, (*table.attributes, "hat"), np.hstack([table.values, table.values[:, :1]])
    )
    wider = polytag.evaluate(said_about(table, cuts=((None, None), None, None)), more)
    assert wider.unsure_share == judged.unsure_share > 0.3


def test_an_attribute_that_is_always_unsure_has_no_decisions_to_judge():
    table = drawn_table()
    judged = polytag.evaluate(said_about(table, cuts=((None, None), None, None)), table)
    red = judged.evaluation.attributes[0]
    assert np.isnan(red.f1.value) and red.f1.reason == "all its known cells were left unsure"
    assert red.ap.value > 0.5
    assert judged.evaluation.macro["f1"].missing["red"] == red.f1.reason
    assert judged.evaluation.macro["f1"].over == "2 of 3 attributes"


def test_a_sure_probability_that_was_decided_absent_counts_as_absent(tmp_path):
    text = "image,red,red_decision\na.jpg,1,absent\nb.jpg,0,present\nc.jpg,1,present\n"
    path = tmp_path / "p.csv"
    path.write_text(text)
    table = LabelTable.from_rows(["a.jpg", "b.jpg", "c.jpg"], ["red"], [[0], [1], [1]])
    assert polytag.evaluate(path, table).evaluation.hamming.value == 1.0
    usual = Answers.with_thresholds(read_answers(path, ["red"]), 0.5)
    assert polytag.evaluate(usual, table).evaluation.hamming.value == pytest.approx(1 / 3)


# ------------------------------------------------------------------------ intervals, what was seen


def test_copies_of_a_picture_count_as_one_in_intervals(tmp_path):
    """Every picture three times: the interval is that of a third of the rows, or wider."""
    table = drawn_table(90, holes=0)
    said = said_about(table, 0.8)
    thrice = np.repeat(np.arange(90), 3)
    images = tuple(f"{i}-{copy}.jpg" for i in range(90) for copy in range(3))
    for name, row in zip(images, thrice, strict=True):
        (tmp_path / name).write_bytes(b"%d" % row)
    copies = LabelTable(images, table.attributes, table.values[thrice])
    repeated = replace(
        said, images=images, probabilities=said.probabilities[thrice], errors=(None,) * 270
    )
    widths = {}
    for key, folder, data, answers in (
        ("once", None, table, said),
        ("copies", tmp_path, copies, repeated),
        ("taken for different", None, copies, repeated),
    ):
        judged = polytag.evaluate(answers, data, folder)
        red = judged.evaluation.attributes[0]
        assert red.ap.low < red.ap.value < red.ap.high
        widths[key] = {m: getattr(red, m).high - getattr(red, m).low for m in ("ap", "f1", "brier")}
        assert judged.groups == (90 if key == "copies" else None)
    for metric in ("ap", "f1", "brier"):
        assert widths["taken for different"][metric] < 0.75 * widths["copies"][metric]
        assert widths["copies"][metric] == pytest.approx(widths["once"][metric], rel=0.35)


def grouped(table: LabelTable, rows: int = 6) -> LabelTable:
    """The table with a column of numbers, the same for some rows in a row."""
    return replace(table, extra={"patient": tuple(str(i // rows) for i in range(len(table)))})


def test_rows_of_one_group_count_as_one_in_intervals():
    table = drawn_table(90, holes=0)
    thrice = np.repeat(np.arange(90), 3)
    images = tuple(f"{i}.jpg" for i in range(270))
    said = said_about(table, 0.8)
    said = replace(
        said, images=images, probabilities=said.probabilities[thrice], errors=(None,) * 270
    )
    table = grouped(LabelTable(images, table.attributes, table.values[thrice]), 3)
    each, together = (polytag.evaluate(said, table, group_by=by) for by in (None, "patient"))
    assert (each.groups, together.groups) == (None, 90)
    wide, narrow = (
        [a.ap.high - a.ap.low for a in j.evaluation.attributes] for j in (together, each)
    )
    assert sum(narrow) < 0.75 * sum(wide)
    assert numbers(each) == numbers(together)
    assert each.counting == "Each row counts for itself in intervals."
    assert together.counting == "Rows with the same patient count as one in intervals."
    assert together.to_dict()["group_by"] == "patient"
    with pytest.raises(UserError, match=r"--group-by.*did you mean 'patient'"):
        polytag.evaluate(said, table, group_by="patients")


def test_the_column_a_run_was_grouped_by_groups_what_it_is_judged_on(run, other):
    predictor = load(run)
    info = replace(
        predictor.info, recipe={**predictor.info.recipe, "split": {"group_by": "patient"}}
    )
    predictor.info = info
    table = grouped(table_of(other))
    judged = polytag.evaluate(predictor, table, other.images)
    assert (judged.groups, judged.group_by) == (5, "patient")
    assert judged.counting.endswith("count as one in intervals, and so do identical pictures.")
    without = polytag.evaluate(predictor, table_of(other), other.images)
    assert without.counting == "Identical pictures count as one in intervals."
    assert without.group_by is None and without.groups > 5


def test_a_file_of_predictions_cannot_tell_what_was_trained_on(world, run):
    judged = polytag.evaluate(
        said_about(world.table().select(range(len(world.good)))), world.table(), world.images
    )
    assert judged.seen is None
    assert "a file of predictions cannot tell" in judged.warning


# --------------------------------------------------------------------------------- the command line


@pytest.fixture
def files(tmp_path):
    table = drawn_table()
    labels = write_labels(
        tmp_path / "labels.csv", list(table.images), list(table.attributes), table.values
    )
    return csv_of(said_about(table, 0.9, cuts=((0.3, 0.7), None, None)), tmp_path / "p.csv"), labels


def test_the_command_judges_a_file_without_pictures(cli, files):
    answer = cli("evaluate", *files)
    assert answer.code == 0, answer.err
    assert "macro AP" in answer.out and "60 pictures measured, 0 skipped" in answer.out
    assert "Left unsure: " in answer.out and "(red " in answer.out
    assert all(len(line) < 80 for line in answer.out.splitlines())
    strict = cli("evaluate", *files, "--threshold", "0.5")
    assert "unsure" not in strict.out


def test_the_command_groups_by_a_column_of_numbers(cli, files, tmp_path):
    said, labels = files
    lines = labels.read_text(encoding="utf-8").splitlines()
    texts = ["patient", *(str(row % 2) for row in range(60))]
    again = tmp_path / "grouped.csv"
    again.write_text("\n".join(f"{a},{b}" for a, b in zip(lines, texts, strict=True)))
    answer = cli("evaluate", said, again, "--group-by", "patient")
    assert answer.code == 0, answer.err
    assert "Rows with the same patient count as one in intervals." in answer.out
    assert "Each row counts for itself in intervals." in cli("evaluate", *files).out


def test_the_command_takes_the_runs_own_column(cli, train, world, tmp_path):
    lines = world.labels.read_text(encoding="utf-8").splitlines()
    texts = ["patient", *(str(row % 20) for row in range(len(lines) - 1))]
    labels = tmp_path / "grouped.csv"
    labels.write_text("\n".join(f"{a},{b}" for a, b in zip(lines, texts, strict=True)))
    table = polytag.read_table(labels, extra="patient")
    by_patient = train(tmp_path / "runs", {"split.group_by": "patient"}, table=table)
    words = (world.images, "--max-skipped", "0.5", "--json")
    judged = cli("evaluate", by_patient, labels, "--images", *words)
    assert judged.code == 0, judged.err
    assert judged.json["group_by"] == "patient" and judged.json["groups"] <= 20
    plain = cli("evaluate", by_patient, world.labels, "--images", *words)
    assert plain.json["group_by"] is None


def test_gates_decide_the_exit_code(cli, files):
    good = cli("evaluate", *files, "--fail-under", "macro_ap=0.5", "--fail-under", "log_loss=2")
    assert good.code == 0 and good.out.count("gate passed") == 2
    bad = cli("evaluate", *files, "--fail-under", "macro_ap=0.5", "--fail-under", "red.ap=0.9999")
    assert bad.code == 1 and bad.out.count("gate passed") == bad.out.count("gate FAILED") == 1
    told = cli("evaluate", *files, "--json", "--fail-under", "macro_ap.low=0.9999")
    assert told.code == 1
    (gate,) = told.json["gates"]
    assert gate["name"] == "macro_ap.low" and not gate["passed"] and gate["value"] < 0.9999
    unknown = cli("evaluate", *files, "--fail-under", "macro_app=0.5")
    assert unknown.code == 2 and "did you mean 'macro_ap'" in unknown.err


def test_a_model_without_pictures_is_told_what_is_missing(cli, run, world):
    answer = cli("evaluate", run, world.labels)
    assert answer.code == 2 and "--images" in answer.err
