"""An evaluation as text of at most 80 columns, what matters most first."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

from polytag.errors import printable
from polytag.results import AttributeMetrics, Evaluation, Mean, Value

_WIDTH = 80
_CUTS = ("absent_below", "present_from")
_NAME = 24  # columns for names at most, however short the numbers are

# The beginning of a verdict, and what a column has room for.
_VERDICTS = {
    "learnable": "learnable",
    "no evidence that the pictures show it": "no evidence",
    "too few to tell": "too few",
}

# What the heads of a table mean, where it has them.
_LEGEND = {
    "pres": "pres, abs, NA: cells present, absent, not known",
    "guess": "guess: what a guess scores that saw no picture",
    "95 %": "95 %: interval",
    "bal.acc": "bal.acc: mean share right of present and of absent",
    "ECE": "Brier, ECE (calibration error): lower is better",
}


class _Column(NamedTuple):
    """A column of a table: what stands above it, in each row and beside the macro means."""

    head: str
    cell: Callable[[AttributeMetrics], str]
    mean: str = ""
    space: int = 1  # before it


def headline(evaluation: Evaluation) -> str:
    """Return the most important line: macro average precision beside chance.

    Example:
        >>> from polytag.results import Mean
        >>> ap = Mean(0.6, 0.2, low=0.55, high=0.65, over="23 of 23 attributes")
        >>> headline(Evaluation((), {"ap": ap}, Mean(), Mean(), Mean()))
        'macro AP 0.600 (guessing: 0.200), 95 % 0.550-0.650, over 23 of 23 attributes'
    """
    ap = evaluation.macro["ap"]
    if math.isnan(ap.value):
        return f"macro AP is not defined: {ap.reason}"
    sure = "" if ap.low is None or ap.high is None else f", 95 % {ap.low:.3f}-{ap.high:.3f}"
    return f"macro AP {ap.value:.3f} (guessing: {ap.chance:.3f}){sure}, over {ap.over}"


def table(evaluation: Evaluation) -> str:
    """Return the verdicts, two tables of numbers, and what was left out and why.

    Verdicts and intervals are left out where nobody judged or computed them.
    """
    ranking, decided = _ranking(evaluation), _decided(evaluation)
    names = [printable(a.name) for a in evaluation.attributes]
    room = min(
        _NAME,
        max([len("macro mean"), *map(len, names)]),
        *(_WIDTH - _taken(evaluation.attributes, columns) for columns in (ranking, decided)),
    )
    lines = verdicts(evaluation)
    lines += [""] if lines else []
    lines += [*_lines(evaluation.attributes, ranking, room), ""]
    lines += [*_lines(evaluation.attributes, decided, room), ""]
    heads = {column.head.strip() for column in (*ranking, *decided)}
    lines += _wrapped("; ".join(text for head, text in _LEGEND.items() if head in heads), "")
    lines += [*_wrapped(_coverage(evaluation), ""), "", *_together(evaluation)]
    reasons: dict[str, str] = {}
    for mean in evaluation.macro.values():
        reasons = {**mean.missing, **reasons}
    if reasons:
        lines += ["", "not measured, or only in part:"]
        for name, reason in reasons.items():
            lines += _wrapped(f"{printable(name)}: {reason}", "  ")
    return "\n".join(line.rstrip() for line in lines)


def verdicts(evaluation: Evaluation) -> list[str]:
    """Return how many attributes are learnable, and which ones are not; nothing without verdicts.

    Example:
        >>> from polytag.results import Mean
        >>> verdicts(Evaluation((), {}, Mean(), Mean(), Mean()))
        []
    """
    judged = [(a, a.verdict) for a in evaluation.attributes if a.verdict is not None]
    if not judged:
        return []
    lines = []
    for start in _VERDICTS:
        names = []
        for a, verdict in judged:
            if verdict.startswith(start):
                detail = verdict.removeprefix(start).lstrip(":, ")
                few = f" ({detail})" if detail and start.startswith("too few") else ""
                names.append(f"{printable(a.name)}{few}")
        if start == "learnable":
            lines.append(f"learnable: {len(names)} of {len(judged)} attributes")
        elif names:
            lines += _wrapped(f"{start}: {', '.join(names)}", "")
    return lines


def decisions(evaluation: Evaluation, chosen: Mapping[str, Any]) -> str:
    """Return what thresholds were chosen, what they do, and where unsure is said.

    Args:
        evaluation: Of the rows that were judged, each by thresholds chosen without it.
        chosen: ``decisions`` of metrics.json.
    """
    told, macro = chosen["attributes"], evaluation.macro
    attributes = [a for a in evaluation.attributes if a.name in told]
    columns = [
        _Column("thresh.", lambda a: _number(a.threshold), space=2),
        _Column("95 %   ", lambda a: _ends(a.threshold_low, a.threshold_high)),
        *_measured("prec.", lambda a: a.precision, macro["precision"]),
        *_measured("recall", lambda a: a.recall, macro["recall"]),
        *_measured("F1", lambda a: a.f1, macro["f1"], interval=False),
    ]
    room = min(_NAME, _WIDTH - _taken(attributes, columns))
    lines = [f"thresholds for {chosen['target']}", "", *_lines(attributes, columns, room)]
    notes = {name: each["note"] for name, each in told.items() if each["note"]}
    lines += [line for name, note in notes.items() for line in _wrapped(f"{name}: {note}", "")]
    if chosen["max_error"]:
        lines += ["", *_unsure(chosen)]
    return "\n".join(line.rstrip() for line in lines)


def _unsure(chosen: Mapping[str, Any]) -> list[str]:
    told = {name: each["unsure"] for name, each in chosen["attributes"].items() if "unsure" in each}
    room = max(len("attribute"), *map(len, _labels(list(told), _NAME)))
    lines = _wrapped(
        f"unsure: what is decided errs in at most {chosen['max_error']:.3g} of cells, with "
        f"confidence {chosen['confidence']:.3g} for each cut; certified on rows that the models "
        "of the folds, or this model, had not seen. The tables above decide every cell by its "
        "threshold; here judged rows are counted, by cuts that were chosen without them:",
        "",
    )
    lines += ["", f"{'attribute':<{room}}  absent<  present>=  unsure  wrong: present    absent"]
    for label, each in zip(_labels(list(told), _NAME), told.values(), strict=True):
        cuts = [_number(math.nan if each[c] is None else each[c]) for c in _CUTS]
        share = "-" if each["unsure_share"] is None else f"{each['unsure_share']:.0%}"
        wrong = [f"{each[f'{w}_wrong']} of {each[f'{w}_decided']}" for w in ("present", "absent")]
        line = f"{label:<{room}}  {cuts[0]:>7}  {cuts[1]:>9}  {share:>6}"
        lines.append(f"{line}  {wrong[0]:>14}  {wrong[1]:>10}")
    notes = {name: each["note"] for name, each in told.items() if each["note"]}
    return [*lines, *(line for n, note in notes.items() for line in _wrapped(f"{n}: {note}", ""))]


def _ranking(evaluation: Evaluation) -> list[_Column]:
    """Return the columns that need no threshold, and the verdict."""
    attributes, macro = evaluation.attributes, evaluation.macro
    columns = [
        _Column("pres", lambda a: str(a.present), space=2),
        _Column("abs", lambda a: str(a.absent)),
        _Column("NA", lambda a: str(a.na)),
        *_measured("AP", lambda a: a.ap, macro["ap"], guess=True),
        *_measured("AUC", lambda a: a.auc, macro["auc"]),
    ]
    if any(a.verdict is not None for a in attributes):
        columns.append(_Column("verdict    ", lambda a: f"{_word(a.verdict):<11}", space=2))
    return columns


def _decided(evaluation: Evaluation) -> list[_Column]:
    """Return the columns about decisions and probabilities."""
    macro = evaluation.macro
    brier = _measured("Brier", lambda a: a.brier, macro["brier"], guess=True, interval=False)
    return [
        *_measured("F1", lambda a: a.f1, macro["f1"], guess=True),
        *_measured("bal.acc", lambda a: a.balanced_accuracy, macro["balanced_accuracy"]),
        *brier,
        *_measured("ECE", lambda a: a.ece, macro["ece"], interval=False),
        _Column("thresh.", lambda a: _number(a.threshold), space=2),
    ]


def _measured(
    head: str,
    metric: Callable[[AttributeMetrics], Value],
    mean: Mean,
    *,
    guess: bool = False,
    interval: bool = True,
) -> list[_Column]:
    """Return a metric's column, its interval's where there is one, and the guess's."""
    columns = [_Column(head, lambda a: _number(metric(a).value), _number(mean.value), 2)]
    if interval and mean.low is not None:
        columns.append(_Column("95 %   ", lambda a: _interval(metric(a)), _interval(mean)))
    if guess:
        columns.append(_Column("guess", lambda a: _number(metric(a).chance), _number(mean.chance)))
    return columns


