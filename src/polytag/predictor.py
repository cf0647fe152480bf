"""A trained model, ready to answer: numpy, Pillow and an engine, nothing heavier."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from polytag.engine import open_graph
from polytag.errors import ModelError, RecipeError, did_you_mean
from polytag.images import find_images
from polytag.modelfile import INT8_KEY, KEY, ModelInfo
from polytag.pipeline import batches, stream
from polytag.predictions import Predictions, concatenate
from polytag.preprocess import picture, preprocess

Picture = Path | bytes | NDArray[np.uint8]
Named = str | os.PathLike[str] | bytes | NDArray[np.uint8]


def load(run: str | os.PathLike[str], engine: str = "onnxruntime") -> Predictor:
    """Load a trained model.

    Args:
        run: A run folder (``runs/latest`` too) or a bare ``model.onnx``.
        engine: What runs it: ``onnxruntime``, or ``openvino`` where it is installed.

    Raises:
        RecipeError: There is no such engine, or it is not installed.
        ModelError: There is no finished run, or the file is not a polytag model.

    Example:
        >>> load("runs/none-of-this-name")
        Traceback (most recent call last):
        polytag.errors.ModelError: runs/none-of-this-name: no such run folder or model file; ...
    """
    path = Path(run)
    if path.is_dir():
        path = path / "model.onnx"
        if not path.is_file():
            raise ModelError(
                "no finished run in this folder",
                where=str(run),
                got="no model.onnx",
                fix=f"polytag train --resume {run} finishes it"
                if any(path.parent.rglob("checkpoint.safetensors"))
                else "polytag train makes one",
            )
    elif not path.is_file():
        raise ModelError(
            "no such run folder or model file", where=str(run), fix="polytag train makes one"
        )
    return Predictor(path, engine)


class Predictor:
    """Answers for pictures with one model.

    Attributes:
        path: The model file.
        info: What it says about itself.
        properties: Its metadata as they stand, also what polytag does not know.

    Example:
        Not run: it needs a trained run; the tests train one.

        >>> predictor = load("runs/latest")                       # doctest: +SKIP
        >>> predictor.predict(["photo.jpg"]).decisions            # doctest: +SKIP
        array([['present', 'absent']], dtype='<U7')
    """

    def __init__(self, path: Path, engine: str = "onnxruntime") -> None:
        self.path = path
        graph = open_graph(engine, path, ["probabilities"])
        self._run, self.properties, shapes = graph.run, graph.properties, graph.shapes
        self.info = ModelInfo.from_json(self.properties.get(KEY), str(path))
        if engine != "onnxruntime" and INT8_KEY in self.properties:
            raise ModelError(  # OpenVINO 2026.4: probabilities off by up to .6, and no error
                f"{engine} answers wrongly for an INT8 file",
                where=str(path),
                fix="--engine onnxruntime, or the model.onnx that it was made of",
            )
        side, count = self.info.preprocess.size, len(self.info.attributes)
        if (shapes.get("images"), shapes.get("probabilities")) != ([side, side, 3], [count]):
            raise ModelError(
                "the model's graph and polytag's metadata in it disagree",
                where=str(path),
                got=str(shapes),
                expected=f"images (B, {side}, {side}, 3) and probabilities (B, {count})",
            )

    def with_thresholds(
        self, common: float | None = None, each: Mapping[str, float] | None = None
    ) -> Predictor:
        """Return a predictor that decides by other thresholds.

        Args:
            common: For all attributes.
            each: By attribute; wins over ``common``. Where a threshold is given, nothing is
                unsure.

        Raises:
            RecipeError: An attribute the model does not know, or a threshold outside (0, 1).
        """
        chosen = dict(zip(self.info.attributes, self.info.thresholds, strict=True))
        if common is not None:
            chosen = dict.fromkeys(chosen, common)
        for name, value in (each or {}).items():
            if name not in chosen:
                why = self.info.left_out.get(name)
                raise RecipeError(
                    "no threshold for this attribute",
                    where=name,
                    got=f"not trained: {why}" if why else "an attribute the model does not know",
                    fix="" if why else did_you_mean(name, chosen),
                )
            chosen[name] = value
        for name, value in chosen.items():
            if not 0 < value < 1:
                raise RecipeError(
                    "a threshold is out of range",
                    where=name,
                    got=f"{value:g}",
                    expected="a number above 0 and below 1",
                )
        by_hand = set(self.info.attributes) if common is not None else set(each or {})
        pairs = zip(self.info.attributes, self.info.cuts or (), strict=False)
        cuts = tuple(None if name in by_hand else cut for name, cut in pairs)
        other = copy.copy(self)
        other.info = replace(self.info, thresholds=tuple(chosen.values()), cuts=cuts or None)
        return other

    def probabilities(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return probabilities float32 (B, K) of preprocessed pictures uint8 (B, S, S, 3)."""
        return self._run(images)[0]

    def stream(
        self, pictures: Iterable[tuple[str, Picture]], *, batch: int = 32
    ) -> Iterator[Predictions]:
        """Yield predictions batch by batch; memory does not grow with the number of pictures.

        Args:
            pictures: Pairs of a name and a file, a file's bytes, or pixels uint8 (H, W, 3).
            batch: Pictures at a time.
        """

        def work(item: tuple[str, Picture]) -> NDArray[np.uint8]:
            name, source = item
            spec = self.info.preprocess
            if isinstance(source, np.ndarray):
                return preprocess(source, spec)
            return picture(source, spec, name)

        for group in batches(stream(pictures, work, ahead=2 * batch), batch):
            answers = np.full((len(group.items), len(self.info.attributes)), np.nan, np.float32)
            if len(group.images):
                answers[group.ok] = self.probabilities(group.images)
            yield Predictions(
                images=tuple(name for name, _ in group.items),
                attributes=self.info.attributes,
                probabilities=answers,
                thresholds=np.array(self.info.thresholds),
                errors=tuple(None if error is None else str(error) for error in group.errors),
                cuts=self.info.cuts,
                verdicts=self.info.verdicts,
            )

    def predict(self, pictures: Named | Sequence[Named]) -> Predictions:
        """Answer for files, folders, patterns, bytes of files, or pixels uint8 (H, W, 3).

        Returns:
            One row a picture, in order; a picture that could not be read has its error.

        Raises:
            UserError: A folder or a pattern without pictures.
        """
        if isinstance(pictures, str | os.PathLike | bytes | np.ndarray):
            pictures = [pictures]  # one picture; its letters are not pictures
        pairs: list[tuple[str, Picture]] = []
        for index, source in enumerate(pictures):
            if isinstance(source, bytes | np.ndarray):
                pairs.append((f"picture {index}", source))
            else:
                pairs += [(str(path), path) for path in find_images([os.fspath(source)])]
        if not pairs:
            info = self.info
            empty = np.empty((0, len(info.attributes)), np.float32)
            thresholds = np.array(info.thresholds)
            return Predictions((), info.attributes, empty, thresholds, (), info.cuts, info.verdicts)
        return concatenate(self.stream(pairs))
