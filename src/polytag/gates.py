"""Gates: numbers that an evaluation must reach, for a script that is to stop where it does not."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from polytag.errors import RecipeError, did_you_mean
from polytag.results import METRICS, TOGETHER, Evaluation, Value

_LOSSES = ("log_loss", "brier", "ece")  # the smaller, the better
_ENDS = ("low", "high")


@dataclass(frozen=True)
class Gate:
    """A bound for one number.

    Attributes:
        name: ``macro_ap``, ``red.f1``, ``log_loss``; with ``.low`` or ``.high`` behind it that end
            of the interval is held against the bound.
        bound: At least this, or for a loss at most this.
    """

    name: str
    bound: float

    @property
    def is_loss(self) -> bool:
        """Whether the number fails above its bound."""
        name, _ = _without_end(self.name)
        return name.removeprefix("macro_").rpartition(".")[2] in _LOSSES


@dataclass(frozen=True)
class Passage:
    """How one number stood against its gate."""

    name: str
    bound: float
    is_loss: bool
    value: float | None  # None: not defined
    passed: bool
    reason: str  # why there is no number; empty where there is one

    def __str__(self) -> str:
        side = ("is above" if self.is_loss else "is below", "is at most", "is at least")
        words = side[0] if not self.passed else side[1 if self.is_loss else 2]
        found = self.reason if self.value is None else f"{self.value:.4f} {words} {self.bound:g}"
        return f"gate {'passed' if self.passed else 'FAILED'}: {self.name} {found}"


def parse_gates(words: Iterable[str], attributes: Sequence[str]) -> list[Gate]:
    """Read ``macro_ap=0.6``, ``red.f1.low=0.5`` and the like.

    Args:
        words: As given.
        attributes: Those that are judged.

    Raises:
        RecipeError: No number, or an unknown name.

    Example:
        >>> parse_gates(["macro_ap=0.6"], ["red"])
        [Gate(name='macro_ap', bound=0.6)]
        >>> parse_gates(["red.app=0.6"], ["red"])
        Traceback (most recent call last):
        polytag.errors.RecipeError: --fail-under: no such number; got 'red.app'; did you mean ...
    """
    gates = []
    for word in words:
        name, _, number = word.rpartition("=")
        try:
            bound = float(number)
        except ValueError:
            bound = math.nan
        if not name or not math.isfinite(bound):
            raise RecipeError(
                "not a gate", where="--fail-under", got=repr(word), expected="NAME=NUMBER"
            )
        name = name.strip()
        _check_name(name, attributes)
        gates.append(Gate(name, bound))
    return gates


def check_gates(gates: Iterable[Gate], evaluation: Evaluation) -> list[Passage]:
    """Hold an evaluation against gates; a number that is not defined passes none.

    Example:
        >>> from polytag.scorecard import evaluate_arrays
        >>> judged = evaluate_arrays(["red"], [[1], [0]], [[0.9], [0.1]], [0.5])
        >>> for passage in check_gates([Gate("macro_ap", 0.6), Gate("log_loss", 0.1)], judged):
        ...     print(passage)
        gate passed: macro_ap 1.0000 is at least 0.6
        gate FAILED: log_loss 0.1054 is above 0.1
    """
    return [_passage(gate, evaluation) for gate in gates]


def _passage(gate: Gate, evaluation: Evaluation) -> Passage:
    name, end = _without_end(gate.name)
    measured = _measured(name, evaluation)
    value = getattr(measured, end or "value")
    if value is None or math.isnan(value):
        reason = measured.reason or "no interval was computed"
        return Passage(
            gate.name, gate.bound, gate.is_loss, None, False, f"is not defined: {reason}"
        )
    passed = value <= gate.bound if gate.is_loss else value >= gate.bound
    return Passage(gate.name, gate.bound, gate.is_loss, float(value), bool(passed), "")


def _measured(name: str, evaluation: Evaluation) -> Value:
    overall = {f"macro_{metric}": mean for metric, mean in evaluation.macro.items()}
    overall |= {metric: getattr(evaluation, metric) for metric in TOGETHER}
    if name in overall:
        return overall[name]
    attribute, _, metric = name.rpartition(".")
    found = next(a for a in evaluation.attributes if a.name == attribute)
    value: Value = getattr(found, metric)
    return value


def _check_name(name: str, attributes: Sequence[str]) -> None:
    overall = [*(f"macro_{metric}" for metric in METRICS), *TOGETHER]
    plain, _ = _without_end(name)
    attribute, _, metric = plain.rpartition(".")
    if plain in overall or (attribute in attributes and metric in METRICS):
        return
    if attribute in attributes:
        fix = did_you_mean(metric, METRICS)
    elif attribute and metric in METRICS:
        fix = did_you_mean(attribute, attributes)
    else:
        fix = did_you_mean(plain, overall)
    raise RecipeError(
        "no such number",
        where="--fail-under",
        got=repr(name),
        fix=f"{fix} (or ATTRIBUTE.METRIC, and .low or .high behind it for an end of its interval)",
    )


def _without_end(name: str) -> tuple[str, str]:
    """Return a name and the end of its interval that is meant; empty: the number itself."""
    front, _, end = name.rpartition(".")
    return (front, end) if end in _ENDS else (name, "")
