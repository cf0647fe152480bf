"""Intervals around everything that is measured: that they are there, honest, and see no hole."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import reference

from polytag.errors import UserError
from polytag.intervals import all_right, ap_logit_interval, delong_interval
from polytag.results import METRICS, TOGETHER, Value, with_thresholds, with_verdicts
from polytag.scorecard import calibration_interval, evaluate_arrays

NAN = math.nan
NAMES = ["hat", "scarf", "tie", "coat"]
THRESHOLDS = [0.5, 0.3, 0.6, 0.5]
GROUPS = [i // 2 for i in range(40)]

cases = st.sampled_from(reference.HOLES)
seeds = st.integers(0, 1000)
groupings = st.lists(st.integers(0, 40), min_size=40, max_size=40)


@pytest.fixture(autouse=True, scope="module")
def fewer_resamples():
    """Draw 400 resamples instead of 2,000: a deviation is then known to 3.5 %."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("polytag.intervals.MOST_RESAMPLES", 400)
        yield


def numbers(result):
    """Yield every number of an evaluation with its name."""
    for each in result.attributes:
        yield from ((f"{each.name} {metric}", getattr(each, metric)) for metric in METRICS)
    yield from ((f"macro {metric}", result.macro[metric]) for metric in METRICS)
    yield from ((name, getattr(result, name)) for name in TOGETHER)


# --------------------------------------------------------------------------------- with any holes


@settings(deadline=None, max_examples=60)
@given(case=cases, seed=seeds, groups=groupings)
def test_every_number_that_is_defined_lies_in_its_interval(case, seed, groups):
    values, probabilities = reference.draw(case, seed)
    result = evaluate_arrays(NAMES, values, probabilities, THRESHOLDS, groups=groups)
    known = {g for g, row in zip(groups, values, strict=True) if not all(map(math.isnan, row))}
    for name, number in numbers(result):
        if math.isnan(number.value):
            assert number.low is None and number.high is None, name
        elif name != "log_loss":
            assert 0 <= number.low <= number.value <= number.high <= 1, name
            assert number.low < number.high, name
        elif len(known) > 1:
            assert 0 < number.low < number.value < number.high
    assert json.dumps(result.to_dict(), allow_nan=False)


@settings(deadline=None, max_examples=40)
@given(case=cases, seed=seeds, fill=st.lists(st.floats(width=32), min_size=1, max_size=5))
def test_no_interval_sees_what_stands_under_a_hole(case, seed, fill):
    values, probabilities = (np.array(a) for a in reference.draw(case, seed))
    thresholds = np.broadcast_to(THRESHOLDS, values.shape).copy()
    holes = np.isnan(values)

    def evaluate(probabilities, thresholds):
        return repr(evaluate_arrays(NAMES, values, probabilities, thresholds, groups=GROUPS))

    before = evaluate(probabilities, thresholds)
    probabilities[holes] = np.resize(fill, holes.sum())
    thresholds[holes] = np.resize(fill[::-1], holes.sum())
    assert evaluate(probabilities, thresholds) == before


@settings(deadline=None, max_examples=20)
@given(case=cases, seed=seeds)
def test_rows_without_a_known_cell_change_no_interval(case, seed):
    values, probabilities = (np.array(a) for a in reference.draw(case, seed))
    more = np.concatenate([values, np.full((3, 4), NAN)])
    filled = np.concatenate([probabilities, np.full((3, 4), 0.5)])
    result = evaluate_arrays(NAMES, values, probabilities, THRESHOLDS, groups=GROUPS)
    # In groups that are there already: a group more would have weights of its own.
    other = evaluate_arrays(NAMES, more, filled, THRESHOLDS, groups=[*GROUPS, 0, 0, 7])
    for (name, number), (_, same) in zip(numbers(result), numbers(other), strict=True):
        if number.low is not None:
            expected = pytest.approx((number.low, number.high), abs=1e-9)
            assert (same.low, same.high) == expected, name


@pytest.mark.parametrize("case", reference.HOLES)
def test_groups_change_nothing_but_intervals(case):
    values, probabilities = reference.draw(case, 3)
    folds = [i % 5 for i in range(40)]
    arrays = NAMES, values, probabilities, THRESHOLDS
    plain = evaluate_arrays(*arrays, folds=folds)
    result = evaluate_arrays(*arrays, folds=folds, groups=GROUPS)
    pairs = zip(numbers(plain), numbers(result), strict=True)
    for (name, without), (_, number) in pairs:
        assert without.low is None and without.high is None
        assert repr(replace(number, low=None, high=None)) == repr(without), name


