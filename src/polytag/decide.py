"""From logits to decisions: calibration, thresholds and cuts, chosen by rows that judge nothing.

Every judged row is calibrated and decided by what was chosen without it; the model file carries
what was chosen by all rows that may choose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from polytag.abstention import Cuts, choose_cuts
from polytag.calibration import Calibration, cross_fitted, fit_calibration
from polytag.config import DecisionsConfig
from polytag.errors import RecipeError
from polytag.method import Choosing, Trained
from polytag.results import Evaluation, with_ranking, with_thresholds
from polytag.scorecard import evaluate_arrays
from polytag.table import LabelTable
from polytag.thresholds import Threshold, choose_thresholds, parse_target

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_FALLBACK = 0.5  # where no rows are left to choose a threshold by


@dataclass(frozen=True, eq=False)
class Basis:
    """Calibrated probabilities of the rows that thresholds are chosen by.

    Attributes:
        probabilities: float64 (N, K), each row's by a calibration fitted on other rows; NaN in
            rows that choose nothing.
        judges: bool (N,): the rows that the thresholds are judged on.
    """

    probabilities: Doubles
    judges: Bools


@dataclass(frozen=True, eq=False)
class Calibrated:
    """Probabilities that thresholds can be applied to, and those they are chosen by.

    Attributes:
        probabilities: float64 (N, K) of the judged rows; NaN in the others.
        bases: One for each model that judged rows come from.
        deployed: For the model that is kept; None: no row is left to choose by.
        calibration: Of the model that is kept.
    """

    probabilities: Doubles
    bases: Sequence[Basis]
    deployed: Basis | None
    calibration: Calibration

    @property
    def judged(self) -> Bools:
        """bool (N,): the rows that have probabilities."""
        return np.asarray(~np.isnan(self.probabilities).all(axis=1))

    @property
    def ranking(self) -> Doubles:
        """float64 (N, K) in [0, 1], what judged cells are ranked by, folds taken together.

        The more present cells a fold holds, the fewer its model was trained on, and the lower its
        probabilities: pooled as they are, AUC would lie below 1/2 where there is nothing to tell.
        So each fold's logits are moved to mean 0, by predictions alone. No order within a fold
        changes; of one model the probabilities are left as they are.
        """
        if len(self.bases) < 2:
            return self.probabilities
        p = np.clip(self.probabilities, 1e-15, 1 - 1e-15)
        logits = np.log(p) - np.log1p(-p)
        for basis in self.bases:
            if basis.judges.any():
                logits[basis.judges] -= logits[basis.judges].mean(axis=0)
        return np.asarray(1 / (1 + np.exp(-logits)))


@dataclass(frozen=True, eq=False)
class Decided:
    """Thresholds and cuts.

    Attributes:
        thresholds: float64 (N, K) that each judged row was decided by; NaN in the others.
        cuts: float64 (N, K, 2), low and high of each judged row; -1 and 2: never. None: there is
            no unsure.
        deployed: K thresholds of the model that is kept.
        deployed_cuts: K cuts of the model that is kept, or None.
    """

    thresholds: Doubles
    cuts: Doubles | None
    deployed: Sequence[Threshold]
    deployed_cuts: Sequence[Cuts] | None


def check_decisions(config: DecisionsConfig) -> None:
    """Refuse decisions that cannot be made, before any work is done for them.

    Raises:
        RecipeError: No such target; or a confidence of nothing.
    """
    parse_target(str(config.target))
    if config.confidence != DecisionsConfig().confidence and not config.max_error:
        raise RecipeError(
            "confidence is of the promise that max_error makes, and there is none",
            where="decisions.confidence",
            fix="--max-error 0.05, for example",
        )


def calibrate(trained: Trained, values: Floats, config: DecisionsConfig) -> Calibrated:
    """Calibrate judged rows, each by what was fitted without it, and the kept model.

    Args:
        trained: Logits of judged rows, and of rows to choose by.
        values: float32 (N, K) in {0, 1, NaN}.
        config: Which calibration.
    """
    kind = config.calibrate
    probabilities = np.full(values.shape, np.nan)
    probabilities[trained.judged] = Calibration.identity(values.shape[1]).probabilities(
        trained.logits[trained.judged]
    )
    bases = []
    for choosing in trained.choosing:
        fitted = fit_calibration(choosing.logits, _seen(values, choosing), kind=kind)
        rows = choosing.judges & trained.judged
        probabilities[rows] = fitted.probabilities(trained.logits[rows])
        bases.append(Basis(_crossed(choosing, values, config), rows))
    kept = trained.deployed
    if kept is None:
        return Calibrated(probabilities, bases, None, Calibration.identity(values.shape[1]))
    calibration = fit_calibration(kept.logits, _seen(values, kept), kind=kind)
    basis = Basis(_crossed(kept, values, config), kept.judges)
    return Calibrated(probabilities, bases, basis, calibration)


def _seen(values: Floats, choosing: Choosing) -> Floats:
    """Return values (N, K) of the rows that choose; the others are not known."""
    return np.where((choosing.folds >= 0)[:, None], values, np.float32(np.nan))


def _crossed(choosing: Choosing, values: Floats, config: DecisionsConfig) -> Doubles:
    return cross_fitted(choosing.logits, values, choosing.folds, kind=config.calibrate)


def decide(
    calibrated: Calibrated, values: Floats, groups: Ints, config: DecisionsConfig, seed: int
) -> Decided:
    """Choose thresholds, and cuts where an error is promised, for judged rows and kept model.

    Args:
        calibrated: Probabilities.
        values: float32 (N, K) in {0, 1, NaN}.
        groups: int (N,); rows of one number count as one.
        config: What is chosen for.
        seed: Of the bootstrap.
    """
    count = values.shape[1]
    thresholds = np.full(values.shape, np.nan)
    thresholds[calibrated.judged] = _fallback(config)
    cuts = np.full((*values.shape, 2), np.nan) if config.max_error else None
    for basis in calibrated.bases:
        chosen, limits = _choose(basis, values, groups, config, seed)
        thresholds[basis.judges] = [each.value for each in chosen]
        if cuts is not None and limits is not None:
            cuts[basis.judges] = [_pair(each) for each in limits]
    if calibrated.deployed is None:
        words = "no rows were left to choose a threshold by"
        words += ", or to certify an error by: nothing is called unsure" * bool(config.max_error)
        fixed = [Threshold(_fallback(config), None, None, words)] * count
        return Decided(thresholds, None, fixed, None)
    deployed, deployed_cuts = _choose(calibrated.deployed, values, groups, config, seed)
    return Decided(thresholds, cuts, deployed, deployed_cuts)


def _choose(
    basis: Basis, values: Floats, groups: Ints, config: DecisionsConfig, seed: int
) -> tuple[list[Threshold], list[Cuts] | None]:
    rows = ~np.isnan(basis.probabilities).all(axis=1)
    given = values[rows], basis.probabilities[rows]
    target = parse_target(str(config.target))
    thresholds = choose_thresholds(*given, target, groups=groups[rows], seed=seed)
    if not config.max_error:
        return thresholds, None
    plain = np.array([each.value for each in thresholds])
    cuts = choose_cuts(
        *given,
        plain,
        max_error=config.max_error,
        confidence=config.confidence,
        groups=groups[rows],
        seed=seed,
    )
    return thresholds, cuts


def _pair(cuts: Cuts) -> tuple[float, float]:
    return (-1.0 if cuts.low is None else cuts.low, 2.0 if cuts.high is None else cuts.high)


def _fallback(config: DecisionsConfig) -> float:
    target = parse_target(str(config.target))
    return target.value if target.kind == "fixed" else _FALLBACK


def judge(
    table: LabelTable,
    learnt: Sequence[int],
    calibrated: Calibrated,
    decided: Decided,
    groups: Ints,
    left_out: Mapping[str, str],
) -> Evaluation:
    """Measure the judged rows; where there are none, every number has that for its reason.

    Args:
        table: N rows, K attributes.
        learnt: The K' columns that were trained.
        calibrated: Probabilities (N, K').
        decided: Thresholds (N, K') and those of the kept model.
        groups: int (N,); rows of one number count as one in intervals.
        left_out: Why the other columns were not trained.
    """
    judged = calibrated.judged
    shape = int(judged.sum()), len(table.attributes)
    thresholds = np.full(shape, _FALLBACK)
    thresholds[:, learnt] = decided.thresholds[judged]
    folds = np.zeros(len(judged), dtype=np.int64)
    for fold, basis in enumerate(calibrated.bases):
        folds[basis.judges] = fold

    def measured(cells: Doubles) -> Evaluation:
        spread = np.full(shape, np.nan)
        spread[:, learnt] = cells[judged]
        return evaluate_arrays(
            table.attributes,
            table.values[judged],
            spread,
            thresholds,
            folds=folds[judged] if len(calibrated.bases) > 1 else None,
            groups=groups[judged],
            not_trained=left_out,
        )

    found = measured(calibrated.probabilities)
    if len(calibrated.bases) > 1:
        found = with_ranking(found, measured(calibrated.ranking))
    names = [table.attributes[k] for k in learnt]
    return with_thresholds(found, dict(zip(names, decided.deployed, strict=True)))
