"""Label tables: every rule of reading, with the words of its error."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polytag.errors import TableError, UserError
from polytag.names import clean_name
from polytag.readers.tokens import TOKENS
from polytag.table import LabelTable, TokenUse, read_table

from .strategies import HOLES, NA, holed_values, label_tables

DATA = Path(os.environ.get("POLYTAG_DATA", Path(__file__).parents[2] / "shared" / "data"))
LABELS = "1/0, true/false, yes/no, present/absent, or NA/NaN/null/empty for not known"


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Write a file in an empty folder and read it; errors then say just the file's name."""
    monkeypatch.chdir(tmp_path)

    def write_and_read(name, content, **arguments):
        data = content if isinstance(content, bytes) else content.encode()
        Path(name).write_bytes(data)
        return read_table(name, **arguments)

    return write_and_read


@pytest.fixture
def refused(read):
    """Return the text of the error that reading raises."""

    def text(name, content, **arguments):
        with pytest.raises(TableError) as caught:
            read(name, content, **arguments)
        return str(caught.value)

    return text


def parquet(columns):
    file = io.BytesIO()
    pl.DataFrame(columns).write_parquet(file)
    return file.getvalue()


def cells(table):
    """Values as a list of lists with None for NaN, which compares equal to itself."""
    return [[None if value != value else int(value) for value in row] for row in table.values]


SAME = [[1, None, 0], [0, 1, None]]
IMAGES = ("my photo.jpg", "b.jpg")
FORMATS = {
    "labels.txt": 'image black red blue\n"my photo.jpg" 1 NA 0\nb.jpg 0 1 NA\n',
    "labels.csv": "image,black,red,blue\nmy photo.jpg,1,,0\nb.jpg,no,YES,n/a\n",
    "semicolon.csv": 'image;"black";red;blue\nmy photo.jpg;1.0;NaN;0.0\nb.jpg;0;1;null\n',
    "labels.tsv": "image\tblack\tred\tblue\nmy photo.jpg\t1\t\t0\nb.jpg\t0\t1\t\n",
    "labels.jsonl": '{"image": "my photo.jpg", "black": true, "red": null, "blue": 0}\n'
    '{"image": "b.jpg", "black": "absent", "red": 1.0}\n',
    "labels.parquet": parquet(
        {"image": IMAGES, "black": [True, False], "red": [None, 1.0], "blue": ["0", "na"]}
    ),
}


# -- every kind of file -----------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_table_reads_the_same_from_every_format(read, name):
    table = read(name, FORMATS[name])
    assert (table.images, table.attributes) == (IMAGES, ("black", "red", "blue"))
    assert cells(table) == SAME
    assert table.values.dtype == np.float32
    assert table.source == name
    assert table.extra == {}


@pytest.mark.parametrize("name", [name for name in FORMATS if "parquet" not in name])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_byte_order_marks_and_line_endings_change_nothing(read, name, encoding, ending):
    text = FORMATS[name].replace("\n", ending).encode(encoding)
    table = read(name, text)
    assert (table.images, cells(table)) == (IMAGES, SAME)
    first = 1 if "jsonl" in name else 2
    assert table.lines == (first, first + 1)


@pytest.mark.parametrize("name", FORMATS)
def test_the_kind_of_a_file_without_a_telling_suffix_is_sniffed(read, name):
    table = read("labels.data", FORMATS[name])
    assert (table.images, cells(table)) == (IMAGES, SAME)


@pytest.mark.parametrize(
    "text",
    [
        "a.jpg,1,0,NA\nb.jpg,0,1,1",
        "a.jpg, 1, 0, NA\nb.jpg, 0, 1, 1",
        "a.jpg;1;0;\nb.jpg;0;1;1",
        "a.jpg\t1\t0\t\nb.jpg\t0\t1\t1",
        "a.jpg\t1 0\tNA\nb.jpg 0\t1 1",
        "a.jpg 1 0\tNA\nb.jpg 0 1\t1",
        "a.jpg 1 0 NA\nb.jpg 0 1 1",
        "a.jpg 1 0 NA\t\nb.jpg 0 1 1\t",
    ],
)
def test_a_txt_file_may_be_delimited_or_spaced(read, text):
    table = read("labels.txt", text)
    assert table.images == ("a.jpg", "b.jpg")
    assert cells(table) == [[1, 0, None], [0, 1, 1]]


def test_commas_in_names_do_not_make_a_spaced_file_delimited(read):
    table = read("labels.txt", "Doe, Jane.jpg 1 0\nRoe, Jim.jpg 0 NA\n")
    assert table.images == ("Doe, Jane.jpg", "Roe, Jim.jpg")


def test_tabs_at_the_ends_of_lines_do_not_make_a_spaced_file_delimited(read):
    assert cells(read("labels.txt", "a.jpg 1\t\nb.jpg 0\t\n")) == [[1], [0]]


def test_tabs_divide_a_txt_file_whose_words_hold_spaces(read):
    table = read("labels.txt", "image\tof what\tblack\nmy a\ta red one\t1\nb\tgreen\t0\n")
    assert (table.images, table.attributes) == (("my a", "b"), ("black",))


def test_a_delimited_txt_file_may_end_with_a_column_of_words(read):
    table = read("labels.txt", "image,black,split\na.jpg,1,train\nb.jpg,0,test\n")
    assert table.attributes == ("black",)
    assert table.extra == {"split": ("train", "test")}


