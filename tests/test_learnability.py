"""Verdicts on drawn data whose answer is known, and the closed form against refits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from tests.strategies import holed_values

from polytag import learnability
from polytag.errors import UserError
from polytag.learnability import judge_learnability, leave_one_out, needed, rank_sums

LEARNABLE = "learnable"
NO_EVIDENCE = "no evidence that the pictures show it"
TOO_FEW = "too few to tell"


def noise(count, attributes=1, seed=0, width=40):
    """Features, labels that hang on nothing, and a group for every row."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(count, width)).astype(np.float32)
    values = (rng.random((count, attributes)) < 0.4).astype(np.float32)
    return features, values, np.arange(count)


def verdicts(judged):
    return [found.verdict.partition(":")[0] for found in judged]


@pytest.fixture
def seen(monkeypatch):
    """The features of every test made, in the order of the tests."""
    found, whole = [], learnability.leave_one_out

    def watched(features, ridge):
        found.append(features)
        return whole(features, ridge)

    monkeypatch.setattr(learnability, "leave_one_out", watched)
    return found


def refitted(features, labels, ridge):
    """Score each row by a ridge regression fitted on all others; penalty and scale stay."""
    rows, width = features.shape
    x = (features - features.mean(axis=0)) / features.std(axis=0) / np.sqrt(width)
    scores = np.empty(rows)
    for row in range(rows):
        rest = np.delete(np.arange(rows), row)
        mean, base = x[rest].mean(axis=0), labels[rest].mean()
        centred = x[rest] - mean
        weight = np.linalg.solve(
            centred.T @ centred + ridge * np.eye(width), centred.T @ (labels[rest] - base)
        )
        scores[row] = (x[row] - mean) @ weight + base
    return scores


@pytest.mark.parametrize(("rows", "width"), [(30, 7), (12, 50)])
@pytest.mark.parametrize("ridge", [0.01, 1.0, 100.0])
def test_the_closed_form_is_the_model_without_the_row(rows, width, ridge):
    rng = np.random.default_rng(rows)
    features = rng.normal(3, 2, size=(rows, width))
    labels = (rng.random(rows) < 0.4).astype(float)
    scores = leave_one_out(features, ridge) @ labels
    np.testing.assert_allclose(scores, refitted(features, labels, ridge), rtol=0, atol=1e-8)


def test_single_precision_is_enough_for_the_default_ridge():
    features, values, _ = noise(300, width=900)
    exact = leave_one_out(features.astype(np.float64), learnability.RIDGE)
    fast = leave_one_out(features, learnability.RIDGE)
    assert fast.dtype == np.float32
    np.testing.assert_allclose(fast @ values, exact @ values, rtol=0, atol=1e-5)


def test_features_that_never_vary_change_nothing():
    features, _, _ = noise(30, width=6)
    beside = np.concatenate([features, np.full((30, 6), 0.1, np.float32)], axis=1)
    # K is a mean over features: half of them silent halves it, and the ridge with it.
    np.testing.assert_allclose(
        leave_one_out(beside, 0.5), leave_one_out(features, 1.0), rtol=0, atol=1e-6
    )


def test_rank_sums_are_counted_pairs():
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(4, 25)), rng.random((4, 25)) < 0.3
    for row, present, found in zip(scores, labels, rank_sums(scores, labels), strict=True):
        pairs = (row[present][:, None] > row[~present]).sum()
        assert found == pairs + present.sum() * (present.sum() - 1) // 2


def test_the_p_value_is_the_share_of_labellings_that_do_as_well():
    features, values, groups = noise(100)
    labels = values[:, 0] == 1
    rng = np.random.default_rng(5)
    others = np.array([labels, *(rng.permutation(labels) for _ in range(4000))])
    scores = others @ leave_one_out(features.astype(float), learnability.RIDGE).T
    sums = rank_sums(scores, others)
    expected = np.mean(sums >= sums[0])
    (found,) = judge_learnability(features, values, groups, permutations=2500)
    assert 0.05 < expected < 0.95
    assert found.p_value == pytest.approx(expected, abs=0.05)
    assert found.p_value * 2501 == pytest.approx(round(found.p_value * 2501))


