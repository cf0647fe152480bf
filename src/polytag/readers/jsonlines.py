"""JSON lines: one object a line, ``{"image": "a.jpg", "black": true, "red": null}``."""

from __future__ import annotations

import json

from polytag.errors import TableError
from polytag.readers.raw import RawTable, content_lines, decode, lines_note, place, plural
from polytag.readers.tokens import Vocabulary


def read(data: bytes, source: str, words: Vocabulary) -> RawTable:
    """Read JSON lines. Numbers keep the text they are written with; an absent key is ``""``.

    Raises:
        TableError: A line that is not one object, or with the same key twice.

    Example:
        >>> from polytag.readers.tokens import TOKENS
        >>> raw = read(b'{"image": "a.jpg", "red": 1.0}', "labels.jsonl", Vocabulary(TOKENS))
        >>> raw.columns, raw.rows
        (('image', 'red'), [['a.jpg', '1.0']])
    """
    lines, comments = content_lines(decode(data, source))
    columns: dict[str, None] = {}  # ordered, by first appearance
    nested: dict[str, tuple[int, str]] = {}
    objects: list[dict[str, str]] = []
    for number, line in lines:
        cells: dict[str, str] = {}
        for key, value in _object(line, place(source, number)).items():
            if isinstance(value, str):  # numbers too: see parse_int and its kin below
                cells[key] = value
            elif isinstance(value, bool):
                cells[key] = "true" if value else "false"
            else:
                cells[key] = ""  # null, or nested: noted, for columns.py to refuse
            if isinstance(value, (list, dict)):
                kind, part = ("list", "value") if isinstance(value, list) else ("object", "key")
                nested.setdefault(key, (number, f"one {kind} of {plural(len(value), part)}"))
        columns.update(dict.fromkeys(cells))
        objects.append(cells)
    rows = [[cells.get(column, "") for column in columns] for cells in objects]
    numbers = [number for number, _ in lines]
    return RawTable(tuple(columns), rows, numbers, lines_note("comment", comments), nested)


def _object(line: str, where: str) -> dict[str, object]:
    fix = "write one object with one key for each attribute on each line"

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise TableError("the same key twice", where=where, got=repr(twice), fix=fix)
        return found

    try:
        value = json.loads(
            line, object_pairs_hook=unique, parse_int=str, parse_float=str, parse_constant=str
        )
    except json.JSONDecodeError as error:
        found = f"{error.msg} at column {error.colno}"
        raise TableError("not JSON", where=where, got=found, fix=fix) from None
    except RecursionError:
        raise TableError("JSON nested too deep", where=where, fix=fix) from None
    if not isinstance(value, dict):
        got = repr(line[:60])
        raise TableError("not an object", where=where, got=got, expected="{...}", fix=fix)
    return value
