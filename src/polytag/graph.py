"""From torch to ONNX: a frozen backbone once, its heads appended; a trained network whole."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from polytag.calibration import Calibration
from polytag.conversion import to_onnx
from polytag.files import written_aside
from polytag.modelfile import KEY, LinearHead, ModelInfo

_LOGITS = "polytag.logits"

if TYPE_CHECKING:
    from torch import nn

    from polytag.backbone import Backbone
    from polytag.model import Classifier


def export_backbone(backbone: Backbone, path: Path) -> None:
    """Write the backbone's graph: ``images`` uint8 (B, S, S, 3) to ``embedding`` float32 (B, D).

    One file, no external data.
    """
    export_module(backbone, backbone.spec.size, ["embedding"], path)


def export_module(module: nn.Module, side: int, outputs: list[str], path: Path) -> None:
    """Write a module's graph: ``images`` uint8 (B, side, side, 3) to outputs of these names."""
    with written_aside(path) as aside:
        onnx.save(to_onnx(module, side, outputs), str(aside))


def write_classifier(classifier: Classifier, info: ModelInfo, path: Path) -> None:
    """Write a whole network, with any head, as ``model.onnx``."""
    from polytag.model import Answers

    answers = Answers(classifier).eval()
    model = to_onnx(answers, classifier.backbone.spec.size, [_LOGITS, "embedding"])
    del model.graph.output[0]
    _finish(model, info, path)


def write_model(backbone_graph: Path, head: LinearHead, info: ModelInfo, path: Path) -> None:
    """Append head and metadata to a backbone's graph and write ``model.onnx``.

    The outputs are ``probabilities`` float32 (B, K) and ``embedding`` float32 (B, D).
    """
    model = onnx.load(str(backbone_graph))
    graph = model.graph
    graph.initializer.extend(
        [
            numpy_helper.from_array(head.weight, "polytag.head.weight"),
            numpy_helper.from_array(head.bias, "polytag.head.bias"),
        ]
    )
    names = ["embedding", "polytag.head.weight", "polytag.head.bias"]
    graph.node.append(helper.make_node("Gemm", names, [_LOGITS], name="polytag.head"))
    _finish(model, info, path)


def _finish(model: onnx.ModelProto, info: ModelInfo, path: Path) -> None:
    """Append calibration and output to a graph that has logits, and write it with its metadata."""
    graph = model.graph
    tree = info.calibration
    calibrated = _calibrate(graph, Calibration.from_dict(tree)) if tree else _LOGITS
    graph.node.append(
        helper.make_node("Sigmoid", [calibrated], ["probabilities"], name="polytag.sigmoid")
    )
    embedding = graph.output[0]
    batch = embedding.type.tensor_type.shape.dim[0].dim_param or "batch"
    shape = [batch, len(info.attributes)]
    probabilities = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, shape)
    del graph.output[:]
    graph.output.extend([probabilities, embedding])
    helper.set_model_props(model, {KEY: info.to_json()})
    onnx.checker.check_model(model)
    with written_aside(path) as aside:
        onnx.save(model, str(aside))


def _calibrate(graph: onnx.GraphProto, calibration: Calibration) -> str:
    """Append c + b softplus(z) - a softplus(-z) and return the name of what it gives."""
    for name in ("a", "b", "c"):
        numbers = getattr(calibration, name).astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(numbers, f"polytag.calibration.{name}"))
    steps = (
        ("Neg", [_LOGITS], "minus"),
        ("Softplus", [_LOGITS], "up"),
        ("Softplus", ["polytag.calibration.minus"], "down"),
        ("Mul", ["polytag.calibration.up", "polytag.calibration.b"], "risen"),
        ("Mul", ["polytag.calibration.down", "polytag.calibration.a"], "fallen"),
        ("Sub", ["polytag.calibration.risen", "polytag.calibration.fallen"], "slope"),
        ("Add", ["polytag.calibration.slope", "polytag.calibration.c"], "logits"),
    )
    for kind, inputs, output in steps:
        name = f"polytag.calibration.{output}"
        graph.node.append(helper.make_node(kind, inputs, [name], name=name))
    return name


def rewrite_info(path: Path, info: ModelInfo) -> None:
    """Replace what a model file says about itself; its graph and other metadata stay."""
    model = onnx.load(str(path))
    kept = {each.key: each.value for each in model.metadata_props}
    helper.set_model_props(model, {**kept, KEY: info.to_json()})
    with written_aside(path) as aside:
        onnx.save(model, str(aside))
