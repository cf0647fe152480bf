"""The model card: a run's README.md."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

from polytag.config import Recipe
from polytag.errors import printable
from polytag.modelfile import ModelInfo

_BRACKETS = (
    "In square brackets: the 95 % interval. In round ones: what a guess scores that never saw a "
    "picture."
)


def model_card(info: ModelInfo, metrics: Mapping[str, Any], recipe: Recipe) -> str:
    """Return the card in Markdown: what it answers, how well, made from what, how to use it.

    Args:
        info: What goes into the model file.
        metrics: The content of metrics.json.
        recipe: As resolved.
    """
    judged_on, note = metrics["judged_on"], metrics["note"]
    headline = f"**Macro AP {_cell(metrics['macro']['ap'])}**, over {metrics['over']}"
    headline += f", on {metrics['judged']} {judged_on}. {_BRACKETS}"
    lines = [
        _title(recipe),
        "",
        f"Says of a picture which of {len(info.attributes)} attributes are present. "
        f"Made by polytag from {metrics['rows']} pictures.",
        "",
        *([headline, ""] if judged_on else []),
        *([f"**{note}**", ""] if note else []),
        "| attribute | do the pictures show it? | present | absent | not known | AP | AUC | F1 "
        "| threshold |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    thresholds = dict(zip(info.attributes, info.thresholds, strict=True))
    for each in metrics["attributes"]:
        name, threshold = each["name"], thresholds.get(each["name"])
        numbers = [_cell(each[metric]) for metric in ("ap", "auc", "f1")]
        counts = [str(each[kind]) for kind in ("present", "absent", "na")]
        cells = [_escaped(name), each["verdict"] or "-", *counts, *numbers]
        lines.append(f"| {' | '.join(cells)} | {f'{threshold:.3g}' if threshold else '-'} |")
    if info.left_out:
        lines += ["", "Not trained, and never answered:", ""]
        lines += [f"- {_escaped(name)}: {reason}" for name, reason in info.left_out.items()]
    lines += [
        "",
        "## How it was made",
        "",
        f"- Method: {recipe.method}; backbone `{recipe.backbone.name}`, weights "
        f"`{recipe.backbone.weights}` (licence: {info.weights_licence}).",
        _pictures(info),
        *(_stages(recipe, metrics) if recipe.method == "finetune" else []),
        f"- Kept: {metrics['deployed']}.",
        "- Cells that are not known were left out of training and of every number above.",
        *_decisions(info, recipe),
        "- `polytag train --recipe config.toml` repeats this run.",
        *_use(info),
        "## Limits",
        "",
        "The numbers hold for pictures like those it was trained on. Where a number stands close "
        "to its guess, the model says little about that attribute.",
        "",
    ]
    return "\n".join(lines)


def _decisions(info: ModelInfo, recipe: Recipe) -> list[str]:
    calibrated = "calibrated on predictions of rows not trained on"
    lines = [
        f"- Probabilities: {calibrated if info.calibration else 'as the network gives them'}; "
        f"thresholds: {recipe.decisions.target}."
    ]
    if unsure := info.unsure:
        lines.append(
            f"- Unsure is said where at most {unsure['max_error']:.3g} errors a decision could not "
            f"be promised at a confidence of {unsure['confidence']:.3g}; certified "
            f"{unsure['certified']}."
        )
    return lines


def imported_card(info: ModelInfo, recipe: Recipe, source: str, note: str) -> str:
    """Return the card of a model that was trained elsewhere.

    Args:
        info: What goes into the model file.
        recipe: Which network it is, and how pictures come to it.
        source: The file of its weights, in words.
        note: What to know first.
    """
    lines = [
        _title(recipe),
        "",
        f"Says of a picture which of {len(info.attributes)} attributes are present. "
        "Trained elsewhere, imported by polytag.",
        "",
        f"**{note}**",
        "",
        "| attribute | threshold |",
        "|---|---|",
    ]
    for name, threshold in zip(info.attributes, info.thresholds, strict=True):
        lines.append(f"| {_escaped(name)} | {threshold:g} |")
    lines += [
        "",
        "## How it was made",
        "",
        f"- Backbone `{recipe.backbone.name}` with its head, weights from {source} "
        f"(licence: {info.weights_licence}).",
        _pictures(info),
        *_use(info),
        "## Limits",
        "",
        "What it was trained on is not known here, so neither is for which pictures it can be "
        "trusted. Probabilities are those of the imported network.",
        "",
    ]
    return "\n".join(lines)


def _title(recipe: Recipe) -> str:
    return f"# {recipe.title}" if recipe.title != type(recipe)().title else "# Attribute classifier"


def _pictures(info: ModelInfo) -> str:
    spec = info.preprocess
    return f"- Pictures: {spec.resize} to {spec.size} x {spec.size}, {spec.interpolation}."


def _use(info: ModelInfo) -> list[str]:
    return [
        "",
        "## Use",
        "",
        "```",
        "polytag predict . photo.jpg",
        "```",
        "",
        "Or without polytag: `model.onnx` takes `images` uint8 (B, "
        f"{info.preprocess.size}, {info.preprocess.size}, 3) RGB and gives `probabilities` "
        "float32 (B, K) in the order of the table above, less what was not trained.",
        "",
    ]


def _escaped(name: str) -> str:
    """Return a name that stays in its cell and is no HTML."""
    return html.escape(printable(name), quote=False).replace("|", "\\|")


def _stages(recipe: Recipe, facts: Mapping[str, Any]) -> list[str]:
    stages = "; ".join(
        f"{stage.name}: {stage.epochs} epochs at {stage.lr:g}, frozen: {stage.frozen}"
        for stage in recipe.stages
    )
    weighted = ", present cells weighted" if recipe.loss.pos_weight != "none" else ""
    parts, best = facts["parts"], facts["best_epoch"]
    chose = f"{parts['choose']} decided when to stop and what to keep" if parts["choose"] else ""
    judged = f"{parts['holdout']} judged it" if parts["holdout"] else ""
    used = [f"{parts['train']} pictures were trained on", chose, judged]
    return [
        f"- {', '.join(words for words in used if words)}.",
        f"- Loss {recipe.loss.name}{weighted}; {recipe.training.optimiser}; {stages}."
        + (f" Best epoch: {best}." if best else ""),
    ]


def _cell(value: Mapping[str, Any]) -> str:
    if value["value"] is None:
        return "-"
    low, high = value["low"], value["high"]
    interval = "" if low is None or high is None else f" [{low:.3f}, {high:.3f}]"
    chance = "" if value["chance"] is None else f" ({value['chance']:.3f})"
    return f"{value['value']:.3f}{interval}{chance}"
