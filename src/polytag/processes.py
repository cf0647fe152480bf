"""Device, precision and processes, as accelerate sees them."""

from __future__ import annotations

import math

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list
from torch import Tensor

from polytag.config import Recipe


def make_accelerator(recipe: Recipe) -> Accelerator:
    """Return accelerate's view of device, precision and processes for a resolved recipe."""
    device, precision = recipe.device, recipe.training.precision
    if device.startswith("cuda:"):
        torch.cuda.set_device(device)
    if precision == "auto":
        bf16 = device.startswith("cuda") and torch.cuda.is_bf16_supported()
        precision = "bf16" if bf16 else "fp32"
    # accelerate keeps one precision a process; a second training may want another.
    AcceleratorState._reset_state()
    return Accelerator(
        cpu=device == "cpu",
        mixed_precision="no" if precision == "fp32" else precision,
        # A head that looks at positions leaves the backbone's own pooling without a gradient.
        kwargs_handlers=[
            DistributedDataParallelKwargs(find_unused_parameters=recipe.head.kind == "attention")
        ],
    )


def share(count: int, rank: int, world: int) -> range:
    """Return the rows of one process: every world-th of ``count``.

    Example:
        >>> [list(share(5, rank, 2)) for rank in range(2)]
        [[0, 2, 4], [1, 3]]
    """
    return range(rank, count, world)


def gathered(answers: Tensor, count: int, accelerator: Accelerator) -> Tensor:
    """Return all processes' rows in their order, on the CPU; none twice.

    Args:
        answers: (at most ceil(count / world), K) of this process's `share`.
        count: Rows of all processes.
        accelerator: Knows the others.
    """
    world = accelerator.num_processes
    padded = answers.new_zeros((math.ceil(count / world), answers.shape[1]))
    padded[: len(answers)] = answers
    rows: Tensor = accelerator.gather(padded.to(accelerator.device)).cpu()
    return rows.view(world, -1, answers.shape[1]).transpose(0, 1).flatten(0, 1)[:count]


def from_main(value: str) -> str:
    """Return what the main process has here; every process has to call it."""
    values = [value]
    broadcast_object_list(values)
    return values[0]


def is_main() -> bool:
    """Say whether this process is the one that writes and speaks."""
    return bool(PartialState().is_main_process)
