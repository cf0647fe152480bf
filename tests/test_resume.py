"""Runs that are interrupted, killed in a real process too, and what they end with."""

from __future__ import annotations

import csv
import json
import shutil
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from tests.tiny import (
    EVERYTHING,
    before_each_step,
    one_thread,
    save_pictures,
    the_same,
    tiny_loop,
    tiny_recipe,
)

import polytag
from polytag.checkpoint import NAME, read_checkpoint, write_checkpoint
from polytag.config import to_toml
from polytag.errors import ModelError, UserError
from polytag.history import History
from polytag.trainable import copied

from .conftest import Answer, World, draw_world, polytag_process


@pytest.fixture(scope="module", autouse=True)
def alone():
    with one_thread():
        yield


# ------------------------------------------------------------------ a loop, interrupted anywhere

OFTEN = {"training.checkpoint_minutes": 1e-9}  # after every step
SGD = {
    "training.optimiser": "sgd",
    "training.schedule": "one_cycle",
    "sampler.kind": "rare",
    "augment.cutmix": 0.5,
    "loss.pos_weight": "balanced",
    "stages.*.epochs": 4,
}
RECIPES = {"everything": EVERYTHING, "sgd, one cycle": SGD}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """22 pictures to train on, 3 steps an epoch; 9 to choose by."""
    folder = tmp_path_factory.mktemp("parts")
    return save_pictures(folder / "train", 22), save_pictures(folder / "choose", 9, seed=1)


def begin(parts, kind: str, folder: Path | None = None, **changes: object):
    recipe = tiny_recipe(RECIPES[kind] | OFTEN | changes)
    return tiny_loop(recipe, *parts, folder=folder, fingerprint="these")


def facts(loop) -> tuple[Any, ...]:
    """All that two trainings have to agree in, but for the weights and the time they took."""
    history: History = loop.history
    epochs = [repr(replace(epoch, seconds=0)) for epoch in history.epochs]
    best = history.best and history.epochs.index(history.best)
    return history.losses, history.rates, history.stages, epochs, best


@pytest.fixture(scope="module")
def wholes(parts):
    """Of each recipe, what a training ends with that nobody interrupts."""
    ends = {}
    for kind in RECIPES:
        loop = begin(parts, kind)
        loop.run()
        ends[kind] = facts(loop), copied(loop.model.state_dict())
    return ends


class KilledError(Exception):
    """As SIGKILL does: between two lines, with no chance to tidy up."""


def die_at(loop, step: int) -> None:
    """Stop when so many steps are done and the next one is about to move the weights."""
    count = iter(range(1000))

    def die() -> None:
        if next(count) == step:
            raise KilledError

    before_each_step(loop, die)


def test_the_recipe_of_these_tests_uses_what_it_names(wholes):
    (_, rates, stages, epochs, best), _ = wholes["everything"]
    assert len(set(rates)) > 2  # two stages, and one of them lowered
    assert 2 < len(epochs) < 8 and len(stages) == 3 * len(epochs)  # stopped early
    assert best is not None


WHERE = [("everything", step) for step in (2, 3, 6, 10)]  # 3: an epoch is done, 6: a stage


@pytest.mark.parametrize("kind, step", [*WHERE, ("sgd, one cycle", 7)])
def test_a_training_goes_on_bit_for_bit(parts, wholes, tmp_path, kind, step):
    loop = begin(parts, kind, tmp_path)
    die_at(loop, step)
    with pytest.raises(KilledError):
        loop.run()
    again = begin(parts, kind, tmp_path)
    again.run(resume=True)
    assert facts(again) == wholes[kind][0]
    assert the_same(again.model.state_dict(), wholes[kind][1])


def test_what_was_not_saved_is_done_again(parts, wholes, tmp_path):
    """Checkpoints after epochs only: four steps done, one of them for nothing."""
    changes = {"training.checkpoint_minutes": 5.0}
    loop = begin(parts, "sgd, one cycle", tmp_path, **changes)
    die_at(loop, 4)
    with pytest.raises(KilledError):
        loop.run()
    assert len(read_checkpoint(tmp_path, loop.made_of)[0]["history"]["losses"]) == 3
    again = begin(parts, "sgd, one cycle", tmp_path, **changes)
    again.run(resume=True)
    assert facts(again) == wholes["sgd, one cycle"][0]
    assert the_same(again.model.state_dict(), wholes["sgd, one cycle"][1])


