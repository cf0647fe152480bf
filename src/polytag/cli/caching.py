"""The verb that looks after what is kept to save computing: cache."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Sequence
from typing import Any

import click

from polytag.cached import KINDS
from polytag.cli.common import cli, json_option
from polytag.errors import RecipeError

_SECONDS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


@cli.group()
def cache() -> None:
    """Show or empty the cache: `polytag cache info`, `polytag cache clear`.

    It holds features, backbones and outputs of frozen stages. Everything in it can be computed
    again. It lies in $POLYTAG_CACHE and holds at most $POLYTAG_CACHE_SIZE (20GB; 0: no bound): what
    was not used for longest makes room.
    """


@cache.command()
@json_option
def info(as_json: bool) -> None:
    """Say what the cache holds, how large it is, and where."""
    from polytag.cached import entries, size_bound
    from polytag.files import cache_folder

    folder, bound = cache_folder(), size_bound()
    found = entries(folder)
    total = sum(entry.bytes for entry in found)
    if as_json:
        listed = [entry.to_dict() for entry in found]
        answer = {"folder": str(folder), "bytes": total, "bound": bound, "entries": listed}
        click.echo(json.dumps(answer, ensure_ascii=False))
        return
    if found:
        click.echo(f"{'kind':<11}{'what':<42} {'size':>9}  last used")
    now = time.time()
    for entry in found:
        size, what = readable_size(entry.bytes), shortened(entry.what, 42)
        click.echo(f"{entry.kind:<11}{what:<42} {size:>9}  {readable_age(now - entry.used)}")
    most = f"of at most {readable_size(bound)}" if bound else "(no bound)"
    click.echo(f"{counted(found)}, {readable_size(total)} {most}, in {folder}")


@cache.command()
@click.option(
    "--older-than", metavar="30d", help="Only what was not used for so long (m, h, d, w)."
)
@click.option(
    "--kind",
    "kinds",
    type=click.Choice(list(KINDS)),
    multiple=True,
    help="Only this kind; can be given more than once.",
)
@json_option
def clear(older_than: str | None, kinds: tuple[str, ...], as_json: bool) -> None:
    """Remove what the cache holds, but for what a running process uses."""
    from polytag.cached import clear as remove
    from polytag.files import cache_folder

    before = float("inf") if older_than is None else time.time() - parse_age(older_than)
    removed, left = remove(cache_folder(), kinds or KINDS, before)
    total = sum(entry.bytes for entry in removed)
    if as_json:
        answer: dict[str, Any] = {
            "bytes": total,
            "removed": [entry.to_dict() for entry in removed],
            "in_use": [entry.to_dict() for entry in left],
        }
        click.echo(json.dumps(answer, ensure_ascii=False))
    else:
        click.echo(f"removed {counted(removed)}, {readable_size(total)}")
    for entry in left:
        logging.getLogger("polytag").warning("still in use: %s: %s", entry.kind, entry.what)


def counted(found: Sequence[object]) -> str:
    """Write how many entries there are.

    Example:
        >>> counted([]), counted(["one"])
        ('0 entries', '1 entry')
    """
    return f"{len(found)} {'entry' if len(found) == 1 else 'entries'}"


def parse_age(text: str) -> float:
    """Return the seconds in ``30d``, ``12h``, ``45m`` or ``2w``.

    Raises:
        RecipeError: Something else.

    Example:
        >>> parse_age("2w") / parse_age("7d")
        2.0
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([mhdw])\s*", text, re.IGNORECASE | re.ASCII)
    if not found:
        expected = "such as 30d, 12h, 45m or 2w"
        raise RecipeError("not an age", where="--older-than", got=repr(text), expected=expected)
    return float(found[1]) * _SECONDS[found[2].lower()]


def readable_size(count: int) -> str:
    """Write a number of bytes for people.

    Example:
        >>> readable_size(999), readable_size(20_964_000), readable_size(20 * 10**9)
        ('999 B', '21.0 MB', '20.0 GB')
    """
    if count < 1000:
        return f"{count} B"
    value, unit = count / 1000, "kB"
    for larger in ("MB", "GB", "TB"):
        if value < 999.95:  # which would be written as 1000.0
            break
        value, unit = value / 1000, larger
    return f"{value:.1f} {unit}"


def readable_age(seconds: float) -> str:
    """Write how long ago something was, in the largest unit that it has two of.

    Example:
        >>> readable_age(5), readable_age(7200), readable_age(86400 * 40)
        ('just now', '2 hours ago', '40 days ago')
    """
    for name, unit in (("days", "d"), ("hours", "h"), ("minutes", "m")):
        if seconds >= 2 * _SECONDS[unit]:
            return f"{seconds // _SECONDS[unit]:.0f} {name} ago"
    return "just now"


def shortened(text: str, width: int) -> str:
    """Cut a text to a width.

    Example:
        >>> shortened("tf_efficientnet_lite0", 10)
        'tf_effici…'
    """
    return text if len(text) <= width else text[: width - 1] + "…"
