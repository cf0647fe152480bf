"""The recipes do what they say: the published ones cell by cell, all of them from end to end.

What a recipe asks for is looked up on the objects that training builds from it: the network after
freezing, the optimiser, the feed, the loss. Networks have random weights, so nothing is fetched.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache as remembered
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import nn

import polytag
from polytag import augment, finetune, loop, plots, rounds
from polytag.backbone import load_backbone
from polytag.calibration import Calibration
from polytag.config import DecisionsConfig, Recipe, load_recipe, recipe_names
from polytag.errors import RecipeError, UserError
from polytag.feed import Feed, Part
from polytag.finetune import Task, make_cell_loss, split_parts
from polytag.history import Position, Validation
from polytag.images import decode
from polytag.loop import Loop
from polytag.losses import average
from polytag.model import build_classifier, load_classifier
from polytag.preprocess import preprocess
from polytag.runs import Run
from polytag.samplers import epoch_order
from polytag.trainable import frozen_depth, set_modes

from .conftest import LEARNT, TINY, World

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

# Present, absent and not known cells of the attributes of 975 dresses.
DRESSES = ((789, 106, 80), (713, 171, 91), (466, 416, 93), (68, 813, 94))
ROWS = 975

NOTHING, BACKBONE = r"nothing", r"backbone\."


@dataclass(frozen=True)
class Stage:
    """Epochs, rate, and a pattern of the names of the frozen parameters."""

    epochs: int
    lr: float
    frozen: str


@dataclass(frozen=True)
class Published:
    """A line of the table of published recipes."""

    backbone: str
    numbers: int  # of the network without its head, as torchvision's has
    dropout: float
    optimiser: type[torch.optim.Optimizer]
    weight_decay: float
    batch: int
    stages: tuple[Stage, ...]
    balanced: bool
    steps: tuple[Any, ...]
    crop: type = augment.JudgedCrop
    choose: float = 0.0
    keeps_best: bool = False


PUBLISHED = {
    "resnet50": Published(
        backbone="resnet50",
        numbers=23_508_032,
        dropout=0.0,
        optimiser=torch.optim.AdamW,
        weight_decay=0.01,
        batch=8,
        stages=(Stage(10, 1e-4, NOTHING),),
        balanced=False,
        steps=(augment.Flip(0.5), augment.Brightness(0.2), augment.Contrast(0.2)),
    ),
    "resnet18-head": Published(
        backbone="resnet18",
        numbers=11_176_512,
        dropout=0.0,
        optimiser=torch.optim.Adam,
        weight_decay=0.0,
        batch=16,
        stages=(Stage(5, 1e-5, BACKBONE),),
        balanced=False,
        steps=(augment.Flip(0.5),),
    ),
    "resnet34-partial": Published(
        backbone="resnet34",
        numbers=21_284_672,
        dropout=0.4,
        optimiser=torch.optim.Adam,
        weight_decay=1e-4,
        batch=16,
        stages=(Stage(8, 1e-4, r"backbone\.network\.(conv1|bn1|layer1|layer2)\."),),
        balanced=True,
        steps=(
            augment.Flip(0.5),
            augment.FlipVertical(0.5),
            augment.Rotate(15.0),
            augment.ShiftScaleRotate(0.5),
            augment.Brightness(0.2),
            augment.Contrast(0.2),
            augment.Saturation(0.2),
            augment.Hue(0.1),
            augment.Blur(0.2),
            augment.Noise(0.2),
            augment.CoarseDropout(0.5),
        ),
        choose=0.15,
        keeps_best=True,
    ),
    "resnet50-weighted": Published(
        backbone="resnet50",
        numbers=23_508_032,
        dropout=0.0,
        optimiser=torch.optim.Adam,
        weight_decay=0.0,
        batch=16,
        stages=(Stage(10, 1e-4, NOTHING),),
        balanced=True,
        steps=(augment.Flip(0.5),),
    ),
    "efficientnet-b0-two-stage": Published(
        backbone="efficientnet_b0",
        numbers=4_007_548,
        dropout=0.3,
        optimiser=torch.optim.AdamW,
        weight_decay=1e-4,
        batch=32,
        stages=(
            Stage(5, 1e-3, BACKBONE),
            Stage(15, 1e-4, r"backbone\.network\.(conv_stem|bn1|blocks\.[012])\."),
        ),
        balanced=True,
        steps=(
            augment.Flip(0.5),
            augment.FlipVertical(0.2),
            augment.Rotate(20.0),
            augment.Translate(0.1),
            augment.Brightness(0.2),
            augment.Contrast(0.2),
            augment.Saturation(0.2),
            augment.Hue(0.1),
            augment.Erase(0.2),
        ),
        crop=augment.RandomCrop,
        choose=0.2,
        keeps_best=True,
    ),
}
TWO_STAGES = "efficientnet-b0-two-stage"
STAGES = [(name, i) for name, row in PUBLISHED.items() for i in range(len(row.stages))]
of_all = pytest.mark.parametrize("name", PUBLISHED)


def dresses() -> np.ndarray:
    """Return values float32 (975, 4) with the counts of `DRESSES`."""
    rng = np.random.default_rng(4)
    cells = [np.repeat([1, 0, np.nan], counts) for counts in DRESSES]
    return np.stack([rng.permutation(column) for column in cells], axis=1).astype(np.float32)


def parts_of(recipe: Recipe, values: np.ndarray) -> np.ndarray:
    return split_parts(values, np.arange(len(values)), recipe.split, recipe.seed)


@remembered
def built(name: str, stage: int = 0) -> Loop:
    """Return the loop of a recipe on the dresses, at the beginning of a stage."""
    recipe = load_recipe(name, {"backbone.weights": "none", "device": "cpu"})
    backbone = load_backbone(recipe.backbone, recipe.preprocess, recipe.features, recipe.seed)
    model = build_classifier(recipe, backbone, len(DRESSES))
    values = dresses()
    parts = parts_of(recipe, values)
    names = ("a", "b", "c", "d")
    paths = [Path(f"{row}.png") for row in range(ROWS)]
    task = Task(names, paths, values, np.arange(ROWS), parts, None)
    train, choose = task.pictures("train"), task.pictures("choose")
    cell_loss = make_cell_loss(recipe.loss, train.values)
    made = Loop(model, recipe, train, choose if len(choose) else None, cell_loss, names)
    made.at.stage = stage
    made._begin_stage()
    return made


# ------------------------------------------------------------- the table of published recipes


def test_these_are_all_the_recipes():
    assert set(recipe_names()) == {*PUBLISHED, "probe", "finetune"}


@of_all
def test_backbone_and_head_are_the_published_ones(name):
    model = built(name).model
    assert model.backbone.name == PUBLISHED[name].backbone
    assert sum(p.numel() for p in model.backbone.network.parameters()) == PUBLISHED[name].numbers
    layers = [m for m in model.head.modules() if not list(m.children())]
    assert [type(layer) for layer in layers] == [nn.Dropout, nn.Linear]
    dropout, linear = layers
    assert dropout.p == PUBLISHED[name].dropout
    # The head sees the last layer, nothing but pooled, as the network's own classifier would.
    assert (linear.in_features, linear.out_features) == (model.backbone.network.num_features, 4)


@pytest.mark.parametrize(("name", "stage"), STAGES)
def test_exactly_the_published_layers_are_trained(name, stage):
    made = built(name, stage)
    frozen = re.compile(PUBLISHED[name].stages[stage].frozen)
    names = [n for n, _ in made.model.named_parameters()]
    wanted = {n for n in names if not frozen.match(n)}
    assert {"head.linear.weight", "head.linear.bias"} <= wanted
    assert {n for n, p in made.model.named_parameters() if p.requires_grad} == wanted
    in_groups = [n for group in made.optimiser.param_groups for n in group["names"]]
    assert sorted(in_groups) == sorted(wanted)
    held = [p for group in made.optimiser.param_groups for p in group["params"]]
    by_name = dict(made.model.named_parameters())
    assert all(p is by_name[n] for p, n in zip(held, in_groups, strict=True))
    # Frozen batch norms keep their statistics; those that are trained move theirs.
    set_modes(made.model, freeze_norm=made.config.freeze_norm)
    for module_name, module in made.model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.training == (frozen.match(f"{module_name}.") is None), module_name


def test_the_first_three_of_efficientnets_stages_are_its_first_five_blocks_of_sixteen():
    stages = built(TWO_STAGES).model.backbone.network.blocks
    counts = [len(stage) for stage in stages]
    assert (sum(counts[:3]), sum(counts)) == (5, 16)


@pytest.mark.parametrize(("name", "stage"), STAGES)
def test_the_optimiser_is_the_published_one(name, stage):
    made, row = built(name, stage), PUBLISHED[name]
    assert type(made.optimiser) is row.optimiser
    [group] = made.optimiser.param_groups  # one rate for all that is trained
    assert (group["lr"], group["base"]) == (row.stages[stage].lr,) * 2
    assert group["weight_decay"] == row.weight_decay
    assert (group["betas"], group["eps"], group["amsgrad"]) == ((0.9, 0.999), 1e-8, False)
    plain = row.optimiser([nn.Parameter(torch.zeros(1))], lr=1e-4).param_groups[0]
    if name == "resnet50":  # AdamW as it is
        assert group["weight_decay"] == plain["weight_decay"]
    config = made.config
    assert (config.clip, config.ema, config.accumulate, made.mean) == (0, 0, 1, None)


@pytest.mark.parametrize(("name", "stage"), STAGES)
def test_the_rate_moves_as_published(name, stage):
    made, row = built(name, stage), PUBLISHED[name]
    at = Position(stage)
    rates = []
    for at.epoch in range(row.stages[stage].epochs):
        made.at = at
        rates.append(made._set_rate())
    made.at = Position(stage)
    assert rates == [row.stages[stage].lr] * row.stages[stage].epochs
    assert made.recipe.stages[stage].epochs == row.stages[stage].epochs
    plateaus = name == TWO_STAGES
    assert made.config.schedule == ("plateau" if plateaus else "constant")
    assert made.patience.limit == (5 if plateaus else 0)
    if plateaus:
        assert (made.plateau.factor, made.plateau.patience) == (0.5, 2)
        mine, parameter = replace(made.plateau), nn.Parameter(torch.zeros(1))
        theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
            torch.optim.AdamW([parameter], lr=1.0), factor=0.5, patience=2
        )
        for score in (0.9, 0.8, 0.81, 0.8, 0.82, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7, 0.69):
            mine.update(score)
            theirs.step(score)
            assert mine.scale == theirs.get_last_lr()[0]
        assert mine.scale == 1 / 8


@of_all
def test_pictures_are_varied_as_published(name):
    feed = built(name).feed
    assert feed.augment.steps == PUBLISHED[name].steps
    assert feed.augment.crop == PUBLISHED[name].crop()
    assert (feed.recipe.augment.mixup, feed.recipe.augment.cutmix) == (0, 0)
    if name == TWO_STAGES:  # 224 of 256 pixels
        assert feed.augment.spec.crop_fraction == 224 / 256


@of_all
def test_batches_and_steps_are_the_published_ones(name):
    feed, row = built(name).feed, PUBLISHED[name]
    assert (feed.batch, feed.rows_a_step) == (row.batch, row.batch)
    assert feed.steps_an_epoch == -(-len(feed.pictures) // row.batch)
    # Imbalance is met by weights or not at all: every row comes once an epoch.
    rng, values = np.random.default_rng(0), feed.pictures.values
    losses = rng.random(len(values)).astype(np.float32)
    order = epoch_order(values, feed.recipe.sampler, batch=feed.batch, rng=rng, losses=losses)
    assert sorted(order.tolist()) == list(range(len(values)))


@of_all
def test_rows_are_split_as_published(name):
    made, share = built(name), PUBLISHED[name].choose
    train, choose = made.feed.pictures, made.choose
    if not share:
        assert (len(train), choose) == (ROWS, None)
        return
    assert choose is not None and len(train) + len(choose) == ROWS  # none is held out
    assert abs(len(choose) - share * ROWS) <= 1
    assert not set(train.paths) & set(choose.paths)
    for cell in (1, 0):
        counts = (choose.values == cell).sum(axis=0)
        even = share * (dresses() == cell).sum(axis=0)
        assert np.abs(counts - even).max() <= 1.5, (cell, counts, even)  # stratified
    if name == TWO_STAGES:
        recipe = made.recipe
        assert recipe.seed == 42
        again = split_parts(dresses(), np.arange(ROWS), recipe.split, 42)
        assert (again == "train").sum() == len(train)
        np.testing.assert_array_equal(dresses()[again == "train"], train.values)
        other = split_parts(dresses(), np.arange(ROWS), recipe.split, 43)
        assert (other != again).any()


@of_all
def test_only_the_published_recipes_that_choose_keep_the_best_epoch(name):
    assert built(name).config.keep == ("best" if PUBLISHED[name].keeps_best else "last")
    assert built(name).config.monitor == "loss"


def weights_of(cell_loss: loop.CellLoss, attributes: int) -> np.ndarray:
    """Return what a present cell weighs, relative to an absent one: at logit 0 both lose log 2."""
    zeros, ones = torch.zeros(1, attributes), torch.ones(1, attributes)
    known = ones.bool()
    absent = cell_loss(zeros, zeros, known)
    torch.testing.assert_close(absent, torch.full_like(absent, np.log(2)))
    return (cell_loss(zeros, ones, known) / absent).numpy()[0]


@of_all
def test_present_cells_weigh_as_published(name):
    made = built(name)
    found = weights_of(made.cell_loss, len(DRESSES))
    values = made.feed.pictures.values  # of the rows that are trained on
    present, absent = (values == 1).sum(axis=0), (values == 0).sum(axis=0)
    wanted = absent / present if PUBLISHED[name].balanced else np.ones(len(DRESSES))
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_the_weights_of_the_dresses_are_those_that_were_published():
    recipe = load_recipe("resnet50-weighted")
    found = weights_of(make_cell_loss(recipe.loss, dresses()), len(DRESSES))
    assert found.round(2).tolist() == pytest.approx([0.13, 0.24, 0.89, 11.96])
    assert recipe.split.choose == recipe.split.holdout == 0


def test_rows_that_are_not_trained_on_do_not_count_for_the_weights():
    made = built("resnet34-partial")
    held_back = weights_of(made.cell_loss, len(DRESSES))
    whole = weights_of(make_cell_loss(made.recipe.loss, dresses()), len(DRESSES))
    assert (np.abs(held_back - whole) > 1e-6).any()


def masked_bce(logits: np.ndarray, values: np.ndarray, weights: np.ndarray) -> float:
    """The published loss: the sum over known cells by the number of known cells, cell by cell."""
    total, count = 0.0, 0
    for row, cells in zip(logits.astype(float), values, strict=True):
        for z, value, weight in zip(row, cells, weights, strict=True):
            if not np.isnan(value):
                p = 1 / (1 + np.exp(-z))
                total += -weight * np.log(p) if value else -np.log(1 - p)
                count += 1
    return total / count


@of_all
def test_the_loss_is_the_published_formula(name):
    made = built(name)
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 2, (6, 4)).astype(np.float32)
    values = np.array([1, 0, np.nan])[rng.integers(0, 3, (6, 4))]
    values[:, 0] = [1, 1, 0, 0, 1, np.nan]  # uneven holes: a mean of means would be another
    values[1:, 3] = np.nan
    values[0, 3] = 1
    known = torch.from_numpy(~np.isnan(values))
    targets = torch.from_numpy(np.nan_to_num(values, nan=7.0).astype(np.float32))
    cells = made.cell_loss(torch.from_numpy(logits), targets, known)
    found = average(cells, known, made.recipe.loss.per, known.sum(0))
    trained = made.feed.pictures.values
    weights = np.ones(4)
    if PUBLISHED[name].balanced:
        weights = (trained == 0).sum(axis=0) / (trained == 1).sum(axis=0)
    assert float(found) == pytest.approx(masked_bce(logits, values, weights), rel=1e-5)


@of_all
def test_a_picture_reaches_the_network_at_224_pixels_with_the_weights_normalisation(name):
    backbone = built(name).model.backbone
    assert backbone.spec.size == 224
    seen: list[torch.Tensor] = []
    first = next(m for m in backbone.network.modules() if isinstance(m, nn.Conv2d))
    handle = first.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    picture = np.random.default_rng(2).integers(0, 256, (300, 260, 3), np.uint8)
    square = preprocess(picture, backbone.spec)
    with torch.no_grad():
        backbone.eval()(torch.from_numpy(square[None]))
    handle.remove()
    mean, std = (np.array(numbers) for numbers in IMAGENET)
    wanted = ((square / 255 - mean) / std).transpose(2, 0, 1)
    np.testing.assert_allclose(seen[0][0].numpy(), wanted, atol=1e-5)


@of_all
def test_an_attribute_is_present_from_a_half_on(name):
    decisions = built(name).recipe.decisions
    assert (decisions.calibrate, decisions.target, decisions.max_error) == ("none", 0.5, 0)


def test_our_own_recipes_calibrate_and_choose_their_thresholds():
    for name in ("probe", "finetune"):
        assert load_recipe(name).decisions == DecisionsConfig()
    assert (DecisionsConfig().calibrate, DecisionsConfig().target) == ("auto", "f1")


# ------------------------------------------------------------------- on a small drawn world

# Features, for what looks alike and for verdicts, are computed in torch, which saves an export.
TINY_RESNET = TINY | {"features.engine": "torch"}
TINY_EFFICIENTNET = TINY_RESNET | {"backbone.name": "test_efficientnet"}
ONE_EPOCH = {"stages.*.epochs": 1}

# The networks of the tests have 4 and 5 blocks: the same share of them stays frozen.
SMALL: dict[str, dict[str, object]] = {
    "resnet50": TINY_RESNET,
    "resnet18-head": TINY_RESNET | {"features.engine": "onnxruntime"},
    "resnet34-partial": TINY_RESNET | {"stages.0.frozen": 2},
    "resnet50-weighted": TINY_RESNET,
    TWO_STAGES: TINY_EFFICIENTNET | {"stages.1.frozen": 2},
    "finetune": TINY_RESNET | {"probe.l2": 1.0},  # shares of the blocks are frozen in it
}


@pytest.fixture(scope="module", autouse=True)
def no_plots() -> Iterator[None]:
    """Drawing takes much of a tiny run's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "loss_curve", lambda history, title, path: path.touch())
        patch.setattr(plots, "sample_predictions", lambda samples, names, path: path.touch())
        yield


