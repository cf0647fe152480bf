"""The training loop, against formulas and against plain torch."""

from __future__ import annotations

import logging
import math
import random
import re
import signal
import threading
import time

import numpy as np
import pytest
import torch
from tests.tiny import (
    EVERYTHING,
    NAMES,
    NO_MOVE,
    before_each_step,
    one_thread,
    pixels,
    plain_gradients,
    recorded_gradients,
    rows_of_steps,
    save_pictures,
    still,
    the_same,
    tiny_loop,
    tiny_model,
    tiny_recipe,
)
from torch.nn.functional import binary_cross_entropy_with_logits

from polytag import loop as module
from polytag.errors import UserError
from polytag.feed import Feed, Part, Pictures
from polytag.finetune import Task, finetune
from polytag.guards import Interrupt, explained, not_finite
from polytag.history import EPOCH_HEADER, Validation, validate
from polytag.probe import fit_probe
from polytag.schedules import cosine, half_life_decay
from polytag.splits import stratified_folds
from polytag.trainable import copied


@pytest.fixture(scope="module", autouse=True)
def alone():
    with one_thread():
        yield


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Pictures:
    return save_pictures(tmp_path_factory.mktemp("pictures"), 32)


@pytest.fixture(scope="module")
def choose(tmp_path_factory) -> Pictures:
    return save_pictures(tmp_path_factory.mktemp("choose"), 9, seed=1)


def first(pictures: Pictures, count: int) -> Pictures:
    return Pictures(pictures.paths[:count], pictures.values[:count])


def close(found, expected) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-6)


def at_each_epoch(loop, look) -> list:
    """What there was to see after every epoch, once the loop has run."""
    seen, judge = [], loop._judge
    loop._judge = lambda *given, **named: (seen.append(look()), judge(*given, **named))[1]
    return seen


def script(monkeypatch, losses, aps=None) -> None:
    """Let the epochs have these numbers on the choosing rows."""
    numbers = iter(zip(losses, aps or losses, strict=True))

    def scripted(*_: object) -> Validation:
        loss, ap = next(numbers)
        return Validation(loss, ap, 0.5, 0.5, (0.5,) * 3)

    monkeypatch.setattr(module, "validate", scripted)


def press_at(loop, step: int) -> None:
    """Press Ctrl-C in the middle of a step, counted from 1; a step is a batch."""
    count, cell_loss = iter(range(1, 1000)), loop.cell_loss

    def press(*given):
        if next(count) == step:
            signal.raise_signal(signal.SIGINT)
        return cell_loss(*given)

    loop.cell_loss = press


def flat(lists):
    return [item for items in lists for item in items]


# --------------------------------------------------------------------------------------- steps


@pytest.mark.parametrize("batch, accumulate", [(32, 1), (8, 4), (6, 6)])
def test_accumulated_batches_are_one_step(pictures, batch, accumulate):
    recipe = tiny_recipe(still(batch=batch, accumulate=accumulate))
    loop = tiny_loop(recipe, pictures)
    found = recorded_gradients(loop)
    loop.run()
    assert len(found) == len(loop.history.losses) == 1
    close(found[0], plain_gradients(recipe, pictures, range(32))[0])


def test_the_last_step_is_shorter_and_normalised_by_its_own_cells(pictures):
    recipe = tiny_recipe(still(batch=5, accumulate=2))
    loop = tiny_loop(recipe, first(pictures, 27))
    found, rows = recorded_gradients(loop), rows_of_steps(loop)
    loop.run()
    assert [len(step) for step in rows] == [10, 10, 7]
    assert sorted(flat(rows)) == list(range(27))
    for gradient, step in zip(found, rows, strict=True):
        close(gradient, plain_gradients(recipe, pictures, step)[0])


def test_the_loss_of_a_step_is_that_of_all_its_known_cells(pictures):
    recipe = tiny_recipe(still(batch=8, accumulate=4))
    loop = tiny_loop(recipe, pictures)
    loop.run()
    values = torch.from_numpy(pictures.values)
    known = ~values.isnan()
    logits = tiny_model(recipe).eval()(pixels(pictures, range(32)))
    expected = binary_cross_entropy_with_logits(logits[known], values[known]).item()
    assert loop.history.losses == [pytest.approx(expected, abs=1e-6)]
    assert loop.history.epochs[0].training_loss == loop.history.losses[0]


