"""What a trunk gives of varied pictures, computed once and kept on disk.

One file, written aside and renamed: a half-written one is never read. Maps are kept in
bfloat16, which is what they are trained in; pooled features in float32, as the head sees them. The
file is mapped into memory, so that only what a step takes is read.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polytag.cached import Held, make_room
from polytag.errors import UserError
from polytag.files import written_aside
from polytag.pipeline import batches, stream
from polytag.progress import progress

log = logging.getLogger("polytag")

Bytes = NDArray[np.uint8]
Run = Callable[[Bytes], list[NDArray[np.float32]]]
"""Pictures uint8 (B, S, S, 3) to, for each depth, a map (B, H, W, C) and pooled features (B, P)."""

FORMAT = 1


@dataclass(frozen=True, eq=False)
class Views:
    """Kept maps of N rows in V views, for one or several depths.

    Attributes:
        rows: A mapped structured array (V, N): for the i-th depth a map ``map<i>`` uint16
            (H, W, C), the bits of bfloat16 numbers, and ``pooled<i>`` float32 (P,).
        depths: Of the trunks, in order.
        held: Keeps them in the cache as long as this lives.
    """

    rows: Any
    depths: tuple[int, ...]
    held: Held | None

    def take(self, depth: int, rows: NDArray[np.int64], epoch: int) -> tuple[Tensor, Tensor]:
        """Return the maps bfloat16 (B, H, W, C) and pooled features (B, P) of some rows.

        Each epoch takes another view of a row, and as many views as there are in turn.
        """
        index = self.depths.index(depth)
        taken = self.rows[(epoch + rows) % len(self.rows), rows]
        bits = torch.from_numpy(np.ascontiguousarray(taken[f"map{index}"]).view(np.int16))
        pooled = np.ascontiguousarray(taken[f"pooled{index}"])
        return bits.view(torch.bfloat16), torch.from_numpy(pooled)


def row_type(outputs: Sequence[NDArray[np.float32]]) -> np.dtype[Any]:
    """Return the type of one kept row, from what a trunk gives of some pictures.

    Example:
        >>> row_type([np.zeros((2, 7, 7, 3), np.float32), np.zeros((2, 5), np.float32)]).itemsize
        314
    """
    fields: list[tuple[str, str, tuple[int, ...]]] = []
    for index, (maps, pooled) in enumerate(zip(outputs[::2], outputs[1::2], strict=True)):
        fields.append((f"map{index}", "<u2", maps.shape[1:]))
        fields.append((f"pooled{index}", "<f4", pooled.shape[1:]))
    return np.dtype(fields)


def fitting(wanted: int, rows: int, row_bytes: int, gigabytes: float) -> int:
    """Return how many views of N rows may be kept, 0 if not even one.

    Args:
        wanted: As many as would be of use.
        rows: N.
        row_bytes: Of one row in one view.
        gigabytes: Bound on the file.

    Example:
        >>> fitting(8, rows=1000, row_bytes=100_000, gigabytes=0.5)
        5
    """
    return max(0, min(wanted, int(gigabytes * 1e9 // max(rows * row_bytes, 1))))


def kept_views(
    folder: Path,
    shape: tuple[int, int],
    kind: np.dtype[Any],
    compute: Callable[[], Run],
    load: Callable[[int, int], Bytes],
    *,
    batch: int = 32,
    check: Callable[[], None] = lambda: None,
) -> Any:
    """Return the rows that a folder of the cache keeps, computing them if they are not there.

    Args:
        folder: Its name stands for everything that decides the numbers; `hold` it.
        shape: V views, N rows.
        kind: Of one row, as `row_type` gives it.
        compute: Builds the trunk's engine; called only if there is something to compute.
        load: A view and a row to its picture uint8 (S, S, 3); called in threads.
        batch: Pictures at a time.
        check: Called after every batch; what it raises ends the work.

    Returns:
        A mapped array of ``kind`` (V, N), not to be written to; None: neither the cache nor the
        disk has room for it.

    Raises:
        UserError: A picture cannot be decoded any more, or the disk is full.
    """
    path, (views, count) = folder / "views.npy", shape
    found = _opened(path, shape, kind)
    if found is not None:
        log.info("the frozen layers' output is in the cache")
        return found
    size = views * count * kind.itemsize
    if make_room(size, folder) < size:
        return None
    items = [(view, row) for view in range(views) for row in range(count)]
    loaded = stream(items, lambda item: load(*item), ahead=2 * batch)
    title, header = "frozen layers", {"descr": np.lib.format.dtype_to_descr(kind)}
    with (
        written_aside(path) as aside,
        aside.open("wb") as file,
        progress(title, len(items), "pictures") as advance,
    ):
        np.lib.format.write_array_header_1_0(
            file, {**header, "fortran_order": False, "shape": shape}
        )
        run = compute()
        try:
            for pictures in batches(loaded, batch):
                for _, error in pictures.failed:
                    raise error
                # Written, not mapped: a full disk is then an error that says so.
                file.write(_packed(run(pictures.images), kind).tobytes())
                advance(len(pictures.items))
                check()
        finally:
            loaded.close()
    kept = _opened(path, shape, kind)
    if kept is None:
        raise UserError("what was just written cannot be read", where=str(path))
    return kept


def _packed(outputs: Sequence[NDArray[np.float32]], kind: np.dtype[Any]) -> NDArray[Any]:
    rows = np.empty(len(outputs[0]), kind)
    for index, (maps, pooled) in enumerate(zip(outputs[::2], outputs[1::2], strict=True)):
        rounded = torch.from_numpy(np.ascontiguousarray(maps)).to(torch.bfloat16)
        rows[f"map{index}"] = rounded.view(torch.int16).numpy().view(np.uint16)
        rows[f"pooled{index}"] = pooled
    return rows


def _opened(path: Path, shape: tuple[int, int], kind: np.dtype[Any]) -> Any:
    """Return a kept file; None: it is not there, or not what it should be."""
    if not path.is_file():
        return None
    try:
        found = np.lib.format.open_memmap(path, mode="r")  # arrays only, never a pickle
    except Exception as error:  # numpy's readers raise many kinds on broken files
        log.warning("a damaged file of the cache is made again: %s (%s)", path, error)
        return None
    return found if found.shape == shape and found.dtype == kind else None
