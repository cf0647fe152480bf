"""What each of two processes does; `test_processes` starts them and looks at what they found.

    torchrun --nproc-per-node 2 -m tests.two_processes FOLDER

Each writes ``FOLDER/rank 0.pt`` or ``FOLDER/rank 1.pt``. With ``FOLDER train ...`` it is the
command line that they run.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from polytag import cli, train
from polytag.errors import UserError
from polytag.feed import Pictures
from polytag.loop import Loop
from polytag.processes import gathered, make_accelerator, merged, share, share_statistics
from polytag.ranks import from_main, is_main
from polytag.trainable import copied

from .tiny import before_each_step, recorded_gradients, still, tiny_loop, tiny_recipe

# One step has a process that knows nothing, the last batch has fewer pictures than processes.
STEPS: dict[str, dict[str, object]] = {
    f"{per}, {accumulate} at a time": still(batch=5, accumulate=accumulate) | {"loss.per": per}
    for per in ("cell", "attribute")
    for accumulate in (1, 2)
}
STEPS["attention"] = still(batch=5) | {"head.kind": "attention", "head.hidden": 16}
# Two stages, statistics that differ between the processes, a mean, choosing rows, an odd number.
WHOLE: dict[str, object] = {
    "training.batch": 5,
    "training.ema": 0.3,
    "training.checkpoint_minutes": 1e-9,
    "split.choose": 0.3,
    "augment.flip": 0.5,
    "head.dropout": 0.2,
    "stages": [
        {"name": "head", "epochs": 1, "lr": 1e-2, "frozen": "backbone"},
        {"name": "all", "epochs": 2, "lr": 1e-3},
    ],
}
HARD = {"training.freeze_norm": True, "training.batch": 4, "sampler.hard": 0.25}
HARD |= {"stages.*.epochs": 3, "stages.*.lr": 1e-2}


def read(folder: Path, name: str) -> Pictures:
    return Pictures(sorted((folder / name).glob("*.png")), np.load(folder / f"{name}.npy"))


def begin(changes: dict[str, object], data: Path, **options: Any) -> Loop:
    return tiny_loop(tiny_recipe(changes), read(data, "train"), read(data, "choose"), **options)


def steps(folder: Path) -> dict[str, Any]:
    found = {}
    for name, changes in STEPS.items():
        loop = begin(changes, folder)
        found[name] = recorded_gradients(loop)
        found[f"{name}: losses"] = loop.run().losses
    return found


def whole(folder: Path) -> dict[str, Any]:
    loop = begin(WHOLE, folder)
    judged: list[torch.Tensor] = []
    predict = loop.judge.predict
    loop.judge.predict = lambda *given: (predict(*given), judged.append(predict(*given)))[0]
    history = loop.run()
    loop.judge.predict = predict
    return {
        "losses": history.losses,
        "scores": [epoch.validation for epoch in history.epochs],
        "judged": judged,
        "weights": copied(loop.model.state_dict()),
        "logits": loop.predict(read(folder, "choose")),
    }


def interrupted(folder: Path) -> dict[str, Any]:
    """Ctrl-C reaches the second process alone, both stop, and both go on."""
    run = folder / "run"
    if is_main():
        run.mkdir()
    loop = begin(WHOLE, folder, folder=run)
    count = iter(range(100))

    def press() -> None:
        loop.ctrl_c.pressed |= not is_main() and next(count) == 4

    before_each_step(loop, press)
    try:
        loop.run()
        stopped = False
    except KeyboardInterrupt:
        stopped = True
    done = len(loop.history.losses)
    torch.distributed.barrier()  # the checkpoint is written: who resumes has started anew
    again = begin(WHOLE, folder, folder=run)
    losses = again.run(resume=True).losses
    weights = copied(again.model.state_dict())
    return {"stopped": stopped, "done": done, "losses": losses, "weights": weights}


def hard(folder: Path) -> dict[str, Any]:
    loop = begin(HARD, folder)
    return {"losses": loop.run().losses, "rows": loop.row_losses}


def sick(folder: Path) -> dict[str, Any]:
    """The second process meets a loss that is infinite."""
    loop = begin(still(batch=6), folder)
    sound = loop.cell_loss
    loop.cell_loss = lambda *given: sound(*given) + (0 if is_main() else math.inf)
    try:
        loop.run()
    except UserError as error:
        return {"error": str(error)}
    return {}


def small(folder: Path) -> dict[str, Any]:
    accelerator = make_accelerator(tiny_recipe())
    nan, rank = math.nan, accelerator.process_index
    noted = torch.tensor([[1, nan, 4, nan], [nan, 2, 6, nan]])[rank]
    made: list[int] = []
    norm = torch.nn.BatchNorm1d(1)
    norm.running_mean += 3 + rank
    share_statistics(norm, accelerator)

    def make() -> Path:
        made.append(rank)
        return Path(f"of {rank}")

    rows = {}
    for count in range(6):
        mine = torch.tensor([[float(i), -i] for i in share(count, rank, 2)]).view(-1, 2)
        rows[count] = gathered(mine, count, accelerator)
    return {
        "kind": accelerator.distributed_type.value,
        "backend": torch.distributed.get_backend(),
        "device": accelerator.device.type,
        "world": accelerator.num_processes,
        "merged": merged(noted, accelerator),
        "statistics": norm.running_mean,
        "batches": norm.num_batches_tracked,
        "from_main": from_main(make),
        "made": made,
        "is_main": is_main(),
        "gathered": rows,
    }


DEEDS: tuple[Callable[[Path], dict[str, Any]], ...] = (small, steps, whole, interrupted, hard, sick)


def command_line() -> None:
    """As `polytag`; a file says which process wrote the run folder."""
    notes, write = Path(sys.argv.pop(1)), train.write_run

    def noted(*given: Any) -> dict[str, Any]:
        (notes / f"written by {os.environ['RANK']}").touch()
        return write(*given)

    train.write_run = noted
    cli.main()


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    found = {deed.__name__: deed(folder) for deed in DEEDS}
    rank = torch.distributed.get_rank()
    torch.save(found, folder / f"rank {rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    command_line() if "train" in sys.argv else main()
