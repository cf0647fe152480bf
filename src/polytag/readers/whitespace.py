"""Whitespace text: ``image_0.jpg 1 NA 0 1``, with or without a header, names with spaces too."""

from __future__ import annotations

import re
from collections import Counter

from polytag.errors import TableError
from polytag.readers.raw import RawTable, content_lines, decode, lines_note, more, place, plural
from polytag.readers.tokens import IMAGE_COLUMNS, IMAGE_SUFFIXES, Vocabulary, image_word

_SUFFIXES = "|".join(re.escape(suffix) for suffix in IMAGE_SUFFIXES)
_NAMED = re.compile(rf".*(?:{_SUFFIXES})(?=\s|$)", re.IGNORECASE)  # greedy: up to the last suffix
_QUOTED = re.compile(r'"((?:[^"]|"")*)"(?=\s|$)')
_FIELD = re.compile(rf"{_QUOTED.pattern}|(\S+)")


def read(data: bytes, source: str, words: Vocabulary) -> RawTable:
    """Read whitespace text.

    A name ends at its closing quote, else at the last image suffix (``.jpg``), else where the
    values at the end of the line begin. The number of values is the header's, or the most common.

    Raises:
        TableError: A line with another number of values, a quote that is not closed.

    Example:
        >>> from polytag.readers.tokens import TOKENS
        >>> raw = read(b"my photo.jpg 1 NA\\nb.jpg 0 1", "labels.txt", Vocabulary(TOKENS))
        >>> raw.rows
        [['my photo.jpg', '1', 'NA'], ['b.jpg', '0', '1']]
    """
    content, comments = content_lines(decode(data, source))
    lines = [(number, line.strip()) for number, line in content]
    notes = lines_note("comment", comments)
    header: tuple[int, list[str]] | None = None
    if lines and words.is_header(_fields(lines[0][1])):
        header, lines = (lines[0][0], _fields(lines[0][1])), lines[1:]
    _refuse_open_quotes(lines, source)
    if not lines:
        return RawTable(None, [], [], notes)

    cuts = [split_line(line, words) for _, line in lines]
    count = Counter(len(values) for _, values in cuts).most_common(1)[0][0]
    columns, count = _columns(header, count, source, words) if header else (None, count)
    if count == 0:
        raise TableError(
            "no label at the end of the line",
            where=place(source, lines[0][0]),
            got=repr(lines[0][1][:60]),
            expected="a file name, then values such as 1, 0 or NA",
            fix="write the image names first and the labels after them",
        )
    cuts = [
        cut if len(cut[1]) == count else _by_count(line, count) or cut
        for cut, (_, line) in zip(cuts, lines, strict=True)
    ]
    wrong = [i for i, (_, values) in enumerate(cuts) if len(values) != count]
    if wrong:
        name, values = cuts[wrong[0]]
        raise TableError(
            f"wrong number of values{more(len(wrong) - 1, 'line')}",
            where=place(source, lines[wrong[0]][0]),
            got=f"{len(values)} after {name!r}",
            expected=str(count),
            fix='write NA for what is not known; a name with spaces may stand in "quotes"',
        )
    rows = [[name, *values] for name, values in cuts]
    return RawTable(columns, rows, [number for number, _ in lines], notes)


def split_line(line: str, words: Vocabulary) -> tuple[str, list[str]]:
    """Return a line's image name and the fields after it; the line must not begin with a space.

    Example:
        >>> from polytag.readers.tokens import TOKENS
        >>> split_line('"a b" 1 0', Vocabulary(TOKENS)), split_line("a b 1 0", Vocabulary(TOKENS))
        (('a b', ['1', '0']), ('a b', ['1', '0']))
    """
    if quoted := _QUOTED.match(line):
        return quoted[1].replace('""', '"'), _fields(line[quoted.end() :])
    if named := _NAMED.match(line):
        return named[0], _fields(line[named.end() :])
    fields = _fields(line)
    count = 0
    while count < len(fields) - 1 and words.is_value(fields[-1 - count]):
        count += 1
    name = line.rsplit(None, count)[0] if count else line
    return name, fields[len(fields) - count :]


def _refuse_open_quotes(lines: list[tuple[int, str]], source: str) -> None:
    for number, line in lines:
        if line.startswith('"') and not _QUOTED.match(line):
            raise TableError(
                "the quote around the name is not closed",
                where=place(source, number),
                got=line[:60],
                expected='"my photo.jpg" 1 NA',
                fix='close the quote; a quote inside the name is written twice ("")',
            )


def _fields(text: str) -> list[str]:
    if '"' not in text:
        return text.split()
    return [
        match[2] if match[2] is not None else match[1].replace('""', '"')
        for match in _FIELD.finditer(text)
    ]


def _by_count(line: str, count: int) -> tuple[str, list[str]] | None:
    """Cut a line whose name shows no end by the number of values, if that leaves one word."""
    fields = _fields(line)
    if len(fields) != count + 1 or _QUOTED.match(line) or _NAMED.match(line):
        return None
    return fields[0], fields[1:]


def _columns(
    header: tuple[int, list[str]], count: int, source: str, words: Vocabulary
) -> tuple[tuple[str, ...], int]:
    """Return all column names and how many values a line has, given the most common count."""
    number, names = header
    if names[0] == words.image_column or image_word(names[0]) in IMAGE_COLUMNS:
        return tuple(names), len(names) - 1
    if len(names) == count:
        return ("image", *names), count
    if len(names) == count + 1:
        return tuple(names), count
    raise TableError(
        "the header does not fit the lines below it",
        where=place(source, number),
        got=plural(len(names), "name"),
        expected=f"{count}, or {count + 1} with the image column's",
        fix="begin the header with 'image' and name every column after it",
    )
