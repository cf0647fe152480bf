"""Losses against golden values, theorems and slow references.

The golden values were computed once with numpy from the papers' formulas.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from tests import reference
from torch import Tensor

from polytag import losses
from polytag.errors import UserError
from polytag.losses import (
    average,
    masked_asymmetric,
    masked_bce,
    masked_class_balanced,
    masked_focal,
    split_values,
)

NAN = math.nan
LOGITS = torch.tensor([[2, -1, 0.5, -3], [0, 1.5, -0.5, 4]], dtype=torch.float64)
TARGETS, KNOWN = split_values([[1, 0, NAN, 0], [1, NAN, 0, 0]])
COUNTS = torch.tensor([[67, 1, 0, 3, 0], [1677, 10, 50, 3, 0]])  # present and absent


def class_balanced(logits, targets, known, **options):
    """The one loss that needs an option: with counts of as many attributes as there are logits."""
    counts = COUNTS[:, : logits.shape[-1]]
    return masked_class_balanced(logits, targets, known, **{"counts": counts} | options)


LOSSES = losses.LOSSES | {"class_balanced": class_balanced}


# -------------------------------------------------------------------------------- golden values


@pytest.mark.parametrize(
    ("loss", "options", "golden"),
    [
        (masked_bce, {}, 5.6741511428 / 6),
        (masked_bce, {"per": "attribute"}, 0.8076862268),
        (masked_bce, {"pos_weight": 3.0}, 1.2190502543),
        (masked_bce, {"pos_weight": 3.0, "label_smoothing": 0.1}, 1.3154502670),
        (masked_focal, {}, 0.6900564045),
        (masked_focal, {"alpha": 0.25}, 0.5029514402),
        (masked_focal, {"pos_weight": 3.0}, 0.7484198572),
        (masked_focal, {"label_smoothing": 0.1}, 0.7027946776),
        (masked_asymmetric, {}, 2.3954152018 / 6),
        (masked_asymmetric, {"gamma_positive": 0}, 2.8537866133 / 6),
        (
            masked_asymmetric,
            {"gamma_negative": 0, "gamma_positive": 0, "clip": 0},
            5.6741511428 / 6,
        ),
        (masked_asymmetric, {"label_smoothing": 0.1}, 0.4237878771),
        (class_balanced, {}, 0.9436683076),
        (class_balanced, {"per": "attribute"}, 0.7172801551),
        (class_balanced, {"beta": 0.99, "gamma": 2.0}, 0.6862770778),
        (class_balanced, {"label_smoothing": 0.1}, 0.9613099592),
    ],
)
def test_golden_values(loss, options, golden):
    assert loss(LOGITS, TARGETS, KNOWN, **options).item() == pytest.approx(golden, abs=1e-6)
    assert loss(LOGITS.float(), TARGETS, KNOWN, **options).item() == pytest.approx(golden, abs=1e-6)


def test_holes_taken_for_absent_give_another_value():
    everything = torch.ones_like(KNOWN)
    assert masked_bce(LOGITS, TARGETS, everything).item() == pytest.approx(1.0437051756, abs=1e-6)


# ------------------------------------------------------------------------------ slow references

WEIGHTS = torch.tensor([1.0, 2.0, 3.5, 0.5], dtype=torch.float64)
CASES: list[tuple[str, dict]] = [
    ("bce", {}),
    ("bce", {"pos_weight": 2.5}),
    ("bce", {"pos_weight": WEIGHTS, "label_smoothing": 0.1}),
    ("focal", {}),
    ("focal", {"gamma": 0.5, "alpha": 0.3}),
    ("focal", {"gamma": 0.5, "alpha": 0.3, "pos_weight": WEIGHTS, "label_smoothing": 0.1}),
    ("asymmetric", {}),
    ("asymmetric", {"gamma_negative": 2, "gamma_positive": 0, "clip": 0}),
    ("asymmetric", {"label_smoothing": 0.1}),
    ("class_balanced", {"counts": COUNTS[:, :4]}),
    ("class_balanced", {"counts": COUNTS[:, :4], "beta": 0.0}),
    ("class_balanced", {"counts": COUNTS[:, :4], "beta": 0.9, "gamma": 1.5}),
    ("class_balanced", {"counts": COUNTS[:, :4], "label_smoothing": 0.1}),
]


def drawn(case: str) -> tuple[list[list[float]], Tensor]:
    """Return values with the holes that the case names, and logits that are not extreme."""
    values, probabilities = reference.draw(case, seed=0)
    return values, torch.logit(torch.tensor(probabilities, dtype=torch.float64).clamp(0.01, 0.99))


def slow_cells(name: str, options: dict, logits: Tensor, values: list[list[float]]) -> list:
    """Return the loss of every cell, 0 in a hole; a tensor among options has a column for each."""

    def cell(z: float, v: float, k: int) -> float:
        own = {n: o[..., k].tolist() if isinstance(o, Tensor) else o for n, o in options.items()}
        return 0.0 if math.isnan(v) else reference.soft(getattr(reference, name), z, v, **own)

    return [
        [cell(z, v, k) for k, (z, v) in enumerate(zip(*rows, strict=True))]
        for rows in zip(logits.tolist(), values, strict=True)
    ]


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("case", reference.HOLES)
def test_each_loss_equals_the_reference(case, name, options):
    values, logits = drawn(case)
    slow = slow_cells(name, options, logits, values)
    cells = LOSSES[name](logits, *split_values(values), **options, per="none")
    assert cells.tolist() == [pytest.approx(row, abs=1e-10) for row in slow]
    assert cells[torch.tensor(values).isnan()].count_nonzero() == 0
    for per in ("cell", "attribute"):
        loss = LOSSES[name](logits, *split_values(values), **options, per=per)
        assert loss.item() == pytest.approx(reference.mean_loss(slow, values, per), abs=1e-10)


@pytest.mark.parametrize("name", LOSSES)
def test_label_smoothing_moves_targets_towards_a_half(name):
    smoothed = LOSSES[name](LOGITS, TARGETS, KNOWN, label_smoothing=0.1)
    by_hand = LOSSES[name](LOGITS, torch.where(TARGETS == 1, 0.95, 0.05), KNOWN)
    assert smoothed.item() == pytest.approx(by_hand.item(), rel=1e-6)
    assert smoothed.item() != pytest.approx(LOSSES[name](LOGITS, TARGETS, KNOWN).item(), rel=1e-2)


@pytest.mark.parametrize("name", LOSSES)
def test_a_soft_target_is_the_mean_over_labels_drawn_from_it(name):
    logits, known = torch.tensor([[0.7], [-2.0]]), torch.ones(2, 1, dtype=torch.bool)
    present, absent = torch.ones(2, 1), torch.zeros(2, 1)
    soft = LOSSES[name](logits, 0.3 * present, known)
    drawn = 0.3 * LOSSES[name](logits, present, known) + 0.7 * LOSSES[name](logits, absent, known)
    assert soft.item() == pytest.approx(drawn.item(), rel=1e-6)


@pytest.mark.parametrize("loss", [masked_bce, masked_focal])
def test_pos_weight_is_one_number_an_attribute(loss):
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0])
    whole = loss(LOGITS, TARGETS, KNOWN, pos_weight=weights)
    by_column = [
        loss(LOGITS[:, [k]], TARGETS[:, [k]], KNOWN[:, [k]], pos_weight=float(weights[k]))
        * KNOWN[:, k].sum()
        for k in range(4)
    ]
    assert whole.item() == pytest.approx(sum(by_column).item() / 6, abs=1e-12)


def test_alpha_a_quarter_and_three_times_the_present_side_is_three_quarters_of_the_loss():
    both = masked_focal(LOGITS, TARGETS, KNOWN, alpha=0.25, pos_weight=3.0)
    assert both.item() == pytest.approx(0.75 * masked_focal(LOGITS, TARGETS, KNOWN).item())


# ------------------------------------------------------------------------------- class weights


def class_weights(counts: list[int], **options) -> list[float]:
    """Return what a present and an absent cell of p = 1/2 weigh."""
    column, targets = torch.zeros(2, 1), torch.tensor([[1.0], [0.0]])
    counts = torch.tensor(counts)[:, None]
    options = {"counts": counts, "per": "none"} | options
    cells = masked_class_balanced(column, targets, torch.ones(2, 1).bool(), **options)
    return (cells[:, 0] / math.log(2)).tolist()


@pytest.mark.parametrize(
    ("beta", "ratio"), [(0.0, 1.0), (0.9, 1.0), (0.99, 2.0), (0.999, 12.5), (0.9999, 23.1)]
)
def test_golden_class_weights(beta, ratio):
    present, absent = class_weights([67, 1677], beta=beta)
    assert present / absent == pytest.approx(ratio, abs=0.05)
    assert present + absent == pytest.approx(2.0, abs=1e-6)


@pytest.mark.parametrize("counts", [[1, 1], [5, 100_000], [3_000_000, 2], [40, 0], [0, 0]])
@pytest.mark.parametrize("beta", [0.0, 0.5, 0.999, 1 - 1e-7])
def test_class_weights_keep_their_digits_in_float32(counts, beta):
    weights = class_weights(counts, beta=beta)
    assert weights == pytest.approx(reference.class_weights(counts, beta), rel=1e-6)
    assert all(0 < weight < 2 for weight in weights)


def test_towards_beta_one_classes_weigh_the_inverse_of_their_cells():
    present, absent = class_weights([67, 1677], beta=1 - 1e-9)
    assert present / absent == pytest.approx(1677 / 67, rel=1e-5)


@pytest.mark.parametrize("per", ["cell", "attribute", "none"])
def test_beta_zero_is_binary_cross_entropy(per):
    balanced = class_balanced(LOGITS, TARGETS, KNOWN, beta=0.0, per=per)
    torch.testing.assert_close(balanced, masked_bce(LOGITS, TARGETS, KNOWN, per=per))


def test_the_balance_of_classes_is_a_pos_weight_and_a_scale_of_the_focal_loss():
    present, absent = class_weights([67, 1677])
    column = [tensor[:, [0]] for tensor in (LOGITS, TARGETS, KNOWN)]
    focal = masked_focal(*column, gamma=1.5, pos_weight=present / absent)
    balanced = class_balanced(*column, gamma=1.5)
    assert balanced.item() == pytest.approx(absent * focal.item(), rel=1e-6)


# ------------------------------------------------------------------------------------- theorems


def stationary_probability(loss: Callable[..., Tensor], targets: Tensor, known: Tensor) -> float:
    """Return sigmoid(z) at which the gradient by a bias z, shared by all cells, is zero."""

    def slope(z: float) -> float:
        bias = torch.tensor(z, dtype=torch.float64, requires_grad=True)
        loss(bias.expand(targets.shape), targets, known).backward()
        return bias.grad.item()

    low, high = -12.0, 12.0
    for _ in range(40):  # to 2e-11
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 1 / (1 + math.exp(-low))


def rows(present: int, absent: int, holes: int = 0) -> tuple[Tensor, Tensor]:
    values = [[1.0]] * present + [[0.0]] * absent + [[NAN]] * holes
    targets, known = split_values(values)
    return targets.double(), known


def asl_coco(logits, targets, known):
    return masked_asymmetric(logits, targets, known, gamma_positive=0.0)


def balanced_by_its_own_counts(logits, targets, known):
    counts = torch.stack([((targets == value) & known).sum(dim=0) for value in (1, 0)])
    return masked_class_balanced(logits, targets, known, counts=counts)


BASE_RATES = (0.04, 0.10, 0.25, 0.50, 0.75, 0.90)


@pytest.mark.parametrize(
    ("loss", "outputs"),
    [
        (masked_bce, BASE_RATES),
        (masked_focal, (0.234, 0.306, 0.399, 0.500, 0.601, 0.694)),
        (masked_asymmetric, (0.461, 0.528, 0.607, 0.687, 0.765, 0.835)),
        (asl_coco, (0.509, 0.592, 0.693, 0.799, 0.897, 0.972)),
        (balanced_by_its_own_counts, (0.489, 0.490, 0.494, 0.500, 0.506, 0.510)),
    ],
)
def test_what_a_model_that_knows_only_the_base_rate_will_output(loss, outputs):
    for rate, output in zip(BASE_RATES, outputs, strict=True):
        targets, known = rows(round(100 * rate), round(100 * (1 - rate)), holes=37)
        assert stationary_probability(loss, targets, known) == pytest.approx(output, abs=5e-4)


@pytest.mark.parametrize("weight", [0.5, 3.0, 20.0])
@pytest.mark.parametrize(
    "weighted",
    [
        lambda weight: partial(masked_bce, pos_weight=weight),
        lambda weight: partial(masked_focal, gamma=0.0, pos_weight=weight),
        lambda weight: partial(  # beta so close to 1 that a class of n cells weighs 1 / n
            masked_class_balanced, counts=torch.tensor([[10], [10 * weight]]), beta=1 - 1e-12
        ),
    ],
    ids=["bce", "focal", "class_balanced"],
)
def test_a_weight_of_the_present_side_shifts_the_fitted_logit_by_its_logarithm(weighted, weight):
    targets, known = rows(4, 96, holes=10)
    fitted = stationary_probability(weighted(weight), targets, known)
    plain = stationary_probability(masked_bce, targets, known)
    shift = math.log(fitted / (1 - fitted)) - math.log(plain / (1 - plain))
    assert shift == pytest.approx(math.log(weight), abs=1e-8)


@pytest.mark.parametrize("smoothing", [0.1, 0.5])
def test_label_smoothing_moves_the_fitted_probability_as_it_moves_the_targets(smoothing):
    targets, known = rows(4, 96, holes=10)
    fitted = stationary_probability(partial(masked_bce, label_smoothing=smoothing), targets, known)
    assert fitted == pytest.approx((1 - smoothing) * 0.04 + smoothing / 2, abs=1e-8)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_holes_taken_for_absent_shrink_the_prevalence_and_masked_holes_do_not(share):
    hidden_present, hidden_absent = round(40 * share), round(160 * share)
    targets, known = rows(
        40 - hidden_present, 160 - hidden_absent, holes=hidden_present + hidden_absent
    )
    everything = torch.ones_like(known)
    wrong = stationary_probability(masked_bce, targets, everything)
    assert wrong == pytest.approx((1 - share) * 0.2, abs=1e-8)
    assert stationary_probability(masked_bce, targets, known) == pytest.approx(0.2, abs=1e-8)


def gradient(loss: Callable[..., Tensor], logits: Tensor, *rest, **options) -> Tensor:
    logits = logits.detach().clone().requires_grad_()
    loss(logits, *rest, **options).sum().backward()
    return logits.grad


def test_the_gradient_of_masked_bce_is_p_minus_y_over_the_known_cells():
    expected = torch.where(KNOWN, (torch.sigmoid(LOGITS) - TARGETS) / 6, 0.0)
    torch.testing.assert_close(gradient(masked_bce, LOGITS, TARGETS, KNOWN), expected)


def test_the_gradient_of_the_asymmetric_loss_leaves_the_focusing_weights_alone():
    p = torch.sigmoid(LOGITS)
    present = (1 - p) * (p - 1)  # weight x d(-log p)/dz
    m = (p - 0.05).clamp(min=0)
    absent = torch.where(m > 0, m**4 * p * (1 - p) / (1 - m), 0.0)
    expected = torch.where(KNOWN, TARGETS * present + (1 - TARGETS) * absent, 0.0) / 6
    torch.testing.assert_close(gradient(masked_asymmetric, LOGITS, TARGETS, KNOWN), expected)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("focal", {}),
        ("focal", {"gamma": 0.5}),
        ("focal", {"gamma": 0.0}),
        ("focal", {"alpha": 0.25, "pos_weight": 3.0, "label_smoothing": 0.1}),
        ("class_balanced", {}),
        ("class_balanced", {"gamma": 0.5, "label_smoothing": 0.1}),
    ],
)
def test_the_gradient_is_that_of_the_formula(name, options):
    def formula(logits):
        return LOSSES[name](logits, TARGETS.double(), KNOWN, **options)

    assert torch.autograd.gradcheck(formula, LOGITS.clone().requires_grad_())


def test_focal_without_focus_is_binary_cross_entropy():
    focal = masked_focal(LOGITS, TARGETS, KNOWN, gamma=0)
    assert focal.item() == pytest.approx(masked_bce(LOGITS, TARGETS, KNOWN).item(), abs=1e-12)


# ---------------------------------------------------------------------------- averages and parts


def test_golden_averages():
    cells = torch.tensor([[1.0, 2.0, NAN], [3.0, NAN, NAN], [8.0, 4.0, NAN]])
    known, counts = ~cells.isnan(), torch.tensor([4, 2, 2])
    assert average(cells, known).item() == pytest.approx(18 / 5)
    assert average(cells, known, "attribute").item() == pytest.approx((12 / 3 + 6 / 2) / 2)
    assert average(cells, known, "cell", counts).item() == pytest.approx(18 / 8)
    assert average(cells, known, "attribute", counts).item() == pytest.approx((3 + 3 + 0) / 3)
    assert average(cells, known, "none").tolist() == [[1, 2, 0], [3, 0, 0], [8, 4, 0]]


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.float64])
def test_the_type_of_counts_is_not_that_of_the_average(dtype):
    cells, known = LOGITS.float().abs(), KNOWN
    for per in ("cell", "attribute"):
        counted = average(cells, known, per, known.sum(dim=0).to(dtype))
        assert counted.dtype == torch.float32
        assert counted.item() == average(cells, known, per).item()


@pytest.mark.parametrize("per", ["cell", "attribute"])
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("case", reference.HOLES)
def test_the_parts_of_a_step_sum_to_the_whole(case, name, per):
    values, logits = drawn(case)
    parts = [slice(0, 5), slice(5, 6), slice(6, 20), slice(20, 40)]  # of unequal sizes,
    values[6:20] = [[NAN] * 4] * 14  # one all holes,
    values[0][0] = values[2][3] = values[21][1] = NAN  # and always of unequal holes
    targets, known = split_values(values)

    def summed(logits, counts):
        each = [(logits[part], targets[part], known[part]) for part in parts]
        return sum(average(LOSSES[name](*p, per="none"), p[2], per, counts) for p in each)

    counts = known.sum(dim=0)
    whole = LOSSES[name](logits, targets, known, per=per)
    assert summed(logits, counts).item() == pytest.approx(whole.item(), abs=1e-14)
    torch.testing.assert_close(
        gradient(summed, logits, counts),
        gradient(LOSSES[name], logits, targets, known, per=per),
        rtol=1e-12,
        atol=1e-16,
    )
    if known.any():  # the mean of the parts' own means is something else
        own = summed(logits, None).item() / len(parts)
        assert own != pytest.approx(whole.item(), rel=1e-3)


@pytest.mark.parametrize("per", ["cell", "attribute"])
@pytest.mark.parametrize("counts", [[0, 0, 0, 0], [3, 0, 5, 1]])
def test_a_part_without_a_known_cell_is_exactly_zero_and_attached(counts, per):
    cells = torch.full_like(LOGITS, NAN).requires_grad_()
    part = average(cells, torch.zeros_like(KNOWN), per, torch.tensor(counts))
    assert part.item() == 0 and part.requires_grad
    part.backward()
    assert cells.grad.count_nonzero() == 0


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_cells_average_to_the_loss(name):
    cells = LOSSES[name](LOGITS, TARGETS, KNOWN, per="none")
    assert cells.shape == LOGITS.shape and cells[~KNOWN].count_nonzero() == 0
    for per in ("cell", "attribute"):
        loss = LOSSES[name](LOGITS, TARGETS, KNOWN, per=per)
        assert average(cells, KNOWN, per).item() == loss.item()


# ---------------------------------------------------------------------------------------- holes


@pytest.mark.parametrize("per", ["cell", "attribute", "none"])
@pytest.mark.parametrize("name", LOSSES)
def test_without_a_known_cell_loss_and_gradient_are_exactly_zero_and_attached(name, per):
    logits = LOGITS.clone().requires_grad_()
    loss = LOSSES[name](logits, torch.full_like(LOGITS, NAN), torch.zeros_like(KNOWN), per=per)
    assert loss.count_nonzero() == 0 and loss.requires_grad
    loss.sum().backward()
    assert logits.grad.count_nonzero() == 0


@pytest.mark.parametrize("name", LOSSES)
def test_a_column_that_is_all_holes_contributes_exactly_nothing(name):
    column = torch.full((2, 1), NAN)
    wider = (
        torch.cat([LOGITS, column], dim=1),
        torch.cat([TARGETS, column], dim=1),
        torch.cat([KNOWN, torch.zeros(2, 1, dtype=torch.bool)], dim=1),
    )
    for per in ("cell", "attribute"):
        narrow = LOSSES[name](LOGITS, TARGETS, KNOWN, per=per)
        assert LOSSES[name](*wider, per=per).item() == pytest.approx(narrow.item(), abs=1e-15)
        gradients = gradient(LOSSES[name], *wider, per=per)
        assert gradients[:, -1].count_nonzero() == 0
        torch.testing.assert_close(
            gradients[:, :-1], gradient(LOSSES[name], LOGITS, TARGETS, KNOWN, per=per)
        )


@pytest.mark.parametrize("loss", [masked_bce, masked_focal])
def test_a_pos_weight_of_an_attribute_without_known_cells_may_be_nan(loss):
    known = KNOWN.clone()
    known[:, 2] = False
    weights = torch.tensor([1.0, 2.0, NAN, 4.0])
    weighted = loss(LOGITS, TARGETS, known, pos_weight=weights)
    assert weighted == loss(LOGITS, TARGETS, known, pos_weight=weights.nan_to_num(7.0))
    with torch.autograd.set_detect_anomaly(True):  # nor does it stand anywhere on the way
        gradients = gradient(loss, LOGITS, TARGETS, known, pos_weight=weights)
    assert torch.isfinite(gradients).all()


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_under_a_hole_enters_the_arithmetic(name):
    targets = torch.where(KNOWN, TARGETS, NAN)
    with torch.autograd.set_detect_anomaly(True):  # an error if a NaN appears on the way back
        gradients = gradient(LOSSES[name], LOGITS, targets, KNOWN)
    torch.testing.assert_close(gradients, gradient(LOSSES[name], LOGITS, TARGETS, KNOWN))


def test_values_with_holes_are_split_once():
    targets, known = split_values(np.array([[1.0, NAN], [0.25, 0.0]]))
    assert targets.tolist() == [[1.0, 0.0], [0.25, 0.0]]
    assert known.tolist() == [[True, False], [True, True]]
    assert (targets.dtype, known.dtype) == (torch.float32, torch.bool)
    assert split_values(torch.tensor([NAN, 1.0]))[0].shape == (2,)


@pytest.mark.parametrize("value", [-1.0, 2.0, math.inf])
def test_a_sentinel_for_a_hole_is_refused(value):
    with pytest.raises(UserError, match="expected 0 to 1, or NaN"):
        split_values([[0.0, value]])


# ----------------------------------------------------------------------------- numbers and types


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("bce", {}),
        ("focal", {}),
        ("focal", {"gamma": 0.5}),
        ("focal", {"pos_weight": 9.0, "label_smoothing": 0.1}),
        ("asymmetric", {}),
        ("asymmetric", {"clip": 0.0}),
        ("asymmetric", {"label_smoothing": 0.1}),
        ("class_balanced", {}),
        ("class_balanced", {"beta": 1 - 1e-15, "gamma": 0.5}),
    ],
)
@pytest.mark.parametrize("size", [50.0, 1e4, 1e30])
def test_extreme_logits_give_finite_losses_and_gradients(name, options, size):
    logits = torch.tensor([[size, -size], [-size, size]])
    targets, known = torch.tensor([[1.0, 1.0], [0.0, 0.0]]), torch.ones(2, 2, dtype=torch.bool)
    assert torch.isfinite(LOSSES[name](logits, targets, known, **options))
    assert torch.isfinite(gradient(LOSSES[name], logits, targets, known, **options)).all()


def test_certain_and_wrong_has_a_gradient():
    logits = torch.tensor([[-40.0, 40.0]])
    targets, known = torch.tensor([[1.0, 0.0]]), torch.ones(1, 2, dtype=torch.bool)
    counts = {"counts": torch.ones(2, 2)}
    cases = [("bce", {}), ("focal", {}), ("asymmetric", {"clip": 0.0}), ("class_balanced", counts)]
    for name, options in cases:
        assert (gradient(LOSSES[name], logits, targets, known, **options).abs() > 0.4).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_logits_are_computed_in_float32(name, dtype):
    logits = LOGITS.to(dtype)  # exact: the toy's logits are halves
    loss = LOSSES[name](logits, TARGETS, KNOWN)
    assert loss.dtype == torch.float32
    assert loss.item() == LOSSES[name](LOGITS.float(), TARGETS, KNOWN).item()
    assert gradient(LOSSES[name], logits, TARGETS, KNOWN).dtype == dtype


@pytest.mark.parametrize("name", LOSSES)
def test_autocast_changes_nothing(name):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = LOSSES[name](LOGITS.bfloat16(), TARGETS, KNOWN)
    assert inside.dtype == torch.float32
    assert inside.item() == LOSSES[name](LOGITS.float(), TARGETS, KNOWN).item()


@pytest.mark.parametrize("name", LOSSES)
def test_the_grad_mode_of_the_caller_is_left_as_it_is(name):
    with torch.no_grad():
        assert not LOSSES[name](LOGITS, TARGETS, KNOWN).requires_grad
        assert not torch.is_grad_enabled()
    LOSSES[name](LOGITS, TARGETS, KNOWN)
    assert torch.is_grad_enabled()


# --------------------------------------------------------------------------------- wrong inputs


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    ("logits", "targets", "known", "message"),
    [
        (LOGITS, TARGETS[:1], KNOWN, r"targets \(1, 4\)"),
        (LOGITS, TARGETS, KNOWN[:, :1], r"known \(2, 1\), expected three times \(B, K\)"),
        (LOGITS[0], TARGETS[0], KNOWN[0], r"expected three times \(B, K\)"),
        (LOGITS, TARGETS, KNOWN.float(), "known torch.float32, expected .* known torch.bool"),
        (LOGITS.long(), TARGETS, KNOWN, "logits torch.int64"),
    ],
)
def test_wrong_shapes_and_types_are_refused(name, logits, targets, known, message):
    with pytest.raises(UserError, match=message):
        LOSSES[name](logits, targets, known)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("bce", {"per": "row"}, "wrong per; got 'row', expected 'cell', 'attribute' or 'none'"),
        *[(name, {"label_smoothing": 1.0}, "label_smoothing; got 1.0") for name in LOSSES],
        ("bce", {"pos_weight": torch.ones(3)}, r"wrong pos_weight; got \(3,\).* \(4,\)"),
        ("focal", {"gamma": -1}, "wrong gamma; got -1"),
        ("focal", {"alpha": 2}, "wrong alpha; got 2"),
        ("asymmetric", {"gamma_negative": -1}, "wrong gamma_negative"),
        ("asymmetric", {"gamma_positive": -1}, "wrong gamma_positive"),
        ("asymmetric", {"clip": 1.0}, "wrong clip"),
        ("focal", {"pos_weight": torch.ones(3)}, r"wrong pos_weight; got \(3,\).* \(4,\)"),
        ("class_balanced", {"beta": 1.0}, r"wrong beta; got 1.0, expected in \[0, 1\)"),
        ("class_balanced", {"gamma": -1}, "wrong gamma; got -1"),
        ("class_balanced", {"counts": COUNTS}, r"counts; got \(2, 5\), expected \(2, 4\)"),
    ],
)
def test_wrong_options_are_refused(name, options, message):
    with pytest.raises(UserError, match=message):
        LOSSES[name](LOGITS, TARGETS, KNOWN, **options)


@pytest.mark.parametrize(
    ("cells", "known", "counts", "message"),
    [
        (LOGITS, KNOWN.float(), None, r"wrong known; got torch.float32, expected torch.bool"),
        (LOGITS[:, :1], KNOWN, None, r"wrong cells; got \(2, 1\), expected \(2, 4\)"),
        (LOGITS, KNOWN, torch.tensor(6), r"wrong counts; got \(\), expected \(4,\)"),
        (LOGITS, KNOWN, torch.ones(2, 4), r"wrong counts; got \(2, 4\), expected \(4,\)"),
    ],
)
def test_cells_and_counts_that_do_not_fit_are_refused(cells, known, counts, message):
    with pytest.raises(UserError, match=message):
        average(cells, known, counts=counts)
