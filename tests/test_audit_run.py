"""The audit from end to end: on the drawn world, with and without a run, and what it leaves."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from polytag import read_table
from polytag.audit import Audit, Finding, audit, gather, judge
from polytag.audit.finding import KINDS
from polytag.audit.material import file_facts
from polytag.cli import auditing
from polytag.errors import UserError
from polytag.kept import read_run

from .conftest import LEARNT, TINY, draw_world, real_data, save_picture, write_labels
from .test_audit import clean, verdict

assert auditing  # the verb is there once its module was imported

LISTS = ("label_errors.csv", "duplicates.csv", "annotate_next.csv", "skipped.csv")


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A world with a split column, of 120 pictures."""
    world = draw_world(tmp_path_factory.mktemp("audited"), seed=3, pictures=120)
    lines = world.labels.read_text(encoding="utf-8").splitlines()
    parts = ["part", *(["train", "test"][i % 2] for i in range(len(lines) - 2)), "test"]
    parts[-3] = "test"  # the twin; the first picture is in train
    text = "\n".join(f"{line},{part}" for line, part in zip(lines, parts, strict=True))
    world.labels.write_text(text + "\n", encoding="utf-8")
    return world


@pytest.fixture(scope="module")
def tiny_run(train, own, tmp_path_factory):
    table = read_table(own.labels)
    return train(tmp_path_factory.mktemp("runs"), table=table, images=own.images)


@pytest.fixture(scope="module")
def with_run(own, tiny_run):
    return audit(read_table(own.labels), own.images, tiny_run, split="part")


def found(audited, check):
    """The evidence of one kind of finding."""
    return [row for one in audited.findings if one.check == check for row in one.evidence]


def test_everything_planted_in_the_drawn_world_is_found(own, with_run):
    first = own.names[0]
    assert [row["image"] for row in found(with_run, "missing")] == ["missing.png"]
    assert [row["image"] for row in found(with_run, "unreadable")] == ["broken.png"]
    assert [row["images"] for row in found(with_run, "identical")] == [[first, "twin.png"]]
    assert found(with_run, "conflicting")[0]["conflicts"] == ["red"]
    assert [first, "twin.png"] in [row["images"] for row in found(with_run, "leak")]
    constant = [row["attribute"] for row in found(with_run, "constant")]
    assert constant == ["always", "never said"]
    assert with_run.serious


def test_a_runs_probabilities_are_those_it_judged_with(own, tiny_run, with_run):
    kept = read_run(tiny_run.path)
    columns = [kept.table.attributes.index(name) for name in LEARNT]
    used = with_run.material.probabilities
    assert np.array_equal(used[:, columns], kept.calibrated.probabilities)
    assert np.isnan(np.delete(used, columns, axis=1)).all()


def test_a_picture_that_changed_since_the_run_has_no_probability(own, tiny_run, tmp_path):
    images = tmp_path / "images"
    for name in own.good:
        path = images / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(own.path(name).read_bytes())
    save_picture(images / own.names[1], np.full((40, 48, 3), 90, np.uint8))
    made = gather(read_table(own.labels), images, tiny_run.path)
    changed = made.names.index(own.names[1])
    assert np.isnan(made.probabilities[changed]).all()
    assert not np.isnan(made.probabilities[changed + 1, :2]).any()


def test_without_a_run_a_probe_is_fitted_out_of_fold(own, monkeypatch):
    from polytag.audit import material
    from polytag.config import load_recipe

    monkeypatch.setattr(material, "load_recipe", lambda name: load_recipe(name, TINY))
    made = gather(read_table(own.labels), own.images)
    assert made.probabilities.shape == (121, 5)
    assert not np.isnan(made.probabilities[:, :3]).any()
    assert np.isnan(made.probabilities[:, 3:]).all()
    known = ~np.isnan(made.values[:, 0])
    right = (made.probabilities[known, 0] > 0.5) == made.values[known, 0]
    assert right.mean() > 0.9
    assert judge(made).to_dict()["usable"] == 121


