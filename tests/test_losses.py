"""Losses against golden values, theorems and slow references.

The golden values were computed once with numpy from the papers' formulas.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from tests import reference
from torch import Tensor

from polytag.errors import UserError
from polytag.losses import LOSSES, masked_asymmetric, masked_bce, masked_focal, split_values

NAN = math.nan
LOGITS = torch.tensor([[2, -1, 0.5, -3], [0, 1.5, -0.5, 4]], dtype=torch.float64)
TARGETS, KNOWN = split_values([[1, 0, NAN, 0], [1, NAN, 0, 0]])


# -------------------------------------------------------------------------------- golden values


@pytest.mark.parametrize(
    ("loss", "options", "golden"),
    [
        (masked_bce, {}, 5.6741511428 / 6),
        (masked_bce, {"per": "attribute"}, 0.8076862268),
        (masked_bce, {"pos_weight": 3.0}, 1.2190502543),
        (masked_focal, {}, 0.6900564045),
        (masked_focal, {"alpha": 0.25}, 0.5029514402),
        (masked_asymmetric, {}, 2.3954152018 / 6),
        (masked_asymmetric, {"gamma_positive": 0}, 2.8537866133 / 6),
        (
            masked_asymmetric,
            {"gamma_negative": 0, "gamma_positive": 0, "clip": 0},
            5.6741511428 / 6,
        ),
    ],
)
def test_golden_values(loss, options, golden):
    assert loss(LOGITS, TARGETS, KNOWN, **options).item() == pytest.approx(golden, abs=1e-6)
    assert loss(LOGITS.float(), TARGETS, KNOWN, **options).item() == pytest.approx(golden, abs=1e-6)


def test_holes_taken_for_absent_give_another_value():
    everything = torch.ones_like(KNOWN)
    assert masked_bce(LOGITS, TARGETS, everything).item() == pytest.approx(1.0437051756, abs=1e-6)


# ------------------------------------------------------------------------------ slow references

CELLS: list[tuple[str, dict, Callable, dict]] = [
    ("bce", {}, reference.bce, {}),
    ("bce", {"pos_weight": 2.5}, reference.bce, {"pos_weight": 2.5}),
    ("focal", {}, reference.focal, {}),
    ("focal", {"gamma": 0.5, "alpha": 0.3}, reference.focal, {"gamma": 0.5, "alpha": 0.3}),
    ("asymmetric", {}, reference.asymmetric, {}),
    (
        "asymmetric",
        {"gamma_negative": 2, "gamma_positive": 0, "clip": 0},
        reference.asymmetric,
        {"gamma_negative": 2, "gamma_positive": 0, "clip": 0},
    ),
]


@pytest.mark.parametrize("per", ["cell", "attribute"])
@pytest.mark.parametrize(("name", "options", "cell", "cell_options"), CELLS)
@pytest.mark.parametrize("case", reference.HOLES)
def test_each_loss_equals_the_reference(case, name, options, cell, cell_options, per):
    values, probabilities = reference.draw(case, seed=0)
    p = torch.tensor(probabilities, dtype=torch.float64).clamp(0.01, 0.99)
    logits = torch.logit(p)
    cells = [
        [0.0 if math.isnan(v) else cell(z, v, **cell_options) for z, v in zip(*rows, strict=True)]
        for rows in zip(logits.tolist(), values, strict=True)
    ]
    loss = LOSSES[name](logits, *split_values(values), **options, per=per)
    assert loss.item() == pytest.approx(reference.mean_loss(cells, values, per), abs=1e-10)


def test_label_smoothing_moves_targets_towards_a_half():
    expected = [
        reference.bce(z, 0.9 * y + 0.05)
        for z, y, m in zip(
            LOGITS.flatten().tolist(), TARGETS.flatten().tolist(), KNOWN.flatten(), strict=True
        )
        if m
    ]
    loss = masked_bce(LOGITS, TARGETS, KNOWN, label_smoothing=0.1)
    assert loss.item() == pytest.approx(sum(expected) / 6, abs=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_a_soft_target_is_the_mean_over_labels_drawn_from_it(name):
    logits, known = torch.tensor([[0.7], [-2.0]]), torch.ones(2, 1, dtype=torch.bool)
    present, absent = torch.ones(2, 1), torch.zeros(2, 1)
    soft = LOSSES[name](logits, 0.3 * present, known)
    drawn = 0.3 * LOSSES[name](logits, present, known) + 0.7 * LOSSES[name](logits, absent, known)
    assert soft.item() == pytest.approx(drawn.item(), rel=1e-6)


def test_pos_weight_is_one_number_an_attribute():
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0])
    loss = masked_bce(LOGITS, TARGETS, KNOWN, pos_weight=weights)
    by_column = [
        masked_bce(LOGITS[:, [k]], TARGETS[:, [k]], KNOWN[:, [k]], pos_weight=float(weights[k]))
        * KNOWN[:, k].sum()
        for k in range(4)
    ]
    assert loss.item() == pytest.approx(sum(by_column).item() / 6, abs=1e-12)


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


BASE_RATES = (0.04, 0.10, 0.25, 0.50, 0.75, 0.90)


@pytest.mark.parametrize(
    ("loss", "outputs"),
    [
        (masked_bce, BASE_RATES),
        (masked_focal, (0.234, 0.306, 0.399, 0.500, 0.601, 0.694)),
        (masked_asymmetric, (0.461, 0.528, 0.607, 0.687, 0.765, 0.835)),
        (asl_coco, (0.509, 0.592, 0.693, 0.799, 0.897, 0.972)),
    ],
)
def test_what_a_model_that_knows_only_the_base_rate_will_output(loss, outputs):
    for rate, output in zip(BASE_RATES, outputs, strict=True):
        targets, known = rows(round(100 * rate), round(100 * (1 - rate)), holes=37)
        assert stationary_probability(loss, targets, known) == pytest.approx(output, abs=5e-4)


@pytest.mark.parametrize("weight", [0.5, 3.0, 20.0])
def test_a_pos_weight_shifts_the_fitted_logit_by_its_logarithm(weight):
    targets, known = rows(4, 96, holes=10)

    def weighted(logits, targets, known):
        return masked_bce(logits, targets, known, pos_weight=weight)

    fitted = stationary_probability(weighted, targets, known)
    plain = stationary_probability(masked_bce, targets, known)
    shift = math.log(fitted / (1 - fitted)) - math.log(plain / (1 - plain))
    assert shift == pytest.approx(math.log(weight), abs=1e-8)


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
    loss(logits, *rest, **options).backward()
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


@pytest.mark.parametrize("options", [{}, {"gamma": 0.5}, {"gamma": 0.0}, {"alpha": 0.25}])
def test_the_gradient_of_the_focal_loss_is_that_of_its_formula(options):
    def formula(logits):
        return masked_focal(logits, TARGETS.double(), KNOWN, **options)

    assert torch.autograd.gradcheck(formula, LOGITS.clone().requires_grad_())


def test_focal_without_focus_is_binary_cross_entropy():
    focal = masked_focal(LOGITS, TARGETS, KNOWN, gamma=0)
    assert focal.item() == pytest.approx(masked_bce(LOGITS, TARGETS, KNOWN).item(), abs=1e-12)


# ---------------------------------------------------------------------------------------- holes


@pytest.mark.parametrize("per", ["cell", "attribute"])
@pytest.mark.parametrize("name", LOSSES)
def test_without_a_known_cell_loss_and_gradient_are_exactly_zero_and_attached(name, per):
    logits = LOGITS.clone().requires_grad_()
    loss = LOSSES[name](logits, torch.full_like(LOGITS, NAN), torch.zeros_like(KNOWN), per=per)
    assert loss.item() == 0 and loss.requires_grad
    loss.backward()
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


def test_a_pos_weight_of_an_attribute_without_known_cells_may_be_nan():
    known = KNOWN.clone()
    known[:, 2] = False
    weights = torch.tensor([1.0, 2.0, NAN, 4.0])
    loss = masked_bce(LOGITS, TARGETS, known, pos_weight=weights)
    assert loss == masked_bce(LOGITS, TARGETS, known, pos_weight=weights.nan_to_num(7.0))
    with torch.autograd.set_detect_anomaly(True):  # nor does it stand anywhere on the way
        gradients = gradient(masked_bce, LOGITS, TARGETS, known, pos_weight=weights)
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
        ("asymmetric", {}),
        ("asymmetric", {"clip": 0.0}),
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
    for name, options in [("bce", {}), ("focal", {}), ("asymmetric", {"clip": 0.0})]:
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
        ("bce", {"per": "row"}, "wrong per; got 'row', expected 'cell' or 'attribute'"),
        ("bce", {"label_smoothing": 1.0}, "wrong label_smoothing; got 1.0"),
        ("bce", {"pos_weight": torch.ones(3)}, r"wrong pos_weight; got \(3,\).* \(4,\)"),
        ("focal", {"gamma": -1}, "wrong gamma; got -1"),
        ("focal", {"alpha": 2}, "wrong alpha; got 2"),
        ("asymmetric", {"gamma_negative": -1}, "wrong gamma_negative"),
        ("asymmetric", {"gamma_positive": -1}, "wrong gamma_positive"),
        ("asymmetric", {"clip": 1.0}, "wrong clip"),
    ],
)
def test_wrong_options_are_refused(name, options, message):
    with pytest.raises(UserError, match=message):
        LOSSES[name](LOGITS, TARGETS, KNOWN, **options)
