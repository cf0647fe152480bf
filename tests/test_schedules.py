"""Learning rates against torch's own schedulers; plateaus and early stopping against torch too."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau

from polytag.config import TrainingConfig
from polytag.errors import UserError
from polytag.schedules import (
    SCHEDULES,
    Patience,
    Plateau,
    constant,
    cosine,
    half_life_decay,
    one_cycle,
)

NAN = math.nan


def optimiser(lr: float = 1.0) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


# ------------------------------------------------------------------------------------ schedules


def test_every_schedule_of_the_recipe_is_there_and_no_other():
    named = TrainingConfig.model_fields["schedule"].annotation.__args__
    assert sorted(SCHEDULES) == sorted(named)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("warmup", [0.0, 0.1])
def test_no_step_raises_the_rate_above_its_base_or_stands_still_at_the_start(name, warmup):
    factors = [SCHEDULES[name](step / 50, warmup) for step in range(50)]
    assert all(0 < factor <= 1 for factor in factors)
    assert max(factors) == pytest.approx(1)


def test_constant_and_plateau_leave_the_rate_alone():
    for name in ("constant", "plateau"):
        assert {SCHEDULES[name](p, 0.3) for p in np.linspace(0, 1, 11)} == {1.0}
    assert constant(0.3, 0.0) == 1


def torch_one_cycle(steps: int, rise: float) -> list[float]:
    optimizer = optimiser()
    scheduler = OneCycleLR(optimizer, max_lr=1.0, total_steps=steps, pct_start=rise)
    rates = []
    for _ in range(steps):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step() if len(rates) < steps else None
    return rates


@pytest.mark.parametrize("steps", [11, 101])
def test_one_cycle_is_torchs(steps):
    # torch counts its last step as progress 1 and puts the peak at pct_start * steps - 1.
    rise = (0.3 * (steps - 1) + 1) / steps
    ours = [one_cycle(step / (steps - 1), 0.0) for step in range(steps)]
    assert ours == pytest.approx(torch_one_cycle(steps, rise), rel=1e-9)


def test_one_cycle_is_torchs_default_over_many_steps():
    ours = [one_cycle(step / 2000, 0.0) for step in range(2000)]
    assert ours == pytest.approx(torch_one_cycle(2000, 0.3), abs=3e-3)


@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.5])
def test_cosine_rises_in_a_line_and_falls_as_torchs_annealing(warmup):
    steps, rising = 100, round(100 * warmup)
    ours = np.array([cosine(step / steps, warmup) for step in range(steps + 1)])
    if rising:
        assert ours[0] == pytest.approx(0.01)
        assert np.diff(ours[: rising + 1]) == pytest.approx(0.99 / rising)
    optimizer = optimiser()
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps - rising)
    for factor in ours[rising:]:
        assert factor == pytest.approx(scheduler.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        scheduler.step()
    assert ours[-1] == 0


# -------------------------------------------------------------------------------------- plateau


def scores(seed: int) -> list[float]:
    """A fall with noise, near repeats of the best and NaN now and then, and flat at the end."""
    rng = np.random.default_rng(seed)
    found: list[float] = []
    for epoch in range(60):
        near = min((s for s in found if s == s), default=1.0) * (1 - rng.choice([5e-5, 2e-4]))
        fresh = math.exp(-epoch / 20) * rng.uniform(0.8, 1.2)
        found.append(float(rng.choice([near, fresh, NAN], p=[0.3, 0.6, 0.1])))
    return found + [1.0] * 5


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("mode", "sign"), [("min", 1), ("max", -1)])
def test_plateau_is_torchs(seed, mode, sign):
    rng = np.random.default_rng(seed)
    factor, patience = float(rng.uniform(0.1, 0.9)), int(rng.integers(0, 4))
    optimizer = optimiser()
    # eps: torch keeps a rate that would change by less.
    theirs = ReduceLROnPlateau(optimizer, mode=mode, factor=factor, patience=patience, eps=0)
    ours = Plateau(factor, patience)
    for score in scores(seed):
        score **= sign  # for "max" one that rises, which ours takes negated
        theirs.step(score)
        ours.update(sign * score)
        assert ours.scale == optimizer.param_groups[0]["lr"]
        assert ours.waited == theirs.num_bad_epochs
    assert ours.scale < 1


@pytest.mark.parametrize("best", [0.5, -0.5])
def test_a_little_worse_or_hardly_better_is_no_improvement(best):
    plateau = Plateau(0.5, 10)
    for score in (best, best + 1e-6, best - 1e-6, best - 0.9e-4 * abs(best)):
        plateau.update(score)
    assert (plateau.best, plateau.waited) == (best, 3)
    plateau.update(best - 1.1e-4 * abs(best))
    assert plateau.waited == 0


@pytest.mark.parametrize("bad", [NAN, math.inf, -math.inf])
def test_a_score_that_is_no_number_is_no_improvement_not_even_the_first(bad):
    plateau, patience = Plateau(0.5, 0), Patience(2)
    plateau.update(bad)
    assert (plateau.scale, plateau.best) == (0.5, None)
    assert [patience.update(score) for score in (bad, 1.0, bad, bad)] == [False, False, False, True]
    assert patience.best == 1.0


@pytest.mark.parametrize("make", [lambda: Plateau(0.5, 1), lambda: Patience(3)])
@pytest.mark.parametrize("cut", [0, 1, 7, 30])
def test_a_state_through_json_goes_on_where_it_was(make, cut):
    sequence = scores(3)
    whole, first = make(), make()
    for score in sequence[:cut]:
        first.update(score)
    second = type(first)(**json.loads(json.dumps(asdict(first), allow_nan=False)))
    ends = [second.update(score) for score in sequence[cut:]]
    assert ends == [whole.update(score) for score in sequence][cut:]
    assert second == whole


# -------------------------------------------------------------------------------- early stopping


def first_stop(limit: int, sequence: list[float]) -> int | None:
    """The first epoch that ends `limit` epochs of no new best, from the definition."""
    for end in range(limit, len(sequence)):
        earlier = min(sequence[: end - limit + 1])
        if min(sequence[end - limit + 1 : end + 1]) >= earlier:
            return end
    return None


@pytest.mark.parametrize("limit", [1, 2, 5])
@pytest.mark.parametrize("seed", range(10))
def test_patience_stops_after_so_many_epochs_without_a_new_best(limit, seed):
    # Whole numbers: every fall is above the threshold.
    sequence = [float(x) for x in np.random.default_rng(seed).integers(1, 40, 60)]
    patience = Patience(limit)
    stops = [patience.update(score) for score in sequence]
    expected = first_stop(limit, sequence)
    assert (stops.index(True) if any(stops) else None) == expected


def test_patience_0_never_stops():
    patience = Patience(TrainingConfig().early_stop)
    assert not any(patience.update(1.0) for _ in range(100))


# ------------------------------------------------------------------------------------- half-life


@pytest.mark.parametrize("steps", [0.2, 1.0, 12.5, 1000.0])
def test_after_a_half_life_what_was_in_the_mean_weighs_half(steps):
    mean = 1.0
    decay = half_life_decay(steps)
    for _ in range(round(steps * 10)):
        mean = decay * mean + (1 - decay) * 0.0
    assert mean == pytest.approx(0.5**10, rel=1e-6)


@pytest.mark.parametrize("steps", [0.0, -1.0, NAN])
def test_no_half_life_no_mean(steps):
    with pytest.raises(UserError, match="half-life"):
        half_life_decay(steps)
