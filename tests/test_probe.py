"""The probe against scikit-learn, against itself, and against what it must not see."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from polytag import probe
from polytag.config import ProbeConfig
from polytag.probe import fit_probe, fits

EXACT = ProbeConfig(l2=0.05, tolerance=1e-9, max_iterations=500)


def drawn(rows=240, views=1, width=12, attributes=3, holes=0.0, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, views, width)).astype(np.float32) * 3 + 7
    truth = rng.normal(size=(width, attributes)) / 3
    logits = (x[:, 0] - 7) @ truth / 3 + rng.logistic(size=(rows, attributes))
    values = (logits > 0.3).astype(np.float32)
    values[rng.random(values.shape) < holes] = np.nan
    return x, values, np.arange(rows) % 5


def reference(x, y, l2):
    """Return logits on x of scikit-learn's model with the same objective on the known rows."""
    scaler = StandardScaler().fit(x)
    known = ~np.isnan(y)
    model = LogisticRegression(C=1 / (l2 * known.sum()), tol=1e-10, max_iter=5000)
    model.fit(scaler.transform(x)[known], y[known])
    return model.decision_function(scaler.transform(x))


@pytest.mark.parametrize("holes", [0.0, 0.3])
def test_the_refit_is_scikit_learns_solution_on_the_known_rows(holes):
    x, values, folds = drawn(holes=holes)
    fit = fit_probe(x, values, folds, EXACT)
    ours = x[:, 0] @ fit.head.weight + fit.head.bias
    for k in range(values.shape[1]):
        expected = reference(x[:, 0].astype(np.float64), values[:, k], EXACT.l2)
        np.testing.assert_allclose(ours[:, k], expected, atol=2e-3)


def test_out_of_fold_logits_are_those_of_models_that_saw_the_other_folds_only():
    x, values, folds = drawn(holes=0.2)
    fit = fit_probe(x, values, folds, EXACT)
    train, test = folds != 2, folds == 2
    scaler = StandardScaler().fit(x[train, 0].astype(np.float64))
    known = train & ~np.isnan(values[:, 1])
    model = LogisticRegression(C=1 / (EXACT.l2 * known.sum()), tol=1e-10, max_iter=5000)
    model.fit(scaler.transform(x[known, 0].astype(np.float64)), values[known, 1])
    expected = model.decision_function(scaler.transform(x[test, 0].astype(np.float64)))
    np.testing.assert_allclose(fit.logits[test, 1], expected, atol=2e-3)


def test_labels_of_a_fold_do_not_move_one_bit_of_its_own_predictions():
    x, values, folds = drawn(holes=0.2)
    other = values.copy()
    other[folds == 3] = 1 - other[folds == 3]
    before, after = (fit_probe(x, v, folds, ProbeConfig()) for v in (values, other))
    np.testing.assert_array_equal(before.logits[folds == 3], after.logits[folds == 3])
    assert before.l2_of_fold[3] == after.l2_of_fold[3]
    assert not np.array_equal(before.logits[folds == 0], after.logits[folds == 0])


def test_holes_of_one_attribute_do_not_move_another():
    x, values, folds = drawn()
    holed = values.copy()
    holed[::3, 0] = np.nan
    full, part = (fit_probe(x, v, folds, EXACT).head for v in (values, holed))
    np.testing.assert_allclose(full.weight[:, 1:], part.weight[:, 1:], atol=1e-4)
    assert np.abs(full.weight[:, 0] - part.weight[:, 0]).max() > 1e-3


def test_identical_views_are_one_view():
    x, values, folds = drawn(holes=0.2)
    one = fit_probe(x, values, folds, EXACT)
    three = fit_probe(np.repeat(x, 3, axis=1), values, folds, EXACT)
    np.testing.assert_allclose(one.logits, three.logits, atol=2e-3)


def test_noise_gets_the_strongest_penalty_and_a_signal_a_weaker_one():
    rng = np.random.default_rng(5)
    x = rng.normal(size=(300, 1, 60)).astype(np.float32)
    noise = (rng.random((300, 2)) < 0.4).astype(np.float32)
    signal = (x[:, 0, :2] + x[:, 0, 2:4] > 0).astype(np.float32)
    folds = np.arange(300) % 5
    grid = ProbeConfig()
    assert fit_probe(x, noise, folds, grid).l2 == max(grid.l2_grid)
    assert fit_probe(x, signal, folds, grid).l2 < 0.3


def test_an_attribute_whose_only_case_is_held_out_stays_at_its_base_rate_there():
    x, values, folds = drawn()
    values[:, 0] = 0
    values[folds.tolist().index(1), 0] = 1
    fit = fit_probe(x, values, folds, ProbeConfig())
    there = fit.logits[folds == 1, 0]
    assert np.isfinite(fit.logits).all()
    np.testing.assert_allclose(there, there[0], atol=1e-5)
    assert there[0] < -4


