"""What a label table and its pictures hold, before anything is trained."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polytag.groups import identical, joined, similar
from polytag.pictures import Skipped, locate
from polytag.table import LabelTable
from polytag.usable import usable_rows

_LISTED = 10  # skipped pictures shown as text; JSON has them all
_ROWS = 3


@dataclass(frozen=True)
class Inspection:
    """What was found.

    Attributes:
        table: The labels.
        usable: How many rows have a picture that can be decoded.
        skipped: The other rows, each with its reason.
        identical: Groups of rows (names) whose pictures are byte-identical.
        similar: Groups of rows (names) whose pictures are the same but for how they were saved:
            quality, size, brightness, mirrored. Identical ones are among them, not alone.
    """

    table: LabelTable
    usable: int
    skipped: list[Skipped]
    identical: list[list[str]]
    similar: list[list[str]]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        table = self.table
        counts = zip(table.attributes, table.counts(), strict=True)
        return {
            "table": table.source,
            "rows": len(table),
            "attributes": [
                {"name": name, "present": int(p), "absent": int(a), "na": int(n)}
                for name, (p, a, n) in counts
            ],
            "extra_columns": list(table.extra),
            "tokens": {token: asdict(use) for token, use in table.tokens.items()},
            "notes": list(table.notes),
            "warnings": [f"{name}: {reason}" for name, reason in table.warnings],
            "usable": self.usable,
            "skipped": [asdict(row) for row in self.skipped],
            "identical": self.identical,
            "similar": self.similar,
        }

    def to_text(self) -> str:
        """Return what a person wants to know, in at most 80 columns where names allow it."""
        table = self.table
        lines = [f"{table.source}: {len(table)} pictures, {len(table.attributes)} attributes"]
        for note in (*table.notes, table.cells):
            lines += _wrapped(note)
        lines += ["", f"{'attribute':<24} {'present':>8} {'absent':>8} {'NA':>8}  prevalence"]
        for name, (present, absent, na) in zip(table.attributes, table.counts(), strict=True):
            known = present + absent
            share = f"{present / known:10.1%}" if known else "         -"
            lines.append(f"{name:<24} {present:>8} {absent:>8} {na:>8}  {share}")
        lines += ["", "first rows:"]
        for row in range(min(_ROWS, len(table))):
            cells = " ".join("NA" if v != v else f"{v:.0f}" for v in table.values[row, :12])
            more = " ..." if len(table.attributes) > 12 else ""
            lines.append(f"  {table.images[row]}: {cells}{more}")
        lines += ["", f"pictures: {self.usable} can be used, {len(self.skipped)} cannot"]
        for left_out in self.skipped[:_LISTED]:
            lines += _wrapped(f"{left_out.image} ({left_out.where}): {left_out.reason}")
        if len(self.skipped) > _LISTED:
            lines.append(f"  and {len(self.skipped) - _LISTED} more (--json lists them all)")
        for kind, groups in (
            ("byte-identical files", self.identical),
            ("one picture saved in different ways", self.similar),
        ):
            if groups:
                count = f"{len(groups)} ({sum(map(len, groups))} rows)"
                twins = " = ".join((groups[0][0], groups[0][-1]))
                lines += _wrapped(f"groups of {kind}: {count}, such as {twins}")
        for name, reason in table.warnings:
            lines += _wrapped(f"warning: {name} cannot be trained: {reason}")
        return "\n".join(lines)


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 79, initial_indent="  ", subsequent_indent="    ")


def inspect_data(table: LabelTable, images: str | os.PathLike[str]) -> Inspection:
    """Decode every picture of a table once, and gather what there is to know.

    Raises:
        UserError: There is no such folder, or a name leads out of it.
    """
    rows = usable_rows(table, *locate(table, Path(images)))
    same = identical(rows.hashes)
    alike = joined(same, similar(rows.looks))
    return Inspection(
        table=table,
        usable=len(rows.hashes),
        skipped=rows.skipped,
        identical=_named(rows.table.images, _several(same)),
        similar=_named(
            rows.table.images,
            [group for group in _several(alike) if len(np.unique(same[group])) > 1],
        ),
    )


def _several(groups: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Return the rows of each group of several, in the order of the groups."""
    rows = np.argsort(groups, kind="stable")
    parts = np.split(rows, np.cumsum(np.bincount(groups))[:-1])
    return [part for part in parts if len(part) > 1]


def _named(names: Sequence[str], groups: list[NDArray[np.int64]]) -> list[list[str]]:
    return [[names[row] for row in group] for group in groups]
