"""Intervals in closed form against golden values, resamples against what is known of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from tests import reference
from tests.delong import delong_test

from polytag.intervals import (
    all_right,
    ap_logit_interval,
    bootstrap,
    bounded_interval,
    clopper_pearson,
    delong,
    delong_interval,
    holm,
    resample,
    student,
)
from polytag.metrics import average_precision, brier, hamming_accuracy, log_loss, roc_auc
from polytag.results import METRICS, TOGETHER

NAN = math.nan

# A toy of two scorings; B is A + .05 where the value is present.
ABSENT = [0.1, 0.2, 0.3, 0.25, 0.35, 0.15, 0.4, 0.45, 0.05, 0.3]
PRESENT = [0.2, 0.3, 0.4, 0.6, 0.7, 0.65, 0.8, 0.75, 0.9, 0.5]
VALUES = np.repeat([0.0, 1.0], 10)
A = np.array(ABSENT + PRESENT)
B = np.array([*ABSENT, *(round(score + 0.05, 2) for score in PRESENT)])


# ------------------------------------------------------------------------------------ closed forms


@pytest.mark.parametrize(
    ("ap", "present", "low", "high"),
    [(0.288, 67, 0.1925, 0.4070), (0.512, 211, 0.4447, 0.5788), (0.768, 620, 0.7331, 0.7996)],
)
def test_golden_logit_intervals_of_average_precision(ap, present, low, high):
    assert ap_logit_interval(ap, present) == (
        pytest.approx(low, abs=5e-5),
        pytest.approx(high, abs=5e-5),
    )


def test_where_everything_is_right_the_interval_is_the_exact_binomial_one():
    for count in (1, 5, 13, 67):
        exact = stats.binomtest(count, count).proportion_ci(0.95, "exact").low
        assert all_right(count) == pytest.approx(exact, abs=1e-12)
    assert ap_logit_interval(1.0, 13) == (all_right(13), 1.0)
    assert bounded_interval(1.0, 0.0, 13) == (all_right(13), 1.0)
    assert bounded_interval(0.0, 0.0, 13) == (0.0, 1 - all_right(13))


def test_one_thing_says_nothing():
    assert bounded_interval(0.7, 0.0, 1) == bounded_interval(1.0, 0.0, 1) == (0, 1)


def test_clopper_pearson_equals_scipy():
    for errors, n in [(0, 20), (3, 20), (20, 20), (7, 1000)]:
        exact = stats.binomtest(errors, n).proportion_ci(0.9, "exact")
        low, high = clopper_pearson(errors, n, 0.9)
        assert (low, high) == (pytest.approx(exact.low), pytest.approx(exact.high))
        upper = stats.binomtest(errors, n, alternative="less").proportion_ci(0.9, "exact")
        assert clopper_pearson(errors, n, 0.9, "upper") == (0, pytest.approx(upper.high))
        lower = stats.binomtest(errors, n, alternative="greater").proportion_ci(0.9, "exact")
        assert clopper_pearson(errors, n, 0.9, "lower") == (pytest.approx(lower.low), 1)


def test_without_errors_it_takes_22_rows_for_a_tenth_and_45_for_a_twentieth():
    n = np.arange(1, 100)
    upper = clopper_pearson(np.zeros(99), n, 0.9, "upper")[1]
    assert n[upper <= 0.10][0] == 22
    assert n[upper <= 0.05][0] == 45


def test_no_rows_bound_nothing():
    assert [float(bound) for bound in clopper_pearson(0, 0)] == [0, 1]


def test_holm_by_hand():
    found = holm([0.01, 0.04, NAN, 0.03, 0.9])
    assert found == pytest.approx([0.04, 0.09, NAN, 0.09, 0.9], nan_ok=True)
    assert holm([0.5, 0.6]) == pytest.approx([1, 1])  # never above 1
    assert np.isnan(holm([NAN, NAN])).all() and holm([]).shape == (0,)


def test_the_quantiles_of_student():
    for clusters, tolerance in [(4, 0.01), (8, 0.001), (34, 1e-5), (1000, 1e-9)]:
        assert student(clusters) == pytest.approx(stats.t.ppf(0.975, clusters - 1), rel=tolerance)


# ------------------------------------------------------------------------------------------ DeLong


def test_golden_toy_of_delong():
    auc, covariance = delong(VALUES, np.column_stack([A, B]))
    assert auc == pytest.approx([0.88, 0.915], abs=1e-12)
    expected = [[0.0063, 0.0050111], [0.0050111, 0.0041167]]
    assert covariance == pytest.approx(np.array(expected), abs=5e-8)
    found = delong_test(VALUES, A, B)
    assert found.value == pytest.approx(-0.035, abs=1e-12)
    assert found.z == pytest.approx(-1.762280852, abs=1e-9)
    assert found.p_value == pytest.approx(0.0780218574, abs=1e-9)
    half = 1.959963985 * 0.035 / 1.762280852
    assert (found.low, found.high) == (
        pytest.approx(-0.035 - half, abs=1e-9),
        pytest.approx(-0.035 + half, abs=1e-9),
    )


@pytest.mark.parametrize("case", ["no holes", "30 % holes", "ties"])
def test_delong_equals_the_reference_over_all_pairs(case):
    values, scores = (np.array(a) for a in reference.draw(case, 0))
    for k in range(4):
        pairs = reference.known_pairs(values.tolist(), scores.tolist(), k)
        auc, variance = delong(values[:, k], scores[:, [k]])
        assert auc[0] == pytest.approx(reference.roc_auc(pairs), abs=1e-12)
        assert variance[0, 0] == pytest.approx(reference.delong_variance(pairs), abs=1e-12)


def test_the_interval_of_an_auc_stays_within_0_and_1():
    rng = np.random.default_rng(0)
    for _ in range(50):
        values = (np.arange(12) < 3).astype(float)
        scores = rng.normal(size=12) + 2 * values
        low, high = delong_interval(values, scores)
        auc = delong(values, scores[:, None])[0][0]
        assert 0 <= low <= auc <= high <= 1 and low < high
    assert delong_interval(VALUES, VALUES) == (all_right(10), 1)
    assert delong_interval([1, 0, 0], [0.9, 0.1, 0.2]) == (0, 1)


def test_two_scorings_that_rank_alike_do_not_differ():
    found = delong_test(VALUES, A, 2 * A + 1)
    assert (found.value, found.low, found.high, found.z, found.p_value) == (0, 0, 0, 0, 1)


def test_delong_without_both_classes_is_not_defined():
    auc, covariance = delong([1, 1, NAN], [[0.1], [0.2], [0.3]])
    assert np.isnan(auc).all() and np.isnan(covariance).all()
    assert math.isnan(delong_test([1, 0, 0], [1, 2, 3], [1, 2, 4]).p_value)


# --------------------------------------------------------------------------------------- resamples


def test_resamples_weigh_groups_with_mean_1_and_come_in_bounded_parts(monkeypatch):
    monkeypatch.setattr("polytag.intervals.CHUNK", 64)
    parts = list(resample([5, 5, 7, 9], 100, np.random.default_rng(0)))
    assert {part.shape[1] for part in parts} == {3} and len(parts) > 1
    weights = np.concatenate(parts)
    assert len(weights) == 100 and (weights > 0).all()
    assert weights.mean() == pytest.approx(1, abs=0.2)


def test_the_size_of_the_parts_changes_nothing(monkeypatch):
    values, scores = (np.array(a) for a in reference.draw("30 % holes", 0))
    one = bootstrap(values, scores, scores >= 0.5, np.arange(40), count=50)
    monkeypatch.setattr("polytag.intervals.CHUNK", 40)
    other = bootstrap(values, scores, scores >= 0.5, np.arange(40), count=50)
    for metric in ("ap", "auc", "brier", "ece"):  # the others also draw for each part
        assert np.allclose(one.metrics[metric], other.metrics[metric], atol=1e-12)


def drawn(rows=400, rate=0.2, seed=0, columns=1):
    rng = np.random.default_rng(seed)
    values = (rng.random((rows, columns)) < rate).astype(float)
    scores = 1 / (1 + np.exp(-(rng.normal(size=values.shape) + 2 * values - 2)))
    return values, scores


def test_the_middle_of_the_resamples_is_the_number_itself():
    values, scores = drawn()
    draws = bootstrap(values, scores, scores >= 0.5, np.arange(400))
    assert set(draws.metrics) == set(METRICS) and set(draws.together) == set(TOGETHER)
    numbers = {"auc": roc_auc, "brier": brier, "ap": average_precision}
    for metric, function in numbers.items():
        column = draws.metrics[metric][:, 0]
        assert column.mean() == pytest.approx(function(values, scores)[0], abs=column.std() / 3)
    for name, number in {
        "log_loss": log_loss(values, scores),
        "hamming": hamming_accuracy(values, scores, [0.5]),
    }.items():
        column = draws.together[name]
        assert column.mean() == pytest.approx(number, abs=column.std() / 5)


def test_the_spread_of_resampled_aucs_is_delongs():
    values, scores = drawn(800)
    draws = bootstrap(values, scores, scores >= 0.5, np.arange(800))
    _, variance = delong(values[:, 0], scores)
    assert draws.metrics["auc"].std() == pytest.approx(math.sqrt(variance[0, 0]), rel=0.06)


def test_recall_of_single_rows_has_jeffreys_distribution():
    values = np.repeat([1.0, 0.0], [12, 40])[:, None]
    decided = np.repeat([True, False], [9, 43])[:, None]  # 9 of 12 present ones
    draws = bootstrap(values, np.full((52, 1), 0.5), decided, np.arange(52), count=20_000)
    quantiles = np.quantile(draws.metrics["recall"], [0.025, 0.5, 0.975])
    assert quantiles == pytest.approx(stats.beta(9.5, 3.5).ppf([0.025, 0.5, 0.975]), abs=0.01)


def test_a_group_of_copies_weighs_like_one_row():
    values, scores = drawn(100)
    once = bootstrap(values, scores, scores >= 0.5, np.arange(100))
    twice = [np.repeat(each, 2, axis=0) for each in (values, scores, scores >= 0.5)]
    grouped = bootstrap(*twice, np.repeat(np.arange(100), 2))
    for metric in METRICS:
        assert np.allclose(once.metrics[metric], grouped.metrics[metric], atol=1e-9), metric
    apart = bootstrap(*twice, np.arange(200))
    for metric in ("ap", "auc", "f1", "recall", "brier", "balanced_accuracy"):
        narrower = apart.metrics[metric].std() / once.metrics[metric].std()
        assert narrower == pytest.approx(0.5**0.5, rel=0.1), metric


def test_two_models_share_their_resamples():
    values, scores = drawn(300)
    better = np.where(values == 1, scores**0.8, scores)
    first, second = (
        bootstrap(values, p, p >= 0.5, np.arange(300)).metrics["ap"][:, 0] for p in (better, scores)
    )
    # Drawn apart, the difference would spread as widely as both together.
    assert np.std(first - second) < 0.5 * math.hypot(first.std(), second.std())
    again = bootstrap(values, scores, scores >= 0.5, np.arange(300)).metrics["ap"][:, 0]
    assert (again == second).all()


def test_one_present_cell_and_one_class_only():
    values = np.array([[1.0, 1, NAN], [0, 1, NAN], [0, 1, NAN]])
    draws = bootstrap(values, np.full((3, 3), 0.5), values == 1, [0, 1, 2], count=20)
    assert np.isfinite(draws.metrics["ap"][:, 0]).all()
    assert np.isnan(draws.metrics["ap"][:, 1:]).all() and np.isnan(draws.gaps[:, 2]).all()
    assert np.isfinite(draws.metrics["accuracy"][:, :2]).all()
