"""Pictures of a run: the loss curve and sample predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from polytag.files import written_aside
from polytag.history import History

_COLUMNS = 4
_LINES = 7  # attributes listed under a picture
_PICTURE, _LINE = 2.5, 0.16  # inches
_WINDOWS = 40  # means along the smoothed curve: fewer would hide its shape
_CURVE, _CHOOSING = "#1f5fa8", "#c8641e"
_RIGHT, _WRONG = "#1b6e3c", "#b3261e"


def loss_curve(history: History, title: str, path: Path) -> None:
    """Draw the training loss, iteration by iteration, with what else a training recorded.

    Where there are many iterations the raw curve stands behind a smoothed one; the choosing rows'
    loss is marked at the end of each epoch, and lines part the stages.

    Args:
        history: At least one iteration.
        title: Above the picture.
        path: The PNG to write.
    """
    figure = Figure(figsize=(7, 4.2), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    losses = np.array(history.losses)
    iterations = np.arange(len(losses))
    window = len(losses) // _WINDOWS
    if window < 2:
        axes.plot(iterations, losses, color=_CURVE, linewidth=1.8, marker="o", markersize=3.5)
    else:
        axes.plot(iterations, losses, color=_CURVE, linewidth=0.7, alpha=0.35, label="training")
        label = f"training, mean of {window} iterations"
        for first, last in _spans(history.stages):  # a mean over two stages would hide the change
            smooth = _smoothed(losses[first:last], window)
            axes.plot(iterations[first:last], smooth, color=_CURVE, linewidth=2, label=label)
            label = ""
    judged = [(max(e.iteration - 1, 0), e.validation.loss) for e in history.epochs if e.validation]
    top = float(losses.max())
    if judged:
        x, y = zip(*judged, strict=True)
        label = "choosing rows (not weighted)"
        axes.plot(x, y, color=_CHOOSING, linewidth=1, marker="D", markersize=4, label=label)
        top = max(top, *y)
    axes.set_ylim(0, 1.08 * top)
    _mark_stages(axes, history.stages)
    axes.set_title(title, parse_math=False)
    axes.set_xlabel("iteration_number")
    axes.set_ylabel("training_loss")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=3)
    _save(figure, path)


def _smoothed(losses: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Return centred running means; at the ends over what there is."""
    ones = np.ones(min(window, len(losses)))
    return np.convolve(losses, ones, "same") / np.convolve(np.ones(len(losses)), ones, "same")


def _spans(stages: Sequence[str]) -> list[tuple[int, int]]:
    """Return the first iteration of every stage, and the one behind its last."""
    starts = [i for i, name in enumerate(stages) if i == 0 or name != stages[i - 1]]
    return list(zip(starts, [*starts[1:], len(stages)], strict=True))


def _mark_stages(axes: Any, stages: Sequence[str]) -> None:
    starts = [first for first, _ in _spans(stages)]
    if len(starts) < 2:
        return
    across = axes.get_xaxis_transform()
    for start in starts:
        if start:
            axes.axvline(start - 0.5, color="#555555", linewidth=1, linestyle="--")
        name = _shortened(stages[start], 24)
        axes.annotate(
            name,
            (start, 0.02),
            xycoords=across,
            xytext=(4, 0),
            textcoords="offset points",
            fontsize=8,
            color="#555555",
            parse_math=False,
        )


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
        samples: What to show; 12 fill a screen.
        attributes: K names.
        path: The PNG to write.
    """
    captions = [_captions(sample, attributes) for sample in samples]
    rows = max(1, -(-len(samples) // _COLUMNS))
    # All in inches: a cell holds a title, a square picture and as many lines as the longest list.
    lines = max(map(len, captions), default=0)
    cell = (3.0, 0.3 + _PICTURE + lines * _LINE + 0.25)
    width, height = cell[0] * _COLUMNS + 0.2, cell[1] * rows + 0.75
    figure = Figure(figsize=(width, height), dpi=100)
    figure.text(
        0.5,
        1 - 0.3 / height,
        "Sample predictions on pictures the model had not seen\n"
        "✓ right    ✗ WRONG (truth in brackets)    ? truth not known",
        ha="center",
        va="center",
        fontsize=12,
    )
    for index, (sample, caption) in enumerate(zip(samples, captions, strict=True)):
        left = 0.2 + cell[0] * (index % _COLUMNS)
        top = height - 0.75 - cell[1] * (index // _COLUMNS)
        name = _shortened(sample.name, 34)
        figure.text(left / width, (top - 0.15) / height, name, fontsize=9, parse_math=False)
        bottom = top - 0.25 - _PICTURE
        box = (left / width, bottom / height, _PICTURE / width, _PICTURE / height)
        axes = figure.add_axes(box)
        axes.imshow(_square(sample.image))
        axes.set_axis_off()
        for number, (text, wrong) in enumerate(caption, 1):
            figure.text(
                left / width,
                (bottom - number * _LINE) / height,
                text,
                fontsize=8,
                family="monospace",
                color=_WRONG if wrong else _RIGHT if text.startswith("✓") else "#555555",
                weight="bold" if wrong else "normal",
                parse_math=False,
            )
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
    """Return the picture on a white square, so that all captions start at one height."""
    height, width = image.shape[:2]
    side = max(height, width)
    canvas = np.full((side, side, 3), 255, np.uint8)
    canvas[side - height :, :width] = image
    return canvas


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    with written_aside(path) as aside:
        # No software version and no date: the same run gives the same bytes.
        figure.savefig(aside, metadata={"Software": None})