def test_the_loss_of_an_epoch_is_the_mean_over_its_known_cells(pictures):
    values = pictures.values.copy()
    values[::3] = np.nan
    loop = tiny_loop(tiny_recipe({"stages.*.epochs": 2}), Pictures(pictures.paths, values))
    rows = rows_of_steps(loop)
    losses = np.reshape(loop.run().losses, (2, 4))
    known = [np.sum(~np.isnan(values[step])) for step in rows]
    means = np.average(losses, axis=1, weights=np.reshape(known, (2, 4)))
    found = [epoch.training_loss for epoch in loop.history.epochs]
    assert found == pytest.approx(means)
    assert found != pytest.approx(losses.mean(1))


def test_the_gradient_is_clipped_to_a_norm_over_all_weights(pictures):
    plain, _ = plain_gradients(tiny_recipe(), pictures, range(32))
    norm = math.sqrt(sum(float(g.square().sum()) for g in plain.values()))
    for clip, factor in ((norm / 3, 1 / 3), (norm * 3, 1)):
        loop = tiny_loop(tiny_recipe(still(batch=32, clip=clip)), pictures)
        found = recorded_gradients(loop)
        loop.run()
        close(found[0], {name: g * factor for name, g in plain.items()})


def test_without_a_known_cell_nothing_moves_and_the_loss_is_0(pictures):
    blank = Pictures(pictures.paths[:8], np.full((8, 3), np.nan, np.float32))
    recipe = tiny_recipe({"training.weight_decay": 0, "training.freeze_norm": True})
    loop = tiny_loop(recipe, blank)
    loop.run()
    assert loop.history.losses == [0]
    assert the_same(loop.model.state_dict(), tiny_model(recipe).state_dict())


# ------------------------------------------------------------------------------ what is frozen


def test_frozen_layers_stay_bit_for_bit_and_get_no_gradient(pictures):
    recipe = tiny_recipe({"stages.0.frozen": 2, "training.batch": 16, "training.ema": 0.5})
    loop = tiny_loop(recipe, pictures)
    found = recorded_gradients(loop)
    loop.run()
    before, after = tiny_model(recipe).state_dict(), loop.model.state_dict()
    depths = {f"backbone.{name}": d for name, d in loop.model.backbone.depths().items()}
    frozen = {name for name, depth in depths.items() if depth <= 2}
    assert frozen and not frozen & found[0].keys()
    owners = {name.rpartition(".")[0] for name in frozen}
    kept = [name for name in after if name.rpartition(".")[0] in owners]
    assert any("running_var" in name for name in kept)
    assert the_same({n: before[n] for n in kept}, {n: after[n] for n in kept})
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert moved >= set(found[0])  # and everything else that is trained


def test_freeze_norm_keeps_all_statistics(pictures):
    recipe = tiny_recipe({"training.freeze_norm": True})
    loop = tiny_loop(recipe, pictures)
    loop.run()
    before, after = tiny_model(recipe).state_dict(), loop.model.state_dict()
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert moved == {name for name, _ in loop.model.named_parameters()}


# ------------------------------------------------------------------- rates, the mean, and scores


def test_rates_follow_the_schedule_over_the_whole_stage(pictures):
    changes = {"training.schedule": "cosine", "training.warmup": 0.25, "stages.*.epochs": 3}
    changes |= {"stages.0.backbone_lr": 1e-4, "training.layer_decay": 0.5}
    loop = tiny_loop(tiny_recipe(changes), pictures)
    seen = []
    before_each_step(loop, lambda: seen.append([g["lr"] for g in loop.optimiser.param_groups]))
    loop.run()
    factors = [cosine(step / 12, 0.25) for step in range(12)]
    assert loop.history.rates == pytest.approx([1e-3 * factor for factor in factors])
    deepest = max(loop.model.backbone.depths().values())
    expected = [1e-3, *sorted((1e-4 * 0.5**i for i in range(deepest + 1)), reverse=True)]
    for rates, factor in zip(seen, factors, strict=True):
        assert sorted(rates, reverse=True) == pytest.approx([factor * rate for rate in expected])


