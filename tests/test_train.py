"""Training from end to end: what a run leaves, that it is honest, and that it can be repeated."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.metrics import average_precision_score, f1_score, log_loss, roc_auc_score

import polytag
from polytag import plots
from polytag.backbone import load_backbone
from polytag.config import DecisionsConfig, load_recipe
from polytag.errors import SkippedError, UserError
from polytag.images import content_hash
from polytag.rechoose import choose_anew
from polytag.results import METRICS
from polytag.runs import Run
from polytag.table import LabelTable

from .conftest import ATTRIBUTES, LEARNT, TINY, World

# Quick, where it does not matter how well it learns: 4 fits of one penalty instead of 16 paths.
QUICK = {"split.folds": 3, "probe.l2": 1.0}


@pytest.fixture
def no_plots(monkeypatch) -> None:
    """Drawing takes half of a tiny run's time."""
    monkeypatch.setattr(plots, "loss_curve", lambda history, title, path: path.touch())
    monkeypatch.setattr(plots, "sample_predictions", lambda samples, names, path: path.touch())


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def splits_of(run: Run) -> dict[str, dict[str, str]]:
    return {row["image"]: row for row in rows_of(run.path / "splits.csv")}


def out_of_fold(run: Run) -> pl.DataFrame:
    return pl.read_parquet(run.path / "oof.parquet")


def by_attribute(run: Run) -> dict[str, Any]:
    return {entry["name"]: entry for entry in run.metrics["attributes"]}


def strict_json(path: Path) -> Any:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


# ------------------------------------------------------------------------------ what a run leaves


def test_a_run_folder_is_complete_and_holds_nothing_else(run):
    assert sorted(path.name for path in run.path.iterdir()) == [
        "README.md",
        "choosing.parquet",
        "config.toml",
        "history.csv",
        "labels.parquet",
        "loss_curve.png",
        "metrics.json",
        "model.onnx",
        "oof.parquet",
        "report.html",
        "sample_predictions.png",
        "skipped.csv",
        "splits.csv",
        "weights.safetensors",
    ]
    assert all(path.stat().st_size > 50 for path in run.path.iterdir())
    assert (run.path.parent / "latest").resolve() == run.path.resolve()


def test_splits_hold_every_used_picture_with_its_content_its_group_and_its_fold(run, world):
    splits = splits_of(run)
    assert list(splits) == world.good
    for name, row in splits.items():
        assert row["content_hash"] == content_hash(world.path(name))
        assert list(row) == ["image", "content_hash", "alike", "group", "fold"]
    assert {row["fold"] for row in splits.values()} == set("01234")


def test_identical_pictures_stay_in_one_fold_even_with_conflicting_labels(run, world):
    splits = splits_of(run)
    first = splits[world.names[0]]
    assert (splits["twin.png"]["group"], splits["twin.png"]["fold"]) == (
        first["group"],
        first["fold"],
    )
    # Nothing but the twin looks like another picture, and no column groups them.
    for column in ("alike", "group"):
        assert len({row[column] for row in splits.values()}) == len(splits) - 1
    assert run.metrics["groups"] == {
        "count": len(splits) - 1,
        "identical": {"groups": 1, "rows": 2},
        "alike": {"groups": 1, "rows": 2},
        "by": None,
    }
    folds: dict[str, set[str]] = {}
    for row in splits.values():
        folds.setdefault(row["content_hash"], set()).add(row["fold"])
    assert all(len(each) == 1 for each in folds.values())


def test_every_fold_has_present_and_absent_cells_of_every_learnt_attribute(run, world):
    splits = splits_of(run)
    fold = np.array([int(splits[name]["fold"]) for name in world.good])
    values = world.values[: len(world.good), :3]
    for k in range(3):
        for wanted in (0, 1):
            counts = np.bincount(fold[values[:, k] == wanted], minlength=5)
            assert counts.min() >= 1 and np.ptp(counts) <= 4


