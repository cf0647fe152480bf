"""Runs side by side: what differs between them, and whether it made a difference."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from polytag.compare.paired import Difference, Said, differences, mean, numbers
from polytag.compare.reading import Common, common, read_judged, settings
from polytag.errors import UserError
from polytag.kept import Kept

__all__ = ["Comparison", "Difference", "Experiment", "Said", "compare", "differences"]


@dataclass(frozen=True)
class Experiment:
    """One line of the experiments' table; its AP, AUC and F1 are of the common pictures.

    Attributes:
        run: Its name.
        path: Its folder.
        method: probe or finetune.
        differs: Settings that the reference has otherwise: key to (there, here); None: not there.
        best_epoch: Of a fine-tuning that chose one.
        seconds: How long it took.
        judged: How many pictures it judged.
        macro: Means over the attributes that have the number.
        attributes: The numbers of each; NaN where not defined.
    """

    run: str
    path: str
    method: str
    differs: Mapping[str, tuple[Any, Any]]
    best_epoch: str | None
    seconds: float | None
    judged: int
    macro: Mapping[str, float]
    attributes: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
        experiments: One a run, the reference first.
        differences: Of every other run from the reference.
        rows: How many pictures all runs judged.
        groups: How many groups they form.
        attributes: Those that all runs answer.
        left_out: Attributes that some run does not answer.
    """

    experiments: Sequence[Experiment]
    differences: Sequence[Difference]
    rows: int
    groups: int
    attributes: tuple[str, ...]
    left_out: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        return {
            "reference": self.experiments[0].run,
            "rows": self.rows,
            "groups": self.groups,
            "attributes": list(self.attributes),
            "left_out": list(self.left_out),
            "runs": [_plain(asdict(experiment)) for experiment in self.experiments],
            "differences": [difference.to_dict() for difference in self.differences],
        }


def compare(runs: Sequence[str | os.PathLike[str]]) -> Comparison:
    """Compare finished runs with the first of them, on the pictures that all of them judged.

    Args:
        runs: Two run folders or more.

    Raises:
        UserError: Fewer than two, one twice, no picture or attribute in common, or labels that
            changed between them.
        ModelError: No finished run, or one that judged nothing.

    Example:
        Not run: it needs trained runs; the tests train some.

        >>> compare(["runs/first", "runs/second"]).differences[0].words  # doctest: +SKIP
        'no evidence of a difference'
    """
    if len(runs) < 2:
        raise UserError("a comparison needs two runs or more", got=str(len(runs)))
    paths = [Path(run).resolve() for run in runs]
    for path, run in zip(paths, runs, strict=True):
        if paths.count(path) > 1:
            raise UserError("the same run twice", where=os.fspath(run))
    names = [path.name for path in paths]
    if len(set(names)) < len(names):
        names = [os.fspath(run) for run in runs]
    runs_read = {name: read_judged(path, name) for path, name in zip(paths, names, strict=True)}
    shared = common(runs_read)
    reference = settings(runs_read[names[0]])
    return Comparison(
        experiments=[
            _experiment(run, said, shared, reference)
            for run, said in zip(runs_read.values(), shared.said, strict=True)
        ],
        differences=differences(
            shared.attributes, shared.values, shared.said[0], shared.said[1:], shared.groups
        ),
        rows=len(shared.values),
        groups=len(np.unique(shared.groups)),
        attributes=shared.attributes,
        left_out=shared.left_out,
    )


def _experiment(run: Kept, said: Said, shared: Common, reference: Mapping[str, Any]) -> Experiment:
    own = settings(run)
    found = numbers(shared.values, said)
    keys = dict.fromkeys([*reference, *own])
    return Experiment(
        run=said.run,
        path=str(run.run),
        method=run.recipe.method,
        differs={
            key: (reference.get(key), own.get(key))
            for key in keys
            if reference.get(key) != own.get(key)
        },
        best_epoch=run.metrics.get("best_epoch"),
        seconds=run.metrics.get("seconds"),
        judged=int(run.calibrated.judged.sum()),
        macro={metric: mean(column) for metric, column in found.items()},
        attributes={
            name: {metric: float(column[k]) for metric, column in found.items()}
            for k, name in enumerate(shared.attributes)
        },
    )


def _plain(tree: Any) -> Any:
    """Return a tree of plain things with None for what is NaN."""
    if isinstance(tree, Mapping):
        return {key: _plain(value) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        return [_plain(value) for value in tree]
    return None if tree != tree else tree
