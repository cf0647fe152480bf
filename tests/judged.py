"""What tests of judged runs share: recipes that take a second, tables changed, cells as arrays."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from polytag import plots, rounds
from polytag.model import Classifier
from polytag.modelfile import ModelInfo
from polytag.table import LabelTable

# A probe in 3 folds with one penalty: 7 fits.
QUICK: dict[str, object] = {"split.folds": 3, "probe.l2": 1.0}
# For `recipe="finetune"`: a few steps of a tiny network.
TUNED: dict[str, object] = {
    "device": "cpu",
    "head.init": "random",
    "training.batch": 16,
    "training.precision": "fp32",
    "split.holdout": 0.3,
    "split.choose": 0.25,
    "split.folds": 3,
    "stages.*.epochs": 1,
    "stages.*.lr": 0.02,
}


@contextmanager
def no_drawings() -> Iterator[None]:
    """Drawing takes a third of a tiny run's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "loss_curve", lambda history, title, path: path.touch())
        patch.setattr(plots, "sample_predictions", lambda samples, names, path: path.touch())
        yield


@contextmanager
def no_export() -> Iterator[None]:
    """Export no model: leave what it says about itself in the file's place."""

    def write(model: Classifier, info: ModelInfo, path: Path) -> None:
        path.write_text(info.to_json(), encoding="utf-8")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds, "write_classifier", write)
        yield


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def parts_of(run: Any) -> dict[str, str]:
    """Each picture's fold or part."""
    return {row["image"]: row["fold"] for row in rows_of(Path(run) / "splits.csv")}


def cells_of(run: Any) -> dict[str, np.ndarray]:
    """The columns of oof.parquet as arrays (judged rows, K')."""
    frame = pl.read_parquet(Path(run) / "oof.parquet")
    count = max(frame["attribute"].n_unique(), 1)
    return {name: frame[name].to_numpy().reshape(-1, count) for name in frame.columns}


def with_columns(table: LabelTable, **columns: Any) -> LabelTable:
    """A table with further columns; each is a list of texts, one a row."""
    return replace(table, extra={**table.extra, **{k: tuple(v) for k, v in columns.items()}})


def with_values(table: LabelTable, values: np.ndarray) -> LabelTable:
    return replace(table, values=values)