def test_the_delimiter_is_the_one_that_cuts_evenly_not_the_commonest(read):
    text = "image;caption, long, one;black\na.jpg;red;1\nb.jpg;a, b, c;0\n"
    assert read("labels.csv", text).extra == {"caption, long, one": ("red", "a, b, c")}


# -- whitespace text --------------------------------------------------------------------------


def test_spaces_tabs_blank_lines_and_comments_are_forgiven_and_comments_counted(read):
    table = read("l.txt", "# by hand\n\n  a.jpg \t1   NA  \n   \n# more\nb.jpg 0\t 1\t\n\n")
    assert (table.images, table.lines) == (("a.jpg", "b.jpg"), (3, 6))
    assert cells(table) == [[1, None], [0, 1]]
    assert "2 comments skipped: lines 1, 5" in table.notes


def test_without_a_header_attributes_are_numbered_or_named_by_the_caller(read):
    text = "a.jpg 1 NA\nb.jpg 0 1\n"
    assert read("l.txt", text).attributes == ("Attr1", "Attr2")
    assert read("l.txt", text, attributes=["black", "red"]).attributes == ("black", "red")
    assert read("l.txt", text, attributes="black, red").attributes == ("black", "red")
    assert read("l.txt", text).notes == (
        "no header: the image names stand first, the columns are called Attr1, Attr2",
        "label columns: Attr1, Attr2",
    )


def test_the_callers_names_must_be_as_many_as_the_columns(refused):
    assert refused("l.txt", "a.jpg 1 NA\n", attributes="black") == (
        "l.txt: the attribute names do not fit a table without a header; got 1 name, "
        "expected 2, one for each column after the image's; name every column"
    )


@pytest.mark.parametrize(
    "header", ["image black red", "photo black red", "black red", '"Image Name" black "red"']
)
def test_a_header_may_leave_out_the_image_columns_name(read, header):
    table = read("l.txt", f"{header}\nmy photo.jpg 1 NA\nb.jpg 0 1\n")
    assert table.attributes == ("black", "red")
    assert table.images == IMAGES


def test_a_header_that_fits_neither_way_is_refused(refused):
    assert refused("l.txt", "black red blue green\na.jpg 1 0\nb.jpg 0 1\n") == (
        "l.txt:1: the header does not fit the lines below it; got 4 names, expected 2, or 3 with "
        "the image column's; begin the header with 'image' and name every column after it"
    )


def test_attributes_may_be_called_by_numbers_under_a_known_image_column(read):
    assert read("l.txt", "image 1 2 3\na.jpg 1 0 1\n").attributes == ("1", "2", "3")


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("my holiday photo.jpg 1 0", "my holiday photo.jpg"),
        ("img 7.JPG 1 0", "img 7.JPG"),
        ('"1 0 1" 1 0', "1 0 1"),
        ('"a ""b"".jpg" 1 0', 'a "b".jpg'),
        ('5" pipe.jpg 1 0', '5" pipe.jpg'),
        ('"a.jpg" "1" 0', "a.jpg"),
        ("000123 1 0", "000123"),
        ("two words 1 0", "two words"),
        ("2024_01 1 0", "2024_01"),
        ("a.jpg/b 1 0", "a.jpg/b"),
    ],
)
def test_names_end_where_the_values_begin(read, line, name):
    table = read("l.txt", f"{line}\nb.jpg 0 1\nc.jpg 0 1\n")
    assert table.images[0] == name
    assert cells(table)[0] == [1, 0]


def test_a_wrong_number_of_values_names_line_got_and_expected(refused):
    text = "a.jpg 1 0 NA\nb.jpg 1 0 1\nmy photo.jpg 1 0\nd.jpg 1 1 0 0\n"
    assert refused("l.txt", text) == (
        "l.txt:3: wrong number of values (and 1 more such line); got 2 after 'my photo.jpg', "
        'expected 3; write NA for what is not known; a name with spaces may stand in "quotes"'
    )


def test_the_headers_count_rules_where_it_names_the_image_column(refused):
    text = "image black red\na.jpg 1 0 1\nb.jpg 1 0 1\n"
    assert "l.txt:2: wrong number of values (and 1 more such line); got 3 " in refused(
        "l.txt", text
    )


def test_an_unknown_word_in_a_spaced_line_is_a_bad_cell_not_a_part_of_the_name(refused):
    for name in ("b.jpg", "b"):
        text = f"a.jpg 1 0 NA\n{name} maybe 0 1\nc.jpg 1 0 1\nd.jpg 1 1 1\n"
        assert "l.txt:2: column 'Attr1': 1 cell of 4 cannot be read" in refused("l.txt", text)


def test_a_word_column_in_spaced_text_is_kept_as_extra(read):
    table = read("l.txt", "a.jpg train 1 0\nb.jpg test 0 NA\n")
    assert table.images == ("a.jpg", "b.jpg")
    assert (table.attributes, table.extra) == (("Attr2", "Attr3"), {"Attr1": ("train", "test")})
    table = read("l.txt", "image black split\nid_1 1 train\nid_2 0 test\n")
    assert (table.images, table.extra) == (("id_1", "id_2"), {"split": ("train", "test")})


def test_lines_without_labels_are_refused(refused):
    assert refused("l.txt", "a.jpg\nb.jpg\n") == (
        "l.txt:1: no label at the end of the line; got 'a.jpg', expected a file name, then values "
        "such as 1, 0 or NA; write the image names first and the labels after them"
    )


def test_an_open_quote_is_refused(refused):
    assert refused("l.txt", 'a.jpg 1\n"b.jpg 0\n').startswith(
        "l.txt:2: the quote around the name is not closed; got"
    )