@pytest.fixture(scope="module")
def ran(world: World, cache: Path, tmp_path_factory) -> Callable[..., Run]:
    """Train a recipe on the world, an epoch a stage; the same one only once."""
    folder = tmp_path_factory.mktemp("recipes")
    done: dict[str, Run] = {}

    def fit(name: str, changes: Mapping[str, object] | None = None) -> Run:
        key = f"{name} {changes}"
        if key not in done:
            changed = SMALL[name] | ONE_EPOCH | dict(changes or {})
            done[key] = polytag.fit(
                world.table(), world.images, recipe=name, changes=changed, folder=folder
            )
        return done[key]

    return fit


@pytest.fixture
def not_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "write_classifier", lambda model, info, path: path.touch())


HELD_OUT = {"split.holdout": 0.25}


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def parts_in(run: Run) -> dict[str, list[str]]:
    parts: dict[str, list[str]] = {"train": [], "choose": [], "holdout": []}
    for row in rows_of(run.path / "splits.csv"):
        parts[row["fold"]].append(row["image"])
    return parts


def assert_onnx_is_torch(run: Run, world: World) -> None:
    model, predictor = load_classifier(run), polytag.load(run)
    spec = model.backbone.spec
    images = np.stack([preprocess(decode(world.path(name)), spec) for name in world.good[:5]])
    with torch.no_grad():
        logits = model(torch.from_numpy(images)).numpy()
    tree = predictor.info.calibration
    if load_recipe(run.path / "config.toml").decisions.calibrate == "none":
        assert tree is None
    calibration = Calibration.from_dict(tree) if tree else Calibration.identity(logits.shape[1])
    wanted = calibration.probabilities(logits)
    assert wanted.std(axis=0).max() > 1e-4  # what it answers depends on the picture
    np.testing.assert_allclose(predictor.probabilities(images), wanted, atol=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_every_recipe_trains_from_end_to_end(name, ran, world):
    run = ran(name)
    recipe, parts = load_recipe(run.path / "config.toml"), parts_in(run)
    assert sum(map(len, parts.values())) == len(world.good)
    assert {part: len(names) for part, names in parts.items()} == run.metrics["parts"]
    history = [r for r in rows_of(run.path / "history.csv") if r["training_loss"]]
    steps = -(-len(parts["train"]) // recipe.training.batch)
    assert [r["stage"] for r in history] == [s.name for s in recipe.stages for _ in range(steps)]
    assert np.isfinite([float(r["training_loss"]) for r in history]).all()
    if name in PUBLISHED:
        rates = [stage.lr for stage in recipe.stages for _ in range(steps)]
        assert [float(r["lr"]) for r in history] == pytest.approx(rates)
    info = polytag.load(run).info
    chosen = run.metrics["decisions"]["attributes"]
    assert info.attributes == LEARNT
    assert info.thresholds == tuple(chosen[attribute]["threshold"] for attribute in LEARNT)
    if name in PUBLISHED:
        assert info.thresholds == (0.5,) * 3 and info.calibration is None
    assert info.preprocess.size == 32
    assert_onnx_is_torch(run, world)


@pytest.mark.parametrize("name", SMALL)
def test_what_a_recipe_freezes_stays_as_it_was_and_the_rest_moves(name, ran):
    run = ran(name)
    recipe = load_recipe(run.path / "config.toml")
    start = load_backbone(recipe.backbone, recipe.preprocess, recipe.features, recipe.seed)
    depths, before = start.depths(), start.state_dict()
    after = load_classifier(run).backbone.state_dict()
    last = recipe.stages[-1].frozen
    deepest = frozen_depth(start, last)
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    modules = {key.rpartition(".")[0]: depth for key, depth in depths.items()}
    frozen = {key for key in before if modules.get(key.rpartition(".")[0], -1) <= deepest}
    assert not moved & frozen  # statistics of batch norms among them
    if recipe.training.keep == "last":  # else the best may be an epoch before they moved
        assert moved >= {key for key in depths if key not in frozen}


@of_all
def test_a_published_recipe_has_no_number_but_its_training_loss(name, ran):
    run = ran(name)
    metrics = run.metrics
    assert metrics["judged"] == 0 and np.isfinite(metrics["training_loss"])
    assert "No honest number" in metrics["note"] and "--holdout" in metrics["note"]
    values = [entry[kind]["value"] for entry in metrics["attributes"] for kind in ("ap", "f1")]
    means = [metrics["macro"]["ap"], metrics["hamming"], metrics["log_loss"]]
    assert {*values, *(mean["value"] for mean in means)} == {None}
    assert metrics["attributes"][0]["ap"]["reason"] == "no known cell among 0 rows"
    assert len(pl.read_parquet(run.path / "oof.parquet")) == 0
    choosing = pl.read_parquet(run.path / "choosing.parquet")
    kept = choosing.filter(pl.col("fold").is_null())  # of the model that is kept
    assert set(kept["image"]) == set(choosing["image"]) == set(parts_in(run)["choose"])
    assert len(kept) == len(LEARNT) * len(parts_in(run)["choose"])
    labels = pl.read_parquet(run.path / "labels.parquet")
    assert labels["image"].n_unique() == metrics["rows"]
    card = (run.path / "README.md").read_text(encoding="utf-8")
    assert "No honest number" in card and "macro AP" not in card
    assert bool(parts_in(run)["choose"]) == PUBLISHED[name].keeps_best


@of_all
def test_a_published_recipe_is_judged_on_pictures_held_out_for_nothing_else(
    name, ran, world, not_exported
):
    run = ran(name, HELD_OUT)
    parts, metrics = parts_in(run), run.metrics
    count = len(parts["holdout"])
    assert count == metrics["judged"] and abs(count - 15) <= 1  # a quarter of 60
    assert bool(parts["choose"]) == PUBLISHED[name].keeps_best
    assert not metrics["note"]
    # Each is in one part only; a picture's twin is in the same.
    assert sum(map(len, parts.values())) == len(world.good)
    [twins] = [part for part, names in parts.items() if "twin.png" in names]
    assert world.names[0] in parts[twins]
    judged = pl.read_parquet(run.path / "oof.parquet")
    assert set(judged["image"]) == set(parts["holdout"])
    assert judged["fold"].unique().to_list() == [0]
    assert judged["threshold"].unique().to_list() == [0.5]
    np.testing.assert_allclose(judged["probability_calibrated"], judged["probability_raw"])
    choosing = pl.read_parquet(run.path / "choosing.parquet")
    assert set(choosing["image"]) == set(parts["choose"])
    assert set(choosing["fold"].to_list()) == ({0, None} if parts["choose"] else set())
    rows = [world.names.index(image) for image in parts["holdout"]]
    for k, attribute in enumerate(LEARNT):
        entry, truth = metrics["attributes"][k], world.values[rows, k]
        kinds = ((truth == 1).sum(), (truth == 0).sum(), np.isnan(truth).sum())
        assert (entry["present"], entry["absent"], entry["na"]) == kinds
        known = judged.filter(pl.col("attribute") == attribute, pl.col("truth").is_not_null())
        wanted = average_precision_score(known["truth"], known["probability_raw"])
        assert entry["ap"]["value"] == pytest.approx(wanted)
    card = (run.path / "README.md").read_text(encoding="utf-8")
    assert f"on {count} pictures" in card and "No honest" not in card


def test_the_rows_that_an_epoch_was_chosen_on_do_not_give_the_headline(ran, not_exported):
    run = ran(TWO_STAGES, HELD_OUT)
    assert run.metrics["best_epoch"] is not None
    epochs = [r for r in rows_of(run.path / "history.csv") if r["validation_loss"]]
    stage, _, number = run.metrics["best_epoch"].rpartition(" ")
    [best] = [r for r in epochs if (r["stage"], r["epoch"]) == (stage, number)]
    assert float(best["validation_loss"]) == min(float(r["validation_loss"]) for r in epochs)
    assert run.metrics["log_loss"]["value"] != pytest.approx(float(best["validation_loss"]))
    assert not set(parts_in(run)["choose"]) & set(parts_in(run)["holdout"])


def test_evaluate_counts_no_held_out_picture_as_seen(ran, world):
    run = ran("finetune")  # it has all three parts
    parts, table = parts_in(run), world.table()
    assert all(parts.values())
    for part, seen in (("holdout", False), ("choose", True), ("train", True)):
        rows = [table.images.index(image) for image in parts[part]]
        judged = polytag.evaluate(run, table.select(rows), world.images)
        assert (judged.rows, judged.seen) == (len(rows), len(rows) if seen else 0)
    rows = [table.images.index(image) for image in parts["holdout"]]
    again = polytag.evaluate(run, table.select(rows), world.images).evaluation
    reported = run.metrics["macro"]["ap"]["value"]
    assert again.macro["ap"].value == pytest.approx(reported, abs=1e-3)


@pytest.mark.parametrize("held_out", [False, True], ids=["nothing held out", "a quarter held out"])
def test_the_command_line_prints_a_table_only_where_there_are_numbers(
    cli, world, tmp_path, not_exported, held_out
):
    changes = SMALL["resnet18-head"] | ONE_EPOCH | (HELD_OUT if held_out else {})
    sets = [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
    data = (world.labels, "--images", world.images, "--runs", tmp_path)
    answer = cli("train", *data, "--recipe", "resnet18-head", *sets)
    assert answer.code == 0, answer.err
    assert ("macro AP" in answer.out) == ("striped" in answer.out) == held_out
    assert ("training loss 0." in answer.out) == ("No honest number" in answer.out) != held_out


@pytest.mark.parametrize("head", ["mlp", "separate", "attention"])
def test_a_model_file_answers_like_torch_with_every_head(head, ran, world):
    changes = {"head.kind": head, "head.hidden": 8, "head.dropout": 0.2, "stages.*.lr": 1e-2}
    run = ran("resnet50", changes)
    assert type(load_classifier(run).head).__name__.lower() == head
    assert_onnx_is_torch(run, world)


# ----------------------------------------------------------------------- what training does


@dataclass(frozen=True)
class Small:
    """Some rows of the world, and a fine-tuning of the tiny network on them."""

    paths: list[Path]
    values: np.ndarray
    parts: np.ndarray

    @classmethod
    def of(cls, world: World, train: int = 20, choose: int = 8, holdout: int = 0) -> Small:
        rows = train + choose + holdout
        parts = np.repeat(["train", "choose", "holdout"], [train, choose, holdout])
        values = world.values[:rows, :3].astype(np.float32)
        assert np.isnan(values).any()
        return cls([world.path(name) for name in world.names[:rows]], values, parts)

    def task(self) -> Task:
        groups = np.arange(len(self.paths))
        return Task(LEARNT, self.paths, self.values, groups, self.parts, None)

    def tuned(self, name: str, changes: Mapping[str, object] | None = None) -> finetune.Tuned:
        recipe = small_recipe(name, changes)
        backbone = load_backbone(recipe.backbone, recipe.preprocess, recipe.features, recipe.seed)
        return finetune.finetune(recipe, backbone, self.task())

    def loop(self, name: str, changes: Mapping[str, object] | None = None) -> Loop:
        recipe, task = small_recipe(name, changes), self.task()
        backbone = load_backbone(recipe.backbone, recipe.preprocess, recipe.features, recipe.seed)
        model = build_classifier(recipe, backbone, 3)
        train, choose = task.pictures("train"), task.pictures("choose")
        cell_loss = make_cell_loss(recipe.loss, train.values)
        return Loop(model, recipe, train, choose if len(choose) else None, cell_loss, LEARNT)


def small_recipe(name: str, changes: Mapping[str, object] | None = None) -> Recipe:
    return load_recipe(name, SMALL[name] | {"device": "cpu"} | dict(changes or {}))


def numbers(tuned: finetune.Tuned) -> dict[str, bytes]:
    return {key: tensor.numpy().tobytes() for key, tensor in tuned.model.state_dict().items()}


def test_the_loss_of_a_step_is_the_formula_on_what_the_network_answers(world):
    small = Small.of(world, choose=0)
    made = small.loop("resnet50-weighted", {"augment.flip": 0.0})
    made._begin_stage()
    set_modes(made.model, freeze_norm=False)
    parts = next(made.feed.steps(0, 0, 0, made.row_losses))
    [part] = parts
    assert len(part.rows) == 16
    with torch.no_grad():
        logits = made.model(*part.given).numpy()
    trained = small.values
    weights = (trained == 0).sum(axis=0) / (trained == 1).sum(axis=0)
    wanted = masked_bce(logits, trained[part.rows], weights)
    assert made._step(parts) == pytest.approx(wanted, rel=1e-5)


@dataclass
class Script:
    """Stands in for the measuring of the choosing rows: scores as written, logits as they came."""

    scores: list[float]
    logits: list[np.ndarray]

    def __call__(self, names: Any, logits: np.ndarray, values: Any) -> Validation:
        self.logits.append(logits.copy())
        return Validation(self.scores[len(self.logits) - 1], 0.5, 0.5, 0.5, (0.5,) * len(names))


def test_resnet34_partial_keeps_the_best_of_its_eight_epochs(world, monkeypatch):
    script = Script([0.9, 0.8, 0.7, 0.75, 0.7, 0.71, 0.9, 0.8], [])
    monkeypatch.setattr(loop, "validate", script)
    made = Small.of(world).loop("resnet34-partial")
    history = made.run()
    assert len(script.logits) == 8 and set(history.rates) == {1e-4}
    assert history.best is not None and history.best.number == 3
    np.testing.assert_array_equal(made.predict(made.choose), script.logits[2])
    assert not np.array_equal(script.logits[2], script.logits[-1])


def test_the_two_stages_lower_their_rate_end_early_and_go_on_from_the_best(world, monkeypatch):
    first = [0.9, 0.8, 0.81, 0.82, 0.83]
    second = [0.75, 0.74, 0.8, 0.8, 0.8, 0.8, 0.8]
    script = Script([*first, *second], [])
    monkeypatch.setattr(loop, "validate", script)
    made = Small.of(world).loop(TWO_STAGES)
    starts: list[np.ndarray] = []
    begin = made._begin_stage

    def begin_stage() -> None:
        starts.append(made.predict(made.choose))
        begin()

    monkeypatch.setattr(made, "_begin_stage", begin_stage)
    history = made.run()
    assert [epoch.number for epoch in history.epochs] == [1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 6, 7]
    # One step an epoch. Three epochs without improvement halve the rate, five end the stage.
    assert history.rates == pytest.approx([1e-3] * 5 + [1e-4] * 5 + [0.5e-4] * 2)
    np.testing.assert_array_equal(starts[1], script.logits[1])  # the best of the first stage
    np.testing.assert_array_equal(made.predict(made.choose), script.logits[6])


@pytest.mark.parametrize("name", ["resnet34-partial", TWO_STAGES, "resnet50"])
def test_no_held_out_row_has_a_say_in_the_weights(world, name):
    small = Small.of(world, holdout=8)
    if name == "resnet50":
        small = replace(small, parts=np.where(small.parts == "choose", "train", small.parts))
    held_out = small.parts == "holdout"
    flipped = np.where(held_out[:, None], 1 - np.nan_to_num(small.values, nan=0), small.values)
    elsewhere = [
        small.paths[0] if hidden else path
        for path, hidden in zip(small.paths, held_out, strict=True)
    ]
    changes = {"stages.*.epochs": 2, "stages.*.lr": 1e-3}
    one = small.tuned(name, changes)
    other = replace(small, values=flipped, paths=elsewhere).tuned(name, changes)
    assert numbers(one) == numbers(other)
    trained, choose = small.parts == "train", small.parts == "choose"
    assert np.isnan(one.logits[trained]).all() and np.isfinite(one.logits[~trained]).all()
    np.testing.assert_array_equal(one.logits[choose], other.logits[choose])
    assert not np.array_equal(one.logits[held_out], other.logits[held_out])


def test_no_choosing_row_is_trained_on(world):
    small = Small.of(world)
    flipped = np.where((small.parts == "choose")[:, None], 1 - small.values, small.values)
    changes = {"stages.*.epochs": 2, "training.keep": "last"}
    one = small.tuned("resnet34-partial", changes)
    assert numbers(one) == numbers(
        replace(small, values=flipped).tuned("resnet34-partial", changes)
    )


GARBAGE = (float("nan"), float("inf"), -1.0, 1.0, 3e38)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"loss.pos_weight": "none", "loss.name": "asymmetric", "loss.label_smoothing": 0.1},
        {"loss.name": "focal", "loss.per": "attribute", "sampler.hard": 0.5},
        {"loss.pos_weight": "none", "loss.name": "class_balanced", "augment.mixup": 0.5},
    ],
    ids=["bce, weighted", "asymmetric", "focal, hard", "class_balanced, mixup"],
)
def test_nothing_that_stands_under_a_hole_changes_a_trained_weight(world, monkeypatch, changes):
    small, changes = Small.of(world), {"stages.*.epochs": 2} | changes
    before = small.tuned("resnet50-weighted", changes)
    plain, holes = Feed._part, 0

    def filled(self: Feed, *given: Any) -> Part:
        nonlocal holes
        part = plain(self, *given)
        hidden = ~part.known
        holes += int(hidden.sum())
        targets = part.targets.clone()
        targets[hidden] = torch.from_numpy(np.resize(np.float32(GARBAGE), int(hidden.sum())))
        return replace(part, targets=targets)

    monkeypatch.setattr(Feed, "_part", filled)
    after = small.tuned("resnet50-weighted", changes)
    assert holes > 0 and before.history.losses == after.history.losses
    assert numbers(before) == numbers(after)