def test_when_all_is_trained_only_the_end_is_done_again(parts, wholes, tmp_path):
    begin(parts, "everything", tmp_path).run()
    again = begin(parts, "everything", tmp_path)
    die_at(again, 0)  # no step is taken
    again.run(resume=True)
    assert facts(again) == wholes["everything"][0]
    assert the_same(again.model.state_dict(), wholes["everything"][1])


@pytest.fixture(scope="module")
def stopped(parts, tmp_path_factory) -> Path:
    """A folder with the checkpoint of a loop that did two steps. Nobody may change it."""
    folder = tmp_path_factory.mktemp("stopped")
    loop = begin(parts, "sgd, one cycle", folder)
    die_at(loop, 2)
    with pytest.raises(KilledError):
        loop.run()
    return folder


def test_other_data_are_refused(parts, stopped):
    loop = begin(parts, "sgd, one cycle", stopped)
    loop.made_of["data"] = "others"
    with pytest.raises(UserError, match=r"the data has changed since this run began; got other"):
        loop.run(resume=True)


def test_another_recipe_is_refused_unless_only_its_name_differs(parts, stopped, tmp_path):
    loop = begin(parts, "sgd, one cycle", stopped, **{"stages.*.lr": 5e-4})
    with pytest.raises(UserError, match=r"the recipe has changed .* got another config.toml"):
        loop.run(resume=True)
    shutil.copy(stopped / NAME, tmp_path)
    begin(parts, "sgd, one cycle", tmp_path, title="another").run(resume=True)


def test_another_number_of_threads_is_said(parts, stopped, tmp_path, caplog):
    shutil.copy(stopped / NAME, tmp_path)
    loop = begin(parts, "sgd, one cycle", tmp_path)
    die_at(loop, 0)
    torch.set_num_threads(2)
    try:
        with pytest.raises(KilledError):
            loop.run(resume=True)
    finally:
        torch.set_num_threads(1)
    assert "2 threads instead of 1: the result will not be the same to the last bit" in caplog.text


# -------------------------------------------------------------------------------- the file itself


def test_a_checkpoint_is_safetensors_with_json_and_no_pickle(stopped):
    with safe_open(stopped / NAME, framework="np") as file:
        facts = json.loads(file.metadata()["polytag"])
        groups = {key.partition("/")[0] for key in file.keys()}  # noqa: SIM118
    assert facts["at"]["step"] == 2 and facts["threads"] == 1
    assert groups == {"model", "optimiser", "history", "rows"}


def test_numbers_that_are_none_survive(tmp_path):
    facts = {"score": float("inf"), "loss": float("nan"), "sum": 0.1 + 0.2}
    write_checkpoint(tmp_path, {"a": {"b": torch.arange(3)}, "empty": {}}, facts, {})
    states, again = read_checkpoint(tmp_path, {})
    assert list(states) == ["a"] and states["a"]["b"].tolist() == [0, 1, 2]
    assert (again["score"], again["sum"]) == (facts["score"], facts["sum"])
    assert np.isnan(again["loss"])


