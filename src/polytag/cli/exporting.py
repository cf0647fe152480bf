"""The verb that writes a model in another form: export."""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import click

from polytag.cli.common import PATH, cli, json_option

if TYPE_CHECKING:
    from polytag.quantise import Export

_NAME = 24  # columns for an attribute


@cli.command()
@click.argument("run", type=PATH)
@click.option("--int8", is_flag=True, help="Weights and activations in 8 bits.")
@click.option("--images", type=PATH, help="The folder of pictures.  [default: the run's]")
@click.option("--out", type=PATH, help="The file.  [default: model.int8.onnx in the run]")
@json_option
def export(run: Path, int8: bool, images: Path | None, out: Path | None, as_json: bool) -> None:
    """Write a smaller, faster model file, if that costs no AP.

    A run's model.onnx is whole as it is and needs no export. --int8 writes one in 8 bits, with a
    .json beside it: what it costs, measured on pictures that the model had not seen. It is refused
    with exit code 1, and nothing is written, if macro AP falls by more than .005, if an attribute's
    AP does for certain, or if more than 5 % of decisions change.
    """
    if not int8:
        raise click.UsageError(
            "model.onnx in the run is the export: one file that runs in plain onnxruntime. "
            "What can be asked for: --int8.",
            click.get_current_context(),
        )
    from polytag.quantise import export_int8

    found = export_int8(run, images=images, out=out)
    if as_json:
        file = None if found.file is None else str(found.file)
        click.echo(json.dumps({"file": file, **found.report}, ensure_ascii=False))
    else:
        click.echo(_told(found))
    if found.file is None:
        sys.exit(1)


def _told(export: Export) -> str:
    from polytag.errors import printable

    report = export.report
    lines = []
    if export.changes:
        lines += [f"{'AP':<{_NAME}} {'float':>6} {'int8':>6}  difference"]
    for change in export.changes:
        name = "macro" if change.attribute is None else printable(change.attribute)
        sides = f"{change.plain:6.3f} {change.int8:6.3f}"
        span = f"{change.difference:+.3f} [{change.low:+.3f}, {change.high:+.3f}]"
        lines += [f"{textwrap.shorten(name, _NAME, placeholder='…'):<{_NAME}} {sides}  {span}"]
    judged, slower = report["judged_on"], min(s["ratio"] for s in report["speed"].values()) < 1
    notes = [
        f"In brackets the 95 % interval of the difference, on {judged}."
        if judged
        else "No AP: there are no labelled pictures that the model has not seen.",
        f"On {report['pictures']} pictures probabilities change by "
        f"{report['probabilities']['mean_change']:.4f} on average and by "
        f"{report['probabilities']['largest_change']:.3f} at most; "
        f"{report['decisions_changed']:.2%} of the decisions change.",
        *(
            f"{words}: {1000 * speed['float']:.1f} ms, INT8 {1000 * speed['int8']:.1f} ms: "
            f"{speed['ratio']:.2f} x."
            for words, speed in zip(
                ("32 pictures", "One picture"), report["speed"].values(), strict=True
            )
        ),
        *(["In 8 bits it is slower here: keep model.onnx."] if slower else []),
        f"{report['bytes']['float'] / 1e6:.1f} MB, INT8 {report['bytes']['int8'] / 1e6:.1f} MB.",
    ]
    for note in notes:
        lines += textwrap.wrap(note, 79)
    lines += [""]
    for reason in report["refused"]:
        lines += textwrap.wrap(f"refused: {reason}", 79)
    lines += ["nothing was written" if export.file is None else f"written: {export.file}"]
    return "\n".join(lines)
