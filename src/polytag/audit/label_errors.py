"""Labels that are likely wrong, with the most similar labelled pictures as evidence."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from polytag.audit.finding import Finding, Row, finding
from polytag.audit.material import Material
from polytag.readers.raw import plural
from polytag.suspects import eligible, rank_cells, suspected

# The list is for a person to go through: this share of the cells looked at, within these bounds.
SHARE, LEAST, MOST = 0.03, 20, 2000
NEIGHBOURS = 5


def label_errors(material: Material) -> list[Finding]:
    """Find known cells that say the opposite of what the picture's look-alikes say.

    Only of attributes that are learnable: where pictures carry nothing, a model's doubt says only
    which class is rare. Byte-identical pictures that contradict each other have their own check.
    """
    try:
        import cleanlab  # noqa: F401  # loads pandas and scikit-learn: only when it is used
    except ModuleNotFoundError:
        summary = "Likely label errors were not looked for: cleanlab is not installed."
        return [finding("cleanlab", summary, [], "pip install 'polytag[audit]'")]
    learnable = [one.verdict.startswith("learnable") for one in material.verdicts]
    values = eligible(material.values, learnable, material.identical)
    rows, columns = rank_cells(values, material.probabilities)
    cells = len(rows)
    if not cells:
        return []
    suspects = suspected(values, material.probabilities)
    length = min(max(LEAST, round(SHARE * cells)), MOST)
    rows, columns = rows[:length], columns[:length]
    sides = np.where(values == 1, material.probabilities, 1 - material.probabilities)
    doubted = sides[rows, columns] < 0.5
    rows, columns = rows[doubted], columns[doubted]
    if not len(rows):
        return []
    near = _Neighbours(material)
    evidence: list[Row] = []
    for row, k in zip(rows.tolist(), columns.tolist(), strict=True):
        given = int(values[row, k])
        evidence.append(
            {
                "image": material.names[row],
                "attribute": material.attributes[k],
                "given": given,
                "suggested": 1 - given,
                "probability": round(float(material.probabilities[row, k]), 4),
                "suspected": bool(suspects[row, k]),
                "neighbours": near.labelled(row, k),
            }
        )
    summary = (
        f"{plural(int(suspects.sum()), 'label')} of {cells} likely wrong (confident learning); "
        f"the {len(rows)} likeliest are listed."
    )
    advice = "Go through label_errors.csv from the top and stop where most labels are right."
    return [finding("label errors", summary, evidence, advice)]


class _Neighbours:
    """The pictures most like one, by the cosine of standardised features."""

    def __init__(self, material: Material) -> None:
        self.material, self.units = material, unit_rows(material.features)

    def labelled(self, row: int, k: int) -> list[Row]:
        """Return the nearest labelled pictures, one of each group and none of the row's own."""
        groups, values = self.material.identical, self.material.values[:, k]
        order = np.argsort(-(self.units @ self.units[row]), kind="stable")
        order = order[~np.isnan(values[order]) & (groups[order] != groups[row])]
        # Several are asked for so that copies of one picture are not several witnesses.
        near = order[: 4 * NEIGHBOURS]
        near = near[np.sort(np.unique(groups[near], return_index=True)[1])][:NEIGHBOURS]
        return [{"image": self.material.names[i], "given": int(values[i])} for i in near]


def unit_rows(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return features standardised and of length 1, so that a product is a cosine.

    Example:
        >>> unit_rows(np.array([[1, 5], [3, 5]], dtype=np.float32)).tolist()
        [[-1.0, 0.0], [1.0, 0.0]]
    """
    if not len(features):
        return features
    scale = features.std(axis=0)
    centred = (features - features.mean(axis=0)) / np.where(scale > 0, scale, 1)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.asarray(centred / np.where(length > 0, length, 1), dtype=np.float32)
