"""Runs side by side: right differences on the rows they share, and no claim without evidence."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score
from tests.delong import delong_test

import polytag.cli.judging  # noqa: F401  (its verbs)
from polytag.calibration import Calibration
from polytag.compare import Comparison, Difference, Said, compare, differences
from polytag.compare.text import text
from polytag.config import Recipe
from polytag.decide import Calibrated
from polytag.errors import ModelError, UserError
from polytag.intervals import holm
from polytag.table import LabelTable

NA = float("nan")
NAMES = ("red", "striped", "hat")


# ------------------------------------------------------------------------------------ drawn runs


def drawn(rows: int = 120, holes: float = 0.2, seed: int = 0) -> LabelTable:
    rng = np.random.default_rng(seed)
    values = (rng.random((rows, 3)) < [0.5, 0.3, 0.2]).astype(float)
    values[rng.random(values.shape) < holes] = NA
    return LabelTable(tuple(f"{i}.jpg" for i in range(rows)), NAMES, values)


def scores(table: LabelTable, noise: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    right = np.where(np.isnan(table.values), 0.5, table.values)
    return expit(4 * (right - 0.5) + rng.normal(0, noise, right.shape))


class Runs:
    """Run folders of which only what comparing reads is there; one is trained for real below."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kept: dict[Path, SimpleNamespace] = {}

    def read(self, run: Path) -> SimpleNamespace:
        return self.kept[run]

    def __call__(
        self,
        name: str,
        table: LabelTable,
        probabilities: np.ndarray,
        *,
        names: tuple[str, ...] = NAMES,
        judged: slice = slice(None),
        groups: np.ndarray | None = None,
        hashes: list[str] | None = None,
        thresholds: float = 0.5,
        recipe: dict[str, object] | None = None,
        **metrics: object,
    ) -> Path:
        path = self.folder / name
        path.mkdir(parents=True)
        (path / "metrics.json").write_text("{}")
        columns = [table.attributes.index(attribute) for attribute in names]
        said = np.full((len(table), len(names)), NA)
        said[judged] = probabilities[judged][:, columns]
        self.kept[path.resolve()] = SimpleNamespace(
            run=path,
            recipe=Recipe().replace(recipe or {}),
            metrics={"seconds": 2.5} | metrics,
            table=table,
            attributes=names,
            values=table.values[:, columns],
            hashes=hashes or [f"content of {image}" for image in table.images],
            groups=np.arange(len(table)) if groups is None else groups,
            thresholds=np.where(np.isnan(said), NA, thresholds),
            calibrated=Calibrated(said, [], None, Calibration.identity(len(names))),
        )
        return path


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Runs:
    """Make a run folder: ``folder("a", table, probabilities)``."""
    runs = Runs(tmp_path)
    monkeypatch.setattr("polytag.compare.reading.read_run", runs.read)
    return runs


def found(comparison: Comparison, metric: str, attribute: str | None = None) -> Difference:
    (one,) = [d for d in comparison.differences if (d.metric, d.attribute) == (metric, attribute)]
    return one


# ------------------------------------------------------------------------------------------ numbers


def test_the_numbers_are_those_of_the_known_common_cells(folder):
    table = drawn()
    one, two = scores(table, 1, 1), scores(table, 3, 2)
    a = folder("a", table, one, judged=slice(0, 100))
    b = folder("b", table, two, judged=slice(20, 120), thresholds=0.3)
    comparison = compare([a, b])
    assert comparison.rows == comparison.groups == 80 and comparison.attributes == NAMES
    rows = slice(20, 100)
    f1 = []
    for k, name in enumerate(NAMES):
        known = ~np.isnan(table.values[rows, k])
        truth = table.values[rows, k][known]
        sides = one[rows, k][known], two[rows, k][known]
        ap = [average_precision_score(truth, p) for p in sides]
        auc = [roc_auc_score(truth, p) for p in sides]
        f1.append([f1_score(truth, p >= t) for p, t in zip(sides, (0.5, 0.3), strict=True)])
        for metric, (there, here) in (("ap", ap), ("auc", auc)):
            d = found(comparison, metric, name)
            assert (d.reference, d.value) == (pytest.approx(there), pytest.approx(here))
            assert d.low < d.difference < d.high
            assert d.difference == pytest.approx(here - there)
        assert comparison.experiments[1].attributes[name]["f1"] == pytest.approx(f1[-1][1])
    macro = found(comparison, "f1")
    assert [macro.reference, macro.value] == pytest.approx(np.mean(f1, axis=0).tolist())
    assert comparison.experiments[0].macro["ap"] == found(comparison, "ap").reference
    assert [e.judged for e in comparison.experiments] == [100, 100]


