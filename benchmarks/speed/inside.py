"""What is measured inside a process of polytag's: rates without the time of start and imports.

    python benchmarks/speed/inside.py draw FOLDER COUNT
    python benchmarks/speed/inside.py extract IMAGES ENGINE VIEWS [DEVICE]
    python benchmarks/speed/inside.py answer MODEL IMAGES [ENGINE]
    python benchmarks/speed/inside.py profile VERB WORDS...

Each prints one JSON object; ``profile`` the seconds of each part of a training. Rates are pictures
a second: of the whole (``rate``), of decoding and engine together without the time that loading it,
hashing and keeping take (``pipeline``), and of these two alone on all cores: the ``engine`` on
pictures that are decoded already, and ``decode``.
This is the one file here that calls polytag's functions; the rest calls its verbs.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what takes time to import is imported where it is used: it is profiled too
    import numpy as np

    from polytag.preprocess import PreprocessSpec

_LEAST = 1.5  # seconds that a rate is measured for, at least
_BATCH = 32


# Parts of a training, and the function that does each: the innermost on the stack counts. What is
# imported is told apart, wherever that happens.
_PARTS = {
    ("polytag.frozen", "freeze_backbone"): "network",
    ("polytag.conversion", "to_onnx"): "network to ONNX",
    ("polytag.features", "make_extractor"): "trial of engines",
    ("polytag.features", "rows_with_features"): "features",
    ("polytag.learnability", "judge_learnability"): "verdicts",
    ("polytag.probe", "train"): "probe",
    ("polytag.finetune", "_start_from_probe"): "probe",
    ("polytag.trunk", "_prepare"): "frozen layers",
    ("polytag.rounds", "train"): "training",
    ("polytag.decide", "calibrate"): "calibration and thresholds",
    ("polytag.decide", "decide"): "calibration and thresholds",
    ("polytag.decide", "judge"): "intervals",
    ("polytag.artefacts", "write_run"): "run folder",
}
_EVERY = 0.004  # seconds between two looks at the stack


def draw(folder: str, count: str) -> dict[str, Any]:
    """Draw a data set."""
    from polytag.drawing import draw_dataset

    return {"images": str(draw_dataset(Path(folder), count=int(count)).images)}


def extract(images: str, engine: str, views: str, device: str = "cpu") -> dict[str, Any]:
    """Measure the extraction of features into an empty cache; the graph comes from the old one."""
    from polytag.features import extract as extract_features
    from polytag.features import make_extractor, seconds_a_picture

    paths = sorted(Path(images).iterdir())
    extractor = make_extractor(*_frozen(engine, views == "2"), device)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["POLYTAG_CACHE"] = cache
        begin = time.perf_counter()
        found = extract_features(paths, extractor)
        rate = (len(paths) - len(found.errors)) / (time.perf_counter() - begin)
    good = [path for index, path in enumerate(paths) if index not in found.errors]
    halves = _halves(good, extractor.spec, extractor.load())
    halves["engine"] /= int(views)  # what it does to a picture is all its views
    return {"rate": rate, "pipeline": 1 / seconds_a_picture(good, extractor), **halves}


def answer(model: str, images: str, engine: str = "onnxruntime") -> dict[str, Any]:
    """Measure a trained model's answers."""
    from polytag.predictor import load

    predictor = load(model, engine)
    paths = sorted(Path(images).iterdir())
    halves = _halves(paths, predictor.info.preprocess, predictor.probabilities)
    begin = time.perf_counter()
    count = sum(len(part) for part in predictor.stream((str(path), path) for path in paths))
    rate = count / (time.perf_counter() - begin)
    return {"rate": rate, "pipeline": rate, **halves}


def profile(*words: str) -> dict[str, float]:
    """Say where the time of a verb goes, by looking at its stack again and again."""
    thread, spent, done = threading.get_ident(), Counter[str](), threading.Event()

    def look() -> None:
        last = time.perf_counter()
        while not done.wait(_EVERY):
            part, now = _part(sys._current_frames()[thread]), time.perf_counter()
            spent[part] += now - last  # a call that lets no other thread in is counted whole
            last = now

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            from polytag.cli import main

            sys.argv = ["polytag", *words]
            main()
    finally:
        done.set()
        looking.join()
    return {part: round(seconds, 2) for part, seconds in spent.most_common()}


def _part(frame: FrameType | None) -> str:
    found = ""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return "imports"
        place = (frame.f_globals.get("__name__", ""), frame.f_code.co_name)
        found, frame = found or _PARTS.get(place, ""), frame.f_back
    return found or "else"


def _frozen(engine: str, flip: bool) -> tuple[Any, Any]:
    """Return the default recipe's network, and the recipe's features with this engine."""
    from polytag.config import load_recipe
    from polytag.frozen import freeze_backbone

    changes = {"features.engine": engine, "features.flip": flip}
    recipe = load_recipe("probe", changes)
    frozen = freeze_backbone(recipe.backbone, recipe.preprocess, recipe.features, recipe.seed)
    return frozen, recipe.features


def _halves(
    paths: Sequence[Path], spec: PreprocessSpec, run: Callable[[np.ndarray], Any]
) -> dict[str, float]:
    """Measure the engine alone and decoding alone, each on all cores."""
    import numpy as np

    from polytag.pipeline import stream
    from polytag.preprocess import picture

    def load(path: Path) -> np.ndarray:
        return picture(path, spec)

    squares = [load(path) for path in paths[:_BATCH]]
    batch = np.stack((squares * _BATCH)[:_BATCH])
    run(batch)
    engine = _rate(iter(lambda: len(run(batch)) and _BATCH, 0))
    return {"engine": engine, "decode": _rate(1 for _ in stream(itertools.cycle(paths), load))}


def _rate(counts: Any) -> float:
    """Return how many a second, drawn from an iterator of counts for `_LEAST` seconds or more."""
    begin = time.perf_counter()
    done, seconds = 0, 0.0
    for count in counts:
        done += count
        seconds = time.perf_counter() - begin
        if seconds >= _LEAST:
            break
    return done / seconds


if __name__ == "__main__":
    verb, *words = sys.argv[1:]
    verbs = {"draw": draw, "extract": extract, "answer": answer, "profile": profile}
    print(json.dumps(verbs[verb](*words)))