def damaged(how: str, whole: bytes) -> bytes:
    return {
        "cut": whole[: len(whole) // 2],
        "empty": b"",
        "text": b"no checkpoint at all",
        "header": whole[:8] + b"x" * 50 + whole[58:],
    }[how]


@pytest.mark.parametrize("how", ["cut", "empty", "text", "header"])
def test_a_damaged_checkpoint_is_named(stopped, tmp_path, how):
    (tmp_path / NAME).write_bytes(damaged(how, (stopped / NAME).read_bytes()))
    with pytest.raises(ModelError, match=r"checkpoint.safetensors: the checkpoint cannot be read"):
        read_checkpoint(tmp_path, {})


def test_a_checkpoint_of_another_format_is_refused(tmp_path):
    write_checkpoint(tmp_path, {"a": {"b": torch.zeros(1)}}, {}, {})
    path = tmp_path / NAME
    path.write_bytes(path.read_bytes().replace(b'\\"format\\": 1', b'\\"format\\": 2'))
    with pytest.raises(ModelError, match=r"of another polytag; got format 2, expected format 1"):
        read_checkpoint(tmp_path, {})


def test_a_checkpoint_that_fails_leaves_the_one_before(stopped, tmp_path, monkeypatch):
    shutil.copy(stopped / NAME, tmp_path)
    before = (tmp_path / NAME).read_bytes()

    def fail(path: Path, data: bytes) -> None:
        with path.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(UserError, match="No space left on device"):
        write_checkpoint(tmp_path, {"a": {"b": torch.zeros(9)}}, {}, {})
    assert (tmp_path / NAME).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


# ----------------------------------------------------------------- a real process, really killed

# How often a checkpoint has been renamed to its name, and what happens then.
COUNTED = """
import os, signal
from pathlib import Path
count, rename, write = 0, Path.replace, Path.write_bytes
def die():
    os.kill(os.getpid(), signal.SIGKILL)
"""
AFTER = (
    COUNTED
    + """
def replace(self, target):
    global count
    rename(self, target)
    if Path(target).name == "checkpoint.safetensors":
        count += 1
        if count == {count}:
            {what}
Path.replace = replace
"""
)
HALF_WRITTEN = (
    COUNTED
    + """
def write_bytes(self, data):
    global count
    count += self.name.startswith(".checkpoint.")
    if count == {count}:
        write(self, data[:len(data) // 2])
        die()
    write(self, data)
Path.write_bytes = write_bytes
"""
)
AT_THE_WEIGHTS = (
    COUNTED
    + """
def replace(self, target):
    if Path(target).name == "weights.safetensors":
        die()
    rename(self, target)
Path.replace = replace
"""
)
ONE_THREAD = {"env": {"OMP_NUM_THREADS": "1"}, "timeout": 300}


@dataclass
class Story:
    """A run that was interrupted again and again, and the same run in peace.

    Attributes:
        world: Its data.
        whole: The run in peace.
        run: The run that was interrupted.
        early: A copy of it as it was after the first interruption.
        answers: What each process said.
        places: Stage, epoch and step where each process left it.
    """

    world: World
    whole: Path
    run: Path
    early: Path
    answers: list[Answer]
    places: list[tuple[int, int, int]]


def place(run: Path) -> tuple[int, int, int]:
    with safe_open(run / NAME, framework="np") as file:
        at = json.loads(file.metadata()["polytag"])["at"]
    return at["stage"], at["epoch"], at["step"]


@pytest.fixture(scope="module")
def story(tmp_path_factory) -> Story:
    folder = tmp_path_factory.mktemp("story")
    world = draw_world(folder / "world", pictures=40)
    recipe = tiny_recipe(EVERYTHING | OFTEN | {"training.batch": 6, "split.holdout": 0.25})
    (folder / "recipe.toml").write_text(to_toml(recipe), encoding="utf-8")
    words = ["train", world.labels, "--images", world.images, "--recipe", folder / "recipe.toml"]
    words += ["--runs", folder / "runs", "--name"]
    told = polytag_process(*words, "whole", **ONE_THREAD)
    assert told.code == 0, told.err
    run, early = folder / "runs" / "killed", folder / "runs" / "early"
    # The start is a checkpoint, so is each of an epoch's two steps, and the epoch's end.
    ctrl_c = AFTER.format(count=2, what="os.kill(os.getpid(), signal.SIGINT)")
    answers = [polytag_process(*words, "killed", code=ctrl_c, **ONE_THREAD)]
    places = [place(run)]
    shutil.copytree(run, early)
    for code in (
        AFTER.format(count=4, what="die()"),  # that epoch's end, two steps, the stage's end
        HALF_WRITTEN.format(count=2),  # the second step of the next one
        AT_THE_WEIGHTS,  # all is trained, and the run folder half filled
    ):
        answers.append(polytag_process("train", "--resume", run, code=code, **ONE_THREAD))
        places.append(place(run))
    answers.append(polytag_process("train", "--resume", run, **ONE_THREAD))
    return Story(world, folder / "runs" / "whole", run, early, answers, places)


def test_each_process_was_killed_where_it_was_meant_to_be(story):
    killed = -signal.SIGKILL
    assert [told.code for told in story.answers] == [130, *[killed] * 3, 0], story.answers[-1].err
    assert story.places[:3] == [(0, 0, 2), (0, 2, 0), (1, 0, 1)]
    stage, epoch, step = story.places[3]
    assert stage == 1 and epoch > 0 and step == 0


def test_killed_again_and_again_a_run_ends_with_the_same_weights_bit_for_bit(story):
    name = "weights.safetensors"
    assert (story.run / name).read_bytes() == (story.whole / name).read_bytes()


def test_and_with_the_same_numbers(story):
    def history(run: Path) -> list[dict[str, str]]:
        with (run / "history.csv").open(newline="") as file:
            return [row | {"seconds": ""} for row in csv.DictReader(file)]

    def metrics(run: Path) -> dict[str, Any]:
        return json.loads((run / "metrics.json").read_text()) | {"seconds": 0}

    assert history(story.run) == history(story.whole)
    assert metrics(story.run) == metrics(story.whole)
    names = ("splits.csv", "skipped.csv", "oof.parquet", "choosing.parquet", "labels.parquet")
    for same in names:
        assert (story.run / same).read_bytes() == (story.whole / same).read_bytes(), same


def test_and_with_the_same_model_file(story):
    pictures = [story.world.path(name) for name in story.world.good[:7]]
    killed, whole = (polytag.load(run).predict(pictures) for run in (story.run, story.whole))
    assert np.array_equal(killed.probabilities, whole.probabilities)


def test_nothing_is_left_of_the_processes_that_were_killed(story):
    killed, whole = (sorted(p.name for p in run.iterdir()) for run in (story.run, story.whole))
    assert killed == whole and NAME not in killed


def test_ctrl_c_says_last_how_to_go_on(story):
    told = story.answers[0]
    assert told.err.splitlines()[-1] == (
        f"interrupted; go on with: polytag train --resume {story.run}"
    )
    assert "stopping after this step" in told.err and told.out == ""
    assert "Traceback" not in told.err


def test_a_run_that_is_not_finished_says_how_to_finish_it(story, cli):
    told = cli("predict", story.early, story.world.path(story.world.good[0]))
    assert told.code == 2
    assert f"polytag train --resume {story.early} finishes it" in told.err


def test_a_finished_run_cannot_be_resumed(story, cli):
    told = cli("train", "--resume", story.whole)
    assert (told.code, told.out) == (2, "")
    assert told.err == f"error: {story.whole}: nothing to go on with; got a finished run\n"


def test_resume_takes_no_other_flags(story, cli):
    for words in (["--epochs", "3"], ["--recipe", "finetune"], ["--name", "other"]):
        told = cli("train", *words, "--resume", story.early)
        assert told.code == 2 and "--resume goes on with the run's own settings" in told.err


def test_data_that_moved_may_be_named_but_not_changed(story, cli, tmp_path):
    labels = tmp_path / "moved.csv"
    labels.write_text(story.world.labels.read_text().replace(",0,", ",1,", 1))
    told = cli("train", labels, "--images", story.world.images, "--resume", story.early)
    assert told.code == 2 and "the data has changed since this run began" in told.err


@pytest.mark.parametrize("kind", ["label", "bytes", "missing"])
def test_changed_data_are_refused_in_one_line(story, cli, kind):
    """The picture that changes is one that was trained on, and comes back."""
    world = story.world
    path = world.labels if kind == "label" else world.path(world.good[5])
    before = path.read_bytes()
    if kind == "label":
        text = before.decode()
        path.write_text(text.replace(",0,", ",1,", 1))
    elif kind == "bytes":
        with Image.open(path) as picture:
            brighter = picture.point(lambda value: min(value + 1, 255))
        brighter.save(path)
    else:
        path.unlink()
    try:
        told = cli("train", "--resume", story.early)
    finally:
        path.write_bytes(before)
    assert (told.code, told.out) == (2, "")
    last = told.err.splitlines()[-1]
    assert last.startswith(f"error: {story.early}: the data has changed since this run began;")
    assert (story.early / NAME).is_file()


def test_a_damaged_checkpoint_is_refused_in_one_line(story, cli, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(story.early, run)
    whole = (run / NAME).read_bytes()
    (run / NAME).write_bytes(whole[: len(whole) // 2])
    told = cli("train", "--resume", run)
    assert (told.code, told.out) == (2, "")
    damage = f"error: {run / NAME}: the checkpoint cannot be read"
    assert told.err.splitlines()[-1].startswith(damage)
    assert (run / NAME).is_file()


def test_a_folder_without_a_checkpoint_cannot_be_resumed(cli, tmp_path):
    told = cli("train", "--resume", tmp_path)
    assert told.code == 2 and "got no checkpoint" in told.err
