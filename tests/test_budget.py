"""A time budget: what is planned follows from what was measured, and is kept to."""

from __future__ import annotations

import logging
import math
import time
from typing import Any

import numpy as np
import pytest
from tests.judged import QUICK, TUNED, no_drawings
from tests.tiny import one_thread

from polytag import budget
from polytag.budget import Plan, chosen_rows, make_plan, parse_budget, probe_of, spoken
from polytag.config import FeaturesConfig, Recipe, load_recipe
from polytag.errors import RecipeError, UserError
from polytag.features import make_extractor
from polytag.frozen import FrozenBackbone, freeze_backbone
from polytag.runs import Run
from polytag.table import LabelTable
from polytag.trunk.trial import Costs

from .conftest import TINY, Answer, World


@pytest.fixture(scope="module", autouse=True)
def quick(run):  # the shared run is made first, with its drawings
    with one_thread(), no_drawings():
        yield


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("5m", 300), (" 1H30M ", 5400), ("2h", 7200), ("45", 45), ("1m30s", 90)],
)
def test_a_budget_is_read_as_people_write_it(text, seconds):
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "0m", "soon", "5 m", "-5m", "1.5h", "m", "5m1h", "5x"])
def test_what_is_no_budget_is_refused(text):
    with pytest.raises(RecipeError, match=r"budget: not a time budget.*such as 90s"):
        parse_budget(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (60, "1 min"),
        (61, "1 min 1 s"),
        (3600, "1 h"),
        (7260, "2 h 1 min"),
    ],
)
def test_a_time_is_written_as_people_say_it(seconds, text):
    assert spoken(seconds) == text


# ------------------------------------------------------------------------------ what is planned