def test_out_of_fold_predictions_hold_every_picture_and_learnt_attribute_once(run, world):
    table = out_of_fold(run)
    assert table.columns == [
        "image",
        "attribute",
        "truth",
        "probability_raw",
        "probability_calibrated",
        "fold",
        "threshold",
    ]
    assert len(table) == len(world.good) * 3
    pairs = list(zip(table["image"], table["attribute"], strict=True))
    assert pairs == [(name, attribute) for name in world.good for attribute in LEARNT]
    truth = table["truth"].to_numpy().reshape(-1, 3)
    np.testing.assert_array_equal(truth, world.values[: len(world.good), :3])
    assert table["truth"].null_count() == np.isnan(world.values[: len(world.good), :3]).sum()
    for column in ("probability_raw", "probability_calibrated", "threshold"):
        assert table[column].dtype == pl.Float64 and table[column].is_between(0, 1).all()
    splits = splits_of(run)
    assert table["fold"].to_list() == [int(splits[image]["fold"]) for image, _ in pairs]
    # A fold's rows are decided by thresholds of their own, one an attribute.
    thresholds = table.select("fold", "attribute", "threshold").unique()
    assert len(thresholds) == 5 * 3 and thresholds["threshold"].n_unique() > 3


def test_what_is_known_of_every_row_is_kept(run, world):
    table = pl.read_parquet(run.path / "labels.parquet")
    assert table.columns == ["image", "attribute", "truth"]
    pairs = list(zip(table["image"], table["attribute"], strict=True))
    assert pairs == [(name, attribute) for name in world.good for attribute in ATTRIBUTES]
    truth = table["truth"].cast(pl.Float64).to_numpy().reshape(-1, 5)
    np.testing.assert_array_equal(truth, world.values[: len(world.good)])
    assert table["truth"].null_count() == np.isnan(world.values[: len(world.good)]).sum()


def test_what_thresholds_are_chosen_by_is_kept_and_none_of_it_is_the_fold_they_judge(run, world):
    table = pl.read_parquet(run.path / "choosing.parquet")
    assert table.columns == ["image", "attribute", "fold", "probability"]
    assert table["probability"].is_between(0, 1).all()
    fold_of = {image: int(row["fold"]) for image, row in splits_of(run).items()}
    for fold in (*range(5), None):
        rows = table.filter(pl.col("fold").eq_missing(fold))
        pairs = list(zip(rows["image"], rows["attribute"], strict=True))
        others = [name for name in world.good if fold_of[name] != fold]
        assert pairs == [(name, attribute) for name in others for attribute in LEARNT]
    assert len(table) == (4 + 1) * len(world.good) * 3


def test_a_folds_probabilities_are_the_raw_ones_calibrated_without_it(run):
    table = out_of_fold(run)
    for fold in range(5):
        for name in LEARNT:
            cells = table.filter(pl.col("fold") == fold, pl.col("attribute") == name)
            raw, calibrated = (
                cells[f"probability_{kind}"].to_numpy() for kind in ("raw", "calibrated")
            )
            order = np.argsort(raw)
            assert (np.diff(calibrated[order]) >= 0).all()  # no order within a fold moves
    assert (table["probability_raw"] - table["probability_calibrated"]).abs().max() > 0.01


def test_skipped_pictures_are_listed_with_their_line_and_their_reason(run, world):
    missing, broken = rows_of(run.path / "skipped.csv")
    assert missing["image"] == "missing.png" and "no such file" in missing["reason"]
    assert broken["image"] == "broken.png" and "PNG" in broken["reason"]
    # The header is line 1.
    assert missing["where"] == f"{world.labels}:{world.names.index('missing.png') + 2}"
    assert broken["where"] == f"{world.labels}:{world.names.index('broken.png') + 2}"
    assert (run.metrics["rows"], run.metrics["skipped"]) == (len(world.good), 2)


def test_the_history_is_the_solvers_loss_iteration_by_iteration(run):
    history = rows_of(run.path / "history.csv")
    assert list(history[0]) == ["iteration_number", "training_loss", "lr", "stage"]
    numbers = [int(row["iteration_number"]) for row in history]
    assert numbers == list(range(numbers[0], numbers[0] + len(history))) and numbers[0] in (0, 1)
    losses = [float(row["training_loss"]) for row in history]
    assert len(losses) > 3 and losses[-1] < 0.7 * losses[0] and min(losses) > 0
    assert losses[0] <= np.log(2) * 1.05  # no worse than a guess
    assert {row["stage"] for row in history} == {"probe"}
    assert {row["lr"] for row in history} == {""}


