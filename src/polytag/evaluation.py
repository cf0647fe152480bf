"""Judging a model, or anybody's predictions, on labels that it is shown for the first time."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polytag.answers import Answers, holds_answers, read_answers, refuse_unanswered
from polytag.errors import ImageError, TableError, UserError, did_you_mean, printable
from polytag.groups import by_column, identical, joined
from polytag.images import content_hash
from polytag.pictures import MAX_SKIPPED, Skipped, locate, refuse_too_many, skipped_rows
from polytag.predictions import Predictions, concatenate
from polytag.predictor import Predictor, load
from polytag.progress import progress
from polytag.results import AttributeMetrics, Evaluation, Mean, Value
from polytag.runs import hashes_seen
from polytag.scorecard import evaluate_arrays
from polytag.table import LabelTable

Said = str | os.PathLike[str] | Predictor | Predictions | Answers

# Metrics that need a decision; the others look at probabilities alone.
_DECIDED = ("f1", "precision", "recall", "accuracy", "balanced_accuracy")


@dataclass(frozen=True)
class Judged:
    """What judging a model, or predictions, on a table gave.

    Attributes:
        evaluation: Metrics of the attributes of the table.
        skipped: Rows whose picture could not be used, or about which nothing was predicted.
        seen: How many of the measured pictures the run was trained on; None where that cannot be
            known, as with a bare ``model.onnx`` or a file of predictions.
        rows: How many rows were measured.
        unlabelled: Attributes of the model, or columns of the file, that the table does not have.
        groups: How many they are where those that count as one in intervals are one; None: each
            row counts for itself.
        group_by: The column whose equal texts count as one, or None.
        pictured: Whether identical pictures count as one.
        unsure: Known cells that were left undecided, by attribute, where there are any.
        answered: Known cells of the measured rows with a probability.
        unanswered: Known cells of the measured rows without a probability, left out.
        of_a_model: Whether a model was judged, or its predictions.
    """

    evaluation: Evaluation
    skipped: list[Skipped]
    seen: int | None
    rows: int
    unlabelled: tuple[str, ...]
    groups: int | None = None
    group_by: str | None = None
    pictured: bool = False
    unsure: Mapping[str, int] = field(default_factory=dict)
    answered: int = 0
    unanswered: int = 0
    of_a_model: bool = True

    @property
    def unsure_share(self) -> float:
        """Share of the answered cells that were left undecided; neither right nor wrong."""
        return sum(self.unsure.values()) / self.answered if self.answered else 0.0

    @property
    def counting(self) -> str:
        """What counts as one where an interval says how sure a number is, in words."""
        if self.group_by is None:
            who = (
                "Identical pictures count as one" if self.pictured else "Each row counts for itself"
            )
            return f"{who} in intervals."
        also = ", and so do identical pictures" if self.pictured else ""
        return f"Rows with the same {printable(self.group_by)} count as one in intervals{also}."

    @property
    def warning(self) -> str:
        """What to know before believing the numbers, in words."""
        if self.seen is None:
            who = "a bare model" if self.of_a_model else "a file of predictions"
            return f"Whether the model was trained on some of them, {who} cannot tell."
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
            "groups": self.groups,
            "group_by": self.group_by,
            "seen_in_training": self.seen,
            "skipped": [asdict(row) for row in self.skipped],
            "unlabelled": list(self.unlabelled),
            "unsure": dict(self.unsure),
            "unsure_share": self.unsure_share,
            "unanswered": self.unanswered,
        }


def evaluate(
    run: Said,
    table: LabelTable,
    images: str | os.PathLike[str] | None = None,
    *,
    strict: bool = False,
    max_skipped: float = MAX_SKIPPED,
    group_by: str | None = None,
) -> Judged:
    """Measure a model, or predictions that somebody made, against a table.

    Identical pictures, and rows with one text in a column that names groups, count as one where
    an interval says how sure a number is.

    Args:
        run: A run folder, a ``model.onnx`` or a predictor; or predictions: a CSV, Parquet or JSON
            file (see `polytag.answers`), or as objects.
        table: The labels; attributes are matched by name, predictions by the picture's name too.
        images: The folder of pictures. Predictions can be judged without.
        strict: Whether one picture that cannot be used stops everything.
        max_skipped: Share of the table's rows that may be skipped.
        group_by: A column of the table beside its labels; None: the one that the run itself was
            grouped by, if the table has it.

    Raises:
        UserError: Nothing in common, no such column, or ``strict`` and a row cannot be used.
        SkippedError: Too many rows cannot be used.

    Example:
        >>> said = Predictions(("a.jpg", "b.jpg"), ("red",), np.array([[0.9], [0.2]], np.float32),
        ...                    np.array([0.5]), (None, None))
        >>> table = LabelTable.from_rows(["b.jpg", "a.jpg"], ["red"], [[0], [1]])
        >>> evaluate(said, table).evaluation.hamming.value
        1.0
    """
    source = opened(run, table.attributes)
    group_by = _group_column(source, table, group_by)
    paths, errors = locate(table, Path(images)) if images is not None else ([], {})
    if isinstance(source, Predictor):
        if not paths:
            fix = "give their folder by --images"
            raise UserError("a model is judged on pictures", where=str(source.path), fix=fix)
        answers = _predicted(source, table, paths, errors)
        known_to_lack, lacks = source.info.left_out, "the model does not know it"
    else:
        answers, errors = source, {}  # which pictures are identical is all that paths are for
        known_to_lack, lacks = {}, f"no column in {source.source or 'the predictions'}"
    matched = _matched(answers, table, errors)
    skipped = skipped_rows(table, errors)
    if isinstance(source, Predictor):
        refuse_too_many(skipped, len(table), strict=strict, most=max_skipped)
    else:
        rows = [f"{row.image} ({row.where}): {row.reason}" for row in skipped]
        refuse_unanswered(rows, len(table), strict=strict, most=max_skipped)
    usable = [row for row in range(len(table)) if row not in errors]
    if not usable:
        what = "usable picture" if isinstance(source, Predictor) else "prediction"
        raise UserError(f"no row of the table has a {what}", where=table.source)
    hashes = [_hash(paths[row], row) for row in usable] if paths else None
    cells = _line_up(answers, matched[usable], table, usable)
    lacking = [name for name in table.attributes if name not in answers.attributes]
    groups = identical(hashes) if hashes else np.arange(len(usable))
    if group_by:
        groups = joined(groups, by_column([table.extra[group_by][row] for row in usable]))
    evaluation = _measure(
        table.attributes,
        cells,
        groups,
        {name: known_to_lack.get(name, lacks) for name in lacking},
    )
    unsure = ((cells.decisions == "unsure") & ~np.isnan(cells.values)).sum(axis=0).tolist()
    unlabelled = [name for name in answers.attributes if name not in table.attributes]
    return Judged(
        evaluation=evaluation,
        skipped=skipped,
        seen=_seen(source, hashes) if isinstance(source, Predictor) and hashes else None,
        rows=len(usable),
        unlabelled=(*unlabelled, *answers.others),
        groups=len(np.unique(groups)) if hashes or group_by else None,
        group_by=group_by,
        pictured=bool(hashes),
        unsure={name: n for name, n in zip(table.attributes, unsure, strict=True) if n},
        answered=int((~np.isnan(cells.values) & ~np.isnan(cells.probabilities)).sum()),
        unanswered=cells.unanswered,
        of_a_model=isinstance(source, Predictor),
    )


def opened(run: Said, attributes: Sequence[str]) -> Predictor | Answers:
    """Return a loaded model, or the predictions about some attributes.

    Args:
        run: See `evaluate`.
        attributes: Of the table that it will be judged by.

    Raises:
        UserError: There is no such run or file, or it cannot be read as it stands.

    Example:
        >>> opened("runs/none-of-this-name", ["red"])
        Traceback (most recent call last):
        polytag.errors.ModelError: runs/none-of-this-name: no such run folder or model file; ...
    """
    if isinstance(run, Predictor | Answers):
        return run
    if isinstance(run, Predictions):
        return Answers.of(run)
    return read_answers(run, attributes) if holds_answers(Path(run)) else load(run)


def own_group_column(predictor: Predictor) -> str | None:
    """Return the column that the rows a model was trained on were grouped by, or None."""
    split: Mapping[str, str] = predictor.info.recipe.get("split", {})
    return split.get("group_by") or None


def _group_column(source: Predictor | Answers, table: LabelTable, asked: str | None) -> str | None:
    """Return the column that groups the rows: the one asked for, or the run's own, or None."""
    if asked is None:
        own = own_group_column(source) if isinstance(source, Predictor) else None
        return own if own in table.extra else None
    if asked not in table.extra:
        fix = did_you_mean(asked, table.extra) if table.extra else "the table has no other columns"
        raise TableError("no such column for --group-by", where=table.source, got=asked, fix=fix)
    return asked


