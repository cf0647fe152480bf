"""What fine-tuning decides before and after the loop: parts, losses, what is refused."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from tests.tiny import NAMES, one_thread, save_pictures, tiny_model, tiny_recipe
from torch.nn.functional import binary_cross_entropy_with_logits

from polytag import finetune as module
from polytag.config import LossConfig, Recipe, SplitConfig
from polytag.errors import RecipeError, UserError
from polytag.finetune import Task, check, finetune, make_cell_loss, split_parts

from .conftest import TINY


@pytest.fixture(scope="module", autouse=True)
def alone():
    with one_thread():
        yield


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> Task:
    pictures = save_pictures(tmp_path_factory.mktemp("pictures"), 12)
    parts = np.array(["train", "train", "choose", "holdout"] * 3)
    return Task(NAMES, pictures.paths, pictures.values, np.arange(12), parts, None)


def changed(task: Task, **fields: object) -> Task:
    return Task(**{**vars(task), **fields})


def test_a_task_is_known_by_its_names_labels_and_parts(task):
    flipped, hole, moved = task.values.copy(), task.values.copy(), task.parts.copy()
    row, column = np.argwhere(task.values == 1)[0]
    flipped[row, column], hole[row, column] = 0, np.nan
    moved[:2] = moved[[2, 0]]
    others = [
        changed(task, values=flipped),
        changed(task, values=hole),
        changed(task, parts=moved),
        changed(task, attributes=NAMES[::-1]),
    ]
    prints = {other.fingerprint() for other in [task, *others]}
    assert len(prints) == 5
    assert changed(task, values=task.values.copy()).fingerprint() == task.fingerprint()


def test_the_loop_is_given_each_part_for_its_own_purpose(task, monkeypatch):
    made = []
    make = module.Loop

    def spy(*given: object) -> object:
        made.append(given)
        return make(*given)

    monkeypatch.setattr(module, "Loop", spy)
    recipe = tiny_recipe({"split.choose": 0.3})
    tuned = finetune(recipe, tiny_model(recipe).backbone, task)
    _, _, train, choose, *_ = made[0]
    for pictures, part in ((train, "train"), (choose, "choose")):
        rows = np.flatnonzero(task.parts == part)
        assert pictures.paths == [task.paths[row] for row in rows]
        np.testing.assert_array_equal(pictures.values, task.values[rows])
    predicted = ~np.isnan(tuned.logits)
    assert (predicted == (task.parts != "train")[:, None]).all()
    assert not tuned.model.training


def test_without_choosing_or_held_out_rows_nothing_is_judged(task):
    recipe = tiny_recipe()
    whole = changed(task, parts=np.array(["train"] * 12))
    tuned = finetune(recipe, tiny_model(recipe).backbone, whole)
    assert np.isnan(tuned.logits).all()
    assert tuned.history.epochs[0].validation is None


def test_present_cells_weigh_what_the_known_training_cells_say():
    nan = np.nan
    values = np.array([[1, 1, nan], [0, 1, nan], [0, nan, nan], [nan, 1, nan], [0, 1, 1]])
    loss = make_cell_loss(LossConfig(pos_weight="balanced"), values.astype(np.float32))
    weights = torch.tensor([3.0, 1.0, 1.0])  # 3 absent to 1; one kind only weighs 1
    logits, targets = torch.linspace(-2, 2, 6).view(2, 3), torch.tensor([[1.0, 0, 1], [0, 1, 0]])
    known = torch.tensor([[True, True, True], [True, False, True]])
    cells = loss(logits, targets, known)
    expected = binary_cross_entropy_with_logits(
        logits, targets, pos_weight=weights, reduction="none"
    )
    torch.testing.assert_close(cells[known], expected[known])
    assert cells[1, 1] == 0
    capped = make_cell_loss(LossConfig(pos_weight="balanced", pos_weight_cap=2), values)
    ratio = capped(logits, targets, known)[0, 0] / cells[0, 0]
    assert ratio.item() == pytest.approx(2 / 3)


@pytest.mark.parametrize("holdout, choose", [(0.0, 0.0), (0.2, 0.0), (0.2, 0.25), (0.0, 0.5)])
def test_parts_have_their_shares_and_keep_groups_together(holdout, choose):
    rng = np.random.default_rng(0)
    values = rng.choice([0, 1, np.nan], (200, 3)).astype(np.float32)
    groups = np.arange(200) // 2
    parts = split_parts(values, groups, SplitConfig(holdout=holdout, choose=choose), seed=1)
    shares = {name: float(np.mean(parts == name)) for name in ("train", "choose", "holdout")}
    assert shares["holdout"] == pytest.approx(holdout, abs=0.02)
    assert shares["choose"] == pytest.approx((1 - holdout) * choose, abs=0.02)
    assert (parts[::2] == parts[1::2]).all()


def test_too_few_pictures_to_split_are_said():
    values = np.ones((2, 1), dtype=np.float32)
    with pytest.raises(UserError, match=r"too few different pictures to split"):
        split_parts(values, np.arange(2), SplitConfig(holdout=0.3, choose=0.3), seed=0)


@pytest.mark.parametrize(
    "changes, where",
    [
        ({"training.keep": "best"}, "split.choose"),
        ({"training.schedule": "plateau"}, "split.choose"),
        ({"training.early_stop": 2}, "split.choose"),
        ({"head.kind": "mlp", "head.init": "probe"}, "head.init"),
        ({"loss.name": "asymmetric", "loss.pos_weight": "balanced"}, "loss.pos_weight"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(changes, where):
    with pytest.raises(RecipeError, match=f"^{where}: "):
        check(tiny_recipe(changes))


def test_a_training_that_never_began_leaves_no_folder(train, tmp_path):
    changes = {"device": "cpu", "stages.0.frozen": 99} | TINY
    with pytest.raises(RecipeError, match=r"fewer blocks"):
        train(tmp_path, changes, recipe="resnet18-head")
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------- what a review has found


def test_stages_of_one_name_are_refused():
    recipe = tiny_recipe({}).model_dump()
    recipe["stages"] = [recipe["stages"][0]] * 2
    with pytest.raises(RecipeError, match="two stages have one name"):
        check(Recipe.model_validate(recipe))


def test_too_many_frozen_blocks_of_any_stage_are_refused_before_a_picture_is_read(
    train, tmp_path, monkeypatch
):
    monkeypatch.setattr("polytag.train.rows_with_features", None)  # it would fail, were it called
    with pytest.raises(RecipeError, match="fewer blocks than are to be frozen"):
        train(tmp_path, recipe="efficientnet-b0-two-stage")
    assert not list(tmp_path.iterdir())


def test_where_the_choosing_rows_have_no_macro_ap_their_loss_chooses(train, world, tmp_path):
    table = world.table().select(range(14))
    changes = {"split.choose": 0.1, "head.init": "random", "stages": [{"epochs": 2, "lr": 5e-4}]}
    changes |= {"features.engine": "torch"}  # it needs no export
    run = train(tmp_path, changes, table=table, recipe="finetune")
    rows = read_history(run)
    losses = [float(row["validation_loss"]) for row in rows]
    assert all(row["macro_ap"] == "" for row in rows)
    assert run.metrics["best_epoch"] == f"all {1 + int(np.argmin(losses))}"


def test_weights_that_are_no_numbers_end_no_run(train, tmp_path):
    changes = {
        "split.choose": 0.0,
        "training.keep": "last",
        "training.warmup": 0.0,
        "head.init": "random",
        "training.batch": 500,
        "stages": [{"epochs": 1, "lr": 1e30}],
    }
    with pytest.raises(UserError, match="weights that are no numbers"):
        train(tmp_path, changes, recipe="finetune")
    assert not list(tmp_path.rglob("model.onnx"))


def read_history(run):
    with (run.path / "history.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["epoch"]]