def test_the_config_has_everything_resolved_that_data_does_not_decide(run, world):
    recipe = load_recipe(run.path / "config.toml")
    text = (run.path / "config.toml").read_text(encoding="utf-8")
    autos = [line.partition(" =")[0] for line in text.splitlines() if line.endswith('= "auto"')]
    assert autos == ["l2", "calibrate"]
    assert recipe.decisions == DecisionsConfig()
    assert (recipe.device, recipe.features.engine, recipe.seed) == ("cpu", "onnxruntime", 42)
    assert (recipe.preprocess.size, recipe.preprocess.interpolation) == (32, "bilinear")
    assert recipe.data.labels == str(world.labels) and recipe.data.images == str(world.images)
    assert recipe.title == "A drawn world"


def test_the_card_says_what_how_well_and_what_not(run):
    card = (run.path / "README.md").read_text(encoding="utf-8")
    assert card.startswith("# A drawn world\n")
    ap = run.metrics["macro"]["ap"]
    interval = f"[{ap['low']:.3f}, {ap['high']:.3f}]"
    assert f"**Macro AP {ap['value']:.3f} {interval} ({ap['chance']:.3f})**, over 3 of 5" in card
    for entry in run.metrics["attributes"]:
        assert f"\n| {entry['name']} | {entry['verdict'] or '-'} | {entry['present']} |" in card
    assert "calibrated on predictions of rows not trained on; thresholds: f1." in card
    assert "Unsure" not in card
    assert "- always: one class only" in card and "- never said: no known cell" in card
    assert "polytag predict" in card and "licence" in card


@pytest.mark.parametrize("name", ["loss_curve.png", "sample_predictions.png"])
def test_the_pictures_of_a_run_are_pictures(run, name):
    with Image.open(run.path / name) as image:
        image.load()
        assert min(image.size) > 300 and len(set(image.convert("L").get_flattened_data())) > 50


def test_the_weights_hold_the_network_its_normalisation_and_the_head(run):
    state = load_file(run.path / "weights.safetensors")
    assert state["head.linear.weight"].shape == (3, 896) and state["head.linear.bias"].shape == (3,)
    assert {"backbone.mean", "backbone.std"} < set(state)
    assert all(torch.isfinite(tensor).all() for tensor in state.values())


# ---------------------------------------------------------------------------------- its numbers


def test_metrics_are_json_with_null_for_what_is_not_known(run):
    metrics = strict_json(run.path / "metrics.json")
    assert metrics == run.metrics
    assert [entry["name"] for entry in metrics["attributes"]] == list(ATTRIBUTES)
    for entry in metrics["attributes"]:
        learnt = entry["name"] in LEARNT
        if learnt:
            assert entry["verdict"].startswith("learnable")
            assert 0 < entry["p_value"] <= entry["p_holm"] <= 0.05
        else:
            assert entry["verdict"].startswith("too few to tell") and entry["p_value"] is None
        for metric in METRICS:
            assert {"value", "low", "high", "chance", "reason"} == set(entry[metric])
            value, low, high = (entry[metric][part] for part in ("value", "low", "high"))
            assert [value is None, low is None, high is None] == [not learnt] * 3
            assert not learnt or 0 <= low <= value <= high <= 1
            assert (entry[metric]["chance"] is None) == (not learnt)
        chosen = metrics["decisions"]["attributes"].get(entry["name"])
        assert (chosen is not None) == learnt
        if learnt:
            told = [entry[f"threshold{end}"] for end in ("", "_low", "_high")]
            assert told == [chosen["threshold"], chosen["low"], chosen["high"]]
            assert told[1] <= told[0] <= told[2]
    assert {key: metrics["decisions"][key] for key in DecisionsConfig.model_fields} == {
        "calibrate": "auto",
        "target": "f1",
        "max_error": 0.0,
        "confidence": 0.9,
    }
    assert set(metrics["calibration"]) == set(LEARNT)
    assert metrics["over"] == metrics["macro"]["ap"]["over"] == "3 of 5 attributes"
    assert set(metrics["macro"]["ap"]["missing"]) == {"always", "never said"}
    assert metrics["deployed"] == "refitted on all rows"
    assert metrics["folds"] == 5 and len(metrics["l2_of_fold"]) == 5


