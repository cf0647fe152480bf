"""The cache folder: what is in it, who uses it, how large it may be.

It is one folder for each kind, in it one folder for each way of computing things (its key, 32
hexadecimal digits):

    features/KEY/*.npy                                            see `polytag.store`
    backbones/KEY/{backbone.onnx,weights.safetensors,backbone.json}
    trunks/KEY/*                                                  outputs of frozen stages
    engines/KEY.json                                              which engine was fastest

A key's folder may hold ``about.json``, which says for people what it is, and ``.lock``, by which
processes tell each other that they use it. It is removed as a whole: renamed first, so that nobody
finds half of it. Nothing else in the cache folder is ours, and nothing else is ever removed.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import uuid
import weakref
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polytag.errors import UserError, printable
from polytag.files import cache_folder, remove_remains, write_json

try:
    import fcntl
except ImportError:  # Windows, where an open file keeps its folder from being renamed
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger("polytag")

# Kind -> what its entries are called, and what a kill can leave of one.
_KEY = r"\.?[0-9a-f]{32}(\.\d+-[0-9a-f]{8})?"
KINDS = {
    "features": re.compile(_KEY),
    "backbones": re.compile(_KEY),
    "trunks": re.compile(_KEY),
    "engines": re.compile(r"[0-9a-f]{32}\.json"),
}
# Features of a million pictures, or the trunks of some ten trainings; a laptop's disk holds it.
SIZE = "20GB"
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_UNITS |= {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


# ------------------------------------------------------------------------------------ who uses it


class Held:
    """A folder of the cache that is in use for as long as this lives, or until ``release()``.

    Args:
        folder: As in `hold`.
        descriptor: The open and locked ``.lock``.
    """

    def __init__(self, folder: Path, descriptor: int) -> None:
        self.folder = folder
        self.release = weakref.finalize(self, os.close, descriptor)


def hold(folder: Path) -> Held | None:
    """Say that a folder of the cache is used now: no process removes it while the result lives.

    It is made if it is not there; what a killed writer left in it is removed, if nobody else uses
    it.

    Args:
        folder: ``cache_folder() / kind / key``.

    Returns:
        To be kept; None where there are no locks (Windows, where files in use cannot be removed
        anyway; a folder that cannot be written to; some network disks).

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as cache:
        ...     held = hold(Path(cache) / "trunks" / ("ab" * 16))
        ...     clear(Path(cache))[0]
        []
    """
    touch(folder)
    while fcntl:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
            held = Held(folder, descriptor)
            if _locked(descriptor, fcntl.LOCK_EX):
                remove_remains(folder)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            there = (folder / ".lock").stat()
        except FileNotFoundError:  # the folder was removed meanwhile
            continue
        except OSError:
            return None
        if os.path.samestat(there, os.fstat(descriptor)):
            return held
    return None


def _locked(descriptor: int, how: int) -> bool:
    """Try to lock; False if another holds it."""
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Say whether nobody uses a folder, and let nobody begin to in the block."""
    if not fcntl:
        yield True
        return
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            free = _locked(descriptor, fcntl.LOCK_EX)
        except OSError:  # a disk without locks: nobody holds one
            free = True
        yield free
    finally:
        os.close(descriptor)


def touch(folder: Path) -> None:
    """Remember that a folder of the cache is used now: the ones not used for longest go first.

    Example:
        >>> touch(Path("nowhere"))
    """
    with suppress(OSError):  # a cache that can only be read
        os.utime(folder)


def describe(folder: Path, facts: Mapping[str, str | int | float]) -> None:
    """Write for people what a folder of the cache holds, once.

    Args:
        folder: ``cache_folder() / kind / key``.
        facts: Such as ``{"backbone": "tf_efficientnet_lite0", "size": 224}``, the most telling
            first; `polytag cache info` shows the values.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as cache:
        ...     describe(Path(cache) / "trunks" / ("ab" * 16), {"backbone": "resnet18", "size": 64})
        ...     [entry.what for entry in entries(Path(cache))]
        ['resnet18, 64']
    """
    if not (folder / "about.json").exists():
        write_json(folder / "about.json", dict(facts))


# ------------------------------------------------------------------------------- the whole cache


@dataclass(frozen=True)
class Cached:
    """One entry of the cache: what is removed as a whole.

    Attributes:
        kind: One of `KINDS`.
        path: A folder, or one file.
        bytes: The size of its files together.
        files: How many there are.
        used: When it was last used, in seconds since 1970.
        about: What `describe` wrote; empty if nobody did.
    """

    kind: str
    path: Path
    bytes: int
    files: int
    used: float
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def what(self) -> str:
        """What it holds, in a few words; its key where nobody said."""
        return printable(", ".join(map(str, self.about.values()))) or self.path.stem

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        numbers = {"bytes": self.bytes, "files": self.files, "last_used": self.used}
        return {"kind": self.kind, "key": self.path.stem, "about": dict(self.about), **numbers}


