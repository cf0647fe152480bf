"""Device, precision and processes, as accelerate sees them."""

from __future__ import annotations

import math
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from polytag.config import Recipe
from polytag.errors import RecipeError


def make_accelerator(recipe: Recipe) -> Accelerator:
    """Return accelerate's view of device, precision and processes for a resolved recipe.

    The first call of a process that torchrun started waits until all the others have come here.

    Raises:
        RecipeError: The device cannot have this precision.
    """
    device, precision = recipe.device, recipe.training.precision
    if device.startswith("cuda:"):
        torch.cuda.set_device(device)
    if precision == "auto":
        bf16 = device.startswith("cuda") and torch.cuda.is_bf16_supported()
        precision = "bf16" if bf16 else "fp32"
    if precision == "fp16" and device == "cpu":
        raise RecipeError(
            "fp16 needs a GPU", where="training.precision", fix="--set training.precision=auto"
        )
    # accelerate keeps one device and one precision; a second training may want others.
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(
        cpu=device == "cpu",
        mixed_precision="no" if precision == "fp32" else precision,
        # A head that looks at positions leaves the backbone's own pooling without a gradient.
        kwargs_handlers=[
            DistributedDataParallelKwargs(find_unused_parameters=recipe.head.kind == "attention")
        ],
    )


class Shell(nn.Module):
    """Around a module that accelerate is to prepare: what it changes is the shell."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *given: Tensor) -> Any:
        """Return what the module gives."""
        return self.module(*given)


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


def merged(latest: Tensor, accelerator: Accelerator) -> Tensor:
    """Return what the processes noted of N rows (N,), NaN where none did; where several, the mean.

    Args:
        latest: float32 (N,) of this process, NaN where it noted nothing.
        accelerator: Knows the others.
    """
    noted = ~latest.isnan()
    both = torch.stack([latest.nan_to_num(), noted.float()]).to(accelerator.device)
    sums, counts = accelerator.reduce(both, "sum").cpu()
    return torch.where(counts > 0, sums / counts, torch.nan)


@torch.no_grad()
def share_statistics(model: nn.Module, accelerator: Accelerator) -> None:
    """Give every process the mean of all processes' BatchNorm statistics.

    Each has seen other pictures; without this each would judge its rows by a model of its own.
    """
    if accelerator.num_processes == 1:
        return
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    flat = torch.cat([buffer.flatten().float() for buffer in buffers])
    means = accelerator.reduce(flat, "mean").split([buffer.numel() for buffer in buffers])
    for buffer, mean in zip(buffers, means, strict=True):
        buffer.copy_(mean.view_as(buffer))
