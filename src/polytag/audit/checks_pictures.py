"""Checks of pictures against each other: the same one twice, and what the labels say of it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from polytag.audit.finding import Finding, Row, finding
from polytag.audit.material import Ints, Material
from polytag.readers.raw import plural
from polytag.suspects import conflicting

_ONE_SIDE = "polytag keeps them on one side of every split; a split of your own should, too."


def identical_pictures(material: Material) -> list[Finding]:
    """Find byte-identical pictures."""
    groups = repeated(material.identical)
    if not groups:
        return []
    summary = f"{_count(groups)} byte-identical."
    return [finding("identical", summary, _rows(groups, material), _ONE_SIDE)]


def conflicting_labels(material: Material) -> list[Finding]:
    """Find byte-identical pictures whose labels contradict each other."""
    cells = material.conflicts
    groups = [rows for rows in repeated(material.identical) if cells[rows].any()]
    if not groups:
        return []
    pairs = sum(int(cells[rows].any(axis=0).sum()) for rows in groups)
    summary = (
        f"{_count(groups)} byte-identical with contradicting labels, "
        f"{plural(pairs, 'contradiction')} in all."
    )
    advice = (
        "One of two answers is wrong, or they are about different things in one picture: "
        "correct them, or crop the picture to what each row is about."
    )
    return [finding("conflicting", summary, _rows(groups, material), advice)]


def similar_pictures(material: Material) -> list[Finding]:
    """Find pictures that look the same but are not byte-identical."""
    groups = [
        rows for rows in repeated(material.similar) if len(np.unique(material.identical[rows])) > 1
    ]
    if not groups:
        return []
    cells = conflicting(material.values, material.similar)
    bad = sum(bool(cells[rows].any()) for rows in groups)
    words = f", {bad} of the groups with contradicting labels" if bad else ""
    rows = _rows(groups, material, cells)
    rows.sort(key=lambda row: -len(row["conflicts"]))
    advice = f"Look whether they are copies. {_ONE_SIDE}"
    return [
        finding("similar", f"{_count(groups)} nearly the same{words}.", rows, advice, bad=bad > 0)
    ]


def leaks(material: Material) -> list[Finding]:
    """Find pictures that stand on both sides of the user's own split."""
    if material.split is None:
        return []
    parts = np.array(material.rows.table.extra[material.split], dtype=object)
    groups = [rows for rows in repeated(material.similar) if len(set(parts[rows])) > 1]
    if not groups:
        return []
    rows: list[Row] = [
        {
            "images": [material.names[row] for row in rows],
            "parts": [str(part) for part in parts[rows]],
            "identical": len(np.unique(material.identical[rows])) < len(rows),
        }
        for rows in groups
    ]
    rows.sort(key=lambda row: not row["identical"])
    summary = f"{_count(groups)} the same or nearly, yet in different parts of the split."
    advice = (
        f"Move each group into one part of column {material.split}: what is measured is too good."
    )
    return [finding("leak", summary, rows, advice)]


def repeated(groups: Ints) -> list[NDArray[np.int64]]:
    """Return the rows of every group of at least two, in the order of their first rows.

    Example:
        >>> [rows.tolist() for rows in repeated(np.array([0, 1, 0, 2, 1]))]
        [[0, 2], [1, 4]]
    """
    order = np.argsort(groups, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
    return sorted((rows for rows in parts if len(rows) > 1), key=lambda rows: int(rows[0]))


def _count(groups: list[NDArray[np.int64]]) -> str:
    rows = sum(map(len, groups))
    return f"{plural(rows, 'picture')} in {plural(len(groups), 'group')} are"


def _rows(
    groups: list[NDArray[np.int64]], material: Material, cells: NDArray[np.bool_] | None = None
) -> list[Row]:
    """Return one row of evidence a group: its pictures, and the attributes they disagree on."""
    cells = material.conflicts if cells is None else cells
    return [
        {
            "images": [material.names[row] for row in rows],
            "conflicts": [material.attributes[k] for k in np.flatnonzero(cells[rows].any(axis=0))],
        }
        for rows in groups
    ]
