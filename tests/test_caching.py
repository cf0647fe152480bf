"""The cache folder: what it holds, who uses it, what makes room, and what is never touched."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from polytag import cached
from polytag.cached import KINDS, clear, describe, entries, hold, make_room, size_bound
from polytag.cli.caching import cache as verb
from polytag.errors import UserError
from polytag.store import FeatureStore

DAY = 86400


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A cache folder of the test's own, which is not there yet."""
    monkeypatch.setenv("POLYTAG_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("POLYTAG_CACHE_SIZE", raising=False)
    return tmp_path / "cache"


def key(number: int) -> str:
    return f"{number:032x}"


def entry(place: Path, kind: str, number: int, size: int = 1000, days: float = 0) -> Path:
    """Make an entry of some bytes that was last used some days ago."""
    path = place / kind / key(number)
    if kind == "engines":
        path = path.with_suffix(".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(size))
    else:
        path.mkdir(parents=True)
        (path / "content.npy").write_bytes(bytes(size))
    used = time.time() - days * DAY
    os.utime(path, (used, used))
    return path


def everything(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


# ------------------------------------------------------------------------------ what is in a cache


def test_what_is_there_is_listed_by_kind_the_newest_first(place):
    entry(place, "trunks", 1, 700)
    entry(place, "features", 2, 500, days=3)
    entry(place, "features", 3, 600, days=1)
    entry(place, "engines", 4, 10)
    found = [(each.kind, each.what, each.bytes, each.files) for each in entries(place)]
    assert found == [
        ("features", key(3), 600, 1),
        ("features", key(2), 500, 1),
        ("trunks", key(1), 700, 1),
        ("engines", key(4), 10, 1),
    ]
    assert entries(place)[1].used == pytest.approx(time.time() - 3 * DAY, abs=60)


def test_an_entry_says_what_it_is_where_somebody_wrote_it_down(place):
    path = entry(place, "trunks", 1)
    describe(path, {"backbone": "resnet18", "size": 224, "engine": "onnxruntime"})
    describe(path, {"backbone": "another"})
    assert [each.what for each in entries(place)] == ["resnet18, 224, onnxruntime"]
    for nonsense in ("", "{", "[1]", '"text"', "{}", "\udcff"):
        (path / "about.json").write_text(nonsense, errors="surrogateescape")
        assert [each.what for each in entries(place)] == [key(1)]


def test_nothing_that_is_not_ours_is_listed_or_removed(place, tmp_path):
    for name in (
        *("notes.txt", "features/notes.npy", "features/dresses/a.npy", "photos/" + key(1)),
        *(f"features/{key(1)[1:]}/a.npy", f"features/{key(1)}0/a.npy", "engines/steam.json"),
        *("graphs/mine.onnx", f"engines/{key(3)}.toml", "trunks/elm"),
    ):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text("mine")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious.npy").write_text("mine")
    (place / "features" / key(7)).symlink_to(elsewhere)
    before = everything(tmp_path)
    assert entries(place) == [] and clear(place) == ([], [])
    assert everything(tmp_path) == before
    ours = entry(place, "features", 8)
    assert [each.path for each in clear(place)[0]] == [ours]
    assert everything(tmp_path) == before


def test_a_kind_on_another_disk_is_cleared_through_its_link(place, tmp_path):
    entry(tmp_path / "large disk", "features", 1)
    place.mkdir()
    (place / "features").symlink_to(tmp_path / "large disk" / "features")
    assert len(clear(place)[0]) == 1
    assert list((place / "features").iterdir()) == []


# ---------------------------------------------------------------------------------- who uses what

USER = """
import pathlib, sys
from polytag.store import FeatureStore
store = FeatureStore(pathlib.Path(sys.argv[1]))
print("ready", flush=True)
input()
name = "%064x" % 1
print(name in store and store.read([name])[0].tolist(), flush=True)
"""


@pytest.fixture
def user() -> Iterator[Callable[[Path], subprocess.Popen[str]]]:
    """Start a process that opens a store, says so, and reads it when it is told to."""
    started = []

    def start(folder: Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", USER, str(folder)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        started.append(subprocess.Popen(command, text=True, **pipes))
        assert started[-1].stdout.readline() == "ready\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_what_another_process_uses_is_left_until_it_ends(place, user, monkeypatch):
    folder = place / "features" / key(1)
    FeatureStore(folder).add(
        [f"{1:064x}"], np.ones((1, 1, 2), np.float32), np.zeros((1, 8, 8, 3), np.uint8)
    )
    process = user(folder)
    removed, left = clear(place)
    assert removed == [] and [each.path for each in left] == [folder]
    monkeypatch.setenv("POLYTAG_CACHE_SIZE", "1B")
    make_room(0)
    assert process.communicate("\n", timeout=60)[0] == "[[[1.0, 1.0]]]\n"
    removed, left = clear(place)
    assert [each.path for each in removed] == [folder] and left == []
    assert list(folder.parent.iterdir()) == []


def test_a_user_that_was_killed_uses_nothing(place, user):
    folder = entry(place, "features", 1)
    process = user(folder)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    assert [each.path for each in clear(place)[0]] == [folder]


def test_a_reader_keeps_what_it_has_open_even_where_there_are_no_locks(place):
    folder = place / "features" / key(1)
    store = FeatureStore(folder)
    store.add([f"{1:064x}"], np.ones((1, 1, 2), np.float32), np.zeros((1, 8, 8, 3), np.uint8))
    store.held.release()
    assert len(clear(place)[0]) == 1 and not folder.exists()
    assert f"{1:064x}" in store and store.read([f"{1:064x}"])[0].tolist() == [[[1, 1]]]


def test_to_hold_is_to_use_now(place):
    old, older = entry(place, "trunks", 1, days=3), entry(place, "trunks", 2, days=9)
    hold(older).release()
    os.utime(older, (time.time() - 9 * DAY,) * 2)
    assert [each.path for each in entries(place)] == [old, older]
    held = hold(older)
    assert [each.path for each in entries(place)] == [older, old]
    assert [each.path for each in clear(place)[0]] == [old]
    held.release()
    held.release()
    assert [each.path for each in clear(place)[0]] == [older]


@pytest.mark.parametrize("another", [False, True])
def test_a_folder_that_is_removed_while_it_is_taken_is_taken_anew(place, monkeypatch, another):
    folder = entry(place, "trunks", 1)
    locked, calls = cached._locked, []

    def late(descriptor: int, how: int) -> bool:
        calls.append(how)
        if len(calls) == 1:
            shutil.rmtree(folder)
            if another:  # process was quicker to make it anew
                folder.mkdir()
                (folder / ".lock").touch()
        return locked(descriptor, how)

    monkeypatch.setattr(cached, "_locked", late)
    held = hold(folder)
    assert len(calls) == 2 and folder.is_dir()
    assert clear(place)[1][0].path == folder
    held.release()


def test_a_cache_that_cannot_be_written_to_is_used_without_a_lock(place, monkeypatch):
    folder = entry(place, "trunks", 1)

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(os, "utime", refuse)
    assert hold(folder) is None


def test_what_a_killed_writer_left_is_removed_when_nobody_else_uses_the_folder(place):
    folder = entry(place, "trunks", 1)
    remains = folder / ".part.4711-0badcafe.npy"
    remains.write_text("half")
    first = hold(folder)
    assert not remains.exists()
    remains.write_text("half")
    second = hold(folder)
    assert remains.exists()
    first.release()
    second.release()


def test_what_a_killed_clear_left_is_the_next_ones(place):
    folder = entry(place, "features", 1)
    folder.rename(folder.with_name(f".{key(1)}.4711-0badcafe"))
    assert [each.bytes for each in entries(place)] == [1000]
    assert len(clear(place)[0]) == 1
    assert list((place / "features").iterdir()) == []


def test_nobody_ever_finds_half_an_entry(place, monkeypatch):
    folder = entry(place, "backbones", 1)
    seen = []
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: seen.append(folder.exists()))
    clear(place)
    assert seen == [False]


# ---------------------------------------------------------------------------------------- its bound


def test_what_was_not_used_for_longest_makes_room(place, monkeypatch, caplog):
    paths = [entry(place, "features", day, days=day) for day in range(5)]
    paths[3].rename(place / "moved")
    (place / "trunks").mkdir()
    paths[3] = (place / "moved").rename(place / "trunks" / key(3))
    monkeypatch.setenv("POLYTAG_CACHE_SIZE", "3500")
    with caplog.at_level(logging.INFO, "polytag"):
        assert make_room(500) == 500
    assert [path.exists() for path in paths] == [True, True, True, False, False]
    assert len(caplog.records) == 2
    assert make_room(501) == 1500
    assert [path.exists() for path in paths] == [True, True, False, False, False]


def test_what_is_in_use_or_to_be_kept_makes_no_room(place, monkeypatch):
    oldest, kept, newest = (entry(place, "trunks", day, days=9 - day) for day in range(3))
    held = hold(oldest)
    monkeypatch.setenv("POLYTAG_CACHE_SIZE", "2500B")
    assert make_room(10_000, keep=kept) == 500
    assert oldest.exists() and kept.exists() and not newest.exists()
    held.release()


def test_there_is_no_room_in_a_cache_over_its_bound(place, monkeypatch):
    entry(place, "engines", 1, 300)
    monkeypatch.setenv("POLYTAG_CACHE_SIZE", "200")
    assert make_room(1) == 0 and len(entries(place)) == 1


def test_without_a_bound_the_disk_is_the_bound(place, monkeypatch):
    path = entry(place, "features", 1)
    monkeypatch.setenv("POLYTAG_CACHE_SIZE", "0")
    assert make_room(10**18) > 10**6
    assert path.exists()


def test_room_is_made_in_a_cache_that_is_not_there(place):
    assert 0 < make_room(1) <= 20 * 10**9


@pytest.mark.parametrize(
    ("text", "size"),
    [
        *((None, 20 * 10**9), ("", 20 * 10**9), ("0", None), ("0GB", None), ("123", 123)),
        *(("5G", 5 * 10**9), ("1.5 gb", 15 * 10**8), ("2GiB", 2**31), ("3mi", 3 * 2**20)),
        *(("7kB", 7000), ("1T", 10**12), ("64B", 64)),
    ],
)
def test_sizes_are_written_as_people_write_them(monkeypatch, text, size):
    if text is None:
        monkeypatch.delenv("POLYTAG_CACHE_SIZE", raising=False)
    else:
        monkeypatch.setenv("POLYTAG_CACHE_SIZE", text)
    assert size_bound() == size


@pytest.mark.parametrize("text", ["much", "-1", "5 PB", "1e9", "GB", "i", "3iB", "٣"])
def test_what_is_no_size_is_an_error_that_says_so(monkeypatch, text):
    monkeypatch.setenv("POLYTAG_CACHE_SIZE", text)
    with pytest.raises(UserError, match="POLYTAG_CACHE_SIZE: not a size"):
        size_bound()


# ----------------------------------------------------------------------------- the command line


def test_info_is_a_table_of_80_columns_with_a_total(place, cli):
    facts = {"backbone": "a backbone with a name that is longer than its column", "size": 224}
    describe(entry(place, "features", 1, 20_964_000, days=3), facts)
    os.utime(place / "features" / key(1), (time.time() - 3 * DAY,) * 2)
    entry(place, "backbones", 2, 999)
    answer = cli("cache", "info")
    head, first, second, total = answer.out.splitlines()
    assert answer.code == 0 and max(map(len, (head, first, second))) <= 80
    assert first.startswith("features ") and "a backbone with" in first and "…" in first
    assert "21.0 MB" in first and "3 days ago" in first
    assert second.split() == ["backbones", key(2), "999", "B", "just", "now"]
    assert total == f"2 entries, 21.0 MB of at most 20.0 GB, in {place}"


def test_info_of_nothing(place, cli, monkeypatch):
    assert cli("cache", "info").out == f"0 entries, 0 B of at most 20.0 GB, in {place}\n"
    monkeypatch.setenv("POLYTAG_CACHE_SIZE", "0")
    assert cli("cache", "info").out == f"0 entries, 0 B (no bound), in {place}\n"
    assert not place.exists()


def test_info_as_json(place, cli):
    describe(entry(place, "trunks", 1, 50), {"backbone": "resnet18"})
    found = cli("cache", "info", "--json").json
    assert (found["folder"], found["bound"]) == (str(place), 20 * 10**9)
    (listed,) = found["entries"]
    assert (listed["kind"], listed["key"], listed["files"]) == ("trunks", key(1), 2)
    assert listed["about"] == {"backbone": "resnet18"}
    assert found["bytes"] == listed["bytes"] > 50
    assert listed["last_used"] == pytest.approx(time.time(), abs=60)


def test_clear_says_what_it_removed(place, cli):
    for number, kind in enumerate(KINDS):
        entry(place, kind, number)
    answer = cli("cache", "clear")
    assert (answer.code, answer.out) == (0, "removed 4 entries, 4.0 kB\n")
    assert entries(place) == []
    assert cli("cache", "clear").out == "removed 0 entries, 0 B\n"


def test_clear_of_some_kinds(place, cli):
    for number, kind in enumerate(KINDS):
        entry(place, kind, number)
    cli("cache", "clear", "--kind", "trunks", "--kind", "engines")
    assert [each.kind for each in entries(place)] == ["features", "backbones"]


@pytest.mark.parametrize(("age", "left"), [("30d", 2), ("1w", 1), ("24h", 1), ("90m", 0)])
def test_clear_of_what_is_old(place, cli, age, left):
    for number, days in enumerate((0.1, 20, 40)):
        entry(place, "features", number, days=days)
    answer = cli("cache", "clear", "--older-than", age, "--json")
    assert len(entries(place)) == left and len(answer.json["removed"]) == 3 - left
    assert answer.json["bytes"] == 1000 * (3 - left) and answer.json["in_use"] == []


def test_clear_names_what_is_in_use(place, cli):
    held = hold(entry(place, "trunks", 1))
    answer = cli("cache", "clear")
    assert (answer.code, answer.out) == (0, "removed 0 entries, 0 B\n")
    assert f"still in use: trunks: {key(1)}" in answer.err
    assert [each["key"] for each in cli("cache", "clear", "--json").json["in_use"]] == [key(1)]
    held.release()


@pytest.mark.parametrize("age", ["", "30", "d", "-3d", "3y", "soon"])
def test_an_age_that_is_none_removes_nothing(place, cli, age):
    entry(place, "features", 1, days=1000)
    answer = cli("cache", "clear", "--older-than", age)
    assert answer.code == 2 and "--older-than" in answer.err
    assert len(entries(place)) == 1


def test_every_kind_can_be_named():
    (option,) = [each for each in verb.commands["clear"].params if each.name == "kinds"]
    assert list(option.type.choices) == list(KINDS)


def test_every_option_has_help():
    for command in verb.commands.values():
        assert command.help and all(option.help for option in command.params)


def test_what_cannot_be_removed_is_named_and_the_rest_is_removed(place, monkeypatch, caplog):
    first, second = entry(place, "features", 1), entry(place, "features", 2, days=1)
    rename = Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if path == first:
            raise PermissionError(13, "Permission denied")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with caplog.at_level(logging.WARNING, "polytag"):
        removed, left = clear(place)
    assert [each.path for each in removed] == [second] and left == []
    assert str(first) in caplog.text and first.exists()


def test_the_verb_loads_nothing_that_computes(place):
    describe(entry(place, "features", 1), {"backbone": "resnet18"})
    program = (
        "import sys, json; sys.argv[1:] = ['cache', 'info', '--json']\n"
        "from polytag.cli import main\n"
        "main()\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stdout.splitlines()[1]))
    heavy = {"torch", "timm", "scipy", "onnx", "onnxruntime", "openvino", "polars", "pydantic"}
    assert not loaded & {*heavy, "numpy", "PIL"}