def test_a_table_of_nothing_but_missing_pictures_is_audited(tmp_path, monkeypatch):
    from polytag.audit import material
    from polytag.config import load_recipe

    monkeypatch.setattr(material, "load_recipe", lambda name: load_recipe(name, TINY))
    labels = write_labels(tmp_path / "l.csv", ["a.jpg", "b.jpg"], ["red"], np.array([[1], [0.0]]))
    (tmp_path / "images").mkdir()
    audited = audit(read_table(labels), tmp_path / "images")
    assert [row["image"] for row in found(audited, "missing")] == ["a.jpg", "b.jpg"]


def grouped_table(world):
    """The world's table, with six rows of each patient."""
    table = read_table(world.labels)
    patients = [f"patient {row // 6}" for row in range(len(table))]
    return replace(table, extra={**table.extra, "patient": tuple(patients)})


@pytest.fixture(scope="module")
def grouped_run(train, own, tmp_path_factory):
    return train(
        tmp_path_factory.mktemp("grouped"),
        {"split.group_by": "patient"},
        table=grouped_table(own),
        images=own.images,
    )


def units(made):
    """How many groups the first attribute was tested on."""
    return made.verdicts[0].present + made.verdicts[0].absent


def test_rows_of_one_group_are_one_witness_and_on_one_side(own, monkeypatch):
    from polytag.audit import material
    from polytag.config import load_recipe

    seen = []
    stratified = material.stratified_folds

    def spy(values, groups, **options):
        seen.append(len(np.unique(groups)))
        return stratified(values, groups, **options)

    monkeypatch.setattr(material, "load_recipe", lambda name: load_recipe(name, TINY))
    monkeypatch.setattr(material, "stratified_folds", spy)
    table = grouped_table(own)
    assert units(gather(table, own.images)) > 60
    assert seen.pop() > 60
    made = gather(table, own.images, group_by="patient")
    assert 15 <= units(made) <= 21
    assert seen.pop() <= 21
    assert len(np.unique(made.similar)) > 60  # what looks alike is another question
    with pytest.raises(UserError, match=r"--group-by.*did you mean 'patient'"):
        gather(table, own.images, group_by="patients")


def test_a_runs_groups_and_verdicts_are_the_audits(own, grouped_run):
    kept = read_run(grouped_run.path)
    for table in (read_table(own.labels), grouped_table(own)):  # without the column, and with it
        made = gather(table, own.images, grouped_run.path)
        said = dict(zip(made.attributes, made.verdicts, strict=True))
        for name, (_, p, p_holm) in kept.verdicts.items():
            assert np.array_equal([said[name].p_value, said[name].p_holm], [p, p_holm], True)
        assert units(made) <= 21


def test_rows_that_the_run_did_not_have_are_grouped_by_its_column(own, train, tmp_path):
    table = grouped_table(own)
    changes = {"split.group_by": "patient"}
    half = train(tmp_path, changes, table=table.select(range(60)), images=own.images)
    assert units(gather(table, own.images, half.path)) <= 21
    assert units(gather(read_table(own.labels), own.images, half.path)) > 30


def test_the_verb_keeps_the_runs_column_of_numbers(cli, own, grouped_run, tmp_path, monkeypatch):
    seen = {}

    def look(table, images, run, **options):
        seen.update(options, attributes=table.attributes)
        raise UserError("seen")

    monkeypatch.setattr("polytag.audit.audit", look)
    lines = own.labels.read_text(encoding="utf-8").splitlines()
    labels = tmp_path / "l.csv"
    patients = ["patient", *(str(row % 3) for row in range(len(lines) - 1))]
    pairs = zip(lines, patients, strict=True)
    labels.write_text("\n".join(f"{line},{text}" for line, text in pairs), encoding="utf-8")
    words = ("audit", labels, "--images", own.images)
    cli(*words, "--run", grouped_run)
    assert seen["group_by"] == "patient" and "patient" not in seen["attributes"]
    cli(*words, "--group-by", "patient", "--split", "part")
    assert (seen["group_by"], seen["split"]) == ("patient", "part")
    cli("audit", own.labels, "--images", own.images, "--run", grouped_run)
    assert seen["group_by"] is None


