"""Engines: the same answers, the fastest of them, and what is said when one is missing."""

from __future__ import annotations

import json
import logging
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from polytag import engine
from polytag.engine import ENGINES, fastest_engine, open_engine, open_graph, open_session, precision
from polytag.errors import ModelError, RecipeError

SIDE, WIDTH = 12, 24
# In standard deviations of an output over pictures, as engine's docstring says.
TOLERANCE = {"fp32": 0.001, "bf16": 0.1, "fp16": 0.1}


def small_network(path: Path, seed: int = 0) -> Path:
    """Two convolutions with a clip between, then the mean and deviation of every channel."""
    rng = np.random.default_rng(seed)

    def weight(*shape: int) -> np.ndarray:
        return rng.normal(0, np.prod(shape[1:]) ** -0.5, shape).astype(np.float32)

    constants = {
        "mean": np.array(127, np.float32),
        "std": np.array(64, np.float32),
        "first": weight(16, 3, 3, 3),
        "second": weight(WIDTH // 2, 16, 1, 1),
        "low": np.array(0, np.float32),
        "high": np.array(6, np.float32),
        "axes": np.array([2, 3]),
    }
    nodes = [
        helper.make_node("Transpose", ["images"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["planes"], ["values"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["values", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "std"], ["x"]),
        helper.make_node("Conv", ["x", "first"], ["wide"]),
        helper.make_node("Clip", ["wide", "low", "high"], ["clipped"]),
        helper.make_node("Conv", ["clipped", "second"], ["last"]),
        helper.make_node("ReduceMean", ["last", "axes"], ["means"], keepdims=0),
        helper.make_node("ReduceL2", ["last", "axes"], ["lengths"], keepdims=0),
        helper.make_node("Concat", ["means", "lengths"], ["embedding"], axis=1),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "small",
        [value("images", TensorProto.UINT8, ["batch", SIDE, SIDE, 3])],
        [
            value("means", TensorProto.FLOAT, ["batch", WIDTH // 2]),
            value("embedding", TensorProto.FLOAT, ["batch", WIDTH]),
        ],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, {"polytag": '{"ü": 1}', "other": "7"})
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def graph(tmp_path_factory) -> Path:
    return small_network(tmp_path_factory.mktemp("graph") / "small.onnx")


@pytest.fixture
def memory(tmp_path, monkeypatch) -> Path:
    """A cache folder of its own; where the trials are remembered in it."""
    monkeypatch.setenv("POLYTAG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "engines"


def pictures(count: int) -> np.ndarray:
    rng = np.random.default_rng(1)
    tone = rng.integers(0, 256, (count, 1, 1, 3))
    noise = rng.normal(0, 20, (count, SIDE, SIDE, 3))
    return np.clip(tone + noise, 0, 255).astype(np.uint8)


def opened(name: str, graph: Path) -> engine.Opened:
    if name == "openvino":
        pytest.importorskip("openvino")
    return open_graph(name, graph, ["embedding"])


# ----------------------------------------------------------------------------------- equal answers


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_answers_as_plain_onnxruntime_does(name, graph):
    images = pictures(40)
    [expected] = open_session(graph).run(["embedding"], {"images": images})
    [found] = opened(name, graph).run(images)
    assert found.dtype == np.float32 and found.shape == (40, WIDTH)
    off = (found - expected) / expected.std(axis=0)
    if precision(name) == "fp32":
        assert np.abs(off).max() < TOLERANCE["fp32"]
    else:
        assert 0 < np.sqrt((off**2).mean()) < TOLERANCE[precision(name)]


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_a_pictures_answer_does_not_depend_on_its_batch(name, graph, count):
    run = opened(name, graph).run
    images = pictures(count)
    [together] = run(images)
    alone = np.concatenate([run(image[None])[0] for image in images])
    np.testing.assert_allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("name", ENGINES)
def test_outputs_come_in_the_order_asked_for_and_belong_to_the_caller(name, graph):
    opened(name, graph)
    run = open_engine(name, graph, ["embedding", "means"])
    first = run(pictures(3))
    assert [output.shape[1] for output in first] == [WIDTH, WIDTH // 2]
    np.testing.assert_allclose(first[0][:, : WIDTH // 2], first[1], rtol=1e-2)
    kept = [output.copy() for output in first]
    run(255 - pictures(3))
    assert all(np.array_equal(a, b) for a, b in zip(first, kept, strict=True))


@pytest.mark.parametrize("name", ENGINES)
def test_many_threads_may_use_one_engine(name, graph):
    run = opened(name, graph).run
    batches = [pictures(5) // (k + 1) for k in range(6)]
    expected = [run(batch)[0] for batch in batches]
    start = threading.Barrier(6)

    def work(k: int) -> bool:
        start.wait()
        return all(np.allclose(run(batches[k])[0], expected[k], atol=1e-5) for _ in range(10))

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, range(6)))


@pytest.mark.parametrize("name", ENGINES)
def test_what_a_file_says_about_itself_is_the_same_in_every_engine(name, graph):
    found = opened(name, graph)
    assert dict(found.properties) == {"polytag": '{"ü": 1}', "other": "7"}
    assert found.shapes == {
        "images": [SIDE, SIDE, 3],
        "means": [WIDTH // 2],
        "embedding": [WIDTH],
    }


# ------------------------------------------------------------------------------------ what is wrong


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("content", [None, b"", b"<html></html>", bytes(1000), b"\x08\x07"])
def test_a_file_that_is_no_model_is_one_line(name, content, tmp_path):
    if name == "openvino":
        pytest.importorskip("openvino")
    path = tmp_path / "m.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=r"m\.onnx: (no such model file|not a model)") as caught:
        open_engine(name, path, ["embedding"])
    assert "\n" not in str(caught.value)


def test_an_output_that_is_not_there_is_named(graph):
    with pytest.raises(ModelError, match=r"lacks .* got images, means, embedding, expected logits"):
        open_engine("onnxruntime", graph, ["logits", "means"])


@pytest.mark.parametrize("ask", [precision, lambda name: open_graph(name, Path("x.onnx"), [])])
def test_an_unknown_engine_is_refused_with_the_known_ones(ask):
    with pytest.raises(RecipeError, match=r"no such engine; got 'openvin'; did you mean 'openv"):
        ask("openvin")
    with pytest.raises(RecipeError, match=r"known: onnxruntime, openvino"):
        ask("tpu")


def test_without_openvino_one_line_says_what_to_install(graph, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)  # makes the import fail
    for ask in (precision, lambda name: open_engine(name, graph, ["embedding"])):
        with pytest.raises(RecipeError, match=r"pip install polytag\[openvino\]") as caught:
            ask("openvino")
        assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------- the fastest


class Bench:
    """Stands in for the trial: says what it measured, and counts how often it was asked."""

    def __init__(self, **rates: float) -> None:
        self.rates, self.asked = rates, 0

    def __call__(self, graph: Path, engines: dict[str, str]) -> dict[str, float]:
        self.asked += 1
        return self.rates


@pytest.fixture
def two_engines(monkeypatch) -> dict[str, str]:
    engines = {"onnxruntime": "1", "openvino": "2"}
    monkeypatch.setattr(engine, "installed", lambda: engines)
    return engines


@pytest.mark.parametrize("winner", ENGINES)
def test_the_fastest_is_taken_and_remembered(winner, graph, memory, two_engines, monkeypatch):
    bench = Bench(**(dict.fromkeys(ENGINES, 10.0) | {winner: 20.0}))
    monkeypatch.setattr(engine, "_trial", bench)
    assert [fastest_engine(graph) for _ in range(3)] == [winner] * 3
    assert bench.asked == 1 and len(list(memory.iterdir())) == 1


def test_another_graph_other_versions_and_other_threads_are_measured_anew(
    graph, memory, two_engines, monkeypatch, tmp_path
):
    bench = Bench(onnxruntime=1.0, openvino=0.5)
    monkeypatch.setattr(engine, "_trial", bench)
    fastest_engine(graph)
    fastest_engine(small_network(tmp_path / "other.onnx", seed=1))
    assert bench.asked == 2
    two_engines["openvino"] = "3"
    fastest_engine(graph)
    assert bench.asked == 3
    monkeypatch.setattr(engine, "default_threads", lambda: 77)
    fastest_engine(graph)
    assert bench.asked == 4
    monkeypatch.setattr(engine, "_processor", lambda: "another")
    fastest_engine(graph)
    assert bench.asked == 5
    assert len(list(memory.iterdir())) == 5


def test_a_trial_in_which_an_engine_failed_is_not_remembered(graph, two_engines, monkeypatch):
    bench = Bench(onnxruntime=1.0)  # openvino could not be opened
    monkeypatch.setattr(engine, "_trial", bench)
    assert fastest_engine(graph) == fastest_engine(graph) == "onnxruntime"
    assert bench.asked == 2


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"7", b"null", b"{}", b'{"fastest": 3}', b'{"fastest": "tpu"}', b"\xff",
     b'{"fastest": ["openvino"]}'],
)  # fmt: skip
def test_a_broken_or_foreign_memory_is_ignored_and_mended(
    content, graph, memory, two_engines, monkeypatch
):
    monkeypatch.setattr(engine, "_trial", Bench(onnxruntime=1.0, openvino=2.0))
    fastest_engine(graph)
    [file] = memory.iterdir()
    file.write_bytes(content)
    (memory / "notes.txt").write_text("somebody's")
    assert fastest_engine(graph) == "openvino"
    assert json.loads(file.read_text())["fastest"] == "openvino"


def test_with_one_engine_nothing_is_measured(graph, memory, monkeypatch):
    monkeypatch.setattr(engine, "installed", lambda: {"onnxruntime": "1"})
    monkeypatch.setattr(engine, "_trial", None)
    assert fastest_engine(graph) == "onnxruntime"
    assert not memory.exists()


def test_an_engine_that_cannot_be_loaded_is_left_out_with_a_line(
    graph, memory, two_engines, monkeypatch, caplog
):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with caplog.at_level(logging.INFO, "polytag"):
        assert fastest_engine(graph) == "onnxruntime"
    assert "engine openvino is left out: engine: OpenVINO is not installed" in caplog.text


def test_an_engine_that_cannot_run_the_graph_is_left_out_with_a_line(
    graph, memory, two_engines, monkeypatch, caplog
):
    def fail(*_: object) -> engine.Opened:
        raise RuntimeError("no kernel for this node")

    monkeypatch.setitem(ENGINES, "openvino", fail)
    with caplog.at_level(logging.INFO, "polytag"):
        assert fastest_engine(graph) == "onnxruntime"
    assert "engine openvino is left out: no kernel for this node" in caplog.text


def test_a_graph_that_is_not_there_is_no_reason_to_measure(memory):
    with pytest.raises(ModelError, match="no such model file"):
        fastest_engine(Path("nowhere.onnx"))


def test_a_real_trial_measures_every_engine_that_is_installed(graph, memory):
    name = fastest_engine(graph)
    assert name in engine.installed()
    for file in memory.glob("*.json"):  # none where only one is installed
        rates = json.loads(file.read_text())["pictures_per_second"]
        assert set(rates) == set(engine.installed()) and min(rates.values()) > 0
        assert rates[name] == max(rates.values())


def test_onnxruntime_computes_in_full_precision():
    assert precision("onnxruntime") == "fp32"
