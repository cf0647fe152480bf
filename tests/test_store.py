"""Rows of features on disk: whole, or not there; whatever happens to their files."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from polytag.store import FeatureStore

SHAPE = (2, 5)


def names(*numbers: int) -> list[str]:
    return [f"{number:064x}" for number in numbers]


def rows(*numbers: int) -> tuple[np.ndarray, np.ndarray]:
    """Features and looks that say whose they are."""
    features = np.array([np.full(SHAPE, number) for number in numbers], np.float32)
    features += np.arange(features[0].size).reshape(SHAPE) / 16
    looks = np.array([np.full((8, 8, 3), number % 256) for number in numbers], np.uint8)
    return features, looks


def fill(store: FeatureStore, *numbers: int) -> None:
    store.add(names(*numbers), *rows(*numbers))


def assert_holds(store: FeatureStore, *numbers: int) -> None:
    assert all(name in store for name in names(*numbers))
    features, looks = store.read(names(*numbers))
    expected = rows(*numbers)
    assert np.array_equal(features, expected[0]) and np.array_equal(looks, expected[1])


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("[!.]*.npy"))


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "features" / ("ab" * 16)


# ------------------------------------------------------------------------------- what it is to do


def test_rows_are_there_after_the_store_is_closed(folder):
    store = FeatureStore(folder)
    fill(store, 1, 2, 3)
    fill(store, 4, 5, 6, 7)
    for each in (store, FeatureStore(folder)):
        assert_holds(each, 1, 2, 3, 4, 5, 6, 7)
        assert names(8)[0] not in each


def test_rows_come_in_the_order_asked_for_from_any_number_of_shards(folder):
    for start in range(0, 40, 2):
        fill(FeatureStore(folder), start, start + 1)
    assert_holds(FeatureStore(folder), *np.random.default_rng(0).permutation(40), 3, 3, 17)


def test_an_empty_hash_is_not_known(folder):
    store = FeatureStore(folder)
    fill(store, 1, 2)
    features, looks = store.read(["", *names(2), ""])
    assert np.isnan(features[[0, 2]]).all() and not looks[[0, 2]].any()
    assert np.array_equal(features[1:2], rows(2)[0]) and np.array_equal(looks[1:2], rows(2)[1])


def test_a_store_of_nothing_reads_nothing_and_makes_no_folder(folder):
    features, looks = FeatureStore(folder).read(["", ""])
    assert len(features) == len(looks) == 2 and not folder.exists()


def test_a_row_that_two_processes_computed_is_one_row(folder):
    first, second = FeatureStore(folder), FeatureStore(folder)
    fill(first, 1, 2)
    fill(second, 2, 3)
    assert_holds(FeatureStore(folder), 1, 2, 3)


# -------------------------------------------------------------------------------- what it survives

KILLED = """
import io, os, pathlib, signal, sys, numpy as np
from polytag.store import FeatureStore
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[2] == "half written":
    save = np.save
    def half(path, table):
        content = io.BytesIO()
        save(content, table)
        pathlib.Path(path).write_bytes(content.getvalue()[: len(content.getvalue()) // 2])
        die()
    np.save = half
else:
    pathlib.Path.replace = die
store = FeatureStore(pathlib.Path(sys.argv[1]))
store.add(["%064x" % 9], np.ones((1, 2, 5), np.float32), np.zeros((1, 8, 8, 3), np.uint8))
"""


@pytest.mark.parametrize("moment", ["half written", "written but not renamed"])
def test_a_process_killed_in_the_middle_of_writing_leaves_a_store_that_reads(
    folder, moment, caplog
):
    store = FeatureStore(folder)
    fill(store, 1, 2)
    command = [sys.executable, "-c", KILLED, str(folder), moment]
    assert subprocess.run(command, timeout=60).returncode == -signal.SIGKILL
    (remains,) = folder.glob(".*.npy")
    with caplog.at_level(logging.WARNING, "polytag"):
        other = FeatureStore(folder)
        assert_holds(other, 1, 2)
        assert names(9)[0] not in other
        assert remains.exists(), "somebody else may be writing it"
        del store, other
        again = FeatureStore(folder)
    assert not remains.exists(), "nobody else can be writing it"
    assert_holds(again, 1, 2)
    fill(again, 9)
    assert_holds(FeatureStore(folder), 1, 2, 9)
    assert caplog.records == []


WRITER = """
import pathlib, sys, time, numpy as np
from polytag.store import FeatureStore
start, folder, first = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), int(sys.argv[3])
print("ready", flush=True)
while not start.exists():
    time.sleep(0.001)
for number in range(first, first + 12):
    store = FeatureStore(folder)
    features = np.full((1, 2, 5), number, np.float32)
    store.add(["%064x" % number], features, np.zeros((1, 8, 8, 3), np.uint8))
    assert all("%064x" % each in FeatureStore(folder) for each in range(first, number + 1))
"""


def test_two_processes_can_fill_one_store_at_once(folder, tmp_path):
    words = [sys.executable, "-c", WRITER, str(tmp_path / "start"), str(folder)]
    writers = [subprocess.Popen([*words, str(first)], stdout=subprocess.PIPE) for first in (0, 6)]
    for writer in writers:
        assert writer.stdout.readline() == b"ready\n"
    (tmp_path / "start").touch()
    for writer in writers:
        writer.communicate(timeout=120)
        assert writer.returncode == 0
    store = FeatureStore(folder)
    assert len(shards(folder)) == 24 and all(name in store for name in names(*range(18)))
    assert np.array_equal(store.read(names(*range(18)))[0][:, 0, 0], range(18))


def with_another_bit(content: bytes, place: int) -> bytes:
    place %= len(content)
    return content[:place] + bytes([content[place] ^ 64]) + content[place + 1 :]


FEATURES = 3 * 2 * 5 * 4  # bytes of a shard of three rows; they stand last, before them the looks
DAMAGES = {
    "cut in half": lambda content: content[: len(content) // 2],
    "cut by one byte": lambda content: content[:-1],
    "cut in its header": lambda content: content[:20],
    "empty": lambda content: b"",
    "zeros": lambda content: bytes(len(content)),
    "a zip archive's beginning": lambda content: b"PK\x03\x04" + content[4:],
    "text": lambda content: b"<html>not found</html>",
    "a header of nonsense": lambda content: content[:10] + b"#" * 60 + content[70:],
    "a bit of a feature": lambda content: with_another_bit(content, -1),
    "a bit of a look": lambda content: with_another_bit(content, -FEATURES - 1),
    "a bit of a checksum": lambda content: with_another_bit(content, -FEATURES - 3 * 192 - 1),
    "a page of zeros": lambda content: content[:-FEATURES] + bytes(FEATURES),
    "two numbers exchanged": lambda content: content[:-8] + content[-4:] + content[-8:-4],
    "two rows exchanged": lambda content: (
        content[:-FEATURES] + content[-FEATURES // 3 :] + content[-FEATURES : -FEATURES // 3]
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_left_out_with_one_warning(folder, caplog, damage):
    fill(FeatureStore(folder), 1, 2, 3)
    (victim,) = shards(folder)
    fill(FeatureStore(folder), 4, 5)
    victim.write_bytes(DAMAGES[damage](victim.read_bytes()))
    with caplog.at_level(logging.WARNING, "polytag"):
        store = FeatureStore(folder)
        there = [number for number in (1, 2, 3) if names(number)[0] in store]
        assert_holds(store, *there, 4, 5)
    assert names(3)[0] not in store, "the last row is in every damage"
    assert str(victim) in caplog.text and len(caplog.records) == 1
    fill(store, *({1, 2, 3} - set(there)))
    assert_holds(store, 1, 2, 3, 4, 5)


def test_damage_to_one_row_costs_that_row(folder):
    fill(FeatureStore(folder), 1, 2, 3)
    (victim,) = shards(folder)
    victim.write_bytes(with_another_bit(victim.read_bytes(), -1))
    store = FeatureStore(folder)
    assert_holds(store, 1, 2)
    assert names(3)[0] not in store


def test_damage_to_a_row_that_is_there_twice_costs_nothing(folder):
    fill(FeatureStore(folder), 2, 1)
    fill(FeatureStore(folder), 3, 1)
    victim = shards(folder)[0]  # rows of the last shard are taken
    victim.write_bytes(with_another_bit(victim.read_bytes(), -1))
    assert_holds(FeatureStore(folder), 2, 3, 1)


@pytest.mark.parametrize("form", ["numbers", "rows of former versions", "rows of another width"])
def test_a_foreign_array_is_left_out(folder, caplog, form):
    fill(FeatureStore(folder), 1, 2)
    if form == "rows of another width":
        store = FeatureStore(folder.with_name("other"))
        store.add(names(3), np.zeros((1, 2, 6), np.float32), rows(3)[1])
        shards(folder.with_name("other"))[0].rename(folder / "z.npy")
    elif form == "numbers":
        np.save(folder / "z.npy", np.zeros((3, 4)))
    else:
        kinds = [("hash", "u1", (32,)), ("check", "<u4"), ("look", "u1", (8, 8, 3))]
        np.save(folder / "z.npy", np.zeros(1, [*kinds, ("features", "<f4", SHAPE)]))
    with caplog.at_level(logging.WARNING, "polytag"):
        store = FeatureStore(folder)
        assert_holds(store, 1, 2)
    assert "z.npy" in caplog.text and names(0)[0] not in store and names(3)[0] not in store


def test_a_pickle_does_not_run(folder, tmp_path):
    class Attack:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "ran",))

    fill(FeatureStore(folder), 1)
    np.save(folder / "evil.npy", np.array([Attack()], dtype=object), allow_pickle=True)
    assert_holds(FeatureStore(folder), 1)
    assert not (tmp_path / "ran").exists()
