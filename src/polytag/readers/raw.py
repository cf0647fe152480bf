"""What every reader yields, and what they share: decoding, places, content lines."""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from polytag.errors import TableError

PARQUET_SUFFIXES = (".parquet", ".pq")


@dataclass(frozen=True)
class RawTable:
    """A table as text, before anything in it means something.

    Attributes:
        columns: Names of all columns, the image column among them; None without a header, and
            then the image names stand first.
        rows: Cells of each row as text, all rows equally long; nothing or null is ``""``.
        lines: Line (Parquet: row) number of each row, from 1.
        notes: What the reader skipped or decided, in words.
        nested: For each column that holds lists, objects or bytes: line and kind of the first.
    """

    columns: tuple[str, ...] | None
    rows: Sequence[Sequence[str]]
    lines: Sequence[int]
    notes: tuple[str, ...] = ()
    nested: Mapping[str, tuple[int, str]] = field(default_factory=dict)


def unit(source: str) -> str:
    """Return what a number counts in this source: "line" of a text file, "row" elsewhere.

    Example:
        >>> unit("labels.txt"), unit("labels.parquet"), unit("")
        ('line', 'row', 'row')
    """
    return "row" if not source or source.lower().endswith(PARQUET_SUFFIXES) else "line"


def place(source: str, line: int) -> str:
    """Return where a row came from, as errors say it.

    Example:
        >>> place("labels.txt", 3), place("labels.parquet", 12), place("", 1)
        ('labels.txt:3', 'labels.parquet row 12', 'row 1')
    """
    if unit(source) == "line":
        return f"{source}:{line}"
    return f"{source} row {line}".lstrip()


def more(count: int, noun: str) -> str:
    """Return " (and 3 more such lines)", or nothing when there are none.

    Example:
        >>> more(1, "line"), more(3, "line"), more(0, "line")
        (' (and 1 more such line)', ' (and 3 more such lines)', '')
    """
    return f" (and {plural(count, f'more such {noun}')})" if count > 0 else ""


def plural(count: int, noun: str) -> str:
    """Return "1 line", "2 lines".

    Example:
        >>> plural(1, "line"), plural(2, "line")
        ('1 line', '2 lines')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def lines_note(what: str, lines: Sequence[int]) -> tuple[str, ...]:
    """Return a note on skipped lines, at most five of them named; nothing if there are none.

    Example:
        >>> lines_note("comment", [1, 5])
        ('2 comments skipped: lines 1, 5',)
    """
    if not lines:
        return ()
    named = ", ".join(map(str, lines[:5])) + (", ..." if len(lines) > 5 else "")
    return (
        f"{plural(len(lines), what)} skipped: {'line' if len(lines) == 1 else 'lines'} {named}",
    )


def decode(data: bytes, source: str) -> str:
    """Return a file's text: UTF-8 with or without a byte order mark, or UTF-16 with one.

    Raises:
        TableError: Other bytes, or a NUL character, which no text table holds.

    Example:
        >>> decode("a.jpg 1".encode("utf-16"), "labels.txt")
        'a.jpg 1'
    """
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start].count(b"\n") + 1
        found = f"byte 0x{data[error.start]:02x}"
        raise _not_text(source if utf16 else place(source, before), found) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise _not_text(place(source, line), "a NUL character")
    return text


def _not_text(where: str, got: str) -> TableError:
    return TableError(
        "not a text table in UTF-8",
        where=where,
        got=got,
        expected="UTF-8, or UTF-16 with a byte order mark",
        fix="save the table as UTF-8 (in a spreadsheet: 'CSV UTF-8')",
    )


def content_lines(text: str) -> tuple[list[tuple[int, str]], list[int]]:
    """Return the lines that are neither blank nor comments, numbered; the comments' numbers.

    Example:
        >>> content_lines("# made by hand\\n\\na.jpg 1 \\r\\nb.jpg 0")
        ([(3, 'a.jpg 1 '), (4, 'b.jpg 0')], [1])
    """
    # Not str.splitlines: it also splits at characters that may stand in a name (U+2028, form feed).
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    content: list[tuple[int, str]] = []
    comments: list[int] = []
    for number, line in enumerate(lines, 1):
        if line.lstrip().startswith("#"):
            comments.append(number)
        elif line.strip():
            content.append((number, line))
    return content, comments
