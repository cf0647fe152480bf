"""Shortcuts: can what is cheap to see of a file predict a label?"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2_contingency, mannwhitneyu

from polytag.audit.finding import Finding, Row, finding, listed
from polytag.audit.material import Doubles, Material
from polytag.intervals import holm
from polytag.metrics import roc_auc
from polytag.readers.raw import plural

NOTICEABLE = 0.65  # AUC: with many rows a p-value alone would find what matters to nobody
_LEVEL = 0.05
_FEWEST = 8  # cells of either class
_FOLDS, _SEED = 5, 0
_KIND = 10  # rows of a category, at least: fewer count as "other"


def shortcuts(material: Material) -> list[Finding]:
    """Find facts about the files that predict an attribute.

    Every fact is tested alone against every attribute, on one row a group of identical pictures:
    a number by the rank-sum test, a category by chi-square; Holm over all of these tests.
    """
    rows = material.representatives()
    names = [material.names[row] for row in rows]
    numbers, kinds = _numbers(material, rows), _kinds(material, rows, names)
    values = material.values[rows]
    pictures = _auc_of_pictures(material)
    tests: list[tuple[float, Row]] = []
    for k, attribute in enumerate(material.attributes):
        known = ~np.isnan(values[:, k])
        for fact, number in numbers.items():
            use = known & ~np.isnan(number)
            tests += _row(fact, attribute, number_test(number[use], values[use, k] == 1))
        for fact, kind in kinds.items():
            tests += _row(fact, attribute, kind_test(kind[known], values[known, k] == 1))
    adjusted = holm(np.array([p for p, _ in tests]))
    found = [
        row | {"p": float(p), "pictures": pictures[row["attribute"]]}
        for (_, row), p in zip(tests, adjusted, strict=True)
        if p <= _LEVEL and row["auc"] >= NOTICEABLE
    ]
    if not found:
        return []
    found.sort(key=lambda row: -row["auc"])
    return [_finding(found)]


def _finding(rows: list[Row]) -> Finding:
    # Half of what the pictures give, above chance: a model may well be living on it.
    bad = any(
        row["pictures"] is None or 2 * (row["auc"] - 0.5) >= row["pictures"] - 0.5 for row in rows
    )
    pairs = listed([f"{row['fact']} → {row['attribute']} (AUC {row['auc']:.2f})" for row in rows])
    count = plural(len({row["attribute"] for row in rows}), "attribute")
    summary = f"Facts about the file alone predict {count}: {pairs}."
    advice = (
        "A model can score without looking at what is meant. 'pictures' is what the whole picture "
        "gives: if it is hardly more, collect both classes in the same way."
    )
    return finding("shortcut", summary, rows, advice, bad=bad)


def _row(
    fact: str, attribute: str, test: tuple[float, float, str] | None
) -> list[tuple[float, Row]]:
    if test is None:
        return []
    p, auc, how = test
    return [(p, {"fact": fact, "attribute": attribute, "auc": round(auc, 4), "how": how})]


def number_test(number: Doubles, present: NDArray[np.bool_]) -> tuple[float, float, str] | None:
    """Test whether a number ranks the present before the absent, or after them.

    Returns:
        The two-sided p-value of the rank-sum test (Mann and Whitney 1947), the AUC of the better
        direction, and that direction; None: too few cells of a class, or nothing varies.

    Example:
        >>> p, auc, how = number_test(np.arange(40.0), np.arange(40) >= 20)
        >>> p < 1e-6, auc, how
        (True, 1.0, 'larger where present')
    """
    if min(present.sum(), (~present).sum()) < _FEWEST or np.ptp(number) == 0:
        return None
    answer = mannwhitneyu(number[present], number[~present], method="asymptotic")
    auc = float(answer.statistic / (present.sum() * (~present).sum()))
    how = "larger where present" if auc >= 0.5 else "smaller where present"
    return float(answer.pvalue), max(auc, 1 - auc), how


def kind_test(
    kind: NDArray[np.str_], present: NDArray[np.bool_]
) -> tuple[float, float, str] | None:
    """Test whether a category goes with an attribute.

    Returns:
        The p-value of the chi-square test; the AUC of the share of present cells in a row's
        category, counted on the other folds; and the category with the largest share. None: too
        few cells of a class, or categories.

    Example:
        >>> kind = np.array(["a/"] * 20 + ["b/"] * 20)
        >>> kind_test(kind, np.arange(40) >= 20)[1:]
        (1.0, "most in 'b/'")
    """
    if min(present.sum(), (~present).sum()) < _FEWEST:
        return None
    counts = Counter(kind.tolist())
    names = [name for name, count in counts.items() if count >= _KIND]
    place = {name: i for i, name in enumerate(names)}
    number = np.array([place.get(text, len(names)) for text in kind.tolist()])
    if len(np.unique(number)) < 2:
        return None
    table = np.zeros((len(names) + 1, 2))
    np.add.at(table, (number, present.astype(np.int64)), 1)
    used = table[table.sum(axis=1) > 0]
    p = float(chi2_contingency(used, correction=False).pvalue)
    # Every fold has the same share of present cells: else the shares of the other folds would be
    # lowest where a fold has most, and an idle fact would score below .5.
    order = np.random.default_rng(_SEED).permutation(len(present))
    folds = np.empty(len(present), dtype=np.int64)
    for side in (present, ~present):
        rows = order[side[order]]
        folds[rows] = np.arange(len(rows)) % _FOLDS
    share = np.empty(len(present))
    for fold in range(_FOLDS):
        seen = np.zeros_like(table)
        np.add.at(seen, (number[folds != fold], present[folds != fold].astype(np.int64)), 1)
        base = seen[:, 1].sum() / seen.sum()
        shares = (seen[:, 1] + base) / (seen.sum(axis=1) + 1)
        share[folds == fold] = shares[number[folds == fold]]
    auc = float(roc_auc(present[:, None].astype(float), share[:, None])[0])
    rate = table[:, 1] / np.maximum(table.sum(axis=1), 1)
    most = [*names, "all others"][int(rate.argmax())]
    return p, auc, f"most in {most!r}"


def _numbers(material: Material, rows: NDArray[np.int64]) -> dict[str, Doubles]:
    """Return what can be measured of a file, each float64 (rows,), NaN where there is none."""
    facts = [material.facts[row] for row in rows]
    border = np.array([fact.border for fact in facts]).reshape(-1, 3)
    width, height = (
        np.array([getattr(f, side) for f in facts], float) for side in ("width", "height")
    )
    return {
        "file size": np.array([fact.bytes for fact in facts], dtype=float),
        "width": width,
        "height": height,
        "width / height": width / height,
        "brightness of the border": border.mean(axis=1),
        "warmth of the border": border[:, 0] - border[:, 2],
        "number in the name": np.array([number_in(material.names[row]) for row in rows]),
    }


def _kinds(
    material: Material, rows: NDArray[np.int64], names: Sequence[str]
) -> dict[str, NDArray[np.str_]]:
    """Return what sorts files into categories, each text (rows,)."""
    return {
        "start of the name": np.array([prefix_of(name) for name in names], dtype=np.str_),
        "file format": np.array([material.facts[row].format for row in rows], dtype=np.str_),
    }


def _auc_of_pictures(material: Material) -> dict[str, float | None]:
    judged = ~np.isnan(material.probabilities)
    values = np.where(judged, material.values, np.nan)
    auc = roc_auc(values, np.where(judged, material.probabilities, 0.5))
    return {
        name: None if np.isnan(one) else round(float(one), 4)
        for name, one in zip(material.attributes, auc, strict=True)
    }


def number_in(name: str) -> float:
    """Return the last number in a picture's name, NaN without one.

    Example:
        >>> number_in("day2/shot_0017.jpg"), number_in("cover.jpg")
        (17.0, nan)
    """
    digits = re.findall(r"[0-9]+", name.rpartition(".")[0] or name)
    return float(digits[-1][:15]) if digits else np.nan


def prefix_of(name: str) -> str:
    """Return what stands before the first digit in a picture's name, folders included.

    Example:
        >>> prefix_of("clinic-a/img_17.jpg"), prefix_of("0017.jpg")
        ('clinic-a/img_', '')
    """
    return re.split(r"[0-9]", name.rpartition(".")[0] or name, maxsplit=1)[0]
