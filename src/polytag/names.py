"""Names of pictures in label tables: what they may be, and how they meet the image folder."""

from __future__ import annotations

import re
from pathlib import Path

from polytag.errors import TableError

_DRIVE = re.compile(r"[A-Za-z]:")


def clean_name(name: str, where: str = "") -> str:
    """Return an image name as tables hold it: relative, posix, without ``.`` parts.

    Args:
        name: As it stands in a table; a backslash divides folders like a slash.
        where: What an error says about the place.

    Raises:
        TableError: A name that is empty or may lead out of the image folder.

    Example:
        >>> clean_name("./day1//a.jpg"), clean_name("day1\\\\a.jpg")
        ('day1/a.jpg', 'day1/a.jpg')
        >>> clean_name("../a.jpg", "labels.txt:3")
        Traceback (most recent call last):
        polytag.errors.TableError: labels.txt:3: the image name leads out of the image folder ...
    """
    path = name.strip().replace("\\", "/")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if "\0" in path:
        problem = "the image name holds a NUL character"
    elif "://" in path:
        problem = "the image name is an address, not a file"
    elif path.startswith("/") or _DRIVE.match(path):
        problem = "the image name is an absolute path"
    elif ".." in parts:
        problem = "the image name leads out of the image folder by '..'"
    elif not parts:
        problem = "the image name is empty"
    else:
        return "/".join(parts)
    raise TableError(
        problem,
        where=where,
        got=repr(name[:80]),
        expected="a path inside the image folder, such as 'a.jpg' or 'day1/a.jpg'",
        fix="correct the name or leave the row out",
    )


def safe_join(folder: Path, name: str, where: str = "", real: Path | None = None) -> Path:
    r"""Join a name from a label table to the image folder, and refuse to leave that folder.

    Both kinds of slash count as separators and both systems' absolute paths are refused
    everywhere, so that a table means the same on every machine. The file need not exist.

    Args:
        folder: The image folder; it may itself be a link.
        name: As it stands in the table.
        where: What an error says about the place.
        real: ``folder.resolve()``, if the caller joins many names.

    Raises:
        TableError: As `clean_name`; or a link leads out of the folder.

    Example:
        >>> safe_join(Path("images"), "a/b.jpg").as_posix()
        'images/a/b.jpg'
    """
    path = folder / clean_name(name, where)
    if not _inside(real or folder.resolve(), path):
        raise TableError(
            "the image name leads out of the image folder through a link",
            where=where,
            got=repr(name[:80]),
            fix="copy the picture into the folder, or give --images the folder it lies in",
        )
    return path


def _inside(real: Path, path: Path) -> bool:
    try:
        return path.resolve().is_relative_to(real)
    except (OSError, RuntimeError):  # a loop of links
        return False
