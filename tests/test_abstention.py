"""Unsure: golden numbers, what is certified holds, and what cannot be says why."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom
from tests.strategies import holed_values

from polytag.abstention import cells_needed, choose_cuts
from polytag.errors import UserError


def choose(values, probabilities, max_error=0.1, confidence=0.9, **options):
    thresholds = options.pop("thresholds", np.full(np.shape(values)[1], 0.5))
    rule = {"max_error": max_error, "confidence": confidence}
    return choose_cuts(values, probabilities, thresholds, **rule, **options)


# -------------------------------------------------------------------------------------- goldens


@pytest.mark.parametrize(("max_error", "cells"), [(0.1, 22), (0.05, 45)])
def test_without_an_error_so_many_cells_certify(max_error, cells):
    assert cells_needed(0, max_error, 0.9) == cells
    assert (1 - max_error) ** cells <= 0.1 < (1 - max_error) ** (cells - 1)


@pytest.mark.parametrize("rate", [0.01, 0.02, 0.05, 0.09, 0.099])
def test_cells_needed_is_about_the_first_number_that_passes(rate):
    def passes(n):
        return binom.cdf(np.ceil(rate * n - 1e-9), n, 0.1) <= 0.1

    cells = cells_needed(rate, 0.1, 0.9)
    if rate == 0.099:
        assert cells is None  # only some 170,000 would
    else:
        first = next(n for n in range(1, cells + 1) if passes(n))
        assert passes(cells) and first <= cells <= max(first, 1.03 * first)


def test_where_every_cell_is_right_as_many_as_needed_certify():
    """44 cells cannot certify 5 %, 45 can."""
    for count, certified in ((44, False), (45, True)):
        p = np.linspace(0.9, 0.99, count)[:, None]
        (cuts,) = choose(np.ones_like(p), p, max_error=0.05)
        assert (cuts.high is not None) == certified
        assert cuts.low is None
    (few,) = choose(np.ones((25, 1)), np.full((25, 1), 0.9), max_error=0.05)
    assert "never present: 25 independent known cells, 45 are needed" in few.note
    assert "20 more" in few.note


def test_at_least_thirty_cells_are_asked_for():
    for count, certified in ((29, False), (30, True)):
        p = np.linspace(0.8, 0.99, count)[:, None]
        (cuts,) = choose(np.ones_like(p), p, max_error=0.2)
        assert (cuts.high is not None) == certified


# -------------------------------------------------------------------------- what is certified


def true_errors(cuts):
    """Errors beyond both cuts where p is uniform and calibrated: means of 1 - p, or p."""
    high = 0.0 if cuts.high is None else (1 - cuts.high) / 2
    return high, 0.0 if cuts.low is None else cuts.low / 2


@pytest.mark.parametrize(("max_error", "rows"), [(0.1, 1500), (0.2, 700)])
def test_the_true_error_exceeds_what_is_promised_in_one_of_ten_draws_at_most(max_error, rows):
    rng = np.random.default_rng(0)
    p = rng.random((rows, 300))
    found = choose(rng.random(p.shape) < p, p, max_error=max_error)
    errors = np.array([true_errors(cuts) for cuts in found])
    # 1 - confidence, and two standard errors of 300 draws.
    assert np.all((errors > max_error).mean(axis=0) < 0.1 + 2 * np.sqrt(0.09 / 300))
    assert np.all((errors > 0).mean(axis=0) > 0.5)  # and it is not kept by deciding nothing
    assert np.all(errors.mean(axis=0) > 0.4 * max_error)


def test_overconfident_probabilities_break_no_promise():
    rng = np.random.default_rng(1)
    p = rng.random((600, 300))
    claimed = p**1.5 / (p**1.5 + (1 - p) ** 1.5)
    found = choose(rng.random(p.shape) < p, claimed, max_error=0.15)
    cut = np.array([1.0 if c.high is None else c.high for c in found])
    true = cut ** (2 / 3) / (cut ** (2 / 3) + (1 - cut) ** (2 / 3))
    assert ((1 - true) / 2 > 0.15).mean() < 0.135
    assert (true < 1).mean() > 0.5


def test_copies_of_a_row_count_once():
    rng = np.random.default_rng(2)
    p = rng.random((300, 200))
    values = (rng.random(p.shape) < p).astype(float)
    groups = np.repeat(np.arange(300), 5)
    found = choose(np.repeat(values, 5, 0), np.repeat(p, 5, 0), max_error=0.15, groups=groups)
    assert (np.array([true_errors(c)[0] for c in found]) > 0.15).mean() < 0.14
    assert found == choose(values, p, max_error=0.15)  # the same cells, in another order
    alone = choose(np.repeat(values, 5, 0), np.repeat(p, 5, 0), max_error=0.15)
    assert (np.array([true_errors(c)[0] for c in alone]) > 0.15).mean() > 0.15


# ----------------------------------------------------------------------------- what it looks like


def test_where_all_can_be_decided_nothing_is_unsure():
    rng = np.random.default_rng(3)
    p = rng.beta(0.1, 0.1, size=(1000, 1))
    values = rng.random(p.shape) < p
    (middle,) = choose(values, p, max_error=0.2, thresholds=[0.5])
    assert middle.low == middle.high == 0.5 and not middle.note
    ends = [choose(values, p, max_error=0.2, thresholds=[t])[0] for t in (0.001, 0.999)]
    assert [cuts.low for cuts in ends] == [cuts.high for cuts in ends]
    assert 0.001 < ends[0].low < 0.5 < ends[1].low < 0.999


def test_what_cannot_be_certified_says_why_and_what_it_takes():
    rng = np.random.default_rng(4)
    p = rng.uniform(0.85, 0.95, size=(200, 1))
    values = np.ones_like(p)
    values[rng.permutation(200)[:16]] = 0  # 8 % wrong: 10 % could be certified with more labels
    (cuts,) = choose(values, p)
    assert cuts.high is None and cuts.low is None
    assert "never present: of the" in cuts.note and "more labelled cells" in cuts.note
    assert "never absent" in cuts.note and "would not change that" in cuts.note


def test_wrong_numbers_are_refused():
    p = np.full((3, 1), 0.5)
    for options in ({"max_error": 0.0}, {"max_error": 1}, {"confidence": 1.0}):
        with pytest.raises(UserError, match="expected a number in"):
            choose(p > 1, p, **options)
    with pytest.raises(UserError, match="wrong thresholds"):
        choose(p > 1, p, thresholds=[0.5, 0.5])
    with pytest.raises(UserError, match="wrong groups"):
        choose(p > 1, p, groups=[1])


@settings(max_examples=30, deadline=None)
@given(st.data(), st.integers(1, 60))
def test_what_stands_under_a_hole_changes_nothing(data, rows):
    values = data.draw(holed_values(rows, 2))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    p, groups = rng.choice([0, 0.1, 0.6, 0.9, 1], size=values.shape), rng.integers(0, 50, rows)
    found = choose(values, p, max_error=0.4, groups=groups)
    p[np.isnan(values)] = rng.choice([np.nan, 7, 0.5], size=np.isnan(values).sum())
    assert choose(values, p, max_error=0.4, groups=groups) == found
    for cuts in found:
        assert cuts.low is None or 0 < cuts.low < 1
        assert cuts.high is None or 0 < cuts.high < 1
        assert None in (cuts.low, cuts.high) or cuts.low <= cuts.high
        assert (cuts.note == "") == (None not in (cuts.low, cuts.high))


def test_what_the_threshold_calls_present_is_never_called_absent_nor_the_reverse():
    rng = np.random.default_rng(5)
    p = rng.beta(0.3, 9, (3000, 1))  # 3 % present: all could be called absent at an error of 5 %
    values = (rng.random(p.shape) < p).astype(float)
    for threshold, turned in ((0.2, False), (0.8, True)):
        cells = (1 - values, 1 - p) if turned else (values, p)
        (cuts,) = choose_cuts(*cells, [threshold], max_error=0.05, confidence=0.9)
        assert (cuts.high if turned else cuts.low) == threshold, "it would be far beyond it"