def test_equal_predictions_differ_by_nothing(folder):
    table = drawn()
    same = scores(table, 2, 1)
    comparison = compare([folder("a", table, same), folder("b", table, same.copy())])
    for d in comparison.differences:
        assert d.difference == d.low == d.high == 0 and d.p_value == d.p_holm == 1
        assert d.words == "no evidence of a difference"


def test_exchanging_the_runs_changes_signs_and_nothing_else(folder):
    table = drawn()
    a, b = folder("a", table, scores(table, 1, 1)), folder("b", table, scores(table, 3, 2))
    for one, other in zip(compare([a, b]).differences, compare([b, a]).differences, strict=True):
        assert one.difference == pytest.approx(-other.difference)
        assert (one.low, one.high) == (pytest.approx(-other.high), pytest.approx(-other.low))
        assert one.p_value == pytest.approx(other.p_value)
        assert {one.words, other.words} in (
            {"better", "worse"},
            {"no evidence of a difference"},
        )


def test_p_values_are_adjusted_over_everything_of_a_kind(folder):
    table = drawn()
    runs = [folder(str(noise), table, scores(table, noise, noise)) for noise in (1, 2, 3)]
    comparison = compare(runs)
    assert [d.run for d in comparison.differences[::8]] == ["2", "3"]
    for metric, macro in (("ap", False), ("auc", False), (None, True)):
        kind = [
            d
            for d in comparison.differences
            if (d.attribute is None) == macro and (macro or d.metric == metric)
        ]
        assert len(kind) == (4 if macro else 6)
        adjusted = holm([d.p_value for d in kind]).tolist()
        assert [d.p_holm for d in kind] == adjusted
        assert any(d.p_holm > d.p_value for d in kind)


def test_the_interval_of_an_auc_is_delongs_within_a_few_percent():
    table = drawn(600, 0.1)
    one, two = scores(table, 2, 1), scores(table, 3, 2)
    sides = [Said(run, p, p > 0.5) for run, p in (("a", one), ("b", two))]
    got = differences(NAMES, table.values.astype(float), sides[0], sides[1:], np.arange(600))
    for k, d in enumerate([d for d in got if d.metric == "auc"]):
        exact = delong_test(table.values[:, k], two[:, k], one[:, k])
        assert d.difference == pytest.approx(exact.value)
        assert d.high - d.low == pytest.approx(exact.high - exact.low, rel=0.12)
        assert d.p_value == pytest.approx(exact.p_value, abs=0.03)


def test_rows_of_a_group_say_less_than_rows_of_their_own():
    """Four copies of every picture are no evidence more than one."""
    table = drawn(100, 0.1)
    one, two = scores(table, 2, 1), scores(table, 2.5, 2)
    widths = {}
    for key, times, groups in (
        ("once", 1, np.arange(100)),
        ("copies", 4, np.repeat(np.arange(100), 4)),
        ("taken for different", 4, np.arange(400)),
    ):
        values, *sides = (np.repeat(x, times, axis=0) for x in (table.values, one, two))
        a, b = (Said(run, p, p > 0.5) for run, p in zip("ab", sides, strict=True))
        got = differences(NAMES, values.astype(float), a, [b], groups)
        widths[key] = np.array([d.high - d.low for d in got])
    np.testing.assert_allclose(widths["copies"], widths["once"], rtol=0.25)
    assert (widths["taken for different"] < 0.7 * widths["copies"]).all()


