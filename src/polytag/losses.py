"""Masked losses: what is not known does not exist.

Every loss is ``loss(logits, targets, known, *, ..., per) -> scalar`` with

- ``logits`` float (B, K), before the sigmoid;
- ``targets`` float (B, K) in [0, 1], 1 = present, 0 = absent, anything where ``known`` is False;
- ``known`` bool (B, K), False = not known (a hole).

What stands under a hole, NaN and infinity included, changes neither loss nor gradient by one bit:
holes are filled before the arithmetic, because masking after it gives the right loss and a NaN
gradient. Without any known cell the loss is exactly 0, still attached to the graph, with gradients
exactly 0. Half-precision logits (autocast) are computed in float32, float64 in float64.

``per="cell"`` (default) divides the sum over known cells by their number: a cell is a cell, and
attributes with fewer holes weigh more. ``per="attribute"`` takes the mean over the known cells of
each attribute, then over the attributes that have one: the strength of a penalty then means the
same for each of them. ``per="none"`` returns the losses of the cells as they are, float (B, K),
exactly 0 in a hole; `average` reduces them, for a batch that is only a part of a step too.

``label_smoothing`` s makes (1 - s) y + s / 2 of a target y, in every loss alike.

Only the minimum of `masked_bce` without ``pos_weight`` and ``label_smoothing`` is the probability
of "present". What the others give has to be calibrated before it is called one: on an attribute
present in 4 % of the cells, a model that sees nothing outputs .23 with `masked_focal` and .46 with
`masked_asymmetric` (.51 with ``gamma_positive=0``), and .49 with `masked_class_balanced` where
that is 4 of 100 cells.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from polytag.errors import UserError

Per = Literal["cell", "attribute", "none"]


def split_values(values: Any) -> tuple[Tensor, Tensor]:
    """Split values with holes into what losses take.

    Args:
        values: Tensor or array of any shape, in [0, 1], NaN = not known.

    Returns:
        ``targets`` float32, holes filled with 0, and ``known`` bool, both of the shape of
        ``values``.

    Raises:
        UserError: A value is neither NaN nor in [0, 1]; -1 is not a hole.

    Example:
        >>> targets, known = split_values([[1.0, float("nan")]])
        >>> targets.tolist(), known.tolist()
        ([[1.0, 0.0]], [[True, False]])
    """
    values = torch.as_tensor(values, dtype=torch.float32)
    known = ~values.isnan()
    targets = torch.where(known, values, 0.0)
    outside = (targets < 0) | (targets > 1)
    if outside.any():
        got = f"{targets[outside][0].item():g}"
        raise UserError("not a value of a label", got=got, expected="0 to 1, or NaN (not known)")
    return targets, known


def average(
    cells: Tensor, known: Tensor, per: Per = "cell", counts: Tensor | None = None
) -> Tensor:
    """Average the losses of cells over the known ones.

    A step that is taken in parts, by several processes or in batches one after the other, gives
    each part the ``counts`` of the whole step: the averages of the parts then sum to that of the
    whole, whatever the holes of each. Means of the parts' own means would not.

    Args:
        cells: Float (B, K), a loss with ``per="none"``; anything where ``known`` is False.
        known: Bool (B, K).
        per: ``"cell"`` or ``"attribute"``, see the top of this module; ``"none"`` only fills holes.
        counts: Known cells of each attribute in the whole step (K,), int or float, these included;
            those of ``known`` if None.

    Returns:
        A scalar, exactly 0 and still attached to the graph without a known cell; with
        ``per="none"`` (B, K), exactly 0 in a hole.

    Raises:
        UserError: Shapes or types do not fit, or ``per`` is none of the three.

    Example:
        >>> cells, known = torch.tensor([[1.0, 3.0], [5.0, 9.0]]), torch.ones(2, 2).bool()
        >>> known[0, 1] = False  # leaves 1, 5 and 9
        >>> counts = known.sum(dim=0)
        >>> parts = [average(cells[i : i + 1], known[i : i + 1], counts=counts) for i in range(2)]
        >>> average(cells, known).item(), sum(parts).item()
        (5.0, 5.0)
    """
    _require(known.dtype == torch.bool, "known", known.dtype, "torch.bool")
    _require(cells.shape == known.shape, "cells", tuple(cells.shape), str(tuple(known.shape)))
    cells = torch.where(known, cells, 0.0)
    if per == "none":
        return cells
    counts = known.sum(dim=0) if counts is None else counts
    shape = tuple(known.shape[1:])
    _require(counts.shape == shape, "counts", tuple(counts.shape), str(shape))
    counts = counts.to(cells)
    if per == "cell":
        return cells.sum() / counts.sum().clamp(min=1)
    if per == "attribute":
        means = cells.sum(dim=0) / counts.clamp(min=1)
        return means.sum() / (counts > 0).sum().clamp(min=1)
    raise UserError("wrong per", got=repr(per), expected="'cell', 'attribute' or 'none'")


def masked_bce(
    logits: Tensor,
    targets: Tensor,
    known: Tensor,
    *,
    pos_weight: Tensor | float | None = None,
    label_smoothing: float = 0.0,
    per: Per = "cell",
) -> Tensor:
    """Binary cross-entropy of the known cells: -w y log p - (1 - y) log(1 - p), p = sigmoid(z).

    The gradient by a known logit is (p - y) / (number of known cells) for ``w = 1`` and
    ``per="cell"``. Where holes do not depend on the label given the picture, the minimum is that
    of the fully labelled data. A weight w moves the fitted logit by log w, which calibration has to
    undo.

    Args:
        logits: Float (B, K).
        targets: Float (B, K) in [0, 1]; anything where ``known`` is False.
        known: Bool (B, K).
        pos_weight: Weight w > 0 of the present side, one number or (K,); 1 if None. The weights do
            not enter the divisor.
        label_smoothing: s in [0, 1): targets become (1 - s) y + s / 2.
        per: ``"cell"``, ``"attribute"`` or ``"none"``, see the top of this module.

    Returns:
        A scalar >= 0, in nats, or (B, K) with ``per="none"``; exactly 0 without a known cell.

    Raises:
        UserError: Shapes or types do not fit, or an option is out of its range.

    Example:
        >>> logits, known = torch.zeros(1, 2), torch.tensor([[True, False]])
        >>> round(masked_bce(logits, torch.tensor([[1.0, float("nan")]]), known).item(), 4)
        0.6931
    """
    logits, targets = _prepare(logits, targets, known, label_smoothing)
    cells = functional.binary_cross_entropy_with_logits(
        logits, targets, pos_weight=_weights(pos_weight, logits, known), reduction="none"
    )
    return average(cells, known, per)


def masked_focal(
    logits: Tensor,
    targets: Tensor,
    known: Tensor,
    *,
    gamma: float = 2.0,
    alpha: float | None = None,
    pos_weight: Tensor | float | None = None,
    label_smoothing: float = 0.0,
    per: Per = "cell",
) -> Tensor:
    """Focal loss of the known cells (Lin et al. 2017, arXiv 1708.02002, equations 4 and 5).

    -w a y (1 - p)^g log p - (1 - a) (1 - y) p^g log(1 - p): cells that are already right count
    little. Its outputs are drawn towards 1/2; calibrate before calling them probabilities.

    Args:
        logits: Float (B, K).
        targets: Float (B, K) in [0, 1]; anything where ``known`` is False.
        known: Bool (B, K).
        gamma: Focus g >= 0; 0 gives binary cross-entropy. The paper's value is 2.
        alpha: Weight a in [0, 1] of the present side, 1 - a of the absent side; both 1 if None. The
            paper's value with gamma 2 is .25.
        pos_weight: Further weight w > 0 of the present side, one number or (K,); 1 if None.
        label_smoothing: s in [0, 1): targets become (1 - s) y + s / 2.
        per: ``"cell"``, ``"attribute"`` or ``"none"``, see the top of this module.

    Returns:
        A scalar >= 0, or (B, K) with ``per="none"``; exactly 0 without a known cell.

    Raises:
        UserError: Shapes or types do not fit, or an option is out of its range.

    Example:
        >>> logits, targets = torch.zeros(1, 1), torch.ones(1, 1)
        >>> round(masked_focal(logits, targets, targets.bool()).item(), 4)  # log(2) / 4
        0.1733
    """
    logits, targets = _prepare(logits, targets, known, label_smoothing)
    _require(alpha is None or 0 <= alpha <= 1, "alpha", alpha, "in [0, 1] or None")
    present, absent = _focal_sides(logits, gamma)
    weights = (1.0, 1.0) if alpha is None else (alpha, 1 - alpha)
    present = weights[0] * _weights(pos_weight, logits, known) * present
    return average(targets * present + weights[1] * (1 - targets) * absent, known, per)


def masked_class_balanced(
    logits: Tensor,
    targets: Tensor,
    known: Tensor,
    *,
    counts: Tensor,
    beta: float = 0.999,
    gamma: float = 0.0,
    label_smoothing: float = 0.0,
    per: Per = "cell",
) -> Tensor:
    """Class-balanced loss of the known cells (Cui et al. 2019, arXiv 1901.05555, section 4).

    -w+ y (1 - p)^g log p - w- (1 - y) p^g log(1 - p). Here every attribute has two classes, present
    and absent, and each class of n cells weighs 1 / E(n), E(n) = (1 - b^n) / (1 - b) its effective
    number (proposition 1); the two weights of an attribute are scaled to sum to 2. A class without
    a cell weighs what a class of one cell does. 67 present and 1677 absent cells weigh 2.0 to 1
    with b = .99, 12.5 to 1 with .999 and 23.1 to 1 with .9999.

    With g = 0 the fitted logit moves by log(w+ / w-), which calibration has to undo.

    Args:
        logits: Float (B, K).
        targets: Float (B, K) in [0, 1]; anything where ``known`` is False.
        known: Bool (B, K).
        counts: Present and absent known cells of each attribute among all that is trained on, not
            in this batch (2, K), int or float.
        beta: b in [0, 1): 0 gives all classes one weight, towards 1 they weigh 1 / n.
        gamma: Focus g >= 0 as in `masked_focal`; 0 weighs binary cross-entropy.
        label_smoothing: s in [0, 1): targets become (1 - s) y + s / 2.
        per: ``"cell"``, ``"attribute"`` or ``"none"``, see the top of this module.

    Returns:
        A scalar >= 0, or (B, K) with ``per="none"``; exactly 0 without a known cell.

    Raises:
        UserError: Shapes or types do not fit, or an option is out of its range.

    Example:
        >>> logits, targets = torch.zeros(1, 2), torch.tensor([[1.0, 0.0]])
        >>> counts = torch.tensor([[67, 67], [1677, 1677]])
        >>> known, options = torch.ones(1, 2).bool(), {"counts": counts, "per": "none"}
        >>> present, absent = masked_class_balanced(logits, targets, known, **options)[0].tolist()
        >>> round(present / absent, 1)
        12.5
    """
    logits, targets = _prepare(logits, targets, known, label_smoothing)
    _require(0 <= beta < 1, "beta", beta, "in [0, 1)")
    counts = torch.as_tensor(counts, dtype=logits.dtype, device=logits.device)
    shape = (2, *logits.shape[1:])
    _require(counts.shape == shape, "counts", tuple(counts.shape), str(shape))
    # 1 - b^n by expm1, which keeps its digits in float32 where b^n is close to 1.
    log_beta = math.log(beta) if beta else -math.inf
    effective = -torch.expm1(counts.clamp(min=1) * log_beta)
    weight_present, weight_absent = 2 * effective.flip(0) / effective.sum(dim=0)
    present, absent = _focal_sides(logits, gamma)
    cells = weight_present * targets * present + weight_absent * (1 - targets) * absent
    return average(cells, known, per)


def masked_asymmetric(
    logits: Tensor,
    targets: Tensor,
    known: Tensor,
    *,
    gamma_negative: float = 4.0,
    gamma_positive: float = 1.0,
    clip: float = 0.05,
    label_smoothing: float = 0.0,
    per: Per = "cell",
) -> Tensor:
    """Asymmetric loss of the known cells (ASL; Ridnik, Ben-Baruch et al. 2021, arXiv 2009.14119).

    -y (1 - p)^g+ log p - (1 - y) m^g- log(1 - m), m = max(p - clip, 0): easy absent cells count
    little, very easy ones nothing. As in the authors' code no gradient flows through the focusing
    weights (1 - p)^g+ and m^g-; unlike there, a probability below 1e-8 keeps its gradient, and the
    sum is divided (``per``), so that the learning rate does not depend on the batch.

    Its outputs are far from probabilities: never use them with a threshold of .5 uncalibrated.

    Args:
        logits: Float (B, K).
        targets: Float (B, K) in [0, 1]; anything where ``known`` is False.
        known: Bool (B, K).
        gamma_negative: Focus g- >= 0 of the absent side.
        gamma_positive: Focus g+ >= 0 of the present side; the authors train COCO with 0.
        clip: Probability in [0, 1) below which an absent cell counts nothing.
        label_smoothing: s in [0, 1): targets become (1 - s) y + s / 2.
        per: ``"cell"``, ``"attribute"`` or ``"none"``, see the top of this module.

    Returns:
        A scalar >= 0, or (B, K) with ``per="none"``; exactly 0 without a known cell.

    Raises:
        UserError: Shapes or types do not fit, or an option is out of its range.

    Example:
        >>> logits, targets = torch.full((1, 1), -3.0), torch.zeros(1, 1)  # p = .047 < clip
        >>> masked_asymmetric(logits, targets, ~targets.bool()).item()
        0.0
    """
    logits, targets = _prepare(logits, targets, known, label_smoothing)
    _require(gamma_negative >= 0, "gamma_negative", gamma_negative, ">= 0")
    _require(gamma_positive >= 0, "gamma_positive", gamma_positive, ">= 0")
    _require(0 <= clip < 1, "clip", clip, "in [0, 1)")
    q = torch.sigmoid(-logits)  # 1 - p, also where p rounds to 1
    # log(1 - m); the logarithm of a sigmoid would be -inf for large logits without a clip.
    log_absent = (q + clip).clamp(max=1).log() if clip else functional.logsigmoid(-logits)
    with torch.no_grad():
        focus_present = q**gamma_positive
        focus_absent = (torch.sigmoid(logits) - clip).clamp(min=0) ** gamma_negative
    present = -focus_present * functional.logsigmoid(logits)
    absent = -focus_absent * log_absent
    return average(targets * present + (1 - targets) * absent, known, per)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "bce": masked_bce,
    "focal": masked_focal,
    "asymmetric": masked_asymmetric,
    "class_balanced": masked_class_balanced,
}


def _prepare(
    logits: Tensor, targets: Tensor, known: Tensor, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """Check the four; return logits and smoothed targets, at least float32, with holes filled."""
    shapes = [tuple(tensor.shape) for tensor in (logits, targets, known)]
    if logits.ndim != 2 or len(set(shapes)) > 1:
        got = "logits {}, targets {}, known {}".format(*shapes)
        raise UserError("shapes do not fit", got=got, expected="three times (B, K)")
    if known.dtype != torch.bool or not logits.is_floating_point():
        got = f"logits {logits.dtype}, known {known.dtype}"
        raise UserError("types do not fit", got=got, expected="logits float, known torch.bool")
    _require(0 <= label_smoothing < 1, "label_smoothing", label_smoothing, "in [0, 1)")
    dtype = torch.promote_types(logits.dtype, torch.float32)
    logits = torch.where(known, logits.to(dtype), 0.0)
    targets = torch.where(known, targets.to(dtype), 0.0)
    return logits, targets * (1 - label_smoothing) + label_smoothing / 2


def _weights(pos_weight: Tensor | float | None, logits: Tensor, known: Tensor) -> Tensor:
    """Return the weight of the present side of every cell (B, K), 1 in a hole."""
    if pos_weight is None:
        return torch.ones_like(logits)
    pos_weight = torch.as_tensor(pos_weight, dtype=logits.dtype, device=logits.device)
    fits = pos_weight.ndim == 0 or pos_weight.shape == logits.shape[1:]
    _require(fits, "pos_weight", tuple(pos_weight.shape), f"() or {tuple(logits.shape[1:])}")
    # n-/n+ of an attribute that is all holes is 0/0: it must not reach the gradient either.
    return torch.where(known, pos_weight, 1.0)


def _focal_sides(logits: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """Return the focal loss of every cell, were it present and were it absent."""
    _require(gamma >= 0, "gamma", gamma, ">= 0")
    log_p, log_q = functional.logsigmoid(logits), functional.logsigmoid(-logits)
    # exp(g log q), not (1 - p)^g: the power has no finite gradient at 0 for g < 1.
    return -(gamma * log_q).exp() * log_p, -(gamma * log_p).exp() * log_q


def _require(holds: bool, option: str, got: object, expected: str) -> None:
    if not holds:
        raise UserError(f"wrong {option}", got=str(got), expected=expected)
