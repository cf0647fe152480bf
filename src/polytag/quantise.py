"""INT8: a model file quantised, measured beside the one it came from, refused where it costs.

Weights become int8, one scale a channel; activations uint8, their ranges read off some of the
pictures that were trained on, without labels. Everything behind the last weights, which is the
pooling and the calibration, computes in float, and so does the head.

`polytag.parity` measures what it costs, and says when that is too much.

Of 8-bit products, processors without VNNI can lose the largest: the numbers are of this machine.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from onnxruntime.quantization.quant_utils import add_pre_process_metadata

from polytag.errors import ModelError, UserError
from polytag.files import write_json, written_aside
from polytag.modelfile import INT8_KEY, INT8_MODEL, KEY
from polytag.parity import Change, find_pictures, measure, prepared, refusals
from polytag.predictor import Predictor, load
from polytag.progress import waiting

Pixels = NDArray[np.uint8]

_CALIBRATED_BY = 128  # pictures: the ranges of 256 are the same to a few per cent
# What has a kernel in 8 bits, and lies between convolutions: to leave it out would cost two
# conversions each. The sums in blocks on tokens stay float: in 8 bits they cost much, gain little.
_BETWEEN = {"Add", "Mul", "Sigmoid", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat"}
_ACTIVATIONS = {"Clip", "Relu"}  # become part of the layer before
_HEADS = ("polytag.", "classifier.head.")  # how a head's weights are called


@dataclass(frozen=True)
class Export:
    """What became of an export.

    Attributes:
        file: The INT8 file; None: it was refused, and nothing was written.
        changes: Of macro AP, then of each attribute's; empty: no AP could be measured.
        report: As in ``model.int8.json`` and in the INT8 file.
    """

    file: Path | None
    changes: list[Change]
    report: dict[str, Any]


def export_int8(
    run: str | os.PathLike[str],
    *,
    images: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
) -> Export:
    """Write an INT8 model file, and ``model.int8.json`` beside it, unless it would cost too much.

    It takes the same input and has the same outputs and metadata as the run's ``model.onnx``.

    Args:
        run: A run folder, or a bare ``model.onnx``.
        images: The folder of pictures; None: where the run found them.
        out: The file; None: ``model.int8.onnx`` beside ``model.onnx``.

    Raises:
        ModelError: There is no model, or it is INT8 already.
        UserError: The pictures cannot be found, or are not those of the run.

    Example:
        Not run: it needs a trained run; the tests train one.

        >>> export_int8("runs/latest").report["speed"]["batch_32"]["ratio"]  # doctest: +SKIP
        1.9
    """
    predictor = load(run)
    path = predictor.path
    target = Path(out) if out is not None else path.with_name(INT8_MODEL)
    if target.resolve() == path.resolve():
        raise UserError("the INT8 file would replace the model it is made of", where=str(target))
    if INT8_KEY in predictor.properties:
        raise ModelError("already INT8", where=str(path), fix="give the model.onnx it was made of")
    pictures = find_pictures(path.parent, images)
    with tempfile.TemporaryDirectory() as place:
        draft = Path(place) / INT8_MODEL
        some = np.random.default_rng(0).permutation(len(pictures.calibrate))[:_CALIBRATED_BY]
        with waiting(f"quantising by {len(some)} pictures"):
            quantise(path, prepared([pictures.calibrate[i] for i in some], predictor), draft)
        changes, report = measure(predictor, draft, pictures)
        report["calibrated_by"] = len(some)
        refused = refusals(changes, report["decisions_changed"])
        report = {"accepted": not refused, "refused": refused} | report
        if not refused:
            _write(draft, predictor, report, target)
    return Export(None if refused else target, changes, report)


# ---------------------------------------------------------------------------------- the quantising


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Hands calibrating pictures out in the shape that onnxruntime asks for."""

    def __init__(self, chunks: Iterator[Pixels]) -> None:
        self.chunks = chunks

    def get_next(self) -> dict[str, Pixels] | None:
        """Return the next batch, or None at the end."""
        images = next(self.chunks, None)
        return None if images is None else {"images": images}


