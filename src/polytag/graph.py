"""From torch to ONNX: a frozen backbone once, its heads appended; a trained network whole."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
from onnx import TensorProto, helper, numpy_helper

from polytag.files import written_aside
from polytag.modelfile import KEY, LinearHead, ModelInfo

if TYPE_CHECKING:
    from torch import nn

    from polytag.backbone import Backbone
    from polytag.model import Classifier


def export_backbone(backbone: Backbone, path: Path) -> None:
    """Write the backbone's graph: ``images`` uint8 (B, S, S, 3) to ``embedding`` float32 (B, D).

    One file, no external data. It takes about 9 s, so callers keep the file.
    """
    with written_aside(path) as aside:
        onnx.save(_exported(backbone, backbone.spec.size, ["embedding"]), str(aside))


def write_classifier(classifier: Classifier, info: ModelInfo, path: Path) -> None:
    """Write a whole network, with any head, as ``model.onnx``."""
    from polytag.model import Answers

    answers = Answers(classifier).eval()
    model = _exported(answers, classifier.backbone.spec.size, ["probabilities", "embedding"])
    _finish(model, info, path)


def _exported(module: nn.Module, side: int, outputs: list[str]) -> onnx.ModelProto:
    import torch  # here, as appending a head to a graph needs only onnx

    example = torch.zeros(2, side, side, 3, dtype=torch.uint8)
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter warns about its own deprecations
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                verbose=False,
                input_names=["images"],
                output_names=outputs,
                dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            )
    finally:
        quiet.setLevel(level)
    if program is None:  # only with arguments we do not give; for the type checker
        raise RuntimeError("torch.onnx.export returned nothing")
    model = program.model_proto
    _forget_source(model.graph)
    return model


def _forget_source(graph: onnx.GraphProto) -> None:
    """Take out where in whose files each node was traced: it is long, and nobody's business."""
    del graph.metadata_props[:]
    for part in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""


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
    graph.node.extend(
        [
            helper.make_node(
                "Gemm",
                ["embedding", "polytag.head.weight", "polytag.head.bias"],
                ["polytag.logits"],
                name="polytag.head",
            ),
            helper.make_node(
                "Sigmoid", ["polytag.logits"], ["probabilities"], name="polytag.sigmoid"
            ),
        ]
    )
    batch = graph.output[0].type.tensor_type.shape.dim[0].dim_param or "batch"
    probabilities = helper.make_tensor_value_info(
        "probabilities", TensorProto.FLOAT, [batch, len(head.bias)]
    )
    embedding = graph.output[0]
    del graph.output[:]
    graph.output.extend([probabilities, embedding])
    _finish(model, info, path)


def _finish(model: onnx.ModelProto, info: ModelInfo, path: Path) -> None:
    helper.set_model_props(model, {KEY: info.to_json()})
    onnx.checker.check_model(model)
    with written_aside(path) as aside:
        onnx.save(model, str(aside))
