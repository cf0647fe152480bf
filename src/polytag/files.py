"""Writing files so that nothing half-written is ever read, and where the cache lives."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from polytag.errors import UserError

# What the user can mend; another error of the system is not about the place.
CANNOT_WRITE = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT),
    *(errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG),
}


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Give a path beside ``path`` to write to; rename it to ``path`` when the block ends well.

    A reader sees the old file or the whole new one. If the block raises, the aside file is
    removed and ``path`` is as it was.

    Raises:
        UserError: The place cannot be written to, or the disk is full.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     target = Path(folder) / "numbers.txt"
        ...     with written_aside(target) as aside:
        ...         _ = aside.write_text("1 2 3")
        ...     target.read_text()
        '1 2 3'
    """
    path = path.resolve()  # through links, which stay
    if path.exists() and not path.is_file() and not path.is_dir():
        yield path  # /dev/null, a pipe: nothing to rename over
        return
    # Keeps the suffix (writers choose a format by it); the process id and a random part let two
    # processes write the same target at once.
    aside = path.with_name(f".{path.stem}.{os.getpid()}-{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_be_written(path, error) from error
    try:
        yield aside
        with aside.open("rb") as written:
            os.fsync(written.fileno())  # or a power cut could leave the new name on empty blocks
        aside.replace(path)
    except OSError as error:
        if error.errno not in CANNOT_WRITE:
            raise
        raise _cannot_be_written(path, error) from error
    finally:
        with suppress(OSError):  # the folder itself may be what cannot be
            aside.unlink()


def write_json(path: Path, tree: object) -> None:
    """Write JSON for people and programs, whole or not at all.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_json(Path(folder) / "a.json", {"ü": None})
        ...     (Path(folder) / "a.json").read_text(encoding="utf-8").split()
        ['{', '"ü":', 'null', '}']
    """
    write_text(path, json.dumps(tree, indent=1, ensure_ascii=False) + "\n")


def remove_remains(folder: Path) -> None:
    """Remove what `written_aside` left in a folder when its process was killed.

    Nobody else may be writing there.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / ".model.4711-0badcafe.onnx").write_text("half")
        ...     remove_remains(Path(folder))
        ...     list(Path(folder).iterdir())
        []
    """
    for path in folder.glob(".*"):
        if re.search(r"\.\d+-[0-9a-f]{8}(\.\w+)?$", path.name):
            path.unlink(missing_ok=True)


def _cannot_be_written(path: Path, error: OSError) -> UserError:
    reason = error.strerror or str(error)
    return UserError("the file cannot be written", where=str(path), got=reason)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 ``text`` to ``path``, whole or not at all."""
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8", newline="\n")


def digest(parts: object) -> str:
    """Return a name, 32 hexadecimal digits, for what is computed from these parts.

    Example:
        >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
        True
    """
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def cache_folder() -> Path:
    """Return the folder for what can be computed again: ``$POLYTAG_CACHE``, else the user's cache.

    Example:
        >>> isinstance(cache_folder(), Path)
        True
    """
    if chosen := os.environ.get("POLYTAG_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "polytag"