def test_words_the_caller_maps_count_as_values_in_spaced_text(read):
    table = read("l.txt", "a b pos neg\nc d unk pos\n", values="pos=present,neg=absent,unk=na")
    assert table.images == ("a b", "c d")
    assert cells(table) == [[1, 0], [None, 1]]


# -- delimited text ---------------------------------------------------------------------------


def test_a_csv_without_a_header_is_read_too(read):
    table = read("l.csv", "a.jpg,1,NA\nb.jpg,0,1\n")
    assert (table.attributes, table.lines) == (("Attr1", "Attr2"), (1, 2))


def test_a_wrong_number_of_fields_names_line_got_and_expected(refused):
    text = "image,black,red\na.jpg,1,0\nb.jpg,1\nc.jpg,1,0,1\n"
    assert refused("l.csv", text) == (
        "l.csv:3: wrong number of fields (and 1 more such line); got 2, expected 3, divided by "
        "','; put a cell that holds the delimiter in \"quotes\", leave unknown cells empty"
    )
    assert "expected 3, divided by a tab" in refused("l.tsv", text.replace(",", "\t"))


def test_quoted_cells_may_hold_delimiters_quotes_lines_and_comment_signs(read):
    text = 'image,note,black\n"a, ""b"".jpg","one\n# two, 3",1\n# a comment, "open\nc.jpg,x,0\n'
    table = read("l.csv", text)
    assert table.images == ('a, "b".jpg', "c.jpg")
    assert table.extra == {"note": ("one\n# two, 3", "x")}
    assert table.lines == (2, 5)
    assert "1 comment skipped: line 4" in table.notes


def test_rows_of_empty_cells_are_skipped_and_said(read):
    table = read("l.csv", "image,black\na.jpg,1\n,\n\nb.jpg,0\n,\n")
    assert table.images == ("a.jpg", "b.jpg")
    assert "2 empty rows skipped: lines 3, 6" in table.notes


def test_an_open_quote_in_a_csv_is_refused_where_it_opens(refused):
    text = refused("l.csv", 'image,black\na.jpg,1\n"b.jpg,0\nc.jpg,0\n')
    assert text.startswith("l.csv:3: cannot read the row; got unexpected end of data")


def test_header_names_must_differ_and_are_shown(refused):
    assert refused("l.csv", "image,black,red,black\na.jpg,1,0,1\n") == (
        "l.csv: two columns are called 'black'; got 'image', 'black', 'red', 'black', expected a "
        "name for each column; rename one of them"
    )


def test_the_row_numbers_pandas_writes_are_left_out(read):
    for first in ("", "Unnamed: 0"):
        table = read("l.csv", f"{first},photo,black\n0,a.jpg,1\n1,b.jpg,0\n")
        assert (table.images, table.attributes) == (("a.jpg", "b.jpg"), ("black",))
        assert table.extra == {}
        assert table.notes[-1].startswith("1 column left out, without a name: ")


def test_a_pandas_index_of_image_names_is_the_image_column(read):
    table = read("l.csv", ",black,red\na.jpg,1,0\nb.jpg,0,\n")
    assert (table.images, table.attributes) == (("a.jpg", "b.jpg"), ("black", "red"))


# -- JSON lines and Parquet -------------------------------------------------------------------


def test_absent_keys_are_not_known_and_columns_come_in_order_of_appearance(read):
    text = '# two\n{"image": "a.jpg", "red": 1}\n\n{"black": 0, "image": "b.jpg"}\n'
    table = read("l.jsonl", text)
    assert (table.attributes, table.lines) == (("red", "black"), (2, 4))
    assert cells(table) == [[1, None], [None, 0]]


def test_numbers_and_text_in_json_keep_their_spelling(read):
    text = '{"image": "a.jpg", "id": 00, "red": 1}\n'.replace("00", "12345678901234567890123")
    assert read("l.jsonl", text).extra == {"id": ("12345678901234567890123",)}
    text = '{"image": "a.jpg", "id": 1.10, "red": NaN}\n'
    assert read("l.ndjson", text).extra == {"id": ("1.10",)}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{'image': 1}", "l.jsonl:2: not JSON; got Expecting property name enclosed in double q"),
        ('["b.jpg", 1]', "l.jsonl:2: not an object; got '[\"b.jpg\", 1]', expected {...}; write"),
        ('{"image": "b.jpg", "r": 1, "r": 0}', "l.jsonl:2: the same key twice; got 'r'; write"),
        ("[" * 100_000, "l.jsonl:2: JSON nested too deep; write one object"),
    ],
)
def test_broken_json_lines_are_refused_with_their_line(refused, line, message):
    assert refused("l.jsonl", f'{{"image": "a.jpg", "r": 1}}\n{line}\n').startswith(message)


def test_a_json_array_is_refused_with_what_to_write_instead(refused):
    assert "write one object with one key" in refused("l.json", '[{"image": "a.jpg", "r": 1}]')


def test_a_list_of_tags_is_refused_because_it_cannot_say_not_known(refused, read):
    text = '{"image": "a.jpg", "red": 1}\n{"image": "b.jpg", "red": 0, "tags": ["x", "y"]}\n'
    assert refused("l.jsonl", text) == (
        "l.jsonl:2: column 'tags' does not hold single values; got one list of 2 values, expected "
        f"single values ({LABELS}); a list of tags cannot say absent versus not known: write one "
        "column for each attribute, or leave it out (--ignore tags)"
    )
    assert read("l.jsonl", text, ignore=["tags"]).attributes == ("red",)
    assert "got one object of 1 key" in refused("l.jsonl", '{"image": "a.jpg", "x": {"red": 1}}')