def test_the_mean_of_the_weights_is_what_is_judged_and_kept(pictures, choose):
    changes = {"training.ema": 0.25, "stages.*.epochs": 2, "stages.*.lr": 1e-2}
    loop = tiny_loop(tiny_recipe(changes), pictures, choose)
    states = []
    before_each_step(loop, lambda: states.append(copied(loop.model.state_dict())))
    ends = at_each_epoch(loop, lambda: copied(loop.model.state_dict()))
    history = loop.run()
    states = [*states, ends[-1]]  # 8 steps; before each of them, and after the last
    decay = half_life_decay(0.25 * 8)
    kept = loop.model.state_dict()
    for name in ("head.linear.weight", "backbone.network.conv1.0.weight"):
        mean = decay**8 * states[0][name]
        for i in range(1, 9):
            mean = mean + (1 - decay) * decay ** (8 - i) * states[i][name]
        torch.testing.assert_close(kept[name], mean)
        assert not torch.equal(kept[name], states[-1][name])
    values = torch.from_numpy(choose.values)
    known = ~values.isnan()
    logits = torch.from_numpy(loop.predict(choose))
    found = binary_cross_entropy_with_logits(logits[known], values[known]).item()
    assert history.epochs[-1].validation.loss == pytest.approx(found, rel=1e-5)


def test_the_best_epoch_is_kept_and_the_next_stage_starts_from_it(pictures, choose, monkeypatch):
    script(monkeypatch, [0.5, 0.3, 0.4, 0.3, 0.31, 0.2, 0.2])
    stages = [{"name": "a", "epochs": 4, "lr": 1e-3}, {"name": "b", "epochs": 3, "lr": 1e-3}]
    recipe = tiny_recipe({"training.keep": "best", "split.choose": 0.2, "stages": stages})
    loop = tiny_loop(recipe, first(pictures, 8), choose)
    ends, begun = at_each_epoch(loop, lambda: copied(loop.model.state_dict())), []
    begin = loop._begin_stage
    loop._begin_stage = lambda: (begun.append(copied(loop.model.state_dict())), begin())
    history = loop.run()
    assert the_same(begun[1], ends[1])
    assert not the_same(begun[1], ends[3])
    assert the_same(loop.model.state_dict(), ends[5])
    assert history.best is history.epochs[5] and history.best.stage == "b"


def test_a_later_stage_that_is_never_better_changes_nothing(pictures, choose, monkeypatch):
    script(monkeypatch, [0.3, 0.4])
    stages = [{"name": name, "epochs": 1, "lr": 1e-3} for name in "ab"]
    recipe = tiny_recipe({"training.keep": "best", "split.choose": 0.2, "stages": stages})
    loop = tiny_loop(recipe, first(pictures, 8), choose)
    ends = at_each_epoch(loop, lambda: copied(loop.model.state_dict()))
    assert loop.run().best.stage == "a"
    assert the_same(loop.model.state_dict(), ends[0])


def test_a_stage_ends_early_and_the_next_one_waits_anew(pictures, choose, monkeypatch):
    script(monkeypatch, [0.5, 0.4, 0.4, 0.41, 0.9, 0.8, 0.85, 0.9])
    stages = [{"name": "a", "epochs": 9, "lr": 1e-3}, {"name": "b", "epochs": 9, "lr": 1e-3}]
    recipe = tiny_recipe({"training.early_stop": 2, "split.choose": 0.2, "stages": stages})
    history = tiny_loop(recipe, first(pictures, 8), choose).run()
    assert [epoch.stage for epoch in history.epochs] == ["a"] * 4 + ["b"] * 4


def test_a_plateau_lowers_the_rate(pictures, choose, monkeypatch):
    script(monkeypatch, [0.5, 0.4, 0.4, 0.4, 0.4, 0.1])
    changes = {"training.schedule": "plateau", "training.plateau_patience": 1}
    changes |= {"training.plateau_factor": 0.25, "split.choose": 0.2, "stages.*.epochs": 6}
    history = tiny_loop(tiny_recipe(changes), first(pictures, 8), choose).run()
    assert history.rates == pytest.approx([1e-3] * 4 + [2.5e-4] * 2)


@pytest.mark.parametrize("monitor, best", [("loss", 2), ("macro_ap", 1)])
def test_what_is_monitored_decides_which_epoch_is_best(
    pictures, choose, monkeypatch, monitor, best
):
    script(monkeypatch, [0.5, 0.4, 0.45], aps=[0.9, 0.8, 0.85])
    changes = {"training.monitor": monitor, "training.keep": "best", "split.choose": 0.2}
    loop = tiny_loop(tiny_recipe(changes | {"stages.*.epochs": 3}), first(pictures, 8), choose)
    assert loop.run().best.number == best


