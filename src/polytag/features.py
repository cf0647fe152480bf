"""Features of pictures through the frozen backbone, kept on disk by content.

The cache is a folder for each way of computing features (backbone, weights, preprocessing, layers,
engine), in it a number of shard files. A shard is written aside and renamed, and never changed
afterwards: two processes can fill one cache at once (at worst both compute the same rows), and
after a kill there is nothing half-written to read. New pictures make new shards.
"""

from __future__ import annotations

import logging
import uuid
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from polytag.config import FeaturesConfig
from polytag.engine import open_session
from polytag.errors import RecipeError, UserError
from polytag.files import cache_folder, written_aside
from polytag.frozen import FORMAT, FrozenBackbone, digest
from polytag.images import content_hash, decode
from polytag.looks import SIDE, look
from polytag.pictures import Rows, rows_without
from polytag.pipeline import batches, stream
from polytag.preprocess import PreprocessSpec, preprocess
from polytag.progress import progress
from polytag.table import LabelTable

if TYPE_CHECKING:
    from polytag.backbone import Backbone

log = logging.getLogger("polytag")
Floats = NDArray[np.float32]
Looks = NDArray[np.uint8]
Engine = Callable[[NDArray[np.uint8]], Floats]

_FIELDS = ("hash", "check", "look", "features")
_SHARD_ROWS = 1024  # what a kill can lose: some 15 s of work


@dataclass(frozen=True)
class Extractor:
    """Everything that decides a picture's features.

    Attributes:
        engine: ``onnxruntime`` or ``torch``.
        spec: Preprocessing.
        flip: Whether the mirrored picture is a second view.
        key: Names the cache folder.
        load: Builds the engine; called only when a picture is not in the cache.
        batch: Pictures at a time.
    """

    engine: str
    spec: PreprocessSpec
    flip: bool
    key: str
    load: Callable[[], Engine]
    batch: int = 32


def make_extractor(frozen: FrozenBackbone, config: FeaturesConfig, device: str) -> Extractor:
    """Decide how features are computed.

    Args:
        frozen: The network.
        config: Engine, views and batch size.
        device: A torch device.

    Raises:
        RecipeError: An engine of the CPU was asked for on another device.
    """
    engine = config.engine
    if engine == "auto":
        engine = "onnxruntime" if device == "cpu" else "torch"
    if engine == "onnxruntime" and device != "cpu":
        raise RecipeError(
            "onnxruntime runs on the CPU here",
            where="features.engine",
            got=f"device {device}",
            fix="--set features.engine=torch, or --device cpu",
        )

    def load() -> Engine:
        if engine == "onnxruntime":
            return onnx_engine(frozen.graph)
        return torch_engine(frozen.module(), device)

    parts = {
        "format": FORMAT,
        "graph": frozen.graph_hash,
        "engine": [engine, device.partition(":")[0]],
        "spec": frozen.spec.to_dict(),
        "flip": config.flip,
    }
    return Extractor(engine, frozen.spec, config.flip, digest(parts), load, config.batch)


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
    hashes: list[str] = []
    errors: dict[int, UserError] = {}
    with progress("hashing", len(paths), "files") as advance:
        for index, (_, result) in enumerate(stream(paths, content_hash)):
            if isinstance(result, UserError):
                errors[index] = result
            hashes.append("" if isinstance(result, UserError) else result)
            advance(1)
    # Byte-identical files are computed once; the first one stands for them.
    first = {text: paths[index] for index, text in reversed(list(enumerate(hashes))) if text}
    store = FeatureStore(cache_folder() / "features" / extractor.key)
    missing = {text: path for text, path in first.items() if text not in store}
    log.info("features: %d in the cache, %d to compute", len(first) - len(missing), len(missing))
    broken = _fill(store, missing, extractor) if missing else {}
    for index, text in enumerate(hashes):
        if text in broken:
            errors[index], hashes[index] = broken[text], ""
    features, looks = store.read(hashes)
    return Extracted(features, hashes, errors, looks)


def _fill(
    store: FeatureStore, missing: Mapping[str, Path], extractor: Extractor
) -> dict[str, UserError]:
    """Compute and keep the features of ``missing`` (hash -> file); return those that are broken."""
    engine = extractor.load()
    broken: dict[str, UserError] = {}
    names: list[str] = []
    rows: list[Floats] = []
    looks: dict[str, Looks] = {}  # filled by the decoding threads

    def load(text: str) -> NDArray[np.uint8]:
        image = decode(missing[text])
        looks[text] = look(image)
        return preprocess(image, extractor.spec)

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
                plain = batch.images
                views = [plain, np.ascontiguousarray(plain[:, :, ::-1])][: 1 + extractor.flip]
                done = np.stack([engine(view) for view in views], axis=1)
                names += [name for name, ok in zip(batch.items, batch.ok, strict=True) if ok]
                rows.append(done)
            if len(names) >= _SHARD_ROWS:
                keep()
            advance(len(batch.items))
    return broken


