"""What a rewritten model file costs, measured beside the float file that it was made of.

It is measured on rows that chose no weight (of a probe, the ranges of activations are read off some
of them, without their labels):

* A model that held rows out: both files answer these.
* A probe is judged out of fold and kept as a refit on all rows, so the kept head has seen every
  row. Its backbone has seen none: the head of each fold is fitted once more on the float features,
  with the penalty recorded for that fold, and answers the fold's rows from the features of both
  files. That is what using the file does: a head fitted to float features gets INT8's.
* Else there is no such row (an imported network, a fine-tuning that held nothing out, or one in
  folds, whose kept model saw all rows): probabilities are compared, and no AP is told.

A file is refused if macro AP falls by more than .005; or if an attribute's does for certain: on
the same resamples of groups as in `polytag compare`, the fall is held against Student's
distribution, one-sided, p adjusted by Holm's rule over the attributes, below .05. A fall of an
attribute that its labels are too few to tell from chance does not refuse. It is also refused where
more than 5 % of the decisions change: something is broken then that APs need not show, as those of
a probe's folds never see the kept head.
"""

from __future__ import annotations

import logging
import math
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from polytag.calibration import Calibration
from polytag.compare import Difference, Said, differences
from polytag.decide import Basis, Calibrated
from polytag.engine import Run, open_engine
from polytag.errors import ImageError, ModelError, UserError, printable
from polytag.images import content_hash, decode_reduced, find_images
from polytag.intervals import CONFIDENCE, holm
from polytag.kept import Kept, read_run
from polytag.logistic import PathSolver
from polytag.pictures import locate
from polytag.pipeline import batches, stream
from polytag.predictions import Predictions
from polytag.predictor import Predictor
from polytag.preprocess import picture
from polytag.progress import progress

log = logging.getLogger("polytag")
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]
Pixels = NDArray[np.uint8]

MARGIN = 0.005  # of AP: what may be lost
MOST_CHANGED = 0.05  # of decisions: .8 % changed where INT8 cost no AP
_MOST_JUDGED = 5000  # pictures: their difference of APs is known to far below MARGIN
_MISSING = 0.1  # share of a run's pictures that may be missing
_BATCH = 32
_PAIRS = 7  # of timed runs


@dataclass(frozen=True)
class Change:
    """An average precision from the float file to the INT8 file, on the same pictures.

    Attributes:
        attribute: Its name; None: the mean over attributes.
        plain: AP of the float file.
        int8: AP of the INT8 file.
        low: Lower end of the 95 % interval of the difference; NaN where there is none.
        high: Its upper end.
        p_fall: That AP falls by no more than .005, adjusted; NaN for the mean, and without test.
    """

    attribute: str | None
    plain: float
    int8: float
    low: float
    high: float
    p_fall: float

    @property
    def difference(self) -> float:
        """INT8's less the float file's."""
        return self.int8 - self.plain

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        tree = asdict(self) | {"difference": self.difference}
        return {key: None if value != value else value for key, value in tree.items()}  # NaN


@dataclass(frozen=True, eq=False)
class Pictures:
    """What is answered by both models.

    Attributes:
        kept: What the run knows; None: no labels.
        rows: Of ``kept``, those of ``paths``; as many.
        paths: N files.
        calibrate: Files to read ranges off.
        judged_on: What AP is measured on, in words; empty: no AP is.
        folds: Whether these rows are judged out of fold.
    """

    kept: Kept | None
    rows: Ints
    paths: list[Path]
    calibrate: list[Path]
    judged_on: str
    folds: bool = False


