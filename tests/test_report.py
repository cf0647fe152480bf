"""report.html: what it shows, that it holds with holes, and that it loads nothing."""

from __future__ import annotations

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from polytag.errors import UserError
from polytag.history import Epoch, History, Validation
from polytag.report import Duplicate, Material, Suspect, charts, shown_numbers, write_report
from polytag.report.page import number
from polytag.report.shown import PICTURES, phi
from polytag.report.svg import POINTS, Frame, line
from polytag.results import METRICS

HOSTILE = ('<script>alert("x")</script>', "\"' onload='x", "{{ 1 + 1 }}", "a & b </style>")
VERDICTS = (
    "learnable",
    "no evidence that the pictures show it",
    "too few to tell: more would do",
    None,
)


def measured(rng: np.random.Generator) -> dict[str, Any]:
    value = rng.uniform(0.3, 0.8)
    low, high = value - rng.uniform(0, 0.2), value + rng.uniform(0, 0.2)
    return {"value": value, "chance": 0.25, "low": low, "high": high, "reason": None}


def metrics_of(names: list[str], values: np.ndarray, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    attributes = []
    for k, name in enumerate(names):
        counts = {
            "present": int((values[:, k] == 1).sum()),
            "absent": int((values[:, k] == 0).sum()),
            "na": int(np.isnan(values[:, k]).sum()),
        }
        numbers = {metric: measured(rng) for metric in METRICS}
        more = {"threshold": 0.4, "threshold_low": 0.31, "threshold_high": 0.52}
        verdict = {"verdict": VERDICTS[k % 4], "p_value": 0.012, "p_holm": 0.034}
        attributes.append({"name": name, **counts, **numbers, **more, **verdict})
    over = {"over": "all attributes", "missing": {}}
    whole = {name: measured(rng) | over for name in ("log_loss", "hamming", "exact_match")}
    macro = {name: measured(rng) | over for name in METRICS}
    run = {"method": "probe", "rows": len(values), "judged": len(values), "skipped": 3}
    return {"attributes": attributes, "macro": macro, **whole, "over": "all", **run, "note": None}


def make(names: list[str], rows: int = 60, seed: int = 0, **changes: Any) -> Material:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(rows, len(names)))
    values = (rng.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(np.float64)
    values[rng.random(values.shape) < 0.2] = np.nan
    everything: dict[str, Any] = {
        "title": "A drawn world",
        "name": "probe-1",
        "metrics": metrics_of(names, values),
        "attributes": names,
        "images": [f"picture {'abcdefgh'[i % 8]}.png" for i in range(rows)],
        "values": values,
        "probabilities": 1 / (1 + np.exp(-logits)),
        "raw": 1 / (1 + np.exp(-2 * logits)),
        "thresholds": np.full(values.shape, 0.4),
        "history": History(tuple(names), [0.7, 0.5, 0.4], [1.0] * 3, ["probe"] * 3),
        "recipe": "seed = 42\n",
        "environment": {"numpy": "2.1.0"},
    }
    return Material(**everything | changes)


def html_of(material: Material, folder: Path) -> str:
    write_report(folder / "report.html", material)
    return (folder / "report.html").read_text(encoding="utf-8")


class Page(HTMLParser):
    """Texts with the elements they stand in, and all attributes; fails on what is not closed."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, list[tuple[str, dict[str, str]]]]] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = (tag, {key: value or "" for key, value in attrs})
        self.elements.append(element)
        if tag not in self.VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((data, list(self.open)))


def leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for each in value.values() for leaf in leaves(each)]
    if isinstance(value, list):
        return [leaf for each in value for leaf in leaves(each)]
    return [value]


def printed_numbers(page: Page) -> list[str]:
    """Numbers in texts, outside of pictures, quotations, legends and the place in a list."""
    found = []
    for text, where in page.texts:
        tags = {tag for tag, _ in where}
        kinds = {kind for _, attrs in where for kind in attrs.get("class", "").split()}
        ids = {attrs.get("id") for _, attrs in where}
        if tags & {"svg", "pre", "style", "title"} or kinds & {"key", "ordinal"}:
            continue
        if "environment" not in ids:
            found += re.findall(r"(?<![\w.])[−-]?\d*\.?\d+", text.replace("F1", ""))
    return found


def test_every_number_stands_in_metrics_json(tmp_path):
    material = make(["red", "bright", "striped", "dotted", "plain"])
    material = dataclasses.replace(
        material,
        suspects=[Suspect(4, "red", 1, 0.0123)],
        duplicates=[Duplicate((1, 2), True), Duplicate((3, 4, 5), False)],
    )
    page = Page(html_of(material, tmp_path))
    numbers = [
        leaf
        for leaf in leaves(json.loads(json.dumps([material.metrics, shown_numbers(material)])))
        if isinstance(leaf, int | float)
    ]
    written = {number(each) for each in numbers} | {f"{each:g}" for each in numbers}
    written |= {f"{each:.2f}".replace("0.", ".").replace("-", "−") for each in numbers}
    printed = printed_numbers(page)
    assert len(printed) > 200
    assert not set(printed) - written
    first = [text for text, where in page.texts if ("table", {"id": "first"}) in where]
    assert number(material.metrics["attributes"][0]["ap"]["value"]) in first


def test_nothing_is_loaded_and_nothing_runs(tmp_path):
    html = html_of(make([*HOSTILE, "e"], title=HOSTILE[0], name=HOSTILE[1]), tmp_path)
    page = Page(html)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "form"}
    for _, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on")
            assert name not in ("src", "href") or value.startswith(("data:image/jpeg;", "#"))
    assert not re.search(r"url\(|@import|https?://", html)
    policies = [attrs for tag, attrs in page.elements if "http-equiv" in attrs]
    assert policies[0]["content"].startswith("default-src 'none'")


def test_names_are_text_wherever_they_stand(tmp_path):
    material = make(
        [*HOSTILE, "e"],
        title=HOSTILE[0],
        images=[f"{HOSTILE[0]} {i}.png" for i in range(60)],
        suspects=[Suspect(0, HOSTILE[0], 1, 0.1)],
        duplicates=[Duplicate((0, 1), True)],
        recipe=HOSTILE[3],
        environment={HOSTILE[0]: HOSTILE[1]},
    )
    material.metrics["note"] = HOSTILE[0]
    material.metrics["attributes"][0]["verdict"] = f"learnable {HOSTILE[0]}"
    material.metrics["macro"]["ap"]["missing"] = {HOSTILE[0]: HOSTILE[1]}
    html = html_of(material, tmp_path)
    page = Page(html)
    assert "<script" not in html and not any("onload" in attrs for _, attrs in page.elements)
    texts = [text for text, _ in page.texts]
    assert all(any(name in text for text in texts) for name in HOSTILE)


def test_every_picture_is_xml_and_says_what_it_shows(tmp_path):
    html = html_of(make([*HOSTILE, "e"], title=HOSTILE[3]), tmp_path)
    pictures = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert len(pictures) > 5 * 5
    for picture in pictures:
        element = ElementTree.fromstring(picture)
        assert element.get("role") == "img" and element.get("aria-label")
        assert not re.search(r"nan|inf", re.sub(r'aria-label="[^"]*"', "", picture))


def test_tables_name_their_rows_and_columns(tmp_path):
    page = Page(html_of(make(["red", "bright"]), tmp_path))
    heads = [attrs for tag, attrs in page.elements if tag == "th"]
    assert heads and all(attrs.get("scope") in ("col", "row", "rowgroup") for attrs in heads)
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    targets = {attrs["href"][1:] for tag, attrs in page.elements if tag == "a"}
    assert targets <= set(ids)


def test_attributes_stand_under_their_verdict_in_its_own_words(tmp_path):
    html = html_of(make(["red", "bright", "striped", "dotted"]), tmp_path)
    table = html[html.index('id="first"') : html.index("</table>")]
    places = [
        table.index(words)
        for words in (
            *("It can tell: learnable", ">red<"),
            *("no evidence that the pictures show it", ">bright<"),
            *("too few to tell", ">striped<"),
            *("Not tested", ">dotted<"),
        )
    ]
    assert places == sorted(places)
    assert "too few to tell: more would do" in table


@pytest.mark.parametrize(
    "material",
    [
        Material("title", "import-1", {}),
        Material("title", "import-1", {}, attributes=["red"], environment={"numpy": "2"}),
        Material("title", "run", {"attributes": [], "macro": {}, "log_loss": None, "note": ""}),
        make(["red"]),
        make(["red"], rows=1),
        make(["red", "bright"], rows=0),
        make(["red"], probabilities=None, thresholds=None, raw=None, history=None),
        make(["red", "bright"], probabilities=np.full((60, 2), np.nan)),
        make(["red", "bright"], thresholds=np.full((60, 2), np.nan)),
        make(["red", "bright"], values=np.full((60, 2), np.nan)),
        make(["red", "bright"], values=np.ones((60, 2))),
        make(["red", "bright"], values=np.zeros((60, 2))),
        make(["red", "bright"], history=History(("red", "bright"))),
        make(["red", "bright"], history=History(("red",), [np.nan], [1.0], ["a"])),
    ],
)
def test_what_a_run_lacks_is_left_out(material, tmp_path):
    html = html_of(material, tmp_path)
    Page(html)
    assert "nan" not in re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL).lower()
    assert "None<" not in html


def test_without_judged_pictures_the_page_says_so(tmp_path):
    material = make(["red", "bright"])
    unjudged = metrics_of(["red", "bright"], material.values[:0])
    for each in [*unjudged["attributes"], unjudged]:
        each |= {key: None for key in (*METRICS, "macro", "hamming", "log_loss") if key in each}
    material = dataclasses.replace(material, probabilities=None, metrics=unjudged)
    html = html_of(material, tmp_path)
    assert "No picture was judged in this run" in html
    assert "Hardest pictures" not in html and "macro average precision" not in html
    page = Page(html)
    targets = {attrs["href"][1:] for tag, attrs in page.elements if tag == "a"}
    assert targets <= {attrs.get("id") for _, attrs in page.elements}
    # The data's holes are those of all rows, judged or not.
    bars = [attrs["aria-label"] for _, attrs in page.elements if attrs.get("class") == "bar"]
    cells = material.values[:, 0]
    counts = [int((cells == 1).sum()), int((cells == 0).sum()), int(np.isnan(cells).sum())]
    assert bars[0] == "{} present, {} absent, {} not known".format(*counts)


def test_what_nobody_looked_for_is_not_said_to_be_absent(tmp_path):
    assert "was found" not in html_of(make(["red"]), tmp_path)
    html = html_of(make(["red"], suspects=[], duplicates=[]), tmp_path)
    assert html.count("None was found.") == 2


def test_every_number_may_be_null(tmp_path):
    def emptied(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: v if k == "name" else emptied(v) for k, v in value.items()}
        return [emptied(each) for each in value] if isinstance(value, list) else None

    material = make(["red", "bright"])
    html = html_of(dataclasses.replace(material, metrics=emptied(material.metrics)), tmp_path)
    assert ">red<" in html and "–" in html
    assert "None" not in html
    gone = {"attributes": [{"name": "red"}, {"name": "other"}]}
    assert ">other<" in html_of(dataclasses.replace(material, metrics=gone), tmp_path)


def test_a_page_that_fails_leaves_the_old_one(tmp_path):
    old = html_of(make(["red"]), tmp_path)
    with pytest.raises(KeyError):
        write_report(tmp_path / "report.html", make(["red"], metrics={"attributes": [{}]}))
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == old
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError):
        write_report(tmp_path / "file" / "report.html", make(["red"]))


def test_small_pictures_are_in_the_page_and_missing_ones_are_said_to_be(tmp_path):
    rng = np.random.default_rng(0)
    good, big = tmp_path / "good.png", tmp_path / "big.png"
    Image.fromarray(rng.integers(0, 255, (900, 700, 3), dtype=np.uint8)).save(big)
    Image.fromarray(np.zeros((3, 3, 3), np.uint8)).save(good)
    paths = [(good, big, tmp_path / "none.png")[i % 3] for i in range(60)]
    html = html_of(make(["red", "bright"], paths=paths), tmp_path)
    assert html.count("data:image/jpeg;base64,") >= PICTURES
    assert "cannot be shown" in html
    assert len(html) < 1_000_000


def test_forty_attributes_with_long_names_stay_small(tmp_path):
    names = [f"{'a long name, Ärmellänge 長袖 ' * 3} {'abcdefgh'[k % 8] * k}" for k in range(40)]
    history = History(tuple(names), np.linspace(1, 0.1, 20_000).tolist())
    history.rates, history.stages = [1.0] * 20_000, ["head"] * 20_000
    html = html_of(make(names, rows=3000, history=history), tmp_path)
    assert len(html.encode()) < 1_500_000
    assert all(name in html for name in names)


# ------------------------------------------------------------------------------------- numbers


def test_phi_is_the_correlation_on_jointly_known_cells():
    values = make(["a", "b", "c"], rows=200).values
    found = phi(values)
    for i in range(3):
        for j in range(3):
            known = ~np.isnan(values[:, i] + values[:, j])
            expected = np.corrcoef(values[known, i], values[known, j])[0, 1]
            assert found[i, j] == pytest.approx(expected)


def test_counts_and_pictures_against_their_definitions():
    material = make(["a", "b", "c"], rows=80, seed=3)
    shown = shown_numbers(material)
    worst = {}
    for k, counts in enumerate(shown["confusion"]):
        expected = dict.fromkeys(
            ("true_present", "false_absent", "false_present", "true_absent"), 0
        )
        for i in range(80):
            truth, p = material.values[i, k], material.probabilities[i, k]
            if np.isnan(truth):
                continue
            decided = p >= 0.4
            word = "true" if decided == truth else "false"
            expected[f"{word}_{'present' if decided else 'absent'}"] += 1
            worst[i, k] = -np.log(p if truth else 1 - p)
        assert {key: counts[key] for key in expected} == expected
    (row, k), _ = max(worst.items(), key=lambda item: item[1])
    first = shown["hardest"][0]
    assert (first["row"], first["attribute"]) == (row, "abc"[k])
    assert first["probability"] == material.probabilities[row, k]
    distances = [abs(cell["probability"] - 0.4) for cell in shown["doubtful"]]
    assert distances == sorted(distances)
    known = ~np.isnan(material.values)
    assert distances[0] == np.abs(material.probabilities - 0.4)[known].min()
    for kind in ("hardest", "doubtful"):
        cells = shown[kind]
        assert len(cells) == PICTURES == len({cell["row"] for cell in cells})
        assert all(cell["label"] is not None for cell in cells)


def test_attributes_that_are_not_known_together_form_a_set():
    values = np.zeros((20, 5))
    values[:8, 0] = values[:8, 1] = np.nan
    values[:6, 2] = np.nan  # 6 of 8 shared with the first two
    values[15:, 3] = np.nan
    found = shown_numbers(make(list("abcde"), values=values, rows=20))["holes"]
    assert found == [{"attributes": ["a", "b", "c"], "all": 6, "any": 8}]


@settings(max_examples=10)
@given(st.integers(0, 2**32 - 1))
def test_what_stands_under_a_hole_changes_nothing(tmp_path_factory, seed):
    material = make(["a", "b", "c"], rows=40)
    holes, rng = np.isnan(material.values), np.random.default_rng(seed)
    junk = [0.0, 1.0, 0.5, 0.4, np.nan, *rng.random(4)]
    changed = dataclasses.replace(
        material,
        **{
            key: np.where(holes, rng.choice(junk, holes.shape), getattr(material, key))
            for key in ("probabilities", "raw", "thresholds")
        },
    )
    folder = tmp_path_factory.mktemp("report")
    assert shown_numbers(material) == shown_numbers(changed)
    assert html_of(material, folder) == html_of(changed, folder)


# ------------------------------------------------------------------------------------- pictures


def points(picture: str, kind: str) -> np.ndarray:
    """The places of the first line of a kind."""
    element = ElementTree.fromstring(str(picture))
    found = next(e for e in element.iter("polyline") if e.get("class") == kind)
    return np.array([pair.split(",") for pair in found.get("points").split()], dtype=float)


def test_curves_go_through_the_points_they_are_made_of():
    truth, p = np.array([1.0, 0, 1, 0]), np.array([0.9, 0.7, 0.7, 0.1])
    frame = charts._SMALL

    def places(x: list[float], y: list[float]) -> list[list[float]]:
        return [[frame.across(a), frame.up(b)] for a, b in zip(x, y, strict=True)]

    # From the highest threshold down: 1 of 1 right, 2 of 3 (a tie is one block), 2 of 4.
    found = points(charts.precision_recall(truth, p), "curve")
    assert found.tolist() == places([0.5, 1, 1], [1, 2 / 3, 0.5])
    found = points(charts.roc(truth, p), "curve")
    assert found.tolist() == places([0, 0, 0.5, 1], [0, 0.5, 1, 1])
    picture = charts.threshold_curves(truth, p, {"threshold": 0.7})
    assert points(picture, "second").tolist() == places([0.9, 0.7, 0.1], [1, 2 / 3, 0.5])
    assert points(picture, "third").tolist() == places([0.9, 0.7, 0.1], [0.5, 1, 1])
    assert points(picture, "curve").tolist() == places([0.9, 0.7, 0.1], [2 / 3, 0.8, 2 / 3])


def test_reliability_has_bins_of_about_equally_many_cells():
    rng = np.random.default_rng(0)
    p = rng.random(1000) ** 3
    truth = (rng.random(1000) < p).astype(np.float64)
    mean, share, cells = charts._bins(truth, p)
    assert cells.tolist() == [100] * 10
    assert np.all(np.diff(mean) > 0)
    assert np.sum(share * cells) == truth.sum()
    low, high = zip(*charts._wilson(share, cells), strict=True)
    assert np.mean((low <= mean) & (mean <= high)) >= 0.8
    # Equal probabilities stay in one bin, however many they are.
    mean, _, cells = charts._bins(truth, np.repeat([0.2, 0.7], 500))
    assert mean.tolist() == pytest.approx([0.2, 0.7]) and cells.tolist() == [500, 500]


def test_wilson_intervals_have_their_published_values():
    # Newcombe 1998, table I, method 3: 81 of 263 and 0 of 20.
    (low, high), (zero, most) = charts._wilson(np.array([81 / 263, 0]), np.array([263.0, 20]))
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    assert (zero, round(most, 4)) == (0, 0.1611)


def test_long_lines_are_thinned_and_keep_their_ends():
    x = np.linspace(0, 1, 5000)
    frame = Frame(200, 200)
    picture = f"<svg>{line(frame, x, x**8, 'curve')}</svg>"
    found = points(picture, "curve")
    assert len(found) <= POINTS
    assert found[0].tolist() == [frame.across(0), frame.up(0)]
    assert found[-1].tolist() == [frame.across(1), frame.up(1)]


def test_the_loss_curve_shows_stages_spikes_and_choosing_rows():
    losses = np.full(1000, 0.5)
    losses[[300, 700]] = 2.0, np.nan
    history = History(("a",), losses.tolist(), [1.0] * 1000, ["head"] * 400 + ["all"] * 600)
    validation = Validation(0.6, 0.5, 0.5, 0.5, (0.5,))
    history.epochs = [Epoch("head", 1, 400, 0.5, 1, validation), Epoch("all", 1, 900, 0.5, 1, None)]
    picture = str(charts.loss_curve(history, "title <x>"))
    element = ElementTree.fromstring(picture)
    assert "title <x>" in element.get("aria-label")
    assert {e.text for e in element.iter("text")} >= {"iteration_number", "training_loss", "all"}
    assert sum(e.get("class") == "border" for e in element.iter("line")) == 1
    assert sum(e.get("class") == "second-dot" for e in element.iter("circle")) == 1
    faint = [e for e in element.iter("polyline") if e.get("class") == "faint"]
    assert len(faint) == 2
    heights = [float(pair.split(",")[1]) for pair in faint[0].get("points").split()]
    assert min(heights) < 30  # the spike is not thinned away
    assert len(picture) < 20_000


def test_an_interval_without_bounds_is_a_dot():
    bare = charts.interval({"value": 0.5, "chance": None, "low": None, "high": None}, "AP")
    whole = charts.interval({"value": 0.5, "chance": 0.1, "low": 0.4, "high": 0.6}, "AP")
    assert "whisker" not in bare and "chance" not in bare and "circle" in bare
    assert "whisker" in whole and "interval 0.400 to 0.600" in whole and "guess" in whole
