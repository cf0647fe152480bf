"""The drawn data set: what the table says, what lies on disk, and that a seed means something."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from polytag import drawing
from polytag.drawing import ATTRIBUTES, DrawnDataset, draw_dataset
from polytag.errors import UserError

COUNT = 25


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> DrawnDataset:
    return draw_dataset(tmp_path_factory.mktemp("drawn"), count=COUNT, seed=3)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def table(drawn: DrawnDataset) -> list[list[str]]:
    with drawn.labels.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_the_table_names_every_picture_and_every_attribute(drawn: DrawnDataset) -> None:
    header, *rows = table(drawn)
    assert header == ["image", *drawn.attributes]
    assert [row[0] for row in rows] == [f"garment_{k:04d}.jpg" for k in range(COUNT)]
    assert {cell for row in rows for cell in row[1:]} == {"0", "1", "NA"}
    assert len(drawn.attributes) == 5 and set(drawn.chance) < set(drawn.attributes)
    assert all(name.isidentifier() and name == name.lower() for name in drawn.attributes)


def test_three_files_are_missing_and_one_is_broken(drawn: DrawnDataset) -> None:
    named = {row[0] for row in table(drawn)[1:]}
    there = {path.name for path in drawn.images.iterdir()}
    assert named - there == set(drawn.missing) and len(drawn.missing) == 3
    assert there <= named and len(drawn.broken) == 1
    broken = set()
    for name in there:
        try:
            Image.open(io.BytesIO((drawn.images / name).read_bytes())).load()
        except OSError:
            broken.add(name)
    assert broken == set(drawn.broken)


def test_pictures_are_colour_jpegs_of_many_sizes(drawn: DrawnDataset) -> None:
    sizes = set()
    for path in sorted(drawn.images.iterdir()):
        with Image.open(path) as image:
            assert (image.format, image.mode) == ("JPEG", "RGB")
            assert 190 <= min(image.size) <= 320
            assert max(image.size) <= 1.6 * min(image.size)
            sizes.add(image.size)
    assert len(sizes) > 10
    assert any(w > h for w, h in sizes) and any(w < h for w, h in sizes)


def test_the_same_seed_gives_the_same_bytes(drawn: DrawnDataset, tmp_path: Path) -> None:
    draw_dataset(tmp_path / "new" / "folder", count=COUNT, seed=3)
    assert contents(tmp_path) == contents(drawn.labels.parent)


def test_another_seed_gives_other_pictures(drawn: DrawnDataset, tmp_path: Path) -> None:
    other = draw_dataset(tmp_path, count=8, seed=4)
    mine, theirs = contents(drawn.images), contents(other.images)
    assert all(mine[name] != theirs[name] for name in mine.keys() & theirs.keys())
    assert table(other)[1:] != table(drawn)[1:9]


def test_fewer_rows_are_the_first_of_the_same_pictures(drawn: DrawnDataset, tmp_path: Path) -> None:
    few = draw_dataset(tmp_path, count=10, seed=3)
    assert table(few) == table(drawn)[:11]
    mine, theirs = contents(drawn.images), contents(few.images)
    both = (mine.keys() & theirs.keys()) - {*drawn.broken, *few.broken}
    assert len(both) >= 3 and all(mine[name] == theirs[name] for name in both)


@pytest.mark.parametrize("seed", [0, 42])
def test_shares_of_present_and_unknown_cells(seed: int) -> None:
    rows = [drawing.table_cells(seed, k) for k in range(975)]
    true = np.array([list(drawing.truth(seed, k).values()) for k in range(975)])
    cells = np.array(rows)
    assert true.mean(axis=0) == pytest.approx(list(ATTRIBUTES.values()), abs=0.04)
    assert (cells == "NA").mean(axis=0) == pytest.approx([0.1] * 5, abs=0.03)
    assert np.array_equal(cells == "1", true & (cells != "NA"))  # a known cell is the truth


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_a_picture_shows_what_is_true_and_nothing_of_chance(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, true = drawing.draw_picture(1, 0), drawing.truth(1, 0)
    monkeypatch.setattr(drawing, "truth", lambda seed, index: {**true, name: not true[name]})
    assert (drawing.draw_picture(1, 0) == before) == (name == "washable")


@pytest.mark.parametrize("cut", drawing.CUTS, ids=lambda cut: f"length{cut.length}")
def test_every_cut_fits_its_ranges(cut: drawing.Cut) -> None:
    shape = drawing.tailor(cut, np.random.default_rng(0))
    points = np.concatenate(shape.parts)
    assert np.isfinite(points).all()
    assert cut.length[0] - 0.1 <= np.ptp(points[:, 1]) <= cut.length[1] + 0.1
    assert len(shape.parts) in ((1, 3) if cut.sleeve[0] == 0 else (3,))


def test_pictures_are_neither_black_nor_blown_out() -> None:
    for index in range(10):
        grey = np.asarray(Image.open(io.BytesIO(drawing.draw_picture(5, index))).convert("L"))
        assert 20 < grey.mean() < 250 and grey.std() > 5


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me", encoding="utf-8")
    for folder in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(UserError, match=r"already here.*name a folder that does not exist"):
            draw_dataset(folder, count=5)
    assert contents(tmp_path) == {"mine.txt": b"keep me"}


@pytest.mark.parametrize(("count", "seed"), [(4, 0), (0, 0), (-1, 0), (10, -1)])
def test_too_few_rows_or_a_negative_seed_are_refused(count: int, seed: int, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a count from 5 and a seed from 0"):
        draw_dataset(tmp_path / "new", count=count, seed=seed)
    assert not (tmp_path / "new").exists()


def test_five_rows_are_enough(tmp_path: Path) -> None:
    few = draw_dataset(tmp_path, count=5)
    assert len(set(few.missing) | set(few.broken)) == 4
    assert len(contents(few.images)) == 2
