"""What is frozen, at which rate the rest moves, and the running mean of the weights."""

from __future__ import annotations

import pytest
import torch
from tests.tiny import tiny_model, tiny_recipe
from torch import nn

from polytag.backbone import import_timm
from polytag.config import StageConfig, TrainingConfig
from polytag.errors import RecipeError
from polytag.schedules import half_life_decay
from polytag.trainable import (
    OPTIMISERS,
    RunningMean,
    all_finite,
    copied,
    freeze,
    frozen_depth,
    load_optimiser,
    make_optimiser,
    optimiser_state,
    parameter_groups,
    set_modes,
)

import_timm()
from timm.optim import param_groups_layer_decay  # noqa: E402

NORMS = (nn.BatchNorm2d,)  # timm's norm layers are subclasses of it


@pytest.fixture(scope="module")
def model():
    """Everybody freezes it as they need it."""
    return tiny_model(tiny_recipe())


def images(count: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8, generator=generator)


# ------------------------------------------------------------------------------------ freezing


def test_the_whole_backbone_is_frozen_or_nothing_is(model):
    assert freeze(model, "backbone") == ["head.linear.weight", "head.linear.bias"]
    assert [n for n, p in model.named_parameters() if p.requires_grad] == freeze(model, "backbone")
    assert len(freeze(model, "nothing")) == len(list(model.parameters()))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_the_stem_and_so_many_blocks_are_frozen(model, count):
    freeze(model, count)
    depths = model.backbone.depths()
    for name, parameter in model.backbone.named_parameters():
        assert parameter.requires_grad == (depths[name] > count), name
    assert all(p.requires_grad for p in model.head.parameters())
    assert not model.backbone.network.conv1[0].weight.requires_grad  # the stem, by its own name


@pytest.mark.parametrize("share, depth", [(0.1, 0), (0.25, 1), (0.5, 2), (0.94, 3), (0.999, 3)])
def test_a_share_of_the_blocks_is_frozen(model, share, depth):
    assert frozen_depth(model.backbone, share) == depth  # of four; the last one is always trained
    assert freeze(model, share) == freeze(model, depth)


def test_depthwise_convolutions_can_be_frozen_wherever_they_stand():
    model = tiny_model(tiny_recipe({"backbone.name": "test_efficientnet"}))
    every, less = (freeze(model, "nothing", depthwise=choice) for choice in (False, True))
    kept = set(every) - set(less)
    named = dict(model.named_parameters())
    assert kept and all(named[name].shape[1] == 1 and named[name].ndim == 4 for name in kept)
    assert freeze(model, "nothing") == every


def test_more_blocks_than_there_are_cannot_be_frozen(model):
    with pytest.raises(RecipeError, match=r"fewer blocks .* got 99, expected at most"):
        freeze(model, 99)


def test_what_is_frozen_neither_drops_out_nor_takes_statistics(model):
    freeze(model, 2)
    set_modes(model, freeze_norm=False)
    network = model.backbone.network
    assert not any(module.training for module in network.layer1.modules())
    last = list(network.children())[-1]
    trained = [m for m in model.modules() if isinstance(m, NORMS) and m.weight.requires_grad]
    frozen = [m for m in model.modules() if isinstance(m, NORMS) and not m.weight.requires_grad]
    assert trained and frozen and last is not network
    before = copied(model.state_dict())
    model(images())
    changed = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    names = dict(model.named_modules())
    expected = {
        f"{name}.{buffer}"
        for name, module in names.items()
        for buffer, _ in module.named_buffers(recurse=False)
        if module in trained
    }
    assert changed == expected


def test_freeze_norm_keeps_statistics_and_trains_weights(model):
    freeze(model, "nothing")
    set_modes(model, freeze_norm=True)
    norms = [module for module in model.modules() if isinstance(module, NORMS)]
    assert norms and not any(norm.training for norm in norms)
    assert model.training and model.head.dropout.training
    before = copied(model.state_dict())
    model(images()).sum().backward()
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert norms[-1].weight.grad is not None
    model.zero_grad(set_to_none=True)


# --------------------------------------------------------------------------------------- rates