def test_a_run_of_other_attributes_is_refused_with_both_lists(own, tiny_run):
    table = read_table(own.labels)
    other = replace(table, attributes=tuple(f"other {name}" for name in table.attributes))
    with pytest.raises(UserError, match=r"share no attribute; got other red.*expected red"):
        gather(other, own.images, tiny_run.path)


def test_what_is_not_there_is_said(own, tmp_path):
    table = read_table(own.labels)
    with pytest.raises(UserError, match="did you mean 'part'"):
        audit(table, own.images, split="parts")
    with pytest.raises(UserError):
        audit(table, own.images, tmp_path)


# -------------------------------------------------------------------------------- command line


def test_the_verb_prints_writes_and_exits(cli, own, tiny_run, tmp_path):
    words = ("audit", own.labels, "--images", own.images, "--run", tiny_run, "--split", "part")
    answer = cli(*words, "--out", tmp_path / "found")
    assert answer.code == 1
    assert max(map(len, answer.out.splitlines())) <= 80
    severities = re.findall(r"^(SERIOUS|WARNING|NOTE)", answer.out, re.MULTILINE)
    assert severities == sorted(severities, key=["SERIOUS", "WARNING", "NOTE"].index)
    assert {path.name for path in (tmp_path / "found").iterdir()} == {"audit.html", *LISTS}

    again = cli(*words, "--out", tmp_path / "again", "--json", "--exit-zero")
    assert again.code == 0
    assert again.json["serious"]
    counts = {one["check"]: one["count"] for one in again.json["findings"]}
    assert counts["identical"] == 1


def test_clean_data_exits_with_0(cli, tmp_path, monkeypatch):
    monkeypatch.setattr("polytag.audit.gather", lambda *_: clean())
    labels = write_labels(tmp_path / "l.csv", ["a.jpg"], ["red"], np.array([[1.0]]))
    answer = cli("audit", labels, "--images", tmp_path, "--out", tmp_path / "found")
    assert answer.code == 0
    assert "0 serious, 0 warnings, 0 notes" in answer.out
    assert "Nothing was found" in (tmp_path / "found" / "audit.html").read_text(encoding="utf-8")


def test_more_skipped_than_allowed_is_said_after_everything_was_written(
    cli, own, tiny_run, tmp_path
):
    words = ("audit", own.labels, "--images", own.images, "--run", tiny_run, "--max-skipped", "0")
    answer = cli(*words, "--out", tmp_path / "found")
    assert answer.code == 3
    assert (tmp_path / "found" / "audit.html").is_file()


# ----------------------------------------------------------------------------- what it leaves


