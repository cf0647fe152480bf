"""What some model said about pictures, whoever made it: read from a file, matched with a table.

A file is a wide table (``image``, then for each attribute ``<attribute>``, its probability, and
perhaps ``<attribute>_decision``, then perhaps ``error``) as CSV, TSV or Parquet, or JSON with the
records of ``polytag predict --format jsonl``. A foreign table needs no more than an image column
and one column of probabilities for an attribute of the table that it is judged by.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polytag.errors import RecipeError, SkippedError, UserError, did_you_mean
from polytag.predictions import Predictions
from polytag.readers import READERS, read_raw
from polytag.readers.raw import PARQUET_SUFFIXES, content_lines, decode, place
from polytag.readers.tokens import IMAGE_COLUMNS, TOKENS, Vocabulary, image_word

SUFFIXES = (*READERS, ".txt")  # of files that hold answers; a model has another
_JSON = (".json", ".jsonl", ".ndjson")
_DECISIONS = ("present", "absent", "unsure")
_HALF = 0.5  # decides where the file does not and nobody said another threshold
_RISKY = ("=", "+", "-", "@", "\t", "\r", "\n")  # what predictions.py puts an apostrophe before


@dataclass(frozen=True, eq=False)
class Answers:
    """Probabilities and decisions about M pictures.

    Attributes:
        images: M different names, divided by ``/``.
        attributes: K names.
        probabilities: float64 (M, K) in [0, 1]; NaN where there is no answer.
        decisions: str (M, K): present, absent, unsure; empty where the threshold decides.
        thresholds: float64 (K,); NaN where decisions were given.
        errors: M entries: why there is no answer about a picture, or None.
        source: The file; empty for answers made in memory.
        others: What else the file has columns for.
    """

    images: tuple[str, ...]
    attributes: tuple[str, ...]
    probabilities: NDArray[np.float64]
    decisions: NDArray[np.str_]
    thresholds: NDArray[np.float64]
    errors: tuple[str | None, ...]
    source: str = ""
    others: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    @classmethod
    def of(cls, predictions: Predictions) -> Answers:
        """Take over what a model of polytag's said.

        Example:
            >>> said = Predictions(("a.jpg",), ("red",), np.array([[0.75]], np.float32),
            ...                    np.array([0.5]), (None,))
            >>> Answers.of(said).probabilities
            array([[0.75]])
        """
        decisions = predictions.decisions
        # A threshold says as much as its decisions, and more; unsure needs the decisions.
        unsure = (decisions == "unsure").any(axis=0)
        return cls(
            tuple(map(_plain_path, predictions.images)),
            predictions.attributes,
            predictions.probabilities.astype(np.float64),
            np.where(unsure, decisions, ""),
            predictions.thresholds,
            predictions.errors,
        )

    def with_thresholds(
        self, common: float | None = None, each: Mapping[str, float] | None = None
    ) -> Answers:
        """Return answers that are decided by thresholds, whatever decisions were given.

        Args:
            common: For all attributes.
            each: By attribute; wins over ``common``.

        Raises:
            RecipeError: An attribute that is not there, or a threshold outside (0, 1).
        """
        chosen = {} if common is None else dict.fromkeys(self.attributes, common)
        chosen |= each or {}
        thresholds, decisions = self.thresholds.copy(), self.decisions.copy()
        for name, value in chosen.items():
            if name not in self.attributes:
                fix = did_you_mean(name, self.attributes)
                raise RecipeError("no threshold for this attribute", where=name, fix=fix)
            if not 0 < value < 1:
                expected = "a number above 0 and below 1"
                raise RecipeError(
                    "a threshold is out of range", where=name, got=f"{value:g}", expected=expected
                )
            k = self.attributes.index(name)
            thresholds[k], decisions[:, k] = value, ""
        return replace(self, thresholds=thresholds, decisions=decisions)

    def rows_of(self, names: Sequence[str]) -> NDArray[np.int64]:
        """Return which answer is about each of N pictures, int64 (N,), and -1 where none is.

        Answers may name files from elsewhere (``predict images/`` says ``images/a.jpg``): one
        folder in front of all names is passed over, if more names of the table are found so.

        Example:
            >>> said = Predictions(("new/b.jpg",), ("red",), np.array([[0.75]], np.float32),
            ...                    np.array([0.5]), (None,))
            >>> Answers.of(said).rows_of(["a.jpg", "b.jpg"]).tolist()
            [-1, 0]
        """
        rows = {name: row for row, name in enumerate(self.images)}
        folders = self.images[0].split("/")[:-1] if self.images else []
        fronts = ["", *("/".join(folders[: i + 1]) + "/" for i in range(len(folders)))]
        front = max(fronts, key=lambda front: sum(front + name in rows for name in names))
        return np.array([rows.get(front + name, -1) for name in names], dtype=np.int64)


def read_answers(path: str | os.PathLike[str], attributes: Sequence[str]) -> Answers:
    """Read a file of predictions.

    Args:
        path: CSV, TSV, Parquet, JSON or JSON lines.
        attributes: What to look for: those of the table the answers are judged by.

    Raises:
        UserError: No image column or none for an attribute, an image twice, a cell that is no
            probability or no decision; the message says where.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "said.csv")
        ...     _ = file.write_text("image,red,camera\\na.jpg,0.75,left\\n")
        ...     said = read_answers(file, ["red", "striped"])
        >>> said.attributes, said.probabilities.tolist(), said.others
        (('red',), [[0.75]], ('camera',))
    """
    source = os.fspath(path)
    cells = _json_cells(source) if Path(source).suffix.lower() in _JSON else _table_cells(source)
    shared = tuple(name for name in attributes if name in cells.probabilities)
    others = tuple(name for name in cells.probabilities if name not in attributes)
    if not shared:
        raise UserError(
            "the predictions and the table share no attribute",
            where=source,
            got=", ".join(others[:8]) or "the image column alone",
            expected=f"a column of probabilities called like one of {', '.join(attributes[:8])}",
        )
    images = [_plain_path(name) for name in cells.images]
    _refuse_repeats(images, cells)
    probabilities = np.full((len(images), len(shared)), np.nan)
    decisions = np.full(probabilities.shape, "", dtype="<U7")
    thresholds = np.full(len(shared), _HALF)
    for k, name in enumerate(shared):
        probabilities[:, k] = [
            _probability(text, name, cells, row)
            for row, text in enumerate(cells.probabilities[name])
        ]
        words = cells.decisions.get(name)
        if words and any(words):
            thresholds[k] = np.nan
            decisions[:, k] = [
                _decision(text, name, cells, row, said=not np.isnan(probabilities[row, k]))
                for row, text in enumerate(words)
            ]
    failed = np.array([bool(error) for error in cells.errors], dtype=bool)
    probabilities[failed], decisions[failed] = np.nan, ""
    empty = np.isnan(probabilities).all(axis=1)
    errors = tuple(
        error or ("no probability" if nothing else None)
        for error, nothing in zip(cells.errors, empty, strict=True)
    )
    return Answers(
        tuple(images), shared, probabilities, decisions, thresholds, errors, source, others
    )


def holds_answers(path: Path) -> bool:
    """Return whether a path names a file of predictions, and no model.

    Example:
        >>> holds_answers(Path("said.csv")), holds_answers(Path("runs/first/model.onnx"))
        (True, False)
    """
    return path.suffix.lower() in SUFFIXES and not path.is_dir()


def refuse_unanswered(rows: Sequence[str], total: int, *, strict: bool, most: float) -> None:
    """Stop where too many rows of a table have no prediction.

    Args:
        rows: Those rows, in words.
        total: How many rows the table has.
        strict: Whether one is too many.
        most: Share of ``total`` that may have none.

    Raises:
        UserError: ``strict`` and any row has none.
        SkippedError: More than the share ``most`` has none.

    Example:
        >>> refuse_unanswered(["c.jpg (row 3): no probability"], 20, strict=False, most=0.1)
    """
    count = f"{len(rows)} of {total} rows have no prediction"
    if rows and strict:
        raise UserError(f"{count}, and --strict allows none; the first is {rows[0]}")
    if len(rows) > most * total:
        raise SkippedError(
            f"{count}, more than the {most:.0%} that --max-skipped allows; the first is {rows[0]}; "
            "predict these pictures too, take their rows out of the table, or raise --max-skipped"
        )


@dataclass(frozen=True)
class _Cells:
    """A file's cells as text, M of each."""

    source: str
    images: list[str] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    probabilities: dict[str, list[str]] = field(default_factory=dict)
    decisions: dict[str, list[str]] = field(default_factory=dict)
    errors: list[str | None] = field(default_factory=list)

    def where(self, row: int) -> str:
        return place(self.source, self.lines[row])


