"""The promise: no label has a say in the numbers that its own row is judged by."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score
from tests.judged import (
    TUNED,
    cells_of,
    no_drawings,
    no_export,
    parts_of,
    rows_of,
    with_columns,
    with_values,
)
from tests.tiny import one_thread

from polytag.config import ProbeConfig
from polytag.logistic import PathSolver, moments
from polytag.probe import ProbeFit, fit_probe
from polytag.runs import Run
from polytag.table import LabelTable

from .conftest import LEARNT, World


@pytest.fixture(scope="module", autouse=True)
def quick(run):  # the shared run is made first, with its drawings
    with one_thread(), no_drawings(), no_export():
        yield


def changed(table: LabelTable, rows: np.ndarray, how: str) -> LabelTable:
    """The table with the learnable labels of some rows flipped, or not known."""
    values = np.array(table.values)
    cells = np.ix_(rows, range(len(LEARNT)))
    values[cells] = 1 - values[cells] if how == "flipped" else np.nan
    return with_values(table, values)


# ------------------------------------------------------------------------------------- the probe

# The penalty is chosen, there is more than one to choose from, and unsure is asked for.
CHOOSING = {"split.given": "mine", "probe.l2_grid": (30.0, 1.0, 0.03), "decisions.max_error": 0.2}


@pytest.fixture(scope="module")
def in_folds(world: World) -> LabelTable:
    """The world with a split of its own: three folds, the twins in one."""
    folds = [str(row % 3) for row in range(len(world.names))]
    folds[world.names.index("twin.png")] = folds[0]
    return with_columns(world.table(), mine=folds)


@pytest.fixture(scope="module")
def as_they_are(train: Callable[..., Run], in_folds, tmp_path_factory) -> Run:
    return train(tmp_path_factory.mktemp("whole"), CHOOSING, table=in_folds)


@pytest.mark.parametrize("fold, how", [(0, "flipped"), (2, "not known")])
def test_a_fold_is_judged_by_nothing_that_its_own_labels_chose(
    train, in_folds, as_they_are, tmp_path, fold, how
):
    rows = np.flatnonzero(np.array(in_folds.extra["mine"]) == str(fold))
    after = cells_of(train(tmp_path, CHOOSING, table=changed(in_folds, rows, how)))
    before = cells_of(as_they_are)
    assert before["image"].tolist() == after["image"].tolist()
    inside = before["fold"][:, 0] == fold
    assert 15 < inside.sum() < 25
    for name in ("probability_raw", "probability_calibrated", "threshold"):
        assert before[name][inside].tobytes() == after[name][inside].tobytes(), name
        # The other folds learnt from these labels.
        assert np.abs(before[name][~inside] - after[name][~inside]).max() > 1e-3, name
    known = ~np.isnan(before["truth"][inside])
    assert (before["truth"][inside][known] != after["truth"][inside][known]).all()


@pytest.fixture(scope="module")
def drawn() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two views of 90 rows, labels that they show in part with holes, and 3 folds."""
    rng = np.random.default_rng(3)
    plain = rng.normal(size=(90, 1, 6))
    features = np.concatenate([plain, plain + 0.1 * rng.normal(size=plain.shape)], axis=1)
    values = (plain[:, 0, :2] + rng.normal(size=(90, 2)) > [0, 0.8]).astype(np.float32)
    values[rng.random(values.shape) < 0.3] = np.nan
    return features.astype(np.float32), values, rng.permutation(90) % 3


GRID = (10.0, 0.3, 0.01)


@pytest.fixture(scope="module")
def fitted(drawn) -> ProbeFit:
    return fit_probe(*drawn, ProbeConfig(l2_grid=GRID, tolerance=1e-9, max_iterations=500))


def test_inner_predictions_of_a_fold_are_of_models_without_it_and_without_their_own(drawn, fitted):
    features, values, folds = drawn
    solver = PathSolver(features, values, ProbeConfig(tolerance=1e-9, max_iterations=500))
    for k, inner in enumerate(fitted.inner):
        assert (np.isnan(inner) == (folds == k)[:, None]).all()
        steps = GRID[: GRID.index(fitted.l2_of_fold[k]) + 1]
        for j in {0, 1, 2} - {k}:
            *_, (weight, bias) = solver.path(steps, ~np.isin(folds, [j, k]))
            expected = features[folds == j, 0] @ weight + bias
            np.testing.assert_allclose(inner[folds == j], expected, atol=1e-5)


def test_inner_predictions_are_those_of_scikit_learn(drawn, fitted):
    features, values, folds = drawn
    for k, inner in enumerate(fitted.inner):
        j = (k + 1) % 3
        rows = ~np.isin(folds, [j, k])
        mean, scale = moments(features[rows].reshape(-1, features.shape[2]))
        x = (features - mean) / scale
        for column in range(values.shape[1]):
            known = rows & ~np.isnan(values[:, column])
            cells = np.repeat(values[known, column], 2)
            strength = 1 / (fitted.l2_of_fold[k] * len(cells))
            model = LogisticRegression(C=strength, tol=1e-10, max_iter=10_000)
            model.fit(x[known].reshape(-1, x.shape[2]), cells)
            expected = model.decision_function(x[folds == j, 0])
            np.testing.assert_allclose(inner[folds == j, column], expected, atol=0.02)