def test_an_attribute_that_cannot_be_learnt_has_null_metrics_and_the_reason(run):
    entries = by_attribute(run)
    assert "one class only" in entries["always"]["ap"]["reason"]
    assert "no known cell" in entries["never said"]["ap"]["reason"]
    counts = {k: entries["never said"][k] for k in ("present", "absent", "na")}
    assert counts == {"present": 0, "absent": 0, "na": 60}


def test_metrics_are_those_of_the_out_of_fold_predictions_pooled(run):
    p = pl.col("probability_calibrated")
    logit = (p / (1 - p)).log()
    # Folds are ranked together by how far a logit lies above its fold's mean.
    above = (logit - logit.mean().over("attribute", "fold")).alias("rank")
    known = out_of_fold(run).with_columns(above).filter(pl.col("truth").is_not_null())
    entries = by_attribute(run)
    values = []
    for name in LEARNT:
        rows = known.filter(pl.col("attribute") == name)
        truth, p = rows["truth"].to_numpy(), rows["probability_calibrated"].to_numpy()
        rank = rows["rank"].to_numpy()
        decided = p >= rows["threshold"].to_numpy()
        entry = entries[name]
        assert entry["ap"]["value"] == pytest.approx(average_precision_score(truth, rank))
        assert entry["ap"]["chance"] == pytest.approx(truth.mean())
        assert entry["auc"]["value"] == pytest.approx(roc_auc_score(truth, rank))
        assert entry["f1"]["value"] == pytest.approx(f1_score(truth, decided))
        assert entry["accuracy"]["value"] == pytest.approx((truth == decided).mean())
        assert entry["brier"]["value"] == pytest.approx(((truth - p) ** 2).mean())
        assert entry["present"] == truth.sum() and entry["absent"] == (1 - truth).sum()
        values.append(entry["ap"]["value"])
    assert run.metrics["macro"]["ap"]["value"] == pytest.approx(np.mean(values))
    p, truth = known["probability_calibrated"].to_numpy(), known["truth"].to_numpy()
    right = truth == (p >= known["threshold"].to_numpy())
    assert run.metrics["log_loss"]["value"] == pytest.approx(log_loss(truth, p))
    assert run.metrics["hamming"]["value"] == pytest.approx(right.mean())


def test_what_pixels_decide_is_learnt(run):
    for name in LEARNT:
        assert by_attribute(run)[name]["auc"]["value"] > 0.9


# ---------------------------------------------------------------------------------- it is honest


def with_values(table: LabelTable, values: np.ndarray) -> LabelTable:
    return LabelTable(table.images, table.attributes, values, lines=table.lines)


@pytest.mark.parametrize("fold", [0, 3])
def test_no_label_of_a_fold_has_a_say_in_the_predictions_of_that_fold(
    run, world, train, tmp_path, monkeypatch, no_plots, fold
):
    splits, before = splits_of(run), out_of_fold(run)
    folds = np.array([int(row["fold"]) for row in splits.values()])
    monkeypatch.setattr("polytag.probe.stratified_folds", lambda *_, **__: folds)
    table = world.table()
    values = np.array(table.values)
    inside = [table.images.index(name) for name, row in splits.items() if int(row["fold"]) == fold]
    learnt = np.ix_(inside, range(len(LEARNT)))
    values[learnt] = 1 - values[learnt]  # all known labels of that fold
    after = out_of_fold(train(tmp_path, table=with_values(table, values)))

    def p(frame: pl.DataFrame, same: bool) -> np.ndarray:
        chosen = frame.filter((pl.col("fold") == fold) == same)
        return chosen["probability_raw"].to_numpy()

    assert p(before, True).tobytes() == p(after, True).tobytes()
    assert np.abs(p(before, False) - p(after, False)).max() > 0.01


def test_what_stands_under_a_hole_cannot_matter_as_it_is_not_stored(
    run, world, train, tmp_path, no_plots
):
    # The one thing that can differ under a hole is which of the many NaN it is.
    table = world.table()
    bits = np.array(table.values).view(np.uint32)
    holes = np.isnan(table.values)
    bits[holes] = np.resize(np.array([0x7FC00000, 0xFFC00001, 0x7FC12345], np.uint32), holes.sum())
    again = train(tmp_path, {"title": "A drawn world"}, table=with_values(table, bits.view("f4")))
    for name in ("weights.safetensors", "oof.parquet", "splits.csv", "model.onnx"):
        assert (again.path / name).read_bytes() == (run.path / name).read_bytes(), name


