"""A network in two parts, and what the frozen one gives, kept."""

from __future__ import annotations

import gc
import logging
import shutil
import signal
import time

import numpy as np
import pytest
import torch
from tests.tiny import (
    NAMES,
    one_thread,
    pixels,
    plain_gradients,
    recorded_gradients,
    save_pictures,
    still,
    the_same,
    tiny_loop,
    tiny_recipe,
)
from torch import nn

from polytag import trunk as module
from polytag.augment import make_augment
from polytag.backbone import load_backbone
from polytag.cached import clear
from polytag.config import BackboneConfig, FeaturesConfig, PreprocessConfig
from polytag.errors import UserError
from polytag.feed import AUGMENT, Pictures, derived
from polytag.files import cache_folder
from polytag.images import decode
from polytag.model import build_classifier
from polytag.trainable import copied, freeze
from polytag.trunk import Reuse, settled, split_at
from polytag.trunk.lean import LeanConv, make_lean
from polytag.trunk.split import shared_copy
from polytag.trunk.trial import Costs, measured, seconds_of_answers, seconds_of_training
from polytag.trunk.views import fitting

# Two stages that share what is kept; the torch engine, so that nothing has to be exported.
KEPT: dict[str, object] = {
    "training.cache": "on",
    "training.cache_views": 2,
    "training.precision": "fp32",
    "features.engine": "torch",
    "stages": [
        {"name": "last", "epochs": 2, "lr": 0.01, "frozen": 3},
        {"name": "more", "epochs": 3, "lr": 0.01, "frozen": 2},
    ],
}
VARIED = {"augment.crop": "resized", "augment.flip": 0.5}


@pytest.fixture(scope="module", autouse=True)
def alone():
    with one_thread():
        yield


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYTAG_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Pictures:
    return save_pictures(tmp_path_factory.mktemp("pictures"), 16)


@pytest.fixture(scope="module")
def choose(tmp_path_factory) -> Pictures:
    return save_pictures(tmp_path_factory.mktemp("choose"), 9, seed=1)


def classifier(name: str = "test_resnet", layers: str = "all", size: int = 32, **head: object):
    recipe = tiny_recipe({f"head.{key}": value for key, value in head.items()})
    weights = BackboneConfig(name=name, weights="none")
    features = FeaturesConfig(layers=layers)
    backbone = load_backbone(weights, PreprocessConfig(size=size), features)
    return build_classifier(recipe, backbone, len(NAMES)).eval()


def random_images(count: int = 3, size: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator)


# -------------------------------------------------------------------------------- two parts


@pytest.mark.parametrize("layers", ["all", "last"])
@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_both_parts_together_are_the_whole(name, layers):
    model, images = classifier(name, layers), random_images()
    whole = model(images)
    depths = range(max(model.backbone.depths().values()) + 1)
    splits = {depth: split for depth in depths if (split := split_at(model, depth))}
    assert {*depths} - {*splits} <= {0}
    for depth, split in splits.items():
        seen = split.trunk(images)
        assert split.depth == depth
        assert torch.equal(split.upper(*seen), whole)
        assert seen[1].shape[1] <= model.backbone.width
    # Frozen whole, nothing but the head and a pooling is left to compute.
    assert {name for name, _ in splits[max(splits)].upper.named_parameters()} == {
        "head.linear.weight",
        "head.linear.bias",
    }


def test_the_parts_have_the_parameters_of_the_whole_and_their_names():
    model = classifier()
    split = split_at(model, 2)
    whole = dict(model.named_parameters())
    above = dict(split.upper.named_parameters())
    assert all(parameter is whole[name] for name, parameter in above.items())
    depths = {f"backbone.{name}": depth for name, depth in model.backbone.depths().items()}
    assert {n for n in above if n in depths} == {n for n, depth in depths.items() if depth > 2}
    below = {id(parameter) for parameter in split.trunk.parameters()}
    assert below == {id(whole[name]) for name, depth in depths.items() if depth <= 2}
    assert set(split.upper.state_dict()) <= set(model.state_dict())


