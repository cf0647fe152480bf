"""The training loop: stages of epochs of steps, on one processor, a GPU, or several processes.

It can be trusted in three ways. What is drawn by chance (order, augmentation, dropout) follows
from (seed, stage, epoch, position) alone, so a run that was interrupted and goes on from its
checkpoint ends with the same weights, bit for bit on one CPU with the same number of threads. The
loss of a step is divided by the known cells of all its parts together, accumulated batches and
processes alike, so that holes spread unevenly weigh nothing. And whatever goes wrong, memory or
arithmetic, is said with what to do.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import Tensor, nn

from polytag.checkpoint import States, read_checkpoint, write_checkpoint
from polytag.config import Recipe
from polytag.feed import NETWORK, Feed, Part, Pictures, derived
from polytag.guards import Interrupt, LateError, explained, not_finite
from polytag.history import EPOCH_HEADER, Epoch, History, Position, validate
from polytag.judging import Judge
from polytag.losses import average
from polytag.model import Classifier
from polytag.processes import Shell, make_accelerator, merged, share_statistics
from polytag.progress import progress
from polytag.runs import write_rows
from polytag.schedules import SCHEDULES, Patience, Plateau, half_life_decay
from polytag.trainable import (
    RunningMean,
    all_finite,
    copied,
    freeze,
    load_optimiser,
    make_optimiser,
    optimiser_state,
    set_modes,
)
from polytag.trunk import Reuse, Split

log = logging.getLogger("polytag")
Floats = NDArray[np.float32]
CellLoss = Callable[[Tensor, Tensor, Tensor], Tensor]  # logits, targets, known -> cells (B, K)


class Loop:
    """Trains a classifier as its recipe says.

    Args:
        model: Backbone and head, on the CPU.
        recipe: As resolved.
        train: What is trained on.
        choose: What stopping and keeping go by; None: nothing does.
        cell_loss: Logits, targets and known (B, K) to the loss of every cell, 0 in holes.
        attributes: K names.
        folder: Where checkpoints are kept; None: nowhere.
        fingerprint: Of the data; a checkpoint made of other data is refused.

    After `run` the model holds the weights that were kept.
    """

    def __init__(
        self,
        model: Classifier,
        recipe: Recipe,
        train: Pictures,
        choose: Pictures | None,
        cell_loss: CellLoss,
        attributes: tuple[str, ...],
        folder: Path | None = None,
        fingerprint: str = "",
    ) -> None:
        self.recipe, self.config = recipe, recipe.training
        self.cell_loss, self.choose = cell_loss, choose
        self.folder = folder
        # What may differ when a run goes on: where it is, and what only names it.
        elsewhere = {"data", "device", "title", "description"}
        self.made_of = {"data": fingerprint, "recipe": recipe.model_dump_json(exclude=elsewhere)}
        self.accelerator = make_accelerator(recipe)
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        self.device = self.accelerator.device
        self.model = model.to(self.device)
        if self.device.type == "cuda":  # on a CPU it makes training no faster
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.feed = Feed(train, recipe, model.backbone.spec, self.rank, self.world)
        self.reuse = Reuse(self.model, recipe, train, self.world)
        self.judge = Judge(self.model, self.accelerator, self.config.batch)
        self.trained: nn.Module = self.model
        self.split: Split | None = None
        self.history = History(attributes)
        self.at = Position()
        self.best_score = math.inf
        self.best: dict[str, Tensor] | None = None
        # For mining hard rows, each one's loss when it was last trained on: as this epoch's order
        # was drawn by, and in this epoch so far.
        self.row_losses = np.full(len(train), np.nan, dtype=np.float32)
        self.fresh_losses = self.row_losses.copy()
        self.saved = time.monotonic()
        self.ctrl_c, self.stopping, self.due = Interrupt(), False, False
        self.deadline, self.late = math.inf, False

    # ------------------------------------------------------------------------------ the story

    def run(self, *, resume: bool = False, deadline: float = math.inf) -> History:
        """Train, from the start or from the checkpoint, and return what was recorded.

        Args:
            resume: Go on from the checkpoint.
            deadline: When `time.monotonic` passes it, the epoch ends where it stands, is judged,
                and nothing more is trained.

        Raises:
            UserError: Memory ran out, the loss is not a number any more, or the checkpoint to
                resume was made of other data or by another recipe.
            ModelError: The checkpoint to resume cannot be read.
            KeyboardInterrupt: Ctrl-C; a checkpoint was saved.
        """
        self.deadline = deadline
        devices = [self.device] if self.device.type == "cuda" else []
        own_chance = torch.random.fork_rng(devices=devices)  # the caller's stays as it was
        with explained(self.recipe, self.device), self.ctrl_c.held(), own_chance:
            checkpoint = read_checkpoint(self.folder or Path(), self.made_of) if resume else None
            try:
                self._train(checkpoint)
            except LateError:
                log.info("%s: not begun, the time is up", self.stage.name)
                if not self.history.epochs:
                    self._judge(math.nan, time.monotonic(), number=0)
        return self.history

    def _train(self, checkpoint: tuple[States, dict[str, Any]] | None) -> None:
        if checkpoint:
            self.at = Position(**checkpoint[1]["at"])
        else:
            if self.choose and self.recipe.head.init == "probe":
                self._judge(math.nan, time.monotonic(), number=0)  # training must beat it
            self._begin_stage()
            self.save()
        for stage in range(self.at.stage, len(self.recipe.stages)):
            if checkpoint:
                self._restore(*checkpoint)
                checkpoint = None
            elif stage > self.at.stage:
                self.at = Position(stage)
                self._begin_stage()
            while self.at.epoch < self.stage.epochs and not self.late:
                self._train_epoch()
            self._end_stage()
            if self.late:
                break

    @property
    def stage(self) -> Any:
        """The stage that is trained."""
        return self.recipe.stages[self.at.stage]

    def _begin_stage(self) -> None:
        """Freeze, and make what moves the rest: optimiser, running mean, schedules."""
        freeze(self.model, self.stage.frozen, depthwise=self.config.freeze_depthwise)
        count = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        log.info("%s: %s weights trained", self.stage.name, f"{count:,}")
        self.optimiser = make_optimiser(self.model, self.stage, self.config)
        self.accelerator.free_memory()  # of the stage before
        self.trained, self.feed.kept = self.model, None
        self.split = self.reuse.split(self.at.stage, self._require_time)
        if self.split:
            self.trained = self.reuse.trained(self.split)
            self.feed.kept = partial(self.reuse.take, self.split)
        # In a shell: accelerate changes what it prepares, and the model is judged as it is kept.
        shell = Shell(self.trained)
        self.prepared, self.stepper = self.accelerator.prepare(shell, self.optimiser)
        self.steps = self.feed.steps_an_epoch
        self.mean: RunningMean | None = None
        if self.config.ema:
            half_life = self.config.ema * self.steps * self.stage.epochs
            self.mean = RunningMean(self.model.state_dict(), half_life_decay(half_life))
        self.plateau = Plateau(self.config.plateau_factor, self.config.plateau_patience)
        self.patience = Patience(self.config.early_stop)

    def _train_epoch(self) -> None:
        start = time.monotonic()
        set_modes(self.trained, freeze_norm=self.config.freeze_norm)
        title = f"{self.stage.name} {self.at.epoch + 1}/{self.stage.epochs}"
        steps = self.feed.steps(self.at.stage, self.at.epoch, self.at.step, self.row_losses)
        # Closed whatever happens: its threads end with it.
        with closing(steps), progress(title, self.steps, "steps", passing=True) as advance:
            advance(self.at.step)
            for parts in steps:
                loss = self._step(parts)
                self.history.losses.append(loss)
                self.history.stages.append(self.stage.name)
                self.at.step += 1
                advance(1)
                self._pause()
                if self.late:
                    break
        fresh = merged(torch.from_numpy(self.fresh_losses), self.accelerator).numpy()
        self.row_losses = np.where(np.isnan(fresh), self.row_losses, fresh)
        self.fresh_losses[:] = np.nan
        mean_loss = self.at.loss_sum / max(self.at.cells, 1)
        self.at = Position(self.at.stage, self.at.epoch + 1)
        score = self._judge(mean_loss, start, number=self.at.epoch)
        if self.config.schedule == "plateau":
            self.plateau.update(score)
        if self.patience.update(score):
            log.info("%s: stopped, no better for %d epochs", title, self.config.early_stop)
            self.at.epoch = self.stage.epochs
        self.save()

    def _end_stage(self) -> None:
        """Go on with the weights that are kept: the best epoch's, the mean, or the last."""
        kept = self.best if self.config.keep == "best" and self.best else self._judged_state()
        self.model.load_state_dict(kept)

    # ------------------------------------------------------------------------------- one step

    def _step(self, parts: list[Part]) -> float:
        """Take one step over several parts and return its loss, that of all processes."""
        chance = derived(self.recipe.seed, NETWORK, len(self.history.losses), self.rank)
        torch.manual_seed(int(chance.integers(2**63)))  # of dropout
        rate = self._set_rate()
        own = torch.stack([part.known.sum(0) for part in parts]).sum(0)
        counts = self.accelerator.reduce(own.to(self.device), "sum")
        shares = [self._backward(part, counts, last=part is parts[-1]) for part in parts]
        loss = self._agree(torch.stack(shares).sum())
        self._require_finite(loss, shares, parts)
        known = int(counts.sum())
        self.at.loss_sum, self.at.cells = self.at.loss_sum + known * loss, self.at.cells + known
        if self.config.clip:
            self.accelerator.clip_grad_norm_(self.prepared.parameters(), self.config.clip)
        self.stepper.step()
        self.stepper.zero_grad()
        share_statistics(self.model, self.accelerator)
        if self.mean:
            self.mean.update(self.model.state_dict())
        self.history.rates.append(rate)
        return loss

    def _agree(self, loss: Tensor) -> float:
        """Return the loss of all processes; see whether one of them has to stop or to save."""
        due = time.monotonic() - self.saved > 60 * self.config.checkpoint_minutes
        late = time.monotonic() > self.deadline
        asked = loss.new_tensor([loss, self.ctrl_c.pressed, due, late])
        agreed, stop, save, over = self.accelerator.reduce(asked, "sum").tolist()
        self.stopping, self.due, self.late = stop > 0, save > 0, over > 0
        return float(agreed)

    def _backward(self, part: Part, counts: Tensor, *, last: bool) -> Tensor:
        """Add a part's gradient and return its share of the step's loss.

        Processes exchange their gradients with the step's last part.
        """
        targets, known, *given = (
            tensor.to(self.device, non_blocking=True)
            for tensor in (part.targets, part.known, *part.given)
        )
        with nullcontext() if last else self.accelerator.no_sync(self.prepared):
            cells = self.cell_loss(self.prepared(*given).float(), targets, known)
            loss = average(cells, known, self.recipe.loss.per, counts)
            # Gradients are averaged over processes; the loss is a sum over them.
            self.accelerator.backward(loss * self.world)
        if self.recipe.sampler.hard:
            means = cells.detach().sum(1) / known.sum(1).clamp(min=1)
            self.fresh_losses[part.rows] = means[: len(part.rows)].float().cpu().numpy()
        return loss.detach()

    def _set_rate(self) -> float:
        """Set this step's learning rates and return the head's."""
        done = self.at.epoch * self.steps + self.at.step
        progress = done / (self.steps * self.stage.epochs)
        factor = SCHEDULES[self.config.schedule](progress, self.config.warmup) * self.plateau.scale
        for group in self.optimiser.param_groups:
            group["lr"] = group["base"] * factor
        return float(self.optimiser.param_groups[0]["lr"])

    def _require_finite(self, loss: float, shares: list[Tensor], parts: list[Part]) -> None:
        gradients = (p.grad for p in self.model.parameters() if p.grad is not None)
        # With fp16 a gradient may overflow now and then; its scaler leaves that step out.
        scaled = self.accelerator.mixed_precision == "fp16"
        if math.isfinite(loss) and (scaled or all_finite(gradients)):
            return
        paths, named = self.feed.pictures.paths, zip(parts, shares, strict=True)
        sick = [paths[row].name for part, own in named if not own.isfinite() for row in part.rows]
        every = [paths[row].name for part in parts for row in part.rows]
        at = f"{self.stage.name}, epoch {self.at.epoch + 1}, step {self.at.step + 1}"
        raise not_finite(loss, at, gather_object(sick) or gather_object(every))

    # ----------------------------------------------------------------------------- judging

    def predict(self, pictures: Pictures, state: dict[str, Tensor] | None = None) -> Floats:
        """Return logits float32 (N, K) by the whole network, or with other weights than its own."""
        return self.judge.predict(pictures, state or self.model.state_dict())

    def _judged_state(self) -> dict[str, Tensor]:
        return self.mean.state if self.mean else self.model.state_dict()

    def _judge(self, training_loss: float, start: float, *, number: int) -> float:
        """Record an epoch, keep it if it is the best, and return its score; lower is better."""
        validation, score = None, math.nan
        if self.choose:
            state = self._judged_state() if number else self.model.state_dict()
            logits = self.judge.predict(self.choose, state, self.split)
            validation = validate(self.history.attributes, logits, self.choose.values)
            # Without both classes of any attribute there is no macro AP, in no epoch.
            by_loss = self.config.monitor == "loss" or math.isnan(validation.macro_ap)
            score = validation.loss if by_loss else -validation.macro_ap
        seconds = time.monotonic() - start
        iteration = len(self.history.losses)
        epoch = Epoch(self.stage.name, number, iteration, training_loss, seconds, validation)
        self.history.epochs.append(epoch)
        if self.choose and self.config.keep == "best" and score < self.best_score:
            self.best_score, self.history.best = score, epoch
            self.best = copied(state)
        if len(self.history.epochs) == 1:
            log.info("%s", EPOCH_HEADER)
        log.info("%s", epoch.line(self.stage.epochs))
        return score

    # ----------------------------------------------------------------------------- checkpoints

    def save(self) -> None:
        """Write a checkpoint and history.csv, where there is a folder for them.

        Every process has to call it.
        """
        self.saved = time.monotonic()
        fresh = merged(torch.from_numpy(self.fresh_losses), self.accelerator)
        if self.folder is None or not self.accelerator.is_main_process:
            return
        arrays, history = self.history.to_state()
        scaler = self.accelerator.scaler
        write_checkpoint(
            self.folder,
            {
                "model": self.model.state_dict(),
                "mean": self.mean.state if self.mean else {},
                "best": self.best or {},
                "optimiser": optimiser_state(self.optimiser),
                "history": {name: torch.from_numpy(array) for name, array in arrays.items()},
                "rows": {"losses": torch.from_numpy(self.row_losses), "fresh": fresh},
            },
            {
                "at": vars(self.at),
                "best_score": self.best_score,
                "history": history,
                "plateau": vars(self.plateau),
                "patience": vars(self.patience),
                "scaler": scaler.state_dict() if scaler else None,
            },
            self.made_of,
        )
        write_rows(self.folder / "history.csv", self.history.header(), self.history.rows())

    def _restore(self, states: States, facts: dict[str, Any]) -> None:
        self._begin_stage()
        self.model.load_state_dict(states["model"])
        load_optimiser(self.optimiser, states.get("optimiser", {}))
        if self.mean:
            self.mean.state = {k: v.to(self.device) for k, v in states["mean"].items()}
        if "best" in states:
            self.best = {k: v.to(self.device) for k, v in states["best"].items()}
        self.best_score = facts["best_score"]
        arrays = {name: tensor.numpy() for name, tensor in states["history"].items()}
        self.history = History.from_state(self.history.attributes, arrays, facts["history"])
        self.row_losses, self.fresh_losses = (
            states["rows"][name].numpy() for name in ("losses", "fresh")
        )
        self.plateau = Plateau(**facts["plateau"])
        self.patience = Patience(**facts["patience"])
        if self.accelerator.scaler and facts["scaler"]:
            self.accelerator.scaler.load_state_dict(facts["scaler"])
        log.info("%s", EPOCH_HEADER)

    def _require_time(self) -> None:
        if self.ctrl_c.pressed:
            raise KeyboardInterrupt
        if time.monotonic() > self.deadline:
            raise LateError

    def _pause(self) -> None:
        """Between two steps: save if it is time to, end if somebody pressed Ctrl-C."""
        if self.due or self.stopping:
            self.save()
        if self.stopping:
            raise KeyboardInterrupt