class FeatureStore:
    """The rows of one cache folder, by content hash.

    Args:
        folder: Made when the first rows are added.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = FeatureStore(Path(folder) / "key")
        ...     looks = np.zeros((1, 8, 8, 3), np.uint8)
        ...     store.add(["ab" * 32], np.ones((1, 2, 3), np.float32), looks)
        ...     [rows.shape for rows in FeatureStore(Path(folder) / "key").read(["ab" * 32])]
        [(1, 2, 3), (1, 8, 8, 3)]
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: dict[str, tuple[Any, int]] = {}  # a shard (numpy.memmap), and the row in it
        self.damaged: set[str] = set()
        for shard in sorted(folder.glob("[!.]*.npy")):
            self._open(shard)

    def __contains__(self, text: str) -> bool:
        """Say whether the row is there and as it was written."""
        if text not in self.rows:
            return False
        shard, row = self.rows[text]
        if _checksum(shard[row]) == shard["check"][row]:
            return True
        del self.rows[text]
        if shard.filename not in self.damaged:
            self.damaged.add(shard.filename)
            _warn_of(shard.filename, "its checksum is wrong")
        return False

    def add(self, hashes: Sequence[str], features: Floats, looks: Looks) -> None:
        """Keep n rows under their hashes, as one new shard.

        Args:
            hashes: n content hashes.
            features: float32 (n, V, D).
            looks: uint8 (n, 8, 8, 3).
        """
        kinds = (("u1", (32,)), ("<u4",), ("u1", looks.shape[1:]), ("<f4", features.shape[1:]))
        fields = [(name, *kind) for name, kind in zip(_FIELDS, kinds, strict=True)]
        table = np.empty(len(hashes), np.dtype(fields))
        table["hash"] = [list(bytes.fromhex(text)) for text in hashes]
        table["look"] = looks
        table["features"] = features
        table["check"] = [_checksum(row) for row in table]
        path = self.folder / f"{uuid.uuid4().hex}.npy"
        with written_aside(path) as aside:
            np.save(aside, table)
        self._open(path)

    def read(self, hashes: Sequence[str]) -> tuple[Floats, Looks]:
        """Return features float32 (N, V, D) and looks; NaN and zeros for empty hashes."""
        shape = next(iter(self.rows.values()))[0]["features"].shape[1:] if self.rows else (1, 0)
        features = np.full((len(hashes), *shape), np.nan, dtype=np.float32)
        looks = np.zeros((len(hashes), SIDE, SIDE, 3), dtype=np.uint8)
        for index, text in enumerate(hashes):
            if text:
                shard, row = self.rows[text]
                features[index] = shard["features"][row]
                looks[index] = shard["look"][row]
        return features, looks

    def _open(self, path: Path) -> None:
        try:
            table: Any = np.lib.format.open_memmap(path, mode="r")  # arrays only, never a pickle
            digests, *_ = (table[name] for name in _FIELDS)  # one that is not there: an error
            for row, digest in enumerate(digests):
                self.rows[digest.tobytes().hex()] = (table, row)
        except Exception as error:  # numpy's readers raise many kinds on broken files
            _warn_of(path, error)


def _checksum(row: Any) -> int:
    return zlib.crc32(row["look"].tobytes() + row["features"].tobytes())


def _warn_of(shard: object, reason: object) -> None:
    # A disk's fault, as shards appear whole: what it held is computed again.
    log.warning("a damaged shard of the feature cache is left out: %s (%s)", shard, reason)


def onnx_engine(graph: Path) -> Engine:
    """Return an engine that runs the backbone's graph in onnxruntime on the CPU."""
    session = open_session(graph)

    def run(images: NDArray[np.uint8]) -> Floats:
        features: Floats = session.run(["embedding"], {"images": images})[0]
        return features

    return run


def torch_engine(backbone: Backbone, device: str) -> Engine:
    """Return an engine that runs the backbone in torch on ``device``."""
    import torch

    network = backbone.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def run(images: NDArray[np.uint8]) -> Floats:
        with torch.inference_mode():
            features: Floats = network(torch.from_numpy(images).to(device)).cpu().numpy()
        return features

    return run
