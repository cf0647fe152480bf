"""The model card: a run's README.md."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from polytag.config import Recipe
from polytag.modelfile import ModelInfo
from polytag.results import Evaluation, Value
from polytag.summary import headline

_BRACKETS = "In brackets: what a guess scores that never saw a picture."


def model_card(
    info: ModelInfo,
    evaluation: Evaluation,
    recipe: Recipe,
    rows: int,
    judged_on: str,
    facts: Mapping[str, Any],
    note: str = "",
) -> str:
    """Return the card in Markdown: what it answers, how well, made from what, how to use it.

    Args:
        info: What goes into the model file.
        evaluation: On pictures that chose nothing.
        recipe: As resolved.
        rows: Pictures that were used, held-out ones too.
        judged_on: What the numbers were measured on, in words; empty: on nothing.
        facts: What the method says in metrics.json.
        note: What to know first.
    """
    lines = [
        _title(recipe),
        "",
        f"Says of a picture which of {len(info.attributes)} attributes are present. "
        f"Made by polytag from {rows} pictures.",
        "",
        *([f"**{headline(evaluation)}**, on {judged_on}. {_BRACKETS}", ""] if judged_on else []),
        *([f"**{note}**", ""] if note else []),
        "| attribute | present | absent | not known | AP | AUC | F1 | accuracy | threshold |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for a in evaluation.attributes:
        numbers = " | ".join(_cell(value) for value in (a.ap, a.auc, a.f1, a.accuracy))
        threshold = f"{a.threshold:g}" if a.name in info.attributes else "-"
        lines.append(
            f"| {_escaped(a.name)} | {a.present} | {a.absent} | {a.na} | {numbers} | {threshold} |"
        )
    if info.left_out:
        lines += ["", "Not trained, and never answered:", ""]
        lines += [f"- {name}: {reason}" for name, reason in info.left_out.items()]
    lines += [
        "",
        "## How it was made",
        "",
        f"- Method: {recipe.method}; backbone `{recipe.backbone.name}`, weights "
        f"`{recipe.backbone.weights}` (licence: {info.weights_licence}).",
        _pictures(info),
        *(_stages(recipe, facts) if recipe.method == "finetune" else []),
        f"- Kept: {facts['deployed']}.",
        "- Cells that are not known were left out of training and of every number above.",
        "- `polytag train --recipe config.toml` repeats this run.",
        *_use(info),
        "## Limits",
        "",
        "The numbers hold for pictures like those it was trained on. Where a number stands close "
        "to its guess, the model says little about that attribute. Probabilities are not "
        "calibrated; thresholds are "
        f"{recipe.threshold:g} for every attribute.",
        "",
    ]
    return "\n".join(lines)


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
    return name.replace("|", "\\|")


def _stages(recipe: Recipe, facts: Mapping[str, Any]) -> list[str]:
    stages = "; ".join(
        f"{stage.name}: {stage.epochs} epochs at {stage.lr:g}, frozen: {stage.frozen}"
        for stage in recipe.stages
    )
    weighted = ", present cells weighted" if recipe.loss.pos_weight != "none" else ""
    parts, best = facts["parts"], facts["best_epoch"]
    chose = f"{parts['choose']} decided when to stop and what to keep" if parts["choose"] else ""
    used = [f"{parts['train']} pictures were trained on", chose, f"{parts['holdout']} judged it"]
    return [
        f"- {', '.join(words for words in used if words)}.",
        f"- Loss {recipe.loss.name}{weighted}; {recipe.training.optimiser}; {stages}."
        + (f" Best epoch: {best}." if best else ""),
    ]


def _cell(value: Value) -> str:
    if math.isnan(value.value):
        return "-"
    return f"{value.value:.3f} ({value.chance:.3f})"
