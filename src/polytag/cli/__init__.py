"""The command line: one function a verb, which parses, makes one library call, and prints."""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from polytag.cli import auditing, caching, exporting, judging, training, using
from polytag.cli.common import cli
from polytag.errors import PolytagError, UserError
from polytag.files import CANNOT_WRITE

__all__ = ["auditing", "caching", "cli", "exporting", "judging", "main", "training", "using"]


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
    except (KeyboardInterrupt, click.Abort) as end:
        click.echo("; ".join(["interrupted", *map(str, end.args)]), err=True)
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
