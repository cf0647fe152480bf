"""Recipes: everything a run can be told, with its default and its meaning, in one place.

A recipe is a TOML file. The ones in ``polytag/recipes/`` and a user's own hold only what differs
from the defaults below; ``polytag recipes NAME`` prints one whole, with every field explained.
A run writes its own as ``config.toml``, with everything resolved.
"""

from __future__ import annotations

import copy
import os
import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import Field, ValidationError

from polytag.config.sections import (
    BackboneConfig,
    DataConfig,
    DecisionsConfig,
    FeaturesConfig,
    PreprocessConfig,
    ProbeConfig,
    Section,
    SplitConfig,
)
from polytag.config.training import (
    AugmentConfig,
    HeadConfig,
    LossConfig,
    SamplerConfig,
    StageConfig,
    TrainingConfig,
)
from polytag.errors import RecipeError, did_you_mean

__all__ = [
    "AugmentConfig",
    "BackboneConfig",
    "DataConfig",
    "DecisionsConfig",
    "FeaturesConfig",
    "HeadConfig",
    "LossConfig",
    "PreprocessConfig",
    "ProbeConfig",
    "Recipe",
    "SamplerConfig",
    "SplitConfig",
    "StageConfig",
    "TrainingConfig",
    "load_recipe",
    "parse_changes",
    "recipe_names",
    "to_toml",
]

# Sections that only one method reads: set for the other, they would be silently without effect.
_OF_FINETUNING = ("head", "loss", "sampler", "augment", "training", "stages")