def test_lists_objects_and_bytes_in_parquet_are_refused_unless_ignored(refused, read):
    for kind, cell in {"List": ["x"], "Struct": {"path": "x"}, "Binary": b"x"}.items():
        data = parquet({"file": ["a", "b"], "red": [1, 0], "image": [None, cell]})
        text = refused("l.parquet", data)
        assert text.startswith("l.parquet row 2: column 'image' does not hold single values; got a")
        assert f"of type {kind}" in text
        assert read("l.parquet", data, ignore="image").images == ("a", "b")


def test_every_type_of_parquet_column_becomes_text(read):
    frame = {
        "image": ["a.jpg", "b.jpg"],
        "float": pl.Series([1.0, NA], dtype=pl.Float32),
        "int": pl.Series([1, None], dtype=pl.UInt8),
        "bool": [False, None],
        "null": [None, None],
        "category": pl.Series(["yes", "no"], dtype=pl.Categorical),
        "time": pl.Series([3, 4], dtype=pl.Duration("us")),
    }
    table = read("l.parquet", parquet(frame))
    assert table.attributes == ("float", "int", "bool", "null", "category")
    assert cells(table) == [[1, 1, 0, None, 1], [None, None, None, None, 0]]
    assert table.extra == {"time": ("0:00:00.000003", "0:00:00.000004")}
    assert (table.where(1), table.warnings[-2:]) == (
        "l.parquet row 2",
        (("bool", "one class only: 1 absent, none present"), ("null", "no known cell")),
    )


def test_a_broken_parquet_file_is_refused(refused):
    assert refused("l.parquet", b"PAR1").startswith("l.parquet: not a readable Parquet file; got ")


# -- tokens -----------------------------------------------------------------------------------


@pytest.mark.parametrize("token", list(TOKENS))
def test_every_token_is_read_whatever_its_case_and_spaces(read, token):
    table = read("l.csv", f"image,black,red\na.jpg, {token.upper()} ,1\nb.jpg,{token.title()},0\n")
    expected = TOKENS[token]
    np.testing.assert_array_equal(table.values[:, 0], [expected, expected])


def test_the_tokens_seen_in_label_columns_are_counted(read):
    text = "image,black,red,split\na.jpg,1,Yes,train\nb.jpg,,yes,test\nc.jpg,0,NA,0\n"
    assert read("l.csv", text).tokens == {
        "1": TokenUse("present", 1),
        "": TokenUse("na", 1),
        "0": TokenUse("absent", 1),
        "Yes": TokenUse("present", 1),
        "yes": TokenUse("present", 1),
        "NA": TokenUse("na", 1),
    }


MINUS = "image,black,red\na.jpg,1,0\nb.jpg,0,{0}\nc.jpg,{0},1\nd.jpg,{0},{0}\n"


@pytest.mark.parametrize("minus", ["-1", "-1.0"])
def test_minus_one_stops_with_the_flag_to_add(read, refused, minus):
    text = MINUS.format(minus)
    assert refused("l.csv", text) == (
        "l.csv:3: column 'red' holds -1, which is absent in some tables and not known in others "
        f"(and 1 more such column); got '{minus}' in 2 of 4 cells, expected {LABELS}; add "
        '--values "-1=na" or --values "-1=absent" (all spelled out: --values '
        '"1=present,0=absent,-1=na"), or leave the column out (--ignore red)'
    )
    full = read("l.csv", text, values="1=present,0=absent,-1=na")
    assert cells(full) == [[1, 0], [0, None], [None, 1], [None, None]]
    assert cells(read("l.csv", text, values={-1: "absent"})) == [[1, 0], [0, 0], [0, 1], [0, 0]]


def test_minus_one_stops_also_where_it_is_the_majority_or_alone(refused):
    for column in (["-1", "-1", "-1", "1"], ["-1"] * 4):
        for name, joint in (("l.csv", ","), ("l.txt", " ")):
            lines = [f"{i}.jpg{joint}{cell}{joint}1" for i, cell in enumerate(column)]
            assert "column 'Attr1' holds -1" in refused(name, "\n".join(lines))


def test_minus_one_among_other_numbers_is_no_label(read):
    table = read("l.csv", "image,depth,red\na.jpg,-1,0\nb.jpg,7,1\nc.jpg,12,1\n")
    assert table.extra == {"depth": ("-1", "7", "12")}


def test_values_extend_and_override_the_token_table(read):
    text = "image,black,red\na.jpg,+,1\nb.jpg,-,0\nc.jpg,?,NA\n"
    table = read("l.csv", text, values=" + = present, -=ABSENT ,?=na,1=absent,0=1")
    assert cells(table) == [[1, 0], [0, 1], [None, None]]
    assert table.notes[-1].startswith("values as told: ")
    mapping = {"+": 1, "-": False, "?": None}
    assert cells(read("l.csv", text, values=mapping)) == [[1, 1], [0, 0], [None, None]]
    assert cells(read("l.csv", "image,red\na.jpg,1\nb.jpg,\n", values="=absent")) == [[1], [0]]


@pytest.mark.parametrize("values", ["1", "1=perhaps", "1=", "1=present,,", "a=1,A=0", {"x": 3}])
def test_values_that_say_nothing_clear_are_refused(refused, values):
    text = refused("l.csv", "image,red\na.jpg,1\n", values=values)
    assert text.startswith("--values: cannot read the values; got ")
    assert text.endswith('for example --values "1=present,0=absent,-1=na"')


