"""Features of pictures through the frozen backbone, kept on disk by content.

What is kept is one `polytag.store.FeatureStore` for each way of computing features: backbone,
weights, preprocessing, views, layers, engine and its precision.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from polytag.cached import describe, make_room
from polytag.config import FeaturesConfig
from polytag.engine import ENGINES, fastest_engine, open_engine, precision
from polytag.errors import RecipeError, UserError
from polytag.files import cache_folder, digest
from polytag.frozen import FORMAT, FrozenBackbone
from polytag.images import content_hash
from polytag.looks import SIDE, look
from polytag.pictures import Rows, rows_without
from polytag.pipeline import batches, stream
from polytag.preprocess import PreprocessSpec, decoded, picture, resized
from polytag.progress import progress
from polytag.store import FeatureStore
from polytag.table import LabelTable

if TYPE_CHECKING:
    from polytag.backbone import Backbone

log = logging.getLogger("polytag")
Floats = NDArray[np.float32]
Looks = NDArray[np.uint8]
Engine = Callable[[NDArray[np.uint8]], Floats]

_SHARD_ROWS = 1024  # what a kill can lose: some 15 s of work


@dataclass(frozen=True)
class Extractor:
    """Everything that decides a picture's features.

    Attributes:
        engine: One of `polytag.engine.ENGINES`, or ``torch``.
        spec: Preprocessing.
        flip: Whether the mirrored picture is a second view.
        width: D, the number of features.
        key: Names the cache folder.
        about: What that folder holds, for people.
        load: Builds the engine; called only when a picture is not in the cache.
        batch: Pictures at a time.
    """

    engine: str
    spec: PreprocessSpec
    flip: bool
    width: int
    key: str
    about: Mapping[str, str | int]
    load: Callable[[], Engine]
    batch: int = 32


def make_extractor(frozen: FrozenBackbone, config: FeaturesConfig, device: str) -> Extractor:
    """Decide how features are computed.

    Args:
        frozen: The network.
        config: Engine, views and batch size.
        device: A torch device.

    Raises:
        RecipeError: The engine is not installed, or is one of the CPU and the device another.
    """
    engine: str = config.engine
    on_cpu = device == "cpu"
    if engine == "auto":
        engine = fastest_engine(frozen.graph) if on_cpu else "torch"
    if engine in ENGINES and not on_cpu:
        raise RecipeError(
            f"{engine} runs on the CPU here",
            where="features.engine",
            got=f"device {device}",
            fix="--engine torch, or --device cpu",
        )
    numbers = precision(engine) if engine in ENGINES else "fp32"

    def load() -> Engine:
        if engine not in ENGINES:
            return torch_engine(frozen.module(), device)
        run = open_engine(engine, frozen.graph, ["embedding"])
        return lambda images: run(images)[0]

    parts = {
        "format": FORMAT,
        "graph": frozen.graph_hash,
        "engine": [engine, device.partition(":")[0], numbers],
        "spec": frozen.spec.to_dict(),
        "flip": config.flip,
    }
    about: dict[str, str | int] = {
        "backbone": frozen.name,
        "size": frozen.spec.size,
        "resize": frozen.spec.resize,
        "layers": config.layers,
        "engine": f"{engine} {numbers}",
    }
    return Extractor(
        engine, frozen.spec, config.flip, frozen.width, digest(parts), about, load, config.batch
    )


def rows_with_features(
    table: LabelTable, paths: Sequence[Path], errors: Mapping[int, UserError], extractor: Extractor
) -> tuple[Rows, Floats]:
    """Compute the features of a table's pictures; those that cannot be decoded are skipped.

    Args:
        table: The labels.
        paths: The file of every row.
        errors: Rows known to have no picture.
        extractor: How to compute features.

    Returns:
        N rows, and their features float32 (N, V, D).
    """
    there = [row for row in range(len(table)) if row not in errors]
    found = extract([paths[row] for row in there], extractor)
    hashes = [""] * len(table)
    looks = np.zeros((len(table), SIDE, SIDE, 3), dtype=np.uint8)
    looks[there] = found.looks
    for row, text in zip(there, found.hashes, strict=True):
        hashes[row] = text
    unusable = {**errors, **{there[position]: error for position, error in found.errors.items()}}
    good = [position for position in range(len(there)) if position not in found.errors]
    return rows_without(table, paths, hashes, looks, unusable), found.features[good]


class Extracted(NamedTuple):
    """What `extract` finds of N pictures.

    Attributes:
        features: float32 (N, V, D) of the plain picture and, with ``flip``, of the mirrored one;
            NaN where there is an error.
        hashes: N content hashes; empty where there is an error.
        errors: What was wrong with a picture, by its position.
        looks: uint8 (N, 8, 8, 3), see `polytag.looks.look`; zeros where there is an error.
    """

    features: Floats
    hashes: list[str]
    errors: dict[int, UserError]
    looks: Looks


def extract(paths: Sequence[Path], extractor: Extractor) -> Extracted:
    """Return features, content hashes and looks of pictures, from the cache where it has them.

    Args:
        paths: N files.
        extractor: How to compute features.
    """
    store = FeatureStore(cache_folder() / "features" / extractor.key)
    with ThreadPoolExecutor(1) as beside:
        # An engine takes as long to load as a hundred pictures: they are hashed and decoded
        # meanwhile.
        loading = None if len(store) or not paths else beside.submit(extractor.load)
        hashes, errors = _hashed(paths)
        # Byte-identical files are computed once; the first one stands for them.
        first = {text: paths[index] for index, text in reversed(list(enumerate(hashes))) if text}
        missing = {text: path for text, path in first.items() if text not in store}
        found = len(first) - len(missing)
        log.info("features: %d in the cache, %d to compute", found, len(missing))
        if missing:
            loading = loading or beside.submit(extractor.load)
            broken = _fill(store, missing, extractor, loading)
            for index, text in enumerate(hashes):
                if text in broken:
                    errors[index], hashes[index] = broken[text], ""
    features, looks = store.read(hashes)
    return Extracted(features, hashes, errors, looks)


def _hashed(paths: Sequence[Path]) -> tuple[list[str], dict[int, UserError]]:
    """Return content hashes, empty where a file cannot be read, and why by its position."""
    hashes: list[str] = []
    errors: dict[int, UserError] = {}
    with progress("hashing", len(paths), "files") as advance:
        for index, (_, result) in enumerate(stream(paths, content_hash)):
            if isinstance(result, UserError):
                errors[index] = result
            hashes.append("" if isinstance(result, UserError) else result)
            advance(1)
    return hashes, errors


def _fill(
    store: FeatureStore,
    missing: Mapping[str, Path],
    extractor: Extractor,
    loading: Future[Engine],
) -> dict[str, UserError]:
    """Compute and keep the features of ``missing`` (hash -> file); return those that are broken."""
    count = 1 + extractor.flip
    needed = len(missing) * count * extractor.width * 4
    if make_room(needed, store.folder) < needed:
        log.warning("the cache grows beyond POLYTAG_CACHE_SIZE, or the disk: these features do")
    broken: dict[str, UserError] = {}
    names: list[str] = []
    rows: list[Floats] = []
    looks: dict[str, Looks] = {}  # filled by the decoding threads

    def load(text: str) -> NDArray[np.uint8]:
        image = decoded(missing[text], extractor.spec)
        looks[text] = look(image.image)
        return resized(image, extractor.spec)

    def keep() -> None:
        if rows:
            features = np.concatenate(rows)
            done = names[: len(features)]  # Ctrl-C can fall between the two lists
            store.add(done, features, np.stack([looks.pop(name) for name in done]))
            names.clear()
            rows.clear()

    with progress("features", len(missing), "pictures") as advance, ExitStack() as finally_:
        finally_.callback(keep)  # what is computed when somebody presses Ctrl-C, too
        for batch in batches(stream(missing, load, ahead=2 * extractor.batch), extractor.batch):
            broken.update(batch.failed)
            if len(batch.images):
                done = _of_views(loading.result(), batch.images, count)
                names += [name for name, ok in zip(batch.items, batch.ok, strict=True) if ok]
                rows.append(done)
            if len(names) >= _SHARD_ROWS:
                keep()
            advance(len(batch.items))
    if len(broken) < len(missing):
        describe(store.folder, extractor.about)
    return broken


def _of_views(engine: Engine, plain: NDArray[np.uint8], count: int) -> Floats:
    """Return features (B, V, D) of V = ``count`` views of pictures (B, S, S, 3)."""
    views = [plain, np.ascontiguousarray(plain[:, :, ::-1])][:count]
    return np.stack([engine(view) for view in views], axis=1)


def count_missing(paths: Sequence[Path], extractor: Extractor) -> int:
    """Return how many pictures' features are not in the cache; identical ones count once."""
    store = FeatureStore(cache_folder() / "features" / extractor.key)
    hashes = set(_hashed(paths)[0]) - {""}
    return sum(text not in store for text in hashes)


def seconds_a_picture(paths: Sequence[Path], extractor: Extractor) -> float:
    """Measure how long the features of a picture take, from its file, nothing being kept.

    Args:
        paths: Some files, at least one; the more, the better the measure.
        extractor: How to compute features.

    Raises:
        UserError: None of them can be decoded.
    """
    engine, count = extractor.load(), 1 + extractor.flip
    engine(np.zeros((1, extractor.spec.size, extractor.spec.size, 3), np.uint8))  # makes room
    done, start = 0, time.perf_counter()
    for batch in batches(stream(paths, lambda p: picture(p, extractor.spec)), extractor.batch):
        if len(batch.images):
            _of_views(engine, batch.images, count)
            done += len(batch.images)
        elif batch.failed and not done:
            raise batch.failed[0][1]
    return (time.perf_counter() - start) / done


def torch_engine(backbone: Backbone, device: str) -> Engine:
    """Return an engine that runs the backbone in torch on ``device``."""
    import torch

    network = backbone.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def run(images: NDArray[np.uint8]) -> Floats:
        with torch.inference_mode():
            features: Floats = network(torch.from_numpy(images).to(device)).cpu().numpy()
        return features

    return run
