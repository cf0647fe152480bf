"""Orders of an epoch: which rows, how often, and where in the batch."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest

from polytag.config import SamplerConfig
from polytag.errors import UserError
from polytag.samplers import SAMPLERS, epoch_order, rarity

NAN = math.nan


def table(rows: int = 200, seed: int = 0) -> np.ndarray:
    """Values with holes; the attributes are present in 50, 10, 2 and 0 of 100 known cells."""
    rng = np.random.default_rng(seed)
    values = (rng.random((rows, 4)) < [0.5, 0.1, 0.02, 0]).astype(np.float32)
    values[rng.random(values.shape) < 0.3] = NAN
    return values


def order(values, *, batch=16, seed=0, losses=None, **options) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return epoch_order(values, SamplerConfig(**options), batch=batch, rng=rng, losses=losses)


def slow_weights(values: np.ndarray) -> list[float]:
    """The weights before they are cut, cell by cell."""
    found = []
    for row in values:
        weight = 1.0
        for k, cell in enumerate(row):
            if cell == 1:
                column = [v for v in values[:, k] if not math.isnan(v)]
                weight = max(weight, len(column) / sum(v == 1 for v in column))
        found.append(weight)
    return found


# ---------------------------------------------------------------------------------- base orders


def test_every_sampler_of_the_recipe_is_there_and_no_other():
    assert sorted(SAMPLERS) == sorted(SamplerConfig.model_fields["kind"].annotation.__args__)


@pytest.mark.parametrize("kind", SAMPLERS)
@pytest.mark.parametrize("hard", [0.0, 0.4])
@pytest.mark.parametrize("rows", [1, 5, 16, 101])
def test_length_type_range_and_seed(kind, hard, rows):
    losses = np.random.default_rng(1).random(rows)

    def draw(seed):
        return order(table(rows), kind=kind, hard=hard, losses=losses, seed=seed)

    found = draw(0)
    assert found.shape == (rows,) and found.dtype == np.int64
    assert found.min() >= 0 and found.max() < rows
    np.testing.assert_array_equal(found, draw(0))
    if rows > 5:
        assert not np.array_equal(found, draw(1))


def test_shuffled_takes_every_row_once_in_any_order():
    values = table(4)
    rng = np.random.default_rng(0)
    seen = [tuple(epoch_order(values, SamplerConfig(), batch=2, rng=rng)) for _ in range(2400)]
    counts = [seen.count(each) for each in permutations(range(4))]
    assert sum(counts) == 2400  # nothing but permutations
    assert min(counts) > 60 and max(counts) < 145  # 100 each; 5 deviations are 50


def test_weights_are_the_rarest_attributes():
    values = table()
    np.testing.assert_allclose(rarity(values[:, :2]), slow_weights(values[:, :2]))  # none cut


def test_a_row_that_shows_nothing_weighs_1_whatever_it_lacks():
    values = np.array([[0, NAN], [NAN, NAN], [1, 0], [0, 0]], dtype=np.float32)
    np.testing.assert_allclose(rarity(values), [1, 1, 3, 1])


def test_many_common_attributes_do_not_add_up():
    values = np.zeros((20, 6), dtype=np.float32)
    values[:10, :5] = 1  # five attributes of one row in two
    values[19, 5] = 1  # one of a row in twenty
    weights = rarity(values)
    assert weights[0] == 2
    assert weights[19] == 20


@pytest.mark.parametrize("rows", [11, 100, 1003])
@pytest.mark.parametrize("lone", [1, 2, 7])
def test_no_row_is_expected_more_than_ten_times_and_not_less_without_need(rows, lone):
    values = np.zeros((rows, lone), dtype=np.float32)
    values[np.arange(lone), np.arange(lone)] = 1  # an attribute of a single picture each
    weights = rarity(values)
    expected = weights / weights.sum() * rows
    assert expected.max() <= 10 * (1 + 1e-12)
    uncut = np.array(slow_weights(values))
    cut = weights < uncut
    assert np.all(weights[~cut] == uncut[~cut])
    if (uncut / uncut.sum() * rows).max() > 10:
        assert expected[cut] == pytest.approx(10)
        assert cut.any()
    else:
        assert not cut.any()


def test_cut_weights_of_different_sizes_are_the_fixed_point():
    rng = np.random.default_rng(5)
    values = (rng.random((500, 30)) < np.geomspace(0.001, 0.02, 30)).astype(np.float32)
    uncut = np.array(slow_weights(values))
    cap = uncut.max()  # lowered until it holds, far slower and without the formula
    for _ in range(10_000):
        cap = min(cap, 10 * np.minimum(uncut, cap).mean())
    assert 1 < cap < uncut.max()
    np.testing.assert_allclose(rarity(values), np.minimum(uncut, cap))


def test_rare_draws_in_proportion_to_the_weights():
    values = table(50)
    rng = np.random.default_rng(0)
    epochs = 2000
    drawn = np.zeros(50)
    for _ in range(epochs):
        found = epoch_order(values, SamplerConfig(kind="rare"), batch=16, rng=rng)
        drawn += np.bincount(found, minlength=50)
    expected = rarity(values) / rarity(values).sum() * 50 * epochs
    assert np.all(np.abs(drawn - expected) < 5 * np.sqrt(expected))


# ---------------------------------------------------------------------------------- hard places


@pytest.mark.parametrize("kind", SAMPLERS)
def test_without_losses_or_without_hard_the_base_order(kind):
    values, losses = table(), np.ones(200)
    base = order(values, kind=kind)
    np.testing.assert_array_equal(order(values, kind=kind, hard=0.5), base)
    np.testing.assert_array_equal(order(values, kind=kind, losses=losses), base)


@pytest.mark.parametrize("kind", SAMPLERS)
@pytest.mark.parametrize(("rows", "batch", "hard"), [(200, 16, 0.25), (100, 7, 0.5), (9, 32, 0.9)])
def test_only_the_last_places_of_every_batch_are_drawn(kind, rows, batch, hard):
    values = table(rows)
    losses = np.random.default_rng(2).random(rows)
    base = order(values, batch=batch, kind=kind)
    found = order(values, batch=batch, kind=kind, hard=hard, losses=losses)
    for start in range(0, rows, batch):
        rows_of_batch = found[start : start + batch]
        kept = len(rows_of_batch) - round(hard * len(rows_of_batch))
        np.testing.assert_array_equal(rows_of_batch[:kept], base[start : start + kept])
        drawn = set(rows_of_batch[kept:].tolist())
        assert len(drawn) == len(rows_of_batch) - kept  # none twice
        assert not drawn & set(rows_of_batch[:kept].tolist())


def shares(losses, *, epochs=4000) -> np.ndarray:
    """How often each of the rows is drawn into the one hard place of a batch, in shares.

    Batches of two: the other row of the batch is uniform, and cannot be drawn.
    """
    rng = np.random.default_rng(7)
    values, config = np.zeros((len(losses), 1), np.float32), SamplerConfig(hard=0.5)
    counts = np.zeros(len(losses))
    for _ in range(epochs):
        found = epoch_order(values, config, batch=2, rng=rng, losses=np.array(losses))
        counts += np.bincount(found[1::2], minlength=len(losses))
    return counts / counts.sum()


def expected_shares(weights) -> np.ndarray:
    weights = np.asarray(weights, dtype=float)
    found = np.zeros(len(weights))
    for kept in range(len(weights)):
        others = np.where(np.arange(len(weights)) == kept, 0, weights)
        found += others / others.sum() / len(weights)
    return found


@pytest.mark.parametrize(
    ("losses", "weights"),
    [
        ([1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6]),
        ([0.01, 0.02, NAN, 0.05, 0.01, 0.01], [1, 2, 5, 5, 1, 1]),  # not yet: as the hardest
        ([1, math.inf, 2, 1, 1, 1], [1, 2, 2, 1, 1, 1]),  # a loss that overflowed says little
        ([NAN] * 6, [1] * 6),
        ([0.0] * 6, [1] * 6),
        ([0, 0, 0, 0, NAN, 0], [1] * 6),
    ],
)
def test_hard_places_are_drawn_in_proportion_to_loss(losses, weights):
    np.testing.assert_allclose(shares(losses), expected_shares(weights), atol=0.02)


def test_rows_of_loss_0_fill_up_what_the_hard_ones_leave():
    values = np.zeros((10, 1), np.float32)
    losses = np.array([5.0, 3.0] + [0.0] * 8)
    found = order(values, batch=10, hard=0.6, losses=losses)
    assert sorted(found.tolist()) == list(range(10))


def test_drawing_several_goes_one_after_the_other():
    # Two of three places: the first in proportion, the second among what is left.
    losses = np.array([6.0, 3.0, 1.0, 1e-12, 1e-12])
    rng, pairs = np.random.default_rng(3), {}
    config, values = SamplerConfig(hard=0.67), np.zeros((5, 1), np.float32)
    for _ in range(20_000):
        found = epoch_order(values, config, batch=3, rng=rng, losses=losses)[:3]
        if found[0] > 2:  # the kept row is one of no loss
            pair = frozenset(found[1:].tolist())
            pairs[pair] = pairs.get(pair, 0) + 1
    total = sum(pairs.values())
    for a, b in ((0, 1), (0, 2), (1, 2)):
        x, y = losses[[a, b]] / 10
        expected = x * y / (1 - x) + y * x / (1 - y)
        assert pairs[frozenset((a, b))] / total == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("shape", [(199,), (200, 1)])
def test_losses_of_other_rows_are_refused(shape):
    with pytest.raises(UserError, match="losses do not fit"):
        order(table(), hard=0.5, losses=np.ones(shape))
