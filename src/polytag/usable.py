"""Which rows of a table have a picture that can be decoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from polytag.errors import UserError
from polytag.images import content_hash, decode_reduced
from polytag.looks import SIDE, look
from polytag.pictures import Rows, rows_without
from polytag.pipeline import stream
from polytag.progress import progress
from polytag.table import LabelTable

_LEAST = 32 * SIDE  # pixels a side are enough for a look


def usable_rows(table: LabelTable, paths: Sequence[Path], errors: Mapping[int, UserError]) -> Rows:
    """Decode every picture of a table once and return the rows whose picture can be used.

    Args:
        table: The labels.
        paths: The file of every row.
        errors: Rows known to have no picture.
    """
    there = [row for row in range(len(table)) if row not in errors]
    hashes, unusable = [""] * len(table), dict(errors)
    looks = np.zeros((len(table), SIDE, SIDE, 3), dtype=np.uint8)

    def check(row: int) -> tuple[str, NDArray[np.uint8]]:
        # Reduced, a picture is read to its end all the same.
        return content_hash(paths[row]), look(decode_reduced(paths[row], _LEAST).image)

    with progress("checking", len(there), "pictures") as advance:
        for row, result in stream(there, check):
            if isinstance(result, UserError):
                unusable[row] = result
            else:
                hashes[row], looks[row] = result
            advance(1)
    return rows_without(table, paths, hashes, looks, unusable)