def test_scores_that_are_no_numbers_keep_the_last_epoch(pictures, choose):
    unknown = Pictures(choose.paths, np.full_like(choose.values, np.nan))
    changes = {"training.keep": "best", "split.choose": 0.2, "stages.*.epochs": 2}
    loop = tiny_loop(tiny_recipe(changes), first(pictures, 8), unknown)
    ends = at_each_epoch(loop, lambda: copied(loop.model.state_dict()))
    assert loop.run().best is None
    assert the_same(loop.model.state_dict(), ends[-1])


# ------------------------------------------------------------------------ what decides the draws


def test_seed_decides_everything_and_threads_decide_nothing(pictures, choose, monkeypatch):
    def run(seed: int, threads: int):
        monkeypatch.setattr("polytag.pipeline.default_threads", lambda: threads)
        loop = tiny_loop(
            tiny_recipe(EVERYTHING | {"seed": seed, "stages.*.epochs": 1}),
            first(pictures, 22),
            choose,
        )
        return loop.run().losses, copied(loop.model.state_dict())

    losses, state = run(1, threads=1)
    again = run(1, threads=5)
    assert again[0] == losses and the_same(again[1], state)
    assert run(2, threads=1)[0] != losses


def test_every_step_draws_its_own_dropout(pictures):
    def seeds(seed: int) -> list[int]:
        loop = tiny_loop(tiny_recipe({"seed": seed, "stages.*.epochs": 2}), first(pictures, 16))
        seen = []
        before_each_step(loop, lambda: seen.append(torch.initial_seed()))
        loop.run()
        return seen

    assert len({*seeds(1), *seeds(2)}) == 8


def test_the_callers_random_numbers_stay_as_they_were(pictures, choose):
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    tiny_loop(tiny_recipe({"head.dropout": 0.5}), first(pictures, 8), choose).run()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]


def test_every_epoch_takes_every_row_once_in_another_order(pictures):
    loop = tiny_loop(tiny_recipe(still(batch=8) | {"stages.*.epochs": 2}), pictures)
    rows = rows_of_steps(loop)
    loop.run()
    one, two = flat(rows[:4]), flat(rows[4:])
    assert sorted(one) == sorted(two) == list(range(32))
    assert one != two


def test_hard_rows_are_drawn_by_the_losses_of_the_epoch_before(pictures):
    recipe = tiny_recipe(still(batch=8) | {"sampler.hard": 0.5, "stages.*.epochs": 3})
    loop = tiny_loop(recipe, pictures)
    seen, steps = [], loop.feed.steps
    loop.feed.steps = lambda *given: (seen.append(given[3].copy()), steps(*given))[1]
    rows = rows_of_steps(loop)
    loop.run()
    values = torch.from_numpy(pictures.values)
    known = ~values.isnan()
    logits = tiny_model(recipe).eval()(pixels(pictures, range(32)))
    cells = binary_cross_entropy_with_logits(logits, values.nan_to_num(), reduction="none")
    expected = ((cells * known).sum(1) / known.sum(1).clamp(min=1)).detach().numpy()
    assert np.isnan(seen[0]).all()
    np.testing.assert_allclose(seen[1], expected, atol=1e-6)  # the weights never moved
    np.testing.assert_allclose(seen[2], expected, atol=1e-6)
    assert sorted(flat(rows[:4])) == list(range(32))
    drawn = [expected[row] for row in flat(rows[4:])]
    assert np.mean(drawn) > expected.mean()


# --------------------------------------------------------------------------------------- the feed


def feed(pictures: Pictures, changes, rank: int = 0, world: int = 1) -> Feed:
    recipe = tiny_recipe(changes)
    return Feed(pictures, recipe, tiny_model(recipe).backbone.spec, rank, world)


def parts_of(feed: Feed, start: int = 0) -> list[list[Part]]:
    return list(feed.steps(0, 0, start, np.full(len(feed.pictures), np.nan, np.float32)))


VARIED = {"augment.crop": "resized", "augment.flip": 0.5, "augment.noise": 0.5}


