"""The cells of a run folder, read back as they were written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from tests.judged import QUICK, TUNED, no_drawings, no_export, with_columns
from tests.tiny import one_thread

import polytag.train
from polytag.artefacts import Outcome
from polytag.errors import UserError
from polytag.kept import Kept, read_run
from polytag.runs import Run

from .conftest import ATTRIBUTES, LEARNT, World


@pytest.fixture(scope="module", autouse=True)
def quick(run):  # the shared run is made first, with its drawings
    with one_thread(), no_drawings(), no_export():
        yield


@dataclass
class Both:
    """What a training knew when it wrote its run, and what was read from there."""

    outcome: Outcome
    kept: Kept


WORDS = ["train", "val", "train", "test", "train", "train", "test"]
RUNS = {
    "probe": ("probe", QUICK),
    "probe, test part": ("probe", QUICK | {"split.given": "mine"}),
    "network": ("finetune", TUNED),
    "network, folds": ("finetune", TUNED | {"split.holdout": "folds"}),
    "network, nothing chosen": ("finetune", TUNED | {"split.choose": 0, "training.keep": "last"}),
    "network, nothing judged": ("finetune", TUNED | {"split.holdout": 0}),
}


@pytest.fixture(scope="module", params=RUNS)
def both(request, train: Callable[..., Run], world: World, tmp_path_factory) -> Both:
    seen: list[Outcome] = []
    write = polytag.train.write_run

    def watched(run: Path, outcome: Outcome) -> object:
        seen.append(outcome)
        return write(run, outcome)

    recipe, changes = RUNS[request.param]
    # The twin stands on the other side: of the user's own split it judges nothing.
    column = [WORDS[row % len(WORDS)] for row in range(59)] + ["test", "train", "train"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(polytag.train, "write_run", watched)
        folder = tmp_path_factory.mktemp("kept")
        table = with_columns(world.table(), mine=column)
        run = train(folder, changes, recipe=recipe, table=table)
    return Both(seen[0], read_run(run.path))


def same(one: np.ndarray, other: np.ndarray) -> None:
    np.testing.assert_array_equal(one, other, strict=True)


def test_rows_labels_and_groups_come_back(both, world):
    given, kept = both.outcome.given, both.kept
    assert kept.table.images == given.rows.table.images == tuple(world.good)
    assert kept.table.attributes == ATTRIBUTES and kept.attributes == LEARNT
    same(kept.table.values, given.rows.table.values)
    same(kept.values, given.values)
    same(kept.groups, given.groups)
    same(kept.alike, given.alike)
    assert list(kept.hashes) == given.rows.hashes
    assert list(kept.parts) == [str(part) for part in both.outcome.trained.parts]


def test_judged_cells_come_back_bit_for_bit(both):
    outcome, kept = both.outcome, both.kept
    judged = outcome.calibrated.judged
    same(kept.calibrated.judged, judged)
    same(kept.calibrated.probabilities, outcome.calibrated.probabilities)
    same(kept.thresholds[judged], outcome.decided.thresholds[judged])
    assert np.isnan(kept.thresholds[~judged]).all() and np.isnan(kept.raw[~judged]).all()
    logits = outcome.trained.logits[judged].astype(np.float64)
    same(kept.raw[judged], 1 / (1 + np.exp(-logits)))


def test_what_thresholds_are_chosen_by_comes_back(both):
    written, read = both.outcome.calibrated, both.kept.calibrated
    judging = [basis for basis in written.bases if basis.judges.any()]
    assert len(judging) == len(read.bases)
    for one, other in zip(judging, read.bases, strict=True):
        same(one.probabilities, other.probabilities)
        same(one.judges, other.judges)
    assert (written.deployed is None) == (read.deployed is None)
    if written.deployed and read.deployed:
        same(written.deployed.probabilities, read.deployed.probabilities)
        assert not read.deployed.judges.any()


def test_the_history_and_the_verdicts_come_back(both):
    history, kept = both.outcome.trained.history, both.kept
    np.testing.assert_allclose(kept.history.losses, history.losses, rtol=1e-7)
    assert kept.history.stages == history.stages
    assert len(kept.history.epochs) == len(history.epochs)
    for each in both.outcome.evaluation.attributes:
        said = kept.verdicts[each.name]
        assert said[0] == each.verdict
        np.testing.assert_array_equal(said[1:], (each.p_value, each.p_holm))


def test_recipe_and_numbers_come_back(both):
    assert both.kept.recipe == both.outcome.given.recipe
    assert both.kept.metrics["judged"] == int(both.outcome.trained.judged.sum())


def test_cells_that_are_not_known_are_null(run: Run):
    for name, column in (("labels", "truth"), ("oof", "truth")):
        frame = pl.read_parquet(run.path / f"{name}.parquet")
        assert frame[column].dtype == pl.Int8 and frame[column].null_count() > 0
        assert set(frame[column].drop_nulls()) == {0, 1}


def test_only_the_kept_models_choosing_rows_have_no_fold(run: Run):
    frame = pl.read_parquet(run.path / "choosing.parquet")
    assert set(frame["fold"]) == {None, 0, 1, 2, 3, 4}
    assert frame.filter(pl.col("fold").is_null()).height == 60 * 3
    assert frame["probability"].is_between(0, 1).all()


# ------------------------------------------------------------------------------------ damaged

FILES = [
    "metrics.json",
    "splits.csv",
    "history.csv",
    "labels.parquet",
    "oof.parquet",
    "choosing.parquet",
    "config.toml",
]
NEEDED = {"missing": lambda whole: None, "cut": lambda whole: whole[: len(whole) // 2]}
NEEDED |= {"empty": lambda whole: b"", "nonsense": lambda whole: b"[1, 2, 3]\n"}


@pytest.mark.parametrize("how", NEEDED)
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_missing_or_damaged_is_one_line(run: Run, tmp_path, name, how):
    folder = tmp_path / "copy"
    shutil.copytree(run.path, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.png"))
    content = NEEDED[how]((folder / name).read_bytes())
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    if name == "history.csv" and how in ("empty", "nonsense", "cut"):
        return  # a shorter history: it is only drawn
    if name == "config.toml" and how in ("empty", "cut"):
        return  # a recipe, if another one
    with pytest.raises(UserError) as told:
        read_run(folder)
    assert "\n" not in str(told.value) and str(folder) in str(told.value)