class Machine:
    """A machine whose speed is given instead of measured."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.picture, self.epoch, self.slow, self.answers = 0.01, 10.0, 1.0, 0.0
        self.clock, self.missing = 1000.0, 0
        patch.setattr(budget, "seconds_a_picture", lambda sample, extractor: self.picture)
        patch.setattr(budget, "count_missing", lambda paths, extractor: self.missing or len(paths))
        patch.setattr(budget, "_slowness", lambda: self.slow)
        patch.setattr(budget, "_cost_of_training", self.cost)
        patch.setattr(budget.time, "monotonic", lambda: self.clock)

    def cost(self, *_: object) -> Any:
        return lambda stages: self.epoch * sum(stage.epochs for stage in stages), self.answers


@pytest.fixture
def machine(monkeypatch) -> Machine:
    return Machine(monkeypatch)


@pytest.fixture(scope="module")
def frozen(cache) -> FrozenBackbone:
    recipe = load_recipe("probe", TINY)
    return freeze_backbone(recipe.backbone, recipe.preprocess, recipe.features)


@pytest.fixture
def plan(frozen, machine, world: World) -> Any:
    """Plans for a table of so many pictures."""

    def make(text: str, pictures: int = 1000, recipe: str = "finetune", **changes: object) -> Plan:
        chosen = load_recipe(recipe, TINY | {"budget": text} | changes)
        table = LabelTable(
            tuple(f"{i}.png" for i in range(pictures)),
            ("a", "b"),
            np.tile(np.array([[0, 1], [1, 0]], np.float32), (pictures // 2, 1)),
        )
        extractor = make_extractor(frozen, FeaturesConfig(engine="onnxruntime"), "cpu")
        paths = [world.path(world.good[0])] * pictures
        return make_plan(chosen, frozen, extractor, table, paths, started=machine.clock)

    return make


def epochs(recipe: Recipe) -> list[int]:
    return [stage.epochs for stage in recipe.stages]


def test_with_time_enough_a_fine_tuning_has_twice_its_epochs_and_no_more(plan):
    own = epochs(load_recipe("finetune"))
    assert epochs(plan("10h").recipe) == [2 * each for each in own]


def test_the_less_time_the_fewer_epochs_until_the_probe_is_left(plan, machine):
    machine.epoch = 20.0
    plans = [plan(text) for text in ("15m", "8m", "5m", "3m", "2m", "1m")]
    counts = [sum(epochs(each.recipe)) for each in plans if each.recipe.method == "finetune"]
    assert counts == sorted(counts, reverse=True) and len(set(counts)) == len(counts) >= 3
    assert plans[-1].recipe.method == "probe" and plans[-1].recipe.features.flip
    for each in plans:
        assert sum(each.seconds.values()) <= each.budget
        assert each.rows == 1000


def test_what_was_spent_before_counts(plan, machine):
    whole = sum(epochs(plan("5m").recipe))
    machine.epoch = 20.0
    slower = sum(epochs(plan("5m").recipe))
    assert slower < whole


def test_training_ends_before_the_numbers_have_to_begin(plan, machine):
    made = plan("5m")
    assert made.seconds["training"] > 0
    assert made.deadline < machine.clock + 300 - made.seconds["numbers"]
    assert made.deadline > machine.clock + made.seconds["features"] + made.seconds["training"]


def test_time_is_kept_for_the_predictions_at_the_end(plan, machine):
    before = plan("5m")
    machine.answers = 30.0
    made = plan("5m")
    assert made.seconds["predictions"] == 30
    assert made.deadline == pytest.approx(before.deadline - 30 / 0.9)
    assert sum(epochs(made.recipe)) < sum(epochs(before.recipe))


def test_folds_cost_a_training_each_and_one_more_with_nothing_held_out(
    frozen, world: World, monkeypatch
):
    costs = Costs(decode=0.0, whole=1.0, trunk=math.inf, upper=math.inf, forward=0.5)
    monkeypatch.setattr("polytag.trunk.trial.measured", lambda *_: costs)
    changes = {"split.holdout": "folds", "split.folds": 4, "split.choose": 0.1, "device": "cpu"}
    recipe = load_recipe("finetune", TINY | changes | {"stages.*.epochs": 1})
    table = LabelTable(
        tuple(f"{i}.png" for i in range(100)), ("a",), np.zeros((100, 1), np.float32)
    )
    paths = sorted(world.images.iterdir())[:2]
    cost, answers = budget._cost_of_training(recipe, frozen, table, paths, 1.0)
    assert answers == 10 * 0.5
    # 68 trained on, 8 to choose by, 25 held out; then 90 and 10.
    fold = 2 * (68 + 8 * 0.5) + (8 + 25) * 0.5
    assert cost(recipe.stages) == pytest.approx(4 * fold + 2 * (90 + 10 * 0.5))


def test_a_probe_goes_without_mirrored_pictures_then_without_some(plan, machine):
    machine.picture = 0.05
    assert plan("90s", recipe="probe").recipe.features.flip
    less = plan("40s", recipe="probe")
    assert not less.recipe.features.flip and less.rows == 1000
    fewer = plan("20s", recipe="probe")
    assert not fewer.recipe.features.flip and 100 <= fewer.rows < 1000
    assert sum(fewer.seconds.values()) == pytest.approx(0.9 * 20)
    assert fewer.told(1000).startswith("plan for 20 s: probe, without mirrored pictures, ")
    assert f"{fewer.rows} of 1000 pictures" in fewer.told(1000)


def test_what_is_in_the_cache_takes_no_time(plan, machine):
    """And so nothing is left out that would save nothing."""
    machine.picture = 0.05
    assert not plan("40s", recipe="probe").recipe.features.flip
    machine.missing = 10
    made = plan("40s", recipe="probe")
    assert made.recipe.features.flip and made.seconds["features"] == pytest.approx(0.5)


def test_the_time_that_measuring_takes_is_counted(plan, machine, monkeypatch):
    def slow_to_measure(*_: object) -> Any:
        machine.clock += 40
        return lambda stages: 1e9, 0.0

    assert plan("50s", recipe="probe").rows == 1000
    monkeypatch.setattr(budget, "_cost_of_training", slow_to_measure)
    machine.picture = 0.02
    assert plan("50s", recipe="finetune").rows < 1000


def test_a_slow_machine_plans_less(plan, machine):
    machine.epoch = 0.0  # what remains is arithmetic
    machine.slow = 1.0
    quick = plan("2m").seconds
    machine.slow = 3.0
    slow = plan("2m").seconds
    assert slow["probe"] == pytest.approx(3 * quick["probe"])
    assert slow["numbers"] == pytest.approx(3 * quick["numbers"])
    assert slow["features"] == quick["features"]


def test_a_budget_for_nothing_says_what_would_do(plan, machine):
    machine.picture = 1.0
    with pytest.raises(
        RecipeError, match=r"too short.*got 30 s, expected at least about (.*)"
    ) as no:
        plan("30s", recipe="probe")
    enough = parse_budget(
        str(no.value).partition("about ")[2].replace(" min ", "m").replace(" ", "")
    )
    assert plan(f"{enough:.0f}s", recipe="probe").rows >= 100
    with pytest.raises(RecipeError):
        plan(f"{enough - 5:.0f}s", recipe="probe")


def test_without_a_picture_nothing_can_be_measured(frozen, world: World, tmp_path):
    recipe = load_recipe("probe", TINY | {"budget": "5m"})
    extractor = make_extractor(frozen, recipe.features, "cpu")
    with pytest.raises(UserError, match="no picture of the table is there"):
        make_plan(recipe, frozen, extractor, world.table(), [tmp_path / "a.png"], time.monotonic())


def test_the_probe_of_a_fine_tuning_keeps_what_both_know():
    changes = {"seed": 7, "decisions.target": "f2", "split.folds": 4, "features.flip": False}
    recipe = load_recipe("finetune", TINY | changes)
    probe = probe_of(recipe)
    assert probe.method == "probe" and (probe.split.holdout, probe.split.choose) == (0, 0)
    assert (probe.seed, probe.decisions, probe.backbone) == (7, recipe.decisions, recipe.backbone)
    assert probe.split.folds == 4 and not probe.features.flip
    assert probe.stages == load_recipe("probe").stages


def test_rows_are_drawn_by_the_seed_and_keep_their_order(world: World):
    table = world.table()
    recipe = load_recipe("probe", {"seed": 1})
    some = Plan(recipe, 20, {}, 60, math.inf)
    names = chosen_rows(some, table).images
    assert len(names) == 20 and list(names) == sorted(names, key=table.images.index)
    assert names == chosen_rows(some, table).images
    other = Plan(load_recipe("probe", {"seed": 2}), 20, {}, 60, math.inf)
    assert chosen_rows(other, table).images != names
    assert chosen_rows(Plan(recipe, len(table), {}, 60, math.inf), table) is table


# -------------------------------------------------------------------------------- from end to end


def test_a_run_says_its_plan_and_can_be_repeated_without_it(train, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "polytag"):
        made: Run = train(tmp_path, QUICK | {"budget": "5m"}, recipe="probe")
    assert "plan for 5 min: probe; about" in caplog.text
    told = made.metrics["budget"]
    assert told["seconds"] == 300 and told["pictures"] == 62
    assert set(told["planned"]) == {"features", "probe", "numbers"}
    assert load_recipe(made.path / "config.toml").budget == ""


def test_fewer_pictures_are_used_where_time_is_short(train, tmp_path, monkeypatch):
    monkeypatch.setattr(budget, "_FEWEST", 30)
    monkeypatch.setattr(budget, "seconds_a_picture", lambda sample, extractor: 4.0)
    monkeypatch.setattr(budget, "count_missing", lambda paths, extractor: len(paths))
    monkeypatch.setattr(budget, "_slowness", lambda: 0.01)
    made = train(tmp_path, QUICK | {"budget": "100s"}, max_skipped=0.2)
    assert made.metrics["rows"] + made.metrics["skipped"] == made.metrics["budget"]["pictures"] < 62
    assert not load_recipe(made.path / "config.toml").features.flip


def test_a_fine_tuning_that_has_no_time_ends_at_its_deadline(train, tmp_path, monkeypatch):
    monkeypatch.setattr(budget, "_cost_of_training", lambda *_: (lambda stages: 0.0, 0.0))
    monkeypatch.setattr(budget, "_CLOSING", (1e-6, 0.0))
    monkeypatch.setattr(budget, "_EXPORT", 54.0 * 0.9)  # so that training has to end at once
    monkeypatch.setattr(budget, "_slowness", lambda: 1.0)
    monkeypatch.setattr(budget, "_SCALES", (1.0,))
    changes = TUNED | {"stages.*.epochs": 500, "budget": "1m"}
    made = train(tmp_path, changes, recipe="finetune")
    rows = (made.path / "history.csv").read_text(encoding="utf-8").splitlines()
    assert made.metrics["judged"] and 1 < len(rows) < 500  # an epoch has at least a row


def test_the_command_line_fine_tunes_in_a_budget_unless_told_otherwise(monkeypatch, cli):
    asked: list[str] = []

    def refuse(table: object, images: object, *, recipe: str, changes: dict[str, object], **_: Any):
        asked.append(f"{recipe} {changes['budget']}")
        raise UserError("far enough")

    monkeypatch.setattr("polytag.train.fit", refuse)
    world_words = ("train", "labels.csv", "--images", ".", "--budget", "5m")
    monkeypatch.setattr(
        "polytag.cli.training.read_labels",
        lambda *_: LabelTable((), (), np.empty((0, 0), np.float32)),
    )
    answer: Answer = cli(*world_words)
    assert answer.code == 2 and asked == ["finetune 5m"]
    cli(*world_words, "--recipe", "probe")
    cli("train", "labels.csv", "--images", ".", "--set", "budget=5m")
    assert asked[1:] == ["probe 5m", "finetune 5m"]


def test_a_wrong_budget_is_found_before_any_work(train, tmp_path):
    with pytest.raises(RecipeError, match="not a time budget"):
        train(tmp_path, {"budget": "soon"})
    assert list(tmp_path.iterdir()) == []


def test_several_processes_keep_no_budget(train, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match="one process only"):
        train(tmp_path, TUNED | {"budget": "5m"}, recipe="finetune")