# -- which column is what ---------------------------------------------------------------------


def test_a_column_with_fewer_than_half_tokens_is_kept_as_extra_and_said(read):
    text = "image,split,black,age\na.jpg, train ,1,1\nb.jpg,test,0,44\nc.jpg,test,NA,31\n"
    table = read("l.csv", text)
    assert table.attributes == ("black",)
    assert table.extra == {"split": ("train", "test", "test"), "age": ("1", "44", "31")}
    assert table.notes == (
        "images are named by column 'image'",
        "label columns: black",
        "column 'split' kept as extra: 0 of 3 cells are labels, the first other is 'train' "
        "(line 2)",
        "column 'age' kept as extra: 1 of 3 cells are labels, the first other is '44' (line 3)",
    )


def test_a_column_in_between_is_refused_with_its_first_bad_cells(refused, read):
    rows = ["1", "maybe", "0", "?", "1", "so so", "hm", "0", "1"]
    lines = [f"{i}.jpg,{cell},1" for i, cell in enumerate(rows)]
    text = "\n".join(["image,dark blue,red", *lines])
    assert refused("l.csv", text) == (
        "l.csv:3: column 'dark blue': 4 cells of 9 cannot be read as labels; got 'maybe' (line 3), "
        f"'?' (line 5), 'so so' (line 7) and 1 more, expected {LABELS}; correct them, say what "
        "they mean (--values \"maybe=na\"), or leave the column out (--ignore 'dark blue')"
    )
    table = read("l.csv", text, ignore=["dark blue"])
    assert (table.attributes, table.extra) == (("red",), {})
    assert table.notes[-1] == "1 column ignored: dark blue"


def test_exactly_half_is_in_between(refused):
    assert "column 'black': 1 cell of 2" in refused("l.csv", "image,black\na.jpg,1\nb.jpg,x\n")


def test_the_first_error_in_file_order_is_reported_with_how_many_more(refused):
    text = "image,black,red\na.jpg,1,1\nb.jpg,1,x\n/c.jpg,x,1\nd.jpg,0,0\n"
    assert refused("l.csv", text).startswith("l.csv:3: column 'red': 1 cell of 4 cannot be read as")
    assert "(and 1 more such column)" in refused("l.csv", text)
    text = "image,black,red\na.jpg,1,1\n../b.jpg,1,1\nc.jpg,x,1\nd.jpg,0,0\n"
    assert refused("l.csv", text).startswith("l.csv:3: the image name leads out")


def test_attributes_select_and_order_columns_and_the_rest_is_extra(read):
    text = "image,black,red,blue\na.jpg,1,0,x\nb.jpg,0,1,1\n"
    table = read("l.csv", text, attributes=["red", "black"])
    assert table.attributes == ("red", "black")
    assert cells(table) == [[0, 1], [1, 0]]
    assert table.extra == {"blue": ("x", "1")}
    assert table.notes[-1] == "1 column kept as extra, not among the attributes asked for: blue"


def test_a_column_called_an_attribute_must_be_one(refused):
    text = "image,black,split\na.jpg,1,train\nb.jpg,0,test\n"
    message = refused("l.csv", text, attributes="black,split")
    assert message.startswith("l.csv:2: column 'split': 2 cells of 2 cannot be read as labels")
    message = refused("l.txt", "a.jpg 1 train\nb.jpg 0 test\n", attributes="black,split")
    assert message.startswith("l.txt:1: column 'split': 2 cells of 2 cannot be read as labels")


def test_unknown_columns_are_refused_with_the_nearest_name(refused):
    text = "image,black,red\na.jpg,1,0\n"
    assert refused("l.csv", text, attributes=["blak"]) == (
        "l.csv: no column 'blak' to take as an attribute; did you mean 'black'?"
    )
    assert refused("l.csv", text, ignore="rad") == (
        "l.csv: no column 'rad' to ignore; did you mean 'red'?"
    )
    assert refused("l.csv", text, image_column="photo") == (
        "l.csv: no column 'photo' that names the images; known: black, image, red"
    )
    assert "no column 'red' to take" in refused("l.csv", text, ignore="red", attributes="red")
    assert "no column 'image' to take" in refused("l.csv", text, attributes="image")


@pytest.mark.parametrize(
    ("header", "known"),
    [
        ("black,image,path", "b"),
        ("black,File_Name,x", "b"),
        ("black,Image Name,name", "b"),
        ("black,name,x", "b"),
        ("black,x,PATH", "c"),
    ],
)
def test_the_image_column_is_found_by_name_wherever_it_stands(read, header, known):
    table = read("l.csv", f"{header}\n1,b,c\n0,b2,c2\n")
    assert table.images[0] == known


def test_else_the_image_column_is_the_one_told_or_the_first(read):
    text = "Finding,Image Index,black\nx,a.jpg,1\ny,b.jpg,0\n"
    assert read("l.csv", text).images == ("x", "y")
    told = read("l.csv", text, image_column="Image Index")
    assert (told.images, told.extra) == (("a.jpg", "b.jpg"), {"Finding": ("x", "y")})
    assert told.notes[0] == "images are named by column 'Image Index'"


