"""The loop under torchrun: two processes on the CPU against one on the joined batch."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from tests.tiny import (
    by_cell,
    one_thread,
    plain_gradients,
    recorded_gradients,
    rows_of_steps,
    save_pictures,
    tiny_recipe,
)
from tests.two_processes import HARD, STEPS, WHOLE, begin, read

from polytag.config import SamplerConfig, to_toml
from polytag.feed import ORDER, derived
from polytag.history import validate
from polytag.processes import share
from polytag.ranks import from_main, is_main
from polytag.samplers import epoch_order

from .conftest import World, draw_world

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module", autouse=True)
def alone():
    with one_thread():
        yield


def torchrun(*words: object) -> subprocess.CompletedProcess[str]:
    """Run a module in two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.run(
        [*command, "-m", *map(str, words)],
        cwd=ROOT,  # where the tests are a package
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )


def order_of(count: int, batch: int) -> np.ndarray:
    """The rows of a first epoch in their order, which holes do not decide."""
    values = np.zeros((count, 3), np.float32)
    rng = derived(tiny_recipe().seed, ORDER, 0, 0)
    return epoch_order(values, SamplerConfig(), batch=batch, rng=rng)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """11 pictures in batches of 5, 5 and 1: the second process knows nothing of the first."""
    folder = tmp_path_factory.mktemp("two")
    train = save_pictures(folder / "train", 11)
    values, order = train.values.copy(), order_of(11, 5)
    values[order[1:5:2]] = np.nan
    values[order[0]] = [1, 0, np.nan]
    values[order[2]] = [0, np.nan, np.nan]
    assert not np.isnan(values[order[[0, 2, 4]]]).all()
    np.save(folder / "train.npy", values)
    np.save(folder / "choose.npy", save_pictures(folder / "choose", 5, seed=1).values)
    return folder


@pytest.fixture(scope="module")
def ranks(folder):
    """What each process found."""
    told = torchrun("tests.two_processes", folder)
    assert told.returncode == 0, told.stderr[-4000:]
    return [torch.load(folder / f"rank {rank}.pt", weights_only=False) for rank in range(2)]


# ------------------------------------------------------------------------------------ the parts


def test_two_processes_meet_over_gloo(ranks):
    for rank, found in enumerate(ranks):
        small = found["small"]
        assert (small["kind"], small["backend"], small["device"]) == ("MULTI_CPU", "gloo", "cpu")
        assert small["world"] == 2 and small["is_main"] == (rank == 0)


@pytest.mark.parametrize("count", range(6))
def test_rows_are_gathered_in_their_order_and_none_twice(ranks, count):
    for found in ranks:
        expected = [[i, -i] for i in range(count)]
        assert found["small"]["gathered"][count].tolist() == expected


def test_what_processes_noted_is_merged(ranks):
    for found in ranks:
        assert found["small"]["merged"].tolist() == pytest.approx([1, 2, 5, np.nan], nan_ok=True)


def test_statistics_become_the_mean_of_all_processes(ranks):
    for found in ranks:
        assert found["small"]["statistics"].item() == 3.5 and found["small"]["batches"] == 0


def test_only_the_main_process_makes_and_all_get_it(ranks):
    assert [found["small"]["from_main"] for found in ranks] == [Path("of 0")] * 2
    assert [found["small"]["made"] for found in ranks] == [[0], []]


def test_a_process_alone_is_the_main_one():
    assert is_main() and from_main(lambda: 3) == 3
    assert list(share(3, 0, 1)) == [0, 1, 2]


# --------------------------------------------------------------------------------- the gradient


@pytest.mark.parametrize("case", [name for name in STEPS if name != "attention"])
def test_the_gradient_is_that_of_the_joined_batch(folder, ranks, case):
    """Of all known cells together, though the second process knows none in the first batch."""
    pictures, order = read(folder, "train"), order_of(11, 5)
    rows = STEPS[case]["training.accumulate"] * 5
    steps = [order[start : start + rows].tolist() for start in range(0, 11, rows)]
    loss = by_attribute if "attribute" in case else by_cell
    for found in ranks:
        assert len(found["steps"][case]) == len(steps)
        for i, step in enumerate(steps):
            gradients, value = plain_gradients(tiny_recipe(), pictures, step, loss)
            assert found["steps"][f"{case}: losses"][i] == pytest.approx(value, abs=1e-6)
            for name, expected in gradients.items():
                torch.testing.assert_close(
                    found["steps"][case][i][name], expected, rtol=1e-5, atol=1e-6
                )


def by_attribute(logits, values):
    known = ~values.isnan()
    columns = [k for k in range(values.shape[1]) if known[:, k].any()]
    means = [by_cell(logits[:, [k]], values[:, [k]]) for k in columns]
    return torch.stack(means).mean()


def test_a_head_that_leaves_weights_unused_has_the_gradient_of_one_process(folder, ranks):
    loop = begin(STEPS["attention"], folder)
    alone = recorded_gradients(loop)
    loop.run()
    for found in ranks:
        for i, gradients in enumerate(alone):
            for name, expected in gradients.items():
                torch.testing.assert_close(
                    found["steps"]["attention"][i][name], expected, rtol=1e-4, atol=1e-6
                )


# ----------------------------------------------------------------------------- whole trainings


