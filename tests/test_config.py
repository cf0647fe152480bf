"""Recipes: defaults in one place, every key checked, and what is written reads back the same."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from polytag.config import (
    DataConfig,
    DecisionsConfig,
    Recipe,
    SplitConfig,
    StageConfig,
    load_recipe,
    parse_changes,
    recipe_names,
    to_toml,
)
from polytag.errors import RecipeError, UserError


def fields(model: type[BaseModel], before: str = "") -> dict[str, str | None]:
    """Every dotted key of a recipe and its description; sections themselves are left out."""
    found: dict[str, str | None] = {}
    for key, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found |= fields(field.annotation, f"{before}{key}.")
        elif key == "stages":
            found |= fields(StageConfig, f"{before}{key}.")
        else:
            found[before + key] = field.description
    return found


KEYS = fields(Recipe)


def refusal(key: str, value: object) -> str:
    with pytest.raises(RecipeError) as caught:
        Recipe().replace({key: value})
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -------------------------------------------------------------------------------- what is shipped


def test_every_shipped_recipe_loads_and_says_in_a_line_what_it_is():
    assert "probe" in recipe_names()
    for name in recipe_names():
        words = load_recipe(name).description
        assert words and len(words) <= 100 and "\n" not in words


@pytest.mark.parametrize("key", KEYS)
def test_every_key_says_what_it_means(key):
    assert KEYS[key] and KEYS[key].strip()


def test_a_printed_recipe_holds_every_key_each_below_its_meaning():
    lines = to_toml(load_recipe("finetune")).splitlines()
    for dotted, meaning in KEYS.items():
        section, _, key = dotted.rpartition(".")
        if section == "data":
            continue  # a recipe has no data, only a run has
        start = (
            next(
                i
                for i, line in enumerate(lines)
                if line.startswith((f"[{section}]", f"[[{section}]]"))
            )
            if (section)
            else 0
        )
        at = next(i for i, line in enumerate(lines) if i >= start and line.startswith(f"{key} = "))
        comment = []
        while lines[at - 1].startswith("#"):
            at -= 1
            comment.insert(0, lines[at].removeprefix("# "))
        assert " ".join(comment) == meaning


def test_a_printed_probe_holds_no_field_that_only_a_network_has():
    sections = [line for line in to_toml(load_recipe("probe")).splitlines() if line[:1] == "["]
    assert [line.split("]")[0].strip("[") for line in sections] == [
        *("backbone", "preprocess", "features", "probe", "split", "decisions"),
    ]


@pytest.mark.parametrize(
    ("key", "value"), [("loss.name", "focal"), ("stages.0.epochs", 3), ("training.batch", 8)]
)
def test_a_field_without_effect_is_refused(key, value):
    with pytest.raises(RecipeError, match=f"{key.split('.')[0]} has no effect on method = probe"):
        load_recipe("probe", {key: value})


def test_one_stage_or_all_of_them_can_be_changed():
    changed = load_recipe(
        "efficientnet-b0-two-stage", {"stages.*.epochs": 2, "stages.1.lr": 1e-5}
    ).stages
    assert [stage.epochs for stage in changed] == [2, 2]
    assert [stage.lr for stage in changed] == [1e-3, 1e-5]


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("stages.2.lr", "no such stage; got '2', expected stages.*, or stages.0 to stages.1"),
        ("stages.first.lr", "no such stage"),
        ("stages.0.learning_rate", "unknown key; got 'stages.0.learning_rate'"),
        ("stages.lr", "no such stage"),
    ],
)
def test_a_stage_that_is_not_there_is_refused(key, message):
    with pytest.raises(RecipeError) as caught:
        load_recipe("efficientnet-b0-two-stage", {key: 1})
    assert message in str(caught.value)


def test_the_meanings_in_a_printed_recipe_fit_a_terminal():
    lines = to_toml(load_recipe("probe")).splitlines()
    assert max(len(line) for line in lines if line.startswith("#")) <= 80


def test_a_recipe_without_data_prints_no_data_and_one_with_data_prints_it():
    assert "[data]" not in to_toml(Recipe())
    assert "[data]" in to_toml(Recipe(data=DataConfig(labels="labels.csv")))


# ------------------------------------------------------------------------------------- round trip

texts = st.text(max_size=30)
recipes = st.builds(
    Recipe,
    title=texts,
    description=texts,
    seed=st.integers(0, 2**63 - 1),
    decisions=st.builds(
        DecisionsConfig,
        target=st.floats(0, 1, exclude_min=True, exclude_max=True) | texts,
        max_error=st.floats(0, 0.5, exclude_max=True),
        confidence=st.floats(0.5, 1, exclude_min=True, exclude_max=True),
    ),
    split=st.builds(
        SplitConfig, holdout=st.just("folds") | st.floats(0, 0.9), group_by=texts, given=texts
    ),
    data=st.builds(DataConfig, labels=texts, attributes=st.lists(texts, max_size=4).map(tuple)),
)


@settings(deadline=None, max_examples=60)
@given(recipe=recipes, explain=st.booleans())
@example(recipe=Recipe(title="[ no list, ]"), explain=False)
@example(recipe=Recipe(title="two\nlines\x85\u2028of it"), explain=False)
@example(recipe=Recipe(data=DataConfig(ignore=("[ a", "b, ]", "c,\n   d"))), explain=True)
def test_what_is_written_reads_back_the_same(recipe, explain):
    assert Recipe.model_validate(tomllib.loads(to_toml(recipe, explain=explain))) == recipe


def test_a_written_recipe_is_a_recipe_of_ones_own(tmp_path):
    recipe = load_recipe("probe", {"probe.l2": 0.25, "preprocess.size": 64, "split.folds": 7})
    (tmp_path / "mine.toml").write_text(to_toml(recipe), encoding="utf-8")
    assert load_recipe(tmp_path / "mine.toml") == recipe
    assert load_recipe(str(tmp_path / "mine.toml")) == recipe


def test_a_recipe_of_ones_own_holds_only_what_differs(tmp_path):
    (tmp_path / "mine.toml").write_text("[probe]\nl2 = 3\n")
    assert load_recipe(tmp_path / "mine.toml") == Recipe().replace({"probe.l2": 3.0})


def test_changes_win_over_the_file_and_leave_the_rest_of_a_section(tmp_path):
    (tmp_path / "mine.toml").write_text("seed = 1\n[probe]\nl2 = 3\nmax_iterations = 9\n")
    recipe = load_recipe(tmp_path / "mine.toml", {"probe.l2": 0.5, "seed": 2})
    assert (recipe.seed, recipe.probe.l2, recipe.probe.max_iterations) == (2, 0.5, 9)


def test_a_recipe_does_not_change_and_a_changed_one_is_another():
    recipe = Recipe()
    changed = recipe.replace({"probe.l2": 0.1})
    assert (recipe.probe.l2, changed.probe.l2) == ("auto", 0.1)
    with pytest.raises(ValidationError, match="frozen"):
        recipe.seed = 3
    with pytest.raises(ValidationError, match="frozen"):
        recipe.probe.l2 = 3.0


def test_a_recipe_itself_can_be_given_with_changes():
    assert load_recipe(Recipe(seed=3)).seed == 3
    assert load_recipe(Recipe(seed=3), {"seed": 4}).seed == 4


# ------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("sed", "did you mean 'seed'?"),
        ("probe.l2_gird", "did you mean 'l2_grid'?"),
        ("threshold", "known: augment, backbone, budget, data"),
        ("decisions.threshold", "known: calibrate, confidence, max_error, target"),
        ("probe.l3", "known: l2, l2_grid, max_iterations"),
        ("backbone.weight", "did you mean 'weights'?"),
        ("prob.l2", "did you mean 'probe'?"),
        ("data.label", "did you mean 'labels'?"),
        ("zzz", "known: augment, backbone, budget, data, decisions"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(key, hint):
    message = refusal(key, 1)
    assert "unknown key" in message and hint in message
    assert repr(key) in message or repr(key.partition(".")[0]) in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", -1),
        ("seed", 1.5),
        ("decisions.calibrate", "isotonic"),
        ("decisions.target", 0),
        ("decisions.target", 1),
        ("decisions.target", float("nan")),
        ("decisions.max_error", -0.1),
        ("decisions.max_error", 0.5),
        ("decisions.confidence", 0.5),
        ("decisions.confidence", 1),
        ("method", "magic"),
        ("backbone.name", 3),
        ("preprocess.size", 7),
        ("preprocess.size", 4097),
        ("preprocess.size", "big"),
        ("preprocess.resize", "fit"),
        ("preprocess.crop_fraction", 0),
        ("preprocess.crop_fraction", 1.01),
        ("preprocess.interpolation", "nearest"),
        ("features.layers", "first"),
        ("features.flip", "perhaps"),
        ("features.engine", "tensorflow"),
        ("features.batch", 0),
        ("probe.l2", 0),
        ("probe.l2", -0.1),
        ("probe.l2", float("inf")),
        ("probe.l2", "weak"),
        ("probe.l2_grid", []),
        ("probe.l2_grid", [1.0, 0.0]),
        ("probe.max_iterations", 0),
        ("probe.tolerance", 0),
        ("probe.tolerance", 1),
        ("split.folds", 2),
        ("split.folds", 51),
        ("split.folds", "five"),
        ("split.holdout", "parts"),
        ("split.holdout", 0.91),
        ("split.holdout", -0.1),
        ("split.group_by", 3),
        ("split.given", ["fold"]),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_key_and_what_was_expected(key, value):
    message = refusal(key, value)
    assert message.startswith(f"{key} cannot have this value; got ")
    assert "expected " in message


def test_a_choice_lists_what_can_be_chosen():
    message = refusal("preprocess.resize", "fit")
    assert all(choice in message for choice in ("'crop'", "'squash'", "'pad'"))


def test_a_value_that_can_be_a_number_or_auto_says_both():
    message = refusal("preprocess.size", 7)
    assert "greater than or equal to 8" in message and "'auto'" in message


@pytest.mark.parametrize("key", ["title.size", "seed.of.it"])
def test_a_key_inside_something_that_is_no_section_is_refused(key):
    with pytest.raises(RecipeError):
        Recipe().replace({key: 1})


def test_a_section_cannot_be_a_number():
    assert refusal("probe", 3).startswith("probe cannot have this value")


def test_a_mistake_in_a_file_names_the_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[probe]\nl3 = 1\n")
    with pytest.raises(RecipeError, match=r"mine\.toml: unknown key; got 'probe\.l3'; known: l2"):
        load_recipe(path)
    path.write_text("[probe]\nl2 = -1\n")
    with pytest.raises(RecipeError, match=r"mine\.toml: probe\.l2 cannot have this value"):
        load_recipe(path)


@pytest.mark.parametrize("content", [b"seed 42", b"[probe", b"\xff\xfe\x00", b"seed = 1\nseed = 2"])
def test_a_file_that_is_not_toml_is_one_line_that_names_it(tmp_path, content):
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=r"mine\.toml") as caught:
        load_recipe(path)
    assert "\n" not in str(caught.value)


def test_a_recipe_file_that_is_missing_or_a_folder_is_refused(tmp_path):
    (tmp_path / "folder.toml").mkdir()
    for name in ("none.toml", "folder.toml"):
        with pytest.raises(RecipeError, match=f"{name}: the recipe cannot be read"):
            load_recipe(tmp_path / name)


def test_an_unknown_recipe_names_the_nearest_and_how_to_give_ones_own():
    with pytest.raises(UserError, match=r"'prob'.*did you mean 'probe'.*ends in \.toml"):
        load_recipe("prob")


# ---------------------------------------------------------------------------------- KEY=VALUE


@pytest.mark.parametrize(
    ("word", "key", "value"),
    [
        ("probe.l2=0.1", "probe.l2", 0.1),
        ("probe.l2 = auto", "probe.l2", "auto"),
        ("features.flip=false", "features.flip", False),
        ("split.folds=10", "split.folds", 10),
        ("title=a = b", "title", "a = b"),
        ("title=", "title", ""),
        ('title="7"', "title", "7"),
        ("probe.l2_grid=[1.0, 0.1]", "probe.l2_grid", [1.0, 0.1]),
        ("backbone.name=resnet18.a1_in1k", "backbone.name", "resnet18.a1_in1k"),
        ("backbone.weights=/data/my weights.pth", "backbone.weights", "/data/my weights.pth"),
    ],
)
def test_a_setting_is_read_as_toml_else_as_text(word, key, value):
    changes = parse_changes([word])
    assert changes == {key: value} and type(changes[key]) is type(value)


@pytest.mark.parametrize("word", ["seed", "=3", " =3", ""])
def test_a_setting_without_a_key_or_a_value_is_refused(word):
    with pytest.raises(RecipeError, match="KEY=VALUE"):
        parse_changes([word])


def test_a_later_setting_wins():
    assert parse_changes(["seed=1", "seed=2"]) == {"seed": 2}
