"""What `inspect` finds in the drawn world, in words and as JSON."""

import json

from polytag.inspection import inspect_data


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
