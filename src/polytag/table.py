"""Label tables with holes: N images, K attributes, each cell present (1), absent (0) or NaN.

``readers/`` finds rows and cells (one module a kind of file), what a token means
(``readers/tokens.py``) and what a column is (``readers/columns.py``), once for all kinds. Here is
the table they become: which names are safe, what a repeated image is, and what the rest of polytag
works with.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from polytag.errors import TableError
from polytag.names import clean_name
from polytag.readers import read_raw
from polytag.readers.columns import Columns, Problem, TokenUse, sort_columns
from polytag.readers.raw import more, place, plural, unit
from polytag.readers.tokens import Vocabulary, meaning, token_table

__all__ = ["LabelTable", "TokenUse", "read_table"]


@dataclass(frozen=True, eq=False, repr=False)
class LabelTable:
    """N images with K attributes that are present, absent or not known.

    Everything is checked when a table is made, so whoever holds one need not look again.

    Args:
        images: N different names relative to the image folder, as `clean_name` leaves them.
        attributes: K different names.
        values: float32 (N, K), read-only: 1 present, 0 absent, NaN not known.
        extra: Other columns by name (split, patient, source), N texts each.
        lines: Line (Parquet, memory: row) each image came from, from 1; () numbers them.
        source: Path of the file as the user gave it, "" for a table made in memory.
        tokens: Every distinct token in the label columns of the file: what it became and how often.
            Tokens and notes tell about the whole file; `select` leaves them as they are.
        notes: What was decided while reading, in words.

    Raises:
        TableError: Shapes that do not fit, values other than 1, 0 and NaN, repeated names, names
            that leave the image folder.

    Example:
        >>> table = LabelTable(("a.jpg", "b.jpg"), ("red",), [[1], [float("nan")]])
        >>> table
        LabelTable(2 images, 1 attribute)
        >>> table.counts()
        array([[1, 0, 1]])
    """

    images: tuple[str, ...]
    attributes: tuple[str, ...]
    values: NDArray[np.float32]
    extra: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    lines: tuple[int, ...] = ()
    source: str = ""
    tokens: Mapping[str, TokenUse] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.lines:
            object.__setattr__(self, "lines", tuple(range(1, len(self.images) + 1)))
        object.__setattr__(self, "values", _checked_values(self))
        _check_names(self)

    def __repr__(self) -> str:
        size = f"{plural(len(self.images), 'image')}, {plural(len(self.attributes), 'attribute')}"
        return f"LabelTable({size}{self.source and f', {self.source!r}'})"

    def __len__(self) -> int:
        return len(self.images)

    @classmethod
    def from_rows(
        cls,
        images: Iterable[str],
        attributes: Iterable[str],
        values: ArrayLike,
        extra: Mapping[str, Iterable[str]] | None = None,
    ) -> LabelTable:
        """Make a table in memory, from anything that can be iterated.

        Args:
            images: N names; ``./a.jpg`` and ``a.jpg`` are the same.
            attributes: K names.
            values: (N, K) of 1, 0 and NaN; True, False and None will do.
            extra: Other columns by name, N texts each.

        Raises:
            TableError: As the constructor.

        Example:
            >>> LabelTable.from_rows(["./a.jpg"], ["red", "blue"], [[True, None]]).values
            array([[ 1., nan]], dtype=float32)
        """
        return cls(
            tuple(clean_name(name, place("", row)) for row, name in enumerate(images, 1)),
            tuple(attributes),
            values,  # type: ignore[arg-type]  # the constructor makes the array
            {name: tuple(column) for name, column in (extra or {}).items()},
        )

    def counts(self) -> NDArray[np.int64]:
        """Return int64 (K, 3): how many cells of each attribute are present, absent, not known.

        Example:
            >>> LabelTable.from_rows("ab", ["red"], [[1], [0]]).counts()
            array([[1, 1, 0]])
        """
        kinds = (self.values == 1, self.values == 0, np.isnan(self.values))
        return np.stack([kind.sum(axis=0, dtype=np.int64) for kind in kinds], axis=1)

    @property
    def warnings(self) -> tuple[tuple[str, str], ...]:
        """Attributes nothing can be learned or measured about, each with the reason.

        Example:
            >>> LabelTable.from_rows("ab", ["red", "old"], [[1, None], [1, None]]).warnings
            (('red', 'one class only: 2 present, none absent'), ('old', 'no known cell'))
        """
        found: list[tuple[str, str]] = []
        for name, (present, absent, _) in zip(self.attributes, self.counts(), strict=True):
            if not present and not absent:
                found.append((name, "no known cell"))
            elif not absent:
                found.append((name, f"one class only: {present} present, none absent"))
            elif not present:
                found.append((name, f"one class only: {absent} absent, none present"))
        return tuple(found)

    @property
    def cells(self) -> str:
        """What every distinct token of the file became, in words; empty for a table in memory.

        Example:
            >>> use = {"yes": TokenUse("present", 2), "": TokenUse("na", 1)}
            >>> LabelTable(("a",), ("red",), [[1]], tokens=use).cells
            "cells: 'yes' = present (2), '' = not known (1)"
        """
        words = {"na": "not known"}
        uses = (
            f"{token!r} = {words.get(use.meaning, use.meaning)} ({use.count})"
            for token, use in self.tokens.items()
        )
        return f"cells: {', '.join(uses)}" if self.tokens else ""

    def where(self, row: int) -> str:
        """Return where a row (from 0) came from, as errors say it.

        Example:
            >>> table = LabelTable.from_rows("ab", ["red"], [[1], [0]])
            >>> table.where(1), replace(table, source="labels.txt").where(1)
            ('row 2', 'labels.txt:2')
        """
        return place(self.source, self.lines[row])

    def select(self, rows: ArrayLike) -> LabelTable:
        """Return the table of some rows, in the order given.

        Args:
            rows: Row numbers from 0, each once, or a mask of N booleans.

        Raises:
            TableError: A row given twice.
            IndexError: A row that is not there.

        Example:
            >>> table = LabelTable.from_rows("abc", ["red"], [[1], [0], [None]])
            >>> table.select([2, 0]).images, table.select([False, True, False]).images
            (('c', 'a'), ('b',))
        """
        wanted = np.asarray(rows)
        index = np.arange(len(self))[wanted if wanted.size else wanted.astype(np.intp)]
        return replace(
            self,
            images=tuple(self.images[i] for i in index),
            values=self.values[index],
            extra={name: tuple(column[i] for i in index) for name, column in self.extra.items()},
            lines=tuple(self.lines[i] for i in index),
        )


def read_table(
    path: str | os.PathLike[str],
    *,
    attributes: str | Sequence[str] | None = None,
    ignore: str | Sequence[str] = (),
    extra: str | Sequence[str] = (),
    values: str | Mapping[str, object] | None = None,
    image_column: str | None = None,
) -> LabelTable:
    """Read a label table: whitespace text, CSV, semicolons, TSV, JSON lines or Parquet.

    The suffix names the kind; ``.txt`` and unknown ones are sniffed. Every cell is read as text
    and mapped by one token table, whatever the kind: 1, 1.0, true, yes, present; 0, 0.0, false,
    no, absent; NA, N/A, NaN, null and nothing are not known. ``-1`` is never mapped unasked.

    Args:
        path: The file.
        attributes: With a header: the columns to take as labels, in this order; the others are
            kept as extra. Without one: the names of the columns. A text is split at commas.
            Default: every column whose cells are all tokens; Attr1, Attr2, ... without a header.
        ignore: Columns to leave out.
        extra: Columns to keep beside the labels, though they may look like labels.
        values: More tokens, or other meanings: ``"1=present,0=absent,-1=na"`` or a mapping.
        image_column: The column of image names. Default: a known name (image, file_name, path,
            ...), else the first column.

    Raises:
        TableError: The file cannot be read as it stands; the message says where, what stood there,
            what was expected and what to do.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp(), "labels.txt")
        >>> _ = path.write_text("image_0.jpg 1 NA\\nimage_1.jpg 0 1\\n")
        >>> read_table(path, attributes="black,red").values
        array([[ 1., nan],
               [ 0., 1.]], dtype=float32)
    """
    source = os.fspath(path)
    words = Vocabulary(token_table(values), image_column)
    raw = read_raw(source, words)
    if not raw.rows:
        fix = "write one row for each image: its name, then 1, 0 or NA for each attribute"
        raise TableError("no usable row", where=source, fix=fix)
    left_out, beside = _names(ignore) or (), _names(extra) or ()
    columns = sort_columns(raw, source, words, _names(attributes), left_out, beside)
    images, bad_names = _clean_names(columns.image, source, raw.lines)
    problems = [*bad_names, *columns.problems]
    if problems:
        raise min(problems, key=lambda problem: problem.row).error
    keep, merged = _merge_repeats(images, columns, raw.lines, source)
    said = values if isinstance(values, str) or values is None else str(dict(values))
    return LabelTable(
        tuple(images[row] for row in keep),
        tuple(columns.labels),
        np.stack(list(columns.labels.values()), axis=1)[keep],
        {name: tuple(column[row] for row in keep) for name, column in columns.extra.items()},
        tuple(raw.lines[row] for row in keep),
        source,
        columns.tokens,
        (*raw.notes, *columns.notes, *([f"values as told: {said}"] if said else []), *merged),
    )


def _names(names: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """Return the names as a tuple; a text is split at commas, none at all is None."""
    parts = names.split(",") if isinstance(names, str) else (names or ())
    return tuple(part.strip() for part in parts if part.strip()) or None


def _clean_names(
    cells: Sequence[str], source: str, lines: Sequence[int]
) -> tuple[list[str], list[Problem]]:
    """Return the cleaned names and at most one problem: the first."""
    images: list[str] = []
    problems: list[Problem] = []
    for row, cell in enumerate(cells):
        try:
            images.append(clean_name(cell, place(source, lines[row])))
        except TableError as error:
            problems.append(Problem(row, error))
    return images, problems[:1]


def _merge_repeats(
    images: Sequence[str], columns: Columns, lines: Sequence[int], source: str
) -> tuple[list[int], list[str]]:
    """Return the rows to keep, each image once, and a note on the rows that only repeat one.

    Raises:
        TableError: The same image with different cells.
    """
    first: dict[str, int] = {}
    again = [
        (row, first[image])
        for row, image in enumerate(images)
        if first.setdefault(image, row) != row
    ]
    clashes = [(row, earlier) for row, earlier in again if _differences(columns, row, earlier)]
    if clashes:
        row, earlier = clashes[0]
        differences = _differences(columns, row, earlier)
        rest = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        other = f"{unit(source)} {lines[earlier]}"
        raise TableError(
            f"image {images[row]!r} stands twice with different cells"
            f"{more(len(clashes) - 1, 'image')}",
            where=place(source, lines[row]),
            got=", ".join(differences[:3]) + rest,
            expected=f"the same cells as in {other}",
            fix=f"keep one of {unit(source)} {lines[earlier]} and {lines[row]}",
        )
    pairs = [f"{images[row]!r} ({unit(source)} {lines[row]} as {lines[old]})" for row, old in again]
    shown = ", ".join(pairs[:5]) + (", ..." if len(pairs) > 5 else "")
    notes = [f"{plural(len(again), 'identical row')} merged: {shown}"] if again else []
    return list(first.values()), notes


def _differences(columns: Columns, row: int, earlier: int) -> list[str]:
    """Return the cells in which two rows of one image differ, in words."""
    labels = [
        (name, meaning(float(column[row])), meaning(float(column[earlier])))
        for name, column in columns.labels.items()
    ]
    texts = [(name, repr(col[row]), repr(col[earlier])) for name, col in columns.extra.items()]
    return [f"{name} {here} (was {there})" for name, here, there in labels + texts if here != there]


def _checked_values(table: LabelTable) -> NDArray[np.float32]:
    """Return the values as a read-only float32 array of the right shape that holds 1, 0, NaN."""
    expected = (len(table.images), len(table.attributes))
    try:
        given = np.array(table.values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TableError("values cannot be an array of numbers", got=str(error)) from None
    if given.shape != expected:
        raise TableError(
            "values do not fit the images and attributes",
            got=f"shape {given.shape}",
            expected=f"{expected}, a row for each image and a column for each attribute",
        )
    wrong = ~(np.isnan(given) | (given == 0) | (given == 1))
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise TableError(
            f"a value of {table.attributes[column]!r} is no label",
            where=table.where(row),
            got=f"{given[row, column]:g}",
            expected="1 (present), 0 (absent) or NaN (not known)",
        )
    values = given.astype(np.float32)
    values.setflags(write=False)
    return values


def _check_names(table: LabelTable) -> None:
    """Refuse repeated or unsafe names and columns of the wrong length."""
    for what, names in (("image", table.images), ("attribute", table.attributes)):
        if len(set(names)) < len(names):
            twice = next(name for name, count in Counter(names).items() if count > 1)
            raise TableError(f"the {what} {twice!r} stands twice", where=table.source)
    if not all(table.attributes):
        raise TableError("an attribute without a name", where=table.source)
    for row, name in enumerate(table.images):
        clean = clean_name(name, table.where(row))
        if clean != name:
            where = table.where(row)
            raise TableError("image name not clean", where=where, got=repr(name), expected=clean)
    columns = {"lines": table.lines, **table.extra}
    for name, column in columns.items():
        if len(column) != len(table.images):
            raise TableError(
                f"column {name!r} has the wrong length",
                where=table.source,
                got=str(len(column)),
                expected=str(len(table.images)),
            )