def test_a_first_column_of_labels_does_not_name_images(refused):
    assert refused("l.csv", "black,photo_of\n1,a.jpg\n0,b.jpg\n".replace(".jpg", "")) == (
        "l.csv: cannot tell which column names the images; got 'black', 'photo_of', expected a "
        "column called 'image', or the names in the first column; add --image-column COLUMN"
    )


def test_a_table_without_a_label_column_says_what_its_columns_hold(refused):
    assert refused("l.csv", "image,category\na.jpg,suit\nb.jpg,dress\n") == (
        "l.csv: no label column; got 'category' with 'suit' "
        f"(line 2), expected a column with {LABELS}; write one column for each attribute, or say "
        'with --values "WORD=present,OTHER=absent" what its words mean'
    )
    assert "got the image column alone" in refused("l.csv", "image\na.jpg\n")


# -- repeated images --------------------------------------------------------------------------


def test_the_same_image_with_the_same_cells_is_merged_and_said(read):
    text = "image,black,red,site\na.jpg,1,,x\nb.jpg,0,0,x\n./a.jpg,yes,NA, x\nsub\\c.jpg,1,1,y\n"
    table = read("l.csv", text + "sub//c.jpg,1,1,y\n")
    assert (table.images, table.lines) == (("a.jpg", "b.jpg", "sub/c.jpg"), (2, 3, 5))
    assert table.extra == {"site": ("x", "x", "y")}
    assert table.notes[-1] == (
        "2 identical rows merged: 'a.jpg' (line 4 as 2), 'sub/c.jpg' (line 6 as 5)"
    )


def test_the_same_image_with_different_cells_names_both_lines_and_the_cells(refused):
    text = "image,black,red,site\na.jpg,1,,x\nb.jpg,0,0,x\na.jpg,0,,y\nb.jpg,1,0,x\n"
    assert refused("l.csv", text) == (
        "l.csv:4: image 'a.jpg' stands twice with different cells (and 1 more such image); got "
        "black absent (was present), site 'y' (was 'x'), expected the same cells as in line 2; "
        "keep one of line 2 and 4"
    )
    text = "a.jpg 1 1 1 1 1\nb.jpg 1 1 1 1 1\na.jpg 0 0 NA 0 0\n"
    assert "Attr3 na (was present) and 2 more, expected" in refused("l.txt", text)


def test_known_and_not_known_are_different_cells(refused):
    assert "black na (was present)" in refused("l.txt", "image black\na.jpg 1\na.jpg NA\n")


# -- names ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../b.jpg", "leads out of the image folder by '..'"),
        ("x/../../b.jpg", "leads out of the image folder by '..'"),
        ("x\\..\\b.jpg", "leads out of the image folder by '..'"),
        ("/etc/passwd", "is an absolute path"),
        ("C:\\b.jpg", "is an absolute path"),
        ("c:b.jpg", "is an absolute path"),
        ("\\\\server\\b.jpg", "is an absolute path"),
        ("https://x.org/b.jpg", "is an address, not a file"),
        ("file:///b.jpg", "is an address, not a file"),
        ("b\0.jpg", "holds a NUL character"),
        ("", "is empty"),
        ("./", "is empty"),
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv"])
def test_names_that_leave_the_image_folder_are_refused_with_their_line(
    refused, name, message, kind
):
    rows = {"image": ["a.jpg", name], "red": [1, 0]}
    data: str | bytes
    if kind == "parquet":
        data, where = parquet(rows), "l.parquet row 2"
    elif kind == "jsonl":
        pairs = zip(rows["image"], rows["red"], strict=True)
        data = "\n".join(json.dumps({"image": image, "red": red}) for image, red in pairs)
        where = "l.jsonl:2"
    else:
        data, where = f"image,red\na.jpg,1\n{name},0\n", "l.csv:3"
        if "\0" in name:
            message = "not a text table in UTF-8; got a NUL character"
    text = refused(f"l.{kind}", data)
    assert text.startswith(where)
    assert message in text


def test_names_are_cleaned_to_posix():
    assert clean_name(" ./x\\\\y//./a..b.jpg ") == "x/y/a..b.jpg"
    assert clean_name("...jpg") == "...jpg"


# -- files that are none ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["l.txt", "l.csv", "l.tsv", "l.jsonl", "l.xyz"])
@pytest.mark.parametrize("content", ["", "\n \n", "# only words\n", "image,red\n"])
def test_a_file_without_rows_has_no_usable_row(refused, name, content):
    if name == "l.jsonl" and "image" in content:
        content = ""
    if name == "l.tsv":
        content = content.replace(",", "\t")
    assert refused(name, content) == (
        f"{name}: no usable row; write one row for each image: its name, then 1, 0 or NA for each "
        "attribute"
    )


def test_an_empty_parquet_table_has_no_usable_row(refused):
    assert "no usable row" in refused("l.parquet", parquet({"image": [], "red": []}))


def test_bytes_that_are_not_utf8_are_refused_with_their_line(refused):
    expected = (
        "l.csv:2: not a text table in UTF-8; got byte 0xe9, expected UTF-8, or UTF-16 with a byte "
        "order mark; save the table as UTF-8 (in a spreadsheet: 'CSV UTF-8')"
    )
    assert refused("l.csv", "image,red\ncafé.jpg,1\n".encode("cp1252")) == expected
    assert refused("l.txt", "a 1\nb 1\n".encode("utf-16-le")).startswith("l.txt:1: not a text")
    assert refused("l.txt", b"\xff\xfea").startswith("l.txt: not a text table in UTF-8; got byte")


