"""Rows of features, kept on disk by the content of their pictures."""

from __future__ import annotations

import logging
import uuid
from bisect import bisect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polytag.cached import hold
from polytag.files import written_aside
from polytag.looks import SIDE

log = logging.getLogger("polytag")
Floats = NDArray[np.float32]
Looks = NDArray[np.uint8]


class FeatureStore:
    """The rows of one folder of features, by content hash.

    A shard is a file that is written aside, renamed, and never changed afterwards: two processes
    can fill one folder at once (at worst both compute the same rows), and after a kill there is
    nothing half-written to read. It holds its columns one after the other (hashes first, so that
    opening it reads few pages), each row with a checksum, which is compared once, when somebody
    first asks for a row of the shard.

    Args:
        folder: Made when the first rows are added. It is in use (see `hold`) as long as the
            store lives.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = FeatureStore(Path(folder) / "key")
        ...     looks = np.zeros((1, 8, 8, 3), np.uint8)
        ...     store.add(["ab" * 32], np.ones((1, 2, 3), np.float32), looks)
        ...     "ab" * 32 in store, [rows.shape for rows in store.read(["ab" * 32])]
        (True, [(1, 2, 3), (1, 8, 8, 3)])
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.held = hold(folder) if folder.is_dir() else None
        self._places: dict[str, int] = {}  # hash -> number of its row over all shards
        self._shards: list[Any] = []  # numpy.memmap
        self._starts: list[int] = []  # the number of each shard's first row
        self._unchecked: set[int] = set()
        for shard in sorted(folder.glob("[!.]*.npy")):
            self._open(shard)

    def __len__(self) -> int:
        """Return how many rows there are."""
        return len(self._places)

    def __contains__(self, text: str) -> bool:
        """Say whether the row is there and as it was written."""
        if (place := self._places.get(text)) is None:
            return False
        shard = bisect(self._starts, place) - 1
        if shard in self._unchecked:
            self._check(shard)
        return text in self._places

    def add(self, hashes: Sequence[str], features: Floats, looks: Looks) -> None:
        """Keep n rows under their hashes, as one new shard.

        Args:
            hashes: n content hashes.
            features: float32 (n, V, D).
            looks: uint8 (n, 8, 8, 3).

        Raises:
            UserError: The place cannot be written to, or the disk is full.
        """
        table = np.empty(1, _columns(len(hashes), features.shape[1:]))
        (row,) = table
        row["hash"] = [list(bytes.fromhex(text)) for text in hashes]
        row["look"] = looks
        row["features"] = features
        row["check"] = _checksums(row)
        path = self.folder / f"{uuid.uuid4().hex}.npy"
        with written_aside(path) as aside:
            self.held = self.held or hold(self.folder)
            np.save(aside, table)
        self._open(path)

    def read(self, hashes: Sequence[str]) -> tuple[Floats, Looks]:
        """Return features and looks of N pictures.

        Args:
            hashes: N content hashes, each of a row that is ``in`` the store, or empty.

        Returns:
            float32 (N, V, D), NaN for empty hashes; uint8 (N, 8, 8, 3), zeros for empty hashes.
        """
        shape = self._shards[0]["features"].shape[2:] if self._shards else (1, 0)
        features = np.empty((len(hashes), *shape), dtype=np.float32)
        looks = np.zeros((len(hashes), SIDE, SIDE, 3), dtype=np.uint8)
        places = np.array([self._places[text] if text else -1 for text in hashes], dtype=np.int64)
        features[places < 0] = np.nan
        # Shard after shard, and forwards in each: the disk is read once, in order.
        order = np.argsort(places, kind="stable")
        ends = np.searchsorted(places[order], [*self._starts, np.iinfo(np.int64).max])
        for shard, start, low, high in zip(
            self._shards, self._starts, ends[:-1], ends[1:], strict=True
        ):
            if low < high:
                wanted = order[low:high]
                rows = places[wanted] - start
                features[wanted] = shard["features"][0][rows]
                looks[wanted] = shard["look"][0][rows]
        return features, looks

    def _open(self, path: Path) -> None:
        try:
            table: Any = np.lib.format.open_memmap(path, mode="r")  # arrays only, never a pickle
            count, *shape = table["features"].shape[1:]
            known = self._shards[0]["features"].shape[2:] if self._shards else tuple(shape)
            if table.dtype != _columns(count, known) or table.shape != (1,):
                raise ValueError("not a shard of this folder")
            digits = table["hash"].tobytes().hex()
        except Exception as error:  # numpy's readers raise many kinds on broken files
            _warn_of(path, error)
            return
        start = self._starts[-1] + self._shards[-1]["hash"].shape[1] if self._shards else 0
        hashes = (digits[at : at + 64] for at in range(0, len(digits), 64))
        self._places.update(zip(hashes, range(start, start + count), strict=True))
        self._unchecked.add(len(self._shards))
        self._shards.append(table)
        self._starts.append(start)

    def _check(self, shard: int) -> None:
        self._unchecked.remove(shard)
        table = self._shards[shard]
        damaged = np.flatnonzero(_checksums(table[0]) != table["check"][0])
        for row in damaged:
            text = table["hash"][0, row].tobytes().hex()
            if self._places.get(text) == self._starts[shard] + row:
                del self._places[text]
        if len(damaged):
            _warn_of(table.filename, "its checksum is wrong")


def _columns(count: int, shape: Sequence[int]) -> np.dtype[Any]:
    """Return the type of a shard: one record that holds ``count`` rows as columns."""
    fields = [
        *(("hash", "u1", (count, 32)), ("check", "<u4", (count,))),
        *(("look", "u1", (count, SIDE, SIDE, 3)), ("features", "<f4", (count, *shape))),
    ]
    return np.dtype(fields)


def _checksums(columns: Any) -> NDArray[np.uint32]:
    """Return a sum modulo 2^32 of each row's words, each times an odd number of its own.

    One changed word always changes it, as would zeros and moved blocks but for one in 2^32. Four
    times as fast as zlib's crc32, which would take longer than reading a warm cache.
    """
    found = np.zeros(len(columns["hash"]), dtype=np.uint32)
    for name in ("features", "look"):
        words = columns[name].reshape(len(found), -1).view(np.uint32)
        odd = np.arange(1, 2 * words.shape[1], 2, dtype=np.uint32)
        found = found * np.uint32(31) + np.einsum("ij,j->i", words, odd)
    return found


def _warn_of(shard: object, reason: object) -> None:
    # A disk's fault, as shards appear whole: what it held is computed again.
    log.warning("a damaged shard of the feature cache is left out: %s (%s)", shard, reason)