def test_what_is_trained_above_is_seen_by_the_whole():
    model, images = classifier(), random_images()
    split = split_at(model, 2)
    with torch.no_grad():
        for parameter in split.upper.parameters():
            parameter.add_(0.1)
        assert torch.equal(split.upper(*split.trunk(images)), model(images))


@pytest.mark.parametrize(
    "depth, options",
    [
        (-1, {}),
        (2, {"kind": "attention"}),
        (2, {"name": "test_vit", "size": 160}),
        (2, {"name": "test_nfnet"}),
    ],
)
def test_a_network_that_cannot_be_parted_is_left_whole(depth, options):
    assert split_at(classifier(**options), depth) is None


def test_parts_that_do_not_give_the_whole_are_refused(monkeypatch):
    model = classifier()
    assert split_at(model, 2)
    monkeypatch.setattr(module.split.Upper, "forward", None)  # the check asks features, not logits
    plain = type(model.backbone).forward
    count = iter(range(100))
    monkeypatch.setattr(
        type(model.backbone), "forward", lambda self, images: plain(self, images) + next(count)
    )
    assert split_at(model, 2) is None


# ----------------------------------------------------------------------------- fewer passes


def gradients_of(model: nn.Module, *given: torch.Tensor) -> dict[int, torch.Tensor]:
    model.zero_grad()
    model(*given).square().sum().backward()
    return {id(p): p.grad.clone() for p in model.parameters() if p.grad is not None}


@pytest.mark.parametrize("depthwise", [False, True])
@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_the_lean_form_has_the_same_output_and_gradients(name, depthwise):
    model = classifier(name)
    freeze(model, 1, depthwise=depthwise)
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.uniform_(-0.2, 0.2)
                part.running_var.uniform_(0.5, 2)
                part.weight.uniform_(0.5, 2)
                part.bias.uniform_(-0.2, 0.2)
    split = split_at(model, 1)
    seen = [tensor.detach() for tensor in split.trunk(random_images())]
    lean = shared_copy(split.upper)
    make_lean(lean)
    assert any(isinstance(part, LeanConv) for part in lean.modules())
    torch.testing.assert_close(lean(*seen), split.upper(*seen), rtol=1e-4, atol=1e-4)
    found, expected = gradients_of(lean, *seen), gradients_of(split.upper, *seen)
    assert found.keys() == expected.keys()
    for key, gradient in expected.items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(found[key], gradient, rtol=1e-3, atol=1e-4 * max(scale, 1))


def test_a_depthwise_convolution_stays_in_float32():
    seen = {}

    def note(layer, _, output):
        seen[layer.conv.groups > 1] = output.dtype

    layers = nn.Sequential(
        *(nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8)),
        *(nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.BatchNorm2d(8)),
    ).eval()
    make_lean(layers)
    for layer in (layers[0], layers[2]):
        layer.register_forward_hook(note)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layers(torch.randn(2, 8, 5, 5))
    assert seen == {False: torch.bfloat16, True: torch.float32}


# ---------------------------------------------------------------------------- what is kept


def reuse_of(pictures: Pictures, changes: dict[str, object] | None = None) -> Reuse:
    recipe = tiny_recipe(KEPT | VARIED | (changes or {}))
    model = tiny_loop(recipe, pictures).model
    return Reuse(model, recipe, pictures, 1)


def nothing() -> None:
    pass


def test_the_kept_numbers_are_the_trunks_of_the_varied_pictures(pictures):
    reuse = reuse_of(pictures)
    rows = np.array([3, 0, 15])
    for stage in (0, 1):
        split = reuse.split(stage, nothing)
        for epoch in (0, 1, 2):
            maps, pooled = reuse.take(split, rows, epoch)
            augment = make_augment(reuse.recipe.augment, reuse.model.backbone.spec)
            varied = [
                augment(decode(pictures.paths[row]), derived(42, AUGMENT, (epoch + row) % 2, row))
                for row in rows
            ]
            expected = split.trunk.eval()(torch.from_numpy(np.stack(varied)))
            assert maps.dtype == torch.bfloat16
            torch.testing.assert_close(maps.float(), expected[0], rtol=2**-8, atol=1e-6)
            torch.testing.assert_close(pooled, expected[1], rtol=1e-5, atol=1e-6)


