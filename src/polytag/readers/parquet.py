"""Parquet, through polars, which is imported only when such a file is read."""

from __future__ import annotations

import io

from polytag.errors import TableError
from polytag.readers.raw import RawTable
from polytag.readers.tokens import Vocabulary


def read(data: bytes, source: str, words: Vocabulary) -> RawTable:
    """Read Parquet: every column cast to text, null is ``""``.

    Raises:
        TableError: A file that is not Parquet.

    Example:
        >>> import polars as pl
        >>> from polytag.readers.tokens import TOKENS
        >>> file = io.BytesIO()
        >>> pl.DataFrame({"image": ["a.jpg"], "red": [None], "blue": [True]}).write_parquet(file)
        >>> read(file.getvalue(), "labels.parquet", Vocabulary(TOKENS)).rows
        [('a.jpg', '', 'true')]
    """
    import polars as pl

    try:
        frame = pl.read_parquet(io.BytesIO(data))
    except (pl.exceptions.PolarsError, OSError) as error:
        found = str(error).splitlines()[0]
        raise TableError("not a readable Parquet file", where=source, got=found) from None
    cells: list[list[str]] = []
    nested: dict[str, tuple[int, str]] = {}
    for column in frame.get_columns():
        if column.dtype.is_nested() or column.dtype == pl.Binary:
            filled = column.is_not_null().arg_max() if column.is_not_null().any() else None
            if filled is not None:
                nested[column.name] = (filled + 1, f"a cell of type {column.dtype}")
            cells.append([""] * frame.height)
            continue
        try:
            cells.append(column.cast(pl.String).fill_null("").to_list())
        except pl.exceptions.PolarsError:  # a few types (durations) have no text in polars
            cells.append(["" if cell is None else str(cell) for cell in column])
    rows = list(zip(*cells, strict=True))
    return RawTable(tuple(frame.columns), rows, range(1, frame.height + 1), (), nested)