def test_what_the_features_tell_is_learnable_and_noise_is_not():
    features, values, groups = noise(300, attributes=3)
    values[:, 1] = features[:, 0] + features[:, 1] > 1
    judged = judge_learnability(features, values, groups)
    assert verdicts(judged) == [NO_EVIDENCE, LEARNABLE, NO_EVIDENCE]
    assert judged[1].p_value == pytest.approx(0.001)
    assert judged[1].p_holm == pytest.approx(0.003)
    assert judged[1].present == values[:, 1].sum() == 300 - judged[1].absent


def test_p_values_of_noise_are_uniform():
    p_values = []
    for seed in range(25):
        judged = judge_learnability(*noise(60, attributes=8, seed=seed), permutations=199)
        p_values += [found.p_value for found in judged]
    distance = np.abs(np.sort(p_values) - (np.arange(200) + 0.5) / 200).max()
    assert distance < 1.36 / np.sqrt(200)  # Kolmogorov's 5 % limit


def test_repeated_pictures_make_no_evidence():
    alarms, naive = 0, 0
    for seed in range(10):
        features, values, groups = noise(60, seed=seed)
        again = np.repeat(groups, 5)
        alarms += verdicts(judge_learnability(features[again], values[again], again)) == [LEARNABLE]
        apart = np.arange(len(again))  # as if they did not belong together
        naive += verdicts(judge_learnability(features[again], values[again], apart)) == [LEARNABLE]
    assert alarms <= 2
    assert naive == 10


