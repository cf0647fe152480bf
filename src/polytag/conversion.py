"""A torch module becomes an ONNX graph: traced and checked, or taken apart by the slow exporter.

torch has two exporters. Tracing (TorchScript's, deprecated since 2.9) takes half a second for the
embedded backbone, the one that stands in its place 8 s, most of them spent on reasoning about a
batch of unknown size; there and in eight other networks of timm both graphs are equally fast. So it
is traced, and the graph has to answer as the module does, for batches of other sizes than it was
traced with; where it does not, or where tracing is no more, the slow exporter does it, and its
graph is checked too.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from polytag.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger("polytag")
_OPSET = 20
_EXPORTED_WITH = 2  # pictures
_CHECKED_WITH = (1, 3)  # a graph that has the other number baked in fails
# Of a column's greatest number, and of the whole output's: sums of float32 in another order.
_TOLERANCE = (1e-3, 5e-6)
_ONE_AT_A_TIME = threading.Lock()  # exporting is, in torch, a state of the process


def to_onnx(module: nn.Module, side: int, outputs: list[str]) -> onnx.ModelProto:
    """Return a module's graph: ``images`` uint8 (B, side, side, 3) to outputs of these names.

    Args:
        module: On the CPU, in evaluation mode; it is left as it is. Below 2 GB.
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
    if module.training:
        raise ValueError("what is exported is a network in evaluation mode")
    reasons = []
    with _ONE_AT_A_TIME, _quietly():
        for way, export in (("traced", _traced), ("slow exporter", _by_torch_export)):
            try:
                model = export(module, side, outputs)
                _fix_lengths(model.graph, _checked(model, module, side))
            except (MemoryError, OSError, ImportError):
                raise
            except Exception as error:  # of many kinds: an operator that it lacks, a fixed shape
                told = (str(error).strip() or type(error).__name__).splitlines()[0][:150]
                reasons.append(f"{way}: {told}")
                log.info("no right graph of this network: %s", reasons[-1])
                continue
            _forget_source(model.graph)
            return model
    raise ModelError(
        "this network cannot be exported to ONNX",
        where=type(module).__name__,
        got="; ".join(reasons),
        fix="take another backbone",
    )


def _traced(module: nn.Module, side: int, outputs: list[str]) -> onnx.ModelProto:
    import torch
    from onnxscript import ir, optimizer

    example = torch.zeros(_EXPORTED_WITH, side, side, 3, dtype=torch.uint8)
    with tempfile.TemporaryDirectory() as place, torch.no_grad(), _padding_by_numbers():
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
        graph = ir.load(path)
    # Every tensor gets its shape, constants become tensors by name, and a padding a part of its
    # convolution: quantising asks for that. (Paddings are built of ConstantOfShape.)
    optimizer.optimize_ir(graph, should_fold=lambda node: node.op_type == "ConstantOfShape" or None)
    model: onnx.ModelProto = ir.to_proto(graph)
    return model


@contextmanager
def _padding_by_numbers() -> Iterator[None]:
    """Let timm pad "as TensorFlow does" by numbers: a picture's side is known here.

    Traced, the sums would be in the graph, and onnxruntime a quarter slower.
    """
    padding: Any = sys.modules.get("timm.layers.padding")
    if padding is None:  # then no layer is timm's
        yield
        return
    own = padding.get_same_padding

    def of_a_number(side: Any, *others: int) -> int:
        amount: int = own(int(side), *others)
        return amount

    padding.get_same_padding = of_a_number
    try:
        yield
    finally:
        padding.get_same_padding = own


def _checked(model: onnx.ModelProto, module: nn.Module, side: int) -> list[tuple[int, ...]]:
    """Return the outputs' shapes; raise ValueError unless they are what the module answers."""
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    rng, shapes = np.random.default_rng(0), []
    for count in _CHECKED_WITH:
        noise = rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
        with torch.no_grad():
            answers = module(torch.from_numpy(noise))
        wanted = [answers] if isinstance(answers, torch.Tensor) else list(answers)
        found = session.run(None, {"images": noise})
        for answer, tensor in zip(found, wanted, strict=True):
            if not _close(answer, tensor.numpy()):
                raise ValueError(f"another answer than the network's for {count} pictures")
        shapes = [answer.shape for answer in found]
    return shapes


def _close(answer: NDArray[np.float32], wanted: NDArray[np.float32]) -> bool:
    if answer.shape != wanted.shape or not wanted.size:
        return answer.shape == wanted.shape
    size = np.abs(wanted)
    of_column, of_whole = _TOLERANCE
    bound = of_column * size.max(axis=0) + of_whole * size.max()
    return bool((np.abs(answer - wanted) <= bound).all())


def _fix_lengths(graph: onnx.GraphProto, shapes: Sequence[tuple[int, ...]]) -> None:
    """Say how long the outputs are, but for the number of pictures."""
    for output, shape in zip(graph.output, shapes, strict=True):
        for place, length in enumerate(shape[1:], 1):
            output.type.tensor_type.shape.dim[place].dim_value = length


def _by_torch_export(module: nn.Module, side: int, outputs: list[str]) -> onnx.ModelProto:
    import torch

    program = torch.onnx.export(
        module,
        (torch.zeros(_EXPORTED_WITH, side, side, 3, dtype=torch.uint8),),
        dynamo=True,
        opset_version=_OPSET,
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
