"""What a ``model.onnx`` says about itself: JSON under the metadata key ``polytag``.

Reading it needs no torch and no onnx: onnxruntime hands out the metadata of a session.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polytag.errors import ModelError
from polytag.preprocess import PreprocessSpec

MODEL, INT8_MODEL = "model.onnx", "model.int8.onnx"
"""How a run's model files are called."""

INT8_KEY = "polytag.int8"
"""Metadata key of an INT8 file: JSON, the report that `polytag.quantise.export_int8` gives."""

KEY = "polytag"
FORMAT = 1


@dataclass(frozen=True)
class ModelInfo:
    """Everything a predictor needs to know, and what a stranger would ask.

    Attributes:
        attributes: K names, in the order of the output ``probabilities``.
        thresholds: K numbers: present from this probability on.
        cuts: K pairs (low, high): absent below low, present from high, unsure between; a None in a
            pair: that is never said; None for a pair, or as a whole: ``thresholds`` decide.
        unsure: What the cuts promise, and on what; empty without them.
        verdicts: Whether the pictures showed each attribute, where that was judged.
        preprocess: From any picture to the input ``images``.
        left_out: Attributes of the table that the model does not answer, with the reason.
        counts: Per attribute of the table: present, absent, na.
        recipe: The recipe as resolved.
        metrics: Headline metrics; what is not computed is null.
        calibration: As `polytag.calibration.Calibration.to_dict`; None: probabilities as the head
            gives them.
        versions: Of polytag and the libraries that made the file.
        weights_licence: Licence of the backbone's pretrained weights.
        splits_hash: sha256 of the run's splits.csv, which lists what was trained on.
    """

    attributes: tuple[str, ...]
    thresholds: tuple[float, ...]
    preprocess: PreprocessSpec
    cuts: tuple[tuple[float | None, float | None] | None, ...] | None = None
    unsure: Mapping[str, Any] = field(default_factory=dict)
    verdicts: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    calibration: Mapping[str, Any] | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    weights_licence: str = "unknown"
    splits_hash: str = ""

    def to_json(self) -> str:
        """Return the JSON that goes into the model file.

        Example:
            >>> spec = PreprocessSpec(size=224)
            >>> info = ModelInfo(("red",), (0.5,), spec)
            >>> ModelInfo.from_json(info.to_json(), "model.onnx") == info
            True
        """
        tree = asdict(self) | {"format": FORMAT, "preprocess": self.preprocess.to_dict()}
        return json.dumps(tree, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str | None, where: str) -> ModelInfo:
        """Read what ``to_json`` wrote.

        Args:
            text: The metadata's text; None if the file has none.
            where: The file, for error messages.

        Raises:
            ModelError: Not a polytag model, or one of a newer format.
        """
        if text is None:
            raise ModelError(
                "not a polytag model",
                where=where,
                got="an ONNX file without polytag's metadata",
                expected="a model.onnx that polytag wrote",
            )
        try:
            tree = json.loads(text)
            version = tree.pop("format")
            if version > FORMAT:
                raise ModelError(
                    "the model file is newer than this polytag",
                    where=where,
                    got=f"format {version}",
                    expected=f"format {FORMAT} or older",
                    fix="pip install --upgrade polytag",
                )
            tree["preprocess"] = PreprocessSpec.from_dict(tree["preprocess"])
            tree["attributes"] = tuple(tree["attributes"])
            tree["thresholds"] = tuple(tree["thresholds"])
            if tree.get("cuts") is not None:
                tree["cuts"] = tuple(pair and tuple(pair) for pair in tree["cuts"])
            info = cls(**tree)
            if not _consistent(info):
                raise ValueError("one threshold in (0, 1) is expected for each attribute")
            return info
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            if isinstance(error, ModelError):
                raise
            raise ModelError(
                "polytag's metadata in this model cannot be read", where=where, got=str(error)
            ) from None


def _consistent(info: ModelInfo) -> bool:
    numbers = all(isinstance(t, float | int) and 0 < t < 1 for t in info.thresholds)
    names = all(isinstance(name, str) for name in info.attributes)
    count = len(info.attributes)
    cuts = (None,) * count if info.cuts is None else info.cuts
    return (
        numbers and names and all(map(_apart, cuts)) and len(info.thresholds) == len(cuts) == count
    ) and count > 0


def _apart(cuts: tuple[float | None, float | None] | None) -> bool:
    if cuts is None:
        return True
    low, high = cuts
    return 0 <= (low or 0) <= (1 if high is None else high) <= 1


@dataclass(frozen=True)
class LinearHead:
    """Logits = features @ weight + bias; standardisation is folded in.

    Attributes:
        weight: float32 (D, K).
        bias: float32 (K,).
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