def test_groups_are_counted_and_not_rows():
    features, values, _ = noise(70)
    values[:, 0] = np.arange(70) < 35
    (found,) = judge_learnability(features, values, np.arange(70) // 5)
    assert (found.present, found.absent) == (7, 7)
    assert verdicts([found]) == [TOO_FEW]


def test_a_group_counts_by_a_row_that_is_known():
    features, values, groups = noise(100)
    features, values = np.repeat(features, 2, axis=0), np.repeat(values, 2, axis=0)
    whole = judge_learnability(features, values, np.repeat(groups, 2))
    assert [found.note for found in whole] == ["one picture of each of 100 groups"]
    values[::2] = np.nan
    half = judge_learnability(features, values, np.repeat(groups, 2))
    assert [replace(found, note="") for found in whole] == half


def test_one_known_row_of_every_group_is_used(seen):
    features, values, _ = noise(200)
    rng = np.random.default_rng(3)
    groups = rng.integers(0, 90, 200)
    values[rng.random(200) < 0.4] = np.nan
    features[:, 0] = np.arange(200)  # so that rows are found again
    judge_learnability(features, values, groups, permutations=9)
    rows = seen[0][:, 0].astype(int)
    assert not np.isnan(values[rows]).any()
    assert sorted(groups[rows]) == sorted(set(groups[~np.isnan(values[:, 0])]))
    judge_learnability(features, values, groups, seed=1, permutations=9)
    assert set(seen[1][:, 0]) != set(rows)


@given(holed_values(40, 3, "some"), st.integers(0, 99))
@settings(max_examples=20)
def test_what_stands_in_rows_that_are_not_known_changes_nothing(values, seed):
    features, _, groups = noise(40, width=5)
    groups = groups // 2
    other = np.where(np.isnan(values[:, :1]), np.float32(seed), features)
    first = judge_learnability(features, values, groups, permutations=49)[0]
    second = judge_learnability(other, values, groups, permutations=49)[0]
    # The other attributes saw other features, and Holm's p hangs on all.
    assert repr(replace(first, p_holm=0, verdict="")) == repr(replace(second, p_holm=0, verdict=""))


def test_holes_and_labels_of_one_class_are_too_few():
    features, values, groups = noise(50, attributes=4)
    values[:, 0], values[:, 1], values[:, 2] = np.nan, 0, 1
    judged = judge_learnability(features, values, groups)
    assert verdicts(judged)[:3] == [TOO_FEW] * 3
    assert all(np.isnan([found.p_value, found.p_holm]).all() for found in judged[:3])
    assert [(found.present, found.absent) for found in judged[:3]] == [(0, 0), (0, 50), (50, 0)]
    assert judged[1].verdict.startswith("too few to tell: 0 present of 50 known, about ")
    assert judged[2].verdict.startswith("too few to tell: 0 absent of 50 known, about ")
    # What cannot be tested costs the others nothing.
    assert judged[3].p_holm == judged[3].p_value


def test_seven_of_a_class_are_never_tested_and_eight_that_are_told_are_learnable():
    features, values, groups = noise(200, attributes=2)
    values[:, 0], values[:, 1] = groups < 7, groups < 8
    features[:8] += 3
    judged = judge_learnability(features, values, groups)
    assert verdicts(judged) == [TOO_FEW, LEARNABLE]
    assert np.isnan(judged[0].p_value)


def test_fewer_than_needed_without_evidence_are_too_few():
    level = 0.05 / 2
    features, values, groups = noise(400, attributes=2)
    enough = needed(20, 380, level)
    values[:, 0], values[:, 1] = groups < 20, groups < 200
    judged = judge_learnability(features, values, groups)
    assert judged[0].verdict == f"too few to tell: 20 present of 400 known, about {enough} would do"
    assert verdicts(judged[1:]) == [NO_EVIDENCE]
    assert judged[0].p_value > 0.05


@pytest.mark.parametrize("ratio", [1, 3, 30])
@pytest.mark.parametrize("level", [0.05, 0.05 / 23])
def test_what_is_needed_would_do_and_one_less_would_not(ratio, level):
    def power(few):
        many, auc = few * ratio, 0.7
        spread = auc * (1 - auc)
        spread += (few - 1) * (auc / (2 - auc) - auc**2)
        spread += (many - 1) * (2 * auc**2 / (1 + auc) - auc**2)
        limit = 0.5 + norm.isf(level) * np.sqrt((few + many + 1) / (6 * few * many))
        return norm.cdf((auc - limit) / np.sqrt(spread / (few * many)))

    few = needed(1, ratio, level)
    assert power(few) >= 0.8 > power(few - 1)
    assert needed(few, few * ratio, level) == few  # the balance counts, not the size
    assert needed(0, 0, level) == needed(1, 1, level)


def test_most_labels_of_that_auc_are_found_with_as_many_as_needed():
    few = needed(1, 3, 0.05)
    values = (np.arange(4 * few) < few).astype(np.float32)[:, None]
    found = []
    for seed in range(100):
        shift = np.sqrt(2) * norm.isf(0.3)  # two normal classes with an AUC of .70
        features = np.random.default_rng(seed).normal(size=values.shape) + shift * values
        (judged,) = judge_learnability(features, values, np.arange(4 * few), permutations=199)
        found.append(judged.p_value <= 0.05)
    assert 0.75 < np.mean(found) < 0.99


def test_many_rows_are_judged_on_a_part_with_all_of_the_rarer_class(monkeypatch, seen):
    monkeypatch.setattr(learnability, "_MOST", 120)
    features, values, groups = noise(500)
    values[:, 0] = groups < 40
    features[:, 0] = values[:, 0] + np.arange(500) * 1e-6
    (found,) = judge_learnability(features, values, groups)
    assert len(seen[0]) == 120
    assert (seen[0][:, 0] > 0.5).sum() == 40
    assert found.note == "judged on 120 of 500, drawn at random"
    assert (found.present, found.absent) == (40, 460)
    assert verdicts([found]) == [LEARNABLE]


def test_the_number_of_threads_and_the_other_attributes_change_nothing(monkeypatch):
    features, values, groups = noise(150, attributes=3)
    both = judge_learnability(features, values, groups, permutations=199)
    monkeypatch.setattr(learnability, "default_threads", lambda: 1)
    assert judge_learnability(features, values, groups, permutations=199) == both
    (alone,) = judge_learnability(features, values[:, 2:], groups, permutations=199)
    assert alone.p_value == both[2].p_value


def test_permutations_suffice_for_holm():
    features, values, groups = noise(60, attributes=60, width=5)
    values[:, 0] = features[:, 0] > 0
    features[:, 0] *= 3
    judged = judge_learnability(features, values, groups)
    assert judged[0].p_value == pytest.approx(1 / 2401)
    assert verdicts(judged[:1]) == [LEARNABLE]


def test_rows_that_do_not_match_are_refused():
    features, values, groups = noise(20)
    with pytest.raises(UserError, match="20, 20 and 19 rows"):
        judge_learnability(features, values, groups[1:])
