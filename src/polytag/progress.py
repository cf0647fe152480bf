"""Progress of long steps: a bar on a terminal, one log line elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger("polytag")


@contextmanager
def progress(
    step: str, total: int, unit: str, *, passing: bool = False
) -> Iterator[Callable[[int], None]]:
    """Show how far a step is, with its rate and the time left.

    Args:
        step: What is being done, for example ``"features"``.
        total: How many units the step has; 0: no bar.
        unit: What is counted, for example ``"pictures"``.
        passing: Whether nothing shall be left to read once it is done.

    Yields:
        A function to call with the number of units just done.

    Example:
        >>> with progress("features", 10, "pictures") as done:
        ...     done(10)
    """
    start = time.perf_counter()
    count = 0
    if total and sys.stderr.isatty() and log.isEnabledFor(logging.INFO):
        with _bar(step, total, unit, passing) as advance:
            yield advance
        return

    def advance_silently(units: int) -> None:
        nonlocal count
        count += units

    yield advance_silently
    seconds = time.perf_counter() - start
    if seconds > 1 and not passing:  # shorter steps are not worth a line
        rate = _rate(count / seconds)
        log.info("%s: %d %s in %.1f s (%s/s)", step, count, unit, seconds, rate)


@contextmanager
def waiting(step: str) -> Iterator[None]:
    """Show that something long is going on which cannot say how far it is.

    Example:
        >>> with waiting("exporting"):
        ...     pass
    """
    log.info("%s", step)
    if sys.stderr.isatty() and log.isEnabledFor(logging.INFO):
        from rich.console import Console

        with Console(stderr=True).status(""):
            yield
    else:
        yield


@contextmanager
def _bar(step: str, total: int, unit: str, passing: bool) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{_rate(task.finished_speed or task.speed or 0)} {unit}/s")

    columns = (TextColumn("{task.description:<10}"), BarColumn(24))
    counts = TextColumn("{task.completed:.0f}/{task.total:.0f}")
    console = Console(stderr=True)
    parts = (*columns, counts, Rate(), Remaining())
    with Progress(*parts, console=console, transient=passing) as bars:
        task = bars.add_task(step, total=total)
        yield lambda units: bars.advance(task, units)


def _rate(rate: float) -> str:
    return f"{rate:.1f}" if 0 < rate < 10 else f"{rate:.0f}"
