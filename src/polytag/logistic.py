"""Logistic regression of all attributes along a path of L2 penalties, holes masked.

The objective for attribute k, on features x standardised over the training rows:

    mean over its known cells of log(1 + exp(-s z)), z = w_k . x + b_k, s = +-1
    + l2 / 2 |w_k|^2

summed over attributes, so that attributes with more holes are regularised no differently, and the
intercept is free. It is convex and, given l2, falls into one problem an attribute; they are solved
together because one pass over the features serves them all. Views of a picture (the mirrored one)
are rows that share its weight.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from polytag.config import ProbeConfig
from polytag.lbfgs import minimise_columns

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

_PRECONDITIONED = 256  # directions of the features that the solver is told the curvature of


class PathSolver:
    """Solves the probe's objective on any training part of one table."""

    def __init__(self, features: Floats, values: Floats, config: ProbeConfig) -> None:
        self.features, self.values, self.config = features, values, config
        flat = features.reshape(-1, features.shape[2])
        mean, scale = moments(flat)
        # Directions and curvatures of all rows' features serve every training part as a change of
        # coordinates in which the solver needs few steps. It moves no optimum: no labels, and
        # nothing of what is minimised, come in here.
        self.curvature, self.directions = _principal((flat - mean) / scale, _PRECONDITIONED)
        width = flat.shape[1]
        rest = width - float(self.curvature.sum())
        self.rest_curvature = max(rest, 0.0) / max(width - len(self.curvature), 1)

    def path(
        self, grid: tuple[float, ...], rows: NDArray[np.bool_], losses: list[float] | None = None
    ) -> Iterator[tuple[Floats, Floats]]:
        """Yield weight (D, K) and bias (K,) on raw features for one penalty after the other.

        Each solution starts from the one before. ``losses`` collects the masked loss at the
        start and after every iteration.
        """
        x = self.features[rows].reshape(-1, self.features.shape[2])
        mean, scale = moments(x)
        x = (x - mean) / scale
        problem = _Problem(x, np.repeat(self.values[rows], self.features.shape[1], axis=0))
        weight = np.zeros((x.shape[1], self.values.shape[1]), dtype=np.float32)
        bias = problem.base_logits
        for l2 in grid:
            weight, bias = self._solve(problem, l2, weight, bias, losses)
            raw = weight / scale[:, None]
            shift = mean.astype(np.float64) @ raw  # a small difference of large numbers
            yield raw, (bias - shift).astype(np.float32)

    def _solve(
        self,
        problem: _Problem,
        l2: float,
        weight: Floats,
        bias: Floats,
        losses: list[float] | None,
    ) -> tuple[Floats, Floats]:
        """Minimise over u, where weight = P u and P P ~ the inverse of the curvature."""
        variance = problem.variance
        along = 1 / np.sqrt(variance * self.curvature[:, None] + l2)
        rest = 1 / np.sqrt(variance * self.rest_curvature + l2)
        free = (1 / np.sqrt(variance)).astype(np.float32)

        def scaled(w: Floats, along: Doubles, rest: Doubles) -> Floats:
            inside = (along - rest).astype(np.float32) * (self.directions.T @ w)
            moved: Floats = w * rest.astype(np.float32) + self.directions @ inside
            return moved

        def objective(u: Floats) -> tuple[Doubles, Floats]:
            w = scaled(u[:-1], along, rest)
            loss, to_weight, to_bias = problem.loss(w, u[-1] * free)
            gradient = np.empty_like(u)
            gradient[:-1] = scaled(to_weight + np.float32(l2) * w, along, rest)
            gradient[-1] = to_bias * free
            return loss + l2 / 2 * np.einsum("dk,dk->k", w, w).astype(np.float64), gradient

        def note(u: Floats) -> None:
            if losses is not None:
                loss, _, _ = problem.loss(scaled(u[:-1], along, rest), u[-1] * free)
                losses.append(float(loss.mean()))

        u = minimise_columns(
            objective,
            np.concatenate([scaled(weight, 1 / along, 1 / rest), (bias / free)[None]]),
            tolerance=self.config.tolerance,
            max_iterations=self.config.max_iterations,
            note=note,
        )
        return scaled(u[:-1], along, rest), u[-1] * free


class _Problem:
    """The masked loss of one training part and its gradient."""

    def __init__(self, x: Floats, values: Floats) -> None:
        known = ~np.isnan(values)
        self.x = x
        self.target = np.where(known, values, 0).astype(np.float32)
        self.share = (known / np.maximum(known.sum(axis=0), 1)).astype(np.float32)
        # An attribute can lose its last present or absent cell to the held-out fold: half a cell
        # of each keeps its base rate off 0 and 1, from where no slope leads back.
        cells = known.sum(axis=0)
        rate = ((self.target * known).sum(axis=0, dtype=np.float64) + 0.5) / (cells + 1)
        self.base_logits = np.log(rate / (1 - rate)).astype(np.float32)
        self.variance = rate * (1 - rate)
        self.constant = ~((known & (values == 1)).any(axis=0) & (known & (values == 0)).any(axis=0))

    def loss(self, weight: Floats, bias: Floats) -> tuple[Doubles, Floats, Floats]:
        """Return the loss of each attribute, and its gradients (D, K) and (K,)."""
        z = self.x @ weight + bias
        shrunk = np.exp(-np.abs(z))
        cells = self.share * (np.maximum(z, 0) + np.log1p(shrunk) - self.target * z)
        probability = np.where(z >= 0, 1, shrunk) / (1 + shrunk)
        residual = self.share * (probability - self.target)
        # With one class only there is nothing to learn: such an attribute stays at its base rate.
        residual[:, self.constant] = 0
        return cells.sum(axis=0, dtype=np.float64), self.x.T @ residual, residual.sum(axis=0)


def _principal(x: Floats, most: int) -> tuple[Floats, Floats]:
    """Return the largest eigenvalues (r,) of x'x / n and their vectors (D, r), r <= ``most``."""
    rows, width = x.shape
    # Few rows: the same from the smaller matrix of rows, as x'x and x x' share what is not zero.
    small = x @ x.T if rows < width else x.T @ x
    side = len(small)
    values, vectors = scipy.linalg.eigh(
        small / rows,
        subset_by_index=(max(side - most, 0), side - 1),
        overwrite_a=True,
        check_finite=False,
    )
    keep = values > 1e-4 * values[-1]
    values, vectors = values[keep], vectors[:, keep]
    if rows < width:
        vectors = x.T @ vectors / np.sqrt(values * rows)
    return values.astype(np.float32), np.ascontiguousarray(vectors, dtype=np.float32)


def moments(x: Floats) -> tuple[Floats, Floats]:
    """Return mean and scale (D,) of features (n, D); a feature that never varies gets scale 1."""
    mean = x.mean(axis=0, dtype=np.float64)
    scale = x.std(axis=0, dtype=np.float64)
    constant = scale <= 1e-6 * np.maximum(np.abs(mean), 1e-6)
    return mean.astype(np.float32), np.where(constant, 1, scale).astype(np.float32)
