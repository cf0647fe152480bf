"""The demo: draw pictures with labels, train on them, predict, say where to look."""

from __future__ import annotations

import io
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polytag.drawing import draw_dataset, draw_picture
from polytag.errors import UserError
from polytag.predictions import Predictions, write_text
from polytag.predictor import load
from polytag.runs import Run
from polytag.summary import headline
from polytag.summary import table as metrics_table
from polytag.table import read_table
from polytag.train import fit

log = logging.getLogger("polytag")
_COUNT = 975
_CHANCE = "washable"  # the attribute that no picture shows
_SHOWN = 2  # predictions printed


@dataclass(frozen=True, eq=False)
class Demo:
    """What the demo did.

    Attributes:
        run: The trained run.
        labels: The drawn label table.
        predictions: Of a few more drawn pictures that are in no table.
    """

    run: Run
    labels: Path
    predictions: Predictions

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        return {
            "run": str(self.run.path),
            "labels": str(self.labels),
            "drawn": True,
            "chance": [_CHANCE],
            "metrics": dict(self.run.metrics),
            "predictions": list(self.predictions.records()),
        }

    def to_text(self) -> str:
        """Return what a person wants to read."""
        shown = io.StringIO()
        write_text([self.predictions], shown)
        run = self.run.path
        return "\n".join(
            [
                "These pictures are DRAWN by a program: the numbers say that polytag works, not",
                "how well it would do on photographs. Four attributes can be seen in them;",
                f"{_CHANCE} is a coin toss, and should score like a guess.",
                "",
                headline(self.run.evaluation),
                "",
                metrics_table(self.run.evaluation),
                "",
                *shown.getvalue().splitlines(),
                f"where to look: {run}",
                "  report.html              everything about it: open it in a browser",
                "  sample_predictions.png   pictures with truth and prediction",
                "  loss_curve.png           the training",
                "  README.md                the model card",
                "  model.onnx               the file to deploy",
                f"next: polytag predict {run} PHOTO.jpg",
                "      polytag train YOUR_LABELS.csv --images YOUR_PICTURES/",
            ]
        )


def run_demo(folder: str | os.PathLike[str], *, seed: int = 42, count: int = _COUNT) -> Demo:
    """Draw a data set into ``folder``, train the probe on it, and predict a few pictures.

    Pictures that an earlier demo drew there with the same seed and count are used again.

    Raises:
        UserError: The folder holds something else.
    """
    data = Path(folder) / f"drawn-{seed}-{count}"
    labels, images = data / "labels.csv", data / "images"
    if not labels.is_file():
        log.info("drawing %d pictures", count)
        try:
            draw_dataset(data, count=count, seed=seed)
        except UserError as error:
            raise UserError(
                error.what,
                where=str(data),
                fix="an earlier demo was interrupted there: remove this folder",
            ) from None
    run = fit(read_table(labels), images, folder=Path(folder) / "runs", changes={"seed": seed})
    # Pictures that are in no table: what the model says of its own training pictures proves little.
    new = [data / f"new_{index}.jpg" for index in range(_SHOWN)]
    for index, path in enumerate(new):
        path.write_bytes(draw_picture(seed, count + index))
    return Demo(run, labels, load(run).predict(new))
