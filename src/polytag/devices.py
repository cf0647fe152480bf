"""What a training can compute on. torch is loaded only where there may be a GPU."""

from __future__ import annotations

import sys
from pathlib import Path

from polytag.errors import RecipeError

# Where Linux shows a GPU that torch can use: NVIDIA's and its boards', AMD's, one seen from within
# Windows.
_SHOWN = ("/dev/nvidiactl", "/dev/nvmap", "/dev/nvhost-gpu", "/dev/kfd", "/dev/dxg")


def resolve_device(device: str) -> str:
    """Return the torch device to use; ``auto``: a GPU if there is one.

    Raises:
        RecipeError: There is no such device here.

    Example:
        >>> resolve_device("cpu")
        'cpu'
    """
    if device == "cpu" or (device == "auto" and not _may_have_gpu()):
        return "cpu"
    import torch

    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if device == "auto":
        return "cuda" if cuda else "mps" if mps else "cpu"
    kind = device.partition(":")[0]
    here = ["cpu", *(["cuda"] if cuda else []), *(["mps"] if mps else [])]
    try:
        torch.device(device)
        if kind in here:
            return device
    except RuntimeError:
        pass
    raise RecipeError(
        "no such device here", where="device", got=repr(device), expected=f"auto, {', '.join(here)}"
    )


def _may_have_gpu() -> bool:
    """Say whether it is worth the second or two that torch takes to look for one."""
    return sys.platform != "linux" or any(Path(place).exists() for place in _SHOWN)