def test_rows_without_a_known_cell_change_no_number_of_the_others(world, train, tmp_path, no_plots):
    table = world.table()
    values = np.array(table.values)
    values[5:12] = np.nan
    run = train(tmp_path, QUICK, table=with_values(table, values))
    assert len(splits_of(run)) == len(world.good)
    predicted = out_of_fold(run).filter(pl.col("image") == table.images[7])
    assert predicted["truth"].null_count() == 3 and predicted["probability_raw"].is_finite().all()
    assert by_attribute(run)["red"]["na"] >= 7


def test_a_table_without_holes_trains_too(world, train, tmp_path, no_plots):
    table = LabelTable(world.names, LEARNT, world.truth[:, :3])
    run = train(tmp_path, QUICK, table=table)
    assert run.metrics["over"] == "3 of 3 attributes"
    assert out_of_fold(run)["truth"].null_count() == 0


def test_an_attribute_that_loses_its_last_class_with_a_broken_picture_is_left_out_and_said(
    world, train, tmp_path, no_plots, caplog
):
    table = world.table()
    rare = np.array(table.values[:, [0, 0]])
    rare[:, 1] = 0
    rare[world.names.index("broken.png"), 1] = 1
    table = LabelTable(table.images, ("red", "rare"), rare)
    assert table.warnings == ()
    with caplog.at_level("WARNING", "polytag"):
        run = train(tmp_path, QUICK, table=table)
    assert polytag.load(run).info.attributes == ("red",)
    assert by_attribute(run)["rare"]["ap"]["value"] is None
    assert "one class only: 60 absent" in by_attribute(run)["rare"]["ap"]["reason"]
    assert "rare" in caplog.text


# ----------------------------------------------------------------------------- it can be repeated


def test_the_same_seed_gives_the_same_run_bit_for_bit_from_an_empty_cache(
    run, train, tmp_path, monkeypatch
):
    monkeypatch.setenv("POLYTAG_CACHE", str(tmp_path / "cache"))
    again = train(tmp_path / "runs", {"title": "A drawn world"})
    assert again.path.name == "probe-1"
    same = {path.name for path in run.path.iterdir()} - {"metrics.json", "report.html"}
    for name in sorted(same):
        assert (again.path / name).read_bytes() == (run.path / name).read_bytes(), name
    assert dict(again.metrics) | {"seconds": 0} == dict(run.metrics) | {"seconds": 0}
    pages = [(each.path / "report.html").read_text(encoding="utf-8") for each in (run, again)]
    times = [f"<dt>seconds</dt><dd>{each.metrics['seconds']:g}</dd>" for each in (run, again)]
    assert "probe-1" in pages[1] and times[1] in pages[1]  # name and time are all that differs
    assert pages[1].replace("probe-1", "first").replace(times[1], times[0]) == pages[0]


def test_another_seed_gives_other_folds(run, train, tmp_path, no_plots):
    other = train(tmp_path, {"seed": 43} | QUICK, name="other")
    same = train(tmp_path, QUICK, name="same")
    folds = [[row["fold"] for row in splits_of(each).values()] for each in (other, same)]
    assert folds[0] != folds[1]


def test_a_runs_config_retrains_the_same_model(run, world, tmp_path, no_plots):
    again = polytag.fit(
        polytag.read_table(world.labels),
        world.images,
        recipe=run.path / "config.toml",
        folder=tmp_path,
    )
    for name in ("model.onnx", "weights.safetensors", "config.toml", "oof.parquet", "splits.csv"):
        assert (again.path / name).read_bytes() == (run.path / name).read_bytes(), name


def test_a_config_finds_its_weights_file_again_from_another_folder(
    run, world, tmp_path, monkeypatch, no_plots
):
    recipe = load_recipe(run.path / "config.toml")
    network = load_backbone(recipe.backbone, recipe.preprocess, recipe.features).network
    save_file(dict(network.state_dict()), tmp_path / "mine.safetensors")
    monkeypatch.chdir(tmp_path)
    changes = TINY | QUICK | {"backbone.weights": "mine.safetensors"}
    mine = polytag.fit(world.table(), world.images, folder=tmp_path / "runs", changes=changes)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    recipe = load_recipe(mine.path / "config.toml")
    again = load_backbone(recipe.backbone, recipe.preprocess, recipe.features).network
    assert torch.equal(again.conv1[0].weight, network.conv1[0].weight)
    assert str(tmp_path).encode() not in (mine.path / "model.onnx").read_bytes()


