"""What the checks look at: made once, from a table, its pictures and perhaps a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from polytag.calibration import cross_fitted
from polytag.config import Recipe, load_recipe
from polytag.devices import resolve_device
from polytag.errors import TableError, UserError, did_you_mean
from polytag.features import make_extractor, rows_with_features
from polytag.frozen import freeze_backbone
from polytag.groups import by_column, identical, joined
from polytag.images import decode
from polytag.kept import Kept, read_run
from polytag.learnability import Learnability, judge_learnability
from polytag.metrics import roc_auc
from polytag.parting import group_rows
from polytag.pictures import Rows, locate
from polytag.pipeline import stream
from polytag.probe import fit_probe, fits
from polytag.progress import progress
from polytag.splits import stratified_folds
from polytag.suspects import conflicting
from polytag.table import LabelTable

Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]

# A model of "is known" must rank this well before it says which cells somebody could answer.
ANSWERABLE_AUC = 0.6
# Of known and of unknown cells, to fit such a model at all.
_MODELLED = 20


@dataclass(frozen=True)
class FileFacts:
    """What is cheap to see of a file, without looking at what its picture shows.

    Attributes:
        bytes: Size of the file.
        width: In pixels, as the picture stands upright.
        height: In pixels.
        format: As its first bytes say, in capitals.
        border: Mean red, green and blue of the outermost 3 %, 0 to 255.
        spread: Standard deviation of its pixels, 0 to 128; near 0: one flat colour.
    """

    bytes: int
    width: int
    height: int
    format: str
    border: tuple[float, float, float]
    spread: float


@dataclass(frozen=True, eq=False)
class Material:
    """Everything the checks know, of N usable rows and K attributes.

    Attributes:
        table: The whole table, rows without a usable picture too.
        rows: The N usable rows; ``rows.table`` is their part of the table.
        features: float32 (N, D) of the plain pictures.
        identical: int64 (N,): rows with one number have byte-identical pictures.
        similar: int64 (N,): rows with one number have identical pictures, or nearly.
        probabilities: float64 (N, K), out of fold and calibrated; NaN where there is none.
        verdicts: K, whether the pictures carry the attribute.
        hole_verdicts: K, whether the pictures carry what is not known of it.
        answerable: float64 (N, K): the probability, out of fold, that a cell could be answered;
            NaN columns: holes look like chance.
        facts: N.
        split: The column of ``table.extra`` that holds the user's own split, or None.
    """

    table: LabelTable
    rows: Rows
    features: NDArray[np.float32]
    identical: Ints
    similar: Ints
    probabilities: Doubles
    verdicts: list[Learnability]
    hole_verdicts: list[Learnability]
    answerable: Doubles
    facts: list[FileFacts]
    split: str | None = None

    @property
    def values(self) -> NDArray[np.float32]:
        """float32 (N, K) of the usable rows."""
        return self.rows.table.values

    @property
    def attributes(self) -> tuple[str, ...]:
        """The K names."""
        return self.table.attributes

    @property
    def names(self) -> tuple[str, ...]:
        """The N names of usable pictures."""
        return self.rows.table.images

    @property
    def conflicts(self) -> NDArray[np.bool_]:
        """bool (N, K): known cells whose byte-identical twin says the opposite."""
        return conflicting(self.values, self.identical)

    def representatives(self) -> Ints:
        """Return the first row of every group of identical pictures."""
        return np.unique(self.identical, return_index=True)[1].astype(np.int64)


def gather(
    table: LabelTable,
    images: Path,
    run: Path | None = None,
    split: str | None = None,
    group_by: str | None = None,
) -> Material:
    """Make what the checks need: features, out-of-fold probabilities, facts about the files.

    Args:
        table: The labels.
        images: The folder of pictures.
        run: A run folder whose out-of-fold probabilities are taken, and whose recipe says how
            features are computed and which rows belong together; None: the default probe's are
            made.
        split: A column of the table that holds the user's own split.
        group_by: A column of the table: rows with one text belong together, as identical and
            similar pictures do. None: the run's own, if the table has it.

    Raises:
        UserError: No such folder, column or run, or a run of other attributes.
    """
    for option, column in (("--split", split), ("--group-by", group_by)):
        if column is not None and column not in table.extra:
            _refuse_column(table, column, option)
    located = locate(table, images)
    kept = None if run is None else read_run(run)
    if kept is not None:
        _refuse_other_attributes(kept, table)
        own = kept.recipe.split.group_by
        group_by = group_by or (own if own in table.extra else None)
    recipe = _here(load_recipe("probe") if kept is None else kept.recipe)
    frozen = freeze_backbone(recipe.backbone, recipe.preprocess, recipe.features, recipe.seed)
    extractor = make_extractor(frozen, recipe.features, recipe.device)
    rows, features = rows_with_features(table, *located, extractor)
    plain, same = features[:, 0], identical(rows.hashes)
    alike, groups, _ = group_rows(rows, features, group_by or "")
    if kept is not None:
        groups = joined(groups, _groups_of_run(kept, rows))
    fitter = _Fitter(features, groups, recipe)
    verdicts = judge_learnability(plain, rows.table.values, groups)
    hole_verdicts, answerable = _holes(fitter, rows.table.values)
    made = fitter.probabilities(rows.table.values) if kept is None else _of_run(kept, rows)
    return Material(
        table=table,
        rows=rows,
        features=plain,
        identical=same,
        similar=alike,
        probabilities=made,
        verdicts=verdicts,
        hole_verdicts=hole_verdicts,
        answerable=answerable,
        facts=_file_facts(rows),
        split=split,
    )


def _refuse_column(table: LabelTable, column: str, option: str) -> NoReturn:
    fix = did_you_mean(column, table.extra) if table.extra else "the table has no other columns"
    raise TableError(f"no such column for {option}", where=table.source, got=column, fix=fix)


def _refuse_other_attributes(kept: Kept, table: LabelTable) -> None:
    if not set(kept.attributes) & set(table.attributes):
        raise UserError(
            "the run and the table share no attribute",
            where=str(kept.run),
            got=", ".join(table.attributes[:8]),
            expected=", ".join(kept.attributes[:8]),
            fix="name the table's columns by --attributes, or leave out --run",
        )


def _here(recipe: Recipe) -> Recipe:
    """Return a recipe whose features are computed as this machine can."""
    return recipe.replace({"device": resolve_device("auto"), "features.engine": "auto"})


class _Fitter:
    """Fits the probe on any cells of the same pictures, and predicts each by a model of others."""

    def __init__(self, features: NDArray[np.float32], groups: Ints, recipe: Recipe) -> None:
        self.features, self.groups, self.recipe = features, groups, recipe

    def probabilities(self, values: NDArray[np.float32]) -> Doubles:
        """Return float64 (N, K), calibrated; NaN for attributes of one class."""
        found = np.full(values.shape, np.nan)
        folds_wanted = self.recipe.split.folds
        both = (values == 1).any(axis=0) & (values == 0).any(axis=0)
        if not both.any() or len(np.unique(self.groups)) < folds_wanted:
            return found
        cells = np.ascontiguousarray(values[:, both])
        folds = stratified_folds(cells, self.groups, folds=folds_wanted, seed=self.recipe.seed)
        with progress("probe", fits(folds_wanted), "fits") as advance:
            fit = fit_probe(self.features, cells, folds, self.recipe.probe, advance)
        found[:, both] = cross_fitted(fit.logits, cells, folds)
        return found


def _holes(fitter: _Fitter, values: NDArray[np.float32]) -> tuple[list[Learnability], Doubles]:
    """Say which attributes' holes the pictures tell, and model these: P(known | picture)."""
    known = (~np.isnan(values)).astype(np.float32)
    enough = np.minimum(known.sum(axis=0), (1 - known).sum(axis=0)) >= _MODELLED
    # Attributes whose holes are the same cells (all colours, say) are one question.
    masks, which = np.unique(known[:, enough], axis=1, return_inverse=True)
    column = np.full(values.shape[1], -1)
    column[enough] = which
    judged = judge_learnability(fitter.features[:, 0], masks, fitter.groups)
    told = [k for k, one in enumerate(judged) if one.verdict.startswith("learnable")]
    modelled = np.full(masks.shape, np.nan)
    if told:
        modelled[:, told] = fitter.probabilities(masks[:, told])
        auc = roc_auc(masks, np.where(np.isnan(modelled), 0.5, modelled))
        modelled[:, ~(auc >= ANSWERABLE_AUC)] = np.nan
    few = Learnability("too few to tell", np.nan, np.nan, 0, 0)
    answerable = np.full(values.shape, np.nan)
    answerable[:, enough] = modelled[:, which]
    return [judged[k] if k >= 0 else few for k in column], answerable