def test_an_epoch_that_goes_on_is_the_rest_of_the_whole(pictures):
    changes = VARIED | {"augment.mixup": 0.5, "training.batch": 5, "training.accumulate": 2}
    whole = parts_of(feed(pictures, changes))
    rest = parts_of(feed(pictures, changes), 2)
    assert len(whole) == 4 and len(rest) == 2
    for one, other in zip(flat(whole[2:]), flat(rest), strict=True):
        assert np.array_equal(one.rows, other.rows)
        for field in ("targets", "known"):
            assert torch.equal(getattr(one, field), getattr(other, field))
        assert torch.equal(one.given[0], other.given[0])


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_each_batch_and_see_the_same_pictures(pictures, world):
    changes = VARIED | {"training.batch": 7, "training.accumulate": 2}
    some = first(pictures, 29)  # 14 + 14 + 1: the last batch has less rows than processes
    whole = flat(parts_of(feed(some, changes)))
    shares = [flat(parts_of(feed(some, changes, rank, world))) for rank in range(world)]
    for part, *own in zip(whole, *shares, strict=True):
        assert sorted(np.concatenate([share.rows for share in own])) == sorted(part.rows)
        for share in own:
            for i, row in enumerate(share.rows):
                j = part.rows.tolist().index(row)
                assert torch.equal(share.given[0][i], part.given[0][j])
                assert torch.equal(share.known[i], part.known[j])
            assert not share.known[len(share.rows) :].any()
            assert len(share.given[0]) == max(len(share.rows), 2)
    # Who has none looks at a picture all the same: a blank one would spoil BatchNorm statistics.
    assert len(shares[1][-1].rows) == 0
    assert torch.equal(shares[1][-1].given[0][0], whole[-1].given[0][0])


def test_a_rest_of_one_picture_can_be_trained_on(pictures):
    loop = tiny_loop(tiny_recipe({"training.batch": 8}), first(pictures, 9))
    assert len(loop.run().losses) == 2
    rest = parts_of(loop.feed)[-1][0]
    assert len(rest.rows) == 1 and torch.equal(rest.given[0][0], rest.given[0][1])
    assert rest.known[0].any() and not rest.known[1].any()
    assert len(parts_of(feed(pictures, {"training.batch": 1}))[0][0].given[0]) == 1  # as asked for


def test_a_picture_that_breaks_after_the_start_ends_the_training(pictures, tmp_path):
    some = save_pictures(tmp_path / "some", 8)
    loop = tiny_loop(tiny_recipe(), some)
    some.paths[3].unlink()
    with pytest.raises(UserError, match=r"03\.png"):
        loop.run()


# ----------------------------------------------------------------------------------- predictions


def test_predictions_are_the_models_and_in_order(pictures):
    loop = tiny_loop(tiny_recipe({"training.batch": 5}), pictures)
    expected = tiny_model(loop.recipe).eval()(pixels(pictures, range(32))).detach()
    loop.model.train()
    torch.testing.assert_close(torch.from_numpy(loop.predict(pictures)), expected)
    bias = torch.tensor([1.0, 2.0, 3.0])
    width = loop.model.head.linear.weight.shape
    other = {"head.linear.weight": torch.zeros(width), "head.linear.bias": bias}
    found = loop.predict(pictures, loop.model.state_dict() | other)
    assert found.tolist() == [[1, 2, 3]] * 32
    assert loop.predict(Pictures([], np.zeros((0, 3), np.float32))).shape == (0, 3)


def test_half_precision_leaves_the_model_as_it_is_judged(pictures, choose):
    stages = [{"name": name, "epochs": 1, "lr": 1e-3} for name in "ab"]
    loop = tiny_loop(tiny_recipe({"training.precision": "bf16", "stages": stages}), pictures)
    loop.run()
    full = tiny_loop(tiny_recipe({"stages": stages}), pictures)
    full.run()
    assert loop.history.losses[0] != full.history.losses[0]
    assert loop.history.losses == pytest.approx(full.history.losses, rel=0.1)
    assert {t.dtype for t in loop.model.parameters()} == {torch.float32}
    expected = loop.model.eval()(pixels(choose, range(9))).detach()  # without autocast
    torch.testing.assert_close(torch.from_numpy(loop.predict(choose)), expected)


def test_fp16_is_refused_on_a_cpu(pictures):
    with pytest.raises(UserError, match=r"training.precision: fp16 needs a GPU"):
        tiny_loop(tiny_recipe({"training.precision": "fp16"}), pictures)