def test_epochs_take_the_views_in_turn(pictures):
    reuse, rows = reuse_of(pictures), np.arange(16)
    split = reuse.split(1, nothing)
    taken = [reuse.take(split, rows, epoch)[1] for epoch in range(3)]
    assert torch.equal(taken[0], taken[2])
    assert not torch.isclose(taken[0], taken[1]).all(1).any()


def kept_files() -> list[str]:
    return sorted(path.parent.name for path in (cache_folder() / "trunks").glob("*/views.npy"))


def compute(pictures: Pictures, changes: dict[str, object] | None = None) -> str:
    """Return the name of what a recipe keeps, everything else removed."""
    shutil.rmtree(cache_folder() / "trunks", ignore_errors=True)
    reuse_of(pictures, changes).split(0, nothing)
    (name,) = kept_files()
    return name


def test_the_key_names_all_that_decides_the_numbers(pictures, tmp_path):
    other = save_pictures(tmp_path / "other", 16, seed=2)
    names = [
        compute(pictures),
        compute(pictures, {"seed": 1}),  # other random weights, too
        compute(pictures, {"augment.flip": 0.4}),
        compute(pictures, {"preprocess.size": 40}),
        compute(pictures, {"training.cache_views": 1}),
        compute(pictures, {"stages.1.frozen": 1}),
        compute(pictures, {"backbone.name": "test_efficientnet"}),
        compute(other),
    ]
    assert len(set(names)) == len(names)
    moved = Pictures(
        [shutil.copy(path, tmp_path / path.name) for path in pictures.paths], pictures.values * 0
    )
    moved = Pictures([tmp_path / path.name for path in pictures.paths], moved.values)
    assert compute(moved) == names[0]  # of content, not of places or labels


def test_what_is_kept_is_not_computed_again_and_is_the_same_if_it_is(pictures, monkeypatch):
    first = reuse_of(pictures)
    first.split(0, nothing)
    rows = np.array(first.views.rows)
    again = reuse_of(pictures)
    monkeypatch.setattr(again, "_run", lambda trunk: pytest.fail("computed again"))
    again.split(0, nothing)
    assert again.views.rows.tobytes() == rows.tobytes()
    compute(pictures)
    third = reuse_of(pictures)
    third.split(0, nothing)
    assert third.views.rows.tobytes() == rows.tobytes()


def test_nothing_half_written_is_left_or_read(pictures):
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reuse_of(pictures).split(0, interrupt)
    assert kept_files() == []
    reuse_of(pictures).split(0, nothing)
    (path,) = (cache_folder() / "trunks").glob("*/views.npy")
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])  # as a bad disk may leave it
    reuse_of(pictures).split(0, nothing)
    assert path.read_bytes() == whole


def test_a_deadline_ends_the_computing_of_views_too(pictures, choose, monkeypatch):
    """The second stage cannot begin, and what the first one left is kept."""
    recipe = tiny_recipe(KEPT | VARIED)
    loop = tiny_loop(recipe, pictures, choose)
    first = next(iter(loop.model.state_dict().values())).clone()
    history = loop.run(deadline=time.monotonic() - 1)
    assert history.losses == [] and kept_files() == []
    assert [epoch.number for epoch in history.epochs] == [0]
    assert torch.equal(next(iter(loop.model.state_dict().values())), first)
    assert np.isfinite(loop.predict(choose)).all()


