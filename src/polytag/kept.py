"""The cells of a run folder: labels and probabilities, written once and read back.

``labels.parquet`` holds what was known of every row that was used, ``oof.parquet`` the judged
cells, ``choosing.parquet`` the probabilities that thresholds are chosen by. With them thresholds
can be chosen anew, runs compared and reports written without training.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from polytag.calibration import Calibration
from polytag.config import Recipe, load_recipe
from polytag.decide import Basis, Calibrated, Decided
from polytag.errors import ModelError
from polytag.files import written_aside
from polytag.history import History
from polytag.table import LabelTable

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Kept:
    """What a finished run knows of its N rows, its K attributes, and the K' that it answers.

    Attributes:
        run: The folder.
        recipe: As resolved.
        metrics: The content of ``metrics.json``.
        table: The rows that were used, with all K attributes.
        attributes: The K' names.
        hashes: N content hashes.
        groups: int (N,): rows that no split divides.
        alike: int (N,): rows whose pictures are the same, or nearly.
        history: Of the training.
        parts: N folds or parts, as in ``splits.csv``.
        raw: float64 (N, K'), probabilities before calibration; NaN in rows not judged.
        thresholds: float64 (N, K') that judged rows were decided by; NaN in the others.
        calibrated: Probabilities (N, K'), and those that thresholds are chosen by.
    """

    run: Path
    recipe: Recipe
    metrics: Mapping[str, Any]
    table: LabelTable
    attributes: tuple[str, ...]
    hashes: tuple[str, ...]
    groups: NDArray[np.int64]
    alike: NDArray[np.int64]
    history: History
    parts: tuple[str, ...]
    raw: Doubles
    thresholds: Doubles
    calibrated: Calibrated

    @property
    def verdicts(self) -> dict[str, tuple[str, float, float]]:
        """Each attribute's verdict, its p and its adjusted p, where that was judged."""

        def number(p: float | None) -> float:
            return np.nan if p is None else p

        return {
            each["name"]: (each["verdict"], number(each["p_value"]), number(each["p_holm"]))
            for each in self.metrics["attributes"]
            if each["verdict"]
        }

    @property
    def values(self) -> Floats:
        """float32 (N, K') in {0, 1, NaN}."""
        columns = [self.table.attributes.index(name) for name in self.attributes]
        return self.table.values[:, columns]


def write_labels(run: Path, table: LabelTable) -> None:
    """Write what is known of every row that was used."""
    truth = _truth(table.values)
    _write(run / "labels.parquet", _names(table.images, table.attributes) | {"truth": truth})


def write_judged(
    run: Path,
    table: LabelTable,
    names: tuple[str, ...],
    raw: Doubles,
    calibrated: Calibrated,
    decided: Decided,
) -> None:
    """Write the judged cells of the attributes that were trained.

    Args:
        run: The folder.
        table: The N rows that were used.
        names: K' attributes.
        raw: float (N, K'), probabilities before calibration.
        calibrated: Probabilities after it; NaN in rows not judged.
        decided: What each judged row was decided by.
    """
    rows = np.flatnonzero(calibrated.judged)
    folds = np.full(len(table), 0)
    for fold, basis in enumerate(calibrated.bases):
        folds[basis.judges] = fold
    columns = [table.attributes.index(name) for name in names]
    cells = _names([table.images[row] for row in rows], names) | {
        "truth": _truth(table.values[rows][:, columns]),
        "probability_raw": raw[rows].ravel(),
        "probability_calibrated": calibrated.probabilities[rows].ravel(),
        "fold": np.repeat(folds[rows], len(names)),
        "threshold": decided.thresholds[rows].ravel(),
    }
    _write(run / "oof.parquet", cells)


def write_choosing(
    run: Path, table: LabelTable, names: tuple[str, ...], calibrated: Calibrated
) -> None:
    """Write what thresholds are chosen by: a fold's model's, and without a fold the kept one's."""
    bases: list[tuple[int | None, Basis]] = list(enumerate(calibrated.bases))
    bases += [(None, calibrated.deployed)] if calibrated.deployed else []
    kept = [~np.isnan(basis.probabilities).all(axis=1) for _, basis in bases]
    images = [image for rows in kept for image in np.array(table.images, dtype=object)[rows]]
    folds = [fold for (fold, _), rows in zip(bases, kept, strict=True) for _ in range(rows.sum())]
    chosen = [basis.probabilities[rows] for (_, basis), rows in zip(bases, kept, strict=True)]
    cells = _names(images, names) | {
        "fold": pl.Series([fold for fold in folds for _ in names], dtype=pl.Int64),
        "probability": np.concatenate([np.empty((0, len(names))), *chosen]).ravel(),
    }
    _write(run / "choosing.parquet", cells)


def read_run(run: Path) -> Kept:
    """Read the cells of a run folder back.

    Raises:
        ModelError: Something is missing, or cannot be read.
    """
    try:
        return _read(run)
    except (OSError, ValueError, KeyError, TypeError, pl.exceptions.PolarsError) as error:
        raise ModelError(
            "what this run was judged by cannot be read",
            where=str(run),
            got=str(error),
            expected="a run folder of this version of polytag, as training left it",
            fix="train anew",
        ) from None


def _read(run: Path) -> Kept:
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    splits, history = (_rows(run / name) for name in ("splits.csv", "history.csv"))
    images = tuple(row["image"] for row in splits)
    names = tuple(each["name"] for each in metrics["attributes"])
    answered = tuple(name for name in names if name not in metrics["left_out"])
    labels = _Grid(run / "labels.parquet", images, names)
    judged = _Grid(run / "oof.parquet", images, answered)
    folds = judged.read("fold")[:, 0]
    deployed: Basis | None = None
    bases: list[Basis] = []
    for fold in (*range(int(np.nanmax(folds, initial=-1)) + 1), None):
        chosen = _Grid(run / "choosing.parquet", images, answered, fold)
        if len(chosen.frame):
            basis = Basis(chosen.read("probability"), folds == (-1 if fold is None else fold))
            deployed, bases = (basis, bases) if fold is None else (deployed, [*bases, basis])
    calibrated = Calibrated(
        judged.read("probability_calibrated"), bases, deployed, Calibration.identity(len(answered))
    )
    return Kept(
        run=run,
        recipe=load_recipe(run / "config.toml"),
        metrics=metrics,
        table=LabelTable(images, names, labels.read("truth").astype(np.float32)),
        attributes=answered,
        hashes=tuple(row["content_hash"] for row in splits),
        groups=np.array([int(row["group"]) for row in splits], dtype=np.int64),
        alike=np.array([int(row["alike"]) for row in splits], dtype=np.int64),
        history=History.from_rows(answered, history),
        parts=tuple(row["fold"] for row in splits),
        raw=judged.read("probability_raw"),
        thresholds=judged.read("threshold"),
        calibrated=calibrated,
    )


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


class _Grid:
    """A long table of cells, read as arrays (N, K); NaN where it has no cell."""

    def __init__(
        self, path: Path, images: tuple[str, ...], names: tuple[str, ...], *folds: int | None
    ) -> None:
        frame = pl.read_parquet(path)
        for fold in folds:
            frame = frame.filter(pl.col("fold").eq_missing(fold))
        self.frame, self.shape = frame, (len(images), len(names))
        rows = {image: row for row, image in enumerate(images)}
        columns = {name: k for k, name in enumerate(names)}
        self.rows = [rows[image] for image in frame["image"]]
        self.columns = [columns[name] for name in frame["attribute"]]

    def read(self, name: str) -> Doubles:
        cells = np.full(self.shape, np.nan)
        numbers = self.frame[name].cast(pl.Float64).fill_null(np.nan).to_numpy()
        cells[self.rows, self.columns] = numbers
        return cells


def _names(images: Any, attributes: tuple[str, ...]) -> dict[str, Any]:
    return {
        "image": pl.Series([i for i in images for _ in attributes], dtype=pl.String),
        "attribute": pl.Series([*attributes] * len(images), dtype=pl.String),
    }


def _truth(values: Floats) -> pl.Series:
    return pl.Series(values.ravel()).fill_nan(None).cast(pl.Int8)


def _write(path: Path, columns: dict[str, Any]) -> None:
    with written_aside(path) as aside:
        pl.DataFrame(columns).write_parquet(aside)
