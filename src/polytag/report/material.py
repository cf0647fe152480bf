"""What a report is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polytag.history import History

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Suspect:
    """A cell whose label is likely wrong.

    Attributes:
        row: Of the picture, from 0.
        attribute: Its name.
        label: As given: 1 present, 0 absent.
        probability: Calibrated, by a model that never saw the row.
    """

    row: int
    attribute: str
    label: int
    probability: float


@dataclass(frozen=True)
class Duplicate:
    """Rows that show the same picture.

    Attributes:
        rows: At least two, from 0.
        conflict: Whether a cell is present in one of them and absent in another.
    """

    rows: tuple[int, ...]
    conflict: bool


@dataclass(frozen=True, eq=False)
class Judged:
    """The cells that were judged; the other ones are filled, so that arithmetic meets no NaN.

    Attributes:
        cells: bool (N, K): known, with a probability and a threshold.
        present: bool (N, K): judged, and known to be present.
        p: float64 (N, K), calibrated; 0.5 where nothing was judged.
        thresholds: float64 (N, K); 0.5 where nothing was judged.
    """

    cells: Bools
    present: Bools
    p: Floats
    thresholds: Floats


@dataclass(frozen=True, eq=False)
class Material:
    """Everything a report can show of N pictures and K attributes; what a run lacks is left out.

    Attributes:
        title: Of the loss curve.
        name: Of the run.
        metrics: The content of ``metrics.json``: every number outside of pictures comes from it.
        attributes: K names.
        images: N names, as in the table.
        paths: N files, for the small pictures; none: there are no pictures at hand.
        values: (N, K) in {1, 0, NaN}; NaN: not known. None: a model without data.
        probabilities: float64 (N, K), calibrated, of rows the model never saw; NaN: not judged.
            None: no row was judged.
        raw: The same before calibration; None: there is none.
        thresholds: (N, K) that the cells were judged at; None: no row was judged.
        history: Of the training; None: trained elsewhere.
        suspects: Likely label errors, likeliest first; None: nobody looked.
        duplicates: Groups of rows that show the same picture; None: nobody looked.
        recipe: As TOML.
        environment: Versions by the name of the package.
    """

    title: str
    name: str
    metrics: Mapping[str, Any]
    attributes: Sequence[str] = ()
    images: Sequence[str] = ()
    paths: Sequence[Path] = ()
    values: NDArray[Any] | None = None
    probabilities: Floats | None = None
    raw: Floats | None = None
    thresholds: Floats | None = None
    history: History | None = None
    suspects: Sequence[Suspect] | None = None
    duplicates: Sequence[Duplicate] | None = None
    recipe: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)

    def judged(self) -> Judged | None:
        """Return what is known and was judged; None where nothing was."""
        if self.values is None or self.probabilities is None or self.thresholds is None:
            return None
        cells: Bools = ~np.isnan(self.values + self.probabilities + self.thresholds)
        return Judged(
            cells,
            cells & (self.values == 1),
            np.where(cells, self.probabilities, 0.5),
            np.where(cells, self.thresholds, 0.5),
        )
