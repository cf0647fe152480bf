"""Calibration: what a network calls a logit becomes the logit of a probability.

For each attribute the calibrated logit is

    c + b softplus(z) - a softplus(-z),    softplus(z) = log(1 + exp(z)),    a, b > 0.

Where a = b that is a z + c: temperature scaling and Platt scaling. Where they differ it is beta
calibration (Kull, Silva Filho and Flach, "Beta calibration", AISTATS 2017, section 3.2: its log p
is -softplus(-z), its -log(1 - p) is softplus(z)), which also undoes losses that treat the two
classes differently. All of them increase strictly with z, so no ranking within an attribute moves,
and with it no average precision and no AUC.

The kind goes by size (``kind="auto"``). An attribute with fewer than 30 known cells of either class
gets an offset of its own and a temperature that all such attributes share. The others get slope and
offset of their own, and beta calibration where the likelihood clearly speaks for it. An attribute
without a known cell stays as it is.

The targets are not 1 and 0 but (n+ + 1) / (n+ + 2) and 1 / (n- + 2), n+ and n- the known cells of
the attribute (Platt, "Probabilistic outputs for support vector machines", 1999, section 2.2): what
a finite sample says of a class is never certain. So every fit is finite, down to a single cell.

The choices below were made on drawn data, before any real set was run; benchmarks/calibration.py
measures them:

- The shared temperature is fitted on the cells of the attributes that share it, each cell alike.
  With those of all attributes it is steadier where all slopes are equal (excess log loss .0003, not
  .0006, at 13 of 348 cells) but wrong where slopes go with size, as a strongly asymmetric loss
  makes them (.0039, not .0013).
- Beta calibration is chosen by what it gains, not by the straight line's slope: with that same loss
  the slope is 1.6 and the line costs .018, the bent one .002 (620 of 1744 cells).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from polytag.errors import UserError, did_you_mean

Doubles = NDArray[np.float64]
Bools = NDArray[np.bool_]
Kind = Literal["auto", "none", "temperature", "platt", "beta"]

KINDS = ("auto", "none", "temperature", "platt", "beta")

_FEW = 30  # known cells of the rarer class from which on an attribute has a slope of its own
# What the losses do to logits asks for slopes of .4 to 3.5 (benchmarks/calibration.py). A slope
# outside these bounds says that the logits hold no information or hardly vary. Below, neighbouring
# float32 logits would run together; above, probabilities would round to 0 and 1: ties, and ties
# move rankings.
_SLOPES = (0.05, 20.0)
# Nats of log likelihood that the second slope must gain. On drawn data 2 bent one straight line in
# 15 (1, Akaike's, cost more there) and found the bends that cost more than noise (3 missed some).
_BETA_GAIN = 2.0
_PULL = 0.01  # nats a square unit that pull a slope towards 1: decides only where logits are equal
_STEPS = 100  # bound on Newton steps; 5 to 10 are usual
_DONE = 1e-14  # nats that a steepest descent could still gain
_WORDS = {
    "none": "as the network gives it",
    "offset": "one class only",
    "temperature": "shared temperature",
    "platt": "Platt scaling",
    "beta": "beta calibration",
}


@dataclass(frozen=True, eq=False)
class Calibration:
    """One strictly increasing function of the logit for each of K attributes.

    Attributes:
        kinds: What each attribute got: ``"none"``, ``"offset"``, ``"temperature"``, ``"platt"`` or
            ``"beta"``.
        a: float64 (K,), slope where the logit is far below 0.
        b: float64 (K,), slope where the logit is far above 0.
        c: float64 (K,), offset.

    Example:
        >>> twice = Calibration(("platt",), np.array([2.0]), np.array([2.0]), np.array([1.0]))
        >>> twice.logits([[0.5], [-0.5]]).tolist()
        [[2.0], [0.0]]
    """

    kinds: tuple[str, ...]
    a: Doubles
    b: Doubles
    c: Doubles

    def logits(self, logits: ArrayLike) -> Doubles:
        """Return calibrated logits.

        Args:
            logits: Float (N, K), as the network gives them; NaN stays NaN.

        Returns:
            float64 (N, K).
        """
        z = np.asarray(logits, np.float64)
        # softplus(z) = max(z, 0) + t and softplus(-z) = max(-z, 0) + t: nothing cancels, and with
        # a = b = 1, c = 0 the logits stay as they are, bit for bit.
        t = np.log1p(np.exp(-np.abs(z)))
        straight = self.b * np.maximum(z, 0) + self.a * np.minimum(z, 0)
        return np.asarray(self.c + (straight + (self.b - self.a) * t))

    def probabilities(self, logits: ArrayLike) -> Doubles:
        """Return calibrated probabilities, float64 (N, K) in [0, 1]; see `logits`."""
        return _sigmoid(self.logits(logits))

    @classmethod
    def identity(cls, count: int) -> Calibration:
        """Return the calibration of ``count`` attributes that changes nothing."""
        return cls(("none",) * count, np.ones(count), np.ones(count), np.zeros(count))

    def words(self) -> tuple[str, ...]:
        """Say what was done to each attribute.

        Example:
            >>> Calibration.identity(1).words()
            ('as the network gives it',)
        """

        def say(kind: str, a: float, b: float, c: float) -> str:
            slope = f"slopes {a:.2f} and {b:.2f}" if kind == "beta" else f"slope {a:.2f}"
            return _WORDS[kind] + (f": {slope}, offset {c:+.2f}" if kind != "none" else "")

        return tuple(map(say, self.kinds, self.a, self.b, self.c))

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold; `from_dict` reads it."""
        numbers = {name: getattr(self, name).tolist() for name in "abc"}
        return {"kinds": list(self.kinds)} | numbers

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> Calibration:
        """Read what `to_dict` wrote, bit for bit.

        Raises:
            UserError: A part is missing or too much, or is no calibration.

        Example:
            >>> Calibration.from_dict(Calibration.identity(2).to_dict()).kinds
            ('none', 'none')
        """
        try:
            kinds = tuple(tree["kinds"])
            a, b, c = (np.array(tree[name], np.float64) for name in "abc")
            shapes = all(array.shape == (len(kinds),) for array in (a, b, c))
            if not (shapes and set(kinds) <= set(_WORDS) and len(tree) == 4):
                raise ValueError("other kinds or lengths")
            if not (np.isfinite([a, b, c]).all() and (a > 0).all() and (b > 0).all()):
                raise ValueError("a number out of range")
        except (KeyError, TypeError, ValueError) as error:
            expected = "kinds, a, b and c, one of each for every attribute; a and b above 0"
            raise UserError("no calibration", got=repr(error), expected=expected) from None
        return cls(kinds, a, b, c)