def rows_of(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_lists_hold_the_evidence(own, with_run, tmp_path):
    with_run.write(tmp_path)
    skipped = rows_of(tmp_path / "skipped.csv")
    assert [(row["finding"], row["image"]) for row in skipped] == [
        ("missing", "missing.png"),
        ("unreadable", "broken.png"),
    ]
    twins = [row for row in rows_of(tmp_path / "duplicates.csv") if row["finding"] == "identical"]
    assert [(row["images"], row["conflicts"]) for row in twins] == [
        (f"{own.names[0]}; twin.png", "red")
    ]
    queries = rows_of(tmp_path / "annotate_next.csv")
    values = with_run.material.table.values
    for row in queries:
        at = (
            own.names.index(row["image"]),
            list(with_run.material.attributes).index(row["attribute"]),
        )
        assert np.isnan(values[at])


class Page(HTMLParser):
    """The tags of a page, and what it would load."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.loaded = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        named = dict(attrs)
        self.loaded += [named[key] for key in ("src", "href") if key in named]


def test_the_page_loads_nothing_and_shows_the_evidence(with_run, tmp_path):
    with_run.write(tmp_path)
    text = (tmp_path / "audit.html").read_text(encoding="utf-8")
    page = Page(text)
    assert all(address.startswith(("data:image/jpeg", "#")) for address in page.loaded)
    assert page.tags.count("section") == len(with_run.findings)
    assert "img" in page.tags
    assert "url(" not in text


HOSTILE = "<script>alert(1)</script> \x1b[31m =1+1 {{ 7 * 7 }} \udce9.jpg"


def test_hostile_names_stay_text(tmp_path):
    one = clean()
    evidence = [{"image": HOSTILE, "attribute": HOSTILE, "neighbours": []}]
    finding = Finding("label errors", "warning", HOSTILE, evidence, HOSTILE)
    table = replace(one.table, source=HOSTILE)
    audited = Audit(replace(one, table=table), [finding])
    audited.write(tmp_path)
    text = (tmp_path / "audit.html").read_text(encoding="utf-8")
    assert "script" not in Page(text).tags
    assert "{{ 7 * 7 }}" in text
    assert "\x1b" not in text
    assert "\x1b" not in audited.to_text()
    assert rows_of(tmp_path / "label_errors.csv")[0]["attribute"].startswith("<script>")


def test_one_odd_name_leaves_the_rest_of_the_sentence_as_it_is(tmp_path):
    one = clean()
    finding = Finding("implied", "note", "größer → a\nb\x1b.", [], "Füllen.")
    audited = Audit(one, [finding])
    assert "NOTE  größer → a\\nb\\x1b." in audited.to_text()
    audited.write(tmp_path)
    text = (tmp_path / "audit.html").read_text(encoding="utf-8")
    assert "größer → a\\nb\\x1b." in text


def test_kinds_of_findings_are_all_used_and_all_listed(with_run):
    assert {one.check for one in with_run.findings} <= set(KINDS)
    assert verdict().verdict.startswith("learnable")


def test_facts_about_a_file_are_those_of_the_upright_picture(tmp_path):
    pixels = np.zeros((100, 200, 3), np.uint8)
    pixels[3:97, 3:197] = 255
    facts = file_facts(save_picture(tmp_path / "a.png", pixels))
    assert (facts.width, facts.height, facts.format) == (200, 100, "PNG")
    assert facts.border == (0.0, 0.0, 0.0)
    assert facts.bytes == (tmp_path / "a.png").stat().st_size
    assert facts.spread > 50


# -------------------------------------------------------------------------------------- real data


@pytest.mark.parametrize(
    ("name", "labels", "groups"),
    [("dresses", "labels.txt", 7), ("clothing-attributes", "labels.csv", 39)],
)
def test_the_json_counts_the_identical_groups_of_real_data(name, labels, groups):
    from polytag.groups import identical
    from polytag.images import content_hash
    from polytag.pictures import locate

    folder = real_data(name)
    table = read_table(folder / labels)
    paths, errors = locate(table, folder / "images")
    there = [row for row in range(len(table)) if row not in errors]
    table = table.select(there)
    same = identical([content_hash(paths[row]) for row in there])
    one = clean()
    facts = [one.facts[0]] * len(table)
    rows = replace(one.rows, table=table, paths=[paths[row] for row in there])
    nothing = np.full(table.values.shape, np.nan)
    judged = [verdict()] * len(table.attributes)
    made = replace(
        one,
        table=table,
        rows=rows,
        features=np.zeros((len(table), 1), np.float32),
        identical=same,
        similar=same,
        probabilities=nothing,
        answerable=nothing,
        verdicts=judged,
        hole_verdicts=judged,
        facts=facts,
    )
    found = json.loads(json.dumps(judge(made).to_dict()))
    counts = {one["check"]: one["count"] for one in found["findings"]}
    assert counts["identical"] == groups
