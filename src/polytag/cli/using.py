"""The verbs that look at data and use models: inspect, predict."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from polytag.cli.common import (
    PATH,
    cli,
    data_options,
    json_option,
    max_skipped_option,
    read_labels,
)
from polytag.errors import RecipeError, SkippedError

if TYPE_CHECKING:
    from polytag.predictions import Predictions

_MOST_SHOWN = 20  # errors on the terminal; the answers hold them all


@cli.command()
@data_options(required=True)
@json_option
def inspect(**options: Any) -> None:
    """Say what a label table and its pictures hold, and what is wrong with them."""
    from polytag.inspection import inspect_data
    from polytag.pictures import refuse_too_many

    found = inspect_data(read_labels(options), options["images"])
    as_json = options["as_json"]
    click.echo(json.dumps(found.to_dict(), ensure_ascii=False) if as_json else found.to_text())
    refuse_too_many(
        found.skipped, len(found.table), strict=options["strict"], most=options["max_skipped"]
    )


@cli.command()
@click.argument("run", type=PATH)
@click.argument("pictures", nargs=-1, required=True)
@click.option("--threshold", type=float, help="For every attribute.")
@click.option("--thresholds", metavar="A=0.4,B=0.7", help="For some attributes.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json", "jsonl", "csv", "parquet"]),
    help="[default: by --out's ending, else text]",
)
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
@click.option("--out", type=PATH, help="Write to a file instead of the terminal.")
@click.option(
    "--engine",
    metavar="NAME",
    default="onnxruntime",
    show_default=True,
    help="What runs the model: onnxruntime or openvino.",
)
@max_skipped_option
def predict(
    run: Path,
    pictures: tuple[str, ...],
    threshold: float | None,
    thresholds: str | None,
    form: str | None,
    as_json: bool,
    out: Path | None,
    engine: str,
    max_skipped: float,
) -> None:
    """Say which attributes pictures show: files, folders, 'patterns*.jpg'."""
    from polytag.images import find_images
    from polytag.predictor import load
    from polytag.progress import progress

    form = choose_format("json" if as_json else form, out)
    predictor = load(run, engine).with_thresholds(threshold, parse_thresholds(thresholds))
    paths = find_images(pictures)
    failed = 0
    shown: list[str] = []

    def answers() -> Iterator[Predictions]:
        nonlocal failed
        # A bar on the terminal that the answers are written to would run into them.
        steps = len(paths) if out or not sys.stdout.isatty() else 0
        with progress("predicting", steps, "pictures") as advance:
            for chunk in predictor.stream((str(path), path) for path in paths):
                errors = [error for error in chunk.errors if error]
                failed += len(errors)
                shown.extend(errors[: _MOST_SHOWN - len(shown)])
                advance(len(chunk))
                yield chunk

    write_predictions(answers(), form, out)
    if form != "text":
        log = logging.getLogger("polytag")
        for error in shown:
            log.warning("%s", error)
        if failed > len(shown):
            log.warning("and %d more: their rows say why", failed - len(shown))
    if failed > max_skipped * len(paths):
        raise SkippedError(f"{failed} of {len(paths)} pictures could not be read")


def choose_format(form: str | None, out: Path | None) -> str:
    """Return the format asked for, else the one that the file's name ends with."""
    known = {".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".txt": "text"}
    known[".parquet"] = "parquet"
    known[""] = "text"
    by_name = known.get(out.suffix.lower()) if out else "text"
    if form is None and by_name is None:
        expected = f"a name that ends in {', '.join(filter(None, known))}"
        raise RecipeError(
            "no format goes with this ending", where=str(out), expected=expected, fix="or --format"
        )
    form = form or str(by_name)
    if form == "parquet" and out is None:
        raise RecipeError("Parquet is not for the terminal", fix="add --out FILE.parquet")
    return form


def write_predictions(chunks: Iterator[Predictions], form: str, out: Path | None) -> None:
    """Write predictions in one of the formats, to a file (whole or not at all) or the terminal."""
    from polytag.files import written_aside
    from polytag.predictions import WRITERS, write_parquet

    if out is None:
        WRITERS[form](chunks, sys.stdout)
        return
    with written_aside(out) as aside:
        if form == "parquet":
            write_parquet(chunks, aside)
        else:
            # Names of files need not be UTF-8.
            with aside.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
                WRITERS[form](chunks, file)


def parse_thresholds(text: str | None) -> dict[str, float]:
    """Read ``black=0.4,red=0.7``.

    Raises:
        RecipeError: Something else.

    Example:
        >>> parse_thresholds("black=0.4,red=0.7")
        {'black': 0.4, 'red': 0.7}
    """
    found: dict[str, float] = {}
    for word in (text or "").split(","):
        name, equals, number = word.rpartition("=")
        try:
            if word.strip():
                found[name.strip()] = float(number)
        except ValueError:
            equals = ""
        if word.strip() and not equals:
            raise RecipeError("not a threshold", got=repr(word), expected="ATTRIBUTE=NUMBER")
    return found