def _predicted(
    predictor: Predictor, table: LabelTable, paths: list[Path], errors: Mapping[int, UserError]
) -> Answers:
    """Return a model's answers about the pictures that are there, by their names in the table."""
    names = predictor.info.attributes
    if not set(names) & set(table.attributes):
        raise UserError(
            "the model and the table share no attribute",
            where=table.source,
            got=", ".join(table.attributes[:8]),
            expected=", ".join(names[:8]),
            fix="name the table's columns by --attributes",
        )
    there = [row for row in range(len(table)) if row not in errors]
    chunks = [predictor.predict([])]
    with progress("predicting", len(there), "pictures") as advance:
        for chunk in predictor.stream((table.images[row], paths[row]) for row in there):
            chunks.append(chunk)
            advance(len(chunk))
    return Answers.of(concatenate(chunks))


def _matched(
    answers: Answers, table: LabelTable, errors: dict[int, UserError]
) -> NDArray[np.int64]:
    """Return the answer about each row, and note in ``errors`` the rows without one."""
    matched = answers.rows_of(table.images)
    if (matched < 0).all() and not errors:
        raise UserError(
            "the predictions and the table share no picture",
            where=answers.source,
            got=", ".join(answers.images[:3]) or "no row",
            expected=f"names such as {', '.join(table.images[:3])}",
        )
    for row, (name, answer) in enumerate(zip(table.images, matched, strict=True)):
        error = "no row about it in the predictions" if answer < 0 else answers.errors[answer]
        if error and row not in errors:
            errors[row] = UserError(error.removeprefix(f"{name}: "))
    return matched