@given(seed=st.integers(0, 99), under=st.floats(0, 1))
@settings(max_examples=10, deadline=None)
def test_what_was_said_about_an_unknown_cell_changes_nothing(seed, under):
    table = drawn(40, 0.4, seed)
    values = table.values.astype(float)
    one, two = scores(table, 2, 1), scores(table, 2, 2)
    a, b, c = (Said("x", p, p > 0.5) for p in (one, two, np.where(np.isnan(values), under, two)))
    plain, other = (differences(NAMES, values, a, [said], np.arange(40)) for said in (b, c))
    assert repr(plain) == repr(other)


@pytest.mark.parametrize(
    ("column", "reason"),
    [
        ([NA] * 40, "not of both classes"),
        ([1.0] * 40, "not of both classes"),
        ([1.0] + [0.0] * 39, "a single group"),
    ],
)
def test_an_attribute_that_cannot_be_tested_says_why_and_leaves_the_others(column, reason):
    table = drawn(40, 0)
    values = table.values.astype(float)
    one, two = scores(table, 1, 1), scores(table, 3, 2)
    a, b = (Said(run, p, p > 0.5) for run, p in (("a", one), ("b", two)))
    full = differences(NAMES[:2], values[:, :2], *_cut(a, [b], 2), np.arange(40))
    values[:, 2] = column
    got = differences(NAMES, values, a, [b], np.arange(40))
    (hat,) = [d for d in got if d.metric == "ap" and d.attribute == "hat"]
    assert reason in hat.reason and np.isnan(hat.p_holm)
    assert hat.words == "no evidence of a difference"
    for name in NAMES[:2]:
        (before,), (after,) = (
            [d for d in side if d.metric == "ap" and d.attribute == name] for side in (full, got)
        )
        assert before == after
    if np.isnan(hat.difference):  # the mean is then over the other two
        assert got[0].difference == full[0].difference and got[0].p_holm == full[0].p_holm


def _cut(reference: Said, others: list[Said], count: int) -> tuple[Said, list[Said]]:
    cut = [
        Said(s.run, s.probabilities[:, :count], s.present[:, :count]) for s in (reference, *others)
    ]
    return cut[0], cut[1:]


# ---------------------------------------------------------------------------------------- evidence


def pair(rng: np.random.Generator, gain: float, present: int = 30) -> list[Difference]:
    """Two models on 160 pictures and 3 attributes: the second finds what it finds by gain more."""
    values = np.zeros((160, 3))
    for k in range(3):
        values[rng.permutation(160)[:present], k] = 1
    shared = rng.normal(size=values.shape)
    sides = [
        1.5 * values + g * values + 0.8 * shared + 0.6 * rng.normal(size=values.shape)
        for g in (0, gain)
    ]
    a, b = (Said(run, expit(z), z > 1) for run, z in zip("ab", sides, strict=True))
    return differences(NAMES, values, a, [b], np.arange(160))


def test_of_equal_models_hardly_one_is_called_better_and_a_better_one_is_found():
    rng = np.random.default_rng(4)
    claims = np.zeros(3)
    for _ in range(40):
        got = pair(rng, 0)
        words = [d.words != "no evidence of a difference" for d in got]
        claims += any(words[:2]), any(words[2:5]), any(words[5:])
    # 40 times .05 is 2; more than 5 happen to a true 5 % in less than 2 of 100 such tests.
    assert (claims <= 5).all(), claims
    better = [pair(rng, 2.0) for _ in range(3)]
    assert all(d.words == "better" for got in better for d in got if d.metric != "f1")


# ------------------------------------------------------------------------------------ common ground


def test_rows_are_matched_by_name_and_content(folder):
    table = drawn(60)
    a = folder("a", table, scores(table, 1, 1))
    turned = table.select(np.arange(60)[::-1])
    contents = [f"content of {image}" for image in turned.images]
    contents[:10] = [f"other {i}" for i in range(10)]  # the last ten rows of a
    b = folder("b", turned, scores(table, 2, 2)[::-1], hashes=contents)
    comparison = compare([a, b])
    assert comparison.rows == 50
    c = folder("c", table.select(range(50)), scores(table, 2, 2)[:50])
    for got, right in zip(comparison.differences, compare([a, c]).differences, strict=True):
        assert got.difference == right.difference and got.p_holm == right.p_holm


