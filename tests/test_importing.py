"""A network that was trained elsewhere becomes a run: the same answers, and no number invented."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import polytag
from polytag import importing, plots
from polytag.backbone import import_timm
from polytag.config import load_recipe
from polytag.engine import open_engine
from polytag.errors import ModelError, RecipeError, UserError
from polytag.model import load_classifier

from .conftest import World

NAMES = ("hat", "scarf", "tie")
SIDE = 64
SMALL = {"preprocess.size": SIDE}
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALVES = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def with_a_past(network: nn.Module) -> nn.Module:
    """Give a network numbers of which none may be lost or stand in another's place.

    Its batch norms have seen pictures, so that what it answers depends on what it is shown.
    """
    torch.manual_seed(3)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    network.eval()
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, 0, 0.1)
        norm.train().momentum = None  # the mean of what it sees
    if norms:
        with torch.no_grad():
            network(torch.randn(8, 3, SIDE, SIDE) + torch.randn(8, 3, 1, 1))
    for norm in norms:
        norm.momentum = 0.1
    return network.eval()


def torchvision_network(name: str, head: nn.Module) -> nn.Module:
    import_timm()  # the door through which torchvision can be imported too
    import torchvision

    network = getattr(torchvision.models, name)(weights=None)
    if hasattr(network, "fc"):
        network.fc = head
    else:
        network.classifier[-1] = head
    return with_a_past(network)


def timm_network(name: str, **options: Any) -> nn.Module:
    options = {"num_classes": len(NAMES)} | options
    torch.manual_seed(5)
    return with_a_past(import_timm().create_model(name, pretrained=False, **options))


def pictures(count: int = 3, side: int = SIDE) -> np.ndarray:
    """Return pictures of different colours, uint8 (count, side, side, 3)."""
    rng = np.random.default_rng(0)
    noise = rng.uniform(0, 1, (count, side, side, 3))
    return np.uint8(255 * noise * rng.uniform(0, 1, (count, 1, 1, 3)))


def expected(network: nn.Module, mean_std: Any, images: np.ndarray) -> np.ndarray:
    """Return what the network itself answers, its input made as its owner would."""
    mean, std = (np.array(numbers)[:, None, None] for numbers in mean_std)
    x = (images.transpose(0, 3, 1, 2) / 255.0 - mean) / std
    with torch.no_grad():
        logits = network(torch.from_numpy(x.astype(np.float32)))
    answers = torch.sigmoid(logits).numpy()
    assert answers.std(axis=0).max() > 1e-2  # else any network would do
    return answers


@pytest.fixture
def not_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the model file empty, which saves most of an import's time."""
    monkeypatch.setattr(importing, "write_classifier", lambda model, info, path: path.touch())


def in_torch(run: polytag.runs.Run, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return torch.sigmoid(load_classifier(run)(torch.from_numpy(images))).numpy()


# -------------------------------------------------------------------------- the same answers


@pytest.mark.parametrize(
    ("backbone", "build", "mean_std"),
    [
        ("resnet18", lambda: torchvision_network("resnet18", nn.Linear(512, 3)), IMAGENET),
        (
            "efficientnet_b0",
            lambda: torchvision_network("efficientnet_b0", nn.Linear(1280, 3)),
            IMAGENET,
        ),
        ("test_vit", lambda: timm_network("test_vit", img_size=SIDE), HALVES),
    ],
    ids=["torchvision resnet18", "torchvision efficientnet_b0", "timm test_vit"],
)
def test_a_run_answers_what_the_imported_network_answers(tmp_path, backbone, build, mean_std):
    network = build()
    file = tmp_path / "own.pth"
    torch.save({"epoch": 7, "model_state_dict": network.state_dict()}, file)
    run = polytag.import_weights(
        file, backbone=backbone, attributes=NAMES, changes=SMALL, folder=tmp_path
    )
    images = pictures()
    wanted = expected(network, mean_std, images)
    predictor = polytag.load(run)
    np.testing.assert_allclose(predictor.probabilities(images), wanted, atol=1e-4)
    np.testing.assert_allclose(in_torch(run, images), wanted, atol=1e-4)
    # The embedding is what the head sees.
    [embedding] = open_engine("onnxruntime", predictor.path, ["embedding"])(images)
    head = load_classifier(run).head.linear
    logits = embedding @ head.weight.detach().numpy().T + head.bias.detach().numpy()
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), wanted, atol=1e-4)


