"""The audit: a list of small checks of labels and pictures, each with its evidence."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from polytag.audit.annotate import annotate_next, wide_intervals
from polytag.audit.checks_files import missing, suspicious, unreadable
from polytag.audit.checks_holes import by_picture, by_source, together
from polytag.audit.checks_labels import constant, implied, learnability, rare, same, unlabelled
from polytag.audit.checks_pictures import (
    conflicting_labels,
    identical_pictures,
    leaks,
    similar_pictures,
)
from polytag.audit.finding import SEVERITIES, Finding
from polytag.audit.label_errors import label_errors
from polytag.audit.material import Material, gather
from polytag.audit.outcome import Audit
from polytag.audit.shortcuts import shortcuts
from polytag.table import LabelTable

__all__ = ["CHECKS", "Audit", "Finding", "Material", "audit", "judge"]

CHECKS: dict[str, Callable[[Material], list[Finding]]] = {
    "missing pictures": missing,
    "unreadable pictures": unreadable,
    "conflicting labels": conflicting_labels,
    "leaks": leaks,
    "constant attributes": constant,
    "shortcuts": shortcuts,
    "learnability": learnability,
    "label errors": label_errors,
    "same attributes": same,
    "rare classes": rare,
    "identical pictures": identical_pictures,
    "similar pictures": similar_pictures,
    "implied attributes": implied,
    "holes together": together,
    "holes by source": by_source,
    "holes by picture": by_picture,
    "rows without labels": unlabelled,
    "suspicious files": suspicious,
    "wide intervals": wide_intervals,
    "annotate next": annotate_next,
}


def audit(
    table: LabelTable,
    images: str | os.PathLike[str],
    run: str | os.PathLike[str] | None = None,
    *,
    split: str | None = None,
    group_by: str | None = None,
) -> Audit:
    """Look for what is wrong with labels and pictures, before or after a training.

    Args:
        table: Labels with holes.
        images: The folder of pictures.
        run: A run folder: its out-of-fold probabilities and its groups are used; None: a probe is
            fitted.
        split: A column of the table with a split of the user's own, to look for leaks.
        group_by: A column of the table: rows with one text belong together. None: the column
            that the run was grouped by, if the table has it.

    Raises:
        UserError: There is no such folder, column or run, or the run has none of the attributes.

    Example:
        >>> import tempfile
        >>> from polytag.drawing import draw_dataset
        >>> from polytag.table import read_table
        >>> with tempfile.TemporaryDirectory() as place:        # doctest: +SKIP
        ...     drawn = draw_dataset(Path(place), count=40)
        ...     audit(read_table(drawn.labels), drawn.images).serious
        True
    """
    folder = None if run is None else Path(run)
    return judge(gather(table, Path(images), folder, split, group_by))


def judge(material: Material) -> Audit:
    """Run every check; the most serious findings first, else in the order of `CHECKS`."""
    found = [one for check in CHECKS.values() for one in check(material)]
    return Audit(material, sorted(found, key=lambda one: SEVERITIES.index(one.severity)))
