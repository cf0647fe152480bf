"""Run folders and files: named, found again, and whole or not there at all."""

from __future__ import annotations

import csv
import os
import stat
from pathlib import Path

import pytest

from polytag.errors import UserError
from polytag.files import write_text, written_aside
from polytag.images import content_hash
from polytag.predictor import load
from polytag.runs import Run, hashes_seen, mark_latest, new_run_folder, write_rows

# ----------------------------------------------------------------------------------- run folders


def test_runs_without_a_name_are_counted_and_never_share_a_folder(tmp_path):
    runs = tmp_path / "deep" / "runs"
    names = [new_run_folder(runs, None, "probe").name for _ in range(3)]
    assert names == ["probe-1", "probe-2", "probe-3"]
    assert new_run_folder(runs, None, "finetune").name == "finetune-1"
    assert all((runs / name).is_dir() for name in names)


def test_a_file_in_the_way_is_passed_over(tmp_path):
    (tmp_path / "probe-1").write_text("")
    assert new_run_folder(tmp_path, None, "probe").name == "probe-2"


@pytest.mark.parametrize("name", ["a", "with space", "ünïcode", "v1.2"])
def test_a_run_is_called_as_one_likes(tmp_path, name):
    assert new_run_folder(tmp_path, name, "probe") == tmp_path / name
    with pytest.raises(UserError, match=r"exists already.*another --name"):
        new_run_folder(tmp_path, name, "probe")


@pytest.mark.parametrize(
    "name", ["", ".", "..", "latest", "a/b", "/abs", "../up", "a/", "-x", ".x"]
)
def test_a_name_that_is_no_plain_folder_name_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="not a name for a run"):
        new_run_folder(tmp_path / "runs", name, "probe")
    assert sorted(p.name for p in tmp_path.rglob("*")) in ([], ["runs"])


def test_a_file_where_the_runs_should_be_kept_is_an_error_that_names_it(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(UserError, match="runs"):
        new_run_folder(tmp_path / "runs", None, "probe")


def test_latest_points_to_the_newest_run_also_when_the_folder_moves(tmp_path):
    for name in ("a", "b"):
        run = new_run_folder(tmp_path / "runs", name, "probe")
        (run / "which").write_text(name)
        mark_latest(run)
        assert (tmp_path / "runs" / "latest" / "which").read_text() == name
    (tmp_path / "runs").rename(tmp_path / "moved")
    assert (tmp_path / "moved" / "latest" / "which").read_text() == "b"
    assert sorted(p.name for p in (tmp_path / "moved").iterdir()) == ["a", "b", "latest"]


def test_a_folder_called_latest_is_left_alone(tmp_path):
    (tmp_path / "latest").mkdir()
    (tmp_path / "latest" / "mine.txt").write_text("mine")
    mark_latest(new_run_folder(tmp_path, "a", "probe"))
    assert (tmp_path / "latest" / "mine.txt").read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "latest"]


def test_where_links_are_not_allowed_a_run_is_still_a_run(tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise OSError("links are not allowed here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    mark_latest(new_run_folder(tmp_path, "a", "probe"))
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_run_can_be_used_wherever_a_path_can(run):
    assert isinstance(run, Run) and os.fspath(run) == str(run.path)
    assert (Path(run) / "model.onnx").is_file()


# --------------------------------------------------------------------------------------- its tables


def test_rows_are_written_as_csv_and_nothing_becomes_an_empty_cell(tmp_path):
    rows = [["a,b", 1, None], ['"q"\n', 0.5, "ü"]]
    write_rows(tmp_path / "t.csv", ["x", "y", "z"], rows)
    with (tmp_path / "t.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [["x", "y", "z"], ["a,b", "1", ""], ['"q"\n', "0.5", "ü"]]


def test_rows_that_fail_half_way_leave_the_old_file(tmp_path):
    write_rows(tmp_path / "t.csv", ["x"], [["old"]])

    def rows():
        yield ["new"]
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_rows(tmp_path / "t.csv", ["x"], rows())
    assert (tmp_path / "t.csv").read_text() == "x\nold\n"
    assert [p.name for p in tmp_path.iterdir()] == ["t.csv"]


def test_what_a_run_saw_is_known_by_content_and_only_from_its_own_splits(run, world, tmp_path):
    made_with = load(run).info.splits_hash
    seen = {content_hash(world.path(name)) for name in world.good}
    assert hashes_seen(run.path, made_with) == seen
    assert hashes_seen(tmp_path, made_with) is None  # a bare model file
    (tmp_path / "splits.csv").write_text("image,content_hash,group,fold\n")
    assert hashes_seen(tmp_path, made_with) is None  # somebody else's splits


# ------------------------------------------------------------------------------ whole or not at all


def test_a_file_appears_whole_and_its_aside_is_gone(tmp_path):
    with written_aside(tmp_path / "new" / "deep" / "a.txt") as aside:
        aside.write_text("half")
        assert not (tmp_path / "new" / "deep" / "a.txt").exists()
        assert aside.suffix == ".txt" and aside.name.startswith(".")
        aside.write_text("whole")
    assert (tmp_path / "new" / "deep" / "a.txt").read_text() == "whole"
    assert len(list((tmp_path / "new" / "deep").iterdir())) == 1


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_whatever_stops_the_writing_the_old_file_stays(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error), written_aside(path) as aside:
        aside.write_text("half")
        raise error
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_a_block_that_writes_nothing_is_noticed_and_the_old_file_stays(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), written_aside(path):
        pass
    assert path.read_text() == "old"


def test_text_is_utf_8_with_plain_line_ends_everywhere(tmp_path):
    write_text(tmp_path / "a.txt", "ä\nb\n")
    assert (tmp_path / "a.txt").read_bytes() == b"\xc3\xa4\nb\n"


def test_a_written_file_can_be_read_by_others_as_any_new_file(tmp_path):
    (tmp_path / "plain").write_text("")
    write_text(tmp_path / "ours", "")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "ours")}
    assert len(modes) == 1
