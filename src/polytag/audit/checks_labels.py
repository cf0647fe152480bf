"""Checks of the labels: what is never there, rare, one thing twice, or cannot be learnt."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from polytag.audit.finding import Finding, Row, finding, listed
from polytag.audit.material import Material
from polytag.readers.raw import plural

RARE = 0.05  # share of the rarer class: below it, most of what a guess answers is right
FEWEST = 8  # groups of a class: fewer cannot be judged, as in `polytag.learnability`
# Cells from which "always" says something: with 30 of 30, "at least nine in ten" holds at 95 %
# (0.05 ** (1 / 30) = .905).
ALWAYS = 30
_LEVEL = 0.05


def constant(material: Material) -> list[Finding]:
    """Find attributes that are never present, never absent, or not known at all."""
    rows: list[Row] = [
        {"attribute": name, "why": reason} for name, reason in material.table.warnings
    ]
    if not rows:
        return []
    names = listed([str(row["attribute"]) for row in rows])
    summary = f"{plural(len(rows), 'attribute')} of one class or none: {names}."
    advice = (
        "Nothing can be learnt of them: label pictures of the other class, or drop the columns."
    )
    return [finding("constant", summary, rows, advice)]


def rare(material: Material) -> list[Finding]:
    """Find attributes one class of which is rare, or of few cells."""
    found: list[tuple[float, Row]] = []
    for name, counts in zip(material.attributes, material.table.counts().tolist(), strict=True):
        present, absent, _ = counts
        few = min(present, absent)
        if few and (few < FEWEST or few < RARE * (present + absent)):
            kind = "present" if present < absent else "absent"
            share = few / (present + absent)
            row: Row = {"attribute": name, "class": kind, "cells": few}
            # Of a table of ten rows the share says nothing: half may be five.
            found.append((share, row | {"share": share} if share < RARE else row))
    if not found:
        return []
    rows = [row for _, row in sorted(found, key=lambda one: one[0])]
    scarce = [row for row in rows if "share" in row]
    small = [row for row in rows if "share" not in row]
    said = [
        f"{plural(len(part), 'attribute')} with {what}: "
        + listed([f"{row['attribute']} ({row['cells']} {row['class']})" for row in part])
        for part, what in ((scarce, "a rare class"), (small, "few cells of a class"))
        if part
    ]
    advice = "See 'annotate next' for what to label."
    if scarce:
        advice = (
            "Accuracy says little about a rare class: read average precision beside its guess. "
        ) + advice
    bad = any(row["cells"] < FEWEST for row in rows)
    return [finding("rare", f"{'; '.join(said)}.", rows, advice, bad=bad)]


def same(material: Material) -> list[Finding]:
    """Find attributes that say the same, or always the opposite, on all cells known of both."""
    yes, no = _split(material.table.values)
    agree, differ = yes.T @ yes + no.T @ no, yes.T @ no + no.T @ yes
    # Both classes of either, or two columns of mostly absent cells would be one attribute.
    both = np.minimum(yes.T @ yes + yes.T @ no, no.T @ no + no.T @ yes)
    both = np.minimum(both, both.T)
    rows: list[Row] = []
    for a, b in zip(*np.triu_indices(len(material.attributes), 1), strict=True):
        if agree[a, b] + differ[a, b] < ALWAYS or both[a, b] < FEWEST:
            continue
        if not (agree[a, b] and differ[a, b]):
            rows.append(
                {
                    "attributes": [material.attributes[a], material.attributes[b]],
                    "relation": "opposite" if differ[a, b] else "identical",
                    "cells": int(agree[a, b] + differ[a, b]),
                }
            )
    if not rows:
        return []
    names = listed([" and ".join(row["attributes"]) for row in rows])
    summary = f"{plural(len(rows), 'pair')} of attributes that are one: {names}."
    return [finding("same", summary, rows, "Keep one of each pair.")]


def implied(material: Material) -> list[Finding]:
    """Find attributes that are present whenever another one is."""
    yes, no = _split(material.table.values)
    together, against = yes.T @ yes, yes.T @ no  # of a row's attribute, the column's
    cells = together + against
    known = np.maximum(yes.sum(axis=0) + no.sum(axis=0), 1)
    # That all of n cells are present by chance has probability prevalence^n (exact binomial).
    by_chance = binom.sf(cells - 1, cells, (yes.sum(axis=0) / known)[None])
    sure = (against == 0) & (cells >= ALWAYS) & (by_chance <= _LEVEL / max(cells.size, 1))
    sure &= (no.sum(axis=0) >= FEWEST)[None]
    mutual = sure & sure.T  # the same attribute, said by another check
    rows: list[Row] = [
        {
            "attribute": material.attributes[a],
            "implies": material.attributes[b],
            "cells": int(cells[a, b]),
        }
        for a, b in np.argwhere(sure & ~mutual)
    ]
    if not rows:
        return []
    rows.sort(key=lambda row: -row["cells"])
    names = listed([f"{row['attribute']} → {row['implies']}" for row in rows])
    summary = f"{plural(len(rows), 'attribute')} never without another: {names}."
    advice = "If that is a rule, fill in the unknown cells by it; if not, look for what is missing."
    return [finding("implied", summary, rows, advice)]


def learnability(material: Material) -> list[Finding]:
    """Find attributes that the pictures do not carry, or too few cells to tell."""
    names, verdicts = material.attributes, [one.verdict for one in material.verdicts]
    none = [k for k, verdict in enumerate(verdicts) if verdict.startswith("no evidence")]
    few = [k for k, verdict in enumerate(verdicts) if verdict.startswith("too few")]
    if not none and not few:
        return []
    learnable = len(names) - len(none) - len(few)
    rows: list[Row] = [
        {"attribute": names[k], "verdict": verdicts[k], "p": _number(material.verdicts[k].p_holm)}
        for k in (*none, *few)
    ]
    parts, advice = [], []
    if none:
        parts.append(f"{listed([names[k] for k in none])}: no evidence that the pictures show it")
        advice.append(
            "Where there is no evidence, a model answers base rates: look whether rows and "
            "pictures belong together, and whether a person could tell from the picture alone."
        )
    if few:
        parts.append(f"{listed([names[k] for k in few])}: too few to tell")
        advice.append("Where there are too few, label more: the verdict says about how many.")
    summary = f"{learnable} of {len(names)} attributes learnable; {'; '.join(parts)}."
    bad = bool(none) and not learnable
    return [finding("learnability", summary, rows, " ".join(advice), bad=bad)]


def unlabelled(material: Material) -> list[Finding]:
    """Find rows without any known cell."""
    table = material.table
    empty = np.flatnonzero(np.isnan(table.values).all(axis=1)).tolist()
    if not len(empty):
        return []
    rows: list[Row] = [{"image": table.images[row], "where": table.where(row)} for row in empty]
    summary = f"{plural(len(empty), 'row')} of {len(table)} without any known cell."
    return [finding("unlabelled", summary, rows, "They teach nothing: label them, or let them be.")]


def _split(values: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return int64 (N, K): where present, and where absent; 0 where not known."""
    return (values == 1).astype(np.int64), (values == 0).astype(np.int64)


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
