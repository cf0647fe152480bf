"""Parts of a table: groups undivided, every attribute's classes and holes spread evenly."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from polytag.errors import UserError
from polytag.names import clean_name
from polytag.readers.raw import decode, more, place

# Of 23 attributes one try leaves the worst off by .24 of its share in the median, the best of 20
# by .13. Of many groups a try takes a second, and leaves little to mend.
_TRIES, _FEWEST_TRIES, _GROUPS_TRIED = 20, 4, 200_000
_RANGE_WEIGHT = 10 / 3  # prevalences .06 apart are as bad as a class off by .20 of its share

_PARTS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "choose", "dev"), "choose"),
    **dict.fromkeys(("test", "testing", "holdout"), "holdout"),
}
_WHOLE = re.compile(r"[0-9]{1,9}(\.0*)?")  # 1.0 too, as tables with a gap once write it
_FOLDS = 3  # two to choose in, one to judge


def stratified_folds(
    values: NDArray[np.float32], groups: NDArray[np.int64], *, folds: int, seed: int
) -> NDArray[np.int64]:
    """Give every row one of several folds of equal size; see `stratified_parts`.

    Example:
        >>> values = np.array([[1], [1], [0], [0], [np.nan], [np.nan]], dtype=np.float32)
        >>> folds = stratified_folds(values, np.arange(6), folds=2, seed=0)
        >>> [int((folds[rows] == 0).sum()) for rows in (slice(0, 2), slice(2, 4), slice(4, 6))]
        [1, 1, 1]
    """
    return stratified_parts(values, groups, shares=[1 / folds] * folds, seed=seed)


def stratified_parts(
    values: NDArray[np.float32],
    groups: NDArray[np.int64],
    *,
    shares: Sequence[float],
    seed: int,
) -> NDArray[np.int64]:
    """Give every row a part by iterative stratification over groups.

    Sechidis, Tsoumakas and Vlahavas, "On the Stratification of Multi-label Data", ECML PKDD 2011,
    algorithm 1, on three columns an attribute (present, absent, not known) and on whole groups:
    the rarest column first, each of its groups to the part that needs it most. That unknown cells
    are a column of their own keeps the prevalence of the known ones even between parts. Of
    several tries the one is taken whose worst class and widest prevalence are most even. A group
    that is larger than a part makes that part larger.

    Args:
        values: float (N, K) in {0, 1, NaN}; NaN: not known.
        groups: int (N,); rows with one number stay together.
        shares: Of the rows, one a part, each above 0; together 1.
        seed: Decides ties and tries.

    Returns:
        int64 (N,) in 0 .. parts - 1. The same input and seed give the same parts.

    Raises:
        UserError: Fewer groups than parts.

    Example:
        >>> values = np.tile(np.array([[1], [0]], dtype=np.float32), (50, 1))
        >>> parts = stratified_parts(values, np.arange(100), shares=[0.8, 0.2], seed=0)
        >>> int((parts == 1).sum()), float(values[parts == 1].mean())
        (20, 0.5)
    """
    counts = _group_counts(values, groups)
    if len(counts) < len(shares):
        raise UserError(
            "too few different pictures to split",
            got=str(len(counts)),
            expected=f"at least {len(shares)}, one a part",
            fix="label more pictures, or set split.folds lower (3 at least); a --group-by column "
            "of few different texts leaves few groups",
        )
    rng = np.random.default_rng(seed)
    wanted = np.array(shares, dtype=float)
    number = max(_FEWEST_TRIES, min(_TRIES, _GROUPS_TRIED // len(counts)))
    tries = [_assign(counts, wanted, rng) for _ in range(number)]
    return min(tries, key=lambda found: _unevenness(counts, found, wanted))[groups]


def _assign(
    counts: NDArray[np.int64], shares: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Return a part for every group."""
    tiebreak = rng.random((len(counts), len(shares)))
    order = rng.permutation(len(counts))
    # What each part still needs; the last column counts rows, so that sizes are evened out too.
    need = np.outer(shares, counts.sum(axis=0, dtype=float))
    part_of_group = np.full(len(counts), -1, dtype=np.int64)
    remaining = (counts > 0).sum(axis=0)
    while (open_columns := np.flatnonzero(remaining > 0)).size:
        column = open_columns[np.argmin(remaining[open_columns])]
        members = order[(counts[order, column] > 0) & (part_of_group[order] < 0)]
        # Large groups first: the small ones can still even out what they upset.
        for group in members[np.argsort(-counts[members, -1], kind="stable")]:
            keys = (tiebreak[group], need[:, -1], need[:, column])  # lexsort: last key first
            part = np.lexsort(keys)[-1]
            part_of_group[group] = part
            need[part] -= counts[group]
            remaining -= counts[group] > 0
    return part_of_group


