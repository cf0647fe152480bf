"""Checkpoints: one safetensors file, its header JSON of our own. No pickle is written or read.

A checkpoint is written aside and renamed: whatever happens in the middle of it, the one before is
still there, whole.
"""

from __future__ import annotations

import json
import logging
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polytag.errors import ModelError, UserError
from polytag.files import written_aside

if TYPE_CHECKING:  # whether there is a checkpoint is asked without loading torch
    from torch import Tensor

log = logging.getLogger("polytag")
NAME = "checkpoint.safetensors"
FORMAT = 1
_KEY = "polytag"

States = dict[str, dict[str, "Tensor"]]


def write_checkpoint(
    folder: Path,
    states: Mapping[str, Mapping[str, Tensor]],
    facts: Mapping[str, Any],
    made_of: Mapping[str, str],
) -> None:
    """Write a checkpoint into a run folder, whole or not at all.

    Args:
        folder: The run.
        states: Groups of tensors by name, for example ``{"model": model.state_dict()}``.
        facts: Everything else, as JSON can hold it; NaN and infinities too.
        made_of: Fingerprints of what has to be the same when training goes on.
    """
    import torch
    from safetensors.torch import save

    about = {"format": FORMAT, "made_of": dict(made_of), "threads": torch.get_num_threads()}
    header = {_KEY: json.dumps({**facts, **about})}
    tensors = {
        f"{group}/{name}": tensor.detach().cpu().contiguous()
        for group, state in states.items()
        for name, tensor in state.items()
    }
    with written_aside(folder / NAME) as aside:
        aside.write_bytes(save(tensors, header))


def read_checkpoint(folder: Path, made_of: Mapping[str, str]) -> tuple[States, dict[str, Any]]:
    """Read what `write_checkpoint` wrote; a group without a tensor is not there.

    Raises:
        ModelError: There is none, it cannot be read, or another polytag wrote it.
        UserError: It was made of something else than ``made_of``.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    path = folder / NAME
    states: States = {}
    try:
        with safe_open(path, framework="pt") as file:
            facts: dict[str, Any] = json.loads(file.metadata()[_KEY])
            for key in file.keys():  # noqa: SIM118 - it is no dictionary
                group, _, name = key.partition("/")
                states.setdefault(group, {})[name] = file.get_tensor(key)
        version = facts["format"]
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            "the checkpoint cannot be read",
            where=str(path),
            got=str(error) or repr(error),
            fix="train anew",
        ) from None
    if version != FORMAT:
        raise ModelError(
            "the checkpoint is of another polytag",
            where=str(path),
            got=f"format {version}",
            expected=f"format {FORMAT}",
        )
    changed = [what for what, seen in facts["made_of"].items() if seen != made_of.get(what)]
    if changed:
        raise UserError(
            f"the {changed[0]} has changed since this run began",
            where=str(folder),
            got={"data": "other labels or pictures", "recipe": "another config.toml"}[changed[0]],
            expected="what it was trained with so far",
            fix="put that back, or train anew",
        )
    if facts["threads"] != torch.get_num_threads():
        words = "%d threads instead of %d: the result will not be the same to the last bit"
        log.warning(words, torch.get_num_threads(), facts["threads"])
    return states, facts


def has_checkpoint(run: Path) -> bool:
    """Say whether a run, or one of its folds, has a checkpoint."""
    return (run / NAME).is_file() or any(run.glob(f"*/{NAME}"))


def remove_checkpoints(run: Path) -> None:
    """Remove what only a run that is not finished needs."""
    for folder in [*run.glob("fold-*"), run / "kept"]:
        shutil.rmtree(folder, ignore_errors=True)
    (run / NAME).unlink(missing_ok=True)


def interrupted(run: Path) -> KeyboardInterrupt:
    """Return what ends a run that somebody interrupted: it says how to go on, if that can be."""
    command = f"go on with: polytag train --resume {shlex.quote(str(run))}"
    return KeyboardInterrupt(*[command] * has_checkpoint(run))
