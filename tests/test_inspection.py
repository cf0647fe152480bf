"""What `inspect` finds in the drawn world, in words and as JSON."""

import io
import json

from PIL import Image, ImageOps

from polytag.drawing import draw_picture
from polytag.inspection import inspect_data
from polytag.table import LabelTable


def test_it_counts_rows_cells_and_pictures(world):
    found = inspect_data(world.table(), world.images)
    assert found.usable == len(world.good) == 60
    assert [row.image for row in found.skipped] == ["missing.png", "broken.png"]
    assert found.skipped[0].reason == "no such file"
    assert "truncated" in found.skipped[1].reason
    content = found.to_dict()
    for entry, column in zip(content["attributes"], world.values.T, strict=True):
        expected = ((column == 1).sum(), (column == 0).sum(), (column != column).sum())
        assert (entry["present"], entry["absent"], entry["na"]) == expected
    assert json.loads(json.dumps(content)) == content


def test_it_names_identical_pictures_and_attributes_that_cannot_be_trained(world):
    found = inspect_data(world.table(), world.images)
    assert found.identical == [[world.names[0], "twin.png"]]
    text = found.to_text()
    assert f"groups of byte-identical files: 1 (2 rows), such as {world.names[0]} = twin" in text
    assert "never said cannot be trained: no known cell" in text
    assert "always cannot be trained: one class only" in text


def test_it_says_what_every_cell_became_and_fits_eighty_columns(world, monkeypatch):
    monkeypatch.chdir(world.labels.parent)
    table = world.table()
    assert "'NA' = not known" in table.cells
    lines = inspect_data(table, world.images).to_text().splitlines()
    assert [line for line in lines if len(line) > 80 and str(world.labels) not in line] == []
    assert any("'NA' = not known" in line for line in lines)


def test_it_names_pictures_that_were_only_saved_differently(tmp_path):
    drawn = [Image.open(io.BytesIO(draw_picture(5, index))) for index in range(3)]
    for name, image in zip("abc", drawn, strict=True):
        image.save(tmp_path / f"{name}.png")
    drawn[0].reduce(2).save(tmp_path / "small.jpg")
    ImageOps.mirror(drawn[1]).save(tmp_path / "turned.jpg", quality=50)
    (tmp_path / "copy of c.png").write_bytes((tmp_path / "c.png").read_bytes())
    names = ["a.png", "b.png", "c.png", "small.jpg", "turned.jpg", "copy of c.png"]
    table = LabelTable.from_rows(names, ["red"], [[1], [0]] * 3)
    found = inspect_data(table, tmp_path)
    assert found.identical == [["c.png", "copy of c.png"]]
    assert found.similar == [["a.png", "small.jpg"], ["b.png", "turned.jpg"]]
    assert found.to_dict()["similar"] == found.similar
    told = "groups of one picture saved in different ways: 2 (4 rows), such as a.png = small.jpg"
    assert told in " ".join(found.to_text().split())
    assert inspect_data(table.select([0, 1, 2]), tmp_path).similar == []