def quantise(model: Path, pictures: Iterator[Pixels], out: Path) -> None:
    """Write a quantised copy of a model file, without metadata.

    Args:
        model: A model file.
        pictures: Batches uint8 (B, S, S, 3), from which the ranges of activations are read.
        out: Where to.

    Raises:
        ModelError: Nothing in it can be quantised.

    Example:
        Not run: it needs a model file.

        >>> quantise(Path("model.onnx"), batches, Path("model.int8.onnx"))  # doctest: +SKIP
    """
    draft = onnx.load(str(model))
    nodes = _to_quantise(draft.graph)
    if not nodes:
        raise ModelError("no layer that can be quantised", where=str(model))
    pixels = _pixels(draft.graph)
    add_pre_process_metadata(draft)  # the exporter has folded and named all shapes: no warning
    with _silent_root():
        quantize_static(
            draft,
            str(out),
            _Reader(pictures),
            nodes_to_quantize=nodes,
            per_channel=True,  # one scale a tensor costs .02 of macro AP
            activation_type=QuantType.QUInt8,  # int8 activations gain half as much time
            weight_type=QuantType.QInt8,
            extra_options={
                "MatMulConstBOnly": True,
                "TensorQuantOverrides": {}
                if pixels is None
                else {pixels.normalised: [pixels.grid]},
            },
        )
    if pixels is not None:
        made = onnx.load(str(out))
        _join(made.graph, pixels)
        onnx.save(made, str(out))


@contextmanager
def _silent_root() -> Iterator[None]:
    """Keep to itself what onnxruntime says by the root logger: a line for each small weight."""
    root = logging.getLogger()

    def none(record: logging.LogRecord) -> bool:
        return False

    root.addFilter(none)
    try:
        yield
    finally:
        root.removeFilter(none)


class _Pixels(NamedTuple):
    """A normalisation that is nothing but a scale and a zero point: what uint8 stands for.

    Attributes:
        turned: The tensor of pixels, uint8 (B, 3, S, S).
        normalised: The tensor (turned - zero_point) * scale.
        grid: ``scale`` and ``zero_point``.
    """

    turned: str
    normalised: str
    grid: dict[str, NDArray[Any]]


def _pixels(graph: onnx.GraphProto) -> _Pixels | None:
    """Find a normalisation by one mean, a whole number, and one deviation for all channels.

    The first layer can then take the pixels as they are: nothing is rounded, and the largest
    tensors of the network are not made.
    """
    tensors = [graph.input[0].name]
    constants = []
    held = {tensor.name: tensor for tensor in graph.initializer}
    for kind in ("Transpose", "Cast", "Sub", "Div"):
        found = [n for n in graph.node if n.op_type == kind and n.input[0] == tensors[-1]]
        if len(found) != 1:
            return None
        tensors.append(found[0].output[0])
        constants += [numpy_helper.to_array(held[n]) for n in found[0].input[1:] if n in held]
    mean, deviation = constants
    zero = np.rint(mean.mean())
    if not (np.allclose(mean, zero, atol=1e-3) and np.allclose(deviation, deviation.mean())):
        return None
    scale = np.array(1 / deviation.mean(), np.float32)
    grid: dict[str, NDArray[Any]] = {"scale": scale, "zero_point": np.array(zero, np.uint8)}
    return _Pixels(tensors[1], tensors[-1], grid)


def _join(graph: onnx.GraphProto, pixels: _Pixels) -> None:
    """Let what takes the quantised normalised picture take the pixels, which are the same."""
    (rounded,) = (n for n in graph.node if pixels.normalised in n.input)
    for node in graph.node:
        if node.input and node.input[0] == rounded.output[0]:
            node.input[0] = pixels.turned
    dead = [rounded]  # the chain from the pixels to there
    while pixels.turned not in dead[-1].input:
        dead += [n for n in graph.node if dead[-1].input[0] in n.output]
    for node in dead:
        graph.node.remove(node)
    used = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)


def _to_quantise(graph: onnx.GraphProto) -> list[str]:
    """Return the names of nodes that compute in 8 bits: weights, and what lies between them."""
    constants = {tensor.name for tensor in graph.initializer}
    behind: set[str] = set()  # what the head gave, or is
    for node in graph.node:
        if any(name in behind or name.startswith(_HEADS) for name in node.input):
            behind.update(node.output)
    wanted: set[str] = set()  # tensors that lead to a convolution
    names: list[str] = []
    weighted = 0
    for node in reversed(graph.node):
        weights = node.op_type in ("Conv", "MatMul", "Gemm") and node.input[1] in constants
        weights &= not behind.intersection(node.output)
        leads = bool(wanted.intersection(node.output))
        if weights or node.op_type in _ACTIVATIONS or (node.op_type in _BETWEEN and leads):
            names.append(node.name)
        if leads or node.op_type == "Conv":
            wanted.update(node.input)
        weighted += weights
    return names if weighted else []


def _write(draft: Path, predictor: Predictor, report: dict[str, Any], target: Path) -> None:
    model = onnx.load(str(draft))
    told = json.dumps(report, ensure_ascii=False, allow_nan=False)
    helper.set_model_props(model, {KEY: predictor.properties[KEY], INT8_KEY: told})
    onnx.checker.check_model(model)
    with written_aside(target) as aside:
        onnx.save(model, str(aside))
    write_json(target.with_suffix(".json"), report)