def test_a_missing_file_and_a_folder_are_said_plainly(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    with pytest.raises(TableError, match=r"^labels.txt: no such file; check the path$"):
        read_table("labels.txt")
    with pytest.raises(TableError, match=r"^folder: a folder, not a label table$"):
        read_table(Path("folder"))


# -- the table itself -------------------------------------------------------------------------


@pytest.fixture
def table():
    rows = [[1, 1, None], [0, 1, None], [None, 1, None]]
    return LabelTable.from_rows(["a", "b", "c"], ["x", "y", "z"], rows, {"site": ["s", "t", "u"]})


def test_counts_and_warnings_tell_what_each_attribute_holds(table):
    assert table.counts().tolist() == [[1, 1, 1], [3, 0, 0], [0, 0, 3]]
    assert table.counts().dtype == np.int64
    assert table.warnings == (
        ("y", "one class only: 3 present, none absent"),
        ("z", "no known cell"),
    )


def test_selected_rows_keep_everything_that_belongs_to_them(table):
    for rows in ([2, 0], np.array([2, 0]), (-1, 0)):
        part = table.select(rows)
        assert (part.images, part.lines) == (("c", "a"), (3, 1))
        assert part.extra == {"site": ("u", "s")}
        np.testing.assert_array_equal(part.values, table.values[[2, 0]])
    assert table.select([False, True, False]).images == ("b",)
    assert table.select([]).values.shape == (0, 3)
    with pytest.raises(TableError, match="the image 'a' stands twice"):
        table.select([0, 0])
    for wrong in ([3], [True], [0.5]):
        with pytest.raises(IndexError):
            table.select(wrong)


def test_a_table_cannot_be_changed_by_accident(table):
    with pytest.raises(ValueError, match="read-only"):
        table.values[0, 0] = 0
    with pytest.raises(AttributeError):
        table.source = "x"
    given = np.zeros((1, 1), dtype=np.float32)
    LabelTable.from_rows(["a"], ["x"], given)
    given[0, 0] = 1


def test_a_table_goes_through_pickle_to_other_processes(table):
    again = pickle.loads(pickle.dumps(table))
    assert (again.images, again.extra, again.lines) == (table.images, table.extra, table.lines)
    np.testing.assert_array_equal(again.values, table.values)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["a"], ["x"], [[2]]), "row 1: a value of 'x' is no label; got 2, expected 1 (present)"),
        ((["a"], ["x"], [[-1]]), "row 1: a value of 'x' is no label; got -1"),
        ((["a"], ["x"], [[0.5]]), "row 1: a value of 'x' is no label; got 0.5"),
        ((["a"], ["x"], [[1, 0]]), "got shape (1, 2), expected (1, 1), a row for each image"),
        ((["a"], ["x"], [1]), "got shape (1,), expected (1, 1)"),
        ((["a"], ["x"], [["maybe"]]), "values cannot be an array of numbers"),
        ((["a", "./a"], ["x"], [[1], [1]]), "the image 'a' stands twice"),
        ((["a"], ["x", "x"], [[1, 1]]), "the attribute 'x' stands twice"),
        ((["a"], [""], [[1]]), "an attribute without a name"),
        ((["a", "../b"], ["x"], [[1], [1]]), "row 2: the image name leads out"),
        ((["a"], ["x"], [[1]], {"s": ["1", "2"]}), "column 's' has the wrong length; got 2, expec"),
    ],
)
def test_tables_made_in_python_are_checked(arguments, message):
    with pytest.raises(TableError) as caught:
        LabelTable.from_rows(*arguments)
    assert message in str(caught.value)
    assert isinstance(caught.value, UserError)


def test_the_constructor_takes_clean_names_only():
    with pytest.raises(TableError, match=r"row 1: image name not clean; got './a', expected a"):
        LabelTable(("./a",), ("x",), np.ones((1, 1), dtype=np.float32))


def test_importing_the_table_loads_no_heavy_library():
    heavy = "{'torch', 'polars', 'pandas', 'sklearn', 'PIL', 'onnxruntime'}"
    code = f"import sys, polytag.table; print({heavy} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"


# -- holes, and round trips through every format ----------------------------------------------

SPELLED = {"1": ["1", "1.0", "true", "Yes"], "0": ["0", "0.0", "FALSE", "no"], "": ["NA", "null"]}


def spelled(value, pick):
    words = SPELLED["" if value != value else str(int(value))]
    return words[pick % len(words)]


def as_text(table, delimiter):
    quote = '"{}"'.format
    names = ["image", *table.attributes, *table.extra]
    lines = [delimiter.join(quote(name.replace('"', '""')) for name in names)]
    for row, name in enumerate(table.images):
        values = [spelled(value, row + i) for i, value in enumerate(table.values[row])]
        texts = [quote(column[row].replace('"', '""')) for column in table.extra.values()]
        lines.append(delimiter.join([quote(name.replace('"', '""')), *values, *texts]))
    return "\n".join(lines).encode()


def as_csv(table):
    file = io.StringIO()
    writer = csv.writer(file, quoting=csv.QUOTE_ALL)
    writer.writerow(["image", *table.attributes, *table.extra])
    for row, name in enumerate(table.images):
        values = ["" if value != value else int(value) for value in table.values[row]]
        writer.writerow([name, *values, *(column[row] for column in table.extra.values())])
    return file.getvalue().encode()


