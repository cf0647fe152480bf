"""Can an attribute be told from the pictures at all? A permutation test on frozen features.

The statistic is the ROC-AUC of leave-one-out scores of a ridge regression of the 0/1 labels, with a
free intercept, on features x standardised over the rows used. With K = X X' / D, centred, and the
ridge r,

    R = I - H = r (K + r I)^-1 - 1 1' / n,      score_i = y_i - (R y)_i / R_ii,

which is what a model fitted without row i says of it, exactly: adding a row that lies on the fit
changes no least-squares fit. So the scores of many permuted labellings are one matrix product.

One row a group is used. Then leaving out a row leaves out its group, and labels that have nothing
to do with the pictures may be permuted among the rows; with several rows a group they may not, as
their labels hang together. The p-value is (1 + permutations that reach the observed AUC) /
(1 + permutations) (Ojala and Garriga, JMLR 2010, definition 1), Holm's over the attributes tested.

The AUC itself is a statistic and no performance, and is not given away: a row that is left out
takes the base rate with it, so that under chance its mean lies below 1/2.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from polytag.errors import UserError
from polytag.intervals import holm
from polytag.pipeline import default_threads

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

# Fixed on drawn features and labels, 60 to 1,500 rows, never on the labels under test: of .1 to 100
# the ridge least behind the best where it is not the best itself; from 3 to 30 the power hardly
# differs (benchmarks/learnability.py, "ridge").
RIDGE = 10.0
_LEVEL = 0.05
_VISIBLE, _POWER = 0.70, 0.80  # an AUC that must be seen, and how surely
_FEWEST = 8  # units of either class; fewer: not tested
_MOST = 3000  # rows of one test: 0.2 GB a thread, and some seconds
_BLOCK = 1000  # permutations scored at a time


@dataclass(frozen=True)
class Learnability:
    """Whether one attribute can be told from the pictures.

    Attributes:
        verdict: A sentence that begins with "learnable", "no evidence that the pictures show it"
            or "too few to tell".
        p_value: Of the permutation test; NaN: not tested.
        p_holm: The same, adjusted for the attributes tested; NaN: not tested.
        present: Groups whose row is present; pictures, where no two belong together.
        absent: The same, absent.
        note: What was left out: further rows of a group, or all but a part. Empty: nothing.
    """

    verdict: str
    p_value: float
    p_holm: float
    present: int
    absent: int
    note: str = ""


def judge_learnability(
    features: NDArray[np.floating],
    values: NDArray[np.floating],
    groups: Ints,
    *,
    seed: int = 0,
    permutations: int | None = None,
) -> list[Learnability]:
    """Test of each attribute whether frozen features tell it better than chance.

    An attribute is tested on its known cells, with at least 8 groups of either class. It is
    *learnable* at an adjusted p of .05. If it is not, and the test would have missed an AUC of .70
    in more than one case of five, it has *too few* groups. What stands in the rows of cells that
    are not known changes nothing.

    Args:
        features: float32 (N, D), finite: one row a picture.
        values: (N, K) in {1, 0, NaN}; NaN: not known.
        groups: int (N,): rows with one number belong together. One known row of each is used,
            drawn at random; of more than 3,000 such rows, 3,000 with as many of the rarer class
            as there are, up to half.
        seed: Of all that is drawn.
        permutations: Of the labels; None: 40 for each attribute tested, at least 999.

    Returns:
        K verdicts. They do not depend on the number of processors.

    Raises:
        UserError: The three arrays have different numbers of rows.

    Example:
        >>> rng = np.random.default_rng(1)
        >>> x = rng.normal(size=(200, 5)).astype(np.float32)
        >>> y = np.stack([x[:, 0] > 0, rng.random(200) > 0.5, np.arange(200) < 3], axis=1)
        >>> for found in judge_learnability(x, y.astype(np.float32), np.arange(200)):
        ...     print(found.verdict)
        learnable: better than chance, adjusted p 0.002
        no evidence that the pictures show it: not better than chance, adjusted p 0.52
        too few to tell: 3 present of 200 known, about 28 would do
    """
    if not len(features) == len(values) == len(groups):
        raise UserError(
            "features, values and groups are not about the same rows",
            got=f"{len(features)}, {len(values)} and {len(groups)} rows",
        )
    order = np.random.default_rng(seed).permutation(len(values))
    units = [_one_a_group(~np.isnan(column), groups, order) for column in values.T]
    labels = [column[rows] == 1 for rows, column in zip(units, values.T, strict=True)]
    counts = [(int(label.sum()), int((~label).sum())) for label in labels]
    tested = [k for k, count in enumerate(counts) if min(count) >= _FEWEST]
    draws = permutations or max(999, 40 * len(tested))

    def test(k: int) -> float:
        rng = np.random.default_rng(seed)
        part = _sample(labels[k], rng)
        return _p_value(features[units[k][part]], labels[k][part], draws, rng)

    p_values = np.full(len(units), np.nan)
    # One thread an attribute and one for the arithmetic inside it, so that the number of
    # processors changes no bit.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(default_threads()) as pool:
        p_values[tested] = list(pool.map(test, tested))
    adjusted, known = holm(p_values), (~np.isnan(values)).sum(axis=0)
    level = _LEVEL / max(len(tested), 1)  # Holm's first step
    return [
        Learnability(
            _verdict(*count, p=float(p_holm), level=level),
            float(p),
            float(p_holm),
            *count,
            note=_note(sum(count), int(rows)),
        )
        for count, rows, p, p_holm in zip(counts, known, p_values, adjusted, strict=True)
    ]


def needed(scarce: int, plenty: int, level: float) -> int:
    """Return how many of the scarcer class make an AUC of .70 visible, the balance kept.

    Visible: where the leave-one-out scores have that AUC, the test has 80 % power at a one-sided
    level. The AUC's standard error is (n+n-)^-1/2 times a root: at AUC A of A(1 - A) +
    (n+ - 1)(Q1 - A^2) + (n- - 1)(Q2 - A^2), Q1 = A / (2 - A), Q2 = 2A^2 / (1 + A) (Hanley and
    McNeil 1982, equation 1), and under chance of (n+ + n- + 1) / 6. That is twice a rank sum's
    variance, as the scores come from the labels too and the whole is a quadratic form in them. The
    approximation errs on the safe side (benchmarks/learnability.py, "visible": 85 to 96 %).

    Args:
        scarce: Cells of the scarcer class; none counts as one.
        plenty: Cells of the other; their ratio is kept.
        level: One-sided level of the test, in (0, 1).

    Returns:
        Cells of the scarcer class, at least 8.

    Example:
        >>> needed(100, 100, level=0.05), needed(9, 900, level=0.05), needed(9, 900, level=0.002)
        (41, 22, 52)
    """
    ratio = max(plenty, 1) / max(scarce, 1)
    q1, q2 = _VISIBLE / (2 - _VISIBLE), 2 * _VISIBLE**2 / (1 + _VISIBLE)
    to_reject, to_reach = NormalDist().inv_cdf(1 - level), NormalDist().inv_cdf(_POWER)
    count = _FEWEST
    while True:
        few, many = count, count * ratio
        by_chance = (few + many + 1) / 6
        seen = _VISIBLE * (1 - _VISIBLE)
        seen += (few - 1) * (q1 - _VISIBLE**2) + (many - 1) * (q2 - _VISIBLE**2)
        reach = to_reject * math.sqrt(by_chance) + to_reach * math.sqrt(seen)
        if reach / math.sqrt(few * many) <= _VISIBLE - 0.5:
            return count
        count += 1


def leave_one_out(features: NDArray[np.floating], ridge: float) -> NDArray[np.floating]:
    """Return the matrix (n, n) that takes 0/1 labels to the scores of the rows left out.

    Args:
        features: Floats (n, D); they are standardised, and the precision stays theirs.
        ridge: Penalty, in units of the mean variance of a feature's row: of trace(K) / n = 1.

    Example:
        >>> leave_one_out(np.array([[0.0], [1.0], [3.0], [4.0]]), 0.5) @ [0, 0, 1, 1]
        array([...])
    """
    rows, width = features.shape
    x = features - features.mean(axis=0)
    scale = x.std(axis=0)
    # A feature that never varies says nothing: rounding must not be blown up to a variance of 1.
    varies = scale > 1e-6 * np.abs(features).max(axis=0)
    x = np.where(varies, x / np.where(varies, scale, 1), 0)
    kernel = x @ x.T / width
    kernel.flat[:: rows + 1] += ridge
    residual = ridge * np.linalg.inv(kernel) - 1 / rows
    scores: NDArray[np.floating] = residual / -np.diag(residual)[:, None]
    scores.flat[:: rows + 1] = 0
    return scores


def rank_sums(scores: NDArray[np.floating], labels: Bools) -> Ints:
    """Return the sums (B,) of the present cells' ranks, from 0: the AUC without its constants.

    Scores of both classes are taken not to tie; those of one class may.

    Args:
        scores: Floats (B, n).
        labels: bool (B, n), True: present.

    Example:
        >>> rank_sums(np.array([[0.1, 0.7, 0.3]]), np.array([[False, True, True]])).tolist()
        [3]
    """
    order = np.argsort(scores, axis=1)
    ranks = np.arange(scores.shape[1])
    return np.take_along_axis(labels, order, axis=1) @ ranks


def _one_a_group(known: Bools, groups: Ints, order: Ints) -> Ints:
    """Return one known row of every group that has one: the first in a drawn order of rows."""
    rows = order[known[order]]
    return rows[np.unique(groups[rows], return_index=True)[1]]


def _sample(labels: Bools, rng: np.random.Generator) -> Ints:
    """Return which rows are looked at: all, or as many of the rarer class as fit into half."""
    if len(labels) <= _MOST:
        return np.arange(len(labels))
    few, many = sorted((np.flatnonzero(labels), np.flatnonzero(~labels)), key=len)
    few = rng.permutation(few)[: _MOST // 2]
    many = rng.permutation(many)[: _MOST - len(few)]
    return np.concatenate([few, many])


def _p_value(
    features: NDArray[np.floating], labels: Bools, permutations: int, rng: np.random.Generator
) -> float:
    """Return how often permuted labels are told apart as well as the true ones."""
    scores = leave_one_out(features, RIDGE)
    observed, reached = -1, 0
    for start in range(0, permutations + 1, _BLOCK):
        block = np.tile(labels, (min(_BLOCK, permutations + 1 - start), 1))
        fixed = 1 if start == 0 else 0  # the true labels go the same way as the permuted ones
        rng.permuted(block[fixed:], axis=1, out=block[fixed:])
        sums = rank_sums(block.astype(scores.dtype) @ scores.T, block)
        observed = sums[0] if start == 0 else observed
        reached += int((sums >= observed).sum())  # the true labels reach themselves: the + 1
    return reached / (permutations + 1)


def _verdict(present: int, absent: int, *, p: float, level: float) -> str:
    """Return an attribute's sentence, from its groups, its adjusted p and the level it had."""
    if p <= _LEVEL:
        return f"learnable: better than chance, adjusted p {p:.2g}"
    scarce, plenty = sorted((present, absent))
    enough = needed(scarce, plenty, level)
    if scarce < enough:
        which = "present" if present <= absent else "absent"
        known = present + absent
        return f"too few to tell: {scarce} {which} of {known} known, about {enough} would do"
    return f"no evidence that the pictures show it: not better than chance, adjusted p {p:.2g}"


def _note(units: int, rows: int) -> str:
    """Return what was left out of an attribute's known rows."""
    parts = [f"one picture of each of {units} groups"] if units < rows else []
    parts += [f"judged on {_MOST} of {units}, drawn at random"] if units > _MOST else []
    return "; ".join(parts)