def _table_cells(source: str) -> _Cells:
    raw = read_raw(source, Vocabulary(TOKENS, "image"))  # a first line with that is a header
    # Only text tables can be opened by a spreadsheet, so only there an apostrophe was added.
    safe = not source.lower().endswith(PARQUET_SUFFIXES)
    undo = _without_apostrophe if safe else str
    names = [undo(name).strip() for name in raw.columns or ()]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"two columns are called {twice[0]!r}", where=source)
    image = _image_column(names, source)
    columns = {name: [row[k] for row in raw.rows] for k, name in enumerate(names)}
    images = [undo(cell) for cell in columns.pop(image)]
    errors: list[str | None] = [undo(cell).strip() or None for cell in columns.pop("error", ())]
    decisions = {
        name.removesuffix("_decision"): [cell.strip() for cell in columns.pop(name)]
        for name in list(columns)
        if name.endswith("_decision") and name.removesuffix("_decision") in columns
    }
    return _Cells(
        source, images, list(raw.lines), columns, decisions, errors or [None] * len(images)
    )


def _image_column(names: Sequence[str], source: str) -> str:
    known = {image_word(name): name for name in reversed(names)}
    for word in IMAGE_COLUMNS:
        if word in known:
            return known[word]
    raise UserError(
        "no column names the images",
        where=source,
        got=", ".join(map(repr, names[:8])) or "no header",
        expected="a header with a column called 'image'",
    )