@pytest.mark.parametrize("decay", [1.0, 0.75])
def test_rates_of_layers_are_timms(model, decay):
    freeze(model, "nothing")
    groups = parameter_groups(model, StageConfig(lr=0.5, backbone_lr=0.01), decay)
    assert sorted(name for group in groups for name in group["names"]) == sorted(
        name for name, _ in model.named_parameters()
    )
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    network = model.backbone.network
    timms = param_groups_layer_decay(network, weight_decay=0.0, layer_decay=decay)
    scales = {id(p): group["lr_scale"] for group in timms for p in group["params"]}
    assert len(set(scales.values())) == (
        1 if decay == 1 else 1 + max(model.backbone.depths().values())
    )
    for name, parameter in network.named_parameters():
        assert rates[id(parameter)] == pytest.approx(0.01 * scales[id(parameter)]), name
    assert [rates[id(p)] for p in model.head.parameters()] == [0.5, 0.5]
    assert set(groups[0]["names"]) == {"head.linear.weight", "head.linear.bias"}


def test_a_backbone_takes_the_heads_rate_unless_it_has_its_own(model):
    freeze(model, "nothing")
    (group,) = parameter_groups(model, StageConfig(lr=0.5), 1.0)
    assert group["lr"] == group["base"] == 0.5


def test_only_what_is_trained_is_in_the_groups(model):
    names = freeze(model, 3)
    groups = parameter_groups(model, StageConfig(lr=0.5, backbone_lr=0.1), 0.5)
    assert sorted(name for group in groups for name in group["names"]) == sorted(names)


# ---------------------------------------------------------------------------------- optimisers


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_an_optimiser_goes_on_from_its_state_bit_for_bit(kind):
    config = TrainingConfig(optimiser=kind, weight_decay=0.1)
    stage = StageConfig(lr=1e-2, backbone_lr=1e-3)

    def begin():
        model = tiny_model(tiny_recipe()).eval()
        freeze(model, 4)
        return model, make_optimiser(model, stage, config)

    def step(model, optimiser):
        optimiser.zero_grad()
        model(images()).square().sum().backward()
        optimiser.step()

    model, optimiser = begin()
    step(model, optimiser)
    weights, state = copied(model.state_dict()), copied(optimiser_state(optimiser))
    assert state
    step(model, optimiser)
    again, fresh = begin()
    again.load_state_dict(weights)
    load_optimiser(fresh, state)
    step(again, fresh)
    expected = model.state_dict()
    assert all(torch.equal(t, expected[name]) for name, t in again.state_dict().items())


def test_sgd_has_momentum_and_decays_weights():
    weight = nn.Parameter(torch.tensor([2.0]))
    groups = [{"params": [weight], "lr": 0.1}]
    optimiser = OPTIMISERS["sgd"](groups, lr=0.1, weight_decay=0.5)
    expected, velocity = 2.0, 0.0
    for _ in range(3):
        weight.grad = torch.ones(1)
        optimiser.step()
        velocity = 0.9 * velocity + 1 + 0.5 * expected
        expected -= 0.1 * velocity
    assert weight.item() == pytest.approx(expected)


# -------------------------------------------------------------------------------- running mean


def test_the_running_mean_is_the_sum_of_its_closed_form():
    generator, decay = torch.Generator().manual_seed(0), half_life_decay(3)
    states = torch.randn(12, 5, generator=generator, dtype=torch.float64)
    mean = RunningMean({"w": states[0]}, decay)
    for t in range(1, 12):
        mean.update({"w": states[t]})
        latest = sum((1 - decay) * decay ** (t - i) * states[i] for i in range(1, t + 1))
        torch.testing.assert_close(mean.state["w"], decay**t * states[0] + latest)
    assert decay**3 == pytest.approx(0.5)


def test_counters_are_taken_as_they_are_and_the_start_is_copied():
    start = {"w": torch.zeros(2), "count": torch.tensor(0)}
    mean = RunningMean(start, 0.5)
    mean.update({"w": torch.ones(2), "count": torch.tensor(7)})
    assert mean.state["count"].item() == 7
    assert start["w"].tolist() == [0, 0] and mean.state["w"].tolist() == [0.5, 0.5]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_one_number_that_is_none_is_found(bad):
    tensors = [torch.full((3,), 1e38), torch.zeros(2, 2)]
    assert all_finite(tensors) and all_finite([])
    tensors[1][1, 0] = bad
    assert not all_finite(tensors)
