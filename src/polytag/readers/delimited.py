"""CSV, semicolons and TSV, with or without a header."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Sequence

from polytag.errors import TableError
from polytag.readers.raw import RawTable, content_lines, decode, lines_note, more, place
from polytag.readers.tokens import Vocabulary

DELIMITERS = (",", ";", "\t")
SAMPLE = 20  # lines looked at to find the delimiter


def read(data: bytes, source: str, words: Vocabulary) -> RawTable:
    """Read a table delimited by commas, semicolons or tabs, whichever its first lines show.

    Raises:
        TableError: A row with another number of fields, broken quotes.

    Example:
        >>> from polytag.readers.tokens import TOKENS
        >>> raw = read(b"image;black\\na.jpg;1\\n", "labels.csv", Vocabulary(TOKENS))
        >>> raw.columns, raw.rows, raw.lines
        (('image', 'black'), [['a.jpg', '1']], [2])
    """
    text = decode(data, source)
    sample = [line for _, line in content_lines(text)[0][:SAMPLE]]
    return _read(text, source, words, guess_delimiter(sample) or ",")


def read_tabs(data: bytes, source: str, words: Vocabulary) -> RawTable:
    """Read a table delimited by tabs.

    Raises:
        TableError: A row with another number of fields, broken quotes.

    Example:
        >>> from polytag.readers.tokens import TOKENS
        >>> read_tabs(b"image\\tblack\\na.jpg\\t\\n", "labels.tsv", Vocabulary(TOKENS)).rows
        [['a.jpg', '']]
    """
    return _read(decode(data, source), source, words, "\t")


def guess_delimiter(lines: Sequence[str]) -> str | None:
    """Return the delimiter that cuts the lines most evenly, then into the most fields.

    Example:
        >>> guess_delimiter(["image;size, in cm;black", "a.jpg;1,5;1"])
        ';'
        >>> guess_delimiter(["a.jpg 1 0"]) is None
        True
    """
    best, best_score = None, (0.0, 0)
    for delimiter in DELIMITERS:
        counts = Counter(map(len, cut(lines, delimiter)))
        if not counts:
            continue
        fields, times = counts.most_common(1)[0]
        score = (times / counts.total(), fields)
        if fields > 1 and score > best_score:
            best, best_score = delimiter, score
    return best


def cut(lines: Sequence[str], delimiter: str) -> list[list[str]]:
    """Return each line's fields; quotes are respected, broken ones forgiven.

    Example:
        >>> cut(['"a, b.jpg", 1'], ",")
        [['a, b.jpg', '1']]
    """
    return [next(csv.reader([line], delimiter=delimiter, skipinitialspace=True)) for line in lines]


def _read(text: str, source: str, words: Vocabulary, delimiter: str) -> RawTable:
    rows, lines, notes = _records(text, source, delimiter)
    columns = None
    if rows and words.is_header(rows[0]):
        columns, rows, lines = tuple(rows[0]), rows[1:], lines[1:]
    if not rows:
        return RawTable(columns, [], [], notes)
    expected = len(columns) if columns else Counter(map(len, rows)).most_common(1)[0][0]
    wrong = [i for i, row in enumerate(rows) if len(row) != expected]
    if wrong:
        shown = "a tab" if delimiter == "\t" else repr(delimiter)
        raise TableError(
            f"wrong number of fields{more(len(wrong) - 1, 'line')}",
            where=place(source, lines[wrong[0]]),
            got=str(len(rows[wrong[0]])),
            expected=f"{expected}, divided by {shown}",
            fix='put a cell that holds the delimiter in "quotes", leave unknown cells empty',
        )
    return RawTable(columns, rows, lines, notes)


def _records(
    text: str, source: str, delimiter: str
) -> tuple[list[list[str]], list[int], tuple[str, ...]]:
    """Return the rows that hold something, the line each begins on, and notes."""
    rows: list[list[str]] = []
    lines: list[int] = []
    comments: list[int] = []
    empty: list[int] = []
    start, fresh = 0, True

    def feed() -> Iterator[str]:
        # A quoted cell may run over lines, so "#" opens a comment only where a record begins.
        nonlocal start, fresh
        for number, line in enumerate(io.StringIO(text, newline=""), 1):
            if fresh and line.lstrip().startswith("#"):
                comments.append(number)
                continue
            if fresh:
                start, fresh = number, False
            yield line

    try:
        for row in csv.reader(feed(), delimiter=delimiter, skipinitialspace=True, strict=True):
            fresh = True
            if any(map(str.strip, row)):
                rows.append(row)
                lines.append(start)
            elif len(row) > 1:
                empty.append(start)
    except csv.Error as error:
        raise TableError(
            "cannot read the row",
            where=place(source, start),
            got=str(error),
            expected='a cell in "quotes" that ends at a delimiter or at the end of the line',
            fix='close the quote; a quote inside a quoted cell is written twice ("")',
        ) from None
    return rows, lines, lines_note("comment", comments) + lines_note("empty row", empty)