# ------------------------------------------------------------------------------- which interval


def drawn(rows=300, columns=3, seed=0, copies=1, distance=1.5):
    rng = np.random.default_rng(seed)
    values = (rng.random((rows, columns)) < [0.2, 0.4, 0.1][:columns]).astype(float)
    logits = rng.normal(size=values.shape) + distance * values - 1
    arrays = values, 1 / (1 + np.exp(-logits))
    return [np.repeat(each, copies, axis=0) for each in arrays]


def test_single_rows_have_the_logit_interval_and_delongs():
    values, probabilities = drawn()
    result = evaluate_arrays(NAMES[:3], values, probabilities, [0.5] * 3, groups=range(300))
    for k, each in enumerate(result.attributes):
        assert (each.ap.low, each.ap.high) == ap_logit_interval(each.ap.value, each.present)
        delongs = delong_interval(values[:, k], probabilities[:, k])
        assert (each.auc.low, each.auc.high) == delongs


def test_copies_in_groups_widen_nothing_and_as_single_rows_would_narrow():
    values, probabilities = drawn()
    once = evaluate_arrays(NAMES[:3], values, probabilities, [0.5] * 3, groups=range(300))
    doubled = drawn(copies=2)
    groups = np.repeat(np.arange(300), 2)
    grouped = evaluate_arrays(NAMES[:3], *doubled, [0.5] * 3, groups=groups)
    apart = evaluate_arrays(NAMES[:3], *doubled, [0.5] * 3, groups=range(600))
    found = zip(numbers(once), numbers(grouped), numbers(apart), strict=True)
    for (name, number), (_, same), (_, narrow) in found:
        if name.endswith("ece"):
            continue  # bins may divide copies otherwise
        width = number.high - number.low
        # AP and AUC of single rows have another method, and few resamples a noise of some 5 %.
        tolerance = 0.25 if name.endswith(("ap", "auc")) else 1e-6
        assert same.high - same.low == pytest.approx(width, rel=tolerance), name
        assert narrow.high - narrow.low < 0.85 * width, name


def test_the_macro_mean_of_one_attribute_is_that_attributes():
    values, probabilities = drawn(columns=1)
    result = evaluate_arrays(["hat"], values, probabilities, [0.5], groups=range(300))
    for metric in METRICS:
        number, mean = getattr(result.attributes[0], metric), result.macro[metric]
        assert (mean.value, mean.low, mean.high) == (number.value, number.low, number.high)


def test_a_mean_over_attributes_is_surer_than_one_of_them():
    values, probabilities = drawn(columns=2)
    result = evaluate_arrays(NAMES[:2], values, probabilities, [0.5] * 2, groups=range(300))
    for metric in ("ap", "auc", "f1", "balanced_accuracy", "recall"):
        widths = [getattr(a, metric).high - getattr(a, metric).low for a in result.attributes]
        mean = result.macro[metric]
        assert mean.high - mean.low < 0.9 * max(widths), metric
    twice = evaluate_arrays(
        NAMES[:2], values[:, [0, 0]], probabilities[:, [0, 0]], [0.5] * 2, groups=range(300)
    )
    # The same one twice is no surer: the resamples are shared.
    each, mean = twice.attributes[0].brier, twice.macro["brier"]
    assert (mean.low, mean.high) == pytest.approx((each.low, each.high), abs=1e-3)


@pytest.mark.parametrize("copies", [1, 2])
def test_where_everything_is_right_an_interval_still_has_a_width(copies):
    values = np.repeat([1.0, 0.0], [10 * copies, 40 * copies])[:, None]
    groups = np.arange(50 * copies) // copies
    result = evaluate_arrays(["hat"], values, values * 0.8 + 0.1, [0.5], groups=groups)
    hat = result.attributes[0]
    for number in (hat.ap, hat.auc, result.macro["auc"]):
        assert (number.value, number.low, number.high) == (1, pytest.approx(all_right(10)), 1)
    for number in (hat.f1, hat.recall, hat.accuracy, hat.balanced_accuracy, hat.precision):
        assert number.value == number.high == 1 and 0.6 < number.low < 0.99
    assert result.exact_match.low == result.hamming.low == pytest.approx(all_right(50))