def test_groups_of_any_run_hold_rows_together(folder):
    table = drawn(60)
    pairs = np.arange(60) // 2
    a = folder("a", table, scores(table, 1, 1))
    b = folder("b", table, scores(table, 2, 2), groups=pairs)
    assert compare([a, b]).groups == compare([b, a]).groups == 30


def test_attributes_of_all_runs_are_compared_and_the_others_named(folder):
    table = drawn(60)
    a = folder("a", table, scores(table, 1, 1), names=("red", "striped"))
    b = folder("b", table, scores(table, 2, 2), names=("striped", "hat"))
    comparison = compare([a, b])
    assert comparison.attributes == ("striped",) and comparison.left_out == ("red", "hat")
    assert "not answered by both runs: red, hat" in text(comparison)


def test_what_cannot_be_compared_is_refused(folder, tmp_path):
    table = drawn(40)
    said = scores(table, 1, 1)
    a = folder("a", table, said, judged=slice(0, 20))
    with pytest.raises(UserError, match="two runs or more"):
        compare([a])
    (tmp_path / "link").symlink_to(a)
    with pytest.raises(UserError, match="link: the same run twice"):
        compare([tmp_path / "link", a])
    with pytest.raises(ModelError, match=r"nowhere: no finished run; got no metrics.json"):
        compare([a, tmp_path / "nowhere"])
    with pytest.raises(ModelError, match="c: the run judged no picture"):
        compare([a, folder("c", table, said, judged=slice(0, 0))])
    with pytest.raises(UserError, match=r"no picture that all runs judged; got '0.jpg' in a"):
        compare([a, folder("d", table, said, judged=slice(20, 40))])
    with pytest.raises(UserError, match="no attribute that all runs answer; got 'red' in e"):
        compare(
            [folder("e", table, said, names=("red",)), folder("f", table, said, names=("hat",))]
        )


def test_labels_that_changed_are_refused_and_the_first_is_named(folder):
    table = drawn(40, holes=0)
    values = table.values.copy()
    values[3, 1], values[7, 0] = NA, 1 - values[7, 0]
    was = "present" if table.values[3, 1] else "absent"
    a = folder("a", table, scores(table, 1, 1))
    b = folder("b", LabelTable(table.images, NAMES, values), scores(table, 1, 1))
    message = (
        rf"3.jpg, striped: the labels changed .* in 2 of 120 cells; got {was} in a, not known in b"
    )
    with pytest.raises(UserError, match=message):
        compare([a, b])


# ----------------------------------------------------------------------------------- told to people


def test_the_table_says_what_differs_and_how_long_it_took(folder):
    table = drawn(60)
    a = folder("a", table, scores(table, 1, 1), recipe={"title": "x", "data.labels": "a.csv"})
    b = folder(
        "b",
        table,
        scores(table, 2, 2),
        recipe={"probe.l2": 3.0, "seed": 7},
        best_epoch="1 12",
        seconds=12.25,
    )
    comparison = compare([a, b])
    first, second = comparison.experiments
    assert first.differs == {} and second.differs == {"seed": (42, 7), "probe.l2": ("auto", 3.0)}
    assert (second.best_epoch, second.seconds, first.best_epoch) == ("1 12", 12.25, None)
    lines = text(comparison).splitlines()
    assert "    seed = 7 (not 42); probe.l2 = 3.0 (not 'auto')" in lines
    (line,) = [line for line in lines if line.startswith("b  ")]
    assert line.split() == [
        *("b", "probe", "1", "12"),
        f"{second.macro['ap']:.3f}"[1:],
        f"{second.macro['f1']:.3f}"[1:],
        "12.2",
    ]