def fit_calibration(logits: ArrayLike, values: ArrayLike, *, kind: Kind = "auto") -> Calibration:
    """Fit the calibration of every attribute on its known cells.

    Args:
        logits: Float (N, K), best out of fold: on rows that the network was fitted to, it is too
            sure of itself, and this would not see it. Anything where ``values`` is NaN.
        values: (N, K) in {1, 0, NaN}; NaN: not known.
        kind: ``"auto"``: by size, see the top of this module. ``"none"``: nothing is changed.
            ``"temperature"``, ``"platt"``, ``"beta"``: this one for every attribute that has both
            classes.

    Returns:
        The calibration of K attributes. The same input gives the same bits.

    Raises:
        UserError: Shapes differ, a value is not 1, 0 or NaN, a known cell's logit is not finite, or
            there is no such kind.

    Example:
        >>> logits = np.linspace(-6, 6, 2000)[:, None]
        >>> truth = 1 / (1 + np.exp(-logits / 2))  # this network is too sure of itself
        >>> values = np.random.default_rng(0).random((2000, 1)) < truth
        >>> fit_calibration(logits, values).words()
        ('Platt scaling: slope 0.49, offset -0.08',)
    """
    if kind not in KINDS:
        raise UserError("no such calibration", got=repr(kind), fix=did_you_mean(kind, KINDS))
    z, values, known = _checked(logits, values)
    if kind == "none":
        return Calibration.identity(z.shape[1])
    found = [_Attribute.of(z[known[:, k], k], values[known[:, k], k]) for k in range(z.shape[1])]
    least = {"auto": _FEW, "temperature": np.inf}.get(kind, 1)
    few = [k for k, one in enumerate(found) if one.z.size and one.rarer < least]
    sharing = [found[k] for k in few if found[k].rarer]
    shared = _shared_slope(sharing) if sharing else 1.0

    kinds, abc = ["none"] * len(found), np.tile([[1.0], [1.0], [0.0]], len(found))
    for k, one in enumerate(found):
        if k in few:
            kinds[k] = "temperature" if sharing else "offset"
            abc[:, k] = shared, shared, _fit_offset(one, shared).offset
        elif one.z.size:
            line = _minimise(one, [one.z], [1.0])
            kinds[k], abc[:, k] = "platt", (*line.slopes, *line.slopes, line.offset)
            bent = _fit_beta(one, line.slopes[0]) if kind in ("auto", "beta") else line
            if kind == "beta" or line.loss - bent.loss > _BETA_GAIN:
                kinds[k], abc[:, k] = "beta", (*bent.slopes, bent.offset)
    return Calibration(tuple(kinds), *abc)


