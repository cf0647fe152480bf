"""The verbs that make models: train, import, recipes, demo."""

from __future__ import annotations

import json
import logging
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from polytag.cli.common import PATH, cli, data_options, json_option, read_labels, words
from polytag.ranks import is_main

if TYPE_CHECKING:
    from polytag.runs import Run


@cli.command()
@data_options(required=False)
@click.option("--recipe", default="probe", show_default=True, help="A name or a .toml file.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change the recipe.")
@click.option("--backbone", help="Any timm model.  [--set backbone.name=]")
@click.option("--weights", help="embedded, hub, none or a file.  [--set backbone.weights=]")
@click.option("--name", help="Of the run.  [default: probe-1, probe-2 ...]")
@click.option("--runs", type=PATH, default="runs", show_default=True, help="Where runs are kept.")
@click.option("--seed", type=int, help="[--set seed=]")
@click.option("--device", help="auto, cpu, cuda, cuda:1, mps.  [--set device=]")
@click.option("--engine", help="auto, onnxruntime, openvino.  [--set features.engine=]")
@click.option("--title", help="Of loss_curve.png.  [--set title=]")
@click.option("--epochs", type=int, help="Of every stage.  [--set stages.*.epochs=]")
@click.option("--batch", type=int, help="[--set training.batch=]")
@click.option("--holdout", type=float, help="Share to judge on.  [--set split.holdout=]")
@click.option("--folds", type=int, help="Judge in folds.  [--set split.folds=]")
@click.option("--group-by", metavar="COLUMN", help="Never parted.  [--set split.group_by=]")
@click.option("--split", metavar="COLUMN|FILE", help="Your own split.  [--set split.given=]")
@click.option("--target", help="Of thresholds: f1, precision=0.9 ...  [--set decisions.target=]")
@click.option("--max-error", type=float, help="Else unsure.  [--set decisions.max_error=]")
@click.option("--confidence", type=float, help="Of it.  [--set decisions.confidence=]")
@click.option("--budget", metavar="5m", help="The best that fits: 90s, 5m, 1h30m.  [--set budget=]")
@click.option("--resume", "run_to_resume", type=PATH, help="Go on with an interrupted run.")
@json_option
def train(**options: Any) -> None:
    """Train a classifier, judge it, and leave a run folder.

    LABELS and --images may be left out where --recipe is a run's config.toml, and with --resume.
    """
    run = _go_on(options) if options["run_to_resume"] else _train_anew(options)
    if not is_main():
        return
    if options["as_json"]:
        click.echo(json.dumps({"run": str(run.path), **run.metrics}, ensure_ascii=False))
        return
    from polytag.summary import decisions, headline
    from polytag.summary import table as metrics_table

    note = textwrap.fill(run.metrics["note"] or "", 79)
    if run.metrics["judged"]:
        click.echo(f"{headline(run.evaluation)}\n{note and note + chr(10)}")
        click.echo(metrics_table(run.evaluation))
        if run.metrics["decisions"]["max_error"]:
            click.echo(f"\n{decisions(run.evaluation, run.metrics['decisions'])}")
    else:
        loss = run.metrics["training_loss"]  # none of a probe that no epoch was better than
        click.echo(f"training loss {'-' if loss is None else f'{loss:.4f}'}\n\n{note}")
    click.echo(f"\nrun: {run.path}   {_counted(run.metrics)}")
    click.echo(f"next: polytag predict {run.path} PHOTO.jpg")


def _counted(metrics: Mapping[str, Any]) -> str:
    found = f"{metrics['rows']} pictures, {metrics['skipped']} skipped"
    if parts := metrics.get("parts"):
        words = {"train": "trained on", "choose": "chose", "holdout": "judged"}
        found += "\n     " + ", ".join(f"{n} {words[part]}" for part, n in parts.items() if n)
    return found


def _train_anew(options: dict[str, Any]) -> Run:
    from polytag.config import load_recipe, parse_changes

    flags = {
        "backbone.name": "backbone",
        "backbone.weights": "weights",
        "features.engine": "engine",
        "training.batch": "batch",
        "stages.*.epochs": "epochs",
        "split.holdout": "holdout",
        "split.folds": "folds",
        "split.group_by": "group_by",
        "split.given": "split",
        "decisions.max_error": "max_error",
        "decisions.confidence": "confidence",
    }
    flags |= {key: key for key in ("seed", "device", "title", "budget")}
    changes = parse_changes(options["settings"])
    changes |= {key: options[flag] for key, flag in flags.items() if options[flag] is not None}
    if changes.get("budget") and not _said("recipe"):
        options["recipe"] = "finetune"  # which becomes the probe where there is no time for it
    if options["target"] is not None:
        changes |= parse_changes([f"decisions.target={options['target']}"])
    if options["folds"] is not None and load_recipe(options["recipe"]).method == "finetune":
        changes["split.holdout"] = "folds"
    recipe = load_recipe(options["recipe"], changes)
    # A run's config.toml says what it was trained on; flags win.
    reading = recipe.data.model_dump()
    given = {key: options[key] for key in reading if options[key]}
    given |= {key: words(given[key]) for key in ("attributes", "ignore") if key in given}
    options |= reading | given
    for key, flag in (("labels", "argument 'LABELS'"), ("images", "option '--images'")):
        if not options[key]:
            raise click.UsageError(f"Missing {flag}.", click.get_current_context())
    table = read_labels(options, recipe.split.columns)
    log = logging.getLogger("polytag")
    for note in (*table.notes, table.cells):
        log.info("%s", note)
    kept = {f"data.{key}": value for key, value in given.items() if key not in ("labels", "images")}
    from polytag.train import fit  # after the table's errors, which need no torch

    return fit(
        table,
        options["images"],
        recipe=options["recipe"],
        changes=changes | kept,
        name=options["name"],
        folder=options["runs"],
        strict=options["strict"],
        max_skipped=options["max_skipped"],
    )