def test_each_fold_chooses_its_penalty_by_the_inner_loss_of_the_others_alone(drawn):
    """The labels of a fold decide its own penalty in no way: here they are nonsense."""
    features, values, folds = drawn
    config = ProbeConfig(l2_grid=GRID)
    before = fit_probe(features, values, folds, config)
    for k in range(3):
        nonsense = values.copy()
        nonsense[folds == k] = 1 - nonsense[folds == k]
        after = fit_probe(features, nonsense, folds, config)
        assert after.l2_of_fold[k] == before.l2_of_fold[k]
        assert after.inner[k].tobytes() == before.inner[k].tobytes()
        assert after.logits[folds == k].tobytes() == before.logits[folds == k].tobytes()


def test_calibration_moves_no_ranking_of_a_fold(run: Run):
    cells = cells_of(run)
    moved = np.abs(cells["probability_raw"] - cells["probability_calibrated"])
    assert moved.max() > 0.01
    for fold in range(5):
        rows = cells["fold"][:, 0] == fold
        for k in range(len(LEARNT)):
            known = rows & ~np.isnan(cells["truth"][:, k])
            truth = cells["truth"][known, k]
            raw, calibrated = (
                cells[f"probability_{kind}"][known, k] for kind in ("raw", "calibrated")
            )
            for score in (average_precision_score, roc_auc_score):
                assert score(truth, raw) == score(truth, calibrated)
            assert (np.argsort(raw, kind="stable") == np.argsort(calibrated, kind="stable")).all()


# ----------------------------------------------------------------------------------- fine-tuning


@pytest.fixture(scope="module")
def in_parts(world: World) -> LabelTable:
    """The world with a split of its own: a half to train on, a fifth to choose, the rest judges."""
    words = ["train", "val", "train", "test", "train", "test", "train", "val", "train", "test"]
    parts = [words[row % 10] for row in range(len(world.names))]
    parts[world.names.index("twin.png")] = parts[0]
    return with_columns(world.table(), mine=parts)


def tuned(train: Callable[..., Run], folder: Path, table: LabelTable) -> Run:
    changes = TUNED | {"split.given": "mine", "stages.*.epochs": 2}
    return train(folder, changes, table=table, recipe="finetune")


@pytest.fixture(scope="module")
def tuned_as_they_are(train, in_parts, tmp_path_factory) -> Run:
    return tuned(train, tmp_path_factory.mktemp("tuned"), in_parts)


def told(run: Run) -> dict[str, object]:
    """What the model file says that is not a count of labels or a measured number."""
    info = json.loads((run.path / "model.onnx").read_text())
    return {key: info[key] for key in ("thresholds", "calibration", "cuts", "attributes")}


def history(run: Run) -> list[dict[str, str]]:
    return [row | {"seconds": ""} for row in rows_of(run.path / "history.csv")]


def rows_in(table: LabelTable, word: str) -> np.ndarray:
    return np.flatnonzero(np.array(table.extra["mine"]) == word)


@pytest.mark.parametrize("how", ["flipped", "not known"])
def test_held_out_labels_change_neither_the_network_nor_how_it_decides(
    train, in_parts, tuned_as_they_are, tmp_path, how
):
    before = tuned_as_they_are
    rows = rows_in(in_parts, "test")
    after = tuned(train, tmp_path, changed(in_parts, rows, how))
    name = "weights.safetensors"
    assert (before.path / name).read_bytes() == (after.path / name).read_bytes()
    assert history(before) == history(after)
    assert told(before) == told(after) and told(before)["calibration"]
    for key in ("calibration", "best_epoch", "training_loss"):
        assert before.metrics[key] == after.metrics[key]
    one, other = before.metrics["decisions"], after.metrics["decisions"]
    assert one == other
    one, other = cells_of(before), cells_of(after)
    for key in ("image", "probability_raw", "probability_calibrated", "threshold"):
        assert one[key].tolist() == other[key].tolist(), key
    assert {parts_of(before)[image] for image in one["image"][:, 0]} == {"holdout"}


def test_choosing_labels_change_how_it_decides(train, in_parts, tuned_as_they_are, tmp_path):
    """Else the test above would pass where nothing is chosen at all."""
    rows = rows_in(in_parts, "val")
    after = tuned(train, tmp_path, changed(in_parts, rows, "flipped"))
    assert told(after)["calibration"] != told(tuned_as_they_are)["calibration"]
    assert told(after)["thresholds"] != told(tuned_as_they_are)["thresholds"]
