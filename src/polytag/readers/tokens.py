"""The one token table: what a cell's text means, and which words a header uses for the images."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from polytag.errors import TableError

NA = math.nan

TOKENS: Mapping[str, float] = {
    **dict.fromkeys(("1", "1.0", "true", "yes", "present"), 1.0),
    **dict.fromkeys(("0", "0.0", "false", "no", "absent"), 0.0),
    **dict.fromkeys(("na", "n/a", "nan", "null", ""), NA),
}

EXPECTED = "1/0, true/false, yes/no, present/absent, or NA/NaN/null/empty for not known"

# First found wins, so the words that can mean something else ("path", "name") stand last.
IMAGE_COLUMNS = (
    *("image", "images", "image_path", "image_name", "image_file", "image_filename"),
    *("file_name", "filename", "file", "files", "file_path", "filepath"),
    *("img", "imgs", "img_path", "img_name", "photo", "picture", "path", "name"),
)

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".png", ".webp"),
    *(".bmp", ".gif", ".tif", ".tiff"),
)

# float() would also take "2023_01" and "infinity", which are names.
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
_INTEGER = re.compile(r"[+-]?\d+")


def meaning(value: float) -> str:
    """Return the word for a value: present (1), absent (0) or na (NaN).

    Example:
        >>> meaning(1.0), meaning(0.0), meaning(float("nan"))
        ('present', 'absent', 'na')
    """
    return "na" if math.isnan(value) else "present" if value == 1 else "absent"


def token_table(values: str | Mapping[str, object] | None = None) -> dict[str, float]:
    """Return the token table: casefolded text to 1.0, 0.0 or NaN.

    Args:
        values: Entries that extend or override the default table, as ``"1=present,-1=na"`` or as
            a mapping of text to present / absent / na (or 1, 0, NaN, None). A whole number stands
            for its float spelling too: ``-1`` maps ``-1.0``, which is how pandas writes it.

    Raises:
        TableError: An entry that is not TOKEN=present, TOKEN=absent or TOKEN=na.

    Example:
        >>> token_table("-1=na, maybe=absent")["maybe"]
        0.0
    """
    own: dict[str, float] = {}
    for token, word in _entries(values):
        key, name = token.strip().casefold(), word.strip().casefold()
        if not name or name not in TOKENS:
            raise _bad_entry(f"{token}={word}", "TOKEN=present, TOKEN=absent or TOKEN=na")
        if key in own and meaning(own[key]) != meaning(TOKENS[name]):
            raise _bad_entry(f"{token!r} with two meanings", "one meaning for each token")
        own[key] = TOKENS[name]
    floats = {f"{key}.0": value for key, value in own.items() if _INTEGER.fullmatch(key)}
    return {**TOKENS, **floats, **own}


def _entries(values: str | Mapping[str, object] | None) -> list[tuple[str, str]]:
    if values is None:
        return []
    if isinstance(values, str):
        parts = [part.rpartition("=") for part in values.split(",")]
        for before, equals, after in parts:
            if not equals:
                raise _bad_entry(repr(before + after), "TOKEN=present, TOKEN=absent or TOKEN=na")
        return [(before, after) for before, _, after in parts]
    return [(str(key), "na" if word is None else str(word)) for key, word in values.items()]


def _bad_entry(got: str, expected: str) -> TableError:
    return TableError(
        "cannot read the values",
        where="--values",
        got=got,
        expected=expected,
        fix='for example --values "1=present,0=absent,-1=na"',
    )


@dataclass(frozen=True)
class Vocabulary:
    """What a reader may know about words to find the structure of a file, and nothing more.

    Attributes:
        tokens: The token table, see `token_table`.
        image_column: The column the user says holds the image names; None if not said.
    """

    tokens: Mapping[str, float]
    image_column: str | None = None

    def is_value(self, cell: str) -> bool:
        """Return whether a cell can be a label's: a token or a number.

        Example:
            >>> [Vocabulary(TOKENS).is_value(cell) for cell in ("NA", "-1", "0.3", "a.jpg")]
            [True, True, True, False]
        """
        text = cell.strip()
        return text.casefold() in self.tokens or _NUMBER.fullmatch(text) is not None

    def is_header(self, cells: Sequence[str]) -> bool:
        """Return whether the first row of a text table names columns rather than an image.

        No file name stands in a header ("img 1.jpg" begins with a word headers use); a word for
        the image column makes one; otherwise a value shows that it is an image's row.

        Example:
            >>> words = Vocabulary(TOKENS)
            >>> words.is_header(["photo", "black"]), words.is_header(["a.jpg", "maybe"])
            (True, False)
            >>> words.is_header(["image", "1", "2"]), words.is_header(["img", "1.jpg", "0"])
            (True, False)
        """
        names = [cell.strip() for cell in cells]
        if self.image_column in names:
            return True
        if any(name.casefold().endswith(IMAGE_SUFFIXES) for name in names):
            return False
        if any(image_word(name) in IMAGE_COLUMNS for name in names):
            return True
        return not any(name and self.is_value(name) for name in names)


def image_word(column: str) -> str:
    """Return a column's name as `IMAGE_COLUMNS` spells it.

    Example:
        >>> image_word("Image Name")
        'image_name'
    """
    return column.strip().casefold().replace(" ", "_").replace("-", "_")
