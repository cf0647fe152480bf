"""Rows that belong together, and splits of the user's own, from the table to the numbers."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.judged import (
    QUICK,
    TUNED,
    cells_of,
    no_drawings,
    no_export,
    parts_of,
    rows_of,
    with_columns,
    with_values,
)
from tests.tiny import one_thread

from polytag.drawing import draw_dataset
from polytag.errors import RecipeError, UserError
from polytag.runs import Run
from polytag.table import LabelTable, read_table

from .conftest import LEARNT, TINY, Answer, World


@pytest.fixture(scope="module", autouse=True)
def quick(run):  # the shared run is made first, with its drawings
    with one_thread(), no_drawings(), no_export():
        yield


@pytest.fixture
def untouched(monkeypatch) -> None:
    """Let a method that begins to train fail."""
    monkeypatch.setattr("polytag.train.METHODS", {})


def split(world: World, words: list[str], **others: str) -> LabelTable:
    """The world with a column `mine` that repeats these words; `others` by picture."""
    column = [words[row % len(words)] for row in range(len(world.names))]
    column[world.names.index("twin.png")] = column[0]
    for name, word in others.items():
        column[world.names.index(f"{name}.png")] = word
    return with_columns(world.table(), mine=column)


def column_of(run: Run, table: LabelTable) -> dict[str, str]:
    """What the table's own column says of the pictures that were used."""
    mine = dict(zip(table.images, table.extra["mine"], strict=True))
    return {image: mine[image] for image in parts_of(run)}


MINE = QUICK | {"split.given": "mine"}
WORDS = {"train": "train", "val": "choose", "test": "holdout"}

# -------------------------------------------------------------------------------- given splits


def test_folds_of_the_users_own_are_kept(world, train, tmp_path):
    table = split(world, ["7", "3", "9.0", "3"])
    run = train(tmp_path, MINE, table=table)
    numbers = {"3": "0", "7": "1", "9.0": "2"}
    assert parts_of(run) == {k: numbers[v] for k, v in column_of(run, table).items()}
    assert run.metrics["folds"] == 3 and run.metrics["judged"] == 60


@pytest.fixture(scope="module")
def tested(world, train, tmp_path_factory) -> tuple[LabelTable, Run]:
    """A probe with train, val and test of the user's own."""
    table = split(world, ["Train", "training", "val", "train", "test", "train"])
    return table, train(tmp_path_factory.mktemp("tested"), MINE, table=table)


def test_a_probe_is_judged_on_the_test_part_alone(tested):
    table, run = tested
    column = column_of(run, table)
    words = {"Train": "train", "training": "train"} | WORDS
    assert parts_of(run) == {image: words[word] for image, word in column.items()}
    test = [image for image, word in column.items() if word == "test"]
    assert cells_of(run)["image"][:, 0].tolist() == test
    assert run.metrics["judged"] == len(test)
    assert run.metrics["judged_on"] == "pictures of the given test part"
    assert run.metrics["deployed"] == "fitted on all rows but the test part"


def test_a_probe_learns_nothing_from_the_test_part(tested, train, tmp_path):
    table, before = tested
    values = np.array(table.values)
    rows = np.flatnonzero(np.array(table.extra["mine"]) == "test")
    values[rows, : len(LEARNT)] = 1 - values[rows, : len(LEARNT)]
    after = train(tmp_path, MINE, table=with_values(table, values))
    name = "weights.safetensors"
    assert (before.path / name).read_bytes() == (after.path / name).read_bytes()
    for key in ("probability_raw", "probability_calibrated", "threshold"):
        assert cells_of(before)[key].tobytes() == cells_of(after)[key].tobytes()
    for key in ("calibration", "decisions", "l2"):
        assert before.metrics[key] == after.metrics[key], key


def test_a_probe_without_a_test_part_is_judged_on_val(world, train, tmp_path):
    table = split(world, ["train", "train", "val"])
    run = train(tmp_path, MINE, table=table)
    assert set(parts_of(run).values()) == {"train", "holdout"}
    val = [image for image, word in column_of(run, table).items() if word == "val"]
    assert cells_of(run)["image"][:, 0].tolist() == val