# Each beside what it changes of resnet50-weighted on the tiny network, trained for two epochs.
OPTIONS: list[dict[str, object]] = [
    {"loss.pos_weight": "none"},
    {"loss.pos_weight_cap": 0.5},
    {"loss.per": "attribute"},
    {"loss.label_smoothing": 0.1},
    {"loss.name": "focal"},
    {"loss.name": "focal", "loss.gamma": 1.0},
    {"loss.name": "focal", "loss.alpha": 0.25},
    {"loss.name": "focal", "loss.pos_weight": "none"},
    {"loss.name": "asymmetric", "loss.pos_weight": "none"},
    {"loss.name": "asymmetric", "loss.pos_weight": "none", "loss.clip": 0.3},
    {"loss.name": "asymmetric", "loss.pos_weight": "none", "loss.gamma_negative": 2.0},
    {"loss.name": "asymmetric", "loss.pos_weight": "none", "loss.gamma_positive": 0.0},
    {"loss.name": "class_balanced", "loss.pos_weight": "none"},
    {"loss.name": "class_balanced", "loss.pos_weight": "none", "loss.beta": 0.5},
    {"sampler.kind": "rare"},
    {"sampler.hard": 0.5},
    {"augment.mixup": 0.4},
    {"augment.cutmix": 1.0},
    {"augment.mixup": 0.4, "augment.cutmix": 1.0},
]