def _said(option: str) -> bool:
    """Say whether an option stands on the command line."""
    source = click.get_current_context().get_parameter_source(option)
    return source is ParameterSource.COMMANDLINE


def _go_on(options: dict[str, Any]) -> Run:
    """Resume a run with its own settings; only where its data is may be said anew."""
    context = click.get_current_context()
    for key in context.params:
        if key not in ("run_to_resume", "as_json", "labels", "images") and _said(key):
            raise click.UsageError(
                f"--resume goes on with the run's own settings; leave out {key}", context
            )
    from polytag.config import load_recipe
    from polytag.train import resume

    run, table = options["run_to_resume"], None
    if options["labels"]:
        recipe = load_recipe(run / "config.toml")
        data = recipe.data.model_dump() | {"labels": options["labels"]}
        table = read_labels(data, recipe.split.columns)
    return resume(run, table, options["images"])


@cli.command()
@click.argument("run", type=PATH)
@click.option("--target", help="f1, f2, precision=0.9, recall=0.9, cost=5, prevalence, 0.5.")
@click.option("--max-error", type=float, help="Promise at most so many errors, else unsure.")
@click.option("--confidence", type=float, help="Of that promise.  [default: the run's]")
@json_option
def thresholds(run: Path, as_json: bool, **options: Any) -> None:
    """Choose a run's thresholds anew, without training, and say what they do.

    The run's numbers, card, report and model file are brought up to date. What is not given stays
    as it was; --max-error 0 takes unsure away.
    """
    from polytag.config import parse_changes
    from polytag.rechoose import choose_anew

    given = [(key, options[key]) for key in ("target", "max_error", "confidence")]
    words = [f"decisions.{key}={value}" for key, value in given if value is not None]
    if not words:
        raise click.UsageError("Say --target or --max-error.", click.get_current_context())
    chosen = choose_anew(run, parse_changes(words))
    if as_json:
        click.echo(json.dumps({"run": str(chosen.path), **chosen.metrics}, ensure_ascii=False))
        return
    from polytag.summary import decisions

    click.echo(decisions(chosen.evaluation, chosen.metrics["decisions"]))
    click.echo(f"\nrun: {chosen.path}")


@cli.command("import")
@click.argument("file", type=PATH)
@click.option("--backbone", required=True, help="timm's name of the network in the file.")
@click.option("--attributes", required=True, metavar="A,B,C", help="Its outputs, in their order.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Of preprocess.")
@click.option("--threshold", type=float, help="For every attribute.  [default: 0.5]")
@click.option("--name", help="Of the run.  [default: import-1, import-2 ...]")
@click.option("--runs", type=PATH, default="runs", show_default=True, help="Where runs are kept.")
@json_option
def import_(file: Path, **options: Any) -> None:
    """Make a run of a network that was trained elsewhere, its head included.

    FILE is a .pth or .safetensors of a timm or torchvision network. Say by --set how pictures were
    brought to size when it was trained: preprocess.size=224, preprocess.resize=squash.
    """
    from polytag.config import parse_changes
    from polytag.importing import import_weights

    changes = parse_changes(options["settings"])
    if options["threshold"] is not None:
        changes["decisions.target"] = options["threshold"]
    run = import_weights(
        file,
        backbone=options["backbone"],
        attributes=words(options["attributes"]),
        changes=changes,
        name=options["name"],
        folder=options["runs"],
    )
    if options["as_json"]:
        click.echo(json.dumps({"run": str(run.path), **run.metrics}, ensure_ascii=False))
        return
    click.echo(textwrap.fill(run.metrics["note"], 79))
    click.echo(f"\nrun: {run.path}")
    click.echo(f"next: polytag evaluate {run.path} LABELS --images FOLDER")


@cli.command()
@click.argument("name", required=False)
@json_option
def recipes(name: str | None, as_json: bool) -> None:
    """List the recipes, or print one whole, every field explained."""
    from polytag.config import load_recipe, recipe_names, to_toml

    if name is None:
        known = {each: load_recipe(each).description for each in recipe_names()}
        width = max(map(len, known))
        lines = (
            textwrap.fill(
                text, 79, initial_indent=f"{each:<{width}}  ", subsequent_indent=" " * (width + 2)
            )
            for each, text in known.items()
        )
        click.echo(json.dumps(known) if as_json else "\n".join(lines))
    else:
        recipe = load_recipe(name)
        click.echo(recipe.model_dump_json() if as_json else to_toml(recipe), nl=as_json)


@cli.command()
@click.option(
    "--folder", type=PATH, default="polytag-demo", show_default=True, help="Where to put it all."
)
@click.option(
    "--seed", type=int, default=42, show_default=True, help="Other pictures, other folds."
)
@json_option
def demo(folder: Path, seed: int, as_json: bool) -> None:
    """Draw pictures with labels, train on them, predict, and say where to look."""
    from polytag.demo import run_demo

    shown = run_demo(folder, seed=seed)
    click.echo(json.dumps(shown.to_dict(), ensure_ascii=False) if as_json else shown.to_text())
