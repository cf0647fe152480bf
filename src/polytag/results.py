"""The shape of measured numbers: beside what guessing scores, with coverage, as metrics.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import numpy as np

# The metrics of one attribute, in the order reports show them: fields of AttributeMetrics.
METRICS = (
    *("ap", "auc", "f1", "precision", "recall", "accuracy"),
    *("balanced_accuracy", "brier", "ece"),
)
TOGETHER = ("log_loss", "hamming", "exact_match")  # of all cells together: fields of Evaluation


@dataclass(frozen=True)
class Value:
    """One measured number, and its 95 % interval."""

    value: float = np.nan  # NaN where it is not defined
    chance: float = np.nan  # what guessing scores on the same cells; NaN where value is
    reason: str = ""  # why it is not defined, or what to know when reading it
    low: float | None = None  # None where no interval was computed
    high: float | None = None


@dataclass(frozen=True)
class Mean(Value):
    """One number about several attributes."""

    over: str = ""  # for example "22 of 23 attributes"
    missing: Mapping[str, str] = field(default_factory=dict)  # attribute not in it -> reason
    mean_over_folds: float | None = None  # None where there are no folds
    chance_over_folds: float | None = None  # what guessing scores there: more, in small folds
    over_folds: str = ""  # for example "113 of 115 attribute folds"


@dataclass(frozen=True)
class AttributeMetrics:
    """What was measured about one attribute, at ``threshold`` where decisions are needed."""

    name: str
    present: int  # cells known to be present
    absent: int  # cells known to be absent
    na: int  # cells that are not known
    ap: Value  # average precision
    auc: Value  # area under the ROC curve
    f1: Value
    precision: Value
    recall: Value
    accuracy: Value
    balanced_accuracy: Value  # mean of the shares of present and of absent cells decided rightly
    brier: Value  # mean squared distance of probability and value: lower is better
    ece: Value  # expected calibration error, lower is better
    # A probability of at least this is decided present; NaN where rows had different ones.
    threshold: float
    threshold_low: float | None = None  # 95 % interval; None where nothing was chosen
    threshold_high: float | None = None
    verdict: str | None = None  # whether the pictures carry it; None until somebody judged that
    p_value: float | None = None  # of the permutation test behind the verdict
    p_holm: float | None = None  # the same, adjusted for the number of attributes


@dataclass(frozen=True)
class Evaluation:
    """What was measured about a set of predictions.

    Example:
        >>> ap = Mean(0.6, 0.2, over="1 of 1 attributes")
        >>> Evaluation((), {"ap": ap}, Mean(), Mean(), Mean()).over
        '1 of 1 attributes'
    """

    attributes: tuple[AttributeMetrics, ...]  # in the order of the table
    macro: Mapping[str, Mean]  # each of METRICS, averaged over the attributes that have it
    log_loss: Mean  # mean over known cells, in nats
    hamming: Mean  # correct known cells / known cells, over the whole data set
    exact_match: Mean  # share of rows with a known cell whose known cells are all correct

    @property
    def over(self) -> str:
        """Over how many attributes the headline, the macro average precision, was taken."""
        return self.macro["ap"].over

    def to_dict(self) -> dict[str, Any]:
        """Return the content of ``metrics.json``: what is not defined or computed is None."""

        def plain(items: list[tuple[str, Any]]) -> dict[str, Any]:
            return {k: None if v == "" or v != v else v for k, v in items}  # v != v: NaN

        content = asdict(self, dict_factory=plain)
        return content | {"attributes": list(content["attributes"]), "over": self.over}


class Chosen(Protocol):
    """A threshold and its interval, such as `thresholds.Threshold`."""

    @property
    def value(self) -> float:
        """The threshold."""

    @property
    def low(self) -> float | None:
        """Lower end; None where it has no interval."""

    @property
    def high(self) -> float | None:
        """Upper end."""


def with_ranking(evaluation: Evaluation, ranked: Evaluation) -> Evaluation:
    """Return the evaluation with AP and AUC as another one of the same cells has them.

    Example:
        >>> nothing = Evaluation((), {"ap": Mean(), "auc": Mean()}, Mean(), Mean(), Mean())
        >>> with_ranking(nothing, nothing).attributes
        ()
    """
    pairs = zip(evaluation.attributes, ranked.attributes, strict=True)
    macro = {**evaluation.macro, "ap": ranked.macro["ap"], "auc": ranked.macro["auc"]}
    attributes = tuple(replace(each, ap=other.ap, auc=other.auc) for each, other in pairs)
    return replace(evaluation, attributes=attributes, macro=macro)


def with_verdicts(
    evaluation: Evaluation, verdicts: Mapping[str, tuple[str, float, float]]
) -> Evaluation:
    """Return the evaluation with (verdict, p value, p value by Holm) of the attributes named.

    Example:
        >>> with_verdicts(Evaluation((), {}, Mean(), Mean(), Mean()), {}).attributes
        ()
    """

    def judged(each: AttributeMetrics) -> AttributeMetrics:
        if each.name not in verdicts:
            return each
        verdict, p_value, p_holm = verdicts[each.name]
        return replace(each, verdict=verdict, p_value=p_value, p_holm=p_holm)

    return replace(evaluation, attributes=tuple(map(judged, evaluation.attributes)))


def with_thresholds(evaluation: Evaluation, thresholds: Mapping[str, Chosen]) -> Evaluation:
    """Return the evaluation with the thresholds that travel in the model, of the attributes named.

    Example:
        >>> with_thresholds(Evaluation((), {}, Mean(), Mean(), Mean()), {}).attributes
        ()
    """

    def decided(each: AttributeMetrics) -> AttributeMetrics:
        if each.name not in thresholds:
            return each
        t = thresholds[each.name]
        return replace(each, threshold=t.value, threshold_low=t.low, threshold_high=t.high)

    return replace(evaluation, attributes=tuple(map(decided, evaluation.attributes)))
