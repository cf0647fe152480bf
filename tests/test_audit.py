"""Each check of the audit finds what was planted for it, and is silent on clean data."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polytag.audit import CHECKS, judge
from polytag.audit.annotate import annotate_next, choose, scores, wide_intervals
from polytag.audit.checks_files import missing, oddities, suspicious, unreadable
from polytag.audit.checks_holes import by_picture, by_source, together
from polytag.audit.checks_labels import constant, implied, learnability, rare, same, unlabelled
from polytag.audit.checks_pictures import (
    conflicting_labels,
    identical_pictures,
    leaks,
    similar_pictures,
)
from polytag.audit.finding import KINDS, SEVERITIES
from polytag.audit.label_errors import label_errors
from polytag.audit.material import FileFacts, Material
from polytag.audit.shortcuts import kind_test, number_test, shortcuts
from polytag.learnability import Learnability
from polytag.metrics import roc_auc
from polytag.pictures import Rows, Skipped
from polytag.suspects import rank_cells, suspected
from polytag.table import LabelTable

from .strategies import label_tables

N, K = 400, 3
NAMES = ("red", "bright", "striped")


def verdict(words="learnable: better than chance, p 0.001", p=0.001):
    return Learnability(words, p, p, 100, 100)


NO_EVIDENCE = verdict("no evidence that the pictures show it: not better than chance, p 0.7", 0.7)
TOO_FEW = verdict("too few to tell: 3 present of 200 known, about 22 would do", float("nan"))


def material(table, **changes) -> Material:
    """What a flawless gathering makes of a table: every picture another one, nothing to find."""
    rng = np.random.default_rng(7)
    count, width = table.values.shape
    facts = [
        FileFacts(
            int(rng.integers(20_000, 60_000)),
            int(rng.integers(300, 400)),
            int(rng.integers(300, 400)),
            "JPEG",
            tuple(rng.uniform(50, 200, 3).tolist()),
            40.0,
        )
        for _ in range(count)
    ]
    rows = Rows(
        table=table,
        paths=[Path("nowhere") / str(i) for i in range(count)],
        hashes=[str(i) for i in range(count)],
        looks=np.zeros((count, 8, 8, 3), np.uint8),
        skipped=[],
    )
    truth = np.where(np.isnan(table.values), 0.5, table.values)
    made = Material(
        table=table,
        rows=rows,
        features=rng.normal(size=(count, 8)).astype(np.float32),
        identical=np.arange(count),
        similar=np.arange(count),
        probabilities=np.clip(truth + rng.uniform(-0.1, 0.1, truth.shape), 0.01, 0.99),
        verdicts=[verdict() for _ in range(width)],
        hole_verdicts=[NO_EVIDENCE for _ in range(width)],
        answerable=np.full((count, width), np.nan),
        facts=facts,
    )
    return replace(made, **changes)


def clean_values(seed=0, holes=0.0):
    rng = np.random.default_rng(seed)
    values = (rng.random((N, K)) < [0.5, 0.4, 0.3]).astype(np.float32)
    unknown = rng.random(values.shape) < holes
    unknown[unknown.all(axis=1), 0] = False  # a row without a label would be a finding
    return np.where(unknown, np.nan, values).astype(np.float32)


def table_of(values, extra=None, names=None):
    numbers = np.random.default_rng(3).permutation(len(values))
    images = names or [f"{number:05}.jpg" for number in numbers]
    attributes = (*NAMES, "fourth", "fifth")[: values.shape[1]]
    return LabelTable.from_rows(images, attributes, values, extra)


def clean(seed=0, holes=0.0, **changes):
    return material(table_of(clean_values(seed, holes)), **changes)


def only(found):
    """The one finding of a check."""
    assert len(found) == 1
    assert KINDS[found[0].check]
    return found[0]


# ------------------------------------------------------------------------------------- silence


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_every_check_is_silent_on_clean_data(check):
    assert check(clean()) == []


@pytest.mark.parametrize("seed", range(5))
def test_of_clean_data_with_holes_only_the_holes_are_left_to_fill(seed):
    findings = judge(clean(seed, holes=0.2)).findings
    assert [one.check for one in findings] == ["annotate next"]


def unusual(table, seed):
    """A material with whatever can be unusual in it."""
    rng = np.random.default_rng(seed)
    count, width = table.values.shape
    groups = rng.integers(0, max(count // 2, 1), count)
    judged = [verdict(), NO_EVIDENCE, TOO_FEW]
    probabilities = rng.random((count, width))
    probabilities[:, rng.random(width) < 0.3] = np.nan
    return material(
        table,
        identical=np.unique(groups, return_inverse=True)[1],
        similar=np.zeros(count, dtype=np.int64),
        probabilities=probabilities,
        answerable=np.where(rng.random((count, width)) < 0.5, np.nan, 0.8),
        verdicts=[judged[i] for i in rng.integers(0, 3, width)],
        hole_verdicts=[judged[i] for i in rng.integers(0, 3, width)],
        split=next(iter(table.extra), None),
    )


@given(label_tables(extra=True), st.integers(0, 5))
def test_any_table_can_be_judged_and_told_in_80_columns(table, seed):
    found = judge(unusual(table, seed))
    json.dumps(found.to_dict(), allow_nan=False)
    assert max(map(len, found.to_text().split("\n"))) <= 80
    order = [SEVERITIES.index(one.severity) for one in found.findings]
    assert order == sorted(order)
    counts = found.to_dict()["counts"]
    assert sum(counts.values()) == len(found.findings)
    assert found.serious == (counts["serious"] > 0)


@given(label_tables(max_images=60), st.integers(0, 5))
def test_what_is_predicted_of_unknown_cells_changes_nothing_but_what_to_annotate(table, seed):
    one = unusual(table, seed)
    unknown = np.isnan(one.values) & ~np.isnan(one.probabilities)
    other = replace(one, probabilities=np.where(unknown, 0.123, one.probabilities))
    for name, check in CHECKS.items():
        if name != "annotate next":
            assert check(one) == check(other), name


def test_a_table_without_a_usable_picture_is_judged():
    table = table_of(clean_values())
    skipped = [Skipped(name, table.where(i), "no such file") for i, name in enumerate(table.images)]
    empty = material(table.select(np.zeros(N, dtype=bool)))
    rows = replace(empty.rows, skipped=skipped)
    found = judge(replace(empty, table=table, rows=rows, verdicts=[TOO_FEW] * K))
    assert found.serious
    assert {"missing", "learnability"} <= {one.check for one in found.findings}


# --------------------------------------------------------------------------------------- files


@pytest.mark.parametrize(("count", "severity"), [(4, "warning"), (5, "serious")])
@pytest.mark.parametrize(
    ("check", "reason"), [(missing, "no such file"), (unreadable, "the file is empty")]
)
def test_pictures_that_cannot_be_used_are_serious_above_one_percent(check, reason, count, severity):
    one = clean()
    rows = replace(one.rows, skipped=[Skipped(f"{i}", "labels:1", reason) for i in range(count)])
    found = only(check(replace(one, rows=rows)))
    assert found.severity == severity
    assert len(found.evidence) == count
    other = unreadable if check is missing else missing
    assert other(replace(one, rows=rows)) == []


@pytest.mark.parametrize(
    ("name", "facts", "words"),
    [
        ("a.JPG", FileFacts(9, 300, 300, "PNG", (0, 0, 0), 40.0), ["a PNG named .jpg"]),
        ("a", FileFacts(9, 300, 300, "PNG", (0, 0, 0), 40.0), []),
        ("a.dat", FileFacts(9, 300, 300, "PNG", (0, 0, 0), 40.0), []),
        ("a.jfif", FileFacts(9, 300, 300, "JPEG", (0, 0, 0), 40.0), []),
        ("a.png", FileFacts(9, 63, 90, "PNG", (0, 0, 0), 40.0), ["63 x 90 pixels"]),
        ("a.png", FileFacts(9, 100, 401, "PNG", (0, 0, 0), 40.0), ["very long"]),
        ("a.png", FileFacts(9, 300, 300, "PNG", (0, 0, 0), 0.5), ["one flat colour"]),
    ],
)
def test_what_is_odd_about_a_file(name, facts, words):
    assert oddities(name, facts) == words


def test_odd_files_are_found():
    one = clean()
    facts = [replace(one.facts[0], format="PNG"), *one.facts[1:]]
    found = only(suspicious(replace(one, facts=facts)))
    assert found.evidence == [{"image": one.names[0], "why": ["a PNG named .jpg"]}]


# ------------------------------------------------------------------------------------ pictures


def twins(values, **changes):
    """Rows 0 and 1 are one picture, and so are 2, 3 and 4."""
    groups = np.concatenate([[0, 0, 1, 1, 1], np.arange(2, len(values) - 3)])
    return material(table_of(values), identical=groups, similar=groups, **changes)


def test_identical_pictures_and_their_contradictions_are_counted():
    values = clean_values()
    values[:5] = 1
    values[1, 0] = 0
    values[3, 1] = values[4, 1] = np.nan
    one = twins(values)
    found = only(identical_pictures(one))
    assert [len(row["images"]) for row in found.evidence] == [2, 3]
    conflict = only(conflicting_labels(one))
    assert conflict.severity == "serious"
    assert [row["conflicts"] for row in conflict.evidence] == [["red"]]
    assert np.argwhere(one.conflicts).tolist() == [[0, 0], [1, 0]]


def test_a_hole_contradicts_nothing():
    values = clean_values()
    values[:5] = [[1, 0, 1], [1, np.nan, np.nan], [0, 1, 0], [np.nan] * 3, [0, 1, 0]]
    assert conflicting_labels(twins(values)) == []


def test_similar_pictures_are_a_warning_where_labels_contradict():
    values = clean_values()
    values[:2] = 1
    groups = np.concatenate([[0, 0], np.arange(1, N - 1)])
    one = material(table_of(values), similar=groups)
    assert only(similar_pictures(one)).severity == "note"
    values[1, 2] = 0
    found = only(similar_pictures(material(table_of(values), similar=groups)))
    assert found.severity == "warning"
    assert found.evidence[0]["conflicts"] == ["striped"]
    assert similar_pictures(replace(one, identical=groups)) == []


def test_pictures_on_both_sides_of_a_split_are_serious():
    parts = ["train", "test", "train", "train", "train"] + ["test"] * (N - 5)
    values = clean_values()
    groups = twins(values).identical
    table = table_of(values, {"part": parts})
    one = material(table, identical=groups, similar=groups, split="part")
    found = only(leaks(one))
    assert found.severity == "serious"
    assert found.evidence == [
        {"images": list(one.names[:2]), "parts": ["train", "test"], "identical": True}
    ]
    assert leaks(replace(one, split=None)) == []


# -------------------------------------------------------------------------------------- labels


def test_attributes_of_one_class_or_none_are_serious():
    values = clean_values()
    values[:, 0], values[:, 1] = 1, np.nan
    found = only(constant(material(table_of(values))))
    assert found.severity == "serious"
    assert [row["attribute"] for row in found.evidence] == ["red", "bright"]


@pytest.mark.parametrize(
    ("cells", "severity"), [(7, "warning"), (8, "note"), (19, "note"), (20, None)]
)
def test_rare_classes_are_found(cells, severity):
    values = clean_values()
    values[:, 2] = 1
    values[:cells, 2] = 0
    found = rare(material(table_of(values)))
    assert [one.severity for one in found] == ([severity] if severity else [])
    if found:
        assert found[0].evidence[0]["class"] == "absent"


def test_few_cells_of_a_class_are_named_by_their_number_where_half_are_of_it():
    values = clean_values()[:10]
    values[:, 0], values[:, 2] = [1, 0] * 5, 0
    values[:, 1] = np.where(np.arange(10) < 3, 1, np.nan)
    found = only(rare(material(table_of(values))))
    assert found.severity == "warning"
    assert found.summary == "1 attribute with few cells of a class: red (5 absent)."
    assert found.evidence == [{"attribute": "red", "class": "absent", "cells": 5}]
    values = clean_values()
    values[:, 1], values[4:, 2] = np.arange(400) < 5, np.nan
    values[:4, 2] = [0, 1, 0, 1]
    summary = only(rare(material(table_of(values)))).summary
    assert "with a rare class: bright (5 present)" in summary
    assert "with few cells of a class: striped (2 absent)" in summary


@pytest.mark.parametrize("relation", ["identical", "opposite"])
def test_attributes_that_are_one_are_found_across_holes(relation):
    values = clean_values(holes=0.3)
    values = np.hstack([values, clean_values()[:, :1]])
    values[:, 3] = clean_values()[:, 0] if relation == "identical" else 1 - clean_values()[:, 0]
    found = only(same(material(table_of(values))))
    assert [(row["attributes"], row["relation"]) for row in found.evidence] == [
        (["red", "fourth"], relation)
    ]
    both = ~np.isnan(values[:, 0])
    assert found.evidence[0]["cells"] == both.sum()
    values[np.flatnonzero(both)[0], 3] = 1 - values[np.flatnonzero(both)[0], 3]
    assert same(material(table_of(values))) == []


def test_an_implied_attribute_is_found_and_a_mutual_one_left_to_another_check():
    values = clean_values(holes=0.1)
    values[values[:, 2] == 1, 0] = np.where(np.isnan(values[values[:, 2] == 1, 0]), np.nan, 1)
    found = only(implied(material(table_of(values))))
    assert [(row["attribute"], row["implies"]) for row in found.evidence] == [("striped", "red")]
    assert implied(material(table_of(np.hstack([clean_values()[:, :1]] * 2)))) == []


def test_few_cells_or_a_common_attribute_imply_nothing():
    values = clean_values()
    values[:, 2] = 0
    values[:29, 2] = 1
    values[:29, 0] = 1
    assert implied(material(table_of(values))) == []
    values[:, 0] = 1
    values[-9:, 0] = 0  # 98 % present: 30 of 30 is no wonder
    values[:31, 2] = 1
    assert implied(material(table_of(values))) == []


def test_rows_without_a_label_are_found():
    values = clean_values()
    values[5] = np.nan
    assert [row["where"] for row in only(unlabelled(material(table_of(values)))).evidence] == [
        "row 6"
    ]


@pytest.mark.parametrize(
    ("verdicts", "severity"),
    [
        ([verdict(), NO_EVIDENCE, TOO_FEW], "warning"),
        ([NO_EVIDENCE] * 3, "serious"),
        ([TOO_FEW, NO_EVIDENCE, NO_EVIDENCE], "serious"),
        ([TOO_FEW] * 3, "warning"),
    ],
)
def test_what_cannot_be_learnt_is_serious_when_it_is_everything(verdicts, severity):
    found = only(learnability(clean(verdicts=verdicts)))
    assert found.severity == severity
    assert len(found.evidence) == sum(one.p_value != 0.001 for one in verdicts)
    assert ("base rates" in found.advice) == (NO_EVIDENCE in verdicts)
    assert ("label more" in found.advice) == (TOO_FEW in verdicts)


# --------------------------------------------------------------------------------------- holes


def test_holes_in_the_same_rows_are_found():
    values = clean_values(holes=0.05)
    gone = np.random.default_rng(1).random(N) < 0.1
    values[gone, 0] = values[gone, 1] = np.nan
    values[~gone, :2] = np.where(np.isnan(values[~gone, :2]), 0, values[~gone, :2])
    found = only(together(material(table_of(values))))
    assert found.evidence == [
        {"attributes": ["red", "bright"], "rows": int(gone.sum()), "exactly": True}
    ]
    assert together(clean(holes=0.2)) == []


def test_holes_that_depend_on_a_source_are_found():
    rng = np.random.default_rng(2)
    sources = rng.choice(["clinic a", "clinic b", "clinic c"], N)
    values = clean_values(holes=0.1)
    values[(sources == "clinic b") & (rng.random(N) < 0.5), 1] = np.nan
    extra = {"clinic": sources.tolist(), "remark": [f"no {i}" for i in range(N)]}
    found = only(by_source(material(table_of(values, extra))))
    assert [(row["column"], row["attribute"]) for row in found.evidence] == [("clinic", "bright")]
    assert found.evidence[0]["most"].startswith("clinic b")


def test_holes_by_chance_depend_on_no_source():
    false_alarms = 0
    for seed in range(100):
        sources = np.random.default_rng(100 + seed).choice(list("abcdef"), N)
        one = material(table_of(clean_values(seed, holes=0.3), {"by": sources.tolist()}))
        false_alarms += bool(by_source(one))
    assert false_alarms <= 5


def test_holes_that_the_pictures_tell_are_found():
    values = clean_values(holes=0.3)
    answerable = np.full(values.shape, np.nan)
    answerable[:, 1] = np.where(np.isnan(values[:, 1]), 0.4, 0.8)
    judged = [NO_EVIDENCE, verdict(), TOO_FEW]
    one = material(table_of(values), hole_verdicts=judged, answerable=answerable)
    found = only(by_picture(one))
    assert [(row["attribute"], row["auc"]) for row in found.evidence] == [("bright", 1.0)]


# -------------------------------------------------------------------------------- label errors


def flipped(seed, attributes=6, rows=600, share=0.03):
    """Labels drawn with probability p, a share of the known ones flipped; p; what was flipped."""
    rng = np.random.default_rng(seed)
    p = 1 / (1 + np.exp(-rng.normal(rng.uniform(-2, 0, attributes), 4, (rows, attributes))))
    truth = (rng.random(p.shape) < p).astype(float)
    truth[rng.random(p.shape) < 0.2] = np.nan
    flips = (rng.random(p.shape) < share) & ~np.isnan(truth)
    return np.where(flips, 1 - truth, truth), p, flips


@pytest.mark.parametrize("seed", range(5))
def test_the_first_cells_of_the_ranking_hold_many_times_more_flips_than_chance(seed):
    values, p, flips = flipped(seed)
    assert (roc_auc(values, p) > 0.85).all()
    rows, columns = rank_cells(values, p)
    assert len(rows) == (~np.isnan(values)).sum()
    first = round(0.03 * len(rows))
    found = flips[rows[:first], columns[:first]].mean()
    assert found >= 5 * flips[rows, columns].mean()


def test_the_ranking_is_by_what_speaks_against_the_label():
    values, p, _ = flipped(0)
    rows, columns = rank_cells(values, p)
    against = np.where(values == 1, 1 - p, p)[rows, columns]
    assert (np.diff(against) <= 0).all()


@given(label_tables(max_images=40), st.integers(0, 9))
def test_unknown_cells_are_never_ranked_nor_suspected(table, seed):
    p = np.random.default_rng(seed).random(table.values.shape)
    rows, columns = rank_cells(table.values, p)
    assert not np.isnan(table.values[rows, columns]).any()
    assert not (suspected(table.values, p) & np.isnan(table.values)).any()


def test_suspects_are_those_of_the_confident_learning_rule():
    """Northcutt et al. 2021, equation 2, written out for two classes."""
    values, p, _ = flipped(3)
    for k in range(values.shape[1]):
        known = ~np.isnan(values[:, k])
        y, q = values[known, k], p[known, k]
        t1, t0 = q[y == 1].mean(), (1 - q[y == 0]).mean()
        as_1, as_0 = q >= t1, 1 - q >= t0
        wrong = np.where(y == 0, as_1 & ~(as_0 & (1 - q >= q)), as_0 & ~(as_1 & (q > 1 - q)))
        assert (suspected(values, p)[known, k] == wrong).all()


def with_labels(one, values):
    """A material that differs in its labels alone."""
    table = replace(one.table, values=values)
    return replace(one, table=table, rows=replace(one.rows, table=table))


def planted(cells=((0, 0),), **changes):
    """A clean material some of whose labels were turned round afterwards."""
    one = clean(holes=0.1, **changes)
    values = one.values.copy()
    for row, k in cells:
        values[row, k] = 1 - (one.probabilities[row, k] > 0.5)
    return with_labels(one, values)


def test_label_errors_come_with_their_look_alikes():
    one = planted([(row, 0) for row in range(6)])
    features = one.features.copy()
    features[:, :K] = 20 * np.round(one.probabilities)
    found = only(label_errors(replace(one, features=features)))
    assert {row["image"] for row in found.evidence} == set(one.names[:6])
    assert any(row["suspected"] for row in found.evidence)
    for row in found.evidence:
        assert row["attribute"] == "red"
        assert row["given"] == 1 - row["suggested"] == (row["probability"] < 0.5)
        alike = [near["given"] == row["suggested"] for near in row["neighbours"]]
        assert len(alike) == 5
        assert np.mean(alike) > 0.5


def test_label_errors_are_sought_only_where_pictures_say_something():
    assert len(label_errors(planted())) == 1
    assert label_errors(planted(verdicts=[NO_EVIDENCE, verdict(), verdict()])) == []


@pytest.mark.parametrize(("cells", "found"), [(19, 0), (20, 1)])
def test_label_errors_are_not_sought_among_few_cells_of_a_class(cells, found):
    one = clean()
    values = one.values.copy()
    values[:, 0] = np.arange(N) < cells
    assert len(label_errors(with_labels(one, values))) == found


def test_contradicting_twins_are_no_label_errors():
    one = planted()
    values = one.values.copy()
    values[1, 0] = 1 - values[0, 0]
    groups = np.concatenate([[0, 0], np.arange(1, N - 1)])
    found = label_errors(replace(with_labels(one, values), identical=groups))
    assert all(row["image"] != one.names[0] for each in found for row in each.evidence)


def test_without_cleanlab_it_says_so(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cleanlab", None)
    assert only(label_errors(planted())).severity == "note"


# ----------------------------------------------------------------------------------- shortcuts


def with_facts(one, attribute, **changes):
    """A material in whose files, where an attribute is present, some facts are others."""
    present = one.values[:, attribute] == 1
    facts = [
        replace(fact, **{key: new(getattr(fact, key)) for key, new in changes.items()})
        if shows
        else fact
        for fact, shows in zip(one.facts, present, strict=True)
    ]
    return replace(one, facts=facts)


@pytest.mark.parametrize(
    ("changes", "fact"),
    [
        ({"bytes": lambda size: size + 20_000}, "file size"),
        ({"width": lambda width: width + 60}, "width"),
        ({"height": lambda height: height - 60}, "height"),
        ({"border": lambda rgb: tuple(c + 60 for c in rgb)}, "brightness of the border"),
        ({"border": lambda rgb: (rgb[0] + 90, rgb[1], rgb[2])}, "warmth of the border"),
        ({"format": lambda _: "PNG"}, "file format"),
    ],
)
def test_facts_about_files_that_predict_a_label_are_found(changes, fact):
    found = only(shortcuts(with_facts(clean(holes=0.1), 1, **changes)))
    assert found.severity == "serious"
    assert (fact, "bright") in [(row["fact"], row["attribute"]) for row in found.evidence]
    assert {row["attribute"] for row in found.evidence} == {"bright"}


@pytest.mark.parametrize(
    ("name", "fact"),
    [
        (lambda shows, i: f"{'yes' if shows else 'no'}/{i:04}.jpg", "start of the name"),
        (lambda shows, i: f"img_{i + 1000 * shows:04}.jpg", "number in the name"),
    ],
)
def test_names_that_predict_a_label_are_found(name, fact):
    values = clean_values()
    numbers = np.random.default_rng(5).permutation(N)
    names = [name(bool(shows), i) for shows, i in zip(values[:, 0] == 1, numbers, strict=True)]
    found = only(shortcuts(material(table_of(values, names=names))))
    assert [(row["fact"], row["attribute"]) for row in found.evidence] == [(fact, "red")]
    assert found.evidence[0]["auc"] > 0.99


def test_a_shortcut_far_below_what_the_pictures_give_is_a_warning():
    values = clean_values()
    rng = np.random.default_rng(0)
    sizes = rng.normal(values[:, 0] * 0.75, 1)  # AUC .70
    one = material(table_of(values))
    facts = [replace(f, bytes=int(1e6 + 1e5 * s)) for f, s in zip(one.facts, sizes, strict=True)]
    found = only(shortcuts(replace(one, facts=facts)))
    assert found.severity == "warning"
    assert 0.65 < found.evidence[0]["auc"] < 0.75
    assert found.evidence[0]["pictures"] == 1.0
    unknown = np.full(values.shape, np.nan)
    assert only(shortcuts(replace(one, facts=facts, probabilities=unknown))).severity == "serious"


def test_copies_of_one_picture_are_one_witness():
    values = clean_values()
    values[:, 0] = 0
    values[: N // 2, 0] = 1
    one = material(table_of(values))
    facts = [replace(f, bytes=9 if i < N // 2 else 8) for i, f in enumerate(one.facts)]
    assert shortcuts(replace(one, facts=facts))
    groups = np.where(np.arange(N) < N // 2, 0, np.arange(N))
    groups = np.unique(groups, return_inverse=True)[1]
    assert shortcuts(replace(one, facts=facts, identical=groups)) == []


def test_p_values_of_facts_are_level_and_their_aucs_fair_under_chance():
    rng = np.random.default_rng(0)
    p_values, aucs = [], []
    for _ in range(400):
        present = rng.random(150) < 0.2
        p_values.append(number_test(rng.normal(size=150).round(1), present)[0])
        p, auc, _ = kind_test(rng.choice(list("abc"), 150), present)
        p_values.append(p)
        aucs.append(auc)
    assert 0.03 <= np.mean(np.array(p_values) <= 0.05) <= 0.07
    assert 0.45 < np.mean(aucs) < 0.53


def test_too_few_cells_or_nothing_that_varies_is_not_tested():
    present = np.arange(40) < 7
    assert number_test(np.arange(40.0), present) is None
    assert number_test(np.ones(40), np.arange(40) < 20) is None
    assert kind_test(np.array(["a", "b"] * 20), present) is None
    assert kind_test(np.array(["a"] * 40), np.arange(40) < 20) is None
    assert kind_test(np.array([str(i) for i in range(40)]), np.arange(40) < 20) is None


# ------------------------------------------------------------------------------- annotate next


def test_queries_are_unknown_cells_one_a_group_and_a_fifth_by_chance():
    one = clean(holes=0.5)
    groups = np.arange(N) // 2
    one = replace(one, identical=groups)
    found = only(annotate_next(one))
    row_of = {name: row for row, name in enumerate(one.names)}
    cells = [(row_of[row["image"]], NAMES.index(row["attribute"])) for row in found.evidence]
    assert len(cells) == 200
    assert all(np.isnan(one.values[cell]) for cell in cells)
    assert len({(groups[row], k) for row, k in cells}) == len(cells)
    assert [row["why"] for row in found.evidence] == ["score"] * 160 + ["random"] * 40
    asked = np.bincount([k for _, k in cells[:160]], minlength=K)
    assert asked.max() <= np.ceil(2 * 160 / K)


def test_drawn_queries_are_spread_evenly_over_what_is_left():
    score = np.zeros((3000, 1))
    drawn = [row for row, _, why in choose(score, np.arange(3000), 500) if why == "random"]
    assert 1500 < np.mean(drawn) < 2000  # the first 400 rows are chosen by score


def test_doubtful_rare_and_answerable_cells_score_higher():
    values = clean_values()
    values[:4, :2] = np.nan
    p = np.full(values.shape, 0.9)
    p[0, 0] = 0.5
    answerable = np.full(values.shape, np.nan)
    answerable[:, 0] = 1.0
    answerable[3, 0] = 0.1
    one = material(table_of(values), probabilities=p, answerable=answerable)
    sides = np.where(np.arange(N) % 2, 1, -1).astype(np.float32)  # two looks, all as dense
    one = replace(one, features=np.repeat(sides[:, None], 8, axis=1))
    score = scores(one)
    assert score[0, 0] > score[1, 0] > score[3, 0] >= 0
    assert np.isnan(score[4:]).all()
    rarer = np.nanargmin((values == 1).sum(axis=0)[:2])
    assert score[2, rarer] >= score[2, 1 - rarer]


def test_nothing_is_asked_about_what_pictures_do_not_carry():
    one = clean(holes=0.5, verdicts=[NO_EVIDENCE] * K)
    assert annotate_next(one) == []
    assert wide_intervals(one) == []


def test_wide_intervals_say_how_many_more_present_cells_would_halve_them():
    values = clean_values()
    values[:, 0] = 0
    values[:20, 0] = 1
    p = np.random.default_rng(0).random(values.shape)
    p[:20, 0] += 0.5
    one = material(table_of(values), probabilities=np.clip(p / 1.5, 0, 1))
    rows = {row["attribute"]: row for row in only(wide_intervals(one)).evidence}
    assert rows["red"]["present"] == 20
    assert rows["red"]["more"] == 60

    def width(present):
        from polytag.intervals import ap_logit_interval

        low, high = ap_logit_interval(0.5, present)
        return np.log(high / (1 - high)) - np.log(low / (1 - low))

    assert width(20) / width(80) == pytest.approx(2)
