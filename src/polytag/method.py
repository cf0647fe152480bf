"""What a method of training is given, and what it leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polytag.budget import Plan
from polytag.config import Recipe
from polytag.features import Extractor
from polytag.frozen import FrozenBackbone
from polytag.history import History
from polytag.modelfile import ModelInfo
from polytag.pictures import Rows
from polytag.runs import Place
from polytag.splits import Given

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Prepared:
    """What every method starts from.

    Attributes:
        recipe: As resolved.
        frozen: The network.
        extractor: How features are computed.
        rows: N usable rows.
        features: float32 (N, V, D) of the frozen backbone.
        alike: int (N,): rows of one number look the same.
        groups: int (N,): rows of one number stay on one side of every split.
        grouped: How they came about, for metrics.json.
        given: The user's own split; None: rows are parted here.
        leaked: bool (N,): rows of that split whose like is trained on; they judge nothing.
        learnt: The K' columns that can be learnt.
        left_out: The other attributes, with the reason.
        place: Where the run will be.
        resuming: Whether it goes on from a checkpoint.
        plan: How a budget of time is kept to; None: there is none.
    """

    recipe: Recipe
    frozen: FrozenBackbone
    extractor: Extractor
    rows: Rows
    features: Floats
    alike: NDArray[np.int64]
    groups: NDArray[np.int64]
    grouped: Mapping[str, Any]
    given: Given | None
    leaked: NDArray[np.bool_]
    learnt: list[int]
    left_out: dict[str, str]
    place: Place
    resuming: bool
    plan: Plan | None

    @property
    def values(self) -> Floats:
        """float32 (N, K'), of the columns that can be learnt."""
        return self.rows.table.values[:, self.learnt]

    @property
    def names(self) -> tuple[str, ...]:
        """The K' attributes that can be learnt."""
        return tuple(self.rows.table.attributes[k] for k in self.learnt)


@dataclass(frozen=True, eq=False)
class Choosing:
    """Predictions that calibration and thresholds are chosen by.

    Attributes:
        logits: float32 (N, K') of rows that neither the model they come from nor its choices
            have seen; NaN in the other rows.
        folds: int (N,): parts of these rows for what is fitted on some and applied to others; -1:
            the other rows.
        judges: bool (N,): the rows that what is chosen here is judged on, none of them among
            those it is chosen by. Of what is deployed: none.
    """

    logits: Floats
    folds: NDArray[np.int64]
    judges: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Trained:
    """What every method ends with.

    Attributes:
        logits: float32 (N, K') of the judged rows.
        judged: bool (N,): the rows that numbers are measured on.
        parts: (N,): every row's fold (int), or its part (str), for splits.csv.
        choosing: One for each model that judged rows come from; together they judge them all.
        deployed: What the kept model's are chosen by; None: no row is left to choose by.
        history: Of the training.
        save: Writes ``weights.safetensors`` with the names of the attributes.
        write: Writes ``model.onnx`` with what it is to say about itself.
        facts: For metrics.json.
        judged_on: What the judged rows are, in words; empty: there are none.
        note: What to know first; may be empty.
    """

    logits: Floats
    judged: NDArray[np.bool_]
    parts: NDArray[Any]
    choosing: Sequence[Choosing]
    deployed: Choosing | None
    history: History
    save: Callable[[Path, Sequence[str]], None]
    write: Callable[[ModelInfo, Path], None]
    facts: Mapping[str, Any]
    judged_on: str
    note: str = ""

    def without(self, leaked: NDArray[np.bool_]) -> Trained:
        """Return the same with rows (N,) that neither judge, nor calibrate, nor set thresholds."""

        def less(choosing: Choosing | None) -> Choosing | None:
            if choosing is None:
                return None
            folds = np.where(leaked, -1, choosing.folds)
            few = len(np.unique(folds[folds >= 0])) < 2  # nothing could be fitted and tried
            return None if few else Choosing(choosing.logits, folds, choosing.judges & ~leaked)

        return replace(
            self,
            judged=self.judged & ~leaked,
            choosing=[each for each in map(less, self.choosing) if each],
            deployed=less(self.deployed),
        )
