"""What a model says about pictures, and its forms: text, JSON, JSON lines, CSV, Parquet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from polytag.errors import UserError, printable

_ORDER = ("present", "unsure", "absent")
_DOUBT = "* training could not show that pictures carry this: the answer may be a guess"
DECIMALS = 6  # of a probability in text formats: float32 holds no more


@dataclass(frozen=True, eq=False)
class Predictions:
    """Probabilities and decisions for N pictures and K attributes.

    Attributes:
        images: N names, as they were given.
        attributes: K names.
        probabilities: float32 (N, K) in [0, 1]; NaN in the rows of pictures that failed.
        thresholds: float64 (K,): present from this probability on.
        errors: N entries: what was wrong with the picture, or None.
        cuts: K pairs (low, high): absent below low, present from high, unsure between, None: that
            is never said; None as a whole: ``thresholds`` decide, and nothing is unsure.
        verdicts: What was found about an attribute in training, where somebody judged that.

    Example:
        >>> p = Predictions(("a.jpg",), ("red", "striped"), np.array([[0.9, 0.2]], np.float32),
        ...                 np.array([0.5, 0.5]), (None,))
        >>> p.decisions.tolist()
        [['present', 'absent']]
    """

    images: tuple[str, ...]
    attributes: tuple[str, ...]
    probabilities: NDArray[np.float32]
    thresholds: NDArray[np.float64]
    errors: tuple[str | None, ...]
    cuts: tuple[tuple[float | None, float | None] | None, ...] | None = None
    verdicts: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def decisions(self) -> NDArray[np.str_]:
        """str (N, K): ``present``, ``absent``, ``unsure``, or empty where the picture failed."""
        decided = np.where(self.probabilities >= self.thresholds, "present", "absent")
        for k, pair in enumerate(self.cuts or ()):
            if pair is not None:
                low, high = pair
                p = self.probabilities[:, k]
                decided[:, k] = "unsure"
                decided[p >= (np.inf if high is None else high), k] = "present"
                decided[p < (-np.inf if low is None else low), k] = "absent"
        return np.where(np.isnan(self.probabilities), "", decided)

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield one dictionary a picture, as in JSON lines.

        Keys: ``image``, ``probabilities`` and ``decisions`` by attribute (empty if the picture
        failed), ``error`` (None if it did not).
        """
        rows = zip(self.images, self.probabilities, self.decisions, self.errors, strict=True)
        for image, probabilities, decisions, error in rows:
            known = () if error else self.attributes
            yield {
                "image": image,
                "probabilities": {
                    name: round(float(p), DECIMALS)
                    for name, p in zip(known, probabilities, strict=False)
                },
                "decisions": {name: str(d) for name, d in zip(known, decisions, strict=False)},
                "error": error,
            }


def concatenate(chunks: Iterable[Predictions]) -> Predictions:
    """Join consecutive chunks of one model's predictions.

    Raises:
        ValueError: There is no chunk.
    """
    parts = list(chunks)
    if not parts:
        raise ValueError("no predictions to join")
    return Predictions(
        images=tuple(image for part in parts for image in part.images),
        attributes=parts[0].attributes,
        probabilities=np.concatenate([part.probabilities for part in parts]),
        thresholds=parts[0].thresholds,
        errors=tuple(error for part in parts for error in part.errors),
        cuts=parts[0].cuts,
        verdicts=parts[0].verdicts,
    )


def write_text(chunks: Iterable[Predictions], out: TextIO) -> None:
    """Write what a person wants to read: what is present first, surest first."""
    doubted = False
    for chunk in chunks:
        doubts = [_doubted(chunk, name) for name in chunk.attributes]
        doubted |= any(doubts)
        names = [
            f"{printable(name)}{'*' * doubt}"
            for name, doubt in zip(chunk.attributes, doubts, strict=True)
        ]
        width = max(map(len, names), default=0)
        for row, image in enumerate(chunk.images):
            out.write(f"{printable(image)}\n")
            if error := chunk.errors[row]:
                # The line above names the file already.
                reason = printable(error).removeprefix(f"{printable(image)}: ")
                out.write(f"  ! not read: {reason}\n\n")
                continue
            decisions = chunk.decisions[row]
            kind = np.array([_ORDER.index(word) for word in decisions])
            ranked = np.lexsort((-chunk.probabilities[row], kind))
            for k in ranked:
                share = f"{chunk.probabilities[row, k] * 100:5.1f} %   {_rule(chunk, k)}"
                out.write(f"  {'✓?✗'[kind[k]]} {names[k]:<{width}}  {decisions[k]:<7}  {share}\n")
            present = [printable(chunk.attributes[k]) for k in ranked if kind[k] == 0]
            out.write(f"  attributes present: {', '.join(present) or 'none'}\n\n")
    if doubted:
        out.write(f"{_DOUBT}\n")


