"""Judging a trained model on pictures and labels that it is shown for the first time."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from polytag.errors import UserError
from polytag.images import content_hash
from polytag.metrics import evaluate_arrays
from polytag.pictures import MAX_SKIPPED, Skipped, locate, refuse_too_many, skipped_rows
from polytag.predictor import Predictor, load
from polytag.progress import progress
from polytag.results import Evaluation
from polytag.runs import hashes_seen
from polytag.table import LabelTable


@dataclass(frozen=True)
class Judged:
    """What judging a model on a table gave.

    Attributes:
        evaluation: Metrics of the attributes of the table.
        skipped: Rows whose picture could not be used.
        seen: How many of the measured pictures the run was trained on; None where that cannot be
            known, as with a bare ``model.onnx``.
        rows: How many rows were measured.
        unlabelled: Attributes of the model that the table does not have.
    """

    evaluation: Evaluation
    skipped: list[Skipped]
    seen: int | None
    rows: int
    unlabelled: tuple[str, ...]

    @property
    def warning(self) -> str:
        """What to know before believing the numbers, in words; may be empty."""
        if self.seen is None:
            return "Whether the model was trained on some of them, a bare model cannot tell."
        if self.seen:
            return (
                f"WARNING: {self.seen} of them were trained on, or chosen by, so these numbers are "
                "too good; those in the run's own metrics.json, if it has any, are honest."
            )
        return "None of them is byte-identical to a picture that was trained on or chosen by."

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        return self.evaluation.to_dict() | {
            "rows": self.rows,
            "seen_in_training": self.seen,
            "skipped": [asdict(row) for row in self.skipped],
            "unlabelled": list(self.unlabelled),
        }


def evaluate(
    run: str | os.PathLike[str] | Predictor,
    table: LabelTable,
    images: str | os.PathLike[str],
    *,
    strict: bool = False,
    max_skipped: float = MAX_SKIPPED,
) -> Judged:
    """Measure a model's predictions against a table.

    Args:
        run: A run folder, a ``model.onnx``, or a predictor (one with other thresholds, say).
        table: The labels; attributes are matched by name.
        images: The folder of pictures.
        strict: Whether one picture that cannot be used stops everything.
        max_skipped: Share of pictures that may be skipped.

    Raises:
        UserError: Model and table share no attribute, or ``strict`` and a picture is unusable.
        SkippedError: Too many pictures cannot be used.

    Example:
        Not run: it needs a trained run; the tests train one.

        >>> judged = evaluate("runs/latest", read_table("new.csv"), "images")  # doctest: +SKIP
        >>> judged.evaluation.macro["ap"].value                                # doctest: +SKIP
        0.62
    """
    predictor = run if isinstance(run, Predictor) else load(run)
    info = predictor.info
    if not set(info.attributes) & set(table.attributes):
        raise UserError(
            "the model and the table share no attribute",
            where=table.source,
            got=", ".join(table.attributes[:8]),
            expected=", ".join(info.attributes[:8]),
            fix="name the table's columns by --attributes",
        )
    paths, errors = locate(table, Path(images))
    there = [row for row in range(len(table)) if row not in errors]
    answers = np.full((len(table), len(info.attributes)), np.nan)
    with progress("predicting", len(there), "pictures") as advance:
        row = iter(there)
        for chunk in predictor.stream((table.images[i], paths[i]) for i in there):
            for probabilities, error in zip(chunk.probabilities, chunk.errors, strict=True):
                index = next(row)
                answers[index] = probabilities
                if error is not None:
                    errors[index] = UserError(error.removeprefix(f"{table.images[index]}: "))
            advance(len(chunk))
    skipped = skipped_rows(table, errors)
    refuse_too_many(skipped, len(table), strict=strict, most=max_skipped)
    usable = [index for index in there if index not in errors]
    if not usable:
        raise UserError("no row of the table has a usable picture", where=table.source)
    # Columns in the table's order; an attribute the model does not answer stays NaN.
    probabilities = np.full((len(usable), len(table.attributes)), np.nan)
    thresholds = np.full(len(table.attributes), 0.5)
    for k, name in enumerate(table.attributes):
        if name in info.attributes:
            at = info.attributes.index(name)
            probabilities[:, k] = answers[usable, at]
            thresholds[k] = info.thresholds[at]
    unknown = [name for name in table.attributes if name not in info.attributes]
    reasons = {name: info.left_out.get(name, "the model does not know it") for name in unknown}
    return Judged(
        evaluation=evaluate_arrays(
            table.attributes,
            table.values[usable],
            probabilities,
            thresholds,
            not_trained=reasons,
        ),
        skipped=skipped,
        seen=_seen(predictor.path.parent, info.splits_hash, [paths[i] for i in usable]),
        rows=len(usable),
        unlabelled=tuple(name for name in info.attributes if name not in table.attributes),
    )


def _seen(run: Path, splits_hash: str, paths: list[Path]) -> int | None:
    known = hashes_seen(run, splits_hash)
    return None if known is None else sum(content_hash(path) in known for path in paths)