def as_json(table):
    lines = []
    for row, name in enumerate(table.images):
        known = {
            attribute: bool(value) if row % 2 else float(value)
            for attribute, value in zip(table.attributes, table.values[row], strict=True)
            if value == value or row == 0
        }
        texts = {key: column[row] for key, column in table.extra.items()}
        lines.append(json.dumps({"image": name, **known, **texts}, ensure_ascii=row % 2 == 0))
    return "\n".join(lines).encode()


def as_parquet(table):
    labels = {name: table.values[:, i] for i, name in enumerate(table.attributes)}
    return parquet({"image": table.images, **labels, **table.extra})


WRITERS = {
    "l.txt": lambda table: as_text(table, "  "),
    "l.csv": as_csv,
    "l.tsv": lambda table: as_text(table, "\t"),
    "semicolon.csv": lambda table: as_text(table, ";"),
    "l.jsonl": as_json,
    "l.parquet": as_parquet,
}


@pytest.mark.parametrize("name", WRITERS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_table_written_in_any_format_reads_back_equal(tmp_path_factory, name, data):
    # Spaced text has no bounds around words, so its extra column is left out here.
    table = data.draw(label_tables(extra=name != "l.txt"))
    path = tmp_path_factory.mktemp("trip") / name
    path.write_bytes(WRITERS[name](table))
    again = read_table(path)
    assert (again.images, again.attributes) == (table.images, table.attributes)
    np.testing.assert_array_equal(again.values, table.values)
    assert dict(again.extra) == dict(table.extra)
    assert sum(use.count for use in again.tokens.values()) == table.values.size


@settings(max_examples=60, deadline=None)
@given(
    names=st.lists(st.from_regex(r"[a-z0-9]+( [a-z0-9]+){0,3}\.jpg", fullmatch=True), unique=True),
    data=st.data(),
)
def test_spaced_text_without_header_or_quotes_reads_back_equal(tmp_path_factory, names, data):
    names = names or ["a.jpg"]
    values = data.draw(holed_values(len(names), data.draw(st.integers(1, 5))))
    lines = [
        " ".join([name, *(spelled(value, i) for i, value in enumerate(row))])
        for name, row in zip(names, values, strict=True)
    ]
    path = tmp_path_factory.mktemp("trip") / "labels.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    again = read_table(path)
    assert again.images == tuple(names)
    np.testing.assert_array_equal(again.values, values)


WORDS = 'image a.jpg b 1 0 2 NA -1 x .. é \ufeff , ; " # { } : [ ] / \\ {"image":"a" ,"r":1'
PIECES = st.sampled_from([*WORDS.split(" "), " ", "\t", "\n", "\r", "\0"])


@pytest.mark.parametrize("suffix", ["txt", "csv", "tsv", "jsonl", "parquet"])
@settings(max_examples=150, deadline=None)
@given(content=st.lists(PIECES, max_size=40).map("".join).map(str.encode) | st.binary(max_size=40))
def test_whatever_a_file_holds_it_is_read_or_refused_as_a_table(tmp_path_factory, suffix, content):
    path = tmp_path_factory.mktemp("any") / f"l.{suffix}"
    path.write_bytes(content)
    try:
        table = read_table(path)
    except TableError as error:
        assert str(error).startswith(str(path))
        assert "\n" not in str(error)
    else:
        assert len(table) >= 1


@pytest.mark.parametrize("holes", HOLES)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_counts_add_up_and_warnings_name_what_cannot_be_measured(holes, data):
    values = data.draw(holed_values(6, 3, holes))
    table = LabelTable.from_rows("abcdef", "xyz", values)
    counts = table.counts()
    assert (counts.sum(axis=1) == 6).all()
    assert (counts[:, 2] == np.isnan(values).sum(axis=0)).all()
    flagged = {name for name, _ in table.warnings}
    assert flagged == {
        name for name, (yes, no, _) in zip("xyz", counts, strict=True) if not (yes and no)
    }


# -- real tables, and large ones --------------------------------------------------------------

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the measuring data is not here")


@needs_data
def test_the_dresses_read_with_their_known_counts():
    table = read_table(DATA / "dresses" / "labels.txt")
    assert (len(table), table.attributes) == (975, ("Attr1", "Attr2", "Attr3", "Attr4"))
    expected = [[789, 106, 80], [713, 171, 91], [466, 416, 93], [68, 813, 94]]
    assert table.counts().tolist() == expected
    assert table.warnings == ()


@needs_data
def test_the_clothing_attributes_read_with_their_23_columns():
    table = read_table(DATA / "clothing-attributes" / "labels.csv")
    assert table.values.shape == (1485, 23)
    assert (table.images[0], table.attributes[-1]) == ("000001.jpg", "yellow")
    assert np.isnan(table.values).mean() == pytest.approx(0.076, abs=0.001)


@needs_data
def test_a_table_of_words_is_refused():
    with pytest.raises(TableError, match="no label column; got 'category' with 'suit'"):
        read_table(DATA / "clothing-attributes" / "categories.csv")


@pytest.mark.parametrize("name", ["l.txt", "l.csv"])
def test_a_large_table_reads_in_seconds(tmp_path, name):
    rng = np.random.default_rng(0)
    cells = rng.choice(np.array(["1", "0", "NA"]), (50_000, 40)).tolist()
    joint = " " if name == "l.txt" else ","
    text = "\n".join(joint.join([f"img {i}.jpg", *row]) for i, row in enumerate(cells))
    (tmp_path / name).write_text(text, encoding="utf-8")
    began = time.process_time()
    assert read_table(tmp_path / name).values.shape == (50_000, 40)
    assert time.process_time() - began < 8  # takes 1 to 2 s; a loop over cells would take 20