@dataclass(frozen=True)
class _Cells:
    """What was known and said about n rows, in the table's columns.

    Attributes:
        values: float64 (n, K); NaN also where nothing was said though the attribute was asked for.
        probabilities: float64 (n, K); NaN columns were not answered at all.
        decisions: str (n, K): present, absent, unsure; empty where the threshold decides.
        thresholds: float64 (K,); NaN where decisions were given.
        unanswered: Known cells that had to be left out for want of a probability.
    """

    values: NDArray[np.float64]
    probabilities: NDArray[np.float64]
    decisions: NDArray[np.str_]
    thresholds: NDArray[np.float64]
    unanswered: int


def _line_up(
    answers: Answers, matched: NDArray[np.int64], table: LabelTable, usable: list[int]
) -> _Cells:
    values = table.values[usable].astype(np.float64)
    probabilities, decisions = np.full(values.shape, np.nan), np.full(values.shape, "", "<U7")
    thresholds = np.full(len(table.attributes), 0.5)
    for k, name in enumerate(table.attributes):
        if name in answers.attributes:
            at = answers.attributes.index(name)
            probabilities[:, k] = answers.probabilities[matched, at]
            decisions[:, k] = answers.decisions[matched, at]
            thresholds[k] = answers.thresholds[at]
    silent = np.isnan(probabilities)
    silent &= ~silent.all(axis=0)
    unanswered = int((silent & ~np.isnan(values)).sum())
    return _Cells(
        np.where(silent, np.nan, values), probabilities, decisions, thresholds, unanswered
    )


def _measure(
    names: Sequence[str],
    cells: _Cells,
    groups: NDArray[np.int64],
    not_trained: Mapping[str, str],
) -> Evaluation:
    """Measure; what is unsure counts for the probabilities and is left out of the decisions."""

    def measured(values: NDArray[np.float64]) -> Evaluation:
        return evaluate_arrays(
            names, values, probabilities, thresholds, groups=groups, not_trained=not_trained
        )

    given = cells.decisions != ""
    if not given.any():
        probabilities, thresholds = cells.probabilities, cells.thresholds
        return measured(cells.values)
    # Decisions become thresholds of single cells: 0 is always reached, and 1 never is by a
    # probability that is one step of float64 below it at most.
    probabilities = np.minimum(cells.probabilities, np.nextafter(1, 0))
    by_threshold = cells.probabilities >= cells.thresholds
    present = np.where(given, cells.decisions == "present", by_threshold)
    thresholds = np.where(present, 0.0, 1.0)
    whole = measured(cells.values)
    whole = replace(
        whole,
        attributes=tuple(
            replace(a, threshold=float(threshold))
            for a, threshold in zip(whole.attributes, cells.thresholds, strict=True)
        ),
    )
    unsure = cells.decisions == "unsure"
    if not unsure.any():
        return whole
    return _decided(whole, measured(np.where(unsure, np.nan, cells.values)))


def _decided(whole: Evaluation, sure: Evaluation) -> Evaluation:
    """Return an evaluation whose decisions are judged on the cells that were decided."""
    undecided = {
        a.name: "all its known cells were left unsure"
        for a, b in zip(whole.attributes, sure.attributes, strict=True)
        if a.present + a.absent and not b.present + b.absent
    }

    def decided(a: AttributeMetrics, b: AttributeMetrics) -> AttributeMetrics:
        found: dict[str, Any] = {metric: getattr(b, metric) for metric in _DECIDED}
        if reason := undecided.get(a.name):
            found = dict.fromkeys(_DECIDED, Value(reason=reason))
        return replace(a, **found)

    def means(mean: Mean) -> Mean:
        return replace(mean, missing={**mean.missing, **undecided})

    pairs = zip(whole.attributes, sure.attributes, strict=True)
    return replace(
        whole,
        attributes=tuple(decided(a, b) for a, b in pairs),
        macro={**whole.macro, **{metric: means(sure.macro[metric]) for metric in _DECIDED}},
        hamming=means(sure.hamming),
        exact_match=means(sure.exact_match),
    )


def _hash(path: Path, row: int) -> str:
    """Return what identical pictures share; one that cannot be read is like no other."""
    try:
        return content_hash(path)
    except ImageError:
        return f"row {row}"


def _seen(predictor: Predictor, hashes: Sequence[str]) -> int | None:
    known = hashes_seen(predictor.path.parent, predictor.info.splits_hash)
    return None if known is None else sum(text in known for text in hashes)
