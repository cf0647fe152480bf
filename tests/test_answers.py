"""Files of predictions: what polytag wrote comes back as it was, and so does anybody's table."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polytag.answers import Answers, read_answers
from polytag.errors import RecipeError, UserError
from polytag.names import clean_name
from polytag.predictions import WRITERS, Predictions, write_parquet

NA = float("nan")
NAMES = ("red", "striped")


def said(
    probabilities: list[list[float]],
    images: tuple[str, ...] = ("a.jpg", "b.jpg", "c.jpg"),
    attributes: tuple[str, ...] = NAMES,
    **options: object,
) -> Predictions:
    errors = tuple("broken" if np.isnan(row).all() else None for row in probabilities)
    return Predictions(
        images[: len(probabilities)],
        attributes,
        np.array(probabilities, np.float32),
        np.full(len(attributes), 0.4),
        errors,
        **options,
    )


def saved(path: Path, predictions: Predictions) -> Path:
    if path.suffix == ".parquet":
        write_parquet([predictions], path)
        return path
    with path.open("w", encoding="utf-8", newline="") as file:
        WRITERS[path.suffix[1:]]([predictions], file)
    return path


def wrote(folder: Path, text: str, name: str = "said.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


# ------------------------------------------------------------------------------ what polytag writes


@pytest.mark.parametrize("suffix", ["csv", "parquet", "json", "jsonl"])
def test_what_polytag_wrote_is_read_back(tmp_path, suffix):
    given_ = said([[0.9, 0.41], [NA, NA], [0.25, 0.399]])
    back = read_answers(saved(tmp_path / f"p.{suffix}", given_), ["striped", "red"])
    assert back.images == given_.images
    assert back.attributes == ("striped", "red")  # in the order they are asked for
    np.testing.assert_allclose(back.probabilities, given_.probabilities[:, ::-1], atol=5e-7)
    assert back.decisions.tolist() == given_.decisions[:, ::-1].tolist()
    assert back.errors == (None, "broken", None)
    assert np.isnan(back.thresholds).all()


def test_unsure_travels_in_a_file_and_in_memory(tmp_path):
    given_ = said([[0.9, 0.5], [0.1, 0.1], [0.5, 0.9]], cuts=((0.2, 0.8), None))
    assert given_.decisions[:, 0].tolist() == ["present", "absent", "unsure"]
    back = read_answers(saved(tmp_path / "p.csv", given_), NAMES)
    assert back.decisions.tolist() == given_.decisions.tolist()
    memory = Answers.of(given_)
    assert memory.decisions[:, 0].tolist() == ["present", "absent", "unsure"]
    assert memory.decisions[:, 1].tolist() == ["", "", ""]  # its threshold decides
    assert memory.thresholds.tolist() == [0.4, 0.4]


PARTS = st.sampled_from(["=1+1", "-x", "+y", "@z", "é ö", "a,b", 'q"q', "a", "b", "c.jpg"])


@given(images=st.lists(PARTS, min_size=1, max_size=4, unique=True), attribute=PARTS)
@settings(max_examples=60)
def test_names_that_a_spreadsheet_would_run_come_back_as_they_were(
    tmp_path_factory, images, attribute
):
    given_ = said([[0.25]] * len(images), tuple(images), (attribute,))
    path = saved(tmp_path_factory.mktemp("p") / "p.csv", given_)
    back = read_answers(path, [attribute])
    assert back.images == tuple(clean_name(name) for name in images)
    assert back.attributes == (attribute,)


def test_an_apostrophe_of_a_parquet_name_is_its_own(tmp_path):
    path = saved(tmp_path / "p.parquet", said([[0.5, 0.5]], ("'=a.jpg",)))
    assert read_answers(path, NAMES).images == ("'=a.jpg",)


# ------------------------------------------------------------------------------- what others write


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("said.csv", "File Name,camera,striped,red\na.jpg,left,0.2,0.75\nb.jpg,right,,NA\n"),
        ("said.tsv", "photo\tcamera\tstriped\tred\na.jpg\tx\t0.2\t.75\nb.jpg\tx\tnan\tnull\n"),
        ("said.txt", "image;camera;striped;red\na.jpg;x;2e-1;0.75\nb.jpg;x;;\n"),
        (
            "said.jsonl",
            '{"image": "a.jpg", "camera": 3, "striped": 0.2, "red": 0.75}\n'
            '{"red": null, "image": "b.jpg"}\n',
        ),
    ],
)
def test_a_foreign_table_needs_an_image_column_and_shared_attributes(tmp_path, name, text):
    back = read_answers(wrote(tmp_path, text, name), ["red", "striped", "hat"])
    assert back.images == ("a.jpg", "b.jpg")
    assert back.attributes == NAMES and back.others == ("camera",)
    np.testing.assert_array_equal(back.probabilities, [[0.75, 0.2], [NA, NA]])
    assert back.thresholds.tolist() == [0.5, 0.5] and not back.decisions.astype(bool).any()
    assert back.errors == (None, "no probability")


def test_an_attribute_called_like_a_decision_column_is_an_attribute(tmp_path):
    back = read_answers(wrote(tmp_path, "image,a_decision\nx.jpg,0.3\n"), ["a_decision"])
    assert back.probabilities.tolist() == [[0.3]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "image,red\na.jpg,0.1\nb.jpg,2.31\n",
            r"said.csv:3: column 'red': a probability outside \[0, 1\]; got '2.31', expected a "
            r"number from 0 to 1, or nothing; if it is a logit",
        ),
        ("image,red\na.jpg,-0.001\n", r"said.csv:2: .*outside \[0, 1\]; got '-0.001'"),
        ("image,red\na.jpg,inf\n", "outside"),
        ("image,red\na.jpg,high\n", r"said.csv:2: column 'red': not a probability; got 'high'"),
        ("image,red\na.jpg,.1\n./a.jpg,.1\n", r"said.csv:3: image 'a.jpg' stands twice; .*csv:2"),
        ("camera,red\nx,0.1\n", "no column names the images; got 'camera', 'red'"),
        ("a.jpg,0.1\nb.jpg,0.2\n", "no column names the images; got no header"),
        ("image,green\na.jpg,0.1\n", "share no attribute; got green, expected .*red, striped"),
        ("image\na.jpg\n", "share no attribute; got the image column alone"),
        ("image,red,red\na.jpg,0.1,0.2\n", "two columns are called 'red'"),
        ("image,red,red_decision\na.jpg,0.9,yes\n", "'red_decision': not a decision; got 'yes'"),
        ("image,red,red_decision\na.jpg,0.9,\nb.jpg,.1,absent\n", "csv:2: .*not a decision"),
        ("image,red,red_decision\na.jpg,,absent\n", "a decision without a probability"),
        ("image,red\n,0.5\n", "said.csv:2: the image name is empty"),
    ],
)
def test_what_is_wrong_in_a_table_is_said_with_its_place(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        read_answers(wrote(tmp_path, text), NAMES)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"image": "a.jpg", "red": 0.5}\n{"image": "b.jpg", "red": 7}\n', "jsonl:2: column 'red'"),
        ('{"image": "a.jpg", "red": [1]}', "jsonl:1: column 'red': not a probability"),
        ('{"image": "a.jpg", "red": true}', "not a probability; got 'True'"),
        ('{"red": 0.5}', "no column names the images; got 'red'"),
        ('{"image": "a.jpg", "red": 0.5', "jsonl:1: not JSON"),
        ("[1, 2]", "jsonl:1: not a record; got '1'"),
        ("7", "jsonl:1: not a record"),
        (
            '[{"image": "a.jpg", "probabilities": {"red": 0.5}, "decisions": {"red": "no"}}]',
            "'red_decision': not a decision",
        ),
    ],
)
def test_what_is_wrong_in_json_is_said_with_its_place(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        read_answers(wrote(tmp_path, text, "said.jsonl"), NAMES)


def test_a_file_that_is_not_there_is_a_users_error(tmp_path):
    for name in ("no.csv", "no.jsonl"):
        with pytest.raises(UserError, match=name):
            read_answers(tmp_path / name, NAMES)


# ----------------------------------------------------------------------------- matching, thresholds


def test_one_folder_in_front_of_all_names_is_passed_over():
    images = ("/data/new/day1/a.jpg", "/data/new/day2/a.jpg", "elsewhere/b.jpg")
    answers = Answers.of(said([[0.1, 0.2]] * 3, images))
    assert answers.rows_of(["day2/a.jpg", "day1/a.jpg", "b.jpg"]).tolist() == [1, 0, -1]
    assert answers.rows_of(["a.jpg"]).tolist() == [0]
    assert answers.rows_of(["x.jpg"]).tolist() == [-1]


def test_the_name_as_it_is_wins_over_one_with_a_folder_taken_off():
    answers = Answers.of(said([[0.1, 0.2]] * 2, ("old/a.jpg", "a.jpg")))
    assert answers.rows_of(["a.jpg"]).tolist() == [1]


def test_thresholds_that_are_told_win_over_decisions_in_the_file(tmp_path):
    text = "image,red,red_decision,striped,striped_decision\na.jpg,0.9,absent,0.1,present\n"
    answers = read_answers(wrote(tmp_path, text), NAMES)
    changed = answers.with_thresholds(each={"red": 0.7})
    assert changed.thresholds.tolist() == [0.7, pytest.approx(NA, nan_ok=True)]
    assert changed.decisions.tolist() == [["", "present"]]
    assert answers.decisions.tolist() == [["absent", "present"]]
    both = answers.with_thresholds(0.2, {"red": 0.7})
    assert both.thresholds.tolist() == [0.7, 0.2] and not both.decisions.astype(bool).any()
    with pytest.raises(RecipeError, match="did you mean 'red'"):
        answers.with_thresholds(each={"rad": 0.5})
    with pytest.raises(RecipeError, match="out of range"):
        answers.with_thresholds(1.0)


def test_a_long_json_array_has_a_row_for_every_record(tmp_path):
    records = [{"image": f"{i}.jpg", "red": i / 100} for i in range(100)]
    back = read_answers(wrote(tmp_path, json.dumps(records), "p.json"), ["red"])
    assert back.probabilities[:, 0].tolist() == [i / 100 for i in range(100)]
