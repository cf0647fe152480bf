"""Metrics against slow references, against scikit-learn, and where they are not defined."""

from __future__ import annotations

import json
import math
import warnings

import numpy as np
import pytest
import sklearn.metrics as sk
from tests import reference

from polytag.errors import UserError
from polytag.metrics import (
    Ranked,
    average_precision,
    balanced_accuracy,
    brier,
    calibration_bins,
    exact_match,
    expected_calibration_error,
    hamming_accuracy,
    log_loss,
    roc_auc,
)
from polytag.results import METRICS
from polytag.scorecard import evaluate_arrays

NAN = math.nan
NAMES = ["hat", "scarf", "tie", "coat"]
THRESHOLDS = [0.5, 0.3, 0.6, 0.5]


def evaluate(case: str, seed: int = 0, **options):
    values, probabilities = reference.draw(case, seed)
    return evaluate_arrays(NAMES, values, probabilities, THRESHOLDS, **options)


# ------------------------------------------------------------------------------ slow references


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("case", reference.HOLES)
def test_each_attribute_equals_the_reference(case, seed):
    values, probabilities = reference.draw(case, seed)
    result = evaluate_arrays(NAMES, values, probabilities, THRESHOLDS)
    for k, measured in enumerate(result.attributes):
        pairs = reference.known_pairs(values, probabilities, k)
        expected = reference.attribute(pairs, THRESHOLDS[k])
        assert measured.present == sum(v == 1 for v, _ in pairs)
        assert measured.absent == sum(v == 0 for v, _ in pairs)
        assert measured.na == len(values) - len(pairs)
        for metric in METRICS:
            number = getattr(measured, metric)
            if expected[metric] is None:
                assert math.isnan(number.value) and math.isnan(number.chance) and number.reason
            else:
                assert (number.value, number.chance) == pytest.approx(expected[metric], abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("case", reference.HOLES)
def test_the_numbers_about_all_cells_equal_the_reference(case, seed):
    values, probabilities = reference.draw(case, seed)
    result = evaluate_arrays(NAMES, values, probabilities, THRESHOLDS)
    for measured, expected, tolerance in [
        # the guess is clipped like every probability: a rate of 0 costs 2^-23, not 0
        (result.log_loss, reference.log_loss(values, probabilities), 2**-22),
        (result.hamming, reference.hamming(values, probabilities, THRESHOLDS), 1e-12),
        (result.exact_match, reference.exact_match(values, probabilities, THRESHOLDS), 1e-12),
    ]:
        if expected is None:
            assert math.isnan(measured.value) and math.isnan(measured.chance) and measured.reason
        else:
            assert (measured.value, measured.chance) == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("case", reference.HOLES)
def test_a_macro_mean_is_the_mean_of_those_that_have_it_and_names_the_rest(case):
    result = evaluate(case)
    for metric in METRICS:
        numbers = {a.name: getattr(a, metric) for a in result.attributes}
        there = [n for n in numbers.values() if not math.isnan(n.value)]
        mean = result.macro[metric]
        assert mean.over == f"{len(there)} of 4 attributes"
        assert mean.missing == {k: n.reason for k, n in numbers.items() if math.isnan(n.value)}
        if there:
            assert mean.value == pytest.approx(math.fsum(n.value for n in there) / len(there))
            assert mean.chance == pytest.approx(math.fsum(n.chance for n in there) / len(there))
        else:
            assert math.isnan(mean.value) and mean.reason == "no attribute has it"
    assert result.over == result.macro["ap"].over


# --------------------------------------------------------------------------------- scikit-learn


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", ["no holes", "ties"])
@pytest.mark.parametrize("seed", range(5))
def test_without_holes_everything_equals_scikit_learn(case, seed, dtype):
    values, probabilities = (np.array(a, dtype=dtype) for a in reference.draw(case, seed))
    thresholds = np.array(THRESHOLDS)
    result = evaluate_arrays(NAMES, values, probabilities, thresholds)
    decided = (probabilities >= thresholds).astype(int)
    for k, measured in enumerate(result.attributes):
        y, p, d = values[:, k].astype(int), probabilities[:, k], decided[:, k]
        assert measured.ap.value == pytest.approx(sk.average_precision_score(y, p), abs=1e-12)
        assert measured.auc.value == pytest.approx(sk.roc_auc_score(y, p), abs=1e-12)
        assert measured.f1.value == pytest.approx(sk.f1_score(y, d), abs=1e-12)
        assert measured.recall.value == pytest.approx(sk.recall_score(y, d), abs=1e-12)
        assert measured.accuracy.value == pytest.approx(sk.accuracy_score(y, d), abs=1e-12)
        balanced = sk.balanced_accuracy_score(y, d)
        assert measured.balanced_accuracy.value == pytest.approx(balanced, abs=1e-12)
        # scikit-learn subtracts in float32 what comes in float32
        squares = sk.brier_score_loss(y, p.astype(np.float64))
        assert measured.brier.value == pytest.approx(squares, abs=1e-12)
        if d.any():
            assert measured.precision.value == pytest.approx(sk.precision_score(y, d), abs=1e-12)
    assert result.hamming.value == pytest.approx(1 - sk.hamming_loss(values, decided), abs=1e-12)
    assert result.exact_match.value == pytest.approx(sk.accuracy_score(values, decided), abs=1e-12)
    flat = np.clip(probabilities.ravel().astype(np.float64), 2**-23, 1 - 2**-23)
    assert result.log_loss.value == pytest.approx(sk.log_loss(values.ravel(), flat), abs=1e-12)


def test_the_scikit_learn_toy():
    values, probabilities = [[0], [0], [1], [1]], [[0.1], [0.4], [0.35], [0.8]]
    assert average_precision(values, probabilities)[0] == pytest.approx(0.8333333, abs=1e-7)
    assert roc_auc(values, probabilities)[0] == 0.75


def test_the_toy_of_two_raters():
    absent = [0.1, 0.2, 0.3, 0.25, 0.35, 0.15, 0.4, 0.45, 0.05, 0.3]
    present = np.array([0.2, 0.3, 0.4, 0.6, 0.7, 0.65, 0.8, 0.75, 0.9, 0.5])
    values = np.array([[0.0]] * 10 + [[1.0]] * 10)
    for shift, auc in [(0.0, 0.88), (0.05, 0.915)]:
        scores = np.append(absent, (present + shift).round(2))[:, None]
        assert roc_auc(values, scores)[0] == pytest.approx(auc, abs=1e-12)


def test_a_column_of_equal_probabilities_scores_exactly_chance():
    values = [[1], [0], [0], [1], [0]]
    result = evaluate_arrays(["hat"], values, [[0.5]] * 5, [0.5]).attributes[0]
    assert result.ap.value == result.ap.chance == 0.4
    assert result.auc.value == result.auc.chance == 0.5
    assert result.precision.value == result.precision.chance == 0.4
    assert result.recall.value == result.recall.chance == 1
    assert result.f1.value == pytest.approx(result.f1.chance, abs=1e-15)


# ------------------------------------------------------------------------------------ undefined


def one_attribute(values, probabilities, **options):
    columns = ([[cell] for cell in cells] for cells in (values, probabilities))
    return evaluate_arrays(["hat"], *columns, [0.5], **options).attributes[0]


BOTH_CLASSES = ("ap", "auc", "f1", "precision", "recall", "balanced_accuracy")


def test_without_a_present_cell_only_what_each_cell_has_is_left():
    result = one_attribute([0, 0, NAN, 0], [0.9, 0.1, 0.9, 0.2])
    for metric in BOTH_CLASSES:
        assert math.isnan(getattr(result, metric).value)
        assert getattr(result, metric).reason == "no present cell among 3 known"
    assert (result.accuracy.value, result.accuracy.chance) == (pytest.approx(2 / 3), 1)
    assert (result.brier.value, result.brier.chance) == (pytest.approx(0.86 / 3), 0)
    assert (result.ece.value, result.ece.chance) == (pytest.approx(1.2 / 3), 0)


def test_without_an_absent_cell_only_what_each_cell_has_is_left():
    result = one_attribute([1, 1, NAN], [0.9, 0.1, 0.2])
    for metric in BOTH_CLASSES:
        assert math.isnan(getattr(result, metric).value)
        assert getattr(result, metric).reason == "no absent cell among 2 known"
    assert (result.accuracy.value, result.accuracy.chance) == (0.5, 1)
    assert (result.brier.value, result.brier.chance) == (pytest.approx(0.41), 0)
    assert (result.ece.value, result.ece.chance) == (pytest.approx(0.5), 0)


def test_the_mean_over_folds_has_a_guess_of_its_own_and_leaves_one_class_folds_out():
    values, folds = [[1], [0], [1], [0], [0], [1], [1]], [0, 0, 1, 1, 1, 2, 2]
    probabilities = [[0.9], [0.1], [0.2], [0.5], [0.4], [0.3], [0.2]]
    macro = evaluate_arrays(["hat"], values, probabilities, [0.5], folds=folds).macro["ap"]
    assert macro.mean_over_folds == pytest.approx((1 + 1 / 3) / 2)
    assert macro.chance_over_folds == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert macro.over_folds == "2 of 3 attribute folds"


def test_nothing_decided_present_leaves_precision_undefined_and_makes_f1_zero():
    result = one_attribute([1, 0, 0], [0.4, 0.1, 0.2])
    assert math.isnan(result.precision.value) and math.isnan(result.precision.chance)
    assert result.precision.reason == "no cell decided present among 3 known"
    assert (result.f1.value, result.f1.chance) == (0, 0.5)
    assert result.f1.reason.endswith("every present one is missed")
    assert (result.recall.value, result.recall.chance) == (0, 0)


def test_no_known_cell_is_said():
    result = evaluate("a column all NA")
    for metric in METRICS:
        assert result.macro[metric].missing["scarf"] == "no known cell among 40 rows"
    assert result.over == "3 of 4 attributes"
    assert result.hamming.missing == {"scarf": "no known cell among 40 rows"}


def test_no_rows_at_all():
    result = evaluate_arrays(["hat"], np.zeros((0, 1)), np.zeros((0, 1)), [0.5])
    assert result.macro["ap"].missing == {"hat": "no known cell among 0 rows"}
    assert math.isnan(result.exact_match.value)


def test_an_attribute_without_a_model_output_is_left_out_and_named():
    values, probabilities = reference.draw("30 % holes", 1)
    without = [[NAN, *row[1:]] for row in probabilities]
    result = evaluate_arrays(NAMES, values, without, [NAN, *THRESHOLDS[1:]])
    rest = evaluate_arrays(
        NAMES[1:], [r[1:] for r in values], [r[1:] for r in without], THRESHOLDS[1:]
    )
    assert result.attributes[1:] == rest.attributes
    for metric in METRICS:
        assert math.isnan(getattr(result.attributes[0], metric).value)
        assert result.macro[metric].value == rest.macro[metric].value
        assert result.macro[metric].over == "3 of 4 attributes"
    for together in ("log_loss", "hamming", "exact_match"):
        assert getattr(result, together).value == getattr(rest, together).value
        assert getattr(result, together).missing == {
            "hat": "not trained: the model has no output for it"
        }
    assert result.attributes[0].present == sum(row[0] == 1 for row in values)


def test_the_reason_why_an_attribute_was_not_trained_is_passed_on():
    reasons = {"hat": "no present cell in the training rows"}
    result = one_attribute([1, 0, NAN], [NAN, NAN, 0.5], not_trained=reasons)
    assert result.ap.reason == "not trained: no present cell in the training rows"
    result = one_attribute([NAN, NAN], [NAN, NAN], not_trained=reasons)
    assert result.ap.reason == "not trained: no present cell in the training rows"


# ---------------------------------------------------------------------------------------- folds


@pytest.mark.parametrize("case", reference.HOLES)
def test_the_mean_over_folds_stands_beside_the_pooled_number(case):
    values, probabilities = reference.draw(case, 3)
    folds = [i % 5 for i in range(len(values))]
    result = evaluate_arrays(NAMES, values, probabilities, THRESHOLDS, folds=folds)
    pooled = evaluate_arrays(NAMES, values, probabilities, THRESHOLDS)
    parts = [
        evaluate_arrays(NAMES, values[fold::5], probabilities[fold::5], THRESHOLDS)
        for fold in range(5)
    ]
    assert result.attributes == pooled.attributes
    for metric in METRICS:
        means, defined = [], 0
        for k in range(4):
            numbers = [getattr(part.attributes[k], metric).value for part in parts]
            numbers = [number for number in numbers if not math.isnan(number)]
            defined += len(numbers)
            means += [math.fsum(numbers) / len(numbers)] if numbers else []
        mean = result.macro[metric]
        assert mean.over_folds == f"{defined} of 20 attribute folds"
        expected = math.fsum(means) / len(means) if means else NAN
        assert mean.mean_over_folds == pytest.approx(expected, nan_ok=True)
        assert mean.value == pytest.approx(pooled.macro[metric].value, nan_ok=True, abs=0)
    numbers = [part.hamming.value for part in parts if not math.isnan(part.hamming.value)]
    expected = math.fsum(numbers) / len(numbers) if numbers else NAN
    assert result.hamming.mean_over_folds == pytest.approx(expected, nan_ok=True)
    assert result.hamming.over_folds == f"{len(numbers)} of 5 folds"


@pytest.mark.parametrize("folds", [[0, 1], [0.0, 1.0, 2.0], [0, 1, -1], [[0, 1, 2]]])
def test_folds_are_one_integer_a_row(folds):
    with pytest.raises(UserError, match="wrong folds"):
        evaluate_arrays(["hat"], [[1], [0], [1]], [[0.5]] * 3, [0.5], folds=folds)


# ----------------------------------------------------------------------------------- the result


@pytest.mark.parametrize("case", reference.HOLES)
def test_the_result_is_json_without_nan_in_the_shape_of_metrics_json(case):
    values, probabilities = reference.draw(case, 2)
    folds = [i % 3 for i in range(len(values))]
    content = evaluate_arrays(NAMES, values, probabilities, THRESHOLDS, folds=folds).to_dict()
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert list(content) == ["attributes", "macro", "log_loss", "hamming", "exact_match", "over"]
    assert content["over"] == content["macro"]["ap"]["over"]
    for entry, name in zip(content["attributes"], NAMES, strict=True):
        counts, judged = ("name", "present", "absent", "na"), ("verdict", "p_value", "p_holm")
        thresholds = ("threshold", "threshold_low", "threshold_high")
        assert list(entry) == [*counts, *METRICS, *thresholds, *judged]
        assert entry["name"] == name
        assert all(entry[key] is None for key in (*thresholds[1:], *judged))
        for metric in METRICS:
            number = entry[metric]
            assert set(number) == {"value", "chance", "reason", "low", "high"}
            assert number["low"] is number["high"] is None
            assert number["value"] is not None or number["reason"]


def test_a_threshold_without_a_model_output_is_null():
    content = evaluate_arrays(["hat"], [[1]], [[NAN]], [NAN]).to_dict()
    assert content["attributes"][0]["threshold"] is None


# --------------------------------------------------------------------------------- wrong inputs


@pytest.mark.parametrize(
    ("values", "probabilities", "thresholds", "message"),
    [
        ([[1, -1]], [[0.5, 0.5]], [0.5, 0.5], "row 0, scarf: wrong cell; got -1, expected 1, 0 or"),
        ([[1, 0.5]], [[0.5, 0.5]], [0.5, 0.5], "got 0.5, expected 1, 0 or NaN"),
        ([[1, 0]], [[0.5, 1.5]], [0.5, 0.5], r"row 0, scarf.* got 1.5, expected a probability"),
        ([[1, 0]], [[0.5, -0.1]], [0.5, 0.5], "expected a probability"),
        ([[1, 0], [1, 0]], [[0.5, 0.5], [NAN, 0.5]], [0.5, 0.5], "row 1, hat: .* got nan"),
        ([[1, 0]], [[0.5]], [0.5, 0.5], r"got \(1, 2\) and \(1, 1\)"),
        ([1, 0], [0.5, 0.5], [0.5, 0.5], r"expected twice \(N, K\)"),
        ([[1, 0]], [[0.5, 0.5]], [0.5], "wrong thresholds"),
        ([[1, 0]], [[0.5, 0.5]], [0.5, 0.5, 0.5], "wrong thresholds"),
        ([[1, 0]], [[0.5, 0.5]], [0.5, 50], r"wrong thresholds; got \[0.5, 50.0\], expected 2"),
        ([[1, 0]], [[0.5, 0.5]], [0.5, NAN], "wrong thresholds"),
        ([[1]], [[0.5]], [0.5], "expected 1 different ones"),
    ],
)
def test_wrong_inputs_are_refused(values, probabilities, thresholds, message):
    with pytest.raises(UserError, match=message):
        evaluate_arrays(["hat", "scarf"], values, probabilities, thresholds)


def test_names_are_different():
    with pytest.raises(UserError, match="different"):
        evaluate_arrays(["hat", "hat"], [[1, 0]], [[0.5, 0.5]], [0.5, 0.5])


@pytest.mark.parametrize("name", ["scarf", "hta"])
def test_a_reason_for_an_attribute_that_was_trained_is_refused(name):
    with pytest.raises(UserError, match=f"'{name}'.*without a model output: hat"):
        evaluate_arrays(
            ["hat", "scarf"], [[1, 0]], [[NAN, 0.5]], [0.5, 0.5], not_trained={name: "why"}
        )


def test_wrong_shapes_are_refused_by_every_function():
    for metric in (log_loss, average_precision, roc_auc, brier, expected_calibration_error):
        with pytest.raises(UserError):
            metric([[1, 0]], [[0.5]])
    for metric in (hamming_accuracy, exact_match, balanced_accuracy):
        with pytest.raises(UserError):
            metric([[1, 0]], [[0.5, 0.5]], [0.5])


# ---------------------------------------------------------------------------------- other facts


def test_the_order_of_rows_changes_no_ranking_by_one_bit():
    values, probabilities = (np.array(a) for a in reference.draw("ties", 0, rows=300))
    order = np.random.default_rng(0).permutation(300)
    for metric in (average_precision, roc_auc):
        before, after = metric(values, probabilities), metric(values[order], probabilities[order])
        assert before.tobytes() == after.tobytes()


def test_a_float32_probability_is_compared_with_the_threshold_as_it_is():
    assert float(np.float32(0.7)) < 0.7  # compared as float64, not rounded to the other's type
    assert hamming_accuracy([[1]], np.array([[0.7]], dtype=np.float32), [0.7]) == 0
    assert hamming_accuracy([[1]], np.array([[0.5]], dtype=np.float32), [0.5]) == 1


def test_certain_and_wrong_is_a_finite_loss():
    assert log_loss([[1]], [[0.0]]) == pytest.approx(-math.log(2**-23))
    assert log_loss([[1]], [[1.0]]) == pytest.approx(0, abs=2e-7)


def test_blind_guesses_on_many_rows_score_chance_without_warnings():
    rng = np.random.default_rng(0)
    values = np.where(rng.random((20_000, 4)) < 0.3, NAN, rng.integers(0, 2, (20_000, 4)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = evaluate_arrays(NAMES, values, rng.random((20_000, 4)), THRESHOLDS)
    assert all(abs(a.auc.value - 0.5) < 0.02 for a in result.attributes)


def test_calibrated_probabilities_have_no_calibration_error_and_constant_ones_their_gap():
    values = np.repeat([1.0, 0, 1, 0], [30, 10, 20, 20])[:, None]
    scores = np.repeat([0.75, 0.5], 40)[:, None]
    assert expected_calibration_error(values, scores)[0] == pytest.approx(0, abs=1e-12)
    assert expected_calibration_error(values, scores - 0.25)[0] == pytest.approx(0.25)
    # Half of the cells 0.2 too high, the other half as much too low: nothing cancels.
    assert expected_calibration_error(values, scores + np.repeat([[0.2], [-0.2]], 40, 0))[
        0
    ] == pytest.approx(0.2)


def test_calibration_bins_hold_equally_many_cells_and_keep_ties_together():
    rng = np.random.default_rng(0)
    assert np.bincount(calibration_bins(rng.random(1000))).tolist() == [100] * 10
    ties = rng.integers(0, 30, 1000) / 30
    bins = calibration_bins(ties)
    assert all(len(np.unique(bins[ties == p])) == 1 for p in np.unique(ties))
    assert (np.diff(bins[np.argsort(ties)]) >= 0).all()
    assert calibration_bins(np.array([0.5])).tolist() == [5]


@pytest.mark.parametrize("case", ["no holes", "ties"])
@pytest.mark.parametrize("seed", range(3))
def test_weighted_metrics_equal_the_reference_and_scikit_learn(case, seed):
    values, scores = (np.array(a) for a in reference.draw(case, seed))
    rng = np.random.default_rng(seed)
    weights = rng.exponential(size=(3, len(values)))
    for k in range(4):
        y, p, decided = values[:, k], scores[:, k], scores[:, k] >= THRESHOLDS[k]
        cells = Ranked(y, p, decided)
        found, gaps = cells.measure(weights[:, cells.order])
        for b, w in enumerate(weights):
            expected = reference.weighted(list(zip(y, p, decided, w, strict=True)))
            for metric, number in expected.items():
                assert found[metric][b] == pytest.approx(number, abs=1e-12)
            weighted = sk.average_precision_score(y, p, sample_weight=w)
            assert found["ap"][b] == pytest.approx(weighted, abs=1e-12)
            bins = calibration_bins(p)
            for j in range(10):
                gap = (w * (y - p))[bins == j].sum() / w.sum()
                assert gaps[b, j] == pytest.approx(gap, abs=1e-12)


def test_weights_of_one_give_the_numbers_without_weights():
    values, scores = (np.array(a) for a in reference.draw("ties", 1))
    for k in range(4):
        cells = Ranked(values[:, k], scores[:, k], scores[:, k] >= 0.5)
        found, gaps = cells.measure(np.ones((1, len(values))))
        each = values[:, [k]], scores[:, [k]]
        assert found["ap"][0] == pytest.approx(average_precision(*each)[0], abs=1e-12)
        assert found["auc"][0] == pytest.approx(roc_auc(*each)[0], abs=1e-12)
        assert found["brier"][0] == pytest.approx(brier(*each)[0], abs=1e-12)
        assert np.abs(gaps).sum() == pytest.approx(expected_calibration_error(*each)[0], abs=1e-12)
        balanced = balanced_accuracy(*each, [0.5])[0]
        assert found["balanced_accuracy"][0] == pytest.approx(balanced, abs=1e-12)


def test_rows_may_have_thresholds_of_their_own():
    values, probabilities = (np.array(a) for a in reference.draw("30 % holes", 4))
    thresholds = np.random.default_rng(0).random(values.shape)
    thresholds[np.isnan(values)] = NAN  # nothing is decided there
    result = evaluate_arrays(NAMES, values, probabilities, thresholds)
    # A decision by p >= t is one by 1 >= 1/2 or by 0 >= 1/2.
    decided = np.where(np.isnan(values), NAN, probabilities >= thresholds)
    same = evaluate_arrays(NAMES, values, np.nan_to_num(decided), np.full(4, 0.5))
    for measured, expected in zip(result.attributes, same.attributes, strict=True):
        assert math.isnan(measured.threshold)
        for metric in ("f1", "precision", "recall", "accuracy", "balanced_accuracy"):
            assert getattr(measured, metric) == getattr(expected, metric)
    assert (result.hamming, result.exact_match) == (same.hamming, same.exact_match)
    assert result.to_dict()["attributes"][0]["threshold"] is None