def test_the_result_does_not_depend_on_the_number_of_threads(monkeypatch):
    x, values, folds = drawn(holes=0.1)
    results = []
    for threads in (1, 4):
        monkeypatch.setattr(probe, "default_threads", lambda threads=threads: threads)
        results.append(fit_probe(x, values, folds, ProbeConfig()))
    np.testing.assert_array_equal(results[0].logits, results[1].logits)
    np.testing.assert_array_equal(results[0].head.weight, results[1].head.weight)


def test_the_losses_begin_at_the_base_rates_and_fall():
    x, values, folds = drawn()
    losses = fit_probe(x, values, folds, EXACT).losses
    rate = values.mean(axis=0, dtype=np.float64)
    entropy = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate)).mean()
    assert losses[0] == pytest.approx(entropy, abs=1e-4)
    assert losses[-1] < 0.9 * losses[0]


def test_a_feature_that_never_varies_has_no_say():
    x, values, folds = drawn()
    x[:, :, 4] = 123.456
    head = fit_probe(x, values, folds, EXACT).head
    assert np.isfinite(head.weight).all()
    np.testing.assert_allclose(head.weight[4], 0, atol=1e-6)


@pytest.mark.parametrize("l2", ["auto", 0.1])
@pytest.mark.parametrize(("count", "expected"), [(5, 10 + 5 + 1), (3, 3 + 3 + 1)])
def test_progress_counts_every_fit(l2, count, expected):
    x, values, _ = drawn(rows=60)
    seen = []
    fit_probe(x, values, np.arange(60) % count, ProbeConfig(l2=l2), seen.append)
    assert sum(seen) == expected == fits(count)


# ------------------------------------------------------------------------- nested predictions


@pytest.mark.parametrize("l2", ["auto", 0.05])
def test_nested_predictions_stand_in_all_rows_but_those_of_their_fold(l2):
    x, values, folds = drawn(holes=0.2)
    inner = fit_probe(x, values, folds, ProbeConfig(l2=l2)).inner
    assert len(inner) == 5
    for fold, logits in enumerate(inner):
        assert logits.shape == values.shape
        np.testing.assert_array_equal(np.isnan(logits).all(axis=1), folds == fold)
        np.testing.assert_array_equal(np.isnan(logits).any(axis=1), folds == fold)


def test_nested_predictions_are_those_of_models_that_saw_neither_fold():
    x, values, folds = drawn(holes=0.2)
    fit = fit_probe(x, values, folds, EXACT)
    for out, own in ((1, 4), (4, 1)):
        train = (folds != out) & (folds != own)
        scaler = StandardScaler().fit(x[train, 0].astype(np.float64))
        for k in range(values.shape[1]):
            known = train & ~np.isnan(values[:, k])
            model = LogisticRegression(C=1 / (EXACT.l2 * known.sum()), tol=1e-10, max_iter=5000)
            model.fit(scaler.transform(x[known, 0].astype(np.float64)), values[known, k])
            rows = folds == own
            expected = model.decision_function(scaler.transform(x[rows, 0].astype(np.float64)))
            np.testing.assert_allclose(fit.inner[out][rows, k], expected, atol=2e-3)


def test_labels_of_a_fold_do_not_move_one_bit_of_what_its_thresholds_are_chosen_by():
    x, values, folds = drawn(holes=0.2)
    other = values.copy()
    other[folds == 3] = 1 - other[folds == 3]
    before, after = (fit_probe(x, v, folds, ProbeConfig()) for v in (values, other))
    np.testing.assert_array_equal(before.inner[3], after.inner[3])
    # Nor do a row's nested predictions owe anything to its own fold's labels, but for the penalty.
    exact = [fit_probe(x, v, folds, EXACT).inner for v in (values, other)]
    np.testing.assert_array_equal(exact[0][1][folds == 3], exact[1][1][folds == 3])
    assert np.abs(exact[0][1][folds == 0] - exact[1][1][folds == 0]).max() > 1e-3


def test_nested_predictions_have_the_penalty_of_the_fold_that_they_choose_for():
    x, values, folds = drawn(rows=120, holes=0.2)
    grid = (3.0, 1.0, 0.3, 0.1, 0.03)
    found = fit_probe(x, values, folds, EXACT.model_copy(update={"l2": "auto", "l2_grid": grid}))
    assert len(set(found.l2_of_fold)) > 1
    alone = {
        l2: fit_probe(x, values, folds, EXACT.model_copy(update={"l2": l2})).inner for l2 in grid
    }
    for fold, chosen in enumerate(found.l2_of_fold):
        apart = {
            l2: np.nanmax(np.abs(found.inner[fold] - inner[fold])) for l2, inner in alone.items()
        }
        assert apart.pop(chosen) < 5e-3 < 0.05 < min(apart.values())
