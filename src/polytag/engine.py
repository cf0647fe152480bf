"""Running an ONNX graph on the CPU. No torch."""

from __future__ import annotations

from pathlib import Path

import onnxruntime

from polytag.errors import ModelError


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """Open a graph for running.

    Raises:
        ModelError: The file is missing or is not an ONNX model.

    Example:
        >>> open_session(Path("nowhere.onnx"))
        Traceback (most recent call last):
        polytag.errors.ModelError: nowhere.onnx: no such model file
    """
    if not path.is_file():
        raise ModelError("no such model file", where=str(path))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # warnings about the graph's own nodes help no user
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's own kinds have no common public base
        reason = str(error).strip().splitlines()
        raise ModelError(
            "not a model that onnxruntime can run",
            where=str(path),
            got=reason[0][:200] if reason else type(error).__name__,
            expected="a model.onnx that polytag wrote",
        ) from None
