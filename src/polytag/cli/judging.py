"""The verbs that judge: evaluate, compare."""

from __future__ import annotations

import json
import sys
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from polytag.cli.common import PATH, cli, data_options, if_in_table, json_option, read_labels
from polytag.cli.using import parse_thresholds

if TYPE_CHECKING:
    from polytag.evaluation import Judged


@cli.command()
@click.argument("run", metavar="RUN-OR-PREDICTIONS", type=PATH)
@data_options(required=True, images=False)
@click.option("--group-by", metavar="COLUMN", help="Rows with one text in it count as one.")
@click.option("--threshold", type=float, help="For every attribute.")
@click.option("--thresholds", metavar="A=0.4,B=0.7", help="For some attributes.")
@click.option(
    "--fail-under",
    multiple=True,
    metavar="NAME=NUMBER",
    help="Exit with 1 if a number misses this bound: macro_ap=0.6, red.f1=0.5, hamming=0.9; "
    "log_loss=0.3, which must not be above; macro_ap.low=0.6 for the lower end of its interval.",
)
@json_option
def evaluate(run: Path, **options: Any) -> None:
    """Judge a run, a model.onnx or a file of predictions on labelled pictures.

    Predictions are CSV, Parquet or JSON lines as `polytag predict` writes them, or a table of any
    origin with a column of picture names and one of probabilities for an attribute; --images is
    then only needed to find identical pictures.
    """
    from polytag.answers import holds_answers
    from polytag.evaluation import evaluate as judge
    from polytag.evaluation import opened, own_group_column
    from polytag.gates import check_gates, parse_gates
    from polytag.predictor import load

    model = None if holds_answers(run) else load(run)
    column = options["group_by"]
    if column is None and model is not None:
        column = if_in_table(own_group_column(model), options)
    table = read_labels(options, [column] if column else ())
    gates = parse_gates(options["fail_under"], table.attributes)
    judged = judge(
        opened(model or run, table.attributes).with_thresholds(
            options["threshold"], parse_thresholds(options["thresholds"])
        ),
        table,
        options["images"],
        strict=options["strict"],
        max_skipped=options["max_skipped"],
        group_by=column,
    )
    passages = check_gates(gates, judged.evaluation)
    if options["as_json"]:
        whole = judged.to_dict() | {"gates": [asdict(passage) for passage in passages]}
        click.echo(json.dumps(whole, ensure_ascii=False))
    else:
        click.echo(_told(judged))
        for passage in passages:
            click.echo(str(passage))
    if not all(passage.passed for passage in passages):
        sys.exit(1)


def _told(judged: Judged) -> str:
    from polytag.summary import headline, table

    lines = [
        headline(judged.evaluation),
        "",
        table(judged.evaluation),
        "",
        f"{judged.rows} pictures measured, {len(judged.skipped)} skipped.",
    ]
    notes = []
    if judged.unsure:
        shares = ", ".join(f"{name} {count}" for name, count in judged.unsure.items())
        notes.append(
            f"Left unsure: {judged.unsure_share:.0%} of the known cells, which are neither right "
            f"nor wrong ({shares})."
        )
    if judged.unanswered:
        notes.append(f"Not measured: {judged.unanswered} known cells without a probability.")
    for note in (*notes, judged.counting, judged.warning):
        lines += textwrap.wrap(note, 79)
    return "\n".join(lines)


@cli.command()
@click.argument("runs", nargs=-1, type=PATH, required=True)
@json_option
def compare(runs: tuple[Path, ...], as_json: bool) -> None:
    """Compare runs with the first one, on the pictures that all of them judged."""
    from polytag.compare import compare as side_by_side
    from polytag.compare.text import text

    found = side_by_side(runs)
    click.echo(json.dumps(found.to_dict(), ensure_ascii=False) if as_json else text(found))
