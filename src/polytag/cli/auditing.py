"""The verb that looks for what is wrong with labels and pictures: audit."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import click

from polytag.cli.common import PATH, cli, data_options, if_in_table, json_option, read_labels


@cli.command()
@data_options(required=True)
@click.option("--run", type=PATH, help="Use this run's out-of-fold probabilities.")
@click.option("--split", metavar="COLUMN", help="Your own split, to look for leaks in.")
@click.option("--group-by", metavar="COLUMN", help="Rows with one text in it belong together.")
@click.option("--out", type=PATH, default=Path("audit"), show_default=True, help="A folder.")
@click.option("--exit-zero", is_flag=True, help="Exit with 0 whatever is found.")
@json_option
def audit(**options: Any) -> None:
    """Look for what is wrong with labels and pictures; exit with 1 if it is serious.

    Writes audit.html and lists that annotation tools can take: label_errors.csv, duplicates.csv,
    annotate_next.csv, skipped.csv.
    """
    from polytag.audit import audit as look
    from polytag.kept import read_run
    from polytag.pictures import refuse_too_many

    run, split, column = options["run"], options["split"], options["group_by"]
    if column is None and run is not None:
        column = if_in_table(read_run(run).recipe.split.group_by, options)
    table = read_labels(options, [name for name in (split, column) if name])
    found = look(table, options["images"], run, split=split, group_by=column)
    files = found.write(options["out"])
    text = (
        json.dumps(found.to_dict(), ensure_ascii=False) if options["as_json"] else found.to_text()
    )
    click.echo(text)
    for path in files if not options["as_json"] else ():
        logging.getLogger("polytag").info("wrote %s", path)
    refuse_too_many(
        found.material.rows.skipped,
        len(table),
        strict=options["strict"],
        most=options["max_skipped"],
    )
    if found.serious and not options["exit_zero"]:
        sys.exit(1)
