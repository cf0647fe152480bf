"""A comparison as text of at most 80 columns."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

from polytag.compare import Comparison, Difference, Experiment
from polytag.errors import printable
from polytag.readers.raw import plural

_NAME = 19  # columns for a name
_METRICS = {"ap": "macro AP", "f1": "macro F1"}


def text(comparison: Comparison) -> str:
    """Return the experiments' table, then what is known about every run against the first."""
    lines = [*_experiments(comparison), ""]
    for experiment in comparison.experiments[1:]:
        found = [d for d in comparison.differences if d.run == experiment.run]
        lines += _against(comparison.experiments[0].run, experiment.run, found)
        lines += [*_f1(comparison, experiment), ""]
    tests = len([d for d in comparison.differences if d.metric == "ap" and d.attribute])
    note = (
        "In brackets the 95 % interval of the difference; pictures of one group count as one. p is "
        f"adjusted by Holm's rule, over {'all ' * (tests > 1)}{plural(tests, 'test')} of "
        "attributes and over those of macro numbers; better and worse stand only where it is below "
        ".05. They are about these predictions: the same recipe with another seed predicts "
        "otherwise."
    )
    return "\n".join([*lines, *textwrap.wrap(note, 79)])


def _experiments(comparison: Comparison) -> list[str]:
    who = "both runs" if len(comparison.experiments) == 2 else "all runs"
    grouped = comparison.groups < comparison.rows
    lines = [
        f"{plural(comparison.rows, 'picture')} judged by {who}"
        + (f" ({plural(comparison.groups, 'group')})" if grouped else "")
        + f", {plural(len(comparison.attributes), 'attribute')}"
    ]
    if comparison.left_out:
        names = ", ".join(map(printable, comparison.left_out))
        lines += textwrap.wrap(f"not answered by {who}: {names}", 79)
    lines += [
        "",
        f"{'run':<{_NAME}} {'method':<9}  best epoch  macro AP  macro F1    seconds",
    ]
    for e in comparison.experiments:
        epoch, seconds = e.best_epoch or "-", "-" if e.seconds is None else f"{e.seconds:.1f}"
        lines.append(
            f"{shortened(e.run):<{_NAME}} {e.method:<9}  {epoch:>10}  {_number(e.macro['ap']):>8}  "
            f"{_number(e.macro['f1']):>8}  {seconds:>9}"
        )
        lines += _differs(e)
    return lines


def _differs(experiment: Experiment) -> list[str]:
    told = [
        f"{key} = {_setting(own)} (not {_setting(there)})"
        for key, (there, own) in experiment.differs.items()
    ]
    indent = "    "
    return textwrap.wrap("; ".join(told), 79, initial_indent=indent, subsequent_indent=indent)


def _against(reference: str, run: str, found: Sequence[Difference]) -> list[str]:
    macro = [d for d in found if d.attribute is None]
    said = {_METRICS[d.metric]: d.words for d in macro}
    words = set(said.values())
    verdict = (
        f"{words.pop()} in {' and '.join(said)}"
        if len(words) == 1
        else ", ".join(f"{word} in {name}" for name, word in said.items())
    )
    lines = textwrap.wrap(f"{printable(run)} against {printable(reference)}: {verdict}", 79)
    titles = f"{'first':>5}  {'this':>4}  {'difference':<24}  {'p':>5}"
    lines.append(f"  {'':<{_NAME}} {titles}")
    for d in [*macro, *(d for d in found if d.attribute is not None and d.metric == "ap")]:
        name = _METRICS[d.metric] if d.attribute is None else f"AP {d.attribute}"
        lines.append(f"  {shortened(name):<{_NAME}} {_row(d)}".rstrip())
    return lines


def _f1(comparison: Comparison, this: Experiment) -> list[str]:
    """Return the F1 of each attribute in the first run and in this one."""
    sides = (comparison.experiments[0], this)
    pairs = (
        "\xa0".join([printable(name), *(_number(side.attributes[name]["f1"]) for side in sides)])
        for name in comparison.attributes
    )
    told = f"F1 at each run's own thresholds (first, this): {'; '.join(pairs)}"
    lines = textwrap.wrap(told, 79, initial_indent="  ", subsequent_indent="    ")
    return [line.replace("\xa0", " ") for line in lines]  # a name stays beside its numbers


def _row(d: Difference) -> str:
    sides = f"{_number(d.reference):>5}  {_number(d.value):>4}"
    if math.isnan(d.p_holm):
        return f"{sides}  {textwrap.shorten(d.reason, 45)}"
    span = f"{_signed(d.difference)} [{_signed(d.low)}, {_signed(d.high)}]"
    p = "<.001" if d.p_holm < 0.001 else _number(d.p_holm)
    words = d.words.removesuffix(" of a difference")
    return f"{sides}  {span:<24}  {p:>5}  {words}"


def shortened(name: str) -> str:
    """Return at most as many characters as names have room: both ends tell most."""
    name = printable(name)
    half = (_NAME - 1) // 2
    return name if len(name) <= _NAME else f"{name[:half]}…{name[-half:]}"


def _setting(value: Any) -> str:
    return "unset" if value is None else repr(value) if isinstance(value, str) else str(value)


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("0.", ".", 1)


def _number(value: float) -> str:
    """Return .123, 1.00 or a dash."""
    if math.isnan(value):
        return "-"
    return f"{value:.3f}"[1:] if round(value, 3) < 1 else f"{value:.2f}"