def _widths(attributes: Sequence[AttributeMetrics], columns: Sequence[_Column]) -> list[int]:
    return [
        max(len(column.head), len(column.mean), *(len(column.cell(a)) for a in attributes), 0)
        for column in columns
    ]


def _taken(attributes: Sequence[AttributeMetrics], columns: Sequence[_Column]) -> int:
    """Return how wide a table is without the names."""
    return sum(_widths(attributes, columns)) + sum(column.space for column in columns)


def _lines(
    attributes: Sequence[AttributeMetrics], columns: Sequence[_Column], room: int
) -> list[str]:
    """Return a table: a head, a line an attribute, and the macro means."""
    widths = _widths(attributes, columns)

    def line(name: str, cells: Iterable[str]) -> str:
        parts = zip(cells, columns, widths, strict=True)
        rest = "".join(f"{'':{column.space}}{cell:>{width}}" for cell, column, width in parts)
        return f"{name:<{room}}{rest}"

    rows = zip(_labels([printable(a.name) for a in attributes], room), attributes, strict=True)
    return [
        line("attribute", (column.head for column in columns)),
        *(line(label, (column.cell(a) for column in columns)) for label, a in rows),
        line("macro mean", (column.mean for column in columns)),
    ]


def _coverage(evaluation: Evaluation) -> str:
    """Say over how many attributes the macro means are taken."""
    shown = {
        "ap": "AP, AUC, F1 and bal.acc",
        "brier": "Brier and ECE",
    }
    over = {evaluation.macro[metric].over: "" for metric in shown}
    if len(over) == 1:
        return f"macro means over {next(iter(over))}"
    words = (f"of {names} over {evaluation.macro[metric].over}" for metric, names in shown.items())
    return f"macro means {', '.join(words)}"


