"""Writing files so that nothing half-written is ever read, and where the cache lives."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Give a path beside ``path`` to write to; rename it to ``path`` when the block ends well.

    A reader sees the old file or the whole new one. If the block raises, the aside file is
    removed and ``path`` is as it was.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     target = Path(folder) / "numbers.txt"
        ...     with written_aside(target) as aside:
        ...         _ = aside.write_text("1 2 3")
        ...     target.read_text()
        '1 2 3'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Keeps the suffix (writers choose a format by it); the process id and a random part let two
    # processes write the same target at once.
    aside = path.with_name(f".{path.stem}.{os.getpid()}-{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        yield aside
        with aside.open("rb") as written:
            os.fsync(written.fileno())  # or a power cut could leave the new name on empty blocks
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 ``text`` to ``path``, whole or not at all."""
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8", newline="\n")


def cache_folder() -> Path:
    """Return the folder for what can be computed again: ``$POLYTAG_CACHE``, else the user's cache.

    Example:
        >>> cache_folder().name
        'polytag'
    """
    if chosen := os.environ.get("POLYTAG_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "polytag"