def find_pictures(folder: Path, images: str | os.PathLike[str] | None) -> Pictures:
    """Return the pictures of a run, or those of a folder where the run knows of none.

    Args:
        folder: The run's.
        images: The folder of pictures; None: where the run found them.

    Raises:
        UserError: They cannot be found, or are not those that the run knows.

    Example:
        >>> find_pictures(Path("nowhere"), None)
        Traceback (most recent call last):
        polytag.errors.UserError: nowhere: this model comes without pictures; ...
    """
    if not (folder / "labels.parquet").is_file():
        if images is None:
            fix = "give a folder of pictures like those it is meant for by --images"
            raise UserError("this model comes without pictures", where=str(folder), fix=fix)
        found = find_images([os.fspath(images)])
        drawn = [found[i] for i in _drawn(np.arange(len(found)))]
        paths = [path for path, broken in stream(drawn, _broken) if broken is False]
        return Pictures(None, np.arange(len(paths)), paths, paths, "")
    kept = read_run(folder)
    source = Path(images or kept.recipe.data.images)
    paths, errors = locate(kept.table, source)
    for row in set(range(len(paths))) - set(errors):
        if content_hash(paths[row]) != kept.hashes[row]:
            errors[row] = ImageError("not the picture that the run knows", where=str(paths[row]))
    if len(errors) > _MISSING * len(paths):
        raise UserError(
            f"{len(errors)} of the run's {len(paths)} pictures cannot be used",
            where=str(source),
            got=str(errors[min(errors)]),
            fix="say by --images where they are",
        )
    there = np.array([row not in errors for row in range(len(paths))])
    held_out = np.array(kept.parts) == "holdout"
    rows, words, folds = there & held_out & kept.calibrated.judged, "", False
    if rows.any():
        words = "pictures that were held out to judge the model"
    elif kept.recipe.method == "probe" and not held_out.any():
        rows, folds = there, True
        words = "all pictures, each by a head that had not seen its fold"
    else:
        rows = there
    some = _drawn(np.flatnonzero(rows))
    calibrate = [paths[row] for row in np.flatnonzero(there & ~held_out)]
    return Pictures(kept, some, [paths[row] for row in some], calibrate, words, folds)


def _broken(path: Path) -> bool:
    try:
        decode_reduced(path, 1)
    except ImageError as error:
        log.warning("left out: %s", error)
        return True
    return False


def _drawn(rows: Ints) -> Ints:
    """Return at most so many rows as are needed, by chance, in their order."""
    return np.sort(np.random.default_rng(1).permutation(rows)[:_MOST_JUDGED])


def prepared(paths: Sequence[Path], predictor: Predictor) -> Iterator[Pixels]:
    """Yield preprocessed pictures, uint8 (B, S, S, 3), all that were asked for.

    Raises:
        ImageError: One cannot be decoded.

    Example:
        Not run: it needs a trained run; the tests train one.

        >>> next(prepared(["photo.jpg"], load("runs/latest"))).shape  # doctest: +SKIP
        (1, 224, 224, 3)
    """
    spec = predictor.info.preprocess
    for batch in batches(stream(paths, lambda path: picture(path, spec)), _BATCH):
        for _, error in batch.failed:
            raise error
        yield batch.images


def measure(
    predictor: Predictor, draft: Path, pictures: Pictures
) -> tuple[list[Change], dict[str, Any]]:
    """Let both files answer.

    Args:
        predictor: The float file.
        draft: The other one; it needs no metadata.
        pictures: What they answer.

    Returns:
        How macro AP changes, then each attribute's AP, or nothing; and all that is told, as JSON
        can hold it.

    Raises:
        ModelError: The other file answers NaN.

    Example:
        Not run: it needs a trained run; the tests train one.

        >>> measure(predictor, Path("model.int8.onnx"), pictures)  # doctest: +SKIP
    """
    outputs = ["probabilities", "embedding"]
    runs = [open_engine("onnxruntime", path, outputs) for path in (predictor.path, draft)]
    kept, info = pictures.kept, predictor.info
    mirror = pictures.folds and kept is not None and kept.recipe.features.flip
    answers: list[list[Floats]] = []
    with progress("comparing", len(pictures.paths), "pictures") as advance:
        for batch in prepared(pictures.paths, predictor):
            answers.append([*runs[0](batch), *runs[1](batch)])
            if mirror:
                answers[-1].append(runs[0](np.ascontiguousarray(batch[:, :, ::-1]))[1])
            advance(len(batch))
    p, x, p8, x8, *mirrored = map(np.concatenate, zip(*answers, strict=True))
    if not (np.isfinite(p8).all() and np.isfinite(x8).all()):
        raise ModelError("quantised, this network gives no numbers", where=str(predictor.path))
    changes: list[Change] = []
    if kept is not None and pictures.judged_on:
        sides = p.astype(np.float64), p8.astype(np.float64)
        if pictures.folds:
            sides = _out_of_fold(kept, pictures.rows, np.stack([x, *mirrored], axis=1), x8)
        changes = _changes(kept, pictures.rows, sides)
    names, thresholds = tuple(map(str, pictures.paths)), np.array(info.thresholds)
    said = Predictions(names, info.attributes, p, thresholds, (None,) * len(p), info.cuts)
    changed = said.decisions != replace(said, probabilities=p8).decisions
    away = np.abs(p8 - p)
    size = info.preprocess.size
    blank = np.zeros((_BATCH, size, size, 3), np.uint8)  # how long it takes is not in the pixels
    return changes, {
        "pictures": len(p),
        "judged_on": pictures.judged_on or None,
        "ap": [change.to_dict() for change in changes],
        "probabilities": {"mean_change": float(away.mean()), "largest_change": float(away.max())},
        "decisions_changed": float(changed.mean()),
        "speed": {f"batch_{count}": _speed(runs, blank[:count]) for count in (_BATCH, 1)},
        "bytes": {"float": predictor.path.stat().st_size, "int8": draft.stat().st_size},
    }


