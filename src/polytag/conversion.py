"""A torch module becomes an ONNX graph: traced and checked, or taken apart by the slow exporter.

torch has two exporters. Tracing (TorchScript's, deprecated since 2.9) takes half a second for the
embedded backbone, the one that stands in its place 8 s, most of them spent on reasoning about a
batch of unknown size. Both graphs are equally fast. So it is traced, and the graph has to answer
as the module does, for batches of other sizes than it was traced with; where it does not, or where
tracing is no more, the slow exporter does it, and its graph is checked too.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from polytag.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger("polytag")
_OPSET = 18
_TRACED = 2  # pictures that are traced with
_CHECKED = (1, 3)  # that are checked with: what has the number above baked in fails
_TOLERANCE = 1e-3  # of an output's standard deviation


def to_onnx(module: nn.Module, side: int, outputs: list[str]) -> onnx.ModelProto:
    """Return a module's graph: ``images`` uint8 (B, side, side, 3) to outputs of these names.

    Args:
        module: On the CPU, in evaluation mode; it is left as it is.
        side: Pixels.
        outputs: A name for each tensor that it returns.

    Raises:
        ModelError: No exporter gives a graph that answers as the module does.

    Example:
        >>> import torch
        >>> class Mean(torch.nn.Module):
        ...     def forward(self, images):
        ...         return images.float().mean((1, 2))
        >>> graph = to_onnx(Mean().eval(), 8, ["colour"]).graph
        >>> [output.name for output in graph.output]
        ['colour']
    """
    reason = ""
    with _quietly():
        for export in (_traced, _taken_apart):
            try:
                model = export(module, side, outputs)
                _check(model, module, side)
            except Exception as error:  # of many kinds: an operator that it lacks, a fixed shape
                reason = str(error).strip() or type(error).__name__
                log.debug("%s gives no right graph: %s", export.__name__, reason)
                continue
            _forget_source(model.graph)
            return model
    raise ModelError(
        "this network cannot be exported to ONNX",
        where=type(module).__name__,
        got=reason.splitlines()[0][:200],
        fix="take another backbone",
    )


def _traced(module: nn.Module, side: int, outputs: list[str]) -> onnx.ModelProto:
    import torch
    from onnxscript import optimizer

    example = torch.zeros(_TRACED, side, side, 3, dtype=torch.uint8)
    with tempfile.TemporaryDirectory() as place, torch.no_grad(), _whole_padding():
        path = Path(place) / "traced.onnx"
        torch.onnx.export(
            module,
            (example,),
            path,
            dynamo=False,
            opset_version=_OPSET,
            input_names=["images"],
            output_names=outputs,
            dynamic_axes={name: {0: "batch"} for name in ("images", *outputs)},
        )
        # Constants become tensors by name and every tensor has its shape: quantising asks for that.
        return optimizer.optimize(onnx.load(path))


@contextmanager
def _whole_padding() -> Iterator[None]:
    """Let timm pad "as TensorFlow does" by numbers: a picture's side is known here.

    Traced, the sums would be in the graph, and onnxruntime a quarter slower.
    """
    padding: Any = sys.modules.get("timm.layers.padding")
    if padding is None:  # then no layer is timm's
        yield
        return
    computed = padding.get_same_padding

    def whole(x: Any, *others: int) -> int:
        amount: int = computed(int(x), *others)
        return amount

    padding.get_same_padding = whole
    try:
        yield
    finally:
        padding.get_same_padding = computed


def _check(model: onnx.ModelProto, module: nn.Module, side: int) -> None:
    """Give the outputs their lengths; raise ValueError unless they are what the module answers."""
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    content = model.SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    for count in _CHECKED:
        noise = rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
        with torch.no_grad():
            answers = module(torch.from_numpy(noise))
        wanted = [answers] if isinstance(answers, torch.Tensor) else list(answers)
        found = session.run(None, {"images": noise})
        for output, answer, tensor in zip(model.graph.output, found, wanted, strict=True):
            bound = _TOLERANCE * max(float(tensor.std()), 1e-6)
            if answer.shape != tensor.shape or not np.allclose(answer, tensor.numpy(), 0, bound):
                raise ValueError(f"{output.name}: another answer for {count} pictures")
            for place, length in enumerate(answer.shape[1:], 1):
                output.type.tensor_type.shape.dim[place].dim_value = length


def _taken_apart(module: nn.Module, side: int, outputs: list[str]) -> onnx.ModelProto:
    import torch

    program = torch.onnx.export(
        module,
        (torch.zeros(_TRACED, side, side, 3, dtype=torch.uint8),),
        dynamo=True,
        verbose=False,
        input_names=["images"],
        output_names=outputs,
        dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
    )
    if program is None:  # only with arguments we do not give; for the type checker
        raise RuntimeError("torch.onnx.export returned nothing")
    return program.model_proto


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep to itself what exporters say: of their own deprecation, and of every guess."""
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        quiet.setLevel(level)


def _forget_source(graph: onnx.GraphProto) -> None:
    """Take out where in whose files each node was traced: it is long, and nobody's business."""
    del graph.metadata_props[:]
    for part in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
