"""What a person looks at: a run's card, report and sample pictures, made of what the run keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polytag import plots
from polytag.card import model_card
from polytag.config import Recipe, to_toml
from polytag.errors import ImageError
from polytag.files import write_json, write_text
from polytag.images import decode
from polytag.kept import Kept
from polytag.modelfile import ModelInfo
from polytag.report import Duplicate, Material, Suspect, shown_numbers, write_report
from polytag.report.shown import SUSPECTS
from polytag.suspects import conflicting, eligible, rank_cells

_SAMPLES = 12  # pictures in sample_predictions.png: what a screen shows at once


def write_views(kept: Kept, info: ModelInfo, paths: Sequence[Path]) -> dict[str, Any]:
    """Write ``README.md``, ``report.html`` and, if any picture was judged, the sample.

    The numbers that only the report shows go into ``metrics.json`` too, so that it has them all.

    Args:
        kept: The run.
        info: What its model file says.
        paths: The file of each of the N pictures.

    Returns:
        The content of ``metrics.json``.
    """
    run = kept.run
    material = _material(kept, paths)
    metrics = {**kept.metrics, "report": shown_numbers(material)}
    write_json(run / "metrics.json", metrics)
    write_report(run / "report.html", replace(material, metrics=metrics))
    write_text(run / "README.md", model_card(info, metrics, without_places(kept.recipe)))
    (run / "sample_predictions.png").unlink(missing_ok=True)  # of thresholds that are no more
    if samples := _samples(kept, paths):
        plots.sample_predictions(samples, kept.attributes, run / "sample_predictions.png")
    return metrics


def without_places(recipe: Recipe) -> Recipe:
    """Return the recipe without folders of this machine: nobody's business who gets the run.

    Example:
        >>> told = without_places(Recipe().replace({"backbone.weights": "weights/mine.pth"}))
        >>> told.backbone.weights, told.backbone.name
        ('mine.pth', 'tf_efficientnet_lite0')
    """
    given = recipe.split.given  # the name of a column, or of a file
    return recipe.replace(
        {
            "data.labels": "",
            "data.images": "",
            "backbone.weights": Path(recipe.backbone.weights).name,
            "split.given": Path(given).name if given.endswith(".csv") else given,
        }
    )


def _material(kept: Kept, paths: Sequence[Path]) -> Material:
    """Return what the report shows, with columns for all attributes, trained or not."""
    table, calibrated = kept.table, kept.calibrated
    columns = [table.attributes.index(name) for name in kept.attributes]

    def spread(cells: NDArray[np.float64]) -> NDArray[np.float64]:
        whole = np.full(table.values.shape, np.nan)
        whole[:, columns] = cells
        return whole

    judged = calibrated.judged.any()
    recipe = without_places(kept.recipe)
    return Material(
        title=recipe.title,
        name=kept.run.name,
        metrics=kept.metrics,
        attributes=table.attributes,
        images=table.images,
        paths=paths if any(path.is_file() for path in paths) else (),
        values=table.values,
        probabilities=spread(calibrated.probabilities) if judged else None,
        raw=spread(kept.raw) if judged else None,
        thresholds=spread(kept.thresholds) if judged else None,
        history=kept.history,
        suspects=_suspects(kept) if judged else None,
        duplicates=_duplicates(kept),
        recipe=to_toml(recipe, explain=False),
        environment=kept.metrics["versions"],
    )


def _suspects(kept: Kept) -> list[Suspect]:
    """Return the cells whose label is likeliest wrong, of attributes that can be learnt."""
    verdicts = kept.verdicts
    learnable = [verdicts.get(name, ("",))[0].startswith("learnable") for name in kept.attributes]
    values = eligible(kept.values, learnable, kept.alike)
    p = kept.calibrated.probabilities
    suspects: list[Suspect] = []
    for row, k in zip(*rank_cells(values, p), strict=True):
        label, probability = int(values[row, k]), float(p[row, k])
        if len(suspects) == SUSPECTS or (probability >= 0.5) == bool(label):
            break
        suspects.append(Suspect(int(row), kept.attributes[k], label, probability))
    return suspects


def _duplicates(kept: Kept) -> list[Duplicate]:
    """Return the groups of rows that show the same picture, or nearly."""
    sizes = np.bincount(kept.alike)
    conflicts = conflicting(kept.table.values, kept.alike)
    rows = [np.flatnonzero(kept.alike == group) for group in np.flatnonzero(sizes > 1)]
    return [Duplicate(tuple(each.tolist()), bool(conflicts[each].any())) for each in rows]


def _samples(kept: Kept, paths: Sequence[Path]) -> list[plots.Sample]:
    rng = np.random.default_rng(kept.recipe.seed)
    rows = rng.permutation(np.flatnonzero(kept.calibrated.judged))[:_SAMPLES]
    samples = []
    for row in sorted(rows.tolist()):
        try:
            picture = decode(paths[row])
        except ImageError:  # thresholds can be chosen anew where the pictures are not
            continue
        cells = kept.values[row], kept.calibrated.probabilities[row], kept.thresholds[row]
        samples.append(plots.Sample(kept.table.images[row], picture, *cells))
    return samples
