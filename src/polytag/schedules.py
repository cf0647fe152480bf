"""How the learning rate moves, and when a stage ends. No torch: numbers in, numbers out.

A schedule is ``schedule(progress, warmup) -> factor`` of the base rate: ``progress`` in [0, 1] is
the share of the stage's steps that are done, so the first step runs at progress 0 and no step at 1;
``warmup`` in [0, 1) is the share of the stage in which the rate rises, for those that ask for it.

`Plateau` and `Patience` take one score an epoch, **lower is better**: hand them ``-macro_ap``. A
score is an improvement if it is finite and below the best so far by more than 1e-4 of that best's
size, as torch's ``ReduceLROnPlateau`` has it by default; NaN never is. Both are plain dataclasses
of numbers, so ``asdict(patience)`` is their state as JSON takes it and ``Patience(**state)`` goes
on from there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from polytag.errors import UserError

_THRESHOLD = 1e-4
_FIRST = 0.01  # of the base rate: a warm-up from 0 would waste its first step
_RISE, _START, _END = 0.3, 1 / 25, 1 / 25 / 1e4  # torch's OneCycleLR, which is fastai's


def constant(progress: float, warmup: float) -> float:
    """Return 1.

    Example:
        >>> constant(0.5, 0.0)
        1.0
    """
    return 1.0


def cosine(progress: float, warmup: float) -> float:
    """Rise in a line from .01 to 1 over ``warmup``, then fall along half a cosine to 0.

    The fall is equation 5 of Loshchilov & Hutter 2017, arXiv 1608.03983, without restarts.

    Args:
        progress: Share of the steps done, in [0, 1].
        warmup: Share of the steps in which the rate rises, in [0, 1); 0: none.

    Returns:
        The factor of the base rate, in [0, 1].

    Example:
        >>> [round(cosine(progress, 0.2), 3) for progress in (0, 0.1, 0.2, 0.6, 1)]
        [0.01, 0.505, 1.0, 0.5, 0.0]
    """
    if progress < warmup:
        return _FIRST + (1 - _FIRST) * progress / warmup
    return _between(1.0, 0.0, (progress - warmup) / (1 - warmup))


def one_cycle(progress: float, warmup: float) -> float:
    """Rise from 1/25 to 1 over the first .3 of the steps, then fall to 1/250 000.

    Smith & Topin 2018, arXiv 1708.07120, with half a cosine each way as in fastai and in torch's
    ``OneCycleLR``; the momentum stays as it is. The cycle is a warm-up, so ``warmup`` has no say.

    Example:
        >>> [round(one_cycle(progress, 0.0), 3) for progress in (0, 0.15, 0.3, 1)]
        [0.04, 0.52, 1.0, 0.0]
    """
    if progress < _RISE:
        return _between(_START, 1.0, progress / _RISE)
    return _between(1.0, _END, (progress - _RISE) / (1 - _RISE))


SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "constant": constant,
    "cosine": cosine,
    "one_cycle": one_cycle,
    "plateau": constant,  # its factor is `Plateau.scale`
}


@dataclass
class Plateau:
    """Lowers the rate when the score stops improving: torch's ``ReduceLROnPlateau``.

    For negative scores torch's "min" takes what is a little worse for an improvement. Here
    ``-score`` does what torch's "max" does with ``score``.

    Attributes:
        factor: What the rate is multiplied with, in (0, 1).
        patience: Epochs in a row without improvement that are borne.
        best: Best score so far; None: none yet.
        waited: Epochs since the last improvement or the last lowering.
        scale: Factor of the base rate now.

    Example:
        >>> plateau = Plateau(factor=0.5, patience=1)
        >>> for score in (0.7, 0.7, 0.7):
        ...     plateau.update(score)
        >>> plateau.scale
        0.5
    """

    factor: float
    patience: int
    best: float | None = None
    waited: int = 0
    scale: float = 1.0

    def update(self, score: float) -> None:
        """Take the score of an epoch; lower is better."""
        if _improves(score, self.best):
            self.best, self.waited = score, 0
            return
        self.waited += 1
        if self.waited > self.patience:
            self.scale, self.waited = self.scale * self.factor, 0


@dataclass
class Patience:
    """Early stopping.

    Attributes:
        limit: Epochs in a row without improvement after which to stop; 0: never stop.
        best: Best score so far; None: none yet.
        waited: Epochs since the last improvement.

    Example:
        >>> patience = Patience(limit=2)
        >>> [patience.update(score) for score in (0.7, 0.6, 0.65, 0.61)]
        [False, False, False, True]
    """

    limit: int
    best: float | None = None
    waited: int = 0

    def update(self, score: float) -> bool:
        """Take the score of an epoch, lower is better; return whether to stop now."""
        if _improves(score, self.best):
            self.best, self.waited = score, 0
        else:
            self.waited += 1
        return 0 < self.limit <= self.waited


def half_life_decay(half_life_steps: float) -> float:
    """Return the decay d of a running mean, ``mean = d mean + (1 - d) new``, from its half-life.

    After ``half_life_steps`` steps what was in the mean weighs half: d = 0.5 ^ (1 / steps).

    Args:
        half_life_steps: In steps, > 0; need not be whole.

    Returns:
        d in [0, 1).

    Raises:
        UserError: ``half_life_steps`` is not above 0.

    Example:
        >>> round(half_life_decay(100) ** 100, 12)
        0.5
    """
    if not half_life_steps > 0:
        raise UserError("wrong half-life", got=f"{half_life_steps:g} steps", expected="> 0")
    return float(0.5 ** (1 / half_life_steps))


def _between(start: float, end: float, share: float) -> float:
    """Return the value on half a cosine that leads from ``start`` to ``end``."""
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def _improves(score: float, best: float | None) -> bool:
    if not math.isfinite(score):
        return False
    return best is None or score < best * (1 - math.copysign(_THRESHOLD, best))
