"""What a training records: the loss of every iteration, and every epoch's numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polytag.scorecard import evaluate_arrays

_HEADER = (
    *("iteration_number", "training_loss", "lr", "stage", "epoch", "seconds"),
    *("validation_loss", "macro_ap", "hamming", "exact_match"),
)


@dataclass
class Position:
    """Where a training stands: the stage, the epochs done in it, the steps done in this one."""

    stage: int = 0
    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0  # of this epoch's steps, each times its known cells
    cells: int = 0  # that were known in them


@dataclass(frozen=True)
class Validation:
    """An epoch's numbers on the choosing rows; they chose, so they are no headline.

    Attributes:
        loss: Mean log loss of the known cells, unweighted, in nats.
        macro_ap: Mean average precision over the attributes that have both classes.
        hamming: Share of the known cells that are decided rightly.
        exact_match: Share of the rows whose known cells are all decided rightly.
        accuracy: Of every attribute; NaN where no cell is known.
    """

    loss: float
    macro_ap: float
    hamming: float
    exact_match: float
    accuracy: tuple[float, ...]


@dataclass(frozen=True)
class Epoch:
    """One epoch.

    Attributes:
        stage: Its name.
        number: From 1 in every stage; 0: before the first one.
        iteration: Iterations done when it ended.
        training_loss: Mean over its iterations; NaN for number 0.
        seconds: With its validation.
        validation: None without choosing rows.
    """

    stage: str
    number: int
    iteration: int
    training_loss: float
    seconds: float
    validation: Validation | None

    def line(self, epochs: int) -> str:
        """Return the epoch under `EPOCH_HEADER`, in at most 80 columns."""
        v = self.validation
        numbers = (v.loss, v.macro_ap, v.hamming, v.exact_match) if v else (math.nan,) * 4
        columns = [
            f"{_shortened(self.stage):<16} {f'{self.number}/{epochs}':>7}",
            *(f"{_cell(number, 4):>10}" for number in (self.training_loss, numbers[0])),
            *(f"{_cell(number, 3):>9}" for number in numbers[1:]),
            f"{self.seconds:7.1f}",
        ]
        return "".join(columns)


EPOCH_HEADER = (
    f"{'stage':<16} {'epoch':>7}{'training':>10}{'choosing':>10}"
    f"{'macro AP':>9}{'Hamming':>9}{'exact':>9}{'s':>7}"
)


def validate(attributes: tuple[str, ...], logits: NDArray[np.float32], values: Any) -> Validation:
    """Measure logits (N, K) of the choosing rows against their values (N, K), decided at 1/2."""
    probabilities = 1 / (1 + np.exp(-logits.astype(np.float64)))
    thresholds = np.full(len(attributes), 0.5)
    found = evaluate_arrays(attributes, values, probabilities, thresholds)
    return Validation(
        found.log_loss.value,
        found.macro["ap"].value,
        found.hamming.value,
        found.exact_match.value,
        tuple(each.accuracy.value for each in found.attributes),
    )


@dataclass
class History:
    """Iterations, one entry each in three lists, and epochs.

    Attributes:
        attributes: K names, as in `Validation.accuracy`.
        losses: Training loss.
        rates: Learning rate of the head; NaN where a solver has none.
        stages: Name of the stage.
        epochs: In their order.
        best: The epoch whose weights were kept; None: the last.

    Example:
        >>> history = History(("red",), [0.7, 0.5], [1e-3, 1e-3], ["head", "head"])
        >>> [row[:4] for row in history.rows()]
        [[0, '0.7', '0.001', 'head'], [1, '0.5', '0.001', 'head']]
    """

    attributes: tuple[str, ...]
    losses: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    stages: list[str] = field(default_factory=list)
    epochs: list[Epoch] = field(default_factory=list)
    best: Epoch | None = None

    def header(self) -> list[str]:
        """Return the columns of history.csv: none for epochs where there are none."""
        if not self.epochs:
            return list(_HEADER[:4])
        accuracies = [f"accuracy {name}" for name in self.attributes]
        return [*_HEADER, *(accuracies if self._validated() else [])]

    def rows(self) -> Iterator[list[object]]:
        """Yield the rows of history.csv: one an iteration, then one an epoch.

        An epoch's row has no training loss in the column of the iterations': who draws that
        column against ``iteration_number`` draws the curve.
        """
        width = len(self.header())
        for i, entry in enumerate(zip(self.losses, self.rates, self.stages, strict=True)):
            loss, rate, stage = entry
            yield _padded([i, _number(loss), _number(rate), stage], width)
        for epoch in self.epochs:
            row: list[object] = [max(epoch.iteration - 1, 0), None, None, epoch.stage]
            row += [epoch.number, f"{epoch.seconds:.1f}"]
            if v := epoch.validation:
                numbers = (v.loss, v.macro_ap, v.hamming, v.exact_match, *v.accuracy)
                row += [_number(number) for number in numbers]
            yield _padded(row, width)

    def to_state(self) -> tuple[dict[str, NDArray[np.float64]], dict[str, Any]]:
        """Return everything as arrays, and as what JSON can hold."""
        names = list(dict.fromkeys(self.stages))
        stages = np.array([names.index(name) for name in self.stages], dtype=np.float64)
        arrays = {"losses": np.array(self.losses), "rates": np.array(self.rates), "stages": stages}
        epochs = [asdict(epoch) for epoch in self.epochs]
        best = self.epochs.index(self.best) if self.best else None
        return arrays, {"stages": names, "epochs": epochs, "best": best}

    @classmethod
    def from_state(
        cls,
        attributes: tuple[str, ...],
        arrays: Mapping[str, NDArray[np.float64]],
        state: Mapping[str, Any],
    ) -> History:
        """Build the history from what `to_state` gave."""
        epochs = [_epoch(entry) for entry in state["epochs"]]
        return cls(
            attributes,
            arrays["losses"].tolist(),
            arrays["rates"].tolist(),
            [state["stages"][int(index)] for index in arrays["stages"]],
            epochs,
            None if state["best"] is None else epochs[state["best"]],
        )

    @classmethod
    def from_rows(cls, attributes: tuple[str, ...], rows: Iterable[Mapping[str, str]]) -> History:
        """Build the history from the rows of history.csv, by column.

        An epoch's mean training loss, which is not written there, is NaN; which one was kept is
        not known.
        """
        history = cls(attributes)
        for row in rows:
            if not row.get("epoch"):
                history.losses.append(_read(row["training_loss"]))
                history.rates.append(_read(row["lr"]))
                history.stages.append(row["stage"])
                continue
            loss, ap, hamming, exact = (_read(row.get(name)) for name in _HEADER[6:])
            accuracy = tuple(_read(row.get(f"accuracy {name}")) for name in attributes)
            history.epochs.append(
                Epoch(
                    row["stage"],
                    int(row["epoch"]),
                    int(row["iteration_number"]) + 1 if int(row["epoch"]) else 0,
                    math.nan,
                    _read(row["seconds"]),
                    None if math.isnan(loss) else Validation(loss, ap, hamming, exact, accuracy),
                )
            )
        return history

    def _validated(self) -> bool:
        return any(epoch.validation for epoch in self.epochs)


def _epoch(entry: Mapping[str, Any]) -> Epoch:
    validation = entry["validation"]
    if validation is not None:
        accuracy = tuple(validation["accuracy"])
        validation = Validation(**{**validation, "accuracy": accuracy})
    return Epoch(**{**entry, "validation": validation})


def _cell(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _shortened(text: str) -> str:
    return text if len(text) <= 16 else f"{text[:15]}…"


def _number(value: float) -> str | None:
    return None if math.isnan(value) else f"{value:.8g}"


def _read(text: str | None) -> float:
    return float(text) if text else math.nan


def _padded(row: list[object], width: int) -> list[object]:
    return row + [None] * (width - len(row))