def test_both_processes_end_with_one_model_and_one_history(ranks):
    """Though they saw other pictures, and so other BatchNorm statistics."""
    one, other = (found["whole"] for found in ranks)
    for name, tensor in one["weights"].items():
        assert torch.equal(tensor, other["weights"][name]), name
    assert one["losses"] == other["losses"]
    assert repr(one["scores"]) == repr(other["scores"])


def test_every_row_is_judged_once_by_the_model_that_is_kept(folder, ranks):
    choose = read(folder, "choose")
    alone = begin(WHOLE, folder)
    alone.model.load_state_dict(ranks[0]["whole"]["weights"])
    expected = alone.predict(choose)
    for found in ranks:
        np.testing.assert_allclose(found["whole"]["logits"], expected, rtol=1e-4, atol=1e-5)
        judged = found["whole"]["judged"]
        assert [logits.shape for logits in judged] == [(5, 3)] * 3
        for logits, score in zip(judged, found["whole"]["scores"], strict=True):
            assert repr(validate(("a", "b", "c"), logits, choose.values)) == repr(score)


def test_ctrl_c_in_one_process_stops_both_and_both_go_on(ranks):
    for found in ranks:
        assert found["interrupted"]["stopped"] and found["interrupted"]["done"] in (5, 6)
        assert found["interrupted"]["losses"] == found["whole"]["losses"]
        for name, tensor in found["interrupted"]["weights"].items():
            assert torch.equal(tensor, found["whole"]["weights"][name]), name


def test_hard_rows_are_known_to_both_processes(folder, ranks):
    loop = begin(HARD, folder)
    rows = rows_of_steps(loop)
    losses = loop.run().losses
    last = [row for step in rows[-3:] for row in step]
    # Of a row that both trained on in one epoch there are two losses.
    known = [row for row in range(11) if last.count(row) <= 1]
    assert len(known) > 6
    assert np.array_equal(ranks[0]["hard"]["rows"], ranks[1]["hard"]["rows"])
    for found in ranks:
        assert found["hard"]["losses"] == pytest.approx(losses, rel=1e-3)
        found_losses = found["hard"]["rows"][known]
        np.testing.assert_allclose(found_losses, loop.row_losses[known], rtol=1e-2, atol=1e-4)


def test_a_loss_that_is_no_number_names_the_pictures_of_the_process_that_had_it(ranks):
    names = [f"{row:02}.png" for row in order_of(11, 6)[1:6:2]]
    one, other = (found["sick"]["error"] for found in ranks)
    assert one == other
    assert f"loss inf with the pictures {', '.join(names)};" in one


# --------------------------------------------------------------------------- the command line


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[World, Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("trained")
    world = draw_world(folder / "world", pictures=30)
    changes = {"split.holdout": 0.3, "split.choose": 0.25, "training.batch": 5}
    (folder / "recipe.toml").write_text(to_toml(tiny_recipe(changes)), encoding="utf-8")
    words = ["tests.two_processes", folder, "train", world.labels, "--images", world.images]
    words += ["--recipe", folder / "recipe.toml", "--runs", folder / "runs"]
    return world, folder / "runs", torchrun(*words)


def test_two_processes_leave_one_run_and_speak_once(trained):
    _, runs, told = trained
    assert told.returncode == 0, told.stderr[-4000:]
    assert sorted(path.name for path in runs.iterdir()) == ["finetune-1", "latest"]
    assert [path.name for path in runs.parent.glob("written by *")] == ["written by 0"]
    assert told.stdout.count("macro AP") == 1 and told.stdout.count("next: polytag predict") == 1
    for line in ("weights trained", "is not trained: one class only", "training  choosing"):
        assert told.stderr.count(line) == 1, told.stderr
    assert "Warning" not in told.stderr and "Traceback" not in told.stderr


def test_torchrun_can_name_the_package():
    command = [sys.executable, "-m", "polytag", "--version"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert told.stdout.startswith("polytag, version")


def test_every_held_out_row_is_judged_once(trained):
    world, runs, _ = trained
    run = (runs / "latest").resolve()
    with (run / "splits.csv").open(newline="") as file:
        folds = {row["image"]: row["fold"] for row in csv.DictReader(file)}
    assert sorted(folds) == sorted(world.good)
    held_out = [name for name, fold in folds.items() if fold == "holdout"]
    oof = pl.read_parquet(run / "oof.parquet")
    assert oof["image"].unique(maintain_order=True).to_list() == held_out
    assert len(oof) == 3 * len(held_out)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["judged"] == metrics["parts"]["holdout"] == len(held_out)


def test_the_model_file_says_what_was_judged(trained):
    import polytag

    world, runs, _ = trained
    run = (runs / "latest").resolve()
    assert not list(run.glob(".*")) and not (run / "checkpoint.safetensors").exists()
    oof = pl.read_parquet(run / "oof.parquet")
    names = oof["image"].unique(maintain_order=True).to_list()
    answers = polytag.load(run).predict([world.path(name) for name in names])
    expected = oof["probability_calibrated"].to_numpy().reshape(len(names), 3)
    assert (oof["probability_raw"] - oof["probability_calibrated"]).abs().max() > 1e-3
    np.testing.assert_allclose(answers.probabilities, expected, atol=1e-4)
