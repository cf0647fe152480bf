"""What is measured inside a process of polytag's: rates without the time of start and imports.

    python benchmarks/speed/inside.py draw FOLDER COUNT
    python benchmarks/speed/inside.py extract IMAGES ENGINE VIEWS [DEVICE]
    python benchmarks/speed/inside.py answer MODEL IMAGES [ENGINE]

Each prints one JSON object. Rates are pictures a second: of the whole (``rate``), of decoding and
engine together without the time that loading it, hashing and keeping take (``pipeline``), and of
these two alone on all cores: the ``engine`` on pictures that are decoded already, and ``decode``.
This is the one file here that calls polytag's functions; the rest calls its verbs.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polytag.pipeline import stream
from polytag.preprocess import PreprocessSpec, picture

_LEAST = 1.5  # seconds that a rate is measured for, at least
_BATCH = 32


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
    print(json.dumps({"draw": draw, "extract": extract, "answer": answer}[verb](*words)))
