"""Which of several processes this one is. No torch is loaded to know it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def world() -> int:
    """Return how many processes train together: torchrun says so.

    Example:
        >>> world()
        1
    """
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Say whether this process is the one that writes and speaks.

    Example:
        >>> is_main()
        True
    """
    return os.environ.get("RANK", "0") == "0"


def from_main(make: Callable[[], T]) -> T:
    """Return what the main process makes; the others make nothing and wait for it.

    Every process calls it, after `processes.make_accelerator`. If the main process fails, torchrun
    ends the others.

    Example:
        >>> from_main(lambda: "runs/finetune-1")
        'runs/finetune-1'
    """
    if world() == 1:
        return make()
    from accelerate.utils import broadcast_object_list  # loads torch

    made: list[T | None] = [make() if is_main() else None]
    broadcast_object_list(made)
    return made[0]  # type: ignore[return-value]
