"""What the rows share: pictures, a trained run, the plain path's model, and both programs."""

from __future__ import annotations

import itertools
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from timing import Ran, run, version

HERE = Path(__file__).parent
PLAIN = HERE.parent / "plain.py"
BACKBONES = {"B0": "efficientnet_b0", "our backbone": "embedded"}  # of the plain path
EPOCHS = (5, 15)  # of its two stages
DRAWN = 975


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    Attributes:
        pairs: Of ours and the plain path.
        steps: The plain path's steps in an epoch; None: all.
        forward: Pictures of the plain path's forward pass; extract: of our extraction.
        predict: Files; plain_predict: of these the plain path's, multiplied.
        flat: Inputs that memory and time are compared at.
    """

    pairs: int
    steps: int | None
    forward: int
    extract: int
    predict: int
    plain_predict: int
    flat: tuple[int, int]

    @property
    def quick(self) -> bool:
        """Whether less is measured, and multiplied."""
        return self.steps is not None


FULL = Scale(3, None, 972, 972, 1000, 1000, (1000, 20000))
QUICK = Scale(1, 2, 64, 256, 300, 40, (100, 1000))


@dataclass(frozen=True)
class Data:
    """A label table and its pictures."""

    name: str
    labels: Path
    images: Path


@dataclass
class Bench:
    """One run of the benchmark.

    Attributes:
        folder: Where everything is made; what it holds can be removed at any time.
        given: A data set's folder, or one that holds several by name; None: drawn pictures.
        scale: How much is measured.
        settings: KEY=VALUE for our side of fine-tuning.
    """

    folder: Path
    given: Path | None
    scale: Scale
    settings: tuple[str, ...] = ()
    made: dict[str, Any] = field(default_factory=dict)

    @property
    def cache(self) -> Path:
        """The folder of what polytag keeps that most rows share."""
        return self.folder / "cache"

    def fresh(self, name: str) -> Path:
        """Return an empty folder of this name."""
        path = self.folder / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path

    def data(self, name: str) -> Data:
        """Return the data set of this name, or the one there is."""
        folder = self._drawn() if self.given is None else self.given
        if (folder / name).is_dir():
            folder = folder / name
        labels = next(iter(sorted(folder.glob("labels.*"))), None)
        if labels is None:
            raise SystemExit(f"{folder}: no labels.csv or labels.txt here")
        drawn = self.given is None
        return Data(f"drawn {DRAWN}" if drawn else folder.name, labels, folder / "images")

    def _drawn(self) -> Path:
        folder = self.folder / f"drawn-{DRAWN}"
        if not (folder / "labels.csv").is_file():
            shutil.rmtree(folder, ignore_errors=True)
            run([HERE / "inside.py", "draw", folder, DRAWN], self.cache)
        return folder

    def pictures(self, data: Data, count: int) -> Path:
        """Return a folder of so many files: the data set's, repeated under other names."""
        key = ("pictures", data.name, count)
        if key not in self.made:
            folder = self.fresh(f"pictures-{count}")
            # One copy beside the links: a hard link cannot lead to another file system.
            origin = self.fresh("origin")
            names = {line.replace(",", " ").split()[0] for line in _lines(data.labels)}
            files = sorted(path for path in data.images.iterdir() if path.name in names)
            good = [path for path in files if path.read_bytes()[-2:] == b"\xff\xd9"]
            copies = [Path(shutil.copy(path, origin)) for path in good[:count]]
            for index, path in enumerate(itertools.islice(itertools.cycle(copies), count)):
                os.link(path, folder / f"{index:05}.jpg")
            self.made[key] = folder
        return self.made[key]

    def polytag(self, *words: object, cache: Path | None = None) -> Ran:
        """Run one of our verbs."""
        return run(["-m", "polytag", *words], cache or self.cache)

    def inside(self, *words: object, cache: Path | None = None) -> Any:
        """Measure inside a process of ours."""
        return run([HERE / "inside.py", *words], cache or self.cache).json

    def plain(self, *words: object) -> Ran:
        """Run the plain path."""
        return run([PLAIN, *words], self.cache)

    def trained(self, data: Data) -> Path:
        """Return a run of the probe on this data."""
        key = ("run", data.name)
        if key not in self.made:
            runs = self.fresh(f"runs-{data.labels.stem}")
            words = (data.labels, "--images", data.images, "--runs", runs, "--name", "probe")
            self.polytag("train", *words)
            self.made[key] = runs / "probe"
        return self.made[key]

    def plain_model(self, data: Data, backbone: str) -> Path:
        """Return a model file of the plain path, not trained: the time does not depend on it."""
        key = ("plain", data.name, backbone)
        if key not in self.made:
            path = self.folder / f"plain-{backbone}.pth"
            words = (data.labels, data.images, "--save", path, "--epochs", 0, 0)
            self.plain("train", *words, "--backbone", backbone)
            self.made[key] = path
        return self.made[key]

    def int8(self, model: Path) -> Path:
        """Return the INT8 file of a run.

        Raises:
            RuntimeError: polytag refused it, as it costs too much AP, or cannot make one.
        """
        if model not in self.made:
            path = model.parent / "model.int8.onnx"
            self.polytag("export", model, "--int8", "--out", path)
            self.made[model] = path
        return self.made[model]

    def offers(self, verb: str, option: str) -> bool:
        """Say whether this polytag has a verb with an option."""
        key = ("help", verb)
        if key not in self.made:
            try:
                self.made[key] = self.polytag(verb, "--help").out
            except RuntimeError:  # it has no such verb
                self.made[key] = ""
        return option in self.made[key]

    def has_gpu(self) -> bool:
        """Say whether torch finds one."""
        if "gpu" not in self.made:
            asked = run(["-c", "import torch; print(torch.cuda.is_available())"], self.cache)
            self.made["gpu"] = "True" in asked.out
        return bool(self.made["gpu"])

    def lacks(self, engine: str) -> str:
        """Return why predicting with an engine cannot be measured; empty: it can."""
        if engine == "openvino" and version("openvino") == "-":
            return "openvino is not installed"
        if engine and not self.offers("predict", "--engine"):
            return "this polytag has no predict --engine"
        return ""


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()
