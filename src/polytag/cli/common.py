"""What the verbs share: the group, the options that name data, how labels are read."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from polytag import __version__
from polytag.ranks import is_main

if TYPE_CHECKING:
    from polytag.table import LabelTable

F = TypeVar("F", bound=Callable[..., Any])
PATH = click.Path(path_type=Path)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="polytag")
@click.option("-q", "--quiet", is_flag=True, help="No progress and no log, results only.")
@click.option("--debug", is_flag=True, help="Show where an error came from.")
@click.pass_context
def cli(context: click.Context, quiet: bool, debug: bool) -> None:
    """Train, judge and use classifiers of many attributes from a label table with holes."""
    logging.basicConfig(
        level=(logging.WARNING if quiet else logging.INFO) if is_main() else logging.ERROR,
        format="%(message)s",
        stream=sys.stderr,
    )
    for noisy in (
        "PIL",
        "onnxscript",
        "onnx_ir",
        "torch",
        "matplotlib",
        "httpx",
        "timm",
        "accelerate",
    ):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    if not debug:
        warnings.filterwarnings("ignore")  # of libraries, about themselves; ours are log lines
    context.obj = debug


def data_options(required: bool, *, images: bool = True) -> Callable[[F], F]:
    """Add what names a label table and its pictures, and says how to read them.

    Args:
        required: Whether the table has to be named.
        images: Whether the pictures have to be, where the table has to be.
    """
    options = (
        click.argument("labels", type=PATH, required=required),
        click.option(
            "--images", type=PATH, required=required and images, help="The folder of pictures."
        ),
        click.option("--attributes", metavar="A,B,C", help="Label columns, or names for them."),
        click.option("--ignore", multiple=True, metavar="A,B,C", help="Leave columns out."),
        click.option("--values", metavar="TEXT", help='Such as "1=present,0=absent,-1=na".'),
        click.option("--image-column", metavar="COLUMN", help="The column of picture names."),
        click.option("--strict", is_flag=True, help="Let one picture that is broken stop it all."),
        max_skipped_option,
    )

    def add(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return add


max_skipped_option = click.option(
    "--max-skipped",
    type=click.FloatRange(0, 1),
    default=0.1,
    show_default=True,
    help="Share of pictures that may be missing or broken.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def read_labels(options: dict[str, Any], extra: Sequence[str] = ()) -> LabelTable:
    """Read the label table of a command that has ``data_options``; ``extra`` are no labels."""
    from polytag.table import read_table

    return read_table(
        options["labels"],
        attributes=options["attributes"] or None,
        ignore=words(options["ignore"]),
        extra=extra,
        values=options["values"] or None,
        image_column=options["image_column"] or None,
    )


def if_in_table(column: str | None, options: dict[str, Any]) -> str | None:
    """Return a column's name if the label table of a command has it, and None if not.

    A column of numbers must be named before the table is read, lest it be taken for labels.
    """
    from polytag.readers import read_raw
    from polytag.readers.tokens import Vocabulary, token_table

    if not column or column in words(options["ignore"]):
        return None
    vocabulary = Vocabulary(token_table(options["values"] or None), options["image_column"] or None)
    names = read_raw(str(options["labels"]), vocabulary).columns or ()
    return column if column in map(str.strip, names) else None


def words(given: str | Sequence[str]) -> list[str]:
    """Return the names in ``a,b``, or in several such texts."""
    texts = [given] if isinstance(given, str) else given
    return [name.strip() for text in texts for name in text.split(",")]