def test_a_head_that_starts_as_a_probe_answers_as_the_probe_did(pictures):
    changes = {"head.init": "probe", "head.dropout": 0.5, "training.freeze_norm": True}
    changes |= {"split.choose": 0.2, "split.folds": 3, "stages.*.lr": NO_MOVE}
    recipe = tiny_recipe(changes)
    model = tiny_model(recipe).eval()
    features = model.backbone(pixels(pictures, range(32))).detach().numpy()
    parts = np.array(["train"] * 20 + ["choose"] * 6 + ["holdout"] * 6)
    groups = np.arange(32)
    task = Task(NAMES, pictures.paths, pictures.values, groups, parts, features[:, None])
    tuned = finetune(recipe, model.backbone, task)
    values, trained = pictures.values[:20], features[:20]
    folds = stratified_folds(values, groups[:20], folds=3, seed=recipe.seed)
    probe = fit_probe(trained[:, None], values, folds, recipe.probe, lambda _: None).head
    expected = features @ probe.weight + probe.bias
    np.testing.assert_allclose(tuned.logits[20:], expected[20:], rtol=1e-3, atol=1e-4)
    assert np.isnan(tuned.logits[:20]).all()
    before, after = tuned.history.epochs
    assert (before.number, before.iteration, before.stage) == (0, 0, "all")
    assert math.isnan(before.training_loss)
    assert after.validation.loss == pytest.approx(before.validation.loss, abs=1e-5)


# ----------------------------------------------------------------------- what is said and written


def test_epochs_are_lines_under_one_header(pictures, choose, caplog):
    stages = [{"name": "a long name of a stage", "epochs": 2, "lr": 1e-3}]
    stages += [{"name": "b", "epochs": 1, "lr": 1e-3}]
    caplog.set_level(logging.INFO)
    tiny_loop(tiny_recipe({"stages": stages}), first(pictures, 8), choose).run()
    lines = [record.getMessage() for record in caplog.records if record.name == "polytag"]
    assert lines.count(EPOCH_HEADER) == 1
    table = lines[lines.index(EPOCH_HEADER) + 1 :]
    assert [line[:24].split()[-1] for line in table if "weights trained" not in line] == [
        *("1/2", "2/2", "1/1")
    ]
    assert max(map(len, lines)) <= 80


def test_history_csv_grows_with_the_checkpoint(pictures, choose, tmp_path):
    changes = {"stages.*.epochs": 2, "training.checkpoint_minutes": 1e-9}
    loop = tiny_loop(tiny_recipe(changes), first(pictures, 16), choose, folder=tmp_path)
    grown = []
    before_each_step(
        loop, lambda: grown.append(len((tmp_path / "history.csv").read_text().splitlines()))
    )
    loop.run()
    assert grown == [1, 2, 4, 5]  # header, iteration, iteration and epoch ...
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("checkpoint.safetensors", "history.csv")
    ]


# ------------------------------------------------------------------------------------- Ctrl-C


def test_ctrl_c_ends_after_the_step_with_a_checkpoint(pictures, tmp_path):
    loop = tiny_loop(tiny_recipe(), pictures, folder=tmp_path)
    press_at(loop, 2)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        loop.run()
    assert len(loop.history.losses) == 2 and loop.at.step == 2
    assert (tmp_path / "checkpoint.safetensors").is_file()
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("when", ["last step", "last validation"])
def test_ctrl_c_at_the_very_end_is_not_forgotten(pictures, choose, monkeypatch, when):
    loop = tiny_loop(tiny_recipe(), pictures, choose)
    if when == "last step":
        press_at(loop, 4)
    else:
        predict = loop.judge.predict
        loop.judge.predict = lambda *given: (signal.raise_signal(signal.SIGINT), predict(*given))[1]
    with pytest.raises(KeyboardInterrupt):
        loop.run()


def test_a_deadline_ends_the_epoch_and_the_training(pictures, choose):
    stages = [{"name": name, "epochs": 3, "lr": 0.01} for name in ("one", "two")]
    recipe = tiny_recipe({"stages": stages, "training.keep": "best"})
    loop = tiny_loop(recipe, pictures, choose)
    before_each_step(loop, lambda: len(loop.history.losses) == 4 and late())

    def late() -> None:
        loop.deadline = 0.0

    history = loop.run()
    assert len(history.losses) == 6  # four an epoch: the second one ends in its middle
    assert [(epoch.stage, epoch.number) for epoch in history.epochs] == [("one", 1), ("one", 2)]
    assert all(epoch.validation for epoch in history.epochs)
    best = history.best
    assert best is not None
    found = validate(NAMES, loop.predict(choose), choose.values)
    assert found.loss == pytest.approx(best.validation.loss)


