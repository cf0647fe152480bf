"""Checks of what is not known: which cells are holes together, by source, or by what is shown."""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2_contingency

from polytag.audit.finding import Finding, Row, finding, listed
from polytag.audit.material import Material
from polytag.intervals import holm
from polytag.metrics import roc_auc
from polytag.readers.raw import plural

# Holes of two attributes count as one pattern from this correlation on; a source matters when
# knowing it explains this much (Cramér's V; with 5 % and 18 % not known of two sources, V is .2).
TOGETHER, BY_SOURCE = 0.8, 0.2
_FEWEST = 8  # holes: fewer make a correlation of nothing
_SOURCES = 50  # different texts in a column: more is a name or a remark, not a source
_EXPECTED = 5  # rows of a source, at least: what chi-square wants to see
_LEVEL = 0.05


def together(material: Material) -> list[Finding]:
    """Find attributes that are not known in the same rows."""
    unknown = np.isnan(material.table.values)
    count = unknown.sum(axis=0)
    enough = np.flatnonzero((count >= _FEWEST) & (count < len(unknown)))
    if len(enough) < 2:
        return []
    close = np.atleast_2d(np.corrcoef(unknown[:, enough], rowvar=False)) >= TOGETHER
    rows: list[Row] = []
    left = set(range(len(enough)))
    while left:
        # Everything that hangs together by way of others.
        found, new = set[int](), {min(left)}
        while new:
            found |= new
            new = {int(j) for i in new for j in np.flatnonzero(close[i])} - found
        left -= found
        if len(found) > 1:
            columns = enough[sorted(found)]
            masks = unknown[:, columns]
            rows.append(
                {
                    "attributes": [material.attributes[k] for k in columns],
                    "rows": int(masks.all(axis=1).sum()),
                    "exactly": bool((masks == masks[:, :1]).all()),
                }
            )
    if not rows:
        return []
    first = rows[0]
    summary = (
        f"{plural(len(rows), 'set')} of attributes not known in the same rows: "
        f"{listed(first['attributes'])} in {first['rows']}."
    )
    advice = "They were asked as one question: such rows add nothing about any of them."
    return [finding("holes together", summary, rows, advice)]


def by_source(material: Material) -> list[Finding]:
    """Find columns of text whose value tells which cells are not known."""
    table = material.table
    tests: list[tuple[str, int, float, Row]] = []
    for column, texts in table.extra.items():
        kinds = _kinds(texts)
        if kinds is None:
            continue
        sources, number = kinds
        for k, unknown in enumerate(np.isnan(table.values).T):
            if not _FEWEST <= unknown.sum() <= len(unknown) - _FEWEST:
                continue
            counts = np.zeros((len(sources), 2), dtype=np.int64)
            np.add.at(counts, (number, unknown.astype(np.int64)), 1)
            answer = chi2_contingency(counts, correction=False)
            share = counts[:, 1] / counts.sum(axis=1)
            row: Row = {
                "column": column,
                "attribute": table.attributes[k],
                "v": float(np.sqrt(answer.statistic / counts.sum())),
                "most": f"{sources[share.argmax()]} ({share.max():.0%} not known)",
                "least": f"{sources[share.argmin()]} ({share.min():.0%} not known)",
            }
            tests.append((column, k, float(answer.pvalue), row))
    adjusted = holm(np.array([p for _, _, p, _ in tests]))
    rows = [
        row | {"p": float(p)}
        for (_, _, _, row), p in zip(tests, adjusted, strict=True)
        if p <= _LEVEL and row["v"] >= BY_SOURCE
    ]
    if not rows:
        return []
    rows.sort(key=lambda row: -row["v"])
    columns = listed(sorted({str(row["column"]) for row in rows}))
    names = listed(list(dict.fromkeys(str(row["attribute"]) for row in rows)))
    summary = f"What is not known of {names} depends on {columns}."
    advice = (
        "What is measured on known cells is about the sources that were labelled. Label some "
        "cells of the others, and group by that column (--group-by)."
    )
    return [finding("holes by source", summary, rows, advice)]


def by_picture(material: Material) -> list[Finding]:
    """Find attributes whose holes can be told from the pictures."""
    known = (~np.isnan(material.values)).astype(np.float32)
    modelled = np.logical_not(np.isnan(material.answerable).any(axis=0))
    auc = roc_auc(known, np.where(modelled, material.answerable, 0.5))
    rows: list[Row] = [
        {
            "attribute": material.attributes[k],
            "not known": int((known[:, k] == 0).sum()),
            "p": float(judged.p_holm),
            "auc": float(auc[k]) if modelled[k] and not np.isnan(auc[k]) else None,
        }
        for k, judged in enumerate(material.hole_verdicts)
        if judged.verdict.startswith("learnable")
    ]
    if not rows:
        return []
    rows.sort(key=lambda row: row["p"])
    names = listed([str(row["attribute"]) for row in rows])
    summary = f"What is not known can be told from the pictures: {names}."
    advice = (
        "Holes are where the picture is hard, so what is measured on known cells is better than "
        "what new pictures will meet."
    )
    return [finding("holes by picture", summary, rows, advice)]


def _kinds(texts: tuple[str, ...]) -> tuple[list[str], NDArray[np.int64]] | None:
    """Return the sources a column names and each row's; None if it is no such column.

    Sources of few rows count as one; where that is still few, they join the largest.
    """
    counts = Counter(texts)
    if not 2 <= len(counts) <= _SOURCES:
        return None
    large = [text for text, count in counts.items() if count >= 2 * _EXPECTED]
    small = sum(count for text, count in counts.items() if text not in large)
    names = [*large, "all others"] if small >= 2 * _EXPECTED else large
    if len(names) < 2:
        return None
    place = {text: i for i, text in enumerate(large)}
    rest = len(names) - 1 if len(names) > len(large) else place[max(large, key=counts.__getitem__)]
    return names, np.array([place.get(text, rest) for text in texts], dtype=np.int64)
