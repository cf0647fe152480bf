"""Thresholds: golden values, the theorem, holes, and what they are worth on drawn data."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.special import betainc, expit, logit
from scipy.stats import norm
from tests.strategies import holed_values

from polytag.errors import RecipeError, UserError
from polytag.thresholds import Target, choose_thresholds, f_scores, parse_target

TARGETS = ("f1", "f0.5", "f2", "precision=0.6", "recall=0.9", "cost=5", "prevalence", "0.3")


def choose(values, probabilities, target="f1", **options):
    return choose_thresholds(values, probabilities, parse_target(target), **options)


# --------------------------------------------------------------------------------------- targets


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("f1", Target("f", 1)),
        ("F0.5", Target("f", 0.5)),
        (" f2 ", Target("f", 2)),
        ("precision=0.9", Target("precision", 0.9)),
        ("recall=.9", Target("recall", 0.9)),
        ("cost=5", Target("cost", 5)),
        ("prevalence", Target("prevalence", 0)),
        ("0.5", Target("fixed", 0.5)),
    ],
)
def test_every_form_is_understood(text, target):
    assert parse_target(text) == target


@pytest.mark.parametrize(
    "text",
    ["", "best", "f", "f0", "precision", "precision=1", "recall=0", "cost=0", "1", "-0.5", "nan"],
)
def test_a_wrong_text_lists_the_forms(text):
    with pytest.raises(RecipeError, match=r"f1, f0.5 or f2.*precision=0.9.*cost=5.*prevalence"):
        parse_target(text)


# ----------------------------------------------------------------------------- the F* / 2 theorem


def test_the_golden_grid():
    p = (np.arange(1000)[::-1] + 0.5) / 1000
    best = f_scores(np.cumsum(p), np.arange(1.0, 1001)).max()
    assert best == pytest.approx(0.7639320, abs=5e-8)
    assert best / 2 == pytest.approx(0.3819660, abs=5e-8)
    assert best / 2 == pytest.approx((3 - 5**0.5) / 2, abs=1e-6)


def test_the_golden_beta():
    def gain(t):  # F* solves: expected hits above F / 2 are worth as much as the cells they cost
        above, hits = 1 - betainc(0.5, 5, t), (1 - betainc(1.5, 5, t)) / 11
        return 2 * hits / (above + 1 / 11) - 2 * t

    assert brentq(gain, 0.01, 0.9) == pytest.approx(0.19494, abs=5e-6)  # .19502 was a sample's
    p = np.sort(np.random.default_rng(0).beta(0.5, 5, size=200_000))[::-1]
    best = f_scores(np.cumsum(p), np.arange(1.0, len(p) + 1)).max()
    assert best / 2 == pytest.approx(0.19494, abs=1e-3)


@pytest.mark.parametrize(("target", "beta"), [("f1", 1), ("f0.5", 0.5), ("f2", 2)])
def test_of_calibrated_probabilities_the_threshold_is_the_theorem_s(target, beta):
    rng = np.random.default_rng(1)
    p = rng.beta(0.5, 5, size=(40_000, 1))
    (found,) = choose(rng.random(p.shape) < p, p, target)
    descending = np.sort(p[:, 0])[::-1]
    scores = f_scores(np.cumsum(descending), np.arange(1.0, len(p) + 1), beta)
    assert scores.max() / (1 + beta**2) == pytest.approx(descending[scores.argmax()], abs=1e-3)
    assert found.value == pytest.approx(scores.max() / (1 + beta**2), abs=0.015)
    assert found.low < scores.max() / (1 + beta**2) < found.high


# ------------------------------------------------------------------------------- the other targets


def test_cost_and_fixed_thresholds_look_at_nothing():
    nothing = np.full((3, 2), np.nan)
    assert [t.value for t in choose(nothing, nothing, "cost=4")] == [0.2, 0.2]
    assert [(t.value, t.low, t.note) for t in choose(nothing, nothing, "0.3")] == [
        (0.3, None, "")
    ] * 2


def test_prevalence_decides_as_many_present_as_are():
    rng = np.random.default_rng(2)
    p = rng.random((300, 3))
    values = (rng.random(p.shape) < p**2).astype(float)
    values[rng.random(p.shape) < 0.2] = np.nan
    for k, found in enumerate(choose(values, p, "prevalence")):
        known = ~np.isnan(values[:, k])
        assert (p[known, k] >= found.value).sum() == (values[:, k] == 1).sum()


def test_an_impossible_precision_says_what_is_possible():
    rng = np.random.default_rng(3)
    p = rng.uniform(0, 0.4, size=(1000, 1))
    values = rng.random(p.shape) < p
    (found,) = choose(values, p, "precision=0.9")
    assert found.note.startswith("no threshold promises precision 0.9 here: the most is 0.3")
    assert choose(values, p, "precision=0.2")[0].note == ""


def test_promised_precision_and_recall_hold_nine_times_of_ten():
    rng = np.random.default_rng(4)
    p = rng.beta(0.5, 1, size=(600, 200))
    values = rng.random(p.shape) < p
    for target, true in (
        ("precision=0.8", lambda t: (1 - betainc(1.5, 1, t)) / 3 / (1 - betainc(0.5, 1, t))),
        ("recall=0.9", lambda t: 1 - betainc(1.5, 1, t)),
    ):
        found = choose(values, p, target)
        kept = [true(t.value) >= parse_target(target).value for t in found if not t.note]
        assert len(kept) > 150 and np.mean(kept) > 0.88
        # The promise is not bought with a threshold at the end of the scale.
        assert abs(np.mean([true(t.value) for t in found]) - parse_target(target).value) < 0.06


def test_rows_of_one_group_promise_less():
    rng = np.random.default_rng(5)
    p = rng.random((200, 1))
    values = rng.random(p.shape) < p
    four = np.repeat(values, 4, axis=0), np.repeat(p, 4, axis=0)
    together = choose(*four, "precision=0.8", groups=np.repeat(np.arange(200), 4))
    apart = choose(*four, "precision=0.8")
    assert together[0].value == choose(values, p, "precision=0.8")[0].value > apart[0].value
    f1_together, f1_apart = (
        choose(*four, groups=g)[0] for g in (np.repeat(np.arange(200), 4), None)
    )
    assert f1_together.high - f1_together.low > 1.4 * (f1_apart.high - f1_apart.low)


# -------------------------------------------------------------------------------------- few cells


def test_one_class_gets_the_common_threshold():
    rng = np.random.default_rng(6)
    p = rng.beta(0.5, 2, size=(2000, 3))
    values = (rng.random(p.shape) < p).astype(float)
    values[:, 1], values[:, 2] = 0, np.nan
    found = choose(values, p)
    assert found[1].value == found[2].value == pytest.approx(found[0].value, abs=0.05)
    assert found[1].note.startswith("no present cell among 2000 known")
    assert found[2].note.startswith("no known cell")
    for target in ("f1", "recall=0.9"):
        assert [t.value for t in choose(values[:, 1:], p[:, 1:], target)] == [0.5, 0.5]


def test_few_present_cells_draw_towards_the_common_threshold():
    rng = np.random.default_rng(7)
    p = np.column_stack([rng.uniform(0.05, 1, 2000), rng.beta(0.3, 30, 2000)])
    values = (rng.random(p.shape) < p).astype(float)
    values[np.flatnonzero(values[:, 1])[4:], 1] = np.nan
    alone, together = choose(values[:, 1:], p[:, 1:])[0], choose(values, p)[1]
    assert alone.value < together.value < choose(values, p)[0].value


def naive_nested_and_true(rng, present=67, rows=1744, auc=0.85, folds=5):
    """Return for one draw F1 on the choosing rows by the best cut and by polytag, nested, true."""
    shift, values = norm.ppf(auc) * 2**0.5, np.zeros(rows)
    values[rng.permutation(rows)[:present]] = 1
    score = rng.normal(size=rows) + shift * values
    base = logit(present / rows) - shift**2 / 2
    p = expit(base + shift * score)  # the true chance of being present

    def f1(decided):
        return 2 * values[decided].sum() / (decided.sum() + present)

    order = np.argsort(-p)
    curve = f_scores(np.cumsum(values[order]), np.arange(1.0, rows + 1))
    cut = p[order][curve.argmax()]
    fold, nested = rng.permutation(rows) % folds, np.empty(rows)
    for part in range(folds):
        rest = fold != part
        nested[~rest] = choose(values[rest, None], p[rest, None])[0].value

    def true(threshold):
        at = (logit(threshold) - base) / shift
        hits, alarms = present * norm.sf(at - shift), (rows - present) * norm.sf(at)
        return 2 * hits / (hits + alarms + present)

    chosen = choose(values[:, None], p[:, None])[0].value
    return curve.max(), true(cut), f1(p >= nested), true(chosen)


def test_nested_thresholds_are_not_optimistic_and_the_naive_one_is():
    rng = np.random.default_rng(8)
    naive, naive_true, nested, true = np.mean([naive_nested_and_true(rng) for _ in range(100)], 0)
    assert 0.025 < naive - naive_true < 0.055
    assert abs(nested - true) < 0.01
    assert true > naive_true + 0.003  # and what is chosen is better, too


def test_the_interval_holds_the_true_threshold():
    rng = np.random.default_rng(9)
    p = rng.beta(0.5, 5, size=(1000, 200))
    found = choose(rng.random(p.shape) < p, p)
    assert np.mean([t.low <= 0.19494 <= t.high for t in found]) > 0.9


# ------------------------------------------------------------------------------ holes, robustness


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from(TARGETS), st.integers(1, 12), st.integers(1, 3))
def test_what_stands_under_a_hole_changes_nothing(data, target, rows, attributes):
    values = data.draw(holed_values(rows, attributes))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    p = rng.choice([0, 0.2, 0.4, 0.4, 0.9, 1], size=values.shape)
    groups = rng.integers(0, 4, rows)
    found = choose(values, p, target, groups=groups)
    p[np.isnan(values)] = rng.choice([np.nan, 7, 0.5], size=np.isnan(values).sum())
    assert choose(values, p, target, groups=groups) == found
    assert all(0 < t.value < 1 for t in found)
    assert all(t.low is None or 0 < t.low <= t.value <= t.high < 1 for t in found)


def test_a_cell_without_a_probability_is_a_hole():
    rng = np.random.default_rng(10)
    p = rng.random((60, 2))
    values = (rng.random(p.shape) < p).astype(float)
    holed, missing = values.copy(), p.copy()
    holed[::3], missing[::3] = np.nan, np.nan
    assert choose(values, missing) == choose(holed, p)


def test_the_numbering_of_groups_and_the_seed_alone_decide():
    rng = np.random.default_rng(11)
    p = rng.random((90, 1))
    values, groups = rng.random(p.shape) < p, np.arange(90) // 3
    assert choose(values, p, groups=groups) == choose(values, p, groups=groups * 7)
    assert choose(values, p, seed=1) != choose(values, p, seed=2)
    with pytest.raises(UserError, match="wrong groups"):
        choose(values, p, groups=groups[1:])


def test_many_rows_are_thinned_without_moving_a_threshold():
    rng = np.random.default_rng(12)
    p = rng.beta(0.5, 5, size=(30_000, 1))
    values = rng.random(p.shape) < p
    (found,) = choose(values, p, "prevalence")
    assert (p >= found.value).sum() == pytest.approx(values.sum(), rel=0.01)
    assert choose(values, p)[0].value == pytest.approx(0.19494, abs=0.015)