def _together(evaluation: Evaluation) -> list[str]:
    """Return the numbers about all cells, and the mean over folds."""
    numbers = {
        "Hamming accuracy": evaluation.hamming,
        "exact match": evaluation.exact_match,
        "log loss": evaluation.log_loss,
    }
    lines = ["all known cells together:"]
    for name, mean in numbers.items():
        guess = "" if math.isnan(mean.chance) else f" guess {_number(mean.chance)}"
        lines.append(f"  {name:<17} {_number(mean.value)} {_interval(mean)}{guess}")
    ap = evaluation.macro["ap"]
    if ap.mean_over_folds is not None and ap.chance_over_folds is not None:
        folds = f"{_number(ap.mean_over_folds)} guess {_number(ap.chance_over_folds)}"
        lines.append(f"macro AP, mean over folds: {folds}")
    return lines


def _word(verdict: str | None) -> str:
    found = [word for start, word in _VERDICTS.items() if (verdict or "").startswith(start)]
    return found[0] if found else "-"


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH - 1, initial_indent=indent, subsequent_indent=f"{indent}  ")


def _labels(names: Sequence[str], most: int) -> list[str]:
    """Return names of at most ``most`` characters: their two ends, or where they begin to differ.

    >>> _labels(["red", "the_colour_of_a_hat", "the_colour_of_b_hat"], 9)
    ['red', '…a_hat', '…b_hat']
    """
    half = (most - 1) // 2
    labels = [n if len(n) <= most else f"{n[:half]}…{n[-half:]}" for n in names]
    for label in {label for label in labels if labels.count(label) > 1}:
        alike = [k for k, other in enumerate(labels) if other == label]
        columns = zip(*(names[k] for k in alike), strict=False)
        start = len(list(takewhile(lambda letters: len(set(letters)) == 1, columns)))
        for k in alike:
            rest = f"…{names[k][start:]}"
            labels[k] = rest if len(rest) <= most else f"{rest[: most - 1]}…"
    return labels


def _interval(value: Value) -> str:
    return _ends(value.low, value.high)


def _ends(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{_number(low)}-{_number(high)}"


def _number(value: float) -> str:
    """Return four columns: .123, 1.00 or a dash."""
    if math.isnan(value):
        return "-"
    return f"{value:.3f}"[1:] if round(value, 3) < 1 else f"{value:.2f}"
