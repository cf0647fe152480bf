"""Which column is what: the image's name, a label, something else. One rule for all formats."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from polytag.errors import TableError, did_you_mean
from polytag.readers.raw import RawTable, more, place, plural, unit
from polytag.readers.tokens import EXPECTED, IMAGE_COLUMNS, Vocabulary, image_word, meaning

MINUS_ONE = ("-1", "-1.0")

# A header cell pandas leaves empty, or fills, over an index that nobody named.
_NAMELESS = re.compile(r"(unnamed: \d+)?", re.IGNORECASE)


@dataclass(frozen=True)
class TokenUse:
    """What one token became, and in how many label cells it stood.

    Attributes:
        meaning: present, absent or na.
        count: Number of cells.
    """

    meaning: str
    count: int


class Problem(NamedTuple):
    """An error and the row (from 0) it shows in, so that the first in file order is reported."""

    row: int
    error: TableError


@dataclass(frozen=True)
class Columns:
    """The columns of a table by role.

    Attributes:
        image: Cells of the image column.
        labels: float32 (N,) of 1, 0 or NaN for each label column.
        extra: Stripped cells of each column that is no label.
        tokens: Every token seen in the label columns.
        notes: Each decision in words.
        problems: What forbids to go on.
    """

    image: Sequence[str]
    labels: dict[str, NDArray[np.float32]]
    extra: dict[str, tuple[str, ...]]
    tokens: dict[str, TokenUse]
    notes: tuple[str, ...]
    problems: list[Problem]


def sort_columns(
    raw: RawTable,
    source: str,
    words: Vocabulary,
    attributes: tuple[str, ...] | None,
    ignore: tuple[str, ...],
    extra: tuple[str, ...] = (),
) -> Columns:
    """Name the columns and give each its role.

    A column whose cells are all tokens is a label; one where fewer than half are is kept as
    extra; one in between is a problem. ``attributes`` selects the labels where there is a header
    and names all columns where there is none; a column called an attribute is never extra, and one
    named in ``extra`` never a label.

    Raises:
        TableError: Unknown or repeated names, a cell that is a list, no image or label column.
    """
    names = _column_names(raw, attributes, source)
    cells = dict(zip(names, zip(*raw.rows, strict=True), strict=True))
    _require(ignore, names, "to ignore", source)
    kept = {name: column for name, column in cells.items() if name not in ignore}
    for name, (line, kind) in raw.nested.items():
        if name.strip() in kept:
            raise _nested(name.strip(), kind, place(source, line))
    headers = zip(names, raw.columns or names, strict=True)
    nameless = [name for name, header in headers if _NAMELESS.fullmatch(header.strip())]
    image = _image_column(kept, nameless, words, source)
    named = {name: kept[name] for name in kept if name not in (image, *nameless)}
    selected = attributes if raw.columns is not None else None
    _require(selected or (), named, "to take as an attribute", source)

    _require(extra, named, "to keep beside the labels", source)
    unselected = [
        name for name in named if name in extra or (selected is not None and name not in selected)
    ]
    candidates = {name: named[name] for name in selected or named if name not in extra}
    sorter = _Sorter(source, raw.lines, words, forced=attributes is not None)
    for name, column in candidates.items():
        sorter.add(name, column)
    if not sorter.labels and not sorter.problems():
        raise sorter.no_label(list(named))
    sorter.extra.update((name, tuple(map(str.strip, named[name]))) for name in unselected)
    notes = [
        f"images are named by column {image!r}" if raw.columns is not None else _no_header(named),
        f"label columns: {', '.join(sorter.labels)}",
        *sorter.notes,
        *_named_note("kept as extra, as asked", extra),
        *_named_note(
            "kept as extra, not among the attributes asked for",
            [name for name in unselected if name not in extra],
        ),
        *_named_note("ignored", ignore),
        *_named_note("left out, without a name", [name for name in nameless if name != image]),
    ]
    beside = {name: sorter.extra[name] for name in named if name in sorter.extra}
    return Columns(
        cells[image], sorter.labels, beside, sorter.tokens, tuple(notes), sorter.problems()
    )


class _Sorter:
    """Takes column after column and remembers what each became."""

    def __init__(
        self, source: str, lines: Sequence[int], words: Vocabulary, *, forced: bool
    ) -> None:
        self.source, self.lines, self.words, self.forced = source, lines, words, forced
        self.labels: dict[str, NDArray[np.float32]] = {}
        self.extra: dict[str, tuple[str, ...]] = {}
        self.tokens: dict[str, TokenUse] = {}
        self.notes: list[str] = []
        self.mixed: dict[str, Sequence[str]] = {}
        self.minus: dict[str, Sequence[str]] = {}

    def add(self, name: str, column: Sequence[str]) -> None:
        """Decide on one column; the work is per distinct cell, so large tables stay cheap."""
        counts = Counter(column)
        table = {cell: self.words.tokens.get(cell.strip().casefold()) for cell in counts}
        bad = [cell for cell, value in table.items() if value is None]
        good = len(column) - sum(counts[cell] for cell in bad)
        if not bad:
            self.labels[name] = np.array([table[cell] for cell in column], dtype=np.float32)
            for cell, value in table.items():
                if value is not None:
                    seen = self.tokens.get(cell.strip())
                    count = counts[cell] + (seen.count if seen else 0)
                    self.tokens[cell.strip()] = TokenUse(meaning(value), count)
        elif all(cell.strip() in MINUS_ONE for cell in bad):
            self.minus[name] = column
        elif 2 * good < len(column) and not self.forced:
            self.extra[name] = tuple(map(str.strip, column))
            self.notes.append(
                f"column {name!r} kept as extra: {good} of {len(column)} cells are labels, "
                f"the first other is {self._say(column, next(self._bad(column)))}"
            )
        else:
            self.mixed[name] = column

    def problems(self) -> list[Problem]:
        """Return at most one problem of each kind: the first in file order."""
        found: list[Problem] = []
        for kind, error in ((self.mixed, self._mixed), (self.minus, self._minus_one)):
            if kind:
                name = min(kind, key=lambda name: next(self._bad(kind[name])))
                others = more(len(kind) - 1, "column")
                found.append(Problem(next(self._bad(kind[name])), error(name, kind[name], others)))
        return found

    def no_label(self, names: list[str]) -> TableError:
        """Return the error for a table none of whose columns is a label."""
        shown = [
            f"{name!r} with {self._say(self.extra[name], next(self._bad(self.extra[name])))}"
            for name in names[:3]
        ]
        fix = 'write one column for each attribute, or say with --values "WORD=present,'
        fix += 'OTHER=absent" what its words mean'
        return TableError(
            "no label column",
            where=self.source,
            got=", ".join(shown) or "the image column alone",
            expected=f"a column with {EXPECTED}",
            fix=fix if shown else "divide the columns by commas, semicolons or tabs",
        )

    def _mixed(self, name: str, column: Sequence[str], others: str) -> TableError:
        rows = list(self._bad(column))
        shown = ", ".join(self._say(column, row) for row in rows[:3])
        word = column[rows[0]].strip()
        word = "WORD" if {",", '"'} & set(word) else word
        return TableError(
            f"column {name!r}: {plural(len(rows), 'cell')} of {len(column)} cannot be read as "
            f"labels{others}",
            where=place(self.source, self.lines[rows[0]]),
            got=shown + (f" and {len(rows) - 3} more" if len(rows) > 3 else ""),
            expected=EXPECTED,
            fix=f'correct them, say what they mean (--values "{word}=na"), or leave the column '
            f"out (--ignore {shlex.quote(name)})",
        )

    def _minus_one(self, name: str, column: Sequence[str], others: str) -> TableError:
        rows = list(self._bad(column))
        return TableError(
            f"column {name!r} holds -1, which is absent in some tables and not known in "
            f"others{others}",
            where=place(self.source, self.lines[rows[0]]),
            got=f"{column[rows[0]].strip()!r} in {len(rows)} of {len(column)} cells",
            expected=EXPECTED,
            fix='add --values "-1=na" or --values "-1=absent" (all spelled out: '
            '--values "1=present,0=absent,-1=na"), or leave the column out '
            f"(--ignore {shlex.quote(name)})",
        )

    def _bad(self, column: Sequence[str]) -> Iterator[int]:
        return (
            row
            for row, cell in enumerate(column)
            if cell.strip().casefold() not in self.words.tokens
        )

    def _say(self, column: Sequence[str], row: int) -> str:
        return f"{column[row].strip()[:40]!r} ({unit(self.source)} {self.lines[row]})"


def _column_names(
    raw: RawTable, attributes: tuple[str, ...] | None, source: str
) -> tuple[str, ...]:
    """Return a name for every column; a column without one is called after its position."""
    if raw.columns is None:
        count = len(raw.rows[0]) - 1
        given = attributes or tuple(f"Attr{i}" for i in range(1, count + 1))
        if len(given) != count:
            raise TableError(
                "the attribute names do not fit a table without a header",
                where=source,
                got=plural(len(given), "name"),
                expected=f"{count}, one for each column after the image's",
                fix="name every column",
            )
        names = ("image", *given)
    else:
        names = tuple(name.strip() or f"column {i}" for i, name in enumerate(raw.columns, 1))
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise TableError(
            f"two columns are called {twice[0]!r}{more(len(twice) - 1, 'name')}",
            where=source,
            got=", ".join(map(repr, names[:12])) + (", ..." if len(names) > 12 else ""),
            expected="a name for each column",
            fix="rename one of them",
        )
    return names


def _image_column(
    cells: Mapping[str, Sequence[str]], nameless: Sequence[str], words: Vocabulary, source: str
) -> str:
    """Return the column the user named, one with a known name, or the first that can be it."""
    if words.image_column is not None:
        _require((words.image_column,), cells, "that names the images", source)
        return words.image_column
    known = {image_word(name): name for name in reversed(list(cells))}
    for word in IMAGE_COLUMNS:
        if word in known:
            return known[word]
    for name, column in cells.items():
        if name in nameless and all(cell.strip().isdigit() for cell in column):
            continue  # the row numbers pandas writes
        if all(cell.strip().casefold() in words.tokens for cell in column):
            break
        return name
    raise TableError(
        "cannot tell which column names the images",
        where=source,
        got=", ".join(map(repr, islice(cells, 12))),
        expected="a column called 'image', or the names in the first column",
        fix="add --image-column COLUMN",
    )


def _require(names: Iterable[str], known: Iterable[str], what: str, source: str) -> None:
    columns = list(known)
    for name in names:
        if name not in columns:
            hint = did_you_mean(name, columns)
            raise TableError(f"no column {name!r} {what}", where=source, fix=hint)


def _nested(name: str, kind: str, where: str) -> TableError:
    return TableError(
        f"column {name!r} does not hold single values",
        where=where,
        got=kind,
        expected=f"single values ({EXPECTED})",
        fix="a list of tags cannot say absent versus not known: write one column for each "
        f"attribute, or leave it out (--ignore {shlex.quote(name)})",
    )


def _no_header(named: Iterable[str]) -> str:
    return f"no header: the image names stand first, the columns are called {', '.join(named)}"


def _named_note(what: str, names: Sequence[str]) -> list[str]:
    return [f"{plural(len(names), 'column')} {what}: {', '.join(names)}"] if names else []