def cross_fitted(
    logits: ArrayLike, values: ArrayLike, folds: ArrayLike, *, kind: Kind = "auto"
) -> Doubles:
    """Calibrate every row by what was fitted on the rows of other folds.

    What is measured on these probabilities is not flattered by the calibration, as no row had a
    say in its own.

    Args:
        logits: Float (N, K), see `fit_calibration`.
        values: (N, K) in {1, 0, NaN}.
        folds: Int (N,) from 0, at least two different ones; -1: the row is not used for anything.
        kind: See `fit_calibration`.

    Returns:
        float64 (N, K), probabilities; NaN in rows of fold -1.

    Raises:
        UserError: As `fit_calibration`; or ``folds`` are not (N,), or there is only one.

    Example:
        >>> logits, values = [[1.0], [-1.0], [2.0], [5.0]], [[1], [0], [np.nan], [1]]
        >>> cross_fitted(logits, values, [0, 1, 1, -1], kind="none").round(2).tolist()
        [[0.73], [0.27], [0.88], [nan]]
    """
    z, values, folds = np.asarray(logits, np.float64), np.asarray(values), np.asarray(folds)
    numbers = np.unique(folds[folds >= 0])
    if folds.shape != values.shape[:1] or len(numbers) < 2:
        got = f"{len(numbers)} folds, shape {folds.shape}"
        expected = f"at least 2 different ones, shape {values.shape[:1]}"
        raise UserError("cannot cross-fit", got=got, expected=expected)
    probabilities = np.full(z.shape, np.nan)
    for fold in numbers:
        rows, others = folds == fold, (folds >= 0) & (folds != fold)
        fitted = fit_calibration(z[others], values[others], kind=kind)
        probabilities[rows] = fitted.probabilities(z[rows])
    return probabilities


@dataclass(frozen=True)
class _Attribute:
    """Known cells: their logits and smoothed targets (n,), and how many the rarer class has."""

    z: Doubles
    target: Doubles
    rarer: int

    @classmethod
    def of(cls, z: Doubles, values: Doubles) -> _Attribute:
        present = int(values.sum())
        absent = len(values) - present
        target = np.where(values == 1, (present + 1) / (present + 2), 1 / (absent + 2))
        return cls(z, target, min(present, absent))


@dataclass(frozen=True)
class _Fit:
    """What `_minimise` found: slopes (P,), the offset, and the summed loss in nats."""

    slopes: Doubles
    offset: float
    loss: float


def _fit_offset(one: _Attribute, slope: float, start: float | None = None) -> _Fit:
    return _minimise(one, [], [], base=slope * one.z, start=start)


def _fit_beta(one: _Attribute, slope: float) -> _Fit:
    """Fit slopes a, b and offset, from the straight line's slope."""
    return _minimise(one, [-np.logaddexp(0, -one.z), np.logaddexp(0, one.z)], [slope, slope])


def _shared_slope(attributes: Sequence[_Attribute]) -> float:
    """Return the slope of least loss over all cells, each attribute with its best offset for it.

    Newton's method on the loss as a function of the slope alone, which is convex; where a step
    leaves the interval that the signs of the derivative allow, that is halved instead.
    """
    low, high = _SLOPES
    slope = 1.0
    offsets: list[float | None] = [None] * len(attributes)
    for _ in range(_STEPS):
        first, second = _PULL * (slope - 1), _PULL
        for k, one in enumerate(attributes):
            offset = offsets[k] = _fit_offset(one, slope, offsets[k]).offset
            p = _sigmoid(slope * one.z + offset)
            weight = p * (1 - p)
            # The offset follows the slope: only the spread around the weighted mean is curvature.
            spread = one.z - np.sum(weight * one.z) / max(np.sum(weight), 1e-300)
            first += np.sum((p - one.target) * one.z)
            second += np.sum(weight * spread**2)
        low, high = (low, slope) if first > 0 else (slope, high)
        following = slope - first / second
        if not low <= following <= high:
            following = (low * high) ** 0.5
        if abs(following - slope) < 1e-9:
            break
        slope = following
    return slope


