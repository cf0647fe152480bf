"""Running an ONNX graph on the CPU: onnxruntime, or OpenVINO where it is installed. No torch.

What an engine answers is equal to onnxruntime's within a tolerance, in standard deviations of a
feature over pictures; measured on the embedded backbone's 2848 features and 256 photographs, and
tested:

* fp32: every number within 0.001 (measured: 0.00005).
* bf16: the root mean square over all features within 0.1 (measured: 0.063; the worst feature 0.69,
  the mean of one of the first layer's channels).
"""

from __future__ import annotations

import json
import logging
import platform
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from polytag.errors import ModelError, RecipeError, did_you_mean
from polytag.files import cache_folder, digest, write_json
from polytag.images import content_hash
from polytag.pipeline import default_threads

if TYPE_CHECKING:
    import onnxruntime

log = logging.getLogger("polytag")
Run = Callable[[NDArray[np.uint8]], list[NDArray[np.float32]]]

# A batch is run in small pieces by two workers, each on half of the processors: a thread that never
# waits for another leaves more to those that decode, and what a few pictures need stays in the
# processor's cache. Measured on two (embedded backbone, batches of 32, pictures a second):
# onnxruntime 203 in halves, 220 in pieces of 8, 249 of 2; OpenVINO 385, 386, 445. Its idle threads
# spin by default, which costs the decoding ones a fifth of their time.
_WORKERS, _PIECE = 2, 2

# OpenVINO 2026.4 fills tables when it first meets an array; two threads that do so at the same
# moment wait for each other for ever.
_FIRST_USE = threading.Lock()


@dataclass(frozen=True)
class Opened:
    """A graph ready to run.

    Attributes:
        run: Takes ``images`` uint8 (B, S, S, 3), gives one array for each output asked for. Safe
            to call from many threads.
        properties: The file's own metadata.
        shapes: Of inputs and outputs, by name, without B.
    """

    run: Run
    properties: Mapping[str, str]
    shapes: Mapping[str, list[object]]


def open_engine(name: str, graph: Path, outputs: Sequence[str]) -> Run:
    """Open a graph of one input ``images`` in an engine.

    Args:
        name: One of `ENGINES`.
        graph: An ONNX file.
        outputs: Which of its outputs to return, in this order.

    Raises:
        RecipeError: There is no such engine, or it is not installed.
        ModelError: The file is missing, is not an ONNX model, or lacks an output.

    Example:
        >>> open_engine("tpu", Path("model.onnx"), ["embedding"])
        Traceback (most recent call last):
        polytag.errors.RecipeError: engine: no such engine; got 'tpu'; known: onnxruntime, openvino
    """
    opened = open_graph(name, graph, outputs)
    if lacking := {"images", *outputs} - set(opened.shapes):
        raise ModelError(
            "this graph lacks an input or an output",
            where=str(graph),
            got=", ".join(opened.shapes),
            expected=", ".join(sorted(lacking)),
        )
    return opened.run


def open_graph(name: str, graph: Path, outputs: Sequence[str]) -> Opened:
    """Open a graph as `open_engine` does, and tell what the file says about itself.

    Whether it has the outputs is for the caller to see.

    Example:
        >>> open_graph("onnxruntime", Path("nowhere.onnx"), ["embedding"])
        Traceback (most recent call last):
        polytag.errors.ModelError: nowhere.onnx: no such model file
    """
    if name not in ENGINES:
        raise RecipeError(
            "no such engine", where="engine", got=repr(name), fix=did_you_mean(name, ENGINES)
        )
    return ENGINES[name](graph, outputs)


def open_session(path: Path, threads: int = 0) -> onnxruntime.InferenceSession:
    """Open a graph for running in onnxruntime.

    Args:
        path: An ONNX file.
        threads: That share the work of one call; 0: one a core.

    Raises:
        ModelError: The file is missing or is not an ONNX model.

    Example:
        >>> open_session(Path("nowhere.onnx"))
        Traceback (most recent call last):
        polytag.errors.ModelError: nowhere.onnx: no such model file
    """
    import onnxruntime

    _refuse_missing(path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # warnings about the graph's own nodes help no user
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's own kinds have no common public base
        raise _not_a_model(path, "onnxruntime", error) from None


def precision(name: str) -> str:
    """Return what an engine computes in on this processor: ``fp32``, ``bf16`` or ``fp16``.

    Raises:
        RecipeError: There is no such engine, or it is not installed.

    Example:
        >>> precision("onnxruntime")
        'fp32'
    """
    if name == "openvino":
        hint = _openvino().Core().get_property("CPU", "INFERENCE_PRECISION_HINT")
        return {"f32": "fp32", "bf16": "bf16", "f16": "fp16"}[hint.get_type_name()]
    if name not in ENGINES:
        raise RecipeError("no such engine", got=repr(name), fix=did_you_mean(name, ENGINES))
    return "fp32"


def installed() -> dict[str, str]:
    """Return the engines that are installed, with their versions; nothing is imported.

    Example:
        >>> "onnxruntime" in installed()
        True
    """
    # Here, as it takes as long to import as a picture takes to predict.
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, str] = {}
    for name in ENGINES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            log.debug("%s is not installed", name)
    return found