def test_a_damaged_graph_of_frozen_layers_is_made_again(pictures, caplog):
    by_onnx: dict[str, object] = {"features.engine": "onnxruntime"}
    reuse_of(pictures, by_onnx).split(0, nothing)
    (graph,) = (cache_folder() / "backbones").glob("*/trunk.onnx")
    whole = graph.read_bytes()
    graph.write_bytes(whole[:1000])
    shutil.rmtree(cache_folder() / "trunks")
    with caplog.at_level(logging.WARNING, "polytag"):
        assert reuse_of(pictures, by_onnx).split(0, nothing)
    assert "a damaged file of the cache" in caplog.text and graph.read_bytes() == whole


def test_a_picture_that_is_gone_is_named(pictures, tmp_path):
    paths = [*pictures.paths[:-1], tmp_path / "gone.png"]
    with pytest.raises(UserError, match=r"gone\.png"):
        reuse_of(Pictures(paths, pictures.values)).split(0, nothing)
    assert kept_files() == []


def test_only_so_many_views_are_kept_as_fit(pictures, caplog):
    assert fitting(8, rows=1000, row_bytes=100_000, gigabytes=0.5) == 5
    assert fitting(8, rows=1000, row_bytes=100_000, gigabytes=0.05) == 0
    reuse = reuse_of(pictures)
    reuse.split(0, nothing)
    each = reuse.views.rows.nbytes / 2 / 1e9
    small = reuse_of(pictures, {"training.cache_gb": each * 1.5})
    small.split(0, nothing)
    assert small.views.rows.shape == (1, 16)
    with caplog.at_level(logging.INFO):
        none = reuse_of(pictures, {"training.cache_gb": each * 0.5})
        assert none.split(0, nothing) is None and none.split(1, nothing) is None
    assert "training.cache_gb allows" in caplog.text


def test_never_more_views_than_epochs(pictures):
    reuse = reuse_of(pictures, {"training.cache_views": 9})
    reuse.split(0, nothing)
    assert len(reuse.views.rows) == 3


def test_without_room_frozen_layers_are_computed_anew(pictures, monkeypatch, caplog):
    monkeypatch.setenv("POLYTAG_CACHE_SIZE", "1kB")
    reuse = reuse_of(pictures)
    with caplog.at_level(logging.INFO):
        assert reuse.split(0, nothing) is None
    assert "no room" in caplog.text and kept_files() == []


def test_what_is_kept_stays_while_it_is_used(pictures):
    reuse = reuse_of(pictures)
    reuse.split(0, nothing)
    assert clear(cache_folder(), ["trunks"])[0] == [] and len(kept_files()) == 1
    del reuse
    gc.collect()
    assert len(clear(cache_folder(), ["trunks"])[0]) == 1 and kept_files() == []


# ------------------------------------------------------------------------ which stages reuse


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"augment.mixup": 0.2}, "MixUp"),
        ({"augment.cutmix": 0.2}, "MixUp and CutMix"),
        ({"head.kind": "attention", "head.hidden": 8}, "positions"),
    ],
)
def test_what_cannot_be_reused_is_said(pictures, caplog, changes, said):
    with caplog.at_level(logging.INFO):
        assert reuse_of(pictures, changes).splits == {}
    assert said in caplog.text and "computed anew in every epoch" in caplog.text


def test_several_processes_keep_nothing(pictures, caplog):
    recipe = tiny_recipe(KEPT)
    with caplog.at_level(logging.INFO):
        assert Reuse(tiny_loop(recipe, pictures).model, recipe, pictures, 2).splits == {}
    assert "several processes" in caplog.text


def test_it_is_off_unless_asked_for(pictures, caplog):
    with caplog.at_level(logging.INFO):
        assert reuse_of(pictures, {"training.cache": "off"}).splits == {}
    assert not caplog.text


def test_layers_that_an_earlier_stage_has_trained_are_not_reused(pictures):
    stages = [
        {"name": "a", "epochs": 1, "frozen": 3},
        {"name": "b", "epochs": 1, "frozen": 1},
        {"name": "c", "epochs": 1, "frozen": 3},
        {"name": "d", "epochs": 1, "frozen": 1},
        {"name": "e", "epochs": 1, "frozen": "nothing"},
        {"name": "f", "epochs": 1, "frozen": 1},
    ]
    assert sorted(reuse_of(pictures, {"stages": stages}).splits) == [0, 1, 3]


