"""What a run leaves behind: its tables, pictures, card, weights and model file."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polytag import plots, runs
from polytag.config import DecisionsConfig, Recipe, to_toml
from polytag.decide import Calibrated, Decided
from polytag.files import write_json, write_text
from polytag.images import content_hash
from polytag.intervals import clopper_pearson
from polytag.kept import read_run, write_choosing, write_judged, write_labels
from polytag.method import Prepared, Trained
from polytag.modelfile import ModelInfo
from polytag.results import Evaluation
from polytag.views import without_places, write_views

_PACKAGES = ("polytag", "numpy", "onnxruntime", "pillow", "scipy", "timm", "torch")


@dataclass(frozen=True, eq=False)
class Outcome:
    """Everything a finished training knows.

    Attributes:
        given: What the method started from.
        trained: What it left.
        calibrated: Probabilities (N, K') of the judged rows, and what thresholds are chosen by.
        decided: Thresholds and cuts.
        evaluation: Of these.
        seconds: How long it took.
    """

    given: Prepared
    trained: Trained
    calibrated: Calibrated
    decided: Decided
    evaluation: Evaluation
    seconds: float


def write_run(run: Path, outcome: Outcome) -> dict[str, Any]:
    """Fill a run folder; model.onnx comes last, so that a folder which has one is finished.

    Returns:
        The content of ``metrics.json``.
    """
    given, trained, calibrated = outcome.given, outcome.trained, outcome.calibrated
    recipe, table, names = given.recipe, given.rows.table, given.names
    _write_tables(run, outcome)
    info = _model_info(run, outcome)
    metrics = outcome.evaluation.to_dict() | {
        "method": recipe.method,
        "rows": len(table),
        "judged": int(trained.judged.sum()),
        "judged_on": trained.judged_on or None,
        "skipped": len(given.rows.skipped),
        "groups": dict(given.grouped),
        **trained.facts,
        "calibration": dict(zip(names, calibrated.calibration.words(), strict=True)),
        "decisions": decisions_told(given.values, calibrated, outcome.decided, names, recipe),
        "note": trained.note or None,
        "left_out": given.left_out,
        "budget": given.plan.to_dict() if given.plan else None,
        "versions": versions(),
        "seconds": round(outcome.seconds, 1),
    }
    write_text(run / "config.toml", to_toml(recipe))
    write_json(run / "metrics.json", metrics)
    raw = 1 / (1 + np.exp(-trained.logits.astype(np.float64)))
    write_labels(run, table)
    write_judged(run, table, names, raw, calibrated, outcome.decided)
    write_choosing(run, table, names, calibrated)
    plots.loss_curve(trained.history, recipe.title, run / "loss_curve.png")
    trained.save(run / "weights.safetensors", info.attributes)
    metrics = write_views(read_run(run), info, given.rows.paths)
    trained.write(info, run / "model.onnx")
    return metrics


def versions() -> dict[str, str]:
    """Return the versions of what makes a model file."""
    return {name: version(name) for name in _PACKAGES} | {"python": platform.python_version()}


def decision_fields(
    decided: Decided, names: tuple[str, ...], config: DecisionsConfig
) -> dict[str, Any]:
    """Return the fields of a model file that say how probabilities become decisions."""
    fields: dict[str, Any] = {"thresholds": tuple(each.value for each in decided.deployed)}
    fields |= {"cuts": None, "unsure": {}}
    if decided.deployed_cuts is None:
        return fields
    notes = {name: cut.note for name, cut in zip(names, decided.deployed_cuts, strict=True)}
    return fields | {
        "cuts": tuple((cut.low, cut.high) for cut in decided.deployed_cuts),
        "unsure": {
            "max_error": config.max_error,
            "confidence": config.confidence,
            "certified": "on predictions of rows that the models of the folds, or this model, had "
            "not seen; not on this model where it was refitted on all rows",
            "notes": {name: note for name, note in notes.items() if note},
        },
    }


def decisions_told(
    values: NDArray[np.float32],
    calibrated: Calibrated,
    decided: Decided,
    names: tuple[str, ...],
    recipe: Recipe,
) -> dict[str, Any]:
    """Return what metrics.json says of thresholds and cuts.

    Args:
        values: float32 (N, K') in {0, 1, NaN}.
        calibrated: Probabilities of the judged rows.
        decided: By what they were decided.
        names: K' attributes.
        recipe: What thresholds were chosen for.
    """
    attributes: dict[str, Any] = {}
    for k, (name, chosen) in enumerate(zip(names, decided.deployed, strict=True)):
        attributes[name] = {
            "threshold": chosen.value,
            "low": chosen.low,
            "high": chosen.high,
            "note": chosen.note or None,
        }
        if decided.cuts is not None and decided.deployed_cuts is not None:
            cut = decided.deployed_cuts[k]
            attributes[name]["unsure"] = {
                "absent_below": cut.low,
                "present_from": cut.high,
                "note": cut.note or None,
                **_unsure(values[:, k], calibrated.probabilities[:, k], decided.cuts[:, k]),
            }
    return recipe.decisions.model_dump(mode="json") | {"attributes": attributes}


def _unsure(
    values: NDArray[np.float32], probabilities: NDArray[np.float64], cuts: NDArray[np.float64]
) -> dict[str, Any]:
    """Count how judged cells fared with cuts that were chosen without them."""
    known = ~np.isnan(values) & ~np.isnan(probabilities)
    truth, p, (low, high) = values[known], probabilities[known], cuts[known].T
    found: dict[str, Any] = {}
    for word, decided, wrong in (("present", p >= high, 0), ("absent", p < low, 1)):
        count, errors = int(decided.sum()), int((truth[decided] == wrong).sum())
        found |= {f"{word}_decided": count, f"{word}_wrong": errors}
        bounds = map(float, clopper_pearson(errors, count)) if count else (None, None)
        found |= dict(zip((f"{word}_error_low", f"{word}_error_high"), bounds, strict=True))
    sure = found["present_decided"] + found["absent_decided"]
    return found | {"unsure_share": 1 - sure / len(p) if len(p) else None}


def _model_info(run: Path, outcome: Outcome) -> ModelInfo:
    given, whole = outcome.given, outcome.evaluation.to_dict()
    names, table = given.names, given.rows.table
    kinds = ("present", "absent", "na")
    counts = zip(table.attributes, table.counts().tolist(), strict=True)
    verdicts = {a.name: a.verdict for a in outcome.evaluation.attributes if a.verdict}
    calibration = outcome.calibrated.calibration
    changed = any(kind != "none" for kind in calibration.kinds)
    return ModelInfo(
        attributes=names,
        **decision_fields(outcome.decided, names, given.recipe.decisions),
        preprocess=given.frozen.spec,
        left_out=given.left_out,
        verdicts={name: verdicts[name] for name in names if name in verdicts},
        counts={name: dict(zip(kinds, row, strict=True)) for name, row in counts},
        recipe=without_places(given.recipe).model_dump(mode="json", exclude={"data"}),
        splits_hash=content_hash(run / "splits.csv"),
        metrics={"macro": whole["macro"], "over": whole["over"]},
        calibration=calibration.to_dict() if changed else None,
        versions=versions(),
        weights_licence=given.frozen.licence,
    )


def _write_tables(run: Path, outcome: Outcome) -> None:
    given, rows = outcome.given, outcome.given.rows
    history = outcome.trained.history
    runs.write_rows(run / "history.csv", history.header(), history.rows())
    runs.write_rows(
        run / "splits.csv",
        ["image", "content_hash", "alike", "group", "fold"],
        zip(
            rows.table.images,
            rows.hashes,
            given.alike,
            given.groups,
            outcome.trained.parts,
            strict=True,
        ),
    )
    runs.write_rows(
        run / "skipped.csv",
        ["image", "where", "reason"],
        ([row.image, row.where, row.reason] for row in rows.skipped),
    )
