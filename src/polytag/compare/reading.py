"""What finished runs can be compared by: the pictures that all judged, and their settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polytag.compare.paired import Said
from polytag.errors import ModelError, UserError
from polytag.groups import joined
from polytag.kept import Kept, read_run

_NOT_COMPARED = ("data", "title", "description")  # of a recipe: names, not settings


@dataclass(frozen=True, eq=False)
class Common:
    """N pictures that all runs judged, K attributes that all answer.

    Attributes:
        attributes: K names.
        values: float64 (N, K) in {1, 0, NaN}.
        groups: int64 (N,): held together by any of the runs.
        said: What each run said about them.
        left_out: Attributes that some run does not answer.
    """

    attributes: tuple[str, ...]
    values: NDArray[np.float64]
    groups: NDArray[np.int64]
    said: Sequence[Said]
    left_out: tuple[str, ...]


def read_judged(run: Path, name: str) -> Kept:
    """Read a run that judged something.

    Raises:
        ModelError: No finished run, or one whose numbers are on nothing.
    """
    if not (run / "metrics.json").is_file():
        raise ModelError(
            "no finished run", where=name, got="no metrics.json", fix="give the folder of a run"
        )
    kept = read_run(run)
    if not kept.calibrated.judged.any():
        raise ModelError(
            "the run judged no picture", where=name, fix="train a probe, or with split.holdout"
        )
    return kept


def common(runs: Mapping[str, Kept]) -> Common:
    """Return what all runs have judged, by name and content of the pictures.

    Raises:
        UserError: Nothing, or labels that changed between the runs.
    """
    kept = list(runs.values())
    places = [
        {
            (run.table.images[row], run.hashes[row]): row
            for row in np.flatnonzero(run.calibrated.judged).tolist()
        }
        for run in kept
    ]
    pictures = [key for key in places[0] if all(key in place for place in places)]
    names = [name for name in kept[0].attributes if all(name in run.attributes for run in kept)]
    first = next(iter(runs))
    for what, found, had in (
        ("picture that all runs judged", pictures, next(iter(places[0]))[0]),
        ("attribute that all runs answer", names, kept[0].attributes[0]),
    ):
        if not found:
            raise UserError(f"there is no {what}", got=f"{had!r} in {first}, for example")
    said, values, groups = [], [], []
    for (name, run), place in zip(runs.items(), places, strict=True):
        rows = [place[key] for key in pictures]
        cells = np.ix_(rows, [run.attributes.index(attribute) for attribute in names])
        present = run.calibrated.probabilities[cells] >= run.thresholds[cells]
        said.append(Said(name, run.calibrated.ranking[cells], present))
        values.append(run.values[cells].astype(np.float64))
        groups.append(run.groups[rows])
        _refuse_other_labels(values, [first, name], [key[0] for key in pictures], names)
    answered = dict.fromkeys(name for run in kept for name in run.attributes)
    left_out = tuple(name for name in answered if name not in names)
    return Common(tuple(names), values[0], joined(*groups), said, left_out)


def _refuse_other_labels(
    values: Sequence[NDArray[np.float64]],
    runs: Sequence[str],
    images: Sequence[str],
    names: Sequence[str],
) -> None:
    a, b = values[0], values[-1]
    changed = np.argwhere((a != b) & ~(np.isnan(a) & np.isnan(b)))
    if not len(changed):
        return
    row, k = changed[0]
    words = {1.0: "present", 0.0: "absent"}
    cells = [words.get(float(side[row, k]), "not known") for side in (a, b)]
    raise UserError(
        f"the labels changed between the runs, in {len(changed)} of {a.size} cells",
        where=f"{images[row]}, {names[k]}",
        got=", ".join(f"{cell} in {run}" for cell, run in zip(cells, runs, strict=True)),
        fix="train both on one table",
    )


def settings(run: Kept) -> dict[str, Any]:
    """Return a run's recipe by dotted keys, without where its data are."""

    def leaves(tree: Any, front: str) -> Iterator[tuple[str, Any]]:
        nested = isinstance(tree, list) and bool(tree) and isinstance(tree[0], dict)
        if isinstance(tree, dict) or nested:
            for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
                yield from leaves(value, f"{front}.{key}" if front else str(key))
        else:
            yield front, tree

    return dict(leaves(run.recipe.model_dump(mode="json", exclude=set(_NOT_COMPARED)), ""))
