"""Checkpoints: one safetensors file, its header JSON of our own. No pickle is written or read.

A checkpoint is written aside and renamed: whatever happens in the middle of it, the one before is
still there, whole.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from polytag.errors import ModelError
from polytag.files import written_aside

NAME = "checkpoint.safetensors"
FORMAT = 1
_KEY = "polytag"


def write_checkpoint(
    folder: Path, states: Mapping[str, Mapping[str, Tensor]], facts: Mapping[str, Any]
) -> None:
    """Write a checkpoint into a run folder, whole or not at all.

    Args:
        folder: The run.
        states: Groups of tensors by name, for example ``{"model": model.state_dict()}``.
        facts: Everything else, as JSON can hold it; NaN and infinities too.
    """
    header = {_KEY: json.dumps({**facts, "format": FORMAT})}
    tensors = {
        f"{group}/{name}": tensor.detach().cpu().contiguous()
        for group, state in states.items()
        for name, tensor in state.items()
    }
    with written_aside(folder / NAME) as aside:
        aside.write_bytes(save(tensors, header))


def read_checkpoint(folder: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Read what `write_checkpoint` wrote; a group without a tensor is not there.

    Raises:
        ModelError: There is none, it cannot be read, or a newer polytag wrote it.
    """
    path = folder / NAME
    if not path.is_file():
        finished = (folder / "model.onnx").is_file()
        raise ModelError(
            "this run is finished" if finished else "no run to go on with",
            where=str(folder),
            got="" if finished else f"no {NAME}",
            fix="" if finished else "a run that ended before its first step starts anew",
        )
    states: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()[_KEY])
            for key in file.keys():  # noqa: SIM118 - it is no dictionary
                group, _, name = key.partition("/")
                states.setdefault(group, {})[name] = file.get_tensor(key)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            "the checkpoint cannot be read", where=str(path), got=str(error) or repr(error)
        ) from None
    if facts["format"] != FORMAT:
        raise ModelError(
            "the checkpoint is of another polytag",
            where=str(path),
            got=f"format {facts['format']}",
            expected=f"format {FORMAT}",
        )
    return states, facts
