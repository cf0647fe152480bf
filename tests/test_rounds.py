"""Fine-tuning in folds: every row judged once by a network that never saw it, one more to keep."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from tests.judged import TUNED, cells_of, no_drawings, no_export, parts_of, rows_of, with_columns
from tests.tiny import one_thread, the_same

import polytag
from polytag import rounds
from polytag.errors import UserError
from polytag.finetune import Task, Tuned
from polytag.loop import Loop
from polytag.model import load_classifier
from polytag.runs import Run
from polytag.table import LabelTable

from .conftest import Answer, World

# After each step a checkpoint is kept, and the best of the epochs is what is judged.
FOLDS = TUNED | {
    "split.holdout": "folds",
    "training.keep": "best",
    "training.monitor": "loss",
    "training.checkpoint_minutes": 1e-9,
    "stages.*.epochs": 2,
}


@pytest.fixture(scope="module", autouse=True)
def quick(run):  # the shared run is made first, with its drawings
    with one_thread(), no_drawings(), no_export():
        yield


@dataclass
class Trainings:
    """A run in folds and, in their order, what was asked of each training and what it left."""

    run: Run
    tasks: list[Task]
    tuned: list[Tuned]


@pytest.fixture(scope="module")
def whole(train: Callable[..., Run], tmp_path_factory) -> Trainings:
    tasks: list[Task] = []
    tuned: list[Tuned] = []
    finetune = rounds.finetune

    def watched(recipe, backbone, task, **options):
        tasks.append(task)
        tuned.append(finetune(recipe, backbone, task, **options))
        return tuned[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds, "finetune", watched)
        run = train(tmp_path_factory.mktemp("whole"), FOLDS, recipe="finetune")
    return Trainings(run, tasks, tuned)


def test_every_row_is_held_out_once_and_the_kept_model_holds_none_out(whole):
    held_out = np.stack([task.parts == "holdout" for task in whole.tasks])
    assert held_out.shape == (4, 60)
    assert held_out[:3].sum(axis=0).tolist() == [1] * 60 and not held_out[3].any()
    for task in whole.tasks:
        assert (task.parts == "choose").sum() > 5 and (task.parts == "train").sum() > 20


def test_no_group_is_divided_in_any_of_the_trainings(whole):
    rows = rows_of(whole.run.path / "splits.csv")
    first, twin = (
        [row["image"] for row in rows].index(image) for image in (rows[0]["image"], "twin.png")
    )
    for task in whole.tasks:
        assert task.groups[first] == task.groups[twin]
        assert task.parts[first] == task.parts[twin]


def test_each_row_is_judged_by_the_network_that_held_it_out(whole):
    cells, parts = cells_of(whole.run), parts_of(whole.run)
    assert cells["image"][:, 0].tolist() == list(parts)
    assert [str(fold) for fold in cells["fold"][:, 0]] == list(parts.values())
    for fold, (task, tuned) in enumerate(zip(whole.tasks[:3], whole.tuned, strict=False)):
        rows = task.parts == "holdout"
        assert (cells["fold"][:, 0] == fold).tolist() == rows.tolist()
        raw = 1 / (1 + np.exp(-tuned.logits[rows].astype(float)))
        assert np.array_equal(cells["probability_raw"][rows], raw)


def test_what_is_kept_is_the_one_more_model(whole):
    kept = load_classifier(whole.run.path).state_dict()
    assert the_same(kept, whole.tuned[3].model.state_dict())
    assert not the_same(kept, whole.tuned[2].model.state_dict())


def test_the_numbers_say_what_they_are_of(whole):
    metrics = whole.run.metrics
    choose = int((whole.tasks[3].parts == "choose").sum())
    assert metrics["folds"] == 3 and metrics["judged"] == metrics["rows"] == 60
    assert metrics["parts"] == {"train": 60 - choose, "choose": choose, "holdout": 0}
    assert "(3 folds)" in metrics["judged_on"]
    assert metrics["deployed"].startswith("one more model")
    assert metrics["note"] is None
    assert metrics["macro"]["ap"]["value"] > 0.5


def test_nothing_but_the_run_is_left(whole):
    folders = [path.name for path in whole.run.path.iterdir() if path.is_dir()]
    assert folders == [] and not list(whole.run.path.rglob("checkpoint*"))


def test_each_fold_has_thresholds_of_its_own(whole):
    cells = cells_of(whole.run)
    for fold in range(3):
        rows = cells["fold"][:, 0] == fold
        assert (np.ptp(cells["threshold"][rows], axis=0) == 0).all()
    assert (np.ptp(cells["threshold"], axis=0) > 0).all()


# ---------------------------------------------------------------------------------- interruptions


class KilledError(Exception):
    """As SIGKILL does: between two lines, with no chance to tidy up."""


@contextmanager
def ended(training: int, step: int, how: type[BaseException]) -> Iterator[None]:
    """End the process before a step of one of the trainings, each from 0."""
    begun: list[Loop] = []
    go = Loop._step

    def watched(self, parts):
        if self not in begun:
            begun.append(self)
        if len(begun) == training + 1 and len(self.history.losses) == step:
            raise how
        return go(self, parts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "_step", watched)
        yield


@pytest.fixture(scope="module")
def stopped(train, world, tmp_path_factory) -> tuple[Path, KeyboardInterrupt]:
    """A run that was interrupted in the second fold: its folder, and what it said."""
    folder = tmp_path_factory.mktemp("stopped")
    with ended(1, 1, KeyboardInterrupt), pytest.raises(KeyboardInterrupt) as told:
        train(folder, FOLDS, recipe="finetune")
    return folder / "finetune-1", told.value


def test_ctrl_c_names_the_command_that_goes_on(stopped):
    run, told = stopped
    assert str(told) == f"go on with: polytag train --resume {run}"
    assert {path.name for path in run.iterdir()} == {"config.toml", "fold-0", "fold-1"}


def test_a_run_that_is_not_finished_says_so(stopped, cli: Callable[..., Answer], world: World):
    told = cli("predict", stopped[0], world.path(world.good[0]))
    assert told.code == 2 and f"polytag train --resume {stopped[0]} finishes it" in told.err


@pytest.fixture(scope="module")
def resumed(stopped, world: World) -> tuple[Run, list[int]]:
    """The same run in the end, killed twice more: in the second fold and in the kept model."""
    run = stopped[0]
    for training, step in ((0, 3), (1, 1)):  # of those that take a step at all
        with ended(training, step, KilledError), pytest.raises(KilledError):
            polytag.resume(run)
    taken: list[int] = []
    go = Loop._step

    def counted(self, parts):
        taken.append(len(self.history.losses))
        return go(self, parts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "_step", counted)
        return polytag.resume(run, world.table(), world.images), taken


def test_interrupted_in_a_fold_a_run_ends_as_if_nobody_had(resumed, whole):
    one, other = resumed[0], whole.run
    for name in ("weights.safetensors", "splits.csv", "oof.parquet", "choosing.parquet"):
        assert (one.path / name).read_bytes() == (other.path / name).read_bytes(), name

    def facts(run: Run) -> dict[str, object]:
        return json.loads((run.path / "metrics.json").read_text()) | {"seconds": 0}

    assert facts(one) == facts(other)
    assert sorted(p.name for p in one.path.iterdir()) == sorted(
        p.name for p in other.path.iterdir()
    )


def test_what_was_trained_is_not_trained_again(resumed, whole):
    steps = len(whole.tuned[3].history.losses)
    assert len(resumed[1]) < 2 * steps


# -------------------------------------------------------------------------- a split of the user's


def test_folds_of_the_users_own_are_kept(train, world: World, tmp_path):
    folds = [str(5 + row % 3) for row in range(len(world.names))]
    folds[world.names.index("twin.png")] = folds[0]
    table = with_columns(world.table(), mine=folds)
    changes = TUNED | {"split.given": "mine", "split.choose": 0.2}
    run = train(tmp_path, changes, table=table, recipe="finetune")
    wanted = {name: str(int(fold) - 5) for name, fold in zip(world.names, folds, strict=True)}
    assert parts_of(run) == {name: wanted[name] for name in world.good}
    assert run.metrics["judged"] == 60 and run.metrics["folds"] == 3


def test_too_few_rows_for_folds_leave_no_folder(train, world: World, tmp_path):
    table: LabelTable = world.table().select(range(4))
    with pytest.raises(UserError, match="too few different pictures"):
        train(tmp_path, FOLDS | {"split.folds": 5}, table=table, recipe="finetune")
    assert not list(tmp_path.iterdir())


def test_folds_without_choosing_rows_are_folds_and_are_decided_as_the_model_is(train, tmp_path):
    changes = TUNED | {"split.holdout": "folds", "split.choose": 0.0, "training.keep": "last"}
    run = train(tmp_path, changes | {"training.monitor": "loss"}, recipe="finetune")
    cells = cells_of(run)
    assert [str(fold) for fold in cells["fold"][:, 0]] == list(parts_of(run).values())
    assert (cells["threshold"] != 0.5).all()
