"""Order, bounds, errors and endings of the decoding pipeline, and its batches."""

from __future__ import annotations

import gc
import itertools
import os
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polytag.errors import ImageError, UserError
from polytag.images import decode
from polytag.pipeline import Batch, batches, default_threads, stream
from polytag.preprocess import PreprocessSpec, preprocess


def workers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("polytag")]


@pytest.fixture(autouse=True)
def no_thread_is_left_behind():
    yield
    assert workers() == []


def fail_on_odd(number: int) -> int:
    if number % 2:
        raise ImageError("odd", where=str(number))
    return number * 10


# ------------------------------------------------------------------------------------- stream


@pytest.mark.parametrize("threads", [1, 2, 8])
@pytest.mark.parametrize("ahead", [1, 3, 64])
def test_results_come_in_the_order_of_the_items(threads, ahead):
    def slow(number: int) -> int:
        time.sleep(0.002 * (number % 3))
        return -number

    results = list(stream(range(60), slow, threads=threads, ahead=ahead))
    assert results == [(number, -number) for number in range(60)]


def test_an_empty_stream_yields_nothing():
    assert list(stream([], fail_on_odd)) == []


def test_a_user_error_is_a_value_of_the_stream():
    results = dict(stream(range(6), fail_on_odd, threads=2))
    assert [number for number, result in results.items() if isinstance(result, UserError)] == [
        1,
        3,
        5,
    ]
    assert str(results[3]) == "3: odd"
    assert results[4] == 40


def test_any_other_error_is_raised_when_its_turn_comes():
    def work(number: int) -> int:
        if number == 3:
            raise ZeroDivisionError("a defect")
        return number

    seen = []
    with pytest.raises(ZeroDivisionError, match="a defect"):
        for item, _ in stream(range(100), work, threads=4):
            seen.append(item)
    assert seen == [0, 1, 2]


def test_an_error_of_the_items_themselves_is_raised():
    def items():
        yield 0
        raise RuntimeError("the list broke off")

    with pytest.raises(RuntimeError, match="broke off"):
        list(stream(items(), fail_on_odd))


def test_the_look_ahead_is_bounded_on_endless_generators():
    taken = itertools.count()
    latest = 0

    def items():
        nonlocal latest
        while True:
            latest = next(taken)
            yield latest

    for item, _ in itertools.islice(stream(items(), abs, threads=2, ahead=5), 200):
        assert latest - item < 5


def test_memory_stays_flat_however_long_the_stream():
    class Picture:
        pass

    alive: weakref.WeakSet[Picture] = weakref.WeakSet()
    most = 0

    def work(_: int) -> Picture:
        picture = Picture()
        alive.add(picture)
        return picture

    for _ in stream(range(500), work, threads=2, ahead=8):
        most = max(most, len(alive))
    assert most <= 8 + 2


def test_a_kept_error_does_not_keep_the_picture_that_failed():
    class Large:
        pass

    alive: weakref.WeakSet[Large] = weakref.WeakSet()

    def work(_: int) -> None:
        pixels = Large()
        alive.add(pixels)
        try:
            raise OSError("truncated")
        except OSError as error:
            raise ImageError("broken") from error

    errors = [result for _, result in stream(range(20), work, threads=2)]
    gc.collect()
    assert len(errors) == 20 and not alive


def test_items_are_taken_in_the_thread_of_the_caller():
    def items():
        for _ in range(20):
            yield threading.get_ident()

    assert {item for item, _ in stream(items(), abs)} == {threading.get_ident()}


def test_work_goes_on_while_the_caller_is_busy():
    done = threading.Semaphore(0)

    def work(number: int) -> int:
        done.release()
        return number

    results = stream(range(10), work, threads=2, ahead=8)
    next(results)
    for _ in range(8):
        assert done.acquire(timeout=5)
    results.close()


def test_threads_work_at_the_same_time():
    together = threading.Barrier(3)
    list(stream(range(9), lambda _: together.wait(timeout=5), threads=3))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, GeneratorExit])
def test_threads_end_when_the_caller_raises(error):
    with pytest.raises(error):
        for item, _ in stream(itertools.count(), abs, threads=3):
            assert workers()
            if item == 5:
                raise error
    assert workers() == []


def test_threads_end_when_the_caller_stops_early():
    started = []

    def work(number: int) -> int:
        started.append(number)
        time.sleep(0.01)
        return number

    for item, _ in stream(range(1000), work, threads=2, ahead=50):
        if item == 2:
            break
    assert workers() == []
    assert len(started) < 20  # what was waiting is dropped