def test_auto_is_on_for_a_cpu_and_measured_elsewhere(pictures, monkeypatch):
    recipe = tiny_recipe(KEPT | {"training.cache": "auto"})
    model = tiny_loop(recipe, pictures).model
    assert settled(recipe, model, pictures) == "on"
    assert settled(tiny_recipe(KEPT), model, pictures) == "on"
    assert settled(tiny_recipe(), model, pictures) == "off"
    # The processor in the GPU's place, with times that speak for one of the two.
    elsewhere = recipe.model_copy(update={"device": "cpu:0"})
    slow, quick = (Costs(decode, 1e-3, 1e-3, 1e-3, 1e-3) for decode in (1e-2, 1e-9))
    for costs, expected in ((slow, "on"), (quick, "off")):
        monkeypatch.setattr(module, "measured", lambda *_, found=costs: found)
        assert settled(elsewhere, model, pictures) == expected


@pytest.mark.parametrize("depth", [2, -1])
def test_measuring_leaves_the_weights(pictures, depth):
    recipe = tiny_recipe(KEPT)
    model = tiny_loop(recipe, pictures).model
    before = copied(model.state_dict())
    costs = measured(model, recipe, pictures, depth)
    assert min(vars(costs).values()) > 0
    assert np.isfinite([costs.decode, costs.whole]).all()
    assert np.isfinite([costs.trunk, costs.upper]).all() == (depth == 2)
    assert the_same(before, model.state_dict())


def test_seconds_count_views_once_and_epochs_each():
    recipe = tiny_recipe(KEPT | {"training.cache_views": 4})  # 2 epochs and 3
    costs = {3: Costs(0.01, 1, 0.1, 0.2, 0.4), 2: Costs(0.01, 1, 0.05, 0.5, 0.3)}
    rows = {"train": 100, "choose": 0, "holdout": 0}
    kept = seconds_of_training(recipe, costs, [3, 2], rows)
    assert kept == pytest.approx(100 * (2 * 0.2 + 3 * 0.5) + 100 * 4 * 0.11, abs=2.1)
    anew = seconds_of_training(tiny_recipe(KEPT | {"training.cache": "off"}), costs, [3, 2], rows)
    assert anew == pytest.approx(100 * 5 * 1.01)
    off = tiny_recipe(KEPT | {"training.cache": "off"})
    judged = seconds_of_training(off, costs, [3, 2], rows | {"choose": 30})
    assert judged == pytest.approx(anew + 30 * (2 * 0.41 + 3 * 0.31))
    judged = seconds_of_training(recipe, costs, [3, 2], rows | {"choose": 30})
    assert judged == pytest.approx(kept + 30 * (2 * 0.2 + 3 * 0.5) / 3)
    asked = seconds_of_answers(costs, rows | {"choose": 30, "holdout": 20})
    assert asked == pytest.approx(50 * (0.01 + 0.4))


# -------------------------------------------------------------------------------- the loop


def test_a_step_has_the_gradient_of_the_whole_network(pictures):
    one = [{"name": "blocks", "epochs": 1, "lr": 1e-300, "frozen": 2}]
    recipe = tiny_recipe(KEPT | still(batch=16) | {"stages": one})
    loop = tiny_loop(recipe, pictures)
    found = recorded_gradients(loop)
    loop.run()
    expected, _ = plain_gradients(recipe, pictures, range(16))
    depths = loop.model.backbone.depths()
    assert found[0].keys() == {n for n in expected if depths.get(n[9:], 9) > 2}
    for name, gradient in found[0].items():
        error = (gradient - expected[name]).norm()
        assert error <= 0.05 * expected[name].norm() + 1e-6, name  # the map has 8 bits
    assert any(gradient.norm() > 1e-3 for gradient in found[0].values())


