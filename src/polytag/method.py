"""What a method of training is given, and what it leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polytag.backbone import Backbone
from polytag.config import Recipe
from polytag.features import Extractor
from polytag.history import History
from polytag.model import Classifier
from polytag.modelfile import ModelInfo
from polytag.pictures import Rows
from polytag.runs import Place

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Prepared:
    """What every method starts from.

    Attributes:
        recipe: As resolved.
        backbone: The network.
        extractor: How features are computed; None where none are needed.
        rows: N usable rows.
        features: float32 (N, V, D), or None.
        groups: int (N,).
        learnt: The K' columns that can be learnt.
        place: Where the run will be.
        resuming: Whether it goes on from a checkpoint.
    """

    recipe: Recipe
    backbone: Backbone
    extractor: Extractor | None
    rows: Rows
    features: Floats | None
    groups: NDArray[np.int64]
    learnt: list[int]
    place: Place
    resuming: bool

    @property
    def values(self) -> Floats:
        """float32 (N, K'), of the columns that can be learnt."""
        return self.rows.table.values[:, self.learnt]


@dataclass(frozen=True, eq=False)
class Trained:
    """What every method ends with.

    Attributes:
        logits: float32 (N, K') of the judged rows.
        judged: bool (N,): the rows that numbers are measured on.
        folds: (N,): every row's fold (int), or its part (str).
        history: Of the training.
        model: The network that is kept, in torch.
        write: Writes ``model.onnx`` with what it is to say about itself.
        facts: For metrics.json.
        judged_on: What numbers are measured on, in words; empty: on nothing.
        note: What to know first; may be empty.
    """

    logits: Floats
    judged: NDArray[np.bool_]
    folds: NDArray[Any]
    history: History
    model: Classifier
    write: Callable[[ModelInfo, Path], None]
    facts: Mapping[str, Any]
    judged_on: str
    note: str = ""
