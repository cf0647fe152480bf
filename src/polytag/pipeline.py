"""From a list of pictures to batches: decoding threads, a bounded look-ahead, one order.

Decoding releases the interpreter's lock, so threads decode beside the engine that computes.
There is no torch here: the feature extractor, the predictor and the server all read from it.

    load = lambda path: picture(path, spec)
    for batch in batches(stream(paths, load), size=32):
        probabilities = engine(batch.images)     # row i belongs to the i-th item that is ok
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from polytag.errors import UserError

T = TypeVar("T")
R = TypeVar("R")


def stream(
    items: Iterable[T],
    work: Callable[[T], R],
    *,
    threads: int | None = None,
    ahead: int = 64,
) -> Generator[tuple[T, R | UserError], None, None]:
    """Work on items in threads and yield each with its result, in the order they came.

    Items are taken from `items` in the caller's thread, never more than `ahead` before the one
    that is yielded: generators of any length take the same memory. However the caller stops
    (break, exception, Ctrl-C), work not yet begun is dropped and the threads end.

    Args:
        items: What to work on.
        work: Called with one item, in any thread.
        threads: How many; default: one for each processor this process may use.
        ahead: Results that may wait for the caller. About two batches keep the threads busy
            while an engine computes.

    Yields:
        ``(item, result)``; the result is the `UserError` if `work` raised one.

    Raises:
        Exception: Any other error of `work`, when its item's turn comes.

    Example:
        >>> list(stream([3, 1, 2], lambda number: number * 10, threads=2))
        [(3, 30), (1, 10), (2, 20)]
    """
    workers = default_threads() if threads is None else threads
    pool = ThreadPoolExecutor(workers, thread_name_prefix="polytag")
    waiting: deque[tuple[T, Future[R | UserError]]] = deque()
    try:
        for item in items:
            waiting.append((item, pool.submit(_attempt, work, item)))
            if len(waiting) >= max(ahead, workers):
                yield _first(waiting)
        while waiting:
            yield _first(waiting)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True, eq=False)
class Batch(Generic[T]):
    """Consecutive items of a stream: the pictures of those that are ok, stacked.

    Attributes:
        items: N items in their order, the failed ones too.
        errors: N entries: what was wrong with the item, or None.
        images: uint8 (B, S, S, 3), the pictures of the items that are ok, in their order;
            B <= N. If none of them is, (0, 0, 0, 3).
    """

    items: list[T]
    errors: list[UserError | None]
    images: NDArray[np.uint8]

    @property
    def ok(self) -> NDArray[np.bool_]:
        """bool (N,): which items have a picture. ``table[batch.ok] = engine(batch.images)``."""
        return np.array([error is None for error in self.errors], dtype=np.bool_)

    @property
    def failed(self) -> list[tuple[T, UserError]]:
        """The items without a picture, each with the reason."""
        pairs = zip(self.items, self.errors, strict=True)
        return [(item, error) for item, error in pairs if error is not None]


def batches(
    results: Iterable[tuple[T, NDArray[np.uint8] | UserError]], size: int
) -> Iterator[Batch[T]]:
    """Group the results of `stream` into batches of `size` items, the last one shorter.

    Failed items count, so that a batch is always the next `size` items of the input, and a
    folder of nothing but broken pictures takes no more memory than any other.

    Args:
        results: Items, each with a picture uint8 (S, S, 3), all of one size, or its error.
        size: Items in a batch, at least 1.

    Raises:
        ValueError: `size` is less than 1, or the pictures differ in size.

    Example:
        >>> grey = np.full((2, 2, 3), 127, np.uint8)
        >>> results = [("a", grey), ("b", UserError("broken")), ("c", grey)]
        >>> [(batch.items, batch.images.shape, batch.ok.tolist())
        ...  for batch in batches(results, 2)]
        [(['a', 'b'], (1, 2, 2, 3), [True, False]), (['c'], (1, 2, 2, 3), [True])]
    """
    if size < 1:
        raise ValueError(f"a batch holds at least 1 item, got {size}")
    group: list[tuple[T, NDArray[np.uint8] | UserError]] = []
    for pair in results:
        group.append(pair)
        if len(group) == size:
            yield _stack(group)
            group = []
    if group:
        yield _stack(group)


def default_threads() -> int:
    """Return how many processors this process may use.

    Example:
        >>> default_threads() >= 1
        True
    """
    if hasattr(os, "sched_getaffinity"):  # Linux: containers and taskset give fewer
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _first(waiting: deque[tuple[T, Future[R | UserError]]]) -> tuple[T, R | UserError]:
    item, future = waiting.popleft()
    return item, future.result()


def _attempt(work: Callable[[T], R], item: T) -> R | UserError:
    try:
        return work(item)
    except UserError as error:
        # The message says it all; the traceback would keep each failed picture's bytes alive
        # for as long as somebody keeps the error.
        error.__traceback__ = error.__cause__ = error.__context__ = None
        return error


def _stack(group: list[tuple[T, NDArray[np.uint8] | UserError]]) -> Batch[T]:
    pictures = [result for _, result in group if not isinstance(result, UserError)]
    return Batch(
        items=[item for item, _ in group],
        errors=[result if isinstance(result, UserError) else None for _, result in group],
        images=np.stack(pictures) if pictures else np.empty((0, 0, 0, 3), np.uint8),
    )
