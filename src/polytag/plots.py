"""Pictures of a run: the loss curve and sample predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from polytag.files import written_aside

_COLUMNS = 4
_LINES = 7  # attributes listed under a picture
_RIGHT, _WRONG = "#1b6e3c", "#b3261e"


def loss_curve(losses: Sequence[float], title: str, path: Path) -> None:
    """Draw the training loss, iteration by iteration.

    Args:
        losses: One number an iteration, from iteration 1.
        title: Above the picture.
        path: The PNG to write.
    """
    figure = Figure(figsize=(7, 4.2), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    iterations = np.arange(1, len(losses) + 1)
    axes.plot(iterations, losses, color="#1f5fa8", linewidth=1.8, marker="o", markersize=3.5)
    axes.set_title(title, parse_math=False)
    axes.set_xlabel("iteration_number")
    axes.set_ylabel("training_loss")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


@dataclass(frozen=True, eq=False)
class Sample:
    """A picture with what is known and what was predicted about it.

    Attributes:
        name: The picture's name.
        image: uint8 (H, W, 3).
        truth: (K,) in {0, 1, NaN}; NaN: not known.
        probabilities: (K,) in [0, 1], out of fold; NaN: no model output.
        thresholds: (K,).
    """

    name: str
    image: NDArray[np.uint8]
    truth: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    thresholds: NDArray[np.float64]


def sample_predictions(samples: Sequence[Sample], attributes: Sequence[str], path: Path) -> None:
    """Draw pictures with truth and prediction; right and wrong differ by sign, not colour alone.

    Args:
        samples: What to show, at best 12.
        attributes: K names.
        path: The PNG to write.
    """
    rows = max(1, -(-len(samples) // _COLUMNS))
    figure = Figure(figsize=(3.1 * _COLUMNS, 4.5 * rows + 0.8), dpi=90, layout="constrained")
    figure.suptitle(
        "Sample predictions on pictures the model had not seen\n"
        "✓ right, ✗ WRONG (truth in brackets), ? truth not known",
        fontsize=13,
    )
    for index, sample in enumerate(samples):
        axes = figure.add_subplot(rows, _COLUMNS, index + 1)
        axes.imshow(_square(sample.image))
        axes.set_axis_off()
        axes.set_title(_shortened(sample.name, 34), fontsize=9, parse_math=False)
        for line, (text, wrong) in enumerate(_captions(sample, attributes)):
            axes.text(
                0,
                -0.035 - 0.068 * line,
                text,
                transform=axes.transAxes,
                fontsize=8.5,
                va="top",
                family="monospace",
                color=_WRONG if wrong else _RIGHT if text.startswith("✓") else "#444444",
                weight="bold" if wrong else "normal",
                parse_math=False,
            )
        axes.text(0, -0.035 - 0.068 * (_LINES + 1), " ", transform=axes.transAxes, fontsize=8)
    _save(figure, path)


def _captions(sample: Sample, attributes: Sequence[str]) -> list[tuple[str, bool]]:
    """Return lines and whether each is wrong: mistakes first, then what is present."""
    entries: list[tuple[tuple[bool, bool, float], str, bool]] = []
    columns = zip(attributes, sample.truth, sample.probabilities, sample.thresholds, strict=True)
    for name, truth, p, threshold in columns:
        if np.isnan(p):
            continue
        present = bool(p >= threshold)
        known = not np.isnan(truth)
        wrong = known and present != bool(truth)
        sign = "✗" if wrong else "✓" if known else "?"
        words = (
            f"{sign} {_shortened(name, 15):<15} {'present' if present else 'absent':<7} {p:4.0%}"
        )
        if wrong:
            words += " (present)" if truth else " (absent)"
        entries.append(((not wrong, not present, -float(p)), words, wrong))
    entries.sort()
    lines = [(words, wrong) for _, words, wrong in entries]
    if len(lines) > _LINES:
        hidden = len(lines) - _LINES
        lines = [*lines[:_LINES], (f"  and {hidden} more", False)]
    return lines


def _square(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the picture centred on a white square, so that all captions start at one height."""
    height, width = image.shape[:2]
    side = max(height, width)
    canvas = np.full((side, side, 3), 255, np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    canvas[top : top + height, left : left + width] = image
    return canvas


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    with written_aside(path) as aside:
        # No software version and no date: the same run gives the same bytes.
        figure.savefig(aside, metadata={"Software": None})