def _speed(runs: Sequence[Run], images: Pixels) -> dict[str, float]:
    """Return the median seconds of both, run in turn, and how many times faster INT8 is."""
    seconds: list[list[float]] = [[], []]
    for _ in range(_PAIRS):
        for run, taken in zip(runs, seconds, strict=True):
            start = time.perf_counter()
            run(images)
            taken.append(time.perf_counter() - start)
    plain, int8 = map(statistics.median, seconds)
    return {"float": plain, "int8": int8, "ratio": plain / int8}


def _out_of_fold(
    kept: Kept, rows: Ints, features: Floats, features8: Floats
) -> tuple[Doubles, Doubles]:
    """Return what judged rows (n, K) are ranked by, by heads of their folds, for both files.

    Args:
        kept: The run.
        rows: Of it, n.
        features: float32 (n, V, D), by which heads are fitted: the plain view first.
        features8: float32 (n, D), by the INT8 file.
    """
    values, folds = kept.values[rows], np.array([int(kept.parts[row]) for row in rows])
    solver = PathSolver(features, values, kept.recipe.probe)
    logits = np.full((2, *values.shape), np.nan)
    for fold, l2 in enumerate(kept.metrics["l2_of_fold"]):
        judges = folds == fold
        weight, bias = next(solver.path((l2,), ~judges))
        for side, x in enumerate((features[:, 0], features8)):
            logits[side, judges] = x[judges] @ weight + bias
    bases = [Basis(logits[0], folds == fold) for fold in np.unique(folds)]
    nothing = Calibration.identity(values.shape[1])
    probabilities = nothing.probabilities(logits[0]), nothing.probabilities(logits[1])
    first, second = (Calibrated(each, bases, None, nothing).ranking for each in probabilities)
    return first, second


def _changes(kept: Kept, rows: Ints, sides: tuple[Doubles, Doubles]) -> list[Change]:
    """Return the change of macro AP, then of each attribute's."""
    values, groups = kept.values[rows].astype(np.float64), kept.groups[rows]
    plain, int8 = (Said("", side, side >= 0.5) for side in sides)
    found = differences(kept.attributes, values, plain, [int8], groups)
    macro, *each = (d for d in found if d.metric == "ap")
    p_values = [_p_of_fall(d, values[:, k], groups) for k, d in enumerate(each)]
    adjusted = [math.nan, *holm(p_values).tolist()]
    return [
        Change(d.attribute, d.reference, d.value, d.low, d.high, p)
        for d, p in zip((macro, *each), adjusted, strict=True)
    ]


def _p_of_fall(d: Difference, values: Doubles, groups: Ints) -> float:
    """Return how likely such a fall is, or a deeper one, if AP falls by MARGIN; NaN: no test."""
    if math.isnan(d.high):
        return math.nan
    freedom = min(len(np.unique(groups[values == kind])) for kind in (0, 1)) - 1
    deviation = (d.high - d.difference) / float(stdtrit(freedom, (1 + CONFIDENCE) / 2))
    if not deviation > 0:
        return float(d.difference >= -MARGIN)
    return float(stdtr(freedom, (d.difference + MARGIN) / deviation))


def refusals(changes: Sequence[Change], decisions_changed: float) -> list[str]:
    """Return why a file must not be used; see the top of this module.

    Args:
        changes: As `measure` gives them.
        decisions_changed: Share of all decisions.

    Example:
        >>> refusals([Change(None, 0.71, 0.70, -0.02, 0.0, math.nan)], 0.01)
        ['macro AP falls by 0.010, 0.005 at most']
        >>> refusals([], 0.2)
        ['20.0% of the decisions change, 5% at most']
    """
    found = []
    if decisions_changed > MOST_CHANGED:
        found += [f"{decisions_changed:.1%} of the decisions change, {MOST_CHANGED:.0%} at most"]
    if not changes:
        return found
    macro, *each = changes
    if macro.difference < -MARGIN:
        found += [f"macro AP falls by {-macro.difference:.3f}, {MARGIN} at most"]
    worse = (change for change in each if change.p_fall < 1 - CONFIDENCE)
    return found + [
        f"AP of {printable(str(change.attribute))} falls by {-change.difference:.3f}, for certain "
        f"by more than {MARGIN} (p = {change.p_fall:.2g})"
        for change in worse
    ]
