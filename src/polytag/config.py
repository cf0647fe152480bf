"""Recipes: everything a run can be told, with its default and its meaning, in one place.

A recipe is a TOML file. The ones in ``polytag/recipes/`` and a user's own hold only what differs
from the defaults below; ``polytag recipes NAME`` prints one whole, with every field explained.
A run writes its own as ``config.toml``, with everything resolved.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from polytag.errors import RecipeError, did_you_mean

Auto = Literal["auto"]
Side = Annotated[int, Field(ge=8, le=4096)]
Share = Annotated[float, Field(gt=0, le=1)]
Strength = Annotated[float, Field(gt=0)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class BackboneConfig(_Section):
    """The network that turns a picture into features."""

    name: str = Field(
        "tf_efficientnet_lite0",
        description="Any timm model. The default is small, fast on a CPU and its ImageNet "
        "weights come as a package.",
    )
    weights: str = Field(
        "embedded",
        description="embedded (from the package installed with polytag: no network), hub (timm "
        "downloads them), none (random), or a .safetensors / .pth file.",
    )


class PreprocessConfig(_Section):
    """From a picture of any size to the square the network sees."""

    size: Side | Auto = Field(
        "auto",
        description="Side of the square in pixels; auto: what the weights were trained with.",
    )
    resize: Literal["crop", "squash", "pad"] = Field(
        "crop",
        description="crop: the middle square, as in ImageNet training. squash and pad lose no "
        "border: take them when an attribute can stand at the edge. (Chosen on 1,485 street "
        "photos: macro AP .67 with crop, .61 with squash, .60 with pad.)",
    )
    crop_fraction: Share | Auto = Field(
        "auto",
        description="With resize = crop: the share of the shorter side that is kept; auto: what "
        "the weights were judged with (mostly 0.875).",
    )
    interpolation: Literal["auto", "bilinear", "bicubic", "lanczos"] = Field(
        "auto", description="How pixels are resampled; auto: what the weights were trained with."
    )


class FeaturesConfig(_Section):
    """What is taken from the frozen network."""

    layers: Literal["all", "last"] = Field(
        "all",
        description="all: mean and standard deviation of every stage of a CNN (class token and "
        "patch mean of the last four blocks of a transformer), and the last layer; last: the "
        "last layer alone (macro AP .05 lower where measured).",
    )
    flip: bool = Field(
        True, description="Train on the mirrored picture too. False where left and right differ."
    )
    engine: Literal["auto", "onnxruntime", "torch"] = Field(
        "auto", description="auto: onnxruntime on a CPU, where it is faster, torch else."
    )
    batch: int = Field(32, ge=1, description="Pictures at a time; more gains nothing on a CPU.")


class ProbeConfig(_Section):
    """Logistic regression of all attributes on the frozen features."""

    l2: Strength | Auto = Field(
        "auto",
        description="Strength of the L2 penalty on standardised features; auto: chosen by "
        "log loss inside the training part.",
    )
    l2_grid: tuple[Strength, ...] = Field(
        (300.0, 30.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01),
        min_length=1,
        description="What auto chooses from, strongest first: at 300 hardly more than the base "
        "rates is left, which is right where the pictures show nothing; half decades where the "
        "choice matters.",
    )
    max_iterations: int = Field(200, ge=1, description="Bound on the solver; it needs about 20.")
    tolerance: float = Field(
        1e-6,
        gt=0,
        lt=1,
        description="The solver stops when an attribute's objective falls by less than this "
        "share in an iteration.",
    )


class SplitConfig(_Section):
    """How rows are held out, so that every number is measured on rows that chose nothing."""

    folds: int = Field(
        5,
        ge=3,
        le=50,
        description="Each picture is predicted by a model trained on the other folds. At least "
        "3: two to choose in, one to judge.",
    )


class DataConfig(_Section):
    """Where a run's data came from; written by a run, so that its config.toml can repeat it."""

    labels: str = Field("", description="The label table.")
    images: str = Field("", description="The folder of pictures.")
    attributes: tuple[str, ...] = Field((), description="As given with --attributes.")
    ignore: tuple[str, ...] = Field((), description="As given with --ignore.")
    values: str = Field("", description="As given with --values.")
    image_column: str = Field("", description="As given with --image-column.")


class Recipe(_Section):
    """Everything a run can be told.

    Example:
        >>> Recipe(seed=7).split.folds
        5
    """

    description: str = Field("", description="One line for `polytag recipes`.")
    method: Literal["probe"] = Field("probe", description="What is trained.")
    seed: int = Field(42, ge=0, description="Decides the folds and everything else drawn.")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps.")
    threshold: float = Field(
        0.5, gt=0, lt=1, description="An attribute is present from this probability on."
    )
    title: str = Field("training loss", description="Title of loss_curve.png.")
    backbone: BackboneConfig = BackboneConfig()
    preprocess: PreprocessConfig = PreprocessConfig()
    features: FeaturesConfig = FeaturesConfig()
    probe: ProbeConfig = ProbeConfig()
    split: SplitConfig = SplitConfig()
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
    sections: list[tuple[str, _Section]] = []
    for key, field in type(recipe).model_fields.items():
        value = getattr(recipe, key)
        if isinstance(value, _Section):
            if key != "data" or value != DataConfig():  # a recipe has no data, a run has
                sections.append((key, value))
        else:
            lines += _toml_entry(key, value, (field.description or "") if explain else "")
    for name, section in sections:
        heading = f"  # {type(section).__doc__}" if explain else ""
        lines += ["", f"[{name}]{heading}"]
        for key, field in type(section).model_fields.items():
            comment = (field.description or "") if explain else ""
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
    changed = {key: dict(v) if isinstance(v, Mapping) else v for key, v in tree.items()}
    for dotted, value in changes.items():
        section, _, key = dotted.rpartition(".")
        if not section:
            changed[key] = value
        elif isinstance(changed.setdefault(section, {}), dict):
            changed[section][key] = value
        else:
            raise RecipeError(
                "not a section", where=dotted, fix=did_you_mean(section, Recipe.model_fields)
            )
    return changed


def _checked(tree: Mapping[str, Any], where: str) -> Recipe:
    try:
        return Recipe.model_validate(tree)
    except ValidationError as failure:
        errors = failure.errors()
    path = [str(part) for part in errors[0]["loc"]]
    if errors[0]["type"] == "extra_forbidden":
        fix = did_you_mean(path[-1], _known_keys(path[:-1]))
        raise RecipeError("unknown key", where=where, got=repr(".".join(path)), fix=fix)
    # A union reports one error a member, with the member's name behind the key's own path.
    depth = 2 if path[0] in _sections() and len(path) > 1 else 1
    members = [
        error for error in errors if [str(part) for part in error["loc"]][:depth] == path[:depth]
    ]
    raise RecipeError(
        f"{'.'.join(path[:depth])} cannot have this value",
        where=where,
        got=repr(errors[0]["input"]),
        expected=" or ".join(error["msg"].removeprefix("Input should be ") for error in members),
    )


def _sections() -> dict[str, type[_Section]]:
    return {
        key: field.annotation
        for key, field in Recipe.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, _Section)
    }


def _known_keys(path: list[str]) -> Iterable[str]:
    return _sections()[path[0]].model_fields if path else Recipe.model_fields
