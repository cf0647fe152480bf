"""An evaluation as text of at most 80 columns."""

from __future__ import annotations

import math
import textwrap

from polytag.errors import printable
from polytag.results import Evaluation, Value

_NAME = 15  # columns left for an attribute's name


def headline(evaluation: Evaluation) -> str:
    """Return the most important line: macro average precision beside chance.

    Example:
        >>> from polytag.metrics import evaluate_arrays
        >>> headline(evaluate_arrays(["a"], [[1], [0]], [[0.9], [0.1]], [0.5]))
        'macro AP 1.000 (guessing: 0.500), over 1 of 1 attributes'
    """
    ap = evaluation.macro["ap"]
    if math.isnan(ap.value):
        return f"macro AP is not defined: {ap.reason}"
    return f"macro AP {ap.value:.3f} (guessing: {ap.chance:.3f}), over {ap.over}"


def table(evaluation: Evaluation) -> str:
    """Return one line an attribute, the macro means, and what was left out and why.

    In brackets stands what a guess scores that never saw a picture.
    """
    macro = evaluation.macro
    heads = ("present", "absent", "  NA")
    counts = [(a.present, a.absent, a.na) for a in evaluation.attributes]
    widths = [max(len(head), *(len(str(row[k])) for row in counts)) for k, head in enumerate(heads)]
    room = _NAME - (sum(widths) - 17)  # large counts take from it what 80 columns leave
    titles = " ".join(head.rjust(width) for head, width in zip(heads, widths, strict=True))
    lines = [f"{'attribute':<{room}} {titles}  AP  guess    AUC   F1  guess    accuracy"]
    for a, row in zip(evaluation.attributes, counts, strict=True):
        numbers = " ".join(f"{count:>{width}}" for count, width in zip(row, widths, strict=True))
        start = f"{_shortened(printable(a.name), room):<{room}} {numbers}"
        lines.append(f"{start}  {_metrics(a.ap, a.auc, a.f1, a.accuracy)}")
    means = _metrics(macro["ap"], macro["auc"], macro["f1"], macro["accuracy"])
    lines += [
        f"{'macro mean':<{room + sum(widths) + 3}}  {means}",
        "",
        "all known cells together (in brackets: a guess that never saw a picture):",
        f"  Hamming accuracy {_pair(evaluation.hamming)}, exact match "
        f"{_pair(evaluation.exact_match)}, log loss {_pair(evaluation.log_loss)}",
    ]
    ap = macro["ap"]
    if ap.mean_over_folds is not None and ap.chance_over_folds is not None:
        folds = _pair(Value(ap.mean_over_folds, ap.chance_over_folds))
        lines.append(f"  macro AP, mean over folds {folds}")
    reasons: dict[str, str] = {}
    for mean in macro.values():
        reasons = {**mean.missing, **reasons}
    if reasons:
        lines += ["", "not measured, or only in part:"]
        for name, reason in reasons.items():
            lines += textwrap.wrap(
                f"{printable(name)}: {reason}", 79, initial_indent="  ", subsequent_indent="    "
            )
    return "\n".join(line.rstrip() for line in lines)


def _shortened(name: str, most: int) -> str:
    """Return at most ``most`` characters: names that begin alike mostly end differently."""
    half = (most - 1) // 2
    return name if len(name) <= most else f"{name[:half]}…{name[-half:]}"


def _metrics(ap: Value, auc: Value, f1: Value, accuracy: Value) -> str:
    return f"{_pair(ap)}  {_number(auc.value)}  {_pair(f1)}  {_pair(accuracy)}"


def _pair(value: Value) -> str:
    guess = "" if math.isnan(value.chance) else f"({_number(value.chance)})"
    return f"{_number(value.value)} {guess:<6}"


def _number(value: float) -> str:
    """Return four columns: .123, 1.00 or a dash."""
    if math.isnan(value):
        return "-   "
    return f"{value:.3f}"[1:] if round(value, 3) < 1 else f"{value:.2f}"
