"""Nothing half-written is ever read."""

import os
import stat

import pytest

from polytag.files import cache_folder, write_text, written_aside


def test_a_block_that_raises_leaves_the_old_file_and_no_litter(tmp_path):
    target = tmp_path / "numbers.csv"
    write_text(target, "old")
    with pytest.raises(RuntimeError), written_aside(target) as aside:
        aside.write_text("half of the n")
        assert target.read_text() == "old"
        raise RuntimeError
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["numbers.csv"]


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    target = tmp_path / "numbers.csv"
    with written_aside(target) as first, written_aside(target) as second:
        assert first != second
        assert first.suffix == second.suffix == ".csv"
        first.write_text("first")
        second.write_text("second")
    assert target.read_text() == "first"


def test_missing_folders_are_made(tmp_path):
    write_text(tmp_path / "a" / "b" / "c.txt", "x")
    assert (tmp_path / "a" / "b" / "c.txt").read_text() == "x"


def test_the_cache_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("POLYTAG_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("POLYTAG_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "polytag"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "polytag"


def test_a_link_stays_a_link_and_its_target_is_written(tmp_path):
    (tmp_path / "real").mkdir()
    target = tmp_path / "real" / "numbers.csv"
    target.write_text("old")
    link = tmp_path / "link.csv"
    link.symlink_to(target)
    write_text(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"


def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_text(pipe, "through")
        assert os.read(reader, 100) == b"through"
    finally:
        os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