class Wrapped(nn.Module):
    """A network as people build them: a body without its head, and a head of their own."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, images: Tensor) -> Tensor:
        for part in self.children():
            images = part(images)
        return images


def body() -> nn.Module:
    return timm_network("test_resnet", num_classes=0)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "fc": lambda: timm_network("test_resnet"),
    "fc.1, behind a dropout": lambda: with_fc(nn.Sequential(nn.Dropout(0.4), nn.Linear(96, 3))),
    "a body and a classifier": lambda: Wrapped(backbone=body(), classifier=nn.Linear(96, 3)),
    "a body and a last_linear": lambda: Wrapped(base=body(), last_linear=nn.Linear(96, 3)),
    "all in one module": lambda: Wrapped(net=timm_network("test_resnet")),
    "head.fc, behind the network's own head.norm": lambda: timm_network("test_convnext"),
    "two modules deep": lambda: Wrapped(a=Wrapped(b=timm_network("test_resnet"))),
}


def with_fc(head: nn.Module) -> nn.Module:
    network = timm_network("test_resnet")
    network.fc = head
    return network.eval()


def prefixed(prefix: str) -> Callable[[dict[str, Tensor]], dict[str, Any]]:
    return lambda state: {f"{prefix}{key}": tensor for key, tensor in state.items()}


FILES: dict[str, Callable[[dict[str, Tensor]], dict[str, Any]]] = {
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "model_state_dict": lambda state: {"model_state_dict": state, "optimizer": {"lr": 0.1}},
    "module.": prefixed("module."),
    "nested module.": lambda state: {"model_state_dict": prefixed("module.")(state)},
    "_orig_mod.": prefixed("_orig_mod."),
}


def imported(file: Path, folder: Path, **options: Any) -> polytag.runs.Run:
    options = {"backbone": "test_resnet", "attributes": NAMES, "changes": SMALL} | options
    return polytag.import_weights(file, folder=folder, **options)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_a_head_is_found_under_every_usual_name(tmp_path, not_exported, name, ending):
    network = NETWORKS[name]().eval()
    file = tmp_path / f"own.{ending}"
    state = {key: tensor.contiguous() for key, tensor in network.state_dict().items()}
    save = {"pth": torch.save, "safetensors": save_file}[ending]
    save(state, file)
    backbone = "test_convnext" if "norm" in name else "test_resnet"
    run = imported(file, tmp_path, backbone=backbone)
    wanted = expected(network, HALVES, pictures())
    np.testing.assert_allclose(in_torch(run, pictures()), wanted, atol=1e-5)


@pytest.mark.parametrize("name", FILES)
def test_wrapping_dictionaries_and_prefixes_are_taken_off(tmp_path, not_exported, name):
    network = timm_network("test_resnet")
    torch.save(FILES[name](network.state_dict()), tmp_path / "own.pth")
    run = imported(tmp_path / "own.pth", tmp_path)
    wanted = expected(network, HALVES, pictures())
    np.testing.assert_allclose(in_torch(run, pictures()), wanted, atol=1e-5)


@pytest.mark.parametrize(
    "own", [((0.0,) * 3, (1.0,) * 3), ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))], ids=["none", "its own"]
)
def test_a_training_that_normalised_otherwise_can_say_so(tmp_path, not_exported, own):
    network = timm_network("test_resnet")
    torch.save(network.state_dict(), tmp_path / "own.pth")
    changes = SMALL | {"preprocess.mean": own[0], "preprocess.std": own[1]}
    run = imported(tmp_path / "own.pth", tmp_path, changes=changes)
    wanted = expected(network, own, pictures())
    np.testing.assert_allclose(in_torch(run, pictures()), wanted, atol=1e-5)


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    network = timm_network("test_resnet")
    with torch.no_grad():
        next(network.parameters()).view(-1)[0] = torch.nan
    torch.save(network.state_dict(), tmp_path / "own.pth")
    with pytest.raises(ModelError, match="weights that are no numbers"):
        imported(tmp_path / "own.pth", tmp_path / "runs")


def test_torchvisions_own_dropout_and_half_precision_are_no_obstacle(tmp_path, not_exported):
    network = torchvision_network("resnet18", nn.Sequential(nn.Dropout(0.4), nn.Linear(512, 3)))
    torch.save({k: v.half() for k, v in network.state_dict().items()}, tmp_path / "own.pth")
    run = imported(tmp_path / "own.pth", tmp_path, backbone="resnet18")
    wanted = expected(network, IMAGENET, pictures())
    np.testing.assert_allclose(in_torch(run, pictures()), wanted, atol=1e-2)


# ------------------------------------------------------------------------- what a run leaves


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return timm_network("test_resnet")


@pytest.fixture(scope="module")
def file(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "mine.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def run(file: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> polytag.runs.Run:
    """An import whose attributes the drawn world has; nobody may change it."""
    return imported(
        file,
        tmp_path_factory.mktemp("imports"),
        attributes=["red", "bright", "a|b"],
        changes={"preprocess.size": 32, "preprocess.resize": "squash", "decisions.target": 0.4},
    )


def strict_json(path: Path) -> Any:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def test_an_imported_run_holds_what_can_be_known_and_nothing_else(run):
    assert run.path.name == "import-1"
    assert sorted(path.name for path in run.path.iterdir()) == [
        "README.md",
        "config.toml",
        "metrics.json",
        "model.onnx",
        "weights.safetensors",
    ]
    assert (run.path.parent / "latest").resolve() == run.path.resolve()


def test_no_number_is_invented(run):
    metrics = strict_json(run.path / "metrics.json")
    assert metrics == run.metrics
    assert (metrics["method"], metrics["rows"], metrics["judged"]) == ("import", 0, 0)
    assert "Nothing was measured" in metrics["note"]
    assert metrics["imported"]["file"] == "mine.pth" and len(metrics["imported"]["sha256"]) == 64
    for entry in metrics["attributes"]:
        assert {entry[kind]["value"] for kind in ("ap", "auc", "f1", "accuracy")} == {None}
    means = [*metrics["macro"].values(), metrics["hamming"], metrics["log_loss"]]
    assert {mean["value"] for mean in means} == {None}


def test_the_model_file_says_what_it_is(run):
    info = polytag.load(run).info
    assert (info.attributes, info.thresholds) == (("red", "bright", "a|b"), (0.4,) * 3)
    assert info.preprocess.to_dict() == {
        "size": 32,
        "resize": "squash",
        "interpolation": "bilinear",
        "crop_fraction": 0.95,
    }
    assert (info.recipe["method"], info.recipe["backbone"]["name"]) == ("import", "test_resnet")
    assert (info.splits_hash, info.weights_licence) == ("", "unknown")
    assert info.metrics["macro"]["ap"]["value"] is None
    assert (info.calibration, info.cuts, info.unsure, info.verdicts) == (None, None, {}, {})
    assert info.recipe["decisions"] | {"confidence": None} == {
        "calibrate": "none",
        "target": 0.4,
        "max_error": 0.0,
        "confidence": None,
    }
    assert {"polytag", "torch", "timm"} <= set(info.versions)


def test_the_card_says_where_it_comes_from_and_that_nothing_was_measured(run):
    card = (run.path / "README.md").read_text(encoding="utf-8")
    assert "Trained elsewhere" in card and "`mine.pth`" in card and "Nothing was measured" in card
    assert "| red | 0.4 |" in card and r"| a\|b | 0.4 |" in card
    assert "squash to 32 x 32" in card and "macro AP" not in card and "repeats this run" not in card


def test_evaluate_cannot_know_what_an_imported_network_was_trained_on(run, world: World):
    judged = polytag.evaluate(run, world.table(), world.images)
    assert judged.seen is None and "cannot tell" in judged.warning
    assert judged.rows == len(world.good) and judged.unlabelled == ("a|b",)
    assert np.isfinite(judged.evaluation.macro["ap"].value)


def test_the_config_names_the_network_and_trains_a_new_head_on_it(
    run, world: World, network, tmp_path, monkeypatch
):
    recipe = load_recipe(run.path / "config.toml")
    assert recipe.features.layers == "last" and "auto" not in recipe.preprocess.model_dump()
    monkeypatch.setattr(plots, "loss_curve", lambda history, title, path: path.touch())
    monkeypatch.setattr(plots, "sample_predictions", lambda samples, names, path: path.touch())
    changes = {"split.folds": 3, "probe.l2": 1.0, "features.engine": "torch"}
    trained = polytag.fit(
        world.table(),
        world.images,
        recipe=run.path / "config.toml",
        changes=changes,
        folder=tmp_path,
    )
    own = dict(load_classifier(trained).backbone.network.named_parameters())
    theirs = dict(network.named_parameters())
    assert theirs.keys() - own.keys() == {"fc.weight", "fc.bias"}
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in own.items())
    assert trained.metrics["judged"] == len(world.good)


def test_the_command_line_imports_evaluates_and_predicts(cli, file, world: World, tmp_path):
    words = ("--backbone", "test_resnet", "--attributes", "red, bright,striped", "--name", "mine")
    sets = ("--set", "preprocess.size=32", "--threshold", "0.3", "--runs", tmp_path)
    answer = cli("import", file, *words, *sets)
    assert answer.code == 0, answer.err
    assert "Nothing was measured" in answer.out
    assert f"polytag evaluate {tmp_path / 'mine'}" in answer.out
    assert polytag.load(tmp_path / "mine").info.thresholds == (0.3,) * 3
    judged = cli("evaluate", tmp_path / "mine", world.labels, "--images", world.images)
    assert judged.code == 0 and "cannot tell" in judged.out
    said = cli("predict", tmp_path / "mine", world.path(world.names[0]))
    assert said.code == 0 and "striped" in said.out


def test_the_command_line_prints_one_json_object(cli, file, tmp_path, not_exported):
    words = ("--backbone", "test_resnet", "--attributes", "a,b,c", "--runs", tmp_path, "--json")
    answer = cli("import", file, *words, "--set", "preprocess.size=32")
    assert answer.json["run"] == str(tmp_path / "import-1") and answer.json["rows"] == 0


# ---------------------------------------------------------------------- what is refused, and how


def saved(path: Path, state: Mapping[str, Tensor]) -> Path:
    torch.save(dict(state), path)
    return path


def changed(network: nn.Module, **tensors: Tensor | None) -> dict[str, Tensor]:
    """Return a network's state with some tensors put in (dots written as __) or left out."""
    state = dict(network.state_dict())
    for name, tensor in tensors.items():
        key = name.replace("__", ".")
        state.pop(key, None)
        if tensor is not None:
            state[key] = tensor
    return state