def _json_cells(source: str) -> _Cells:
    """Read records, one a line or all in one array: polytag's, or flat ones."""
    try:
        text = decode(Path(source).read_bytes(), source)
    except OSError as error:
        raise UserError(f"cannot open it: {error.strerror}", where=source) from None
    cells = _Cells(source)
    whole = text.lstrip().startswith("[")
    lines = [(1, text)] if whole else content_lines(text)[0]
    records = [(number, _parsed(line, place(source, number))) for number, line in lines]
    if whole:  # counted, for want of lines
        records = list(enumerate(records[0][1], 1))
    for row, (number, record) in enumerate(records):
        cells.lines.append(number)
        _add_record(cells, row, record)
    for column in (*cells.probabilities.values(), *cells.decisions.values()):
        column += [""] * (len(records) - len(column))
    return cells


def _add_record(cells: _Cells, row: int, record: Any) -> None:
    if not isinstance(record, dict):
        got, expected = repr(record)[:60], '{"image": "a.jpg", ...}'
        raise UserError("not a record", where=cells.where(row), got=got, expected=expected)
    names = [name for name in record if image_word(name) in IMAGE_COLUMNS]
    image = _image_column(names or list(record), cells.where(row))
    cells.images.append(_json_text(record.pop(image)))
    cells.errors.append(_json_text(record.pop("error", None)) or None)
    nested = isinstance(record.get("probabilities"), dict)
    said = record["probabilities"] if nested else record
    decided = record.get("decisions") if nested else None
    for columns, found in ((cells.probabilities, said), (cells.decisions, decided or {})):
        for name, value in found.items():
            column = columns.setdefault(name, [])
            column += [""] * (row - len(column))
            column.append(_json_text(value))


def _parsed(text: str, where: str) -> Any:
    try:
        # Numbers keep the text they are written with, as in every other kind of file.
        return json.loads(text, parse_int=str, parse_float=str, parse_constant=str)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError("not JSON", where=where, got=str(error)) from None


def _json_text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _probability(cell: str, name: str, cells: _Cells, row: int) -> float:
    text = cell.strip()
    if math.isnan(TOKENS.get(text.casefold(), 0.0)):
        return math.nan
    try:
        value = float(text)
    except ValueError:
        value, problem, fix = math.nan, "not a probability", ""
    else:
        problem = "a probability outside [0, 1]"
        fix = "if it is a logit z, write 1 / (1 + exp(-z))"
    if 0 <= value <= 1:
        return value
    raise UserError(
        f"column {name!r}: {problem}",
        where=cells.where(row),
        got=repr(text[:40]),
        expected="a number from 0 to 1, or nothing",
        fix=fix,
    )


def _decision(word: str, name: str, cells: _Cells, row: int, *, said: bool) -> str:
    if word in (_DECISIONS if said else ("",)) or cells.errors[row]:
        return word
    raise UserError(
        f"column {name + '_decision'!r}: "
        + ("not a decision" if said else "a decision without a probability"),
        where=cells.where(row),
        got=repr(word[:40]),
        expected=", ".join(_DECISIONS) if said else f"a number in column {name!r}",
    )


def _refuse_repeats(images: Sequence[str], cells: _Cells) -> None:
    first: dict[str, int] = {}
    for row, name in enumerate(images):
        if not name:
            raise UserError("the image name is empty", where=cells.where(row))
        if first.setdefault(name, row) != row:
            raise UserError(
                f"image {name!r} stands twice",
                where=cells.where(row),
                got=f"the first is {cells.where(first[name])}",
                fix="keep one of them",
            )


def _plain_path(name: str) -> str:
    """Return a name as tables divide it; it may lead anywhere, as nothing is opened by it."""
    parts = name.strip().replace("\\", "/").split("/")
    return "/".join(part for part in parts if part not in ("", "."))


def _without_apostrophe(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(_RISKY) else cell