def fastest_engine(graph: Path) -> str:
    """Return the name of the engine that runs a graph fastest here.

    Measured once, within seconds, and remembered in the cache folder for this graph, processor,
    number of threads and these versions. An engine that cannot run the graph is left out.

    Raises:
        ModelError: The file is missing, or no engine can run it.

    Example:
        Not run: it needs a graph.

        >>> fastest_engine(Path("model.onnx"))                     # doctest: +SKIP
        'openvino'
    """
    _refuse_missing(graph)
    engines = installed()
    if len(engines) == 1:
        return next(iter(engines))
    parts = [1, content_hash(graph), _processor(), default_threads(), engines]
    memory = cache_folder() / "engines" / f"{digest(parts)}.json"
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))["fastest"]
        if known in engines:
            return str(known)
    except (OSError, ValueError, TypeError, KeyError):
        log.debug("no trial of engines is remembered for this graph")
    rates = _trial(graph, engines)
    fastest = max(rates, key=lambda name: rates[name])
    if len(rates) == len(engines):  # else tried again: what failed may have been the moment's
        write_json(memory, {"fastest": fastest, "pictures_per_second": rates})
    listed = ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items())
    log.info("engine: %s (a short trial, pictures/s: %s)", fastest, listed)
    return fastest


def _trial(graph: Path, engines: Mapping[str, str]) -> dict[str, float]:
    """Measure pictures a second; the engines take turns, lest a busy moment decide."""
    runs: dict[str, Run] = {}
    batch = np.empty((0,), np.uint8)
    for name in engines:
        try:
            opened = open_graph(name, graph, ["embedding"])
            shape = [8, *(int(str(side)) for side in opened.shapes["images"])]
            batch = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
            opened.run(batch)  # the first one makes room
            runs[name] = opened.run
        except Exception as error:
            if name == "onnxruntime":
                raise
            log.warning("engine %s is left out: %s", name, error)
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(3):
        for name, run in runs.items():
            start = time.perf_counter()
            run(batch)
            best[name] = min(best[name], time.perf_counter() - start)
    return {name: round(len(batch) / seconds, 1) for name, seconds in best.items()}


def _processor() -> str:
    """Name the processor; Linux has its name in a file only."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line for line in lines if line.startswith(("model name", "flags"))]
    return "; ".join([platform.machine(), platform.processor(), *names[:2]])


def _open_onnxruntime(graph: Path, outputs: Sequence[str]) -> Opened:
    session = open_session(graph, max(1, default_threads() // _WORKERS))
    ends = (*session.get_inputs(), *session.get_outputs())
    shapes = {end.name: list(end.shape[1:]) for end in ends}
    wanted = list(outputs)

    def run(images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        answers: list[NDArray[np.float32]] = session.run(wanted, {"images": images})
        return answers

    return Opened(_in_pieces(run), session.get_modelmeta().custom_metadata_map, shapes)


def _open_openvino(graph: Path, outputs: Sequence[str]) -> Opened:
    openvino = _openvino()
    _refuse_missing(graph)
    try:
        core = openvino.Core()
        model = core.read_model(graph)
        streams = min(_WORKERS, default_threads())
        compiled = core.compile_model(model, "CPU", {"NUM_STREAMS": streams})
    except Exception as error:  # RuntimeError and kinds of its own
        raise _not_a_model(graph, "OpenVINO", error) from None
    ends = (*model.inputs, *model.outputs)
    shapes = {end.any_name: _lengths(end.partial_shape) for end in ends}
    info = model.get_rt_info()["framework"] if model.has_rt_info("framework") else {}
    requests: SimpleQueue[Any] = SimpleQueue()  # one runs one piece at a time
    for _ in range(_WORKERS):
        requests.put(compiled.create_infer_request())

    def run(images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        request = requests.get()
        try:
            request.infer({"images": images}, share_inputs=True)
            return [request.get_tensor(name).data.copy() for name in outputs]
        finally:
            requests.put(request)

    if all(isinstance(side, int) for side in shapes.get("images", [None])):
        with _FIRST_USE:
            run(np.zeros((1, *shapes["images"]), np.uint8))  # type: ignore[arg-type]
    return Opened(_in_pieces(run), {key: value.astype(str) for key, value in info.items()}, shapes)


ENGINES: dict[str, Callable[[Path, Sequence[str]], Opened]] = {
    "onnxruntime": _open_onnxruntime,
    "openvino": _open_openvino,
}


def _in_pieces(run: Run) -> Run:
    pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="engine")

    def run_all(images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        if len(images) < _WORKERS:
            return run(images)
        size = min(_PIECE, -(-len(images) // _WORKERS))
        pieces = (images[start : start + size] for start in range(0, len(images), size))
        answers = zip(*pool.map(run, pieces), strict=True)
        return [np.concatenate(parts) for parts in answers]

    return run_all


def _openvino() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise RecipeError(
            "OpenVINO is not installed",
            where="engine",
            got=str(error),
            fix="pip install polytag[openvino]",
        ) from None
    return openvino


def _lengths(shape: Any) -> list[object]:
    return [side.get_length() if side.is_static else str(side) for side in list(shape)[1:]]


def _refuse_missing(path: Path) -> None:
    if not path.is_file():
        raise ModelError("no such model file", where=str(path))


def _not_a_model(path: Path, engine: str, error: Exception) -> ModelError:
    reason = [line for line in str(error).splitlines() if line.strip()]
    return ModelError(
        f"not a model that {engine} can run",
        where=str(path),
        got=reason[0].strip()[:200] if reason else type(error).__name__,
        expected="a model.onnx that polytag wrote",
    )