def _minimise(
    one: _Attribute,
    features: Sequence[Doubles],
    slopes: Sequence[float],
    *,
    base: Doubles | None = None,
    start: float | None = None,
) -> _Fit:
    """Minimise an attribute's log loss over P slopes within their bounds and the offset.

    Projected Newton steps (Bertsekas, "Projected Newton methods", 1982, equation 32) with the
    damping of Levenberg and Marquardt: where a step does not lower the loss, the next one is
    shorter. The problem is convex.

    Args:
        one: The attribute, with at least one known cell.
        features: P arrays (n,) that the slopes multiply.
        slopes: P numbers to start from.
        base: float64 (n,), a part of the calibrated logit that stays as it is; 0 if None.
        start: The offset to start from; the base rate's if None.
    """
    fixed = np.zeros_like(one.z) if base is None else base
    means = np.array([feature.mean() for feature in features])
    design = np.stack([*(x - mean for x, mean in zip(features, means, strict=True)), one.z * 0 + 1])
    if start is None:
        share = one.target.mean()
        start = float(np.log(share / (1 - share)) - fixed.mean())
    point = np.array([*slopes, start])
    low, high = np.array([_SLOPES] * len(features) + [(-np.inf, np.inf)]).T
    pull = np.array([_PULL] * len(features) + [0.0])

    def at(point: Doubles) -> tuple[float, Doubles, Doubles]:
        """Return loss, gradient (P + 1,) and the cells' curvatures (n,)."""
        z = fixed + np.einsum("i,in->n", point, design)
        p = _sigmoid(z)
        cells = np.logaddexp(0, z) - one.target * z
        loss = float(cells.sum() + np.sum(pull / 2 * (point - 1) ** 2))
        gradient = np.einsum("in,n->i", design, p - one.target) + pull * (point - 1)
        return loss, gradient, p * (1 - p)

    def curvature(weight: Doubles) -> Doubles:
        return np.asarray(np.einsum("in,jn->ij", design * weight, design) + np.diag(pull))

    most = curvature(np.full_like(fixed, 0.25))  # p (1 - p) is never above 1/4
    loss, gradient, weight = at(point)
    damping = 1e-6
    for _ in range(_STEPS):
        stuck = ((point <= low) & (gradient > 0)) | ((point >= high) & (gradient < 0))
        free = np.where(stuck, 0, gradient)
        if np.sum(free**2 / np.diag(most)) <= _DONE:
            break
        matrix = curvature(weight) + damping * most
        matrix = np.where(stuck | stuck[:, None], np.eye(len(point)), matrix)
        step = np.linalg.lstsq(matrix, free)[0]  # logits beyond all reason make it singular
        trial = np.clip(point - step, low, high)
        new_loss, new_gradient, new_weight = at(trial)
        if new_loss <= loss + 1e-13 * loss:  # but for rounding
            point, loss, gradient, weight = trial, new_loss, new_gradient, new_weight
            damping = max(damping / 10, 1e-9)
        else:
            damping = max(damping * 10, 1e-3)
    return _Fit(point[:-1], float(point[-1] - point[:-1] @ means), loss)


def _sigmoid(z: Doubles) -> Doubles:
    small = np.exp(-np.abs(z))
    return np.asarray(np.where(z < 0, small, 1) / (1 + small))


def _checked(logits: ArrayLike, values: ArrayLike) -> tuple[Doubles, Doubles, Bools]:
    """Return logits as float64 with holes filled with 0, values as float64, and what is known."""
    z, values = np.asarray(logits, np.float64), np.asarray(values, np.float64)
    if values.ndim != 2 or values.shape != z.shape:
        got = f"{z.shape} and {values.shape}"
        raise UserError("logits and values do not match", got=got, expected="twice (N, K)")
    known = ~np.isnan(values)
    for cells, good, expected in (
        (values, (values == 0) | (values == 1), "1, 0 or NaN (not known)"),
        (z, np.isfinite(z), "a finite logit"),
    ):
        wrong = np.argwhere(known & ~good)
        if len(wrong):
            row, k = wrong[0]
            got, where = f"{cells[row, k]:g}", f"row {row}, column {k}"
            raise UserError("wrong cell", where=where, got=got, expected=expected)
    return np.where(known, z, 0), values, known
