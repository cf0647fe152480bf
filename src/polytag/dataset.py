"""A torch dataset for people with a training loop of their own."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from polytag.images import decode
from polytag.losses import split_values
from polytag.pictures import locate
from polytag.preprocess import PreprocessSpec, picture
from polytag.table import LabelTable
from polytag.usable import usable_rows


class LabelDataset(Dataset[tuple[Any, Tensor, Tensor]]):
    """Yields ``(image, targets, known)`` for every row whose picture can be used.

    Every picture is decoded once when the dataset is made, so that nothing breaks in the middle
    of a training run and no other picture is slipped in for a broken one.

    Args:
        table: Labels with holes.
        images: The folder of pictures.
        spec: From a picture to a square; None: the picture as it is, for ``transform`` to size.
        transform: Called with the picture uint8 (H, W, 3); by default it becomes a uint8 tensor
            (3, H, W).

    Attributes:
        table: The usable rows.
        skipped: The rows left out, each with its reason.

    Yields:
        The transformed picture; targets float32 (K,) in {0, 1}, 0 where nothing is known; known
        bool (K,).

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (40, 30), "red").save(f"{folder}/a.png")
        ...     table = LabelTable.from_rows(["a.png", "b.png"], ["red", "blue"],
        ...                                  [[1, np.nan], [0, 1]])
        ...     data = LabelDataset(table, folder, PreprocessSpec(size=32))
        ...     image, targets, known = data[0]
        >>> tuple(image.shape), targets.tolist(), known.tolist(), len(data.skipped)
        ((3, 32, 32), [1.0, 0.0], [True, False], 1)
    """

    def __init__(
        self,
        table: LabelTable,
        images: str | os.PathLike[str],
        spec: PreprocessSpec | None = None,
        transform: Callable[[NDArray[np.uint8]], Any] | None = None,
    ) -> None:
        rows = usable_rows(table, *locate(table, Path(images)))
        self.table, self.paths, self.skipped = rows.table, rows.paths, rows.skipped
        self.spec, self.transform = spec, transform
        self.targets, self.known = split_values(torch.from_numpy(np.array(self.table.values)))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, Tensor, Tensor]:
        path, spec = self.paths[index], self.spec
        image = decode(path) if spec is None else picture(path, spec)
        if self.transform is not None:
            return self.transform(image), self.targets[index], self.known[index]
        tensor = torch.from_numpy(image).permute(2, 0, 1).contiguous()
        return tensor, self.targets[index], self.known[index]