def _doubted(chunk: Predictions, name: str) -> bool:
    return not chunk.verdicts.get(name, "learnable").startswith("learnable")


def _rule(chunk: Predictions, k: int) -> str:
    """Say by what an attribute was decided."""
    cuts = chunk.cuts[k] if chunk.cuts else None
    if cuts is None:
        return f"(threshold {_percent(chunk.thresholds[k])})"
    low, high = cuts
    below = "never absent" if low is None else f"absent below {_percent(low)}"
    above = "never present" if high is None else f"present from {_percent(high)}"
    return f"({below}, {above})"


def _percent(share: float) -> str:
    return f"{share * 100:.3g} %"


def write_json(chunks: Iterable[Predictions], out: TextIO) -> None:
    """Write one JSON array of records, in ASCII: no terminal's encoding can spoil a name."""
    separator = "["
    for chunk in chunks:
        for record in chunk.records():
            out.write(f"{separator}\n  {json.dumps(record)}")
            separator = ","
    out.write("[]\n" if separator == "[" else "\n]\n")


def write_jsonl(chunks: Iterable[Predictions], out: TextIO) -> None:
    """Write one JSON record a line."""
    for chunk in chunks:
        for record in chunk.records():
            out.write(json.dumps(record) + "\n")


def write_csv(chunks: Iterable[Predictions], out: TextIO) -> None:
    """Write a wide CSV table that a spreadsheet cannot mistake for formulas.

    Text that begins with ``= + - @``, a tab or a line break gets an apostrophe in front
    (OWASP ASVS 1.2.10); Parquet and JSON hold names as they are.
    """
    for index, chunk in enumerate(chunks):
        if index == 0:
            out.write(_csv_line(map(_spreadsheet_safe, _wide_columns(chunk.attributes))))
        for row, image in enumerate(chunk.images):
            cells: list[str] = [_spreadsheet_safe(image)]
            for p, decision in zip(chunk.probabilities[row], chunk.decisions[row], strict=True):
                cells += ["" if np.isnan(p) else f"{p:.{DECIMALS}f}", str(decision)]
            out.write(_csv_line([*cells, _spreadsheet_safe(chunk.errors[row] or "")]))


def write_parquet(chunks: Iterable[Predictions], path: Path) -> None:
    """Write the wide table as Parquet; failed pictures have null cells."""
    import polars as pl

    joined = concatenate(chunks)
    columns: dict[str, Any] = {}
    names = _wide_columns(joined.attributes)
    columns["image"] = [_unicode(image) for image in joined.images]
    for k, (probability, decision) in enumerate(zip(names[1:-1:2], names[2:-1:2], strict=True)):
        columns[probability] = pl.Series(joined.probabilities[:, k]).fill_nan(None)
        words = [str(d) or None for d in joined.decisions[:, k]]
        columns[decision] = pl.Series(words, dtype=pl.String)
    errors = [error and _unicode(error) for error in joined.errors]
    columns["error"] = pl.Series(errors, dtype=pl.String)
    pl.DataFrame(columns).write_parquet(path)


WRITERS = {"text": write_text, "json": write_json, "jsonl": write_jsonl, "csv": write_csv}
FORMATS = (*WRITERS, "parquet")


def _wide_columns(attributes: tuple[str, ...]) -> list[str]:
    names = ["image", *(n for name in attributes for n in (name, f"{name}_decision")), "error"]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(
            "a wide table would have two columns of one name",
            got=repr(twice[0]),
            fix="write --format jsonl, or rename the attribute",
        )
    return names


def _csv_line(cells: Iterable[str]) -> str:
    # The writer quotes the characters of its own line end only: \r\n makes it quote both.
    line = io.StringIO()
    csv.writer(line, lineterminator="\r\n").writerow(cells)
    return line.getvalue().removesuffix("\r\n") + "\n"


def _unicode(name: str) -> str:
    """Return a name that Parquet can hold; bytes that are no UTF-8 are written as \\udcXX."""
    return name.encode("utf-8", "backslashreplace").decode()


def _spreadsheet_safe(text: str) -> str:
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else text
