"""The run folder: how it is named, and how its tables are written."""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polytag.errors import UserError
from polytag.files import written_aside
from polytag.images import content_hash
from polytag.results import Evaluation

log = logging.getLogger("polytag")


@dataclass(frozen=True)
class Run(os.PathLike[str]):
    """A finished run; usable wherever a path is.

    Attributes:
        path: The run folder.
        evaluation: Out-of-fold metrics.
        metrics: The content of ``metrics.json``.
    """

    path: Path
    evaluation: Evaluation
    metrics: Mapping[str, Any]

    def __fspath__(self) -> str:
        return str(self.path)

    __str__ = __fspath__


def new_run_folder(runs: Path, name: str | None, stem: str) -> Path:
    """Make a run folder: ``runs/name``, or the first free of ``runs/stem-1``, ``stem-2`` ...

    Raises:
        UserError: ``name`` is taken or cannot be a folder's name; nothing can be written there.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     [new_run_folder(Path(folder), None, "probe").name for _ in range(2)]
        ['probe-1', 'probe-2']
    """
    check_run_name(runs, name)
    if name is not None:
        try:
            (runs / name).mkdir()
        except OSError as error:  # another process was quicker, or the name is too long
            reason = error.strerror or str(error)
            raise UserError("no such run can be made", where=str(runs / name), got=reason) from None
        return runs / name
    number = 1
    while True:
        folder = runs / f"{stem}-{number}"
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1


@dataclass
class Place:
    """Where a run will be kept: made when there is something to keep.

    Attributes:
        runs: Where run folders are.
        name: Of the run; None: the first free of ``stem-1``, ``stem-2`` ...
        stem: What a run without a name is called after.
        made: The folder, once it is there.
    """

    runs: Path
    name: str | None
    stem: str
    made: Path | None = None

    def make(self) -> Path:
        """Return the run folder, making it the first time."""
        if self.made is None:
            self.made = new_run_folder(self.runs, self.name, self.stem)
        return self.made


def check_run_name(runs: Path, name: str | None) -> None:
    """Refuse what `new_run_folder` could not make, before any work is done for it.

    Raises:
        UserError: As `new_run_folder`; or there can be no folder ``runs``.
    """
    try:
        runs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            "runs cannot be kept here", where=str(runs), got=reason, fix="choose another --runs"
        ) from None
    if not os.access(runs, os.W_OK):
        raise UserError("runs cannot be kept here", where=str(runs), got="no permission to write")
    if name is None:
        return
    if name.strip(" .-") == "" or name == "latest" or Path(name).name != name or name[0] in "-.":
        expected = "a plain folder name other than latest, without a dash or dot in front"
        raise UserError("not a name for a run", got=repr(name), expected=expected)
    if os.path.lexists(runs / name):
        fix = "choose another --name, or remove that folder"
        raise UserError("this run exists already", where=str(runs / name), fix=fix)


def mark_latest(run: Path) -> None:
    """Point ``runs/latest`` to a run; where links are not allowed, leave it out."""
    link = run.parent / "latest"
    if link.exists() and not link.is_symlink():
        log.warning("%s is not a link of polytag's and is left alone", link)
        return
    aside = run.parent / f".latest-{os.getpid()}"
    try:
        aside.symlink_to(run.name, target_is_directory=True)
        aside.replace(link)
    except OSError:  # Windows without the right to make links
        aside.unlink(missing_ok=True)


def write_rows(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file, whole or not at all; None becomes an empty cell."""
    with (
        written_aside(path) as aside,
        aside.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def hashes_seen(run: Path, splits_hash: str) -> set[str] | None:
    """Return the content hashes of the pictures a run was trained on, or chosen by.

    None where that cannot be known: for a bare model file, or if ``splits.csv`` is not the one
    that the model was made with.
    """
    splits = run / "splits.csv"
    if not splits.is_file() or content_hash(splits) != splits_hash:
        return None
    with splits.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        return {row["content_hash"] for row in rows if row["fold"] != "holdout"}
