"""L-BFGS for many convex problems at once, one a column.

The attributes of a probe are separate problems that share the expensive part, a pass over the
features. A general solver run on all of them together takes one step length for all and keeps its
history in one long vector; here each column has its own, and one evaluation serves them all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Objective = Callable[[Floats], tuple[Doubles, Floats]]

_MEMORY = 6  # pairs kept; more gains nothing once the problem is well preconditioned
_SUFFICIENT = 1e-4  # Armijo's constant, Nocedal and Wright (2006), equation 3.4
_HALVINGS = 20


def minimise_columns(
    objective: Objective,
    start: Floats,
    *,
    tolerance: float,
    max_iterations: int,
    note: Callable[[Floats], None] = lambda point: None,
) -> Floats:
    """Minimise K smooth convex functions of n variables each.

    Nocedal and Wright, "Numerical Optimization" (2006), algorithm 7.4, with backtracking; a pair
    of negative curvature is left out of its column's history.

    Args:
        objective: From a point float32 (n, K) to the K values float64 and the gradients (n, K).
            Each value depends on its own column only. It should be scaled so that its curvature
            is near 1: the first step is the plain gradient.
        start: float32 (n, K).
        tolerance: A column is done when its value falls by less than this share in an iteration.
        max_iterations: Bound on the iterations.
        note: Called with the start and with the point after every iteration.

    Returns:
        float32 (n, K): the point reached.

    Example:
        >>> aim = np.array([[1, 2], [3, 4]], np.float32)
        >>> def bowls(x):
        ...     return 1 + ((x - aim) ** 2).sum(axis=0, dtype=float) / 2, x - aim
        >>> minimise_columns(bowls, np.zeros((2, 2), np.float32), tolerance=1e-6,
        ...                  max_iterations=10)
        array([[1., 2.],
               [3., 4.]], dtype=float32)
    """
    point = start
    value, gradient = objective(point)
    note(point)
    history: deque[tuple[Floats, Floats, Doubles]] = deque(maxlen=_MEMORY)
    done = np.zeros(start.shape[1], dtype=bool)
    for _ in range(max_iterations):
        direction = _direction(gradient, history)
        slope = _dot(gradient, direction)
        step = np.where(done | (slope >= 0), 0.0, 1.0)
        for _ in range(_HALVINGS):
            trial = point + step.astype(np.float32) * direction
            new_value, new_gradient = objective(trial)
            # Float32 gradients know a value to about 1e-6: below that a step counts as good.
            enough = value + _SUFFICIENT * step * slope + 1e-6 * np.abs(value)
            good = new_value <= enough
            if good.all():
                break
            step = np.where(good, step, step / 2)
        moved, change = trial - point, new_gradient - gradient
        curvature = _dot(moved, change)
        usable = curvature > 1e-8 * _dot(moved, moved)
        history.append((moved, change, np.where(usable, 1 / np.where(usable, curvature, 1), 0)))
        done |= value - new_value <= tolerance * np.abs(new_value)
        point, value, gradient = trial, new_value, new_gradient
        note(point)
        if done.all():
            break
    return point


def _direction(gradient: Floats, history: deque[tuple[Floats, Floats, Doubles]]) -> Floats:
    """Return minus the inverse curvature times the gradient, column by column (two loops)."""
    direction = -gradient
    weights = []
    for moved, change, inverse in reversed(history):
        weight = (inverse * _dot(moved, direction)).astype(np.float32)
        weights.append(weight)
        direction -= weight * change
    if history:
        moved, change, inverse = history[-1]
        square = _dot(change, change)
        known = (inverse > 0) & (square > 0)
        scale = np.where(known, 1 / np.where(known, inverse * square, 1), 1)
        direction *= scale.astype(np.float32)
    for (moved, change, inverse), weight in zip(history, reversed(weights), strict=True):
        direction += (weight - (inverse * _dot(change, direction)).astype(np.float32)) * moved
    return direction


def _dot(a: Floats, b: Floats) -> Doubles:
    """Return the K inner products of columns."""
    products: Doubles = np.einsum("nk,nk->k", a, b).astype(np.float64)
    return products
