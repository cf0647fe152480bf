"""torch to ONNX: the traced graph is the module's, or another exporter's is taken."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from polytag import conversion
from polytag.backbone import Backbone, load_backbone
from polytag.config import BackboneConfig, FeaturesConfig, PreprocessConfig, load_recipe
from polytag.conversion import to_onnx
from polytag.errors import ModelError
from polytag.heads import HEADS
from polytag.model import Answers, build_classifier

from .conftest import TINY

SIDE = 32


class Halves(nn.Module):
    """Two answers for each picture: a mean of each half."""

    def forward(self, images: Tensor) -> list[Tensor]:
        return [half.float().mean((1, 2)) for half in images.split(SIDE // 2, dim=1)]


class Baked(nn.Module):
    """Exporters take the number of pictures for a constant."""

    def forward(self, images: Tensor) -> Tensor:
        count = int(images.shape[0])
        return images.reshape(count, -1).float()[:, :2] / count


class Branching(nn.Module):
    """Tracing follows one of two ways, that of black pictures; the other exporter gives up."""

    def forward(self, images: Tensor) -> Tensor:
        level = images.float().mean((1, 2))
        return level if not images.any() else level + 1


def load(name: str) -> Backbone:
    config = BackboneConfig(name=name, weights="none")
    return load_backbone(config, PreprocessConfig(size=SIDE), FeaturesConfig()).eval()


def answers(model: onnx.ModelProto, images: np.ndarray) -> list[np.ndarray]:
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, {"images": images})


def noise(count: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)


@pytest.fixture
def slow(monkeypatch) -> list[nn.Module]:
    """What the slow exporter is given."""
    given = []
    real = conversion._by_torch_export

    def told(module: nn.Module, side: int, outputs: list[str]) -> onnx.ModelProto:
        given.append(module)
        return real(module, side, outputs)

    monkeypatch.setattr(conversion, "_by_torch_export", told)
    return given


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "tf_mobilenetv3_small_minimal_100"])
def test_both_exporters_graphs_answer_as_the_module_does(name, slow):
    module, images = load(name), noise(5)
    with torch.no_grad():
        expected = module(torch.from_numpy(images)).numpy()
    traced = to_onnx(module, SIDE, ["embedding"])
    assert slow == []
    with conversion._quietly():
        apart = conversion._by_torch_export(module, SIDE, ["embedding"])
    for model in (traced, apart):
        for count in (1, 2, 5):
            (found,) = answers(model, images[:count])
            np.testing.assert_allclose(found, expected[:count], atol=1e-5 * expected.std())
        shape = model.graph.output[0].type.tensor_type.shape.dim
        assert shape[0].dim_param and shape[1].dim_value == module.width


def test_without_tracing_the_graph_comes_from_the_other_exporter(slow, monkeypatch):
    def none(*_: object) -> onnx.ModelProto:
        raise RuntimeError("no TorchScript any more")

    monkeypatch.setattr(conversion, "_traced", none)
    module = Halves().eval()
    found = answers(to_onnx(module, SIDE, ["upper", "lower"]), noise(3))
    assert slow == [module]
    for one, expected in zip(found, module(torch.from_numpy(noise(3))), strict=True):
        np.testing.assert_allclose(one, expected.numpy(), rtol=1e-5)


@pytest.mark.parametrize("module", [Baked(), Branching()])
def test_a_graph_that_answers_otherwise_is_never_written(module, slow):
    with pytest.raises(ModelError, match="cannot be exported"):
        to_onnx(module.eval(), SIDE, ["level"])
    assert slow == [module]


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("attributes", [1, 3])
def test_every_head_is_traced_for_one_attribute_and_for_many(kind, attributes, slow):
    recipe = load_recipe("finetune", TINY | {"head.kind": kind, "head.init": "random"})
    module = Answers(build_classifier(recipe, load("test_resnet"), attributes)).eval()
    found = answers(to_onnx(module, SIDE, ["logits", "embedding"]), noise(4))
    assert slow == []
    with torch.no_grad():
        expected = module(torch.from_numpy(noise(4)))
    assert found[0].shape == (4, attributes)
    for one, tensor in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, tensor.numpy(), atol=1e-4)


@pytest.mark.parametrize("wrong", [0.98, float("nan")])
def test_a_small_number_beside_large_ones_is_checked_too(wrong):
    wanted = np.array([[1e3, 1.0], [-1e3, 0.5]], np.float32)
    assert conversion._close(wanted * np.float32(1 + 1e-6), wanted)
    assert not conversion._close(wanted * np.array([1, wrong], np.float32), wanted)


def test_a_fault_of_the_machine_is_no_fault_of_the_network(monkeypatch, slow):
    def full(*_: object) -> onnx.ModelProto:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(conversion, "_traced", full)
    with pytest.raises(OSError, match="No space"):
        to_onnx(Halves().eval(), SIDE, ["upper", "lower"])
    assert slow == []


def test_two_threads_may_export(slow):
    modules = [load("tf_mobilenetv3_small_minimal_100") for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        models = list(pool.map(lambda module: to_onnx(module, SIDE, ["embedding"]), modules))
    assert slow == []
    assert models[0].graph.output == models[1].graph.output


def test_a_network_in_training_is_refused():
    with pytest.raises(ValueError, match="evaluation mode"):
        to_onnx(Halves(), SIDE, ["upper", "lower"])


def test_outputs_have_the_names_given_and_no_source_is_told():
    model = to_onnx(Halves().eval(), SIDE, ["upper", "lower"])
    assert [output.name for output in model.graph.output] == ["upper", "lower"]
    assert [each.name for each in model.graph.input] == ["images"]
    assert b"test_conversion" not in model.SerializeToString()


def test_padding_by_a_pictures_side_is_a_part_of_the_convolutions(slow):
    from timm.layers import padding

    before = padding.get_same_padding
    model = to_onnx(load("tf_mobilenetv3_small_minimal_100"), SIDE, ["embedding"])
    kinds = {node.op_type for node in model.graph.node}
    assert "Conv" in kinds and not kinds & {"Pad", "Ceil", "Shape", "ConstantOfShape"}
    assert slow == []
    assert padding.get_same_padding is before
    with pytest.raises(RuntimeError), conversion._padding_by_numbers():
        raise RuntimeError
    assert padding.get_same_padding is before


def test_exporting_says_nothing(capfd, recwarn):
    to_onnx(load("test_resnet"), SIDE, ["embedding"])
    assert capfd.readouterr() == ("", "")
    assert not list(recwarn)
