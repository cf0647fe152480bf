"""Rows that belong together: they stay on one side of every split."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def identical(hashes: Sequence[str]) -> NDArray[np.int64]:
    """Number the groups of byte-identical pictures, in the order in which they first appear.

    Args:
        hashes: One content hash a row, N of them.

    Returns:
        int64 (N,): the number of each row's group, from 0.

    Example:
        >>> identical(["a", "b", "a"]).tolist()
        [0, 1, 0]
    """
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(text, len(numbers)) for text in hashes], dtype=np.int64)