MLP = {
    "fc__0__weight": torch.zeros(8, 96),
    "fc__0__bias": torch.zeros(8),
    "fc__2__weight": torch.zeros(3, 8),
    "fc__2__bias": torch.zeros(3),
}


@pytest.mark.parametrize(
    ("tensors", "parts"),
    [
        (
            {"fc__weight": None, "fc__bias": None},
            ("no head in this file", "got layers in", "expected a last linear layer called fc,"),
        ),
        ({"fc__bias": None}, ("cannot be imported", "got fc.weight (3, 96)", "a bias (K,)")),
        ({"fc__weight": None}, ("cannot be imported", "got fc.bias (3,)", "a weight (K, D)")),
        (
            {"fc__weight": None, "fc__bias": None, **MLP},
            ("cannot be imported", "fc.0.weight (8, 96)", "fc.2.weight (3, 8)", "one linear layer"),
        ),
        (
            {"head__weight": torch.zeros(3, 96), "head__bias": torch.zeros(3)},
            ("cannot be imported", "fc.weight (3, 96)", "head.weight (3, 96)"),
        ),
        (
            {"fc__weight": torch.zeros(3, 96, 1, 1)},
            ("cannot be imported", "fc.weight (3, 96, 1, 1)"),
        ),
        (
            {"fc__weight": torch.zeros(5, 96), "fc__bias": torch.zeros(5)},
            (
                "one output for each attribute",
                "got fc.weight (5, 96)",
                "3 outputs: hat, scarf, tie",
            ),
        ),
        ({"fc__bias": torch.zeros(2)}, ("one output for each attribute", "fc.bias (2,)")),
        (
            {"fc__weight": torch.zeros(3, 192)},
            ("does not fit the last layer of test_resnet", "got 192 inputs", "expected 96"),
        ),
        (
            {"layer4__0__conv1__weight": None},
            ("do not fit the backbone", "layer4.0.conv1.weight", "--backbone"),
        ),
        (
            {"layer4__0__bn1__weight": torch.zeros(7)},
            ("do not fit the backbone", "layer4.0.bn1.weight", "--backbone"),
        ),
    ],
)
def test_a_file_that_is_not_such_a_network_says_what_where_got_and_expected(
    network, tmp_path, tensors, parts
):
    path = saved(tmp_path / "own.pth", changed(network, **tensors))
    with pytest.raises(ModelError) as failed:
        imported(path, tmp_path / "runs")
    said = str(failed.value)
    assert said.startswith(f"{path}: ") and all(part in said for part in parts), said
    assert list((tmp_path / "runs").iterdir()) == []