def test_stages_differ_key_by_key(folder):
    table = drawn(60)
    plan = {"method": "finetune", "stages": [{"epochs": 3}, {"epochs": 4}]}
    a = folder("a", table, scores(table, 1, 1), recipe=plan)
    plan = {"method": "finetune", "stages": [{"epochs": 3}, {"epochs": 9}]}
    b = folder("b", table, scores(table, 2, 2), recipe=plan)
    assert compare([a, b]).experiments[1].differs == {"stages.1.epochs": (4, 9)}


def test_better_is_said_with_evidence_only(folder):
    table = drawn(300)
    good, poor, near = (scores(table, noise, seed) for noise, seed in ((1, 1), (6, 2), (1, 3)))
    runs = [folder(n, table, p) for n, p in (("good", good), ("poor", poor), ("near", near))]
    told = text(compare(runs))
    assert "poor against good: worse in macro AP and macro F1" in told
    assert "near against good: no evidence of a difference in macro AP and macro F1" in told
    assert ": better" not in told and "  better\n" not in told and "  worse\n" in told
    assert "good against poor: better in macro AP and macro F1" in text(compare(runs[1::-1]))


def test_text_fits_80_columns_whatever_names_are_long(folder):
    names = tuple(f"an attribute with a very long name, number {k}" for k in range(3))
    table = drawn(60)
    table = LabelTable(table.images, names, table.values)
    runs = [
        folder(
            "a run whose name nobody would want to type " + "z" * i,
            table,
            scores(table, i, i),
            names=names,
            recipe={"backbone.weights": "a/very/long/path/" * 8 + "weights.pth", "seed": i},
        )
        for i in (1, 2, 3)
    ]
    lines = text(compare(runs)).splitlines()
    assert max(map(len, lines)) < 80, max(lines, key=len)


def test_runs_of_one_name_are_told_apart_by_their_folders(folder):
    table = drawn(60)
    runs = [folder(f"{f}/probe-1", table, scores(table, 2, i)) for i, f in enumerate("xy")]
    assert [e.run for e in compare(runs).experiments] == list(map(str, runs))


def test_the_command_prints_text_or_json(cli, folder):
    table = drawn(60)
    table = LabelTable(table.images, NAMES, np.column_stack([table.values[:, :2], [NA] * 60]))
    a, b = (folder(n, table, scores(table, i, i)) for i, n in enumerate("ab", start=1))
    answer = cli("compare", a, b)
    assert answer.code == 0, answer.err
    assert answer.out.startswith("60 pictures judged by both runs, 3 attributes")
    told = cli("compare", a, b, "--json").json
    f1 = [f"{run['attributes']['red']['f1']:.3f}".removeprefix("0") for run in told["runs"]]
    assert f"(first, this): red {f1[0]} {f1[1]}; striped " in " ".join(answer.out.split())
    assert told["reference"] == "a" and told["rows"] == 60
    assert [run["run"] for run in told["runs"]] == ["a", "b"]
    macro = told["differences"][0]
    assert (macro["metric"], macro["attribute"]) == ("ap", None)
    assert macro["difference"] == macro["value"] - macro["reference"]
    (hat,) = [d for d in told["differences"] if d["attribute"] == "hat" and d["metric"] == "ap"]
    assert hat["p_holm"] is None and hat["reason"]
    alone = cli("compare", a)
    assert alone.code == 2 and "two runs" in alone.err


def test_two_trained_runs_are_compared(cli, run, train, tmp_path):
    other = train(tmp_path, {"probe.l2": 300.0}, name="second")
    comparison = compare([run, other])
    assert comparison.rows == 60 and comparison.groups == 59
    assert comparison.experiments[1].differs["probe.l2"] == ("auto", 300.0)
    own = {a["name"]: a["ap"]["value"] for a in run.metrics["attributes"]}
    for name, numbers in comparison.experiments[0].attributes.items():
        assert numbers["ap"] == pytest.approx(own[name])
    macro = comparison.experiments[0].macro
    assert macro["f1"] == pytest.approx(run.metrics["macro"]["f1"]["value"])
