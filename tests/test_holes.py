"""What stands under a hole changes nothing, bit for bit, in any loss, gradient or metric."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import reference

from polytag import metrics, scorecard
from polytag.losses import LOSSES, average, split_values

THRESHOLDS = [0.5, 0.3, 0.6, 0.5]
NAMES = ["hat", "scarf", "tie", "coat"]
FOLDS = [i % 3 for i in range(40)]

ANYTHING = st.floats(width=32)  # NaN, infinities, -1 and 0 included
cases = st.sampled_from([case for case in reference.HOLES if "NA" in case or "30 %" in case])
seeds = st.integers(0, 1000)

WEIGHT = {"pos_weight": torch.tensor([1.0, 3.0, 0.2, 9.0])}
COUNTS = {"counts": torch.tensor([[67, 3, 0, 20], [1677, 5, 9, 0]])}
OPTIONS = {
    "bce": [{}, WEIGHT, {"label_smoothing": 0.1}],
    "focal": [{}, {"gamma": 0.5, "alpha": 0.25}, WEIGHT | {"label_smoothing": 0.1}],
    "asymmetric": [{}, {"gamma_positive": 0.0, "clip": 0.0}, {"label_smoothing": 0.1}],
    "class_balanced": [COUNTS, COUNTS | {"beta": 0.9, "gamma": 0.5, "label_smoothing": 0.1}],
}

METRICS = {
    "log_loss": metrics.log_loss,
    "hamming_accuracy": lambda v, p: metrics.hamming_accuracy(v, p, THRESHOLDS),
    "exact_match": lambda v, p: metrics.exact_match(v, p, THRESHOLDS),
    "balanced_accuracy": lambda v, p: metrics.balanced_accuracy(v, p, THRESHOLDS),
    "average_precision": metrics.average_precision,
    "roc_auc": metrics.roc_auc,
    "brier": metrics.brier,
    "expected_calibration_error": metrics.expected_calibration_error,
}
# Parts of these: the first two tell which cells are known, the others are given those alone.
PARTS = {"checked", "decisions", "cell_losses", "by_counts", "calibration_bins", "Ranked"}


def under_holes(values: np.ndarray, cells: np.ndarray, fill: list[float]) -> np.ndarray:
    """Return cells with the numbers of fill, repeated, where values has holes."""
    holes = np.isnan(values)
    changed = cells.copy()
    changed[holes] = np.resize(np.array(fill, dtype=cells.dtype), int(holes.sum()))
    return changed


def test_every_loss_and_every_metric_is_tested_here():
    assert set(OPTIONS) == set(LOSSES)
    public = {n for n, f in vars(metrics).items() if n[0] != "_" and callable(f)}
    functions = {n for n in public if getattr(metrics, n).__module__ == metrics.__name__}
    assert functions == set(METRICS) | PARTS
    others = {n for n, f in vars(scorecard).items() if n[0] != "_" and callable(f)}
    measuring = {n for n in others if getattr(scorecard, n).__module__ == scorecard.__name__}
    assert measuring == {"evaluate_arrays", "calibration_interval"}


@pytest.mark.parametrize("per", ["cell", "attribute", "none"])
@pytest.mark.parametrize(("name", "options"), [(n, o) for n in LOSSES for o in OPTIONS[n]])
@settings(deadline=None, max_examples=40)
@given(case=cases, seed=seeds, fill=st.lists(ANYTHING, min_size=1, max_size=5))
def test_no_loss_and_no_gradient_sees_a_target_or_a_logit_under_a_hole(
    name, options, per, case, seed, fill
):
    values, probabilities = (np.array(a, np.float32) for a in reference.draw(case, seed))
    targets, known = split_values(values)

    def loss_and_gradient(logits: np.ndarray, targets: np.ndarray) -> tuple[bytes, bytes]:
        z = torch.tensor(logits, requires_grad=True)
        loss = LOSSES[name](z, torch.tensor(targets), known, **options, per=per)
        loss.sum().backward()
        assert torch.isfinite(loss).all() and torch.isfinite(z.grad).all()
        assert z.grad[~known].count_nonzero() == 0
        return loss.detach().numpy().tobytes(), z.grad.numpy().tobytes()

    logits = np.log(probabilities / (1 - probabilities))
    before = loss_and_gradient(logits, targets.numpy())
    assert before == loss_and_gradient(logits, under_holes(values, targets.numpy(), fill))
    assert before == loss_and_gradient(under_holes(values, logits, fill), targets.numpy())


@pytest.mark.parametrize("per", ["cell", "attribute", "none"])
@settings(deadline=None, max_examples=40)
@given(case=cases, seed=seeds, fill=st.lists(ANYTHING, min_size=1, max_size=5))
def test_no_average_of_losses_sees_a_cell_under_a_hole(per, case, seed, fill):
    values, losses = (np.array(a, np.float32) for a in reference.draw(case, seed))
    known = torch.tensor(~np.isnan(values))

    def mean_and_gradient(losses: np.ndarray) -> tuple[bytes, bytes]:
        cells = torch.tensor(losses, requires_grad=True)
        mean = average(cells, known, per)
        mean.sum().backward()
        assert cells.grad[~known].count_nonzero() == 0
        return mean.detach().numpy().tobytes(), cells.grad.numpy().tobytes()

    assert mean_and_gradient(losses) == mean_and_gradient(under_holes(values, losses, fill))


@pytest.mark.parametrize("name", METRICS)
@settings(deadline=None, max_examples=40)
@given(case=cases, seed=seeds, fill=st.lists(ANYTHING, min_size=1, max_size=5))
def test_no_metric_sees_a_probability_under_a_hole(name, case, seed, fill):
    values, probabilities = (np.array(a) for a in reference.draw(case, seed))
    before = np.asarray(METRICS[name](values, probabilities))
    after = np.asarray(METRICS[name](values, under_holes(values, probabilities, fill)))
    assert before.tobytes() == after.tobytes()


@settings(deadline=None, max_examples=40)
@given(case=cases, seed=seeds, fill=st.lists(ANYTHING, min_size=1, max_size=5))
def test_no_evaluation_sees_a_probability_under_a_hole(case, seed, fill):
    values, probabilities = (np.array(a) for a in reference.draw(case, seed))

    def evaluate(probabilities: np.ndarray) -> str:
        result = scorecard.evaluate_arrays(NAMES, values, probabilities, THRESHOLDS, folds=FOLDS)
        return repr(result)  # every digit of every number, and NaN equal to NaN

    assert evaluate(probabilities) == evaluate(under_holes(values, probabilities, fill))


@settings(deadline=None, max_examples=40)
@given(case=cases, seed=seeds)
def test_rows_without_a_known_cell_might_as_well_not_be_there(case, seed):
    values, probabilities = (np.array(a) for a in reference.draw(case, seed))
    some = ~np.isnan(values).all(axis=1)
    for metric in METRICS.values():
        with_them = np.asarray(metric(values, probabilities))
        without = np.asarray(metric(values[some], probabilities[some]))
        assert with_them.tobytes() == without.tobytes()


def test_every_hole_case_has_the_holes_it_names():
    for case in reference.HOLES:
        values = np.array(reference.draw(case, 0)[0])
        holes = np.isnan(values)
        expected = {
            "30 % holes": 0.2 < holes.mean() < 0.4,
            "a column all NA": holes.all(axis=0).sum() == 1,
            "a row all NA": holes.all(axis=1).sum() == 1,
            "everything NA": holes.all(),
        }
        assert expected.get(case, not holes.any())