def test_training_again_needs_no_picture_computed_again(
    run, train, tmp_path, monkeypatch, no_plots
):
    def refuse(*_: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr("polytag.graph.export_backbone", refuse)
    assert load_recipe(run.path / "config.toml").backbone.name == "test_resnet"
    monkeypatch.setattr("polytag.features.resized", refuse)
    train(tmp_path, QUICK, max_skipped=0.1)


# ------------------------------------------------------------------------------- what it refuses


@pytest.fixture
def no_training(monkeypatch) -> None:
    """Fails a test that gets as far as building the backbone."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a mistake was found only after work had begun")

    monkeypatch.setattr("polytag.train.freeze_backbone", refuse)


def copied(world: World, folder: Path, names: list[str]) -> Path:
    """A folder with only some of the pictures."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(world.path(name), folder / name)
    return folder


@pytest.mark.usefixtures("no_training")
def test_strict_stops_at_a_missing_picture_and_names_it(train, tmp_path):
    with pytest.raises(UserError, match=r"1 of 62 .*--strict.*missing\.png \(.*:62\)"):
        train(tmp_path, strict=True)
    assert list(tmp_path.iterdir()) == []


def test_strict_stops_at_a_broken_picture_and_names_it(train, world, tmp_path):
    keep = [i for i, name in enumerate(world.names) if name != "missing.png"]
    with pytest.raises(UserError, match=r"1 of 61 .*--strict.*broken\.png"):
        train(tmp_path, table=world.table().select(keep), strict=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_training")
def test_too_many_missing_pictures_stop_before_anything_is_computed(train, world, tmp_path):
    images = copied(world, tmp_path / "images", list(world.good[:50]))
    with pytest.raises(SkippedError, match=r"12 of 62 .*10% that --max-skipped"):
        train(tmp_path / "runs", images=images)
    assert not list(tmp_path.glob("runs/*"))


def test_broken_pictures_count_towards_what_may_be_skipped(train, tmp_path):
    # One is missing, one is broken: 2 of 62.
    with pytest.raises(SkippedError, match="2 of 62"):
        train(tmp_path, QUICK, max_skipped=0.02)
    assert list(tmp_path.iterdir()) == []


def test_as_many_as_allowed_are_skipped(train, tmp_path, no_plots):
    assert train(tmp_path, QUICK, max_skipped=2 / 62).metrics["skipped"] == 2


@pytest.mark.parametrize(("most", "error"), [(0.1, SkippedError), (1.0, UserError)])
def test_no_picture_at_all_is_an_error_and_no_crash(train, tmp_path, most, error):
    (tmp_path / "images").mkdir()
    with pytest.raises(error):
        train(tmp_path / "runs", images=tmp_path / "images", max_skipped=most)
    assert not list(tmp_path.glob("runs/*"))


@pytest.mark.usefixtures("no_training")
def test_a_missing_folder_of_pictures_is_named(train, tmp_path):
    with pytest.raises(UserError, match="nowhere: no such folder of pictures"):
        train(tmp_path, images=tmp_path / "nowhere")


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("values", [np.nan, 1.0, 0.0])
def test_a_table_in_which_nothing_can_be_learnt_says_why_of_each(train, world, tmp_path, values):
    table = LabelTable(world.names, ("a", "b"), np.full((62, 2), values))
    reason = "no known cell" if np.isnan(values) else "one class only"
    with pytest.raises(UserError, match=f"nothing can be learnt.*a: {reason}.*b: {reason}"):
        train(tmp_path, table=table)


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("name", ["first", "a/b", "latest"])
def test_a_name_that_is_taken_or_cannot_be_is_found_before_any_work(train, tmp_path, name):
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "precious").write_text("mine")
    with pytest.raises(UserError, match=r"exists already|not a name"):
        train(tmp_path, name=name)
    assert (tmp_path / "first" / "precious").read_text() == "mine"


@pytest.mark.usefixtures("no_training")
def test_a_mistake_in_the_recipe_is_found_before_any_work(train, tmp_path):
    for changes in (
        {"probe.l3": 1},
        {"device": "tpu"},
        {"decisions.target": "f"},
        {"decisions.target": "precision=2"},
        {"split.holdout": "folds"},
    ):
        with pytest.raises(UserError):
            train(tmp_path, changes)


def test_fewer_pictures_than_folds_is_an_error(train, world, tmp_path):
    with pytest.raises(UserError, match="too few different pictures"):
        train(tmp_path, {"split.folds": 20}, table=world.table().select(range(12)))


def test_a_run_that_fails_leaves_no_model_and_does_not_become_the_latest(
    train, tmp_path, monkeypatch
):
    (tmp_path / "latest").symlink_to("elsewhere")

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(plots, "loss_curve", fail)
    with pytest.raises(ZeroDivisionError):
        train(tmp_path, QUICK)
    assert (tmp_path / "latest").readlink() == Path("elsewhere")
    assert not list(tmp_path.rglob("model.onnx"))


# -------------------------------------------------------------------------------- in all its forms


@pytest.mark.parametrize(
    "changes",
    [
        {"features.engine": "torch"},
        {"features.flip": False, "features.layers": "last"},
        {"preprocess.resize": "pad", "decisions.target": 0.3},
        {"decisions.calibrate": "none", "decisions.target": 0.5},
    ],
    ids=["torch", "last layer", "pad", "as the network gives them"],
)
def test_a_changed_recipe_reaches_the_model(world, train, tmp_path, changes, no_plots):
    run = train(tmp_path, QUICK | changes)
    info = polytag.load(run).info
    target = changes.get("decisions.target", "f1")
    table = out_of_fold(run)
    if target == "f1":
        assert len(set(info.thresholds)) == 3
        chosen = run.metrics["decisions"]["attributes"]
        assert info.thresholds == tuple(chosen[name]["threshold"] for name in LEARNT)
        per_fold = table.select("fold", "attribute", "threshold").unique()
        assert len(per_fold) == 3 * 3
    else:
        assert info.thresholds == (target,) * 3
        assert table["threshold"].unique().to_list() == [target]
    plain = changes.get("decisions.calibrate") == "none"
    assert (info.calibration is None) == plain
    raw, calibrated = table["probability_raw"], table["probability_calibrated"]
    assert ((raw - calibrated).abs().max() < 1e-12) == plain
    assert info.recipe["decisions"]["target"] == target
    assert info.preprocess.resize == changes.get("preprocess.resize", "crop")
    assert info.recipe["features"]["engine"] == changes.get("features.engine", "onnxruntime")


def test_onnxruntime_and_torch_train_nearly_the_same_model(world, train, tmp_path, no_plots):
    runs = [train(tmp_path, QUICK | {"features.engine": e}) for e in ("onnxruntime", "torch")]
    first, second = (out_of_fold(run)["probability_raw"].to_numpy() for run in runs)
    np.testing.assert_allclose(first, second, atol=2e-3)


def test_real_pictures_train(train: Callable[..., Run], tmp_path, no_plots):
    from .conftest import real_data

    data = real_data("dresses")
    table = polytag.read_table(data / "labels.txt").select(range(150))
    run = train(tmp_path, QUICK, table=table, images=data / "images")
    assert run.metrics["rows"] + run.metrics["skipped"] == 150
    assert np.isfinite(run.metrics["macro"]["ap"]["value"])


def test_the_config_alone_repeats_a_run_with_all_that_was_said_about_the_table(
    cli, world, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    tiny = [f"--set={key}={value}" for key, value in TINY.items()]
    flags = ("--attributes", "striped,red", "--values", "NA=na")
    first = cli("train", world.labels, "--images", world.images, *tiny, *flags, "--json")
    assert first.code == 0, first.err
    again = cli("train", "--recipe", "runs/probe-1/config.toml", "--json")
    assert again.code == 0, again.err
    assert [a["name"] for a in again.json["attributes"]] == ["striped", "red"]
    names = ("weights.safetensors", "oof.parquet", "splits.csv")
    for name in names:
        one, two = (Path("runs", run, name).read_bytes() for run in ("probe-1", "probe-2"))
        assert one == two, name


def test_a_runs_own_weights_are_weights_like_others(run, train, tmp_path):
    changes = {"backbone.weights": str(run.path / "weights.safetensors")}
    again = train(tmp_path, changes)
    assert again.metrics["macro"] == run.metrics["macro"]
    model = (again.path / "model.onnx").read_bytes()
    assert str(run.path).encode() not in model


def test_a_run_that_cannot_be_finished_leaves_no_folder(train, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("polytag.probe.write_model", full)
    with pytest.raises(OSError, match="No space"):
        train(tmp_path / "runs")
    assert list((tmp_path / "runs").iterdir()) == []


def test_labels_that_the_pictures_do_not_show_are_said_to_be(world, train, tmp_path):
    rng = np.random.default_rng(4)
    coins = LabelTable.from_rows(world.good, ["coin"], rng.random((len(world.good), 1)) < 0.4)
    noise = train(tmp_path, table=coins)
    assert noise.metrics["note"].startswith(
        "The strongest penalty predicted held-out pictures best"
    )
    assert noise.metrics["note"] in (noise.path / "README.md").read_text(encoding="utf-8")
    chance = noise.metrics["log_loss"]["chance"]
    cells = out_of_fold(noise).filter(pl.col("truth").is_not_null())
    assert log_loss(cells["truth"], cells["probability_raw"]) < chance + 0.02
    # Calibration costs what two numbers fitted to 47 rows of noise cost: 2 / (2 * 47) nats.
    assert noise.metrics["log_loss"]["value"] < chance + 0.02 + 1 / 47
    [entry] = noise.metrics["attributes"]
    assert not entry["verdict"].startswith("learnable") and entry["p_value"] > 0.05
    assert polytag.load(noise).info.verdicts == {"coin": entry["verdict"]}
    assert f"| coin | {entry['verdict']} |" in (noise.path / "README.md").read_text("utf-8")


def test_labels_that_the_pictures_show_get_no_such_note(run):
    assert run.metrics["note"] is None
    assert max(run.metrics["l2_of_fold"]) < 300


# ------------------------------------------------------------------------- unsure, and a new target


def test_what_cannot_be_promised_is_unsure(world, train, tmp_path, no_plots):
    changes = QUICK | {"decisions.max_error": 0.2, "decisions.confidence": 0.8}
    run = train(tmp_path, changes)
    info = polytag.load(run).info
    assert info.cuts is not None and len(info.cuts) == 3
    assert (info.unsure["max_error"], info.unsure["confidence"]) == (0.2, 0.8)
    for name, cut in zip(LEARNT, info.cuts, strict=True):
        told = run.metrics["decisions"]["attributes"][name]["unsure"]
        assert [told["absent_below"], told["present_from"]] == list(cut)
        decided = told["present_decided"] + told["absent_decided"]
        known = by_attribute(run)[name]["present"] + by_attribute(run)[name]["absent"]
        assert told["unsure_share"] == pytest.approx(1 - decided / known)
    said = polytag.load(run).predict([world.path(name) for name in world.good])
    for k, (low, high) in enumerate(info.cuts):
        p = said.probabilities[:, k]
        wanted = np.where(p >= (2 if high is None else high), "present", "unsure")
        wanted = np.where(p < (-1 if low is None else low), "absent", wanted)
        assert said.decisions[:, k].tolist() == wanted.tolist()
    assert "Unsure is said where" in (run.path / "README.md").read_text(encoding="utf-8")


def test_thresholds_chosen_anew_are_those_that_training_would_have_chosen(
    run, train, tmp_path, no_plots
):
    copy = tmp_path / "copy"
    shutil.copytree(run.path, copy)
    again = choose_anew(copy, {"decisions.target": "f2"})
    trained = train(tmp_path / "runs", {"title": "A drawn world", "decisions.target": "f2"})
    for name in ("oof.parquet", "choosing.parquet", "config.toml", "labels.parquet", "README.md"):
        assert (copy / name).read_bytes() == (trained.path / name).read_bytes(), name
    anew, fresh = (strict_json(each / "metrics.json") for each in (copy, trained.path))
    assert anew == dict(again.metrics)
    assert anew | {"seconds": 0} == fresh | {"seconds": 0}
    infos = [polytag.load(each).info for each in (copy, trained)]
    assert infos[0] == infos[1]
    assert infos[0].thresholds != polytag.load(run).info.thresholds
