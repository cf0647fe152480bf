"""Pictures as SVG: a frame that brings data to its place, lines, marks, axes.

Colours are classes that style.css fills, so that one picture is right in the light and in the dark.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import ArrayLike, NDArray

POINTS = 100  # of a curve: what a picture of some two hundred pixels can show


@dataclass(frozen=True)
class Frame:
    """A picture's size and the data it shows, in the units of its view box.

    Attributes:
        width, height: Of the whole picture.
        x, y: The data's lowest and highest, left to right and bottom to top.
        left, bottom, right, top: Margins.

    Example:
        >>> frame = Frame(110, 110, left=5, bottom=5, right=5, top=5)
        >>> frame.across(0.5), frame.up(1)
        (55.0, 5.0)
    """

    width: float
    height: float
    x: tuple[float, float] = (0.0, 1.0)
    y: tuple[float, float] = (0.0, 1.0)
    left: float = 38
    bottom: float = 32
    right: float = 8
    top: float = 8

    def across(self, x: float) -> float:
        """Return the place of a datum from the left."""
        share = (x - self.x[0]) / (self.x[1] - self.x[0])
        return round(self.left + share * (self.width - self.left - self.right), 1)

    def up(self, y: float) -> float:
        """Return the place of a datum from the top."""
        share = (y - self.y[0]) / (self.y[1] - self.y[0])
        return round(self.height - self.bottom - share * (self.height - self.bottom - self.top), 1)


def picture(frame: Frame, label: str, parts: Iterable[Markup], kind: str = "chart") -> Markup:
    """Return an SVG element that says in words what it shows."""
    return Markup(
        '<svg class="{}" viewBox="0 0 {:g} {:g}" role="img" aria-label="{}">{}</svg>'
    ).format(kind, frame.width, frame.height, label, Markup("").join(parts))


def line(frame: Frame, x: ArrayLike, y: ArrayLike, kind: str) -> Markup:
    """Return a line through points, thinned; points with a NaN are left out."""
    points = np.column_stack([np.asarray(x, np.float64), np.asarray(y, np.float64)])
    points = points[~np.isnan(points).any(axis=1)]
    places = [f"{frame.across(a):g},{frame.up(b):g}" for a, b in _thinned(points, frame)]
    return Markup('<polyline class="{}" points="{}"/>').format(kind, " ".join(places))


def mark(frame: Frame, start: tuple[float, float], end: tuple[float, float], kind: str) -> Markup:
    """Return a straight line from one datum to another."""
    return Markup('<line class="{}" x1="{:g}" y1="{:g}" x2="{:g}" y2="{:g}"/>').format(
        kind, frame.across(start[0]), frame.up(start[1]), frame.across(end[0]), frame.up(end[1])
    )


def box(frame: Frame, low: tuple[float, float], high: tuple[float, float], kind: str) -> Markup:
    """Return the rectangle between the lower left datum and the upper right one."""
    left, right, bottom, top = (
        *(frame.across(low[0]), frame.across(high[0])),
        *(frame.up(low[1]), frame.up(high[1])),
    )
    return Markup('<rect class="{}" x="{:g}" y="{:g}" width="{:g}" height="{:g}"/>').format(
        kind, left, top, max(right - left, 0), max(bottom - top, 0)
    )


def dot(frame: Frame, x: float, y: float, kind: str, radius: float = 3) -> Markup:
    """Return a dot at a datum."""
    return Markup('<circle class="{}" cx="{:g}" cy="{:g}" r="{:g}"/>').format(
        kind, frame.across(x), frame.up(y), radius
    )


def words(x: float, y: float, text: str, kind: str, turn: bool = False) -> Markup:
    """Return text at a place of the picture, not of the data; ``turn``: upwards."""
    turned = Markup(' transform="rotate(-90 {:g} {:g})"').format(x, y) if turn else ""
    return Markup('<text class="{}" x="{:g}" y="{:g}"{}>{}</text>').format(kind, x, y, turned, text)


def axes(
    frame: Frame, labels: tuple[str, str], ticks: tuple[Sequence[float], Sequence[float]]
) -> Markup:
    """Return grid, numbers at it, and what is drawn across and upwards."""
    parts = []
    for x in ticks[0]:
        parts.append(mark(frame, (x, frame.y[0]), (x, frame.y[1]), "grid"))
        under = frame.height - frame.bottom + 11
        parts.append(words(frame.across(x), under, f"{x:g}", "tick middle"))
    for y in ticks[1]:
        parts.append(mark(frame, (frame.x[0], y), (frame.x[1], y), "grid"))
        parts.append(words(frame.left - 4, frame.up(y) + 3, f"{y:g}", "tick end"))
    middle = (frame.left + frame.width - frame.right) / 2
    parts.append(words(middle, frame.height - 5, labels[0], "axis middle"))
    centre = (frame.top + frame.height - frame.bottom) / 2
    parts.append(words(9, centre, labels[1], "axis middle", turn=True))
    return Markup("").join(parts)


def round_steps(low: float, high: float, most: int = 5) -> list[float]:
    """Return round numbers from ``low`` to ``high``, about evenly many as fit.

    Example:
        >>> round_steps(0, 0.72), round_steps(0, 199)
        ([0.0, 0.2, 0.4, 0.6], [0.0, 50.0, 100.0, 150.0])
    """
    rough = max(high - low, 1e-9) / most
    power = 10.0 ** np.floor(np.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first, last = int(np.ceil(low / step - 1e-9)), int(np.floor(high / step + 1e-9))
    return [round(float(i * step), 10) for i in range(first, last + 1)]


def _thinned(points: NDArray[np.float64], frame: Frame) -> NDArray[np.float64]:
    """Return at most `POINTS` points, evenly along the way the line takes in the picture."""
    if len(points) <= POINTS:
        return points
    spans = [frame.x[1] - frame.x[0], frame.y[1] - frame.y[0]]
    way = np.concatenate([[0], np.abs(np.diff(points, axis=0) / spans).sum(axis=1).cumsum()])
    kept = np.searchsorted(way, np.linspace(0, way[-1], POINTS), side="left")
    thinned: NDArray[np.float64] = points[np.unique(np.minimum(kept, len(points) - 1))]
    return thinned