def _groups_of_run(kept: Kept, rows: Rows) -> Ints:
    """Return int64 (N,): the run's groups; a row that the run did not have is one of its own."""
    keys = zip(kept.table.images, kept.hashes, strict=True)
    group_of = dict(zip(keys, kept.groups.tolist(), strict=True))
    mine = zip(rows.table.images, rows.hashes, strict=True)
    return by_column([str(group_of.get(key, "")) for key in mine])


def _of_run(kept: Kept, rows: Rows) -> Doubles:
    """Return what a run predicted of its judged pictures; NaN of others, and of other content."""
    row_of = {key: row for row, key in enumerate(zip(rows.table.images, rows.hashes, strict=True))}
    shared = [name for name in kept.attributes if name in rows.table.attributes]
    theirs, mine = (
        [names.index(name) for name in shared] for names in (kept.attributes, rows.table.attributes)
    )
    found = np.full(rows.table.values.shape, np.nan)
    for key, cells in zip(
        zip(kept.table.images, kept.hashes, strict=True), kept.calibrated.probabilities, strict=True
    ):
        if key in row_of:
            found[row_of[key], mine] = cells[theirs]
    if np.isnan(found).all():
        raise UserError("the run judged no picture of this table", where=str(kept.run))
    return found


def _file_facts(rows: Rows) -> list[FileFacts]:
    found: list[FileFacts] = []
    with progress("files", len(rows.paths), "pictures") as advance:
        for _, facts in stream(rows.paths, file_facts):
            if isinstance(facts, UserError):  # usable a moment ago, when features were made
                raise facts
            found.append(facts)
            advance(1)
    return found


def file_facts(path: Path) -> FileFacts:
    """Look at one file.

    Raises:
        ImageError: It is no usable picture.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "grey.png")
        ...     Image.new("RGB", (40, 30), (90, 90, 90)).save(path)
        ...     facts = file_facts(path)
        ...     facts.width, facts.height, facts.format, facts.border, facts.spread
        (40, 30, 'PNG', (90.0, 90.0, 90.0), 0.0)
    """
    pixels = decode(path)
    height, width = pixels.shape[:2]
    edge = max(1, round(0.03 * min(height, width)))
    frame = np.ones((height, width), dtype=bool)
    frame[edge : height - edge, edge : width - edge] = False
    red, green, blue = pixels[frame].mean(axis=0).tolist()
    with Image.open(path) as image:  # decoded above, so it is safe to ask
        kind = (image.format or "").upper()
    return FileFacts(
        bytes=path.stat().st_size,
        width=width,
        height=height,
        format="JPEG" if kind == "MPO" else kind,
        border=(red, green, blue),
        spread=float(pixels[::4, ::4].std()),
    )
