"""The probe: logistic regression of all attributes on frozen features, judged out of fold.

The l2 that a fold is judged with is chosen without that fold: for outer fold k, by the log loss on
every other fold j of a model that saw neither. One model serves both (j, k) and (k, j).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from polytag.config import ProbeConfig
from polytag.frozen import save_with_head
from polytag.graph import write_model
from polytag.history import History
from polytag.logistic import PathSolver
from polytag.method import Choosing, Prepared, Trained
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


@dataclass(frozen=True)
class ProbeFit:
    """What fitting a probe leaves.

    Attributes:
        head: Refitted on all rows.
        logits: float32 (N, K), out of fold: each row by a model that never saw it.
        inner: For each fold, float32 (N, K): the rows of the other folds, each by a model that
            saw neither its own fold nor this one; NaN in this one's rows. What is chosen by them
            for this fold's model owes nothing to the rows that it is judged on.
        l2: The penalty of ``head``, chosen on all rows.
        l2_of_fold: The penalty of each fold's model, chosen without that fold.
        losses: The refit's masked loss, iteration by iteration from the start at 0, where only
            the base rates are known: the mean over attributes of the mean over known cells,
            without the penalty.
    """

    head: LinearHead
    logits: Floats
    inner: tuple[Floats, ...]
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
    solver = PathSolver(features, values, config)
    grid = tuple(sorted(config.l2_grid, reverse=True)) if config.l2 == "auto" else (config.l2,)
    count = int(folds.max()) + 1
    pairs = list(combinations(range(count), 2))
    masks = [folds == fold for fold in range(count)]
    logits = np.empty_like(values)
    inner = tuple(np.full_like(values, np.nan) for _ in masks)

    # One thread a fit, and one for the arithmetic inside it: that uses all processors, does not
    # stall when others want them too, and makes the result independent of their number.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(default_threads()) as pool:

        def judge_pair(pair: tuple[int, int]) -> list[Floats]:
            return _held_out_path(solver, grid, [masks[fold] for fold in pair])

        judged: list[list[Losses]] = [[] for _ in masks]
        paths: dict[tuple[int, int], list[Floats]] = {}  # fold judged, fold left out: its path
        for (j, k), path in zip(pairs, pool.map(judge_pair, pairs), strict=True):
            for one, other in ((j, k), (k, j)):
                judged[other].append(_path_losses(path, values, masks[one]))
                paths[one, other] = [step[masks[one]] for step in path]
            advance(1)
        chosen = [_best_step(parts) for parts in judged]
        for (j, k), kept in paths.items():
            inner[k][masks[j]] = kept[chosen[k]]

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
        inner=inner,
        l2=grid[best],
        l2_of_fold=tuple(grid[step] for step in chosen),
        losses=tuple(losses),
    )


def train(given: Prepared) -> Trained:
    """Fit a logistic regression on features: out of fold for the numbers, on all rows to keep.

    With a split of the user's own that names a test part, the probe is fitted to the other rows
    and judged on that part.
    """
    recipe, values = given.recipe, given.values
    parts = given.given.parts if given.given else None
    if parts is not None and not (parts == "holdout").any():
        parts = np.where(parts == "choose", "holdout", parts)  # nothing else judges, then
    used = np.ones(len(values), dtype=bool) if parts is None else parts != "holdout"
    inner_folds = _folds(given, used)
    count = int(inner_folds.max()) + 1
    with progress("probe", fits(count), "fits") as advance:
        probe = fit_probe(given.features[used], values[used], inner_folds, recipe.probe, advance)
    folds = np.full(len(values), -1)
    folds[used] = inner_folds
    deployed = Choosing(_spread(probe.logits, used), folds, np.zeros(len(values), dtype=bool))
    logits, choosing, judged = deployed.logits, [], used
    if parts is not None:
        judged = ~used
        logits = given.features[:, 0] @ probe.head.weight + probe.head.bias
        choosing = [Choosing(deployed.logits, folds, judged)]
    for fold, inner in enumerate(probe.inner if parts is None else ()):
        others = np.where(folds == fold, -1, folds)
        choosing.append(Choosing(inner, others, folds == fold))
    history = History(given.names, list(probe.losses))
    history.rates = [np.nan] * len(probe.losses)
    history.stages = ["probe"] * len(probe.losses)
    grid = recipe.probe.l2_grid
    strongest = recipe.probe.l2 == "auto" and len(grid) > 1 and probe.l2 == max(grid)
    unseen = f"pictures that the judging models had not seen ({count} folds"
    return Trained(
        logits=logits,
        judged=judged,
        parts=folds if parts is None else parts,
        choosing=choosing,
        deployed=deployed,
        history=history,
        save=lambda path, names: save_with_head(given.frozen, probe.head, names, path),
        write=lambda info, path: write_model(given.frozen.graph, probe.head, info, path),
        facts={
            "folds": count,
            "l2": probe.l2,
            "l2_of_fold": list(probe.l2_of_fold),
            "deployed": "refitted on all rows"
            if parts is None
            else "fitted on all rows but the test part",
        },
        judged_on=f"{unseen}; pictures that belong together stay on one side)"
        if parts is None
        else "pictures of the given test part",
        note=_STRONGEST if strongest else "",
    )


def _folds(given: Prepared, used: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the fold of each used row: the user's, or classes and holes spread evenly."""
    if given.given and given.given.folds is not None:
        return given.given.folds
    groups = np.unique(given.groups[used], return_inverse=True)[1]
    recipe, values = given.recipe, given.rows.table.values[used]
    return stratified_folds(values, groups, folds=recipe.split.folds, seed=recipe.seed)


def _spread(logits: Floats, used: NDArray[np.bool_]) -> Floats:
    """Return logits (N, K) of the used rows, NaN in the others."""
    spread = np.full((len(used), logits.shape[1]), np.nan, dtype=np.float32)
    spread[used] = logits
    return spread


def fits(folds: int) -> int:
    """Return how many paths ``fit_probe`` solves, for a progress bar."""
    return folds * (folds - 1) // 2 + folds + 1


def _held_out_path(
    solver: PathSolver, grid: tuple[float, ...], parts: list[NDArray[np.bool_]], at_least: int = 0
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