def test_a_deadline_that_has_passed_leaves_one_step(pictures):
    loop = tiny_loop(tiny_recipe({"stages.*.epochs": 3}), pictures)
    assert len(loop.run(deadline=time.monotonic() - 1).losses) == 1


def test_a_second_ctrl_c_does_not_wait():
    interrupt = Interrupt()
    with pytest.raises(KeyboardInterrupt), interrupt.held():
        signal.raise_signal(signal.SIGINT)
        assert interrupt.pressed
        signal.raise_signal(signal.SIGINT)
        pytest.fail("it waited")


def test_another_error_is_not_hidden_by_ctrl_c():
    with pytest.raises(UserError), Interrupt().held():
        signal.raise_signal(signal.SIGINT)
        raise UserError("first")


def test_in_a_thread_training_runs_without_signals(pictures):
    before, done = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        done.append(len(tiny_loop(tiny_recipe(), first(pictures, 8)).run().losses))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [1] and signal.getsignal(signal.SIGINT) is before


# ------------------------------------------------------------------------ memory, and no numbers

CPU = "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"
CUDA = "CUDA out of memory. Tried to allocate 20.00 MiB."


@pytest.mark.parametrize(
    "error", [RuntimeError(CPU), torch.OutOfMemoryError(CUDA), MemoryError()], ids=repr
)
def test_out_of_memory_ends_with_the_batch_to_try(pictures, error):
    loop = tiny_loop(tiny_recipe({"training.accumulate": 3}), pictures)

    def fail(*_: object) -> None:
        raise error

    loop.cell_loss = fail
    with pytest.raises(UserError) as told:
        loop.run()
    assert str(told.value).startswith("training on cpu: out of memory; got batch 8;")
    assert "--batch 4 --set training.accumulate=6" in str(told.value)


def test_out_of_memory_at_one_picture_asks_for_something_smaller():
    with (
        pytest.raises(UserError, match=r"got batch 1; take a smaller --backbone") as told,
        explained(tiny_recipe({"training.batch": 1}), torch.device("cpu")),
    ):
        raise MemoryError
    assert "--batch" not in str(told.value)


def test_other_errors_stay_what_they_are():
    with (
        pytest.raises(RuntimeError, match=r"^mat1 and mat2") as told,
        explained(tiny_recipe(), torch.device("cpu")),
    ):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    assert not isinstance(told.value, UserError)


def test_a_loss_that_is_no_number_names_the_pictures_of_its_batch(pictures):
    loop = tiny_loop(tiny_recipe({"training.batch": 4, "training.accumulate": 2}), pictures)
    calls, sound, rows = [], loop.cell_loss, rows_of_steps(loop)

    def sick(logits, targets, known):
        calls.append(len(logits))
        return sound(logits, targets, known) + (math.inf if len(calls) == 4 else 0)

    loop.cell_loss = sick
    with pytest.raises(UserError) as told:
        loop.run()
    words = str(told.value)
    assert words.startswith(
        "all, epoch 1, step 2: the training loss or its gradient is not a finite"
    )
    assert "loss inf" in words
    named = {int(name) for name in re.findall(r"(\d\d)\.png", words)}
    assert named == set(rows[1][4:])  # of the step's two batches, the second


def test_a_gradient_that_is_no_number_names_all_pictures_of_the_step(pictures):
    loop = tiny_loop(tiny_recipe({"training.batch": 4, "training.accumulate": 2}), pictures)
    sound, rows = loop.cell_loss, rows_of_steps(loop)

    def sick(logits, targets, known):
        logits.register_hook(lambda gradient: gradient * math.nan)
        return sound(logits, targets, known)

    loop.cell_loss = sick
    before = copied(loop.model.state_dict())
    with pytest.raises(UserError) as told:
        loop.run()
    named = {int(name) for name in re.findall(r"(\d\d)\.png", str(told.value))}
    assert named == set(rows[0])
    weights = dict(loop.model.named_parameters())
    assert the_same(weights, {name: before[name] for name in weights})  # no step was taken


def test_a_long_list_of_pictures_is_cut():
    names = [f"{i}.png" for i in range(40)]
    assert "31.png and 8 more" in str(not_finite(math.nan, "all", names))
