"""What a model said, in every form: for people, programs and spreadsheets."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from polytag.errors import UserError
from polytag.predictions import (
    FORMATS,
    WRITERS,
    Predictions,
    concatenate,
    write_csv,
    write_json,
    write_jsonl,
    write_parquet,
    write_text,
)

NA = float("nan")
ATTRIBUTES = ("black", "necktie", "red/green")
BROKEN = "b.jpg: cannot decode the JPEG file"


def predictions(
    probabilities: list[list[float]],
    names: list[str] | None = None,
    attributes: tuple[str, ...] = ATTRIBUTES,
    errors: dict[int, str] | None = None,
    threshold: float = 0.5,
) -> Predictions:
    count = len(probabilities)
    return Predictions(
        images=tuple(names or [f"image_{i}.jpg" for i in range(count)]),
        attributes=attributes,
        probabilities=np.array(probabilities, np.float32).reshape(count, len(attributes)),
        thresholds=np.full(len(attributes), threshold),
        errors=tuple((errors or {}).get(i) for i in range(count)),
    )


def two_chunks() -> list[Predictions]:
    """Three pictures, the second of them broken."""
    first = predictions([[0.914, 0.031, 0.5], [NA] * 3], ["a.jpg", "b.jpg"], errors={1: BROKEN})
    return [first, predictions([[0.1, 0.2, 0.3]], ["c.jpg"])]


def written(write: Callable[..., None], chunks: list[Predictions]) -> str:
    out = io.StringIO()
    write(iter(chunks), out)
    return out.getvalue()


def rows(chunks: list[Predictions]) -> list[list[str]]:
    return list(csv.reader(io.StringIO(written(write_csv, chunks))))


# ------------------------------------------------------------------------------------- decisions


def test_a_probability_at_the_threshold_is_present():
    said = predictions([[0.5, 0.49999, 0.75]])
    assert said.decisions.tolist() == [["present", "absent", "present"]]


def test_thresholds_are_each_attributes_own():
    said = predictions([[0.4, 0.4, 0.4]])
    said = Predictions(
        said.images, said.attributes, said.probabilities, np.array([0.3, 0.5, 0.4]), said.errors
    )
    assert said.decisions.tolist()[0][:2] == ["present", "absent"]


def test_a_picture_that_failed_is_neither_present_nor_absent():
    assert two_chunks()[0].decisions[1].tolist() == ["", "", ""]


def test_chunks_join_to_one_in_order():
    joined = concatenate(two_chunks())
    assert joined.images == ("a.jpg", "b.jpg", "c.jpg") and len(joined) == 3
    assert joined.errors == (None, BROKEN, None)
    np.testing.assert_array_equal(joined.probabilities[2], np.float32([0.1, 0.2, 0.3]))
    with pytest.raises(ValueError, match="no predictions"):
        concatenate([])


# ------------------------------------------------------------------------------------------- text


def test_text_is_laid_out_as_promised():
    text = written(write_text, [predictions([[0.914, 0.031, 0.007]])])
    assert text.splitlines() == [
        "image_0.jpg",
        "  ✓ black      present   91.4 %   (threshold 50 %)",
        "  ✗ necktie    absent     3.1 %   (threshold 50 %)",
        "  ✗ red/green  absent     0.7 %   (threshold 50 %)",
        "  attributes present: black",
        "",
    ]


def test_text_names_what_is_present_first_and_the_surest_first():
    text = written(write_text, [predictions([[0.6, 0.3, 0.99]])])
    assert [line.split()[1] for line in text.splitlines()[1:4]] == ["red/green", "black", "necktie"]
    assert "attributes present: red/green, black\n" in text


def test_text_says_when_nothing_is_present():
    assert "  attributes present: none\n" in written(write_text, [predictions([[0.1, 0.2, 0.3]])])


@pytest.mark.parametrize(
    ("threshold", "shown"), [(0.5, "50 %"), (0.005, "0.5 %"), (0.9, "90 %"), (1 / 3, "33.3 %")]
)
def test_text_shows_the_threshold_that_decided(threshold, shown):
    text = written(write_text, [predictions([[0.7, 0.2, 0.1]], threshold=threshold)])
    assert text.count(f"(threshold {shown})") == 3


CUT = ((0.2, 0.8), (None, 0.6), (0.3, None))


def test_between_its_cuts_an_attribute_is_unsure_and_what_is_never_said_is_not_said():
    p = [[0.8, 0.6, 0.3], [0.79, 0.59, 0.29], [0.2, 0.0, 1.0], [0.19, 1.0, 0.0]]
    answer = replace(predictions(p), cuts=CUT)
    assert answer.decisions.tolist() == [
        ["present", "present", "unsure"],
        ["unsure", "unsure", "absent"],
        ["unsure", "unsure", "unsure"],
        ["absent", "present", "absent"],
    ]
    some = replace(predictions([[0.5, 0.5, 0.5]]), cuts=(None, (0.4, 0.6), None))
    assert some.decisions.tolist() == [["present", "unsure", "present"]]
    failed = replace(predictions([[NA, NA, NA]], errors={0: "broken"}), cuts=CUT)
    assert failed.decisions.tolist() == [["", "", ""]]


def test_a_file_of_unsure_answers_says_so_in_every_format(tmp_path):
    answer = replace(predictions([[0.9, 0.5, 0.1]]), cuts=CUT)
    words = ["present", "unsure", "absent"]
    assert next(iter(answer.records()))["decisions"] == dict(zip(ATTRIBUTES, words, strict=True))
    [row] = csv.DictReader(io.StringIO(written(write_csv, [answer])))
    write_parquet([answer], tmp_path / "p.parquet")
    table = pl.read_parquet(tmp_path / "p.parquet")
    for name, word in zip(ATTRIBUTES, words, strict=True):
        assert row[f"{name}_decision"] == word and table[f"{name}_decision"].to_list() == [word]


def test_text_puts_what_is_unsure_between_present_and_absent_and_says_by_what():
    text = written(write_text, [replace(predictions([[0.25, 0.7, 0.1]]), cuts=CUT)])
    assert text.splitlines() == [
        "image_0.jpg",
        "  ✓ necktie    present   70.0 %   (never absent, present from 60 %)",
        "  ? black      unsure    25.0 %   (absent below 20 %, present from 80 %)",
        "  ✗ red/green  absent    10.0 %   (absent below 30 %, never present)",
        "  attributes present: necktie",
        "",
    ]


def test_text_stars_what_training_found_no_evidence_for_and_says_once_what_that_means():
    verdicts = {
        "black": "learnable: better than chance, adjusted p 0.003",
        "necktie": "no evidence that the pictures show it: adjusted p 0.8",
        "red/green": "too few to tell: 3 present",
    }
    answer = replace(predictions([[0.914, 0.031, 0.007]]), verdicts=verdicts)
    text = written(write_text, [answer, answer])
    picture = [
        "image_0.jpg",
        "  ✓ black       present   91.4 %   (threshold 50 %)",
        "  ✗ necktie*    absent     3.1 %   (threshold 50 %)",
        "  ✗ red/green*  absent     0.7 %   (threshold 50 %)",
        "  attributes present: black",
        "",
    ]
    note = "* training could not show that pictures carry this: the answer may be a guess"
    assert text.splitlines() == [*picture, *picture, note]
    sure = replace(answer, verdicts={"black": verdicts["black"]})
    assert "*" not in written(write_text, [sure]) and note not in written(write_text, [sure])


def test_joined_chunks_keep_cuts_and_verdicts():
    answer = replace(
        predictions([[0.9, 0.5, 0.1]]), cuts=CUT, verdicts={"black": "too few to tell"}
    )
    joined = concatenate([answer, answer])
    assert (joined.cuts, joined.verdicts) == (answer.cuts, answer.verdicts)
    assert joined.decisions.tolist() == answer.decisions.tolist() * 2


def test_text_says_what_was_wrong_with_a_picture_and_names_it_once():
    text = written(write_text, two_chunks())
    assert "b.jpg\n  ! not read: cannot decode the JPEG file\n\n" in text
    assert text.count("b.jpg") == 1
    assert [line for line in text.splitlines() if line.endswith(".jpg")] == [
        "a.jpg",
        "b.jpg",
        "c.jpg",
    ]


def test_text_keeps_every_name_to_its_line_and_off_the_terminals_controls():
    names = ["a\x1b[31m.jpg", "b\nimage_9.jpg", "c\r.jpg"]
    text = written(write_text, [predictions([[0.9, 0.1, 0.2]] * 3, names)])
    assert "\x1b" not in text and "\r" not in text
    assert len(text.splitlines()) == 3 * 6


# ------------------------------------------------------------------------------------------- JSON


def test_a_record_holds_what_the_contract_says():
    good, failed = list(two_chunks()[0].records())
    assert good == {
        "image": "a.jpg",
        "probabilities": {"black": 0.914, "necktie": 0.031, "red/green": 0.5},
        "decisions": {"black": "present", "necktie": "absent", "red/green": "present"},
        "error": None,
    }
    assert failed == {"image": "b.jpg", "probabilities": {}, "decisions": {}, "error": BROKEN}


def test_json_is_one_array_and_json_lines_are_one_record_a_line():
    records = [record for chunk in two_chunks() for record in chunk.records()]
    assert json.loads(written(write_json, two_chunks())) == records
    lines = written(write_jsonl, two_chunks()).splitlines()
    assert [json.loads(line) for line in lines] == records


@pytest.mark.parametrize("chunks", [[], [predictions([])], [predictions([])] * 2])
def test_json_of_nothing_is_an_empty_array(chunks):
    assert json.loads(written(write_json, chunks)) == []
    assert written(write_jsonl, chunks) == ""


def test_json_keeps_names_and_lines_whole_whatever_stands_in_them():
    name = "größe\n漢\u2028\udcff.jpg"  # the last one: a byte that is no UTF-8
    (line,) = written(write_jsonl, [predictions([[0.5, 0.5, 0.5]], [name])]).splitlines()
    assert json.loads(line)["image"] == name
    assert json.loads(written(write_json, [predictions([[0.5] * 3], [name])]))[0]["image"] == name


@settings(deadline=None, max_examples=50)
@given(values=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=8))
def test_a_probability_in_json_is_the_models_to_a_millionth_and_decides_the_same(values):
    said = predictions([[value] for value in values], attributes=("a",))
    for record, value in zip(said.records(), values, strict=True):
        assert abs(record["probabilities"]["a"] - value) <= 1e-6
        assert (record["decisions"]["a"] == "present") == (value >= 0.5)


# -------------------------------------------------------------------------------------------- CSV


def test_csv_is_wide_with_one_header_and_empty_cells_for_what_failed():
    assert rows(two_chunks()) == [
        ["image", *(f"{a}{end}" for a in ATTRIBUTES for end in ("", "_decision")), "error"],
        ["a.jpg", "0.914000", "present", "0.031000", "absent", "0.500000", "present", ""],
        ["b.jpg", "", "", "", "", "", "", BROKEN],
        ["c.jpg", "0.100000", "absent", "0.200000", "absent", "0.300000", "absent", ""],
    ]


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n"])
def test_no_cell_of_a_csv_can_be_a_formula(start):
    name = f"{start}cmd|' /C calc'!A0"
    said = predictions([[0.5], [NA]], [name, "b.jpg"], (name,), {1: name})
    table = rows([said])
    cells = [cell for row in table for cell in row]
    assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) for cell in cells)
    assert table[0][1:3] == [f"'{name}", f"'{name}_decision"]
    assert table[1][0] == table[2][3] == f"'{name}"


def test_csv_quotes_what_must_be_quoted():
    name = 'a, "b"\nc.jpg'
    assert rows([predictions([[0.5]], [name], ("x,y",))])[1][0] == name


@settings(deadline=None, max_examples=50)
@example(names=["a\rb.jpg", "c\r\nd.jpg", "e\nf.jpg"])
@given(names=st.lists(st.text(st.characters(codec="utf-8"), min_size=1), min_size=1, max_size=4))
def test_every_csv_row_has_all_its_cells_and_its_name(names):
    table = rows([predictions([[0.5, 0.1, 0.9]] * len(names), names)])
    assert {len(row) for row in table} == {8}
    for row, name in zip(table[1:], names, strict=True):
        assert row[0].removeprefix("'") == name.removeprefix("'") or "\0" in name


# ---------------------------------------------------------------------------------------- Parquet


def test_parquet_holds_the_same_with_its_types_and_null_for_what_failed(tmp_path):
    chunks = two_chunks()
    write_parquet(chunks, tmp_path / "p.parquet")
    table = pl.read_parquet(tmp_path / "p.parquet")
    assert table.columns == rows(chunks)[0]
    assert table["black"].dtype == pl.Float32 and table["black_decision"].dtype == pl.String
    assert table["image"].to_list() == ["a.jpg", "b.jpg", "c.jpg"]
    assert table["black"].to_list() == [*np.float32([0.914]), None, np.float32(0.1)]
    assert table["red/green_decision"].to_list() == ["present", None, "absent"]
    assert table["error"].to_list() == [None, BROKEN, None]


def test_parquet_keeps_names_as_they_are(tmp_path):
    write_parquet([predictions([[0.5]], ["=1+1.jpg"], ("-x",))], tmp_path / "p.parquet")
    table = pl.read_parquet(tmp_path / "p.parquet")
    assert table.columns == ["image", "-x", "-x_decision", "error"]
    assert table["image"][0] == "=1+1.jpg"


def test_parquet_of_pictures_that_all_failed_or_none_failed_has_the_same_columns(tmp_path):
    for name, chunk in {
        "bad": predictions([[NA] * 3], errors={0: "x"}),
        "good": predictions([[0.1] * 3]),
    }.items():
        write_parquet([chunk], tmp_path / name)
    bad, good = (pl.read_parquet(tmp_path / name) for name in ("bad", "good"))
    assert bad.schema == good.schema


# ------------------------------------------------------------------------------------ two of a name


@pytest.mark.parametrize(
    "attributes", [("a", "a_decision"), ("image",), ("error", "b"), ("x_decision", "x")]
)
def test_a_wide_table_with_two_columns_of_one_name_is_refused(attributes, tmp_path):
    said = predictions([[0.5] * len(attributes)], attributes=attributes)
    with pytest.raises(UserError, match=r"two columns of one name.*--format jsonl"):
        written(write_csv, [said])
    with pytest.raises(UserError, match="two columns of one name"):
        write_parquet([said], tmp_path / "p.parquet")
    (record,) = map(json.loads, written(write_jsonl, [said]).splitlines())
    assert set(record["probabilities"]) == set(attributes)


def test_every_format_has_its_writer():
    assert set(FORMATS) == {"text", "json", "jsonl", "csv", "parquet"}
    assert set(WRITERS) == set(FORMATS) - {"parquet"}
