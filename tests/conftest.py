"""A small drawn world, one trained run, and a way to call the command line.

Everything costly is made once: the pictures, the cache with its exported backbone, and
the run that most tests look at.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

import polytag
from polytag.cli import main
from polytag.runs import Run

# How long an example takes says something about the machine, not about polytag.
settings.register_profile("polytag", deadline=None)
settings.load_profile("polytag")

ATTRIBUTES = ("red", "bright", "striped", "always", "never said")
LEARNT = ATTRIBUTES[:3]
NA_SHARE = 0.25

# The recipe of the tests: a network of 0.4 million random weights that takes 32 x 32 pictures.
# With an engine of its own, as a trial of a network this small would be decided by chance.
TINY: dict[str, object] = {
    "backbone.name": "test_resnet",
    "backbone.weights": "none",
    "preprocess.size": 32,
    "features.engine": "onnxruntime",
}


# -------------------------------------------------------------------------------- drawn pictures


def draw(red: bool, bright: bool, striped: bool, rng: np.random.Generator) -> np.ndarray:
    """uint8 (40, 48, 3): each attribute is a property of the pixels, and nothing else is."""
    level = rng.uniform(150, 190) if bright else rng.uniform(50, 90)
    colour = np.array([1.3, 0.8, 0.6] if red else [0.6, 0.8, 1.3])
    picture = np.broadcast_to(level * colour, (40, 48, 3)).copy()
    if striped:
        period = rng.integers(3, 6)
        picture[np.arange(40) // period % 2 == 0] *= 0.55
    return np.clip(picture + rng.normal(0, 12, picture.shape), 0, 255).astype(np.uint8)


def save_picture(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@dataclass(frozen=True)
class World:
    """A folder of pictures and a table about them.

    Attributes:
        labels: labels.csv, whose rows are `names`.
        images: The folder of pictures.
        names: As in the table: 60 good pictures, the last of them a byte-identical twin of the
            first with a conflicting label, then one that is missing and one that is broken.
        values: float64 (62, 5) in {0, 1, NaN}, as the table holds them.
        truth: float64 (62, 5): what the pixels show, holes or not.
    """

    labels: Path
    images: Path
    names: tuple[str, ...]
    values: np.ndarray
    truth: np.ndarray

    @property
    def good(self) -> list[str]:
        """The pictures that can be used."""
        return [name for name in self.names if name not in ("missing.png", "broken.png")]

    def path(self, name: str) -> Path:
        return self.images / name

    def table(self) -> polytag.LabelTable:
        return polytag.read_table(self.labels)


def cell(value: float) -> str:
    return "NA" if np.isnan(value) else f"{value:.0f}"


def write_labels(path: Path, names: list[str], attributes: list[str], values: np.ndarray) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", *attributes])
        writer.writerows([name, *map(cell, row)] for name, row in zip(names, values, strict=True))
    return path


def draw_world(folder: Path, seed: int = 0, pictures: int = 59) -> World:
    """Draw a world: its table has `pictures` + 3 rows."""
    rng = np.random.default_rng(seed)
    truth = np.zeros((pictures, 5))
    truth[:, :3] = rng.random((pictures, 3)) < [0.5, 0.6, 0.4]
    truth[:, 3] = 1
    names = [f"picture {i}.png" if i % 10 == 7 else f"more/{i:02}.png" for i in range(pictures)]
    for name, (red, bright, striped, *_) in zip(names, truth, strict=True):
        save_picture(folder / "images" / name, draw(red, bright, striped, rng))
    values = np.where(rng.random(truth.shape) < NA_SHARE, np.nan, truth)
    values[:, 4] = np.nan
    values[0, 0], values[0, 1] = truth[0, 0], np.nan

    twin = folder / "images" / "twin.png"
    twin.write_bytes((folder / "images" / names[0]).read_bytes())
    conflict = [1 - truth[0, 0], np.nan, truth[0, 2], 1, np.nan]
    broken = (folder / "images" / names[1]).read_bytes()[:200]
    (folder / "images" / "broken.png").write_bytes(broken)
    names += ["twin.png", "missing.png", "broken.png"]
    extra = [[1, 0, 1, 1, np.nan], [0, 1, np.nan, 1, np.nan]]
    values = np.vstack([values, conflict, extra])
    truth = np.vstack([truth, truth[0], extra])
    labels = write_labels(folder / "labels.csv", names, list(ATTRIBUTES), values)
    return World(labels, folder / "images", tuple(names), values, truth)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The cache folder of all tests: none reads or writes the user's own."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("POLYTAG_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return draw_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def train(world: World) -> Callable[..., Run]:
    """Train on the world with the tiny recipe; keyword arguments go to `polytag.fit`."""

    def fit(folder: Path, changes: Mapping[str, object] | None = None, **options: Any) -> Run:
        table = options.pop("table", None) or world.table()
        options.setdefault("images", world.images)
        return polytag.fit(table, folder=folder, changes=TINY | dict(changes or {}), **options)

    return fit


@pytest.fixture(scope="session")
def run(train: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on the world. Nobody may change it."""
    return train(tmp_path_factory.mktemp("runs"), {"title": "A drawn world"}, name="first")


# ----------------------------------------------------------------------------- the command line


Word = str | os.PathLike[str]


def as_text(word: Word) -> str:
    return os.fspath(word)


@dataclass(frozen=True)
class Answer:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The object on stdout; it must be all that stands there."""
        return json.loads(self.out)


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Answer]:
    """Call the command line in this process: ``cli("predict", run, picture)``."""

    def call(*words: Word) -> Answer:
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
        monkeypatch.setattr(sys, "argv", ["polytag", *map(as_text, words)])
        code = 0
        with (
            _fresh_logging(),
            warnings.catch_warnings(),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            try:
                main()
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        texts = []
        for stream in (out, err):
            stream.flush()
            texts.append(stream.buffer.getvalue().decode())
        return Answer(code, *texts)

    return call


@contextlib.contextmanager
def _fresh_logging() -> Iterator[None]:
    """A root logger as a new process has it, and afterwards the one that was there."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers[:] = []
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def start_polytag(*words: Word, code: str = "", **options: Any) -> subprocess.Popen[str]:
    """Start the command line in a process of its own; `code` runs before it."""
    program = f"{code}\nfrom polytag.cli import main\nmain()"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    pipes["env"] = os.environ | {"PYTHONIOENCODING": "utf-8"} | options.get("env", {})
    command = [sys.executable, "-c", program, *map(as_text, words)]
    return subprocess.Popen(command, text=True, encoding="utf-8", **pipes)


def polytag_process(*words: Word, timeout: float = 120, **options: Any) -> Answer:
    """Run the command line in a process of its own, to its end."""
    with start_polytag(*words, **options) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return Answer(process.returncode, out, err)


def real_data(name: str) -> Path:
    """A folder of real data, where there is one; else the test is skipped."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("POLYTAG_DATA", default)) / name
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}")
    return folder
