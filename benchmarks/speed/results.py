"""A row of results: its numbers, what is asked of them, how it is printed and kept."""

from __future__ import annotations

import csv
import datetime
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

FILE = Path(__file__).parents[1] / "results" / "speed.csv"
COLUMNS = (
    *("date", "commit", "row", "against", "data", "quick", "pairs", "value", "low", "high"),
    *("unit", "ours", "other", "of", "need", "aim", "verdict", "note", "processor", "cores"),
    *("python", "torch", "onnxruntime", "openvino", "numpy"),
)
WIDTH = 80


@dataclass(frozen=True)
class Result:
    """What was measured of one line of the issue's table.

    Attributes:
        row: Its name, for ``--row``.
        against: What ours was compared with.
        values: One number a pair: a ratio, seconds, MiB or a share; empty: not measured.
        unit: Of the values: ``x`` for ratios.
        need: The bound, such as ``>= 30`` or ``<= 6``; empty: none.
        aim: The same, of what is aimed at.
        ours, other: What the values came from, one number a pair.
        of: Unit of these.
        holds: Whether what else the row asks for was so; False without values: it went wrong.
        note: What one has to know about it.
        data: The pictures.
    """

    row: str
    against: str
    values: Sequence[float] = ()
    unit: str = "x"
    need: str = ""
    aim: str = ""
    ours: Sequence[float] = ()
    other: Sequence[float] = ()
    of: str = "s"
    holds: bool = True
    note: str = ""
    data: str = ""

    @property
    def verdict(self) -> str:
        """Whether the bound is kept: pass, FAIL, or a dash where there is none."""
        if not self.values:
            return "not measured" if self.holds else "error"
        if not self.need:
            return "-" if self.holds else "FAIL"
        sign, bound = self.need.split()
        kept = self.middle >= float(bound) if sign == ">=" else self.middle <= float(bound)
        return "pass" if kept and self.holds else "FAIL"

    @property
    def middle(self) -> float:
        """The median of the pairs."""
        return median(self.values)

    def cells(self, stamp: Mapping[str, object], quick: bool) -> dict[str, object]:
        """Return the row as the file of results holds it."""
        there = bool(self.values)
        cells = {
            "date": datetime.date.today().isoformat(),
            "quick": int(quick),
            "pairs": len(self.values),
            "value": short(self.middle) if there else "",
            "low": short(min(self.values)) if there else "",
            "high": short(max(self.values)) if there else "",
            "ours": short(median(self.ours)) if self.ours else "",
            "other": short(median(self.other)) if self.other else "",
        }
        same = ("row", "against", "data", "unit", "of", "need", "aim", "verdict", "note")
        told = {name: " ".join(str(getattr(self, name)).split()) for name in same}
        return {**stamp, **cells, **told}

    def lines(self) -> str:
        """Return the row as it is printed, `WIDTH` columns wide."""
        value = reach = ours = other = ""
        if self.values:
            value = f"{short(self.middle)} {self.unit}"
            reach = f"{short(min(self.values))}-{short(max(self.values))}"
        if self.ours:
            ours = f"{short(median(self.ours))} {self.of}"
        if self.other:
            other = f"{short(median(self.other))} {self.of}"
        head = f"{self.row:19}{value:>9}{reach:>14}{ours:>12}{other:>12}{self.need:>8}"
        below = f"against {self.against}" if self.against else ""
        below += f"{'; ' if below else ''}aim {self.aim}" if self.aim else ""
        notes = [text for text in (below, self.note) if text]
        indent = {"initial_indent": "  ", "subsequent_indent": "  "}
        told = [line for note in notes for line in textwrap.wrap(note, WIDTH, **indent)]
        return "\n".join([f"{head} {self.verdict.replace('not measured', '-')}".rstrip(), *told])


HEAD = f"{'':19}{'median':>9}{'min-max':>14}{'ours':>12}{'other':>12}{'need':>8}"


def short(number: float) -> str:
    """Return three digits of a number.

    Example:
        >>> short(1234.5), short(12.34), short(0.1234)
        ('1234', '12.3', '0.123')
    """
    digits = 0 if abs(number) >= 100 else 1 if abs(number) >= 10 else 2 if abs(number) >= 1 else 3
    return f"{number:.{digits}f}"


def keep(results: Sequence[Result], stamp: Mapping[str, object], quick: bool) -> None:
    """Append rows to the file of results."""
    new = not FILE.exists()
    with FILE.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(result.cells(stamp, quick) for result in results)