def test_a_later_epoch_decodes_nothing(pictures, monkeypatch):
    loop = tiny_loop(tiny_recipe(KEPT | VARIED), pictures)
    monkeypatch.setattr("polytag.feed.decode", lambda *_: pytest.fail("decoded again"))
    assert len(loop.run().epochs) == 5
    assert loop.reuse.views.rows.shape == (2, 16)


def test_frozen_layers_stay_and_the_others_move(pictures, choose):
    loop = tiny_loop(tiny_recipe(KEPT | VARIED), pictures, choose)
    before = copied(loop.model.state_dict())
    loop.run()
    depths, after = loop.model.backbone.depths(), loop.model.state_dict()
    for name, depth in depths.items():
        same = torch.equal(before[f"backbone.{name}"], after[f"backbone.{name}"])
        assert same == (depth <= 2), name
    # BatchNorm statistics of trained layers, too: they are the whole network's own.
    moved = [
        n for n in after if n.endswith("running_mean") and not torch.equal(before[n], after[n])
    ]
    assert moved


def test_what_judges_is_the_whole_network(pictures, choose):
    loop = tiny_loop(tiny_recipe(KEPT | VARIED | {"training.ema": 0.1}), pictures, choose)
    seen = []
    judge = loop.judge.predict

    def both(given, state, split=None):
        found = judge(given, state, split)
        if split is not None:
            seen.append(np.array_equal(found, judge(given, state)))
        return found

    loop.judge.predict = both
    loop.run()
    assert seen == [True] * 5
    loop.model.eval()
    expected = loop.model(pixels(choose, range(9))).detach().numpy()
    np.testing.assert_allclose(loop.predict(choose), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_the_same_seed_gives_the_same_run(pictures, precision):
    recipe = tiny_recipe(KEPT | VARIED | {"training.precision": precision, "head.dropout": 0.3})
    ends = []
    for _ in range(2):
        loop = tiny_loop(recipe, pictures)
        loop.run()
        ends.append(copied(loop.model.state_dict()))
    assert the_same(*ends)


class KilledError(Exception):
    pass


@pytest.mark.parametrize("removed", [False, True])
@pytest.mark.parametrize("step", [1, 5, 8])
def test_a_run_goes_on_bit_for_bit(pictures, choose, tmp_path, step, removed):
    options = {"training.checkpoint_minutes": 1e-9, "training.ema": 0.2, "head.dropout": 0.3}
    recipe = tiny_recipe(KEPT | VARIED | options)
    whole = tiny_loop(recipe, pictures, choose)
    whole.run()
    first = tiny_loop(recipe, pictures, choose, folder=tmp_path)
    pause, count = first._pause, iter(range(100))

    def die() -> None:
        pause()
        if next(count) == step:
            raise KilledError

    first._pause = die
    with pytest.raises(KilledError):
        first.run()
    if removed:
        shutil.rmtree(cache_folder())
    again = tiny_loop(recipe, pictures, choose, folder=tmp_path)
    again.run(resume=True)
    assert again.history.losses == whole.history.losses
    assert the_same(again.model.state_dict(), whole.model.state_dict())


def test_ctrl_c_while_views_are_computed_ends_it(pictures, monkeypatch):
    loop = tiny_loop(tiny_recipe(KEPT | VARIED), pictures)
    run = loop.reuse._run

    def press(trunk):
        signal.raise_signal(signal.SIGINT)
        return run(trunk)

    monkeypatch.setattr(loop.reuse, "_run", press)
    with pytest.raises(KeyboardInterrupt):
        loop.run()
    assert kept_files() == [] and not loop.history.losses


def test_onnxruntime_gives_what_torch_gives(pictures):
    rows = np.arange(16)
    one, other = reuse_of(pictures), reuse_of(pictures, {"features.engine": "onnxruntime"})
    for stage in (0, 1):
        expected, found = (
            reuse.take(reuse.split(stage, nothing), rows, 0) for reuse in (one, other)
        )
        torch.testing.assert_close(found[1], expected[1], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(found[0], expected[0], rtol=2**-7, atol=1e-3)
