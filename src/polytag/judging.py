"""Predicting rows as they are judged: plain pictures, full precision, what is frozen computed once.

What judges is the whole network, as it is deployed. While a stage's frozen layers do not change,
neither does what they make of the judged pictures: it is kept in memory, in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from polytag.feed import Pictures
from polytag.model import Classifier
from polytag.pipeline import batches, stream
from polytag.preprocess import picture
from polytag.processes import gathered, share
from polytag.trunk import Split

Floats = NDArray[np.float32]
Seen = list[tuple[Tensor, Tensor]]  # batches of what a trunk gives
_MOST = 1 << 30  # bytes of it that are held in memory


class Judge:
    """Predicts rows by the model as it stands, or with other weights.

    Args:
        model: On its device; put into evaluation mode whenever it predicts.
        accelerator: Device and other processes.
        batch: Pictures at a time.
    """

    def __init__(self, model: Classifier, accelerator: Accelerator, batch: int) -> None:
        self.model, self.accelerator, self.batch = model, accelerator, batch
        self.kept: tuple[Split, Pictures, Seen] | None = None

    @torch.no_grad()
    def predict(
        self, pictures: Pictures, state: dict[str, Tensor], split: Split | None = None
    ) -> Floats:
        """Return logits float32 (N, K) of pictures, on every process.

        Args:
            pictures: N of them; their labels are not looked at.
            state: The weights.
            split: How the model is parted at present: what its trunk gives of these pictures is
                kept until another split or other pictures come. None: nothing is kept.
        """
        model = self.model.eval()
        if split and self._fits(split, pictures):
            upper = split.upper.eval()
            own = {name: state[name] for name in upper.state_dict()}
            seen = self._seen(split, pictures)
            answers = [torch.func.functional_call(upper, own, each).cpu() for each in seen]
        else:

            def answer(images: Tensor) -> Tensor:
                logits: Tensor = torch.func.functional_call(model, state, (images,))
                return logits

            answers = [answer(images).cpu() for images in self._batches(pictures)]
        none = torch.zeros((0, pictures.values.shape[1]))
        rows = gathered(torch.cat([none, *answers]), len(pictures), self.accelerator)
        return np.asarray(rows.numpy())

    def _batches(self, pictures: Pictures) -> Iterator[Tensor]:
        """Yield this process's pictures, uint8 (B, S, S, 3), on its device."""
        spec = self.model.backbone.spec
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        paths = [pictures.paths[row] for row in share(len(pictures), rank, world)]
        load: Callable[..., NDArray[np.uint8]] = lambda path: picture(path, spec)  # noqa: E731
        with closing(stream(paths, load)) as loaded:
            for batch in batches(loaded, self.batch):
                for _, error in batch.failed:
                    raise error
                yield torch.from_numpy(batch.images).to(self.accelerator.device)

    def _seen(self, split: Split, pictures: Pictures) -> Seen:
        if self.kept is None or self.kept[0] is not split or self.kept[1] is not pictures:
            trunk = split.trunk.eval()
            self.kept = split, pictures, [trunk(images) for images in self._batches(pictures)]
        return self.kept[2]

    def _fits(self, split: Split, pictures: Pictures) -> bool:
        found = split.trunk.eval()(self.model.backbone.blank().to(self.accelerator.device))
        each: int = sum(tensor.numel() * tensor.element_size() for tensor in found)
        return bool(each * len(pictures) <= _MOST)
