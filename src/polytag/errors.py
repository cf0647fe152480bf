"""Every error polytag raises on purpose.

    PolytagError
    +-- UserError            the input can be mended by the user: one line, exit code 2, HTTP 4xx
    |   +-- TableError       the label table
    |   +-- ImageError       one picture (missing, empty, broken, too large, not an image)
    |   +-- RecipeError      a recipe, a recipe's key, a flag
    |   +-- ModelError       a run folder, a model file, weights
    +-- SkippedError         more inputs were skipped than allowed: exit code 3

Anything else that escapes is a defect of polytag: traceback, exit code 101.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PolytagError(Exception):
    """Base of everything polytag raises on purpose.

    Example:
        >>> issubclass(UserError, PolytagError) and issubclass(UserError, ValueError)
        True
    """

    exit_code = 2


class UserError(PolytagError, ValueError):
    """The user can mend this. Says what, where, what was found, what was expected, what to do.

    Args:
        what: The problem, one sentence without a full stop.
        where: File, ``file:line`` or a name; empty if there is no place.
        got: What stood there.
        expected: What should have stood there.
        fix: What to do about it.

    Example:
        >>> print(UserError("unknown token", where="labels.txt:3", got="'maybe'",
        ...                 expected="1, 0 or NA", fix="correct the cell"))
        labels.txt:3: unknown token; got 'maybe', expected 1, 0 or NA; correct the cell
    """

    def __init__(
        self, what: str, *, where: str = "", got: str = "", expected: str = "", fix: str = ""
    ) -> None:
        self.what, self.where, self.got, self.expected, self.fix = what, where, got, expected, fix
        found = ", ".join(
            part for part in (got and f"got {got}", expected and f"expected {expected}") if part
        )
        body = "; ".join(part for part in (what, found, fix) if part)
        super().__init__(f"{where}: {body}" if where else body)


class TableError(UserError):
    """A label table that cannot be read as it stands."""


class ImageError(UserError):
    """A picture that cannot be used; the message names the file."""


class RecipeError(UserError):
    """A recipe, one of its keys, or a flag."""


class ModelError(UserError):
    """A run folder, a model file or a weights file."""


class SkippedError(PolytagError):
    """More inputs were skipped than allowed.

    Example:
        >>> SkippedError("5 of 9").exit_code
        3
    """

    exit_code = 3


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a hint: the nearest known name, or all of them.

    Example:
        >>> did_you_mean("prob", ["probe", "finetune"])
        "did you mean 'probe'?"
        >>> did_you_mean("xyz", ["probe", "finetune"])
        'known: finetune, probe'
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"


def printable(text: str) -> str:
    r"""Keep a name to one line that every terminal can print.

    Example:
        >>> printable("a\x1b[31m.jpg")
        'a\\x1b[31m.jpg'
    """
    return text if text.isprintable() else text.encode("unicode_escape").decode()
