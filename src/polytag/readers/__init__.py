"""Readers of label tables, one module a kind. They find rows and cells; `polytag.table` meaning."""

from __future__ import annotations

from collections.abc import Callable
from itertools import takewhile
from pathlib import Path

from polytag.errors import TableError
from polytag.readers import delimited, jsonlines, parquet, whitespace
from polytag.readers.raw import RawTable, content_lines, decode
from polytag.readers.tokens import Vocabulary

Reader = Callable[[bytes, str, Vocabulary], RawTable]

# Any other ending, .txt among them, is sniffed.
READERS: dict[str, Reader] = {
    ".csv": delimited.read,
    ".tsv": delimited.read_tabs,
    ".tab": delimited.read_tabs,
    ".jsonl": jsonlines.read,
    ".ndjson": jsonlines.read,
    ".json": jsonlines.read,
    ".parquet": parquet.read,
    ".pq": parquet.read,
}


def read_raw(source: str, words: Vocabulary) -> RawTable:
    """Read a file as text cells with the reader its suffix names, or the one its lines show.

    Raises:
        TableError: The file cannot be opened, or not be cut into rows of equal length.
    """
    path = Path(source)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise TableError("no such file", where=source, fix="check the path") from None
    except IsADirectoryError:
        raise TableError("a folder, not a label table", where=source) from None
    except OSError as error:
        raise TableError(f"cannot open it: {error.strerror}", where=source) from None
    reader = READERS.get(path.suffix.lower()) or sniff(data, source, words)
    return reader(data, source, words)


def sniff(data: bytes, source: str, words: Vocabulary) -> Reader:
    """Return the reader for a file whose name does not tell.

    Text is whitespace text unless no line ends with a value where whitespace divides it, or commas,
    semicolons or tabs cut all lines into as many fields, the last a value, and lose none.

    Raises:
        TableError: The file is not text.

    Example:
        >>> from polytag.readers.tokens import TOKENS
        >>> sniff(b"a.jpg, 1, 0", "labels.txt", Vocabulary(TOKENS)) is delimited.read
        True
        >>> sniff(b"Doe, J.jpg 1 0", "labels.txt", Vocabulary(TOKENS)) is whitespace.read
        True
    """
    if data.startswith(b"PAR1"):
        return parquet.read
    lines = [line for _, line in content_lines(decode(data, source))[0][: delimited.SAMPLE]]
    if lines and lines[0].startswith("{"):
        return jsonlines.read
    delimiter = delimited.guess_delimiter(lines)
    if delimiter is None:
        return whitespace.read
    rows = delimited.cut(lines, delimiter)
    even = len({len(row) for row in rows}) == 1
    body = list(zip(rows, lines, strict=True))
    body = body[1:] or body  # the first may be a header
    clear = even and all(
        words.is_value(row[-1]) and sum(map(bool, row[1:])) >= _values_at_end(line, words)
        for row, line in body
    )
    spaced = any(_values_at_end(line, words) for _, line in body)
    return delimited.read if clear or not spaced else whitespace.read


def _values_at_end(line: str, words: Vocabulary) -> int:
    values = takewhile(words.is_value, reversed(line.split()))
    return len(list(values))