def test_the_file_of_another_network_is_refused(file, tmp_path):
    with pytest.raises(ModelError, match=r"do not fit the backbone.*--backbone"):
        imported(file, tmp_path, backbone="test_efficientnet")


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"backbone": "resnet19"}, "did you mean"),
        ({"attributes": ()}, "got none"),
        ({"attributes": ["hat", "hat", "tie"]}, "different ones"),
        ({"attributes": ["hat", " ", "tie"]}, "different ones"),
        ({"changes": {"seed": 1}}, "seed: no effect on an import"),
        ({"changes": {"features.layers": "all"}}, "features.layers: no effect"),
        ({"changes": {"backbone.weights": "hub"}}, "backbone.weights: no effect"),
        ({"changes": {"decisions.target": 1.5}}, "decisions.target cannot have this value"),
        ({"changes": {"decisions.target": "f1"}}, "no labels to choose a threshold by; got 'f1'"),
        ({"changes": {"decisions.calibrate": "auto"}}, "decisions.calibrate: no effect"),
        ({"changes": {"decisions.max_error": 0.1}}, "decisions.max_error: no effect"),
        ({"changes": {"preprocess.sise": 32}}, "did you mean 'size'"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_any_work(file, tmp_path, options, part):
    with pytest.raises(RecipeError) as failed:
        imported(file, tmp_path / "runs", **options)
    assert part in str(failed.value)


def test_a_name_that_is_taken_is_refused(file, run, tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="exists already"):
        imported(file, tmp_path, name="mine")


class Evil:
    """Unpickled carelessly, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(network, tmp_path):
    made = tmp_path / "made"
    torch.save({"state_dict": network.state_dict(), "x": Evil(made)}, tmp_path / "own.pth")
    with pytest.raises(ModelError, match="cannot be read"):
        imported(tmp_path / "own.pth", tmp_path)
    assert not made.exists()


def test_an_import_that_cannot_be_finished_leaves_no_folder(file, tmp_path, monkeypatch):
    def full(model: Any, info: Any, path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(importing, "write_classifier", full)
    with pytest.raises(OSError, match="No space"):
        imported(file, tmp_path)
    assert list(tmp_path.iterdir()) == []
