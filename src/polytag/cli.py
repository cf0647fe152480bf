"""The command line: one function a verb, which parses, makes one library call, and prints."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import textwrap
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from polytag import __version__
from polytag.errors import PolytagError, RecipeError, SkippedError, UserError
from polytag.files import CANNOT_WRITE

if TYPE_CHECKING:
    from polytag.predictions import Predictions
    from polytag.table import LabelTable

F = TypeVar("F", bound=Callable[..., Any])
_PATH = click.Path(path_type=Path)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="polytag")
@click.option("-q", "--quiet", is_flag=True, help="No progress and no log, results only.")
@click.option("--debug", is_flag=True, help="Show where an error came from.")
@click.pass_context
def cli(context: click.Context, quiet: bool, debug: bool) -> None:
    """Train, judge and use classifiers of many attributes from a label table with holes."""
    logging.basicConfig(
        level=logging.WARNING if quiet else logging.INFO, format="%(message)s", stream=sys.stderr
    )
    for noisy in ("PIL", "onnxscript", "onnx_ir", "torch", "matplotlib", "httpx", "timm"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    if not debug:
        warnings.filterwarnings("ignore")  # of libraries, about themselves; ours are log lines
    context.obj = debug


def data_options(required: bool) -> Callable[[F], F]:
    """Add what names a label table and its pictures, and says how to read them."""
    options = (
        click.argument("labels", type=_PATH, required=required),
        click.option("--images", type=_PATH, required=required, help="The folder of pictures."),
        click.option("--attributes", metavar="A,B,C", help="Label columns, or names for them."),
        click.option("--ignore", multiple=True, metavar="A,B,C", help="Leave columns out."),
        click.option("--values", metavar="TEXT", help='Such as "1=present,0=absent,-1=na".'),
        click.option("--image-column", metavar="COLUMN", help="The column of picture names."),
        click.option("--strict", is_flag=True, help="Let one picture that is broken stop it all."),
        _max_skipped,
    )

    def add(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return add


_max_skipped = click.option(
    "--max-skipped",
    type=click.FloatRange(0, 1),
    default=0.1,
    show_default=True,
    help="Share of pictures that may be missing or broken.",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def read_labels(options: dict[str, Any]) -> LabelTable:
    """Read the label table of a command that has ``data_options``."""
    from polytag.table import read_table

    return read_table(
        options["labels"],
        attributes=options["attributes"] or None,
        ignore=_words(options["ignore"]),
        values=options["values"] or None,
        image_column=options["image_column"] or None,
    )


@cli.command()
@data_options(required=True)
@_json
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
@data_options(required=False)
@click.option("--recipe", default="probe", show_default=True, help="A name or a .toml file.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change the recipe.")
@click.option("--backbone", help="Any timm model.  [--set backbone.name=]")
@click.option("--weights", help="embedded, hub, none or a file.  [--set backbone.weights=]")
@click.option("--name", help="Of the run.  [default: probe-1, probe-2 ...]")
@click.option("--runs", type=_PATH, default="runs", show_default=True, help="Where runs are kept.")
@click.option("--seed", type=int, help="[--set seed=]")
@click.option("--device", help="auto, cpu, cuda, cuda:1, mps.  [--set device=]")
@click.option("--title", help="Of loss_curve.png.  [--set title=]")
@_json
def train(**options: Any) -> None:
    """Train a classifier, judge it out of fold, and leave a run folder.

    LABELS and --images may be left out where --recipe is a run's config.toml.
    """
    from polytag.config import load_recipe, parse_changes

    changes = parse_changes(options["settings"])
    flags = {"backbone.name": "backbone", "backbone.weights": "weights"}
    flags |= {key: key for key in ("seed", "device", "title")}
    changes |= {key: options[flag] for key, flag in flags.items() if options[flag] is not None}
    recipe = load_recipe(options["recipe"], changes)
    # A run's config.toml says what it was trained on; flags win.
    reading = recipe.data.model_dump()
    given = {key: options[key] for key in reading if options[key]}
    given |= {key: _words(given[key]) for key in ("attributes", "ignore") if key in given}
    options |= reading | given
    for key, flag in (("labels", "argument 'LABELS'"), ("images", "option '--images'")):
        if not options[key]:
            raise click.UsageError(f"Missing {flag}.", click.get_current_context())
    table = read_labels(options)
    log = logging.getLogger("polytag")
    for note in (*table.notes, table.cells):
        log.info("%s", note)
    kept = {f"data.{key}": value for key, value in given.items() if key not in ("labels", "images")}
    from polytag.train import fit  # after the table's errors, which need no torch

    run = fit(
        table,
        options["images"],
        recipe=recipe,
        changes=kept,
        name=options["name"],
        folder=options["runs"],
        strict=options["strict"],
        max_skipped=options["max_skipped"],
    )
    if options["as_json"]:
        click.echo(json.dumps({"run": str(run.path), **run.metrics}, ensure_ascii=False))
        return
    from polytag.summary import headline
    from polytag.summary import table as metrics_table

    note = textwrap.fill(run.metrics["note"] or "", 79)
    click.echo(f"{headline(run.evaluation)}\n{note and note + chr(10)}")
    click.echo(metrics_table(run.evaluation))
    click.echo(
        f"\nrun: {run.path}   {run.metrics['rows']} pictures, {run.metrics['skipped']} skipped"
    )
    click.echo(f"next: polytag predict {run.path} PHOTO.jpg")


@cli.command()
@click.argument("run", type=_PATH)
@data_options(required=True)
@click.option("--threshold", type=float, help="For every attribute.")
@click.option("--thresholds", metavar="A=0.4,B=0.7", help="For some attributes.")
@_json
def evaluate(run: Path, **options: Any) -> None:
    """Judge a run or a model.onnx on labelled pictures."""
    from polytag.evaluation import evaluate as judge
    from polytag.predictor import load
    from polytag.summary import headline
    from polytag.summary import table as metrics_table

    predictor = load(run).with_thresholds(
        options["threshold"], parse_thresholds(options["thresholds"])
    )
    judged = judge(
        predictor,
        read_labels(options),
        options["images"],
        strict=options["strict"],
        max_skipped=options["max_skipped"],
    )
    if options["as_json"]:
        click.echo(json.dumps(judged.to_dict(), ensure_ascii=False))
        return
    click.echo(f"{headline(judged.evaluation)}\n\n{metrics_table(judged.evaluation)}")
    click.echo(f"\n{judged.rows} pictures measured, {len(judged.skipped)} skipped.")
    click.echo(textwrap.fill(judged.warning, 79))


@cli.command()
@click.argument("run", type=_PATH)
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
@click.option("--out", type=_PATH, help="Write to a file instead of the terminal.")
@_max_skipped
def predict(
    run: Path,
    pictures: tuple[str, ...],
    threshold: float | None,
    thresholds: str | None,
    form: str | None,
    as_json: bool,
    out: Path | None,
    max_skipped: float,
) -> None:
    """Say which attributes pictures show: files, folders, 'patterns*.jpg'."""
    from polytag.images import find_images
    from polytag.predictor import load
    from polytag.progress import progress

    form = choose_format("json" if as_json else form, out)
    predictor = load(run).with_thresholds(threshold, parse_thresholds(thresholds))
    paths = find_images(pictures)
    failed: list[str] = []

    def answers() -> Iterator[Predictions]:
        # A bar on the terminal that the answers are written to would run into them.
        steps = len(paths) if out or not sys.stdout.isatty() else 0
        with progress("predicting", steps, "pictures") as advance:
            for chunk in predictor.stream((str(path), path) for path in paths):
                failed.extend(error for error in chunk.errors if error)
                advance(len(chunk))
                yield chunk

    write_predictions(answers(), form, out)
    for error in failed if form != "text" else ():
        logging.getLogger("polytag").warning("%s", error)
    if len(failed) > max_skipped * len(paths):
        raise SkippedError(f"{len(failed)} of {len(paths)} pictures could not be read")


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


@cli.command()
@click.argument("name", required=False)
@_json
def recipes(name: str | None, as_json: bool) -> None:
    """List the recipes, or print one whole, every field explained."""
    from polytag.config import load_recipe, recipe_names, to_toml

    if name is None:
        known = {each: load_recipe(each).description for each in recipe_names()}
        lines = (f"{each:<12} {text}" for each, text in known.items())
        click.echo(json.dumps(known) if as_json else "\n".join(lines))
    else:
        recipe = load_recipe(name)
        click.echo(recipe.model_dump_json() if as_json else to_toml(recipe), nl=as_json)


@cli.command()
@click.option(
    "--folder", type=_PATH, default="polytag-demo", show_default=True, help="Where to put it all."
)
@click.option(
    "--seed", type=int, default=42, show_default=True, help="Other pictures, other folds."
)
@_json
def demo(folder: Path, seed: int, as_json: bool) -> None:
    """Draw pictures with labels, train on them, predict, and say where to look."""
    from polytag.demo import run_demo

    shown = run_demo(folder, seed=seed)
    click.echo(json.dumps(shown.to_dict(), ensure_ascii=False) if as_json else shown.to_text())


def _words(given: str | Sequence[str]) -> list[str]:
    """Return the names in ``a,b``, or in several such texts."""
    texts = [given] if isinstance(given, str) else given
    return [name.strip() for text in texts for name in text.split(",")]


@contextmanager
def _one_line(debug: Callable[[], bool]) -> Iterator[None]:
    """Turn what went wrong into a line on stderr and an exit code."""
    try:
        yield
    except PolytagError as error:
        if debug():
            traceback.print_exc()
        kind = "error" if isinstance(error, UserError) else "too many skipped"
        click.echo(f"{kind}: {error}", err=True)
        sys.exit(error.exit_code)


def main() -> None:
    """Run the command line; exit codes: see CONTRIBUTING.md.

    0 done, 2 the user can mend it, 3 more skipped than allowed, 101 a defect of polytag,
    130 interrupted.
    """
    debug = "--debug" in sys.argv
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(
                errors="backslashreplace"
            )  # a terminal may lack ✓ or a name's letters
    try:
        with _one_line(lambda: debug):
            # Not cli.main: it has an answer of its own to a reader that went away.
            with cli.make_context("polytag", sys.argv[1:]) as context:
                cli.invoke(context)
            sys.stdout.flush()  # here, where a reader that went away is expected
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:  # `polytag predict ... | head`
        # The interpreter flushes once more on its way out, and must find somebody to read.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in CANNOT_WRITE:  # a full disk, say
            click.echo(f"error: {error}", err=True)
            sys.exit(2)
        traceback.print_exc()
        click.echo("This is a defect of polytag, not of your data. Please report it.", err=True)
        sys.exit(101)