def entries(cache: Path) -> list[Cached]:
    """Return what is in a cache folder, by kind and last use, the newest first.

    Args:
        cache: `polytag.files.cache_folder()`; it need not be there.

    Example:
        >>> entries(Path("nowhere"))
        []
    """
    found = []
    for kind, names in KINDS.items():
        with suppress(OSError):  # no such folder
            for path in (cache / kind).iterdir():
                if names.fullmatch(path.name) and not path.is_symlink():
                    with suppress(OSError):  # removed by another process meanwhile
                        found.append(_entry(kind, path))
    return sorted(found, key=lambda entry: (list(KINDS).index(entry.kind), -entry.used))


def _entry(kind: str, path: Path) -> Cached:
    if not path.is_dir():
        status = path.stat()
        return Cached(kind, path, status.st_size, 1, status.st_mtime)
    sizes = [each.stat().st_size for each in path.rglob("*") if each.is_file()]
    about: Any = None
    with suppress(OSError, ValueError):
        about = json.loads((path / "about.json").read_text(encoding="utf-8"))
    about = about if isinstance(about, dict) else {}
    return Cached(kind, path, sum(sizes), len(sizes), path.stat().st_mtime, about)


def clear(
    cache: Path, kinds: Container[str] = KINDS, before: float = float("inf")
) -> tuple[list[Cached], list[Cached]]:
    """Remove what can be computed again.

    Args:
        cache: `polytag.files.cache_folder()`; it need not be there.
        kinds: Which kinds.
        before: Only what was last used before this time, in seconds since 1970.

    Returns:
        What was removed, and what is left because a process uses it; what cannot be removed for
        another reason is neither, and a warning says so.

    Example:
        >>> clear(Path("nowhere"))
        ([], [])
    """
    removed: list[Cached] = []
    left: list[Cached] = []
    for entry in entries(cache):
        if entry.kind in kinds and entry.used < before:
            try:
                (removed if _remove(entry) else left).append(entry)
            except OSError as error:
                log.warning("cannot be removed: %s (%s)", entry.path, error.strerror)
    return removed, left


def make_room(wanted: int, keep: Path | None = None) -> int:
    """Remove what was not used for longest, until the cache with ``wanted`` bytes fits its bound.

    What a process uses stays, even if the cache is then larger than its bound.

    Args:
        wanted: How many bytes are about to be written.
        keep: A folder that must stay.

    Returns:
        How many bytes may be written: what is left of the bound and on the disk, which can be
        less than ``wanted``.

    Raises:
        UserError: ``POLYTAG_CACHE_SIZE`` is no size.

    Not run: it would look after the reader's own cache.
    """
    cache, bound = cache_folder(), size_bound()
    found = entries(cache)
    total = sum(entry.bytes for entry in found)
    for entry in sorted(found, key=lambda entry: entry.used):
        if bound is None or total + wanted <= bound:
            break
        # What an engine's trial found weighs nothing.
        if entry.kind != "engines" and entry.path != keep:
            with suppress(OSError):  # of somebody else, say: the next one then
                if _remove(entry):
                    log.info("the cache is full: removed %s: %s", entry.kind, entry.what)
                    total -= entry.bytes
    there = next(path for path in (cache.absolute(), *cache.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    return free if bound is None else max(0, min(bound - total, free))


def _remove(entry: Cached) -> bool:
    """Remove an entry; False if somebody uses it, OSError if it cannot be removed."""
    path = entry.path
    try:
        if not path.is_dir():
            path.unlink(missing_ok=True)
            return True
        with _alone(path) as alone:
            if not alone:
                return False
            name = path.name.lstrip(".").partition(".")[0]
            aside = path.with_name(f".{name}.{os.getpid()}-{uuid.uuid4().hex[:8]}")
            path.rename(aside)
    except FileNotFoundError:  # by another process
        return True
    # Whoever still reads a mapped file of it keeps its content: POSIX removes names, not files
    # that are open. What a kill leaves here is the next one's to remove.
    shutil.rmtree(aside, ignore_errors=True)
    return True


def size_bound() -> int | None:
    """Return how many bytes the cache may hold: ``$POLYTAG_CACHE_SIZE``, else 20 GB; None: any.

    Raises:
        UserError: ``POLYTAG_CACHE_SIZE`` is no size.

    Example:
        >>> size_bound() is None or size_bound() > 0
        True
    """
    text = os.environ.get("POLYTAG_CACHE_SIZE") or SIZE
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?\s*", text, re.IGNORECASE | re.ASCII)
    if not found or found[2].lower() not in _UNITS:
        raise UserError(
            "not a size of the cache",
            where="POLYTAG_CACHE_SIZE",
            got=repr(text),
            expected="such as 20GB or 500MiB; 0: no bound",
        )
    return round(float(found[1]) * _UNITS[found[2].lower()]) or None