class Recipe(Section):
    """Everything a run can be told.

    Example:
        >>> Recipe(seed=7).split.folds
        5
    """

    description: str = Field("", description="One line for `polytag recipes`.")
    method: Literal["probe", "finetune"] = Field(
        "probe",
        description="probe: a logistic regression on a frozen backbone; finetune: the network "
        "itself, or the later part of it.",
    )
    budget: str = Field(
        "",
        description="Time that all may take, such as 90s, 5m or 1h30m: the best that fits is "
        "trained. A fine-tuning gets more or fewer epochs, or becomes its probe.",
    )
    seed: int = Field(42, ge=0, description="Decides the folds and everything else drawn.")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps.")
    title: str = Field("training loss", description="Title of loss_curve.png.")
    backbone: BackboneConfig = BackboneConfig()
    preprocess: PreprocessConfig = PreprocessConfig()
    features: FeaturesConfig = FeaturesConfig()
    probe: ProbeConfig = ProbeConfig()
    split: SplitConfig = SplitConfig()
    decisions: DecisionsConfig = DecisionsConfig()
    head: HeadConfig = HeadConfig()
    loss: LossConfig = LossConfig()
    sampler: SamplerConfig = SamplerConfig()
    augment: AugmentConfig = AugmentConfig()
    training: TrainingConfig = TrainingConfig()
    stages: tuple[StageConfig, ...] = Field(
        (StageConfig(),), min_length=1, description="One after the other."
    )
    data: DataConfig = DataConfig()

    def replace(self, changes: Mapping[str, object]) -> Recipe:
        """Return a copy with dotted keys changed and checked.

        Raises:
            RecipeError: An unknown key or a value out of range.

        Example:
            >>> Recipe().replace({"probe.l2": 0.1}).probe.l2
            0.1
        """
        return _checked(_with_changes(self.model_dump(), changes), where="")


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with polytag.

    Example:
        >>> "probe" in recipe_names()
        True
    """
    files = resources.files("polytag").joinpath("recipes").iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def load_recipe(
    name: str | os.PathLike[str] | Recipe, changes: Mapping[str, object] | None = None
) -> Recipe:
    """Load a recipe by name or from a ``.toml`` file, with some keys changed.

    Args:
        name: A name of ``recipe_names()``, the path of a TOML file (a run's ``config.toml`` too),
            or a recipe.
        changes: Dotted keys and values, for example ``{"probe.l2": 0.1}``.

    Raises:
        RecipeError: No such recipe, not TOML, an unknown key, a value out of range.

    Example:
        >>> load_recipe("probe", {"seed": 7}).seed
        7
    """
    if isinstance(name, Recipe):
        return name.replace(changes or {})
    if Path(name).suffix == ".toml":
        try:
            text, where = Path(name).read_text(encoding="utf-8"), str(name)
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(
                "the recipe cannot be read", where=str(name), got=str(error)
            ) from None
    elif str(name) in recipe_names():
        text, where = (resources.files("polytag") / "recipes" / f"{name}.toml").read_text(), ""
    else:
        hint = did_you_mean(str(name), recipe_names())
        fix = f"{hint} (a recipe of your own is given as a path that ends in .toml)"
        raise RecipeError("unknown recipe", got=repr(str(name)), fix=fix)
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError("not TOML", where=where, got=str(error)) from None
    return _checked(_with_changes(tree, changes or {}), where)


def parse_changes(words: Iterable[str]) -> dict[str, object]:
    """Turn ``key=value`` words into changes; the value is read as TOML, else as text.

    Raises:
        RecipeError: A word without ``=``.

    Example:
        >>> parse_changes(["probe.l2=0.1", "backbone.name=resnet18"])
        {'probe.l2': 0.1, 'backbone.name': 'resnet18'}
    """
    changes: dict[str, object] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key.strip():
            raise RecipeError("not a setting", got=repr(word), expected="KEY=VALUE")
        try:
            changes[key.strip()] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            changes[key.strip()] = value.strip()
    return changes


def to_toml(recipe: Recipe, *, explain: bool = True) -> str:
    """Write a recipe whole, every field with its meaning as a comment.

    Example:
        >>> print(to_toml(Recipe(), explain=False).splitlines()[1])
        method = "probe"
    """
    lines: list[str] = []
    sections: list[tuple[str, Section, bool]] = []
    for key, field in type(recipe).model_fields.items():
        value = getattr(recipe, key)
        if key in _OF_FINETUNING and recipe.method != "finetune":
            continue
        if isinstance(value, Section):
            if key != "data" or value != DataConfig():  # a recipe has no data, a run has
                sections.append((f"[{key}]", value, explain))
        elif key == "stages":
            # The fields are explained once.
            sections += [("[[stages]]", stage, explain and not i) for i, stage in enumerate(value)]
        else:
            lines += _toml_entry(key, value, (field.description or "") if explain else "")
    for name, section, explained in sections:
        heading = f"  # {type(section).__doc__}" if explained else ""
        lines += ["", f"{name}{heading}"]
        for key, field in type(section).model_fields.items():
            comment = (field.description or "") if explained else ""
            lines += _toml_entry(key, getattr(section, key), comment)
    return "\n".join(lines) + "\n"


def _toml_entry(key: str, value: object, comment: str) -> list[str]:
    import textwrap  # only printing a recipe needs it

    wrapped = textwrap.wrap(comment, 78, initial_indent="# ", subsequent_indent="# ")
    if isinstance(value, tuple):  # tomli_w would break it over lines
        text = f"[{', '.join(_toml_value(item) for item in value)}]"
    else:
        text = _toml_value(value)
    return [*wrapped, f"{key} = {text}"]


def _toml_value(value: object) -> str:
    return tomli_w.dumps({"k": value}).removeprefix("k = ").rstrip("\n")


def _with_changes(tree: Mapping[str, Any], changes: Mapping[str, object]) -> dict[str, Any]:
    """Return ``tree`` with dotted keys set; what is wrong with a key is told by ``_checked``."""
    changed = copy.deepcopy(dict(tree))
    for dotted, value in changes.items():
        section, _, key = dotted.rpartition(".")
        if not section:
            changed[key] = value
            continue
        for part in _parts(changed, section, dotted):
            part[key] = value
    return changed


def _parts(tree: dict[str, Any], section: str, dotted: str) -> list[dict[str, Any]]:
    """Return what ``section`` names: one section, or with stages.0 and stages.* some stages."""
    name, _, index = section.partition(".")
    if name == "stages":
        stages = tree.setdefault("stages", [StageConfig().model_dump()])
        # As a recipe dumps them, or as TOML has them.
        tree["stages"] = stages = [dict(stage) for stage in stages]
        if index == "*":
            return stages
        if index.isdigit() and int(index) < len(stages):
            return [stages[int(index)]]
        expected = f"stages.*, or stages.0 to stages.{len(stages) - 1}"
        raise RecipeError("no such stage", where=dotted, got=repr(index), expected=expected)
    found = tree.setdefault(name, {})
    if index or not isinstance(found, dict):
        fix = did_you_mean(section, Recipe.model_fields)
        raise RecipeError("not a section", where=dotted, fix=fix)
    return [found]


def _checked(tree: Mapping[str, Any], where: str) -> Recipe:
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as failure:
        raise _explained(failure, where) from None
    default = Recipe()
    for key in _OF_FINETUNING if recipe.method != "finetune" else ():
        if getattr(recipe, key) != getattr(default, key):
            raise RecipeError(
                f"{key} has no effect on method = {recipe.method}",
                where=where,
                fix="take a recipe that fine-tunes: --recipe finetune",
            )
    return recipe


def _explained(failure: ValidationError, where: str) -> RecipeError:
    errors = failure.errors()
    path = [str(part) for part in errors[0]["loc"]]
    if errors[0]["type"] == "extra_forbidden":
        fix = did_you_mean(path[-1], _known_keys(path[:-1]))
        return RecipeError("unknown key", where=where, got=repr(".".join(path)), fix=fix)
    # A union reports one error a member, with the member's name behind the key's own path.
    depth = 3 if path[0] == "stages" else 2 if path[0] in _sections() else 1
    path = path[:depth]
    members = [
        error for error in errors if [str(part) for part in error["loc"]][: len(path)] == path
    ]
    return RecipeError(
        f"{'.'.join(path)} cannot have this value",
        where=where,
        got=repr(errors[0]["input"]),
        expected=" or ".join(error["msg"].removeprefix("Input should be ") for error in members),
    )


def _sections() -> dict[str, type[Section]]:
    return {
        key: field.annotation
        for key, field in Recipe.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
    }


def _known_keys(path: list[str]) -> Iterable[str]:
    if not path:
        return Recipe.model_fields
    return (StageConfig if path[0] == "stages" else _sections()[path[0]]).model_fields
