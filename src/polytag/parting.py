"""Which rows belong together, and how a user's own split parts them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polytag.errors import RecipeError, UserError, did_you_mean
from polytag.groups import by_column, identical, joined, similar
from polytag.pictures import Rows
from polytag.splits import Given, given_parts, leaks, read_split
from polytag.table import LabelTable

log = logging.getLogger("polytag")
Ints = NDArray[np.int64]


def group_rows(
    rows: Rows, features: NDArray[np.float32], column: str
) -> tuple[Ints, Ints, dict[str, Any]]:
    """Group rows that must stay on one side of every split.

    Args:
        rows: N rows.
        features: float32 (N, V, D).
        column: Of the table: rows with the same text belong together; empty: none do for that.

    Returns:
        int64 (N,): rows that look the same; int64 (N,): rows that belong together, for that or by
        the column; and for metrics.json how many there are, and why.

    Raises:
        RecipeError: There is no such column.
    """
    same = identical(rows.hashes)
    alike = joined(same, similar(rows.looks, features))
    groups = (
        joined(alike, by_column(_column(rows.table, column, "split.group_by"))) if column else alike
    )
    told = {
        "count": int(groups.max(initial=-1)) + 1,
        "identical": _several(same),
        "alike": _several(alike),
        "by": column or None,
    }
    return alike, groups, told


def _several(groups: Ints) -> dict[str, int]:
    """Count the groups of several rows, and their rows."""
    sizes = np.bincount(groups)
    return {"groups": int((sizes > 1).sum()), "rows": int(sizes[sizes > 1].sum())}


def given_split(
    table: LabelTable, given: str, groups: Ints
) -> tuple[Given | None, NDArray[np.bool_]]:
    """Read a user's own split, and find the rows whose like stands on both sides of it.

    A val row whose like is trained on would choose the epoch by heart: it is trained on, too.

    Args:
        table: N rows.
        given: A column of the table, or a .csv file; empty: there is none.
        groups: int (N,).

    Returns:
        The split, and bool (N,): rows that would be judged by a model that had trained on their
        like.

    Raises:
        RecipeError: There is no such column.
        UserError: It is no split, or no row is left to judge by.
    """
    if not given:
        return None, np.zeros(len(table), dtype=bool)
    if given.endswith(".csv"):
        texts: Sequence[str] = read_split(Path(given), table.images)
    else:
        texts = _column(table, given, "split.given")
    split = given_parts(texts, given)
    leaked = leaks(split, groups)
    if not leaked.any():
        return split, leaked
    first = table.images[int(np.argmax(leaked))]
    words = "%d pictures of your split, such as %s, have their like on the side that is trained on"
    log.warning(f"{words}: they judge nothing", leaked.sum(), first)
    judging = np.ones(len(table), dtype=bool) if split.parts is None else split.parts != "train"
    if not (judging & ~leaked).any():
        raise UserError(
            "every picture that your split would judge by has its like on the side that is "
            "trained on",
            where=given,
            got=f"{leaked.sum()} such pictures",
            fix="split by what must not be parted, or leave out --split: polytag does so",
        )
    if split.parts is not None:
        moved = leaked & (split.parts == "choose")
        split = Given(None, np.where(moved, "train", split.parts))
    return split, leaked


def _column(table: LabelTable, name: str, where: str) -> tuple[str, ...]:
    if name not in table.extra:
        raise RecipeError(
            "the table has no such column beside its labels",
            where=where,
            got=repr(name),
            expected=", ".join(table.extra) or "a table with other columns than labels",
            fix=did_you_mean(name, table.extra),
        )
    return table.extra[name]