def test_threads_end_when_the_caller_of_batches_stops_early():
    pictures = stream(itertools.count(), lambda _: np.zeros((2, 2, 3), np.uint8), threads=2)
    for _ in batches(pictures, 4):
        break
    del pictures
    assert workers() == []


def test_ctrl_c_while_waiting_ends_the_process_at_once(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import time, itertools, signal, threading, os\n"
        "from polytag.pipeline import stream\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # shells ignore it behind &
        "threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()\n"
        "try:\n"
        "    for _ in stream(itertools.count(), lambda _: time.sleep(0.2), threads=2): pass\n"
        "except KeyboardInterrupt:\n"
        "    names = [t.name for t in threading.enumerate() if t.name.startswith('polytag')]\n"
        "    print('interrupted', names)\n"
    )
    run = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=20, check=True
    )
    assert run.stdout == "interrupted []\n"


@pytest.mark.parametrize("threads", [0, -1])
def test_no_threads_at_all_is_refused(threads):
    with pytest.raises(ValueError, match="max_workers"):
        list(stream([1], abs, threads=threads))


def test_the_default_is_a_thread_for_each_processor():
    assert 1 <= default_threads() <= (os.cpu_count() or 1)


# ------------------------------------------------------------------------------------ batches


def picture(value: int) -> np.ndarray:
    return np.full((4, 4, 3), value, np.uint8)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.booleans(), max_size=40), st.integers(1, 9))
def test_batches_are_consecutive_items_with_the_pictures_of_those_that_are_ok(fates, size):
    broken = UserError("broken")
    results = [(i, picture(i) if fate else broken) for i, fate in enumerate(fates)]
    made = list(batches(results, size))
    assert [item for batch in made for item in batch.items] == list(range(len(fates)))
    assert [bool(ok) for batch in made for ok in batch.ok] == fates
    assert all(len(batch.items) == size for batch in made[:-1])
    for batch in made:
        good = [item for item, ok in zip(batch.items, batch.ok, strict=True) if ok]
        assert batch.images.dtype == np.uint8 and len(batch.images) == len(good)
        assert batch.images[:, 0, 0, 0].tolist() == good if good else batch.images.size == 0
        bad = [item for item in batch.items if item not in good]
        assert batch.failed == [(item, broken) for item in bad]


def test_a_batch_without_pictures_says_so_by_its_shape():
    (batch,) = batches([("a", UserError("broken")), ("b", UserError("broken"))], 8)
    assert batch.images.shape == (0, 0, 0, 3) and not batch.ok.any()
    assert [(item, str(error)) for item, error in batch.failed] == [
        ("a", "broken"),
        ("b", "broken"),
    ]


def test_the_mask_puts_rows_where_they_belong():
    batch = Batch(["a", "b", "c"], [None, UserError("x"), None], np.stack([picture(1), picture(3)]))
    table = np.full((3, 1), np.nan)
    table[batch.ok] = batch.images[:, 0, 0, :1]
    assert np.array_equal(table, [[1], [np.nan], [3]], equal_nan=True)


def test_a_batch_is_made_before_the_stream_ends():
    endless = ((number, picture(number % 256)) for number in itertools.count())
    first = next(batches(endless, 3))
    assert first.items == [0, 1, 2]


def test_pictures_of_different_sizes_and_empty_batches_are_defects():
    with pytest.raises(ValueError, match="same shape"):
        list(batches([("a", picture(0)), ("b", np.zeros((5, 5, 3), np.uint8))], 2))
    with pytest.raises(ValueError, match="at least 1"):
        list(batches([], 0))


# -------------------------------------------------------------------------------- all together


def test_nothing_heavy_is_loaded():
    code = "import sys, polytag.pipeline, polytag.preprocess, polytag.images; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    heavy = {"torch", "torchvision", "timm", "polars", "pydantic", "matplotlib", "onnxruntime"}
    assert not heavy & set(loaded)


def real_pictures() -> list[Path]:
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("POLYTAG_DATA", default)) / "dresses" / "images"
    if not folder.is_dir():
        pytest.skip("no measuring data here")
    return sorted(folder.iterdir())


def test_real_pictures_come_out_the_same_in_any_number_of_threads():
    paths = [*real_pictures()[:100], Path("missing.jpg")]
    spec = PreprocessSpec(64, "squash", "bicubic")

    def load(path: Path) -> np.ndarray:
        return preprocess(decode(path), spec)

    one, four = (list(batches(stream(paths, load, threads=threads), 32)) for threads in (1, 4))
    assert [batch.images.shape[0] for batch in one] == [32, 32, 32, 4]
    assert [str(error) for _, error in one[-1].failed] == ["missing.jpg: the file does not exist"]
    for left, right in zip(one, four, strict=True):
        assert left.items == right.items and np.array_equal(left.images, right.images)