def test_a_single_group_says_nothing():
    values, probabilities = drawn(20, columns=1)
    result = evaluate_arrays(["hat"], values, probabilities, [0.5], groups=[0] * 20)
    hat = result.attributes[0]
    for number in (hat.ap, hat.auc, hat.brier, hat.ece, result.hamming):
        assert (number.low, number.high) == (0, 1)
    assert result.log_loss.low is None


@pytest.mark.parametrize("groups", [[0, 1], [0.0, 1.0, 2.0], [0, 1, -1], [[0, 1, 2]]])
def test_groups_are_one_integer_a_row(groups):
    with pytest.raises(UserError, match="wrong groups"):
        evaluate_arrays(["hat"], [[1], [0], [1]], [[0.5]] * 3, [0.5], groups=groups)


# -------------------------------------------------------------------------------------- coverage


@pytest.mark.parametrize("size", [1, 2])
def test_intervals_hold_the_truth_as_often_as_they_say(size):
    """150 draws of 67 of 1,744; benchmarks/intervals.py makes 1,000 of many kinds."""
    rng = np.random.default_rng(1)
    distance, rate, threshold = 1.4657, 67 / 1744, 0.2  # AUC .85
    cut = (np.log(threshold / (1 - threshold)) - np.log(rate / (1 - rate))) / distance
    cut += distance / 2
    recall = (1 - math.erf((cut - distance) / 2**0.5)) / 2
    truth = {"ap": 0.2758, "auc": 0.85, "recall": recall, "ece": 0.0}
    held = dict.fromkeys(truth, 0)
    for _ in range(150):
        groups = np.arange(1744) // size
        present = (rng.random(groups[-1] + 1) < rate)[groups]
        score = rng.normal(size=groups[-1] + 1)[groups] + distance * present
        logits = np.log(rate / (1 - rate)) + distance * score - distance**2 / 2
        arrays = present[:, None].astype(float), 1 / (1 + np.exp(-logits[:, None]))
        hat = evaluate_arrays(["hat"], *arrays, [threshold], groups=groups).attributes[0]
        for metric, true in truth.items():
            number: Value = getattr(hat, metric)
            held[metric] += number.low <= true <= number.high
    # 95 % of 150 are 142.5 +- 2.7; as single rows the groups of 2 would give some 125.
    assert min(held.values()) >= 134, held


# ----------------------------------------------------------------------------------- calibration


def test_a_calibration_error_that_noise_explains_may_be_none():
    noise = np.random.default_rng(0).normal(0, 0.01, (2000, 1, 10))
    assert calibration_interval(noise[0], noise + noise[0])[0] == 0
    # Where no gap changes its sign the error is a sum: normal, with deviation .01 sqrt(10).
    gaps = noise[0] + 0.1
    found = calibration_interval(gaps, noise + gaps)
    assert found == pytest.approx(gaps.sum() + np.array([-1.96, 1.96]) * 0.01 * 10**0.5, abs=0.01)


def test_no_gap_at_all_may_hide_one_as_large_as_the_noise():
    noise = np.random.default_rng(0).normal(0, 0.01, (2000, 1, 10))
    low, high = calibration_interval(np.zeros((1, 10)), noise)
    assert low == 0 and 0.08 < high < 0.16


# ------------------------------------------------------------------------------ what is added later


def test_verdicts_and_thresholds_are_put_beside_the_numbers():
    values, probabilities = reference.draw("30 % holes", 0)
    result = evaluate_arrays(NAMES, values, probabilities, np.full((40, 4), 0.5))
    judged = with_verdicts(result, {"scarf": ("too few to tell: 3", NAN, NAN)})
    judged = with_verdicts(judged, {"hat": ("learnable: p 0.001", 0.001, 0.004)})
    judged = with_thresholds(judged, {"hat": Value(0.3, low=0.2, high=0.4), "tie": Value(0.6)})
    hat, scarf, tie, coat = judged.to_dict()["attributes"]
    assert (hat["verdict"], hat["p_value"], hat["p_holm"]) == ("learnable: p 0.001", 0.001, 0.004)
    assert (hat["threshold"], hat["threshold_low"], hat["threshold_high"]) == (0.3, 0.2, 0.4)
    assert (scarf["verdict"], scarf["p_value"]) == ("too few to tell: 3", None)
    assert (tie["threshold"], tie["threshold_low"], tie["verdict"]) == (0.6, None, None)
    assert coat["threshold"] is coat["verdict"] is None
