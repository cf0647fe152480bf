"""The numbers that only the report shows, as JSON: they belong into metrics.json too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from polytag.report.material import Floats, Material

PICTURES = 12  # of a kind: two rows of small pictures on a screen
SUSPECTS = 24
DUPLICATES = 24

# How a verdict begins, in the order of the first table; "": nobody judged that.
VERDICTS = ("learnable", "no evidence", "too few", "")


def shown_numbers(material: Material) -> dict[str, Any]:
    """Return what the report shows beyond ``metrics.json``; what is not defined is None.

    What stands under a cell that is not known changes nothing.

    Returns:
        ``verdicts``: how many attributes a verdict; ``confusion``: of each attribute the judged
        cells by truth and decision; ``phi``: (K, K), see `phi`; ``cells``: of each
        attribute all cells, judged or not; ``holes``: the sets of
        attributes not known together; ``hardest``, ``doubtful``: cells of pictures;
        ``suspects``, ``duplicates``: the first ones, and how many there are.

    Example:
        >>> nothing = shown_numbers(Material("title", "run", {}))
        >>> nothing["confusion"], nothing["suspects"]
        ([], {'count': 0, 'first': []})
    """
    verdicts = Counter(verdict_kind(each) for each in material.metrics.get("attributes") or ())
    suspected, doubled = material.suspects or (), material.duplicates or ()
    suspects = [
        _cell(material, each.row, list(material.attributes).index(each.attribute))
        | {"label": each.label, "probability": _plain(each.probability)}
        for each in suspected[:SUSPECTS]
    ]
    duplicates = sorted(doubled, key=lambda each: not each.conflict)
    return {
        "verdicts": {kind: verdicts[kind] for kind in VERDICTS if verdicts[kind]},
        "confusion": _confusion(material),
        "phi": [] if material.values is None else [_row(row) for row in phi(material.values)],
        "cells": _cells(material),
        "holes": _holes(material),
        **_pictures(material),
        "suspects": {"count": len(suspected), "first": suspects},
        "duplicates": {
            "count": len(duplicates),
            "conflicts": sum(each.conflict for each in duplicates),
            "first": [
                {"images": [material.images[row] for row in each.rows], "conflict": each.conflict}
                for each in duplicates[:DUPLICATES]
            ],
        },
    }


def verdict_kind(attribute: Mapping[str, Any]) -> str:
    """Return the one of `VERDICTS` that an attribute's verdict begins with.

    Example:
        >>> verdict_kind({"verdict": "too few to tell: 3 present"})
        'too few'
    """
    verdict = attribute.get("verdict") or ""
    return next(kind for kind in VERDICTS if verdict.startswith(kind))


def phi(values: Floats) -> Floats:
    """Return the phi coefficient of each pair of attributes on the cells known of both.

    phi = (n11 n00 - n10 n01) / sqrt(n1. n0. n.1 n.0), Pearson's correlation of the two (Yule 1912).

    Args:
        values: (N, K) in {1, 0, NaN}.

    Returns:
        float64 (K, K) in [-1, 1]; NaN where one of them is only present, or only absent, there.

    Example:
        >>> phi(np.array([[1, 0, 1], [0, 1, 1], [1, 0, np.nan]])).tolist()
        [[1.0, -1.0, nan], [-1.0, 1.0, nan], [nan, nan, nan]]
    """
    present, absent = (values == 1).astype(np.float64), (values == 0).astype(np.float64)
    both, neither = present.T @ present, absent.T @ absent
    first, second = present.T @ absent, absent.T @ present
    margins = (both + first) * (second + neither) * (both + second) * (first + neither)
    scale = np.sqrt(np.where(margins > 0, margins, np.nan))
    return np.asarray((both * neither - first * second) / scale)


def _confusion(material: Material) -> list[dict[str, Any]]:
    """Return the counts of each attribute; none where nothing was judged."""
    judged = material.judged()
    if judged is None:
        return []
    cells, present, decided = judged.cells, judged.present, judged.p >= judged.thresholds
    kinds = {
        "true_present": cells & present & decided,
        "false_absent": cells & present & ~decided,
        "false_present": cells & ~present & decided,
        "true_absent": cells & ~present & ~decided,
    }
    counts = {kind: which.sum(axis=0).tolist() for kind, which in kinds.items()}
    return [
        {"name": name} | {kind: counts[kind][k] for kind in kinds}
        for k, name in enumerate(material.attributes)
    ]


def _cells(material: Material) -> list[dict[str, Any]]:
    if material.values is None:
        return []
    values = material.values
    counts = {"present": values == 1, "absent": values == 0, "na": np.isnan(values)}
    return [
        {"name": name} | {kind: int(cells[:, k].sum()) for kind, cells in counts.items()}
        for k, name in enumerate(material.attributes)
    ]


def _holes(material: Material) -> list[dict[str, Any]]:
    """Return the sets of attributes not known together, largest first.

    Two attributes are in one set when more than half of the pictures where either is not known
    lack both, and so are those that such pairs connect.
    """
    if material.values is None:
        return []
    holes = np.isnan(material.values)
    both = holes.T.astype(np.float64) @ holes
    count = holes.sum(axis=0)
    linked = (both > 0.5 * (count[:, None] + count - both)) | np.eye(len(count), dtype=bool)
    for _ in range(len(count).bit_length()):  # each turn doubles the length of the ways seen
        linked = linked.astype(np.float64) @ linked > 0
    firsts, sizes = np.unique(linked.argmax(axis=1), return_counts=True)
    order = np.argsort(-sizes, kind="stable")
    members = [np.flatnonzero(linked[firsts[i]]).tolist() for i in order if sizes[i] > 1]
    return [
        {
            "attributes": [material.attributes[k] for k in found],
            "all": int(holes[:, found].all(axis=1).sum()),
            "any": int(holes[:, found].any(axis=1).sum()),
        }
        for found in members
    ]


def _pictures(material: Material) -> dict[str, list[dict[str, Any]]]:
    judged = material.judged()
    if judged is None:
        return {"hardest": [], "doubtful": []}
    # A probability of 0 for the truth costs as much as the smallest one there is.
    likely = np.maximum(np.where(judged.present, judged.p, 1 - judged.p), np.finfo(float).tiny)
    loss, doubt = -np.log(likely), -np.abs(judged.p - judged.thresholds)
    found = {}
    for kind, score in (("hardest", loss), ("doubtful", doubt)):
        cells = _first(np.where(judged.cells, score, -np.inf))
        found[kind] = [_cell(material, row, k) for row, k in cells]
    return found


def _first(scores: Floats) -> list[tuple[int, int]]:
    """Return the cells of highest score, one a picture, and of no attribute more than its part.

    A picture stands for its highest cell; -inf: does not count. Twice an even part an attribute
    lets the worst ones come up more often, and leaves room for the others.
    """
    most = -(-2 * PICTURES // scores.shape[1])
    chosen = scores.argmax(axis=1)
    best = scores.max(axis=1)
    used: Counter[int] = Counter()
    found: list[tuple[int, int]] = []
    for row in np.argsort(-best, kind="stable").tolist():
        k = int(chosen[row])
        if len(found) == PICTURES or best[row] == -np.inf:
            break
        if used[k] < most:
            used[k] += 1
            found.append((row, k))
    return found


def _cell(material: Material, row: int, k: int) -> dict[str, Any]:
    values, probabilities, thresholds = (
        None if array is None else _plain(float(array[row, k]))
        for array in (material.values, material.probabilities, material.thresholds)
    )
    return {
        "image": material.images[row],
        "row": row,
        "attribute": material.attributes[k],
        "label": values if values is None else int(values),
        "probability": probabilities,
        "threshold": thresholds,
    }


def _row(numbers: Sequence[float] | Floats) -> list[float | None]:
    return [_plain(float(number)) for number in numbers]


def _plain(number: float) -> float | None:
    return None if np.isnan(number) else number
