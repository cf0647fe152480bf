"""polytag: classifiers of many attributes from pictures and a label table with holes.

table = polytag.read_table("labels.txt")
run = polytag.fit(table, images="images", recipe="probe")
polytag.load(run).predict(["photo.jpg"])
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polytag.config import Recipe, load_recipe
    from polytag.dataset import LabelDataset
    from polytag.errors import PolytagError, SkippedError, UserError
    from polytag.evaluation import evaluate
    from polytag.importing import import_weights
    from polytag.losses import (
        LOSSES,
        masked_asymmetric,
        masked_bce,
        masked_class_balanced,
        masked_focal,
    )
    from polytag.model import load_classifier
    from polytag.predictions import Predictions
    from polytag.predictor import Predictor, load
    from polytag.preprocess import PreprocessSpec
    from polytag.rechoose import choose_anew
    from polytag.results import Evaluation
    from polytag.scorecard import evaluate_arrays
    from polytag.table import LabelTable, read_table
    from polytag.train import fit, resume

# Public name -> room. Loaded on first use, so that predicting never pays for training.
_ROOMS = {
    "LOSSES": "losses",
    "Evaluation": "results",
    "LabelDataset": "dataset",
    "LabelTable": "table",
    "PolytagError": "errors",
    "Predictions": "predictions",
    "Predictor": "predictor",
    "PreprocessSpec": "preprocess",
    "Recipe": "config",
    "SkippedError": "errors",
    "UserError": "errors",
    "choose_anew": "rechoose",
    "evaluate": "evaluation",
    "evaluate_arrays": "scorecard",
    "fit": "train",
    "import_weights": "importing",
    "load": "predictor",
    "load_classifier": "model",
    "load_recipe": "config",
    "masked_asymmetric": "losses",
    "masked_bce": "losses",
    "masked_class_balanced": "losses",
    "masked_focal": "losses",
    "read_table": "table",
    "resume": "train",
}

__version__ = "0.1.0"
__all__ = [
    "LOSSES",
    "Evaluation",
    "LabelDataset",
    "LabelTable",
    "PolytagError",
    "Predictions",
    "Predictor",
    "PreprocessSpec",
    "Recipe",
    "SkippedError",
    "UserError",
    "__version__",
    "choose_anew",
    "evaluate",
    "evaluate_arrays",
    "fit",
    "import_weights",
    "load",
    "load_classifier",
    "load_recipe",
    "masked_asymmetric",
    "masked_bce",
    "masked_class_balanced",
    "masked_focal",
    "read_table",
    "resume",
]


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'polytag' has no attribute {name!r}")
    return getattr(importlib.import_module(f"polytag.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