def test_a_network_without_a_test_part_has_no_number(world, train, tmp_path):
    table = split(world, ["train", "train", "val"])
    run = train(tmp_path, TUNED | {"split.given": "mine"}, table=table, recipe="finetune")
    wanted = {k: WORDS[v] for k, v in column_of(run, table).items()}
    assert parts_of(run) == wanted
    assert run.metrics["judged"] == 0 and "No honest number" in run.metrics["note"]
    assert run.metrics["macro"]["ap"]["value"] is None
    assert len(cells_of(run)["image"]) == 0
    assert json.loads((run.path / "model.onnx").read_text())["calibration"]


def test_a_network_without_a_val_part_chooses_from_the_training_part(world, train, tmp_path):
    table = split(world, ["train", "train", "train", "test"])
    run = train(tmp_path, TUNED | {"split.given": "mine"}, table=table, recipe="finetune")
    parts, column = parts_of(run), column_of(run, table)
    assert {image for image, part in parts.items() if part == "holdout"} == {
        image for image, word in column.items() if word == "test"
    }
    assert list(parts.values()).count("choose") == pytest.approx(0.25 * 45, abs=2)


def test_the_folds_of_another_run_are_a_split(world, train, tmp_path):
    one = train(tmp_path, QUICK | {"seed": 7}, name="one")
    other = train(tmp_path, QUICK | {"split.given": str(one.path / "splits.csv")}, name="other")
    own = train(tmp_path, QUICK, name="own")
    assert parts_of(other) == parts_of(one) != parts_of(own)


def test_the_parts_of_another_run_are_a_split(tested, train, tmp_path):
    given = {"split.given": str(tested[1].path / "splits.csv")}
    run = train(tmp_path, QUICK | given)
    assert parts_of(run) == parts_of(tested[1])
    assert np.array_equal(cells_of(run)["probability_raw"], cells_of(tested[1])["probability_raw"])


@pytest.mark.parametrize(
    "words, twin, gone",
    [
        (["train", "train", "test"], "test", ["twin.png"]),
        (["0", "1", "2"], "1", ["more/00.png", "twin.png"]),
    ],
)
def test_a_row_whose_like_is_trained_on_judges_nothing(
    world, train, tmp_path, caplog, words, twin, gone
):
    table = split(world, words, twin=twin)
    run = train(tmp_path, MINE, table=table)
    column = column_of(run, table)
    judges = [image for image in column if words[0] == "0" or column[image] == "test"]
    judges = [image for image in judges if image not in gone]
    assert cells_of(run)["image"][:, 0].tolist() == judges
    assert run.metrics["judged"] == len(judges)
    said = f"{len(gone)} pictures of your split, such as {gone[0]}, have their like"
    assert said in caplog.text
    known = [entry["present"] + entry["absent"] for entry in run.metrics["attributes"][:3]]
    rows = [world.names.index(image) for image in judges]
    assert known == (~np.isnan(table.values[rows, :3])).sum(axis=0).tolist()


def test_a_network_too_is_not_judged_on_what_it_trained_on(world, train, tmp_path, caplog):
    table = split(world, ["train", "val", "test"], twin="test")
    run = train(tmp_path, TUNED | {"split.given": "mine"}, table=table, recipe="finetune")
    assert "twin.png" not in cells_of(run)["image"] and run.metrics["judged"] == 19
    assert "1 pictures of your split, such as twin.png" in caplog.text


# ------------------------------------------------------------------------------------- refused


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("key", ["split.given", "split.group_by"])
def test_a_column_that_is_not_there_is_named_with_the_nearest(world, train, tmp_path, key):
    table = with_columns(world.table(), patient=world.names, hospital=world.names)
    with pytest.raises(RecipeError) as told:
        train(tmp_path, {key: "pateint"}, table=table)
    said = str(told.value)
    assert said.startswith(f"{key}: the table has no such column beside its labels")
    assert "got 'pateint', expected patient, hospital" in said and "did you mean" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    "words, message",
    [
        (["train", "test", "spare"], "mine, row 3: a cell that is no part of a split"),
        (["train", ""], "mine, row 2: a row without a part"),
        (["train"], "a split without two sides"),
        (["0", "1"], "too few folds"),
    ],
)
def test_what_is_no_split_is_refused_before_training(world, train, tmp_path, words, message):
    with pytest.raises(UserError, match=message):
        train(tmp_path, {"split.given": "mine"}, table=split(world, words))
    assert not list(tmp_path.iterdir())


