"""The pictures of a report. What is not known or was not judged is left out before it comes here.

``truth`` (n,) in {0, 1} and ``p`` (n,) in [0, 1] are the judged cells of one attribute.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any

import numpy as np
from markupsafe import Markup

from polytag.history import History
from polytag.report.material import Floats
from polytag.report.svg import Frame, axes, box, dot, line, mark, picture, round_steps, words

_SHARES = (0.0, 0.5, 1.0)
_BINS = 10  # of a reliability picture, fewer where a bin would hold less than _IN_A_BIN cells
_IN_A_BIN = 25
BLOCKS = 100
"""Pieces that a loss curve of twice as many iterations, or more, is gathered into."""

_DOTS = 40  # iterations of a stage that are few enough to be marked one by one
_NORMAL_95 = 1.959964
_SMALL = Frame(226, 190)


def interval(value: Mapping[str, Any], label: str) -> Markup:
    """Draw a number in [0, 1], its interval and what a guess scores, on one line.

    Args:
        value: As in metrics.json; an interval or chance that is None is not drawn.
        label: What it is.
    """
    frame = Frame(150, 18, left=4, right=4, top=2, bottom=2)
    parts = [mark(frame, (0, 0.5), (1, 0.5), "rail")]
    said = f"{label}: {value['value']:.3f}"
    if value.get("chance") is not None:
        parts.append(mark(frame, (value["chance"], 0), (value["chance"], 1), "chance-mark"))
        said += f", a guess scores {value['chance']:.3f}"
    if value.get("low") is not None and value.get("high") is not None:
        parts.append(mark(frame, (value["low"], 0.5), (value["high"], 0.5), "whisker thick"))
        said += f", interval {value['low']:.3f} to {value['high']:.3f}"
    parts.append(dot(frame, value["value"], 0.5, "dot", 4))
    return picture(frame, said, parts, "interval")


def scale() -> Markup:
    """Draw what stands above a column of `interval`."""
    frame = Frame(150, 18, left=4, right=4, top=2, bottom=2)
    ends = [(0.0, "tick"), (0.5, "tick middle"), (1.0, "tick end")]
    parts = [words(frame.across(x), 12, f"{x:g}", kind) for x, kind in ends]
    return picture(frame, "scale from 0 to 1", parts, "interval")


def known_bar(present: int, absent: int, na: int) -> Markup:
    """Draw how the cells of an attribute divide into present, absent and not known."""
    frame = Frame(300, 16, left=0, right=0, top=2, bottom=2)
    total = max(present + absent + na, 1)
    edges = [0, present / total, (present + absent) / total, 1]
    kinds = ("present", "absent", "hole")
    parts = [box(frame, (edges[i], 0), (edges[i + 1], 1), kind) for i, kind in enumerate(kinds)]
    said = f"{present} present, {absent} absent, {na} not known"
    return picture(frame, said, parts, "bar")


def precision_recall(truth: Floats, p: Floats) -> Markup:
    """Draw precision against recall, over the prevalence that a guess has."""
    tp, decided, _ = _decisions(truth, p)
    prevalence = float(truth.mean())
    parts = [
        axes(_SMALL, ("recall", "precision"), (_SHARES, _SHARES)),
        mark(_SMALL, (0, prevalence), (1, prevalence), "chance"),
        line(_SMALL, tp / tp[-1], tp / decided, "curve"),
    ]
    said = f"precision against recall; a guess has precision {prevalence:.3f}"
    return picture(_SMALL, said, parts)


def roc(truth: Floats, p: Floats) -> Markup:
    """Draw the share of present cells found against that of absent cells taken for present."""
    tp, decided, _ = _decisions(truth, p)
    fp = decided - tp
    parts = [
        axes(_SMALL, ("false present rate", "true present rate"), (_SHARES, _SHARES)),
        mark(_SMALL, (0, 0), (1, 1), "chance"),
        line(_SMALL, np.append(0, fp / fp[-1]), np.append(0, tp / tp[-1]), "curve"),
    ]
    return picture(_SMALL, "ROC curve; a guess lies on the diagonal", parts)


def reliability(truth: Floats, p: Floats, raw: Floats | None) -> Markup:
    """Draw the share present against the probability, in bins of about equally many cells.

    Whiskers are Wilson's 95 % intervals (1927, equation 5 of Brown, Cai & DasGupta 2001).

    Args:
        truth: (n,).
        p: Calibrated.
        raw: Before calibration, drawn faintly; None: not drawn.
    """
    parts = [
        axes(_SMALL, ("probability", "share present"), (_SHARES, _SHARES)),
        mark(_SMALL, (0, 0), (1, 1), "chance"),
    ]
    if raw is not None:
        mean, share, _ = _bins(truth, raw)
        parts.append(line(_SMALL, mean, share, "faint"))
    mean, share, cells = _bins(truth, p)
    for x, (low, high) in zip(mean, _wilson(share, cells), strict=True):
        parts.append(mark(_SMALL, (x, low), (x, high), "whisker"))
    parts.append(line(_SMALL, mean, share, "curve"))
    parts += [dot(_SMALL, x, y, "dot", 2.5) for x, y in zip(mean, share, strict=True)]
    return picture(_SMALL, "share present against probability; calibrated on the diagonal", parts)


def threshold_curves(truth: Floats, p: Floats, attribute: Mapping[str, Any]) -> Markup:
    """Draw precision, recall and F1 against the threshold, and the one that was chosen.

    Args:
        truth: (n,).
        p: Calibrated.
        attribute: As in metrics.json.
    """
    tp, decided, thresholds = _decisions(truth, p)
    present = tp[-1]
    chosen, low, high = (attribute.get(f"threshold{end}") for end in ("", "_low", "_high"))
    parts = [axes(_SMALL, ("threshold", ""), (_SHARES, _SHARES))]
    if low is not None and high is not None:
        parts.append(box(_SMALL, (low, 0), (high, 1), "band"))
    if chosen is not None:
        parts.append(mark(_SMALL, (chosen, 0), (chosen, 1), "chosen"))
    parts += [
        line(_SMALL, thresholds, tp / decided, "second"),
        line(_SMALL, thresholds, tp / present, "third"),
        line(_SMALL, thresholds, 2 * tp / (present + decided), "curve"),
    ]
    said = "precision, recall and F1 against the threshold"
    said += "" if chosen is None else f"; chosen: {chosen:.3f}"
    return picture(_SMALL, said, parts)


def loss_curve(history: History, title: str) -> Markup:
    """Draw the training loss, iteration by iteration; where there are many, over it their means.

    Means do not reach over the border of two stages. Numbers that are none are left out.
    """
    losses = np.array(history.losses, dtype=np.float64)
    judged = [(max(e.iteration - 1, 0), e.validation.loss) for e in history.epochs if e.validation]
    there = losses[np.isfinite(losses)].tolist() + [loss for _, loss in judged if np.isfinite(loss)]
    if not there:
        return Markup("")
    top = max(there) * 1.05 or 1.0
    last = max(len(losses) - 1, 1)
    frame = Frame(760, 260, x=(0, last), y=(0, top), left=52, bottom=38, top=14, right=14)
    steps = [x for x in round_steps(0, last, 8) if x == int(x)]
    parts = [axes(frame, ("iteration_number", "training_loss"), (steps, round_steps(0, top)))]
    size = len(losses) // BLOCKS
    start = 0
    for name, group in groupby(history.stages):
        span = slice(start, start + len(list(group)))
        if start:
            parts.append(mark(frame, (start - 0.5, 0), (start - 0.5, top), "border"))
        if span.stop - span.start < len(losses):
            place = (frame.across(start) + 4, frame.height - frame.bottom - 6)
            parts.append(words(*place, name, "tick"))
        parts += _stage(frame, losses[span], start, size)
        start = span.stop
    if judged:
        parts.append(line(frame, [x for x, _ in judged], [y for _, y in judged], "second"))
        parts += [dot(frame, x, y, "second-dot") for x, y in judged if np.isfinite(y)]
    return picture(frame, f"{title}: training loss against iteration number", parts, "wide")


def _stage(frame: Frame, losses: Floats, start: int, size: int) -> list[Markup]:
    """Return the raw losses of one stage and, for blocks of two or more, their means."""
    x = np.arange(start, start + len(losses), dtype=np.float64)
    finite = np.isfinite(losses)
    x, losses = x[finite], losses[finite]
    if size < 2 or not len(losses):
        few = len(losses) <= _DOTS
        dots = [dot(frame, *place, "dot") for place in zip(x, losses, strict=True)] if few else []
        return [line(frame, x, losses, "curve"), *dots]
    blocks = np.array_split(np.arange(len(losses)), max(len(losses) // size, 1))
    # The lowest and the highest of each block: thinning would hide how much the loss jumps.
    ends = [sorted((b[losses[b].argmin()], b[losses[b].argmax()])) for b in blocks]
    raw = [
        Markup('<polyline class="faint" points="{}"/>').format(
            " ".join(
                f"{frame.across(x[i]):g},{frame.up(losses[i]):g}" for pair in ends for i in pair
            )
        )
    ]
    means = [losses[b].mean() for b in blocks]
    return [*raw, line(frame, [x[b].mean() for b in blocks], means, "curve")]


def _decisions(truth: Floats, p: Floats) -> tuple[Floats, Floats, Floats]:
    """Return true present cells, cells decided present, and the threshold, from the highest down.

    Cells of equal probability are decided together.
    """
    order = np.argsort(-p, kind="stable")
    sorted_p = p[order]
    last = np.append(np.flatnonzero(np.diff(sorted_p)), len(p) - 1)
    return truth[order].cumsum()[last], last + 1.0, sorted_p[last]


def _bins(truth: Floats, p: Floats) -> tuple[Floats, Floats, Floats]:
    """Return mean probability, share present and cells of bins; equal probabilities in one bin."""
    count = int(np.clip(len(p) // _IN_A_BIN, 1, _BINS))
    edges = np.unique(np.quantile(p, np.linspace(0, 1, count + 1)[1:-1]))
    number = np.searchsorted(edges, p, side="left")
    cells = np.bincount(number).astype(np.float64)
    there = cells > 0
    mean, share = (np.bincount(number, weights)[there] / cells[there] for weights in (p, truth))
    return mean, share, cells[there]


def _wilson(share: Floats, cells: Floats) -> list[tuple[float, float]]:
    squared = _NORMAL_95**2
    centre = (share * cells + squared / 2) / (cells + squared)
    half = _NORMAL_95 * np.sqrt(cells * share * (1 - share) + squared / 4) / (cells + squared)
    low, high = np.maximum(centre - half, 0), np.minimum(centre + half, 1)
    return list(zip(low.tolist(), high.tolist(), strict=True))
