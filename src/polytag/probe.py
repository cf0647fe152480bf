"""The probe: logistic regression of all attributes on frozen features, holes masked.

The objective for attribute k, on features x standardised over the training rows:

    mean over its known cells of log(1 + exp(-s z)), z = w_k . x + b_k, s = +-1
    + l2 / 2 |w_k|^2

summed over attributes, so that attributes with more holes are regularised no differently, and the
intercept is free. It is convex and, given l2, falls into one problem an attribute; they are solved
together because one pass over the features serves them all. Views of a picture (the mirrored one)
are rows that share its weight.

The l2 that a fold is judged with is chosen without that fold: for outer fold k, by the log loss on
every other fold j of a model that saw neither. One model serves both (j, k) and (k, j).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import scipy.linalg
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from polytag.config import HeadConfig, ProbeConfig
from polytag.graph import write_model
from polytag.heads import Linear
from polytag.history import History
from polytag.lbfgs import minimise_columns
from polytag.method import Prepared, Trained
from polytag.model import Classifier
from polytag.modelfile import LinearHead
from polytag.pipeline import default_threads
from polytag.progress import progress
from polytag.splits import stratified_folds

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Losses = list[tuple[Doubles, NDArray[np.int64]]]  # of a path's steps: sums and cells (K,)

_STRONGEST = (
    "The strongest penalty predicted held-out pictures best: on the whole, looking at the "
    "pictures did not help, and this model answers hardly more than the base rates."
)
# A path of weakening penalties ends where the held-out loss stands this much above its best: the
# loss is convex along the path for all that was ever seen, and the weakest penalties cost most.
_GIVE_UP = 1.02
_PRECONDITIONED = 256  # directions of the features that the solver is told the curvature of


@dataclass(frozen=True)
class ProbeFit:
    """What fitting a probe leaves.

    Attributes:
        head: Refitted on all rows.
        logits: float32 (N, K), out of fold: each row by a model that never saw it.
        l2: The penalty of ``head``, chosen on all rows.
        l2_of_fold: The penalty of each fold's model, chosen without that fold.
        losses: The refit's masked loss, iteration by iteration from the start at 0, where only
            the base rates are known: the mean over attributes of the mean over known cells,
            without the penalty.
    """

    head: LinearHead
    logits: Floats
    l2: float
    l2_of_fold: tuple[float, ...]
    losses: tuple[float, ...]


def fit_probe(
    features: Floats,
    values: Floats,
    folds: NDArray[np.int64],
    config: ProbeConfig,
    advance: Callable[[int], None] = lambda fits: None,
) -> ProbeFit:
    """Fit the probe, judge it out of fold, refit it on all rows.

    Args:
        features: float32 (N, V, D): V views of N pictures; the first one is the plain picture.
        values: float32 (N, K) in {0, 1, NaN}; NaN: not known. Every attribute has both classes.
        folds: int (N,) from 0; at least 3 folds.
        config: Penalty and solver.
        advance: Called with the number of fits just done; ``fits(folds)`` in all.

    Returns:
        The refitted head and the out-of-fold logits of the plain pictures.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> x = rng.normal(size=(300, 1, 5)).astype(np.float32)
        >>> y = (x[:, 0, :1] > 0).astype(np.float32)
        >>> fit = fit_probe(x, y, np.arange(300) % 5, ProbeConfig())
        >>> bool(np.mean((fit.logits > 0) == y) > 0.9)
        True
    """
    solver = _Solver(features, values, config)
    grid = tuple(sorted(config.l2_grid, reverse=True)) if config.l2 == "auto" else (config.l2,)
    count = int(folds.max()) + 1
    pairs = list(combinations(range(count), 2)) if len(grid) > 1 else []
    masks = [folds == fold for fold in range(count)]
    logits = np.empty_like(values)

    # One thread a fit, and one for the arithmetic inside it: that uses all processors, does not
    # stall when others want them too, and makes the result independent of their number.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(default_threads()) as pool:

        def judge_pair(pair: tuple[int, int]) -> list[Floats]:
            return _held_out_path(solver, grid, [masks[fold] for fold in pair])

        inner: list[list[Losses]] = [[] for _ in masks]
        for (j, k), path in zip(pairs, pool.map(judge_pair, pairs), strict=True):
            inner[k].append(_path_losses(path, values, masks[j]))
            inner[j].append(_path_losses(path, values, masks[k]))
            advance(1)
        chosen = [_best_step(parts) if pairs else 0 for parts in inner]

        def judge_fold(k: int) -> list[Floats]:
            return _held_out_path(solver, grid, [masks[k]], at_least=chosen[k])

        outer: list[Losses] = []
        for rows, step, path in zip(masks, chosen, pool.map(judge_fold, range(count)), strict=True):
            outer.append(_path_losses(path, values, rows))
            logits[rows] = path[step][rows]
            advance(1)

        best = _best_step(outer)
        losses: list[float] = []
        everything = np.ones(len(values), dtype=bool)
        weight, bias = next(solver.path(grid[best : best + 1], everything, losses))
        advance(1)
    return ProbeFit(
        head=LinearHead(weight, bias),
        logits=logits,
        l2=grid[best],
        l2_of_fold=tuple(grid[step] for step in chosen),
        losses=tuple(losses),
    )


def train(given: Prepared) -> Trained:
    """Fit a logistic regression on features: out of fold for the numbers, on all rows to keep."""
    config, folds_wanted = given.recipe.probe, given.recipe.split.folds
    if given.features is None or given.extractor is None:
        raise TypeError("a probe needs features")
    # Classes and holes of every attribute are spread evenly over the folds.
    folds = stratified_folds(
        given.rows.table.values, given.groups, folds=folds_wanted, seed=given.recipe.seed
    )
    with progress("probe", fits(config, folds_wanted), "fits") as advance:
        probe = fit_probe(given.features, given.values, folds, config, advance)
    names = [given.rows.table.attributes[k] for k in given.learnt]
    width = given.backbone.width
    head = Linear(HeadConfig(), width, len(names))
    head.set_probe(probe.head.weight, probe.head.bias, *moments(np.zeros((1, width), np.float32)))
    graph = given.extractor.graph
    history = History(tuple(names), list(probe.losses))
    history.rates = [np.nan] * len(probe.losses)
    history.stages = ["probe"] * len(probe.losses)
    strongest = config.l2 == "auto" and len(config.l2_grid) > 1 and probe.l2 == max(config.l2_grid)
    return Trained(
        logits=probe.logits,
        judged=np.ones(len(folds), dtype=bool),
        folds=folds,
        history=history,
        model=Classifier(given.backbone.cpu(), head),
        write=lambda info, path: write_model(graph, probe.head, info, path),
        facts={
            "folds": folds_wanted,
            "l2": probe.l2,
            "l2_of_fold": list(probe.l2_of_fold),
            "deployed": "refitted on all rows",
        },
        judged_on=f"pictures that the judging models had not seen ({folds_wanted} folds; "
        "identical pictures stay on one side)",
        note=_STRONGEST if strongest else "",
    )


def fits(config: ProbeConfig, folds: int) -> int:
    """Return how many paths ``fit_probe`` solves, for a progress bar."""
    pairs = folds * (folds - 1) // 2 if config.l2 == "auto" and len(config.l2_grid) > 1 else 0
    return pairs + folds + 1


def _held_out_path(
    solver: _Solver, grid: tuple[float, ...], parts: list[NDArray[np.bool_]], at_least: int = 0
) -> list[Floats]:
    """Return logits (N, K) of held-out parts along the path, until each part has only got worse.

    Args:
        solver: Knows features and values.
        grid: Penalties, strongest first.
        parts: Masks of rows (N,); none of them is trained on.
        at_least: The step that must be reached.
    """
    held_out = np.any(parts, axis=0)
    path: list[Floats] = []
    for step, (weight, bias) in enumerate(solver.path(grid, ~held_out)):
        logits = np.full_like(solver.values, np.nan)
        logits[held_out] = solver.features[held_out, 0] @ weight + bias
        path.append(logits)
        counted = [len(_path_losses(path, solver.values, rows)) for rows in parts]
        if step >= at_least and max(counted) < len(path):
            break
    return path


def _path_losses(path: list[Floats], values: Floats, rows: NDArray[np.bool_]) -> Losses:
    """Return a held-out part's summed losses and known cells (K,) along a path of logits (N, K).

    The part's own cells decide how far: up to the step before it has clearly got worse. So no row
    has a say in a choice that it is to judge, though two parts share a path.
    """
    truth = values[rows]
    known = ~np.isnan(truth)
    target, cells = np.where(known, truth, 0), known.sum(axis=0)
    found: Losses = []
    best = np.inf
    for logits in path:
        z = np.where(known, logits[rows].astype(np.float64), 0)
        sums = np.where(known, np.logaddexp(0, z) - target * z, 0).sum(axis=0)
        mean = _mean(sums, cells)
        if mean > _GIVE_UP * best:
            break
        best = min(best, mean)
        found.append((sums, cells))
    return found


def _best_step(parts: list[Losses]) -> int:
    """Return the step of least loss, counted over several parts, among those all of them reach."""

    def loss(step: int) -> float:
        sums, cells = zip(*(part[step] for part in parts), strict=True)
        return _mean(np.sum(sums, axis=0), np.sum(cells, axis=0))

    return min(range(min(map(len, parts))), key=loss)


def _mean(sums: Doubles, cells: NDArray[np.int64]) -> float:
    """Return the mean over attributes, those with a cell, of their mean loss."""
    return float(np.mean(sums[cells > 0] / cells[cells > 0])) if cells.any() else 0.0


class _Solver:
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
