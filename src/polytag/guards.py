"""What can go wrong while training: Ctrl-C, memory, numbers that are none any more."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from polytag.config import Recipe
from polytag.errors import UserError

log = logging.getLogger("polytag")
_NAMED = 32  # pictures that a message names: a usual batch


class LateError(Exception):
    """The time is up before a stage could begin."""


class Interrupt:
    """Ctrl-C, held back until whoever trains is between two steps.

    Attributes:
        pressed: Whether somebody did. The second time it does not wait.
    """

    def __init__(self) -> None:
        self.pressed = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold Ctrl-C back until this block ends; in a thread, which no signal reaches, do nothing.

        Raises:
            KeyboardInterrupt: It was pressed, and nobody has asked.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGINT, self._press)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
        if self.pressed:
            raise KeyboardInterrupt

    def _press(self, *_: object) -> None:
        if self.pressed:
            raise KeyboardInterrupt
        self.pressed = True
        log.warning("stopping after this step; Ctrl-C once more stops at once")


@contextmanager
def explained(recipe: Recipe, device: torch.device) -> Iterator[None]:
    """Turn "out of memory" into a batch size to try.

    Raises:
        UserError: Memory ran out in this block.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        words = ("out of memory", "can't allocate memory", "not enough memory")
        told = any(word in str(error).lower() for word in words)
        if not told and not isinstance(error, MemoryError | torch.OutOfMemoryError):
            raise
    else:
        return
    batch, accumulate = recipe.training.batch, recipe.training.accumulate
    half = batch // 2
    smaller = "take a smaller --backbone or preprocess.size"
    same = f"--batch {half} --set training.accumulate={accumulate * 2} (the same steps)"
    raise UserError(
        "out of memory",
        where=f"training on {device}",
        got=f"batch {batch}",
        fix=f"try {same}, or {smaller}" if half else smaller,
    )


def not_finite(loss: float, at: str, names: Sequence[str]) -> UserError:
    """Return the error for a loss or a gradient that is not a finite number.

    Args:
        loss: The step's.
        at: Stage, epoch and step.
        names: The pictures it comes from, as far as that can be told.
    """
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return UserError(
        "the training loss or its gradient is not a finite number",
        where=at,
        got=f"loss {loss:g} with the pictures {', '.join(names[:_NAMED])}{more}",
        fix="lower the learning rate (--set 'stages.*.lr=...'), set training.clip=1, or look at "
        "these pictures",
    )