def _unevenness(
    counts: NDArray[np.int64], part_of_group: NDArray[np.int64], shares: NDArray[np.float64]
) -> float:
    """Return how uneven classes are, the worse of two numbers; infinite if a part is empty.

    One is the worst relative deviation of a class from its even share, the other the widest range
    of an attribute's prevalence between parts, weighted. A class of which a part's share is less
    than a cell cannot be even and has no say.
    """
    found = np.zeros((len(shares), counts.shape[1]))
    np.add.at(found, part_of_group, counts)
    if not found[:, -1].all():
        return np.inf
    attributes = counts.shape[1] // 3
    classes = found[:, : 2 * attributes]  # present and absent
    even = np.outer(shares, classes.sum(axis=0))
    some = even >= 1
    deviation = np.max(np.abs(classes - even)[some] / even[some], initial=0)
    both = np.logical_and(*np.split(np.all(some, axis=0), 2))
    present, absent = classes[:, :attributes][:, both], classes[:, attributes:][:, both]
    prevalence = present / np.maximum(present + absent, 1)
    return float(max(deviation, _RANGE_WEIGHT * np.max(np.ptp(prevalence, axis=0), initial=0)))


def _group_counts(values: NDArray[np.float32], groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return int (G, 3 K + 1): present, absent, unknown cells and rows of every group."""
    unknown = np.isnan(values)
    rows = np.ones((len(values), 1), dtype=bool)
    columns = np.concatenate([values == 1, values == 0, unknown, rows], axis=1)
    counts = np.zeros((int(groups.max(initial=-1)) + 1, columns.shape[1]), dtype=np.int64)
    np.add.at(counts, groups, columns)
    return counts


@dataclass(frozen=True, eq=False)
class Given:
    """A split of the user's own: folds or parts, the other is None.

    Attributes:
        folds: int64 (N,) from 0, or None.
        parts: str (N,) of ``train``, ``choose`` and ``holdout``, or None.
    """

    folds: NDArray[np.int64] | None
    parts: NDArray[np.str_] | None


def given_parts(texts: Sequence[str], source: str) -> Given:
    """Understand a user's own split: fold numbers, or the words train, val and test.

    Args:
        texts: One a row, N of them. Fold numbers are whole ones, at least three different. Words
            are train (training), val (valid, validation, choose, dev) and test (testing,
            holdout), in any case; some rows are train and some are not.
        source: The column or file, for errors.

    Raises:
        UserError: A text is neither, or empty; too few folds; no row to train on or to judge by.

    Example:
        >>> given_parts(["Train", "test", "val"], "split").parts.tolist()
        ['train', 'holdout', 'choose']
        >>> given_parts(["1", "2", "3", "1"], "fold").folds.tolist()
        [0, 1, 2, 0]
    """
    words = [text.strip().lower() for text in texts]
    numbered = bool(words) and _WHOLE.fullmatch(words[0]) is not None
    for row, word in enumerate(words):
        if not (_WHOLE.fullmatch(word) if numbered else word in _PARTS):
            raise UserError(
                "a cell that is no part of a split" if word else "a row without a part",
                where=f"{source}, row {row + 1}",
                got=repr(texts[row]),
                expected="a fold number, as in the rows before"
                if numbered
                else "train, val or test in each row, or a fold number in each",
            )
    if not numbered:
        return _in_parts(words, source)
    numbers, folds = np.unique([int(float(word)) for word in words], return_inverse=True)
    if len(numbers) < _FOLDS:
        raise UserError(
            "too few folds",
            where=source,
            got=", ".join(map(str, numbers.tolist())),
            expected=f"at least {_FOLDS}: two to choose in, one to judge",
            fix="for one part to train on and one to judge by write train and test",
        )
    return Given(folds.astype(np.int64), None)


def _in_parts(words: Sequence[str], source: str) -> Given:
    parts = np.array([_PARTS[word] for word in words], dtype=np.str_)
    found = set(parts.tolist())
    if "train" not in found or len(found) == 1:
        raise UserError(
            "a split without two sides",
            where=source,
            got=", ".join(sorted(set(words))) or "no row",
            expected="rows to train on, and test rows or val rows",
        )
    return Given(None, parts)


def leaks(given: Given, groups: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return the rows whose like stands where a model that they judge has learnt.

    Args:
        given: N rows parted.
        groups: int (N,): rows with one number belong together.

    Returns:
        bool (N,). With folds: rows of groups that several folds share. With parts: holdout rows
        whose group has a row elsewhere, choose rows whose group has a train row.

    Example:
        >>> given = given_parts(["train", "test", "test"], "split")
        >>> leaks(given, np.array([0, 0, 1])).tolist()
        [False, True, False]
    """
    if given.folds is not None:
        seen = np.unique(np.stack([groups, given.folds], axis=1), axis=0)[:, 0]
        shared, count = np.unique(seen, return_counts=True)
        return np.isin(groups, shared[count > 1])
    holdout, train = given.parts == "holdout", given.parts == "train"
    like_train, like_either = (np.isin(groups, groups[rows]) for rows in (train, ~holdout))
    found: NDArray[np.bool_] = np.where(holdout, like_either, like_train & ~train)
    return found


def read_split(path: Path, images: Sequence[str]) -> list[str]:
    """Read a split file: CSV with a column image and a column split or fold.

    Args:
        path: The file; a run's own ``splits.csv`` is one. Other rows and columns do not matter.
        images: N names.

    Returns:
        N texts, for `given_parts`.

    Raises:
        UserError: There is no such file or column; an image is missing, or stands there twice
            with different texts.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "mine.csv"
        ...     _ = path.write_text("image,split\\na.jpg,train\\nb.jpg,test\\n")
        ...     read_split(path, ["b.jpg", "a.jpg"])
        ['test', 'train']
    """
    source = str(path)
    try:
        text = decode(path.read_bytes(), source)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError("this split cannot be read", where=source, got=reason) from None
    reader = csv.DictReader(text.splitlines())
    header = list(reader.fieldnames or ())
    column = next((name for name in ("split", "fold") if name in header), None)
    if column is None or "image" not in header:
        raise UserError(
            "not a split",
            where=source,
            got=f"the columns {', '.join(header)}" if header else "an empty file",
            expected="a column image and a column split or fold",
        )
    found: dict[str, str] = {}
    for row in reader:
        where = place(source, reader.line_num)
        name, part = clean_name(row["image"] or "", where), (row[column] or "").strip()
        if found.setdefault(name, part) != part:
            got = f"{part!r} and {found[name]!r}"
            raise UserError(f"{name} stands in two parts", where=where, got=got)
    missing = [name for name in images if name not in found]
    if missing:
        others = more(len(missing) - 1, "image")
        raise UserError(f"{missing[0]} has no row in this split{others}", where=source)
    return [found[name] for name in images]
