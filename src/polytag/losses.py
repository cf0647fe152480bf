"""Masked losses: what is not known does not exist.

Every loss is ``loss(logits, targets, known, ...) -> scalar`` with

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
same for each of them.

Only the minimum of `masked_bce` without ``pos_weight`` and ``label_smoothing`` is the probability
of "present". What the others give has to be calibrated before it is called one: on an attribute
present in 4 % of the cells, a model that sees nothing outputs .23 with `masked_focal` and .46 with
`masked_asymmetric` (.51 with ``gamma_positive=0``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from polytag.errors import UserError

Per = Literal["cell", "attribute"]


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
        per: ``"cell"`` or ``"attribute"``, see the top of this module.

    Returns:
        A scalar, >= 0, in nats; exactly 0 without a known cell.

    Raises:
        UserError: Shapes or types do not fit, or an option is out of its range.

    Example:
        >>> logits, known = torch.zeros(1, 2), torch.tensor([[True, False]])
        >>> round(masked_bce(logits, torch.tensor([[1.0, float("nan")]]), known).item(), 4)
        0.6931
    """
    logits, targets = _fill(logits, targets, known)
    _require(0 <= label_smoothing < 1, "label_smoothing", label_smoothing, "in [0, 1)")
    targets = targets * (1 - label_smoothing) + label_smoothing / 2
    if pos_weight is not None:
        pos_weight = torch.as_tensor(pos_weight, dtype=logits.dtype, device=logits.device)
        fits = pos_weight.ndim == 0 or pos_weight.shape == logits.shape[1:]
        _require(fits, "pos_weight", tuple(pos_weight.shape), f"() or {tuple(logits.shape[1:])}")
        # n-/n+ of an attribute that is all holes is 0/0: it must not reach the gradient either.
        pos_weight = torch.where(known, pos_weight, 1.0)
    cells = functional.binary_cross_entropy_with_logits(
        logits, targets, pos_weight=pos_weight, reduction="none"
    )
    return _average(cells, known, per)


def masked_focal(
    logits: Tensor,
    targets: Tensor,
    known: Tensor,
    *,
    gamma: float = 2.0,
    alpha: float | None = None,
    per: Per = "cell",
) -> Tensor:
    """Focal loss of the known cells (Lin et al. 2017, arXiv 1708.02002, equations 4 and 5).

    -a y (1 - p)^g log p - (1 - a) (1 - y) p^g log(1 - p): cells that are already right count
    little. Its outputs are drawn towards 1/2; calibrate before calling them probabilities.

    Args:
        logits: Float (B, K).
        targets: Float (B, K) in [0, 1]; anything where ``known`` is False.
        known: Bool (B, K).
        gamma: Focus g >= 0; 0 gives binary cross-entropy. The paper's value is 2.
        alpha: Weight a in [0, 1] of the present side, 1 - a of the absent side; both 1 if None. The
            paper's value with gamma 2 is .25.
        per: ``"cell"`` or ``"attribute"``, see the top of this module.

    Returns:
        A scalar >= 0; exactly 0 without a known cell.

    Raises:
        UserError: Shapes or types do not fit, or an option is out of its range.

    Example:
        >>> logits, targets = torch.zeros(1, 1), torch.ones(1, 1)
        >>> round(masked_focal(logits, targets, targets.bool()).item(), 4)  # log(2) / 4
        0.1733
    """
    logits, targets = _fill(logits, targets, known)
    _require(gamma >= 0, "gamma", gamma, ">= 0")
    _require(alpha is None or 0 <= alpha <= 1, "alpha", alpha, "in [0, 1] or None")
    log_p, log_q = functional.logsigmoid(logits), functional.logsigmoid(-logits)
    # exp(g log q), not (1 - p)^g: the power has no finite gradient at 0 for g < 1.
    present = -(gamma * log_q).exp() * log_p
    absent = -(gamma * log_p).exp() * log_q
    weights = (1.0, 1.0) if alpha is None else (alpha, 1 - alpha)
    cells = weights[0] * targets * present + weights[1] * (1 - targets) * absent
    return _average(cells, known, per)


def masked_asymmetric(
    logits: Tensor,
    targets: Tensor,
    known: Tensor,
    *,
    gamma_negative: float = 4.0,
    gamma_positive: float = 1.0,
    clip: float = 0.05,
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
        per: ``"cell"`` or ``"attribute"``, see the top of this module.

    Returns:
        A scalar >= 0; exactly 0 without a known cell.

    Raises:
        UserError: Shapes or types do not fit, or an option is out of its range.

    Example:
        >>> logits, targets = torch.full((1, 1), -3.0), torch.zeros(1, 1)  # p = .047 < clip
        >>> masked_asymmetric(logits, targets, ~targets.bool()).item()
        0.0
    """
    logits, targets = _fill(logits, targets, known)
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
    return _average(targets * present + (1 - targets) * absent, known, per)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "bce": masked_bce,
    "focal": masked_focal,
    "asymmetric": masked_asymmetric,
}


def _fill(logits: Tensor, targets: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Check the three and return the first two, at least float32, with 0 in every hole."""
    shapes = [tuple(tensor.shape) for tensor in (logits, targets, known)]
    if logits.ndim != 2 or len(set(shapes)) > 1:
        got = "logits {}, targets {}, known {}".format(*shapes)
        raise UserError("shapes do not fit", got=got, expected="three times (B, K)")
    if known.dtype != torch.bool or not logits.is_floating_point():
        got = f"logits {logits.dtype}, known {known.dtype}"
        raise UserError("types do not fit", got=got, expected="logits float, known torch.bool")
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return (
        torch.where(known, logits.to(dtype), 0.0),
        torch.where(known, targets.to(dtype), 0.0),
    )


def _average(cells: Tensor, known: Tensor, per: str) -> Tensor:
    """Reduce the losses of all cells (B, K) to one number over the known ones."""
    cells = torch.where(known, cells, 0.0)
    if per == "cell":
        return cells.sum() / known.sum().clamp(min=1)
    if per == "attribute":
        counts = known.sum(dim=0)
        means = cells.sum(dim=0) / counts.clamp(min=1)
        return means.sum() / (counts > 0).sum().clamp(min=1)
    raise UserError("wrong per", got=repr(per), expected="'cell' or 'attribute'")


def _require(holds: bool, option: str, got: object, expected: str) -> None:
    if not holds:
        raise UserError(f"wrong {option}", got=str(got), expected=expected)
