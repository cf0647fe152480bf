"""What to annotate next: which unknown cells, and of what more is needed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from polytag.audit.finding import Finding, Row, finding, listed
from polytag.audit.label_errors import unit_rows
from polytag.audit.material import Doubles, Material
from polytag.intervals import ap_logit_interval
from polytag.metrics import average_precision
from polytag.readers.raw import plural

BATCH = 200  # queries: an afternoon's work
RANDOM = 0.2  # of them drawn by chance, so that what is measured on them is not about hard cells
WIDE = 0.2  # an average precision that may as well be .1 lower or higher decides nothing
_NEIGHBOURS = 10
_SEED = 0


def annotate_next(material: Material) -> list[Finding]:
    """List unknown cells whose answer would teach most, and some drawn by chance."""
    score = scores(material)
    chosen = choose(score, material.identical, BATCH)
    if not chosen:
        return []
    rows: list[Row] = [
        {
            "image": material.names[row],
            "attribute": material.attributes[k],
            "probability": round(float(material.probabilities[row, k]), 4),
            "score": round(float(score[row, k]), 6),
            "why": why,
        }
        for row, k, why in chosen
    ]
    unknown = int((~np.isnan(score)).sum())
    drawn = sum(why == "random" for _, _, why in chosen)
    summary = (
        f"{plural(len(rows), 'cell')} to annotate next, of {unknown} not known; {drawn} of them "
        "drawn by chance."
    )
    advice = (
        "Answer annotate_next.csv from the top. Keep the drawn ones: only on them is what is "
        "measured later not about hard cells alone."
    )
    return [finding("annotate next", summary, rows, advice)]


def scores(material: Material) -> Doubles:
    """Return float64 (N, K): how much an unknown cell's answer would teach; NaN elsewhere.

    Doubt x rarity x density x answerable: the entropy of its probability, in bits; 1 / sqrt(n+ + 1)
    of the attribute's present cells; the mean cosine, of at least 0, to the ten most similar
    pictures, as an odd one teaches about itself only; and the probability that the cell can be
    answered, where holes are not by chance.
    """
    p = material.probabilities
    inside = np.clip(p, 1e-12, 1 - 1e-12)
    entropy = -(inside * np.log2(inside) + (1 - inside) * np.log2(1 - inside))
    present = (material.values == 1).sum(axis=0)
    answerable = np.where(np.isnan(material.answerable), 1, material.answerable)
    score = entropy / np.sqrt(present + 1) * _density(material.features)[:, None] * answerable
    asked = np.isnan(material.values) & ~np.isnan(p) & worth_it(material)
    found: Doubles = np.where(asked, score, np.nan)
    return found


def worth_it(material: Material) -> NDArray[np.bool_]:
    """Return bool (K,): more labels can help, as nothing says that pictures do not carry it."""
    none = [one.verdict.startswith("no evidence") for one in material.verdicts]
    return ~np.array(none, dtype=bool)


def choose(score: Doubles, groups: NDArray[np.int64], batch: int) -> list[tuple[int, int, str]]:
    """Choose cells by their score, and a fifth by chance among the others.

    No attribute has more than twice its even share of what is chosen by score, and of identical
    pictures one is asked about.

    Args:
        score: float64 (N, K); NaN: no candidate.
        groups: int (N,): of identical pictures.
        batch: How many, at most.

    Returns:
        (row, column, "score" or "random"), by falling score, then those drawn.

    Example:
        >>> score = np.array([[0.3, np.nan], [0.9, 0.1], [0.8, 0.2]])
        >>> choose(score, np.array([0, 1, 1]), batch=2)
        [(1, 0, 'score'), (0, 0, 'score')]
    """
    rows, columns = np.nonzero(~np.isnan(score))
    order = np.argsort(-score[rows, columns], kind="stable")
    drawn = round(RANDOM * batch)
    quota = int(np.ceil(2 * (batch - drawn) / max(len(np.unique(columns)), 1)))
    asked: set[tuple[int, int]] = set()
    taken = np.zeros(score.shape[1], dtype=np.int64)
    chosen: list[tuple[int, int, str]] = []

    def ask(candidates: NDArray[np.int64], most: int, why: str) -> None:
        for i in candidates:
            row, k = int(rows[i]), int(columns[i])
            cell = (int(groups[row]), k)
            if len(chosen) >= most:
                return
            if cell not in asked and (why == "random" or taken[k] < quota):
                asked.add(cell)
                taken[k] += 1
                chosen.append((row, k, why))

    ask(order, batch - drawn, "score")
    ask(np.random.default_rng(_SEED).permutation(len(rows)), len(chosen) + drawn, "random")
    return chosen


def wide_intervals(material: Material) -> list[Finding]:
    """Find attributes whose average precision is uncertain, and how many more would halve that.

    The logit interval's width goes with 1 / sqrt(n+), so half of it takes four times the present
    cells: three times as many more.
    """
    judged = ~np.isnan(material.probabilities) & worth_it(material)
    values = np.where(judged, material.values, np.nan)
    precision = average_precision(values, np.where(judged, material.probabilities, 0.5))
    rows: list[Row] = []
    for k, name in enumerate(material.attributes):
        present = int((values[:, k] == 1).sum())
        if np.isnan(precision[k]) or not present:
            continue
        low, high = ap_logit_interval(float(precision[k]), present)
        if high - low > WIDE:
            rows.append(
                {
                    "attribute": name,
                    "ap": float(precision[k]),
                    "low": float(low),
                    "high": float(high),
                    "present": present,
                    "more": 3 * present,
                }
            )
    if not rows:
        return []
    rows.sort(key=lambda row: row["low"] - row["high"])
    names = listed([f"{row['attribute']} ({row['more']} more present)" for row in rows])
    summary = f"What would halve the widest intervals: {names}."
    advice = "Look for pictures that show them: cells that are absent narrow little."
    return [finding("wide interval", summary, rows, advice)]


def _density(features: NDArray[np.float32]) -> Doubles:
    """Return float64 (N,): the mean cosine to the ten most similar other pictures, at least 0."""
    units = unit_rows(features)
    most = min(_NEIGHBOURS, len(units) - 1)
    found = np.zeros(len(units))
    for start in (
        range(0, len(units), 1024) if most > 0 else ()
    ):  # a block at a time: N x N is large
        cosine = units[start : start + 1024] @ units.T
        block = np.arange(len(cosine))
        cosine[block, start + block] = -np.inf
        found[start : start + 1024] = np.partition(cosine, -most, axis=1)[:, -most:].mean(axis=1)
    return np.maximum(found, 0)