@pytest.fixture(scope="module")
def every_option(world) -> list[finetune.Tuned]:
    """The plain training, then one for each of `OPTIONS`."""
    small = Small.of(world, choose=0)
    rare = small.values.copy()
    rare[3:, 0] = np.where(rare[3:, 0] == 1, 0, rare[3:, 0])  # so that weights and samplers matter
    small = replace(small, values=rare)
    base = {"stages.*.epochs": 2, "stages.*.lr": 1e-3}
    return [small.tuned("resnet50-weighted", base | changes) for changes in [{}, *OPTIONS]]


@pytest.mark.parametrize("index", range(len(OPTIONS)), ids=[str(each) for each in OPTIONS])
def test_every_option_of_loss_sampler_and_mixing_trains_in_its_own_way(every_option, index):
    tuned = every_option[index + 1]
    assert len(tuned.history.losses) == 4 and np.isfinite(tuned.history.losses).all()
    assert all(t.isfinite().all() for t in tuned.model.state_dict().values())
    others = [numbers(each) for i, each in enumerate(every_option) if i != index + 1]
    assert numbers(tuned) not in others


# --------------------------------------------------------------------- what does not go together


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"training.keep": "best"}, r'split.choose: training.keep = "best" needs rows'),
        ({"training.schedule": "plateau"}, r'training.schedule = "plateau" needs rows'),
        ({"training.early_stop": 3}, r"training.early_stop needs rows .*split.choose=0.15"),
        (
            {"head.init": "probe", "head.kind": "mlp"},
            r"head.init: only a linear head .*got head.kind = mlp",
        ),
        (
            {"loss.name": "asymmetric", "loss.pos_weight": "balanced"},
            r"loss.pos_weight: .*does not go with asymmetric",
        ),
        (
            {"loss.name": "class_balanced", "loss.pos_weight": "balanced"},
            r"does not go with class_balanced",
        ),
        ({"stages.0.frozen": 5}, r"test_resnet has fewer blocks .*got 5, expected at most 4"),
    ],
)
def test_fields_that_do_not_go_together_are_refused_and_leave_no_run(
    world, tmp_path, changes, said
):
    with pytest.raises(RecipeError, match=said):
        polytag.fit(
            world.table(),
            world.images,
            recipe="resnet18-head",
            changes=SMALL["resnet18-head"] | changes,
            folder=tmp_path,
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", SMALL)
def test_the_fields_of_every_recipe_go_together(name):
    finetune.check(load_recipe(name))


def test_the_mistake_is_found_before_a_picture_is_looked_at(world, tmp_path):
    with pytest.raises(RecipeError, match="needs rows"):
        polytag.fit(
            world.table(),
            tmp_path / "no such folder",
            recipe="resnet50",
            changes={"training.keep": "best"},
            folder=tmp_path,
        )


def test_too_few_rows_for_the_parts_is_said(world):
    recipe = load_recipe("resnet34-partial", {"split.holdout": 0.5})
    values = np.array([[1], [0]], np.float32)
    with pytest.raises(UserError, match="too few different pictures"):
        parts_of(recipe, values)


def test_identical_pictures_are_in_one_part():
    recipe = load_recipe("resnet34-partial", HELD_OUT)
    groups = np.repeat(np.arange(ROWS // 5), 5)
    parts = split_parts(dresses(), groups, recipe.split, recipe.seed)
    assert all(len(set(parts[groups == group])) == 1 for group in range(ROWS // 5))
    # choose is a share of what is not held out
    shares = {part: (parts == part).mean() for part in ("train", "choose", "holdout")}
    assert shares == pytest.approx({"train": 0.6375, "choose": 0.1125, "holdout": 0.25}, abs=0.01)