def test_the_command_line_takes_a_split_and_groups(world, tmp_path, cli: Callable[..., Answer]):
    """Of a table in a file, where a column of folds and one of names stand beside the labels."""
    rows = rows_of(world.labels)
    for number, row in enumerate(rows):
        row |= {"fold": str(number % 5), "shop": f"shop {number // 4}"}
    rows[59]["fold"] = rows[0]["fold"]
    labels = tmp_path / "labels.csv"
    with labels.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    words = ["train", labels, "--images", world.images, "--runs", tmp_path, "--json"]
    words += ["--backbone", TINY["backbone.name"], "--weights", "none"]
    words += ["--set", "preprocess.size=32", "--set", "probe.l2=1"]
    told = cli(*words, "--split", "fold", "--name", "given")
    assert told.code == 0, told.err
    fold = {row["image"]: row["fold"] for row in rows}
    assert parts_of(tmp_path / "given") == {name: fold[name] for name in world.good}
    told = cli(*words, "--group-by", "shop", "--folds", "4", "--name", "grouped")
    assert told.code == 0, told.err
    assert told.json["groups"]["by"] == "shop" and told.json["folds"] == 4


# -------------------------------------------------------------------------------------- groups


def test_rows_of_one_text_stay_in_one_fold(world, train, tmp_path):
    patients = [f"patient {row // 4}" for row in range(len(world.names))]
    table = with_columns(world.table(), patient=patients)
    run = train(tmp_path, QUICK | {"split.group_by": "patient"}, table=table)
    of = dict(zip(world.names, patients, strict=True))
    pairs = {(of[image], fold) for image, fold in parts_of(run).items()}
    assert len(pairs) == len({patient for patient, _ in pairs}) == 15
    rows = rows_of(run.path / "splits.csv")
    # Patient 0 and, by the twin, the last one are one group; but they do not look alike.
    group = {row["image"]: row["group"] for row in rows}
    assert len(set(group.values())) == 14
    assert run.metrics["groups"]["count"] == len(set(group.values()))
    assert len({row["alike"] for row in rows}) == 59


@pytest.fixture(scope="module")
def copied(tmp_path_factory) -> tuple[LabelTable, Path, dict[str, str]]:
    """Drawn garments and copies of some: each copy's name and that of what it is a copy of."""
    folder = tmp_path_factory.mktemp("copied")
    drawn = draw_dataset(folder / "drawn", count=60)
    table = read_table(drawn.labels)
    usable = [name for name in table.images if _opens(drawn.images / name)]
    copies, values = {}, []
    for number, name in enumerate(usable[5:17]):
        with Image.open(drawn.images / name) as picture:
            plain = picture.convert("RGB")
        smaller = plain.resize((plain.width // 2, plain.height // 2))
        copy = [plain, smaller, plain.transpose(Image.Transpose.FLIP_LEFT_RIGHT)][number % 3]
        copy.save(drawn.images / f"copy {number}.jpg", quality=60)
        copies[f"copy {number}.jpg"] = name
        values.append(table.values[table.images.index(name)])
    table = table.select([table.images.index(name) for name in usable])
    table = LabelTable(
        (*table.images, *copies), table.attributes, np.vstack([table.values, values])
    )
    return table, drawn.images, copies


def _opens(path: Path) -> bool:
    try:
        with Image.open(path) as picture:
            picture.load()
    except OSError:
        return False
    return True


def test_copies_saved_again_smaller_or_mirrored_stay_with_what_they_are_copies_of(
    copied, train, tmp_path
):
    table, images, copies = copied
    run = train(tmp_path, QUICK, table=table, images=images)
    rows = {row["image"]: row for row in rows_of(run.path / "splits.csv")}
    for copy, name in copies.items():
        assert rows[copy]["content_hash"] != rows[name]["content_hash"]
        for column in ("alike", "group", "fold"):
            assert rows[copy][column] == rows[name][column], copy
    groups = run.metrics["groups"]
    assert groups["alike"]["groups"] >= len(copies) and groups["by"] is None
    # Pictures that are no copies are hardly ever taken for some.
    assert groups["count"] >= len(rows) - len(copies) - 3
