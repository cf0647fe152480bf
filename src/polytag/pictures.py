"""The pictures that a table names: where they are, and which cannot be used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from polytag.errors import ImageError, SkippedError, UserError
from polytag.names import safe_join
from polytag.table import LabelTable

MAX_SKIPPED = 0.1  # a tenth: more than chance damage, so somebody should look


@dataclass(frozen=True)
class Skipped:
    """A row whose picture cannot be used."""

    image: str
    where: str  # in the table, for example labels.csv:7
    reason: str


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of a table whose picture can be used, N of them, and the others.

    Attributes:
        table: The N rows.
        paths: N files.
        hashes: N content hashes.
        looks: uint8 (N, 8, 8, 3), see `polytag.looks.look`.
        skipped: The other rows, each with its reason.
    """

    table: LabelTable
    paths: list[Path]
    hashes: list[str]
    looks: NDArray[np.uint8]
    skipped: list[Skipped]


def rows_without(
    table: LabelTable,
    paths: Sequence[Path],
    hashes: Sequence[str],
    looks: NDArray[np.uint8],
    errors: Mapping[int, UserError],
) -> Rows:
    """Return the rows of a table that have no error.

    Args:
        table: All rows.
        paths: The file of each.
        hashes: The content hash of each; looked at only where there is no error.
        looks: The look of each, uint8 (rows, 8, 8, 3); the same.
        errors: What is wrong with a row, by its number.
    """
    good = [row for row in range(len(table)) if row not in errors]
    return Rows(
        table=table.select(good),
        paths=[paths[row] for row in good],
        hashes=[hashes[row] for row in good],
        looks=looks[good],
        skipped=skipped_rows(table, errors),
    )


def locate(table: LabelTable, folder: Path) -> tuple[list[Path], dict[int, UserError]]:
    """Return the path of every row's picture, and which rows have none, by row number.

    Raises:
        TableError: A name leads out of the folder through a link.
        UserError: There is no such folder.
    """
    if not folder.is_dir():
        raise UserError("no such folder of pictures", where=str(folder), fix="give it by --images")
    real = folder.resolve()
    paths: list[Path] = []
    errors: dict[int, UserError] = {}
    for row, name in enumerate(table.images):
        path = safe_join(folder, name, table.where(row), real)
        if not path.exists():
            errors[row] = ImageError("no such file", where=name)
        paths.append(path)
    return paths, errors


def skipped_rows(table: LabelTable, errors: Mapping[int, UserError]) -> list[Skipped]:
    """Return the skipped rows of a table with their reasons, in the table's order."""
    return [
        Skipped(table.images[row], table.where(row), _reason(error))
        for row, error in sorted(errors.items())
    ]


def refuse_too_many(
    skipped: list[Skipped], total: int, *, strict: bool = False, most: float = MAX_SKIPPED
) -> None:
    """Stop before anything is trained or measured on what is left.

    Raises:
        UserError: ``strict`` and any row is skipped.
        SkippedError: More than the share ``most`` of ``total`` rows is skipped.
    """
    if not skipped:
        return
    first = skipped[0]
    example = f"the first is {first.image} ({first.where}): {first.reason}"
    if strict:
        count = f"{len(skipped)} of {total}"
        raise UserError(f"{count} pictures cannot be used, and --strict allows none; {example}")
    if len(skipped) > most * total:
        raise SkippedError(
            f"{len(skipped)} of {total} pictures cannot be used, more than the {most:.0%} that "
            f"--max-skipped allows; {example}; mend the pictures, point --images elsewhere, or "
            "raise --max-skipped"
        )


def _reason(error: UserError) -> str:
    return str(error).removeprefix(f"{error.where}: ") if error.where else str(error)
