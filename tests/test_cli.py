"""The command line: what goes to which stream, in which form, and with which exit code."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import polars as pl
import pytest

import polytag
from polytag import plots
from polytag.config import load_recipe, recipe_names
from polytag.modelfile import KEY
from polytag.predictor import load

from .conftest import (
    ATTRIBUTES,
    LEARNT,
    TINY,
    Answer,
    Word,
    polytag_process,
    start_polytag,
    write_labels,
)

TINY_FLAGS = [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]
QUICK_FLAGS = [*TINY_FLAGS, "--set", "split.folds=3", "--set", "probe.l2=1.0"]
VERBS = (
    *("inspect", "audit", "train", "thresholds", "import", "evaluate", "compare", "predict"),
    *("recipes", "demo", "export", "cache"),
)


@pytest.fixture
def no_plots(monkeypatch) -> None:
    monkeypatch.setattr(plots, "loss_curve", lambda history, title, path: path.touch())
    monkeypatch.setattr(plots, "sample_predictions", lambda samples, names, path: path.touch())


@pytest.fixture(scope="module")
def answers(run, world) -> dict[str, dict[str, float]]:
    """The probabilities of the good pictures by path, as Python gives them."""
    said = load(run).predict([world.path(name) for name in world.good])
    return {
        image: dict(zip(LEARNT, map(float, row), strict=True))
        for image, row in zip(said.images, said.probabilities, strict=True)
    }


@pytest.fixture(scope="module")
def chosen(run) -> dict[str, float]:
    """The thresholds that the shared run has chosen, one an attribute."""
    decided = run.metrics["decisions"]["attributes"]
    return {name: decided[name]["threshold"] for name in LEARNT}


def is_one_line(answer: Answer, code: int = 2, start: str = "error: ") -> str:
    """The line on stderr of a command that failed and printed nothing else."""
    assert answer.code == code, answer.err
    assert answer.out == ""
    assert answer.err.startswith(start) and answer.err.count("\n") == 1, answer.err
    return answer.err


# ---------------------------------------------------------------------------------- predict, text


def test_predict_prints_what_a_person_wants_to_know_and_nothing_else(
    cli, run, world, answers, chosen
):
    path = world.path(world.good[0])
    answer = cli("predict", run, path)
    assert (answer.code, answer.err) == (0, "")
    p = answers[str(path)]
    there = {name: p[name] >= chosen[name] for name in LEARNT}
    order = sorted(LEARNT, key=lambda name: (not there[name], -p[name]))
    lines = [
        f"  {'✓ ' if there[name] else '✗ '}{name:<7}  "
        f"{'present' if there[name] else 'absent ':<7}  "
        f"{p[name] * 100:5.1f} %   (threshold {chosen[name] * 100:.3g} %)"
        for name in order
    ]
    present = ", ".join(name for name in order if there[name]) or "none"
    assert answer.out.splitlines() == [
        str(path),
        *lines,
        f"  attributes present: {present}",
        "",
    ]


def test_predict_takes_files_folders_and_patterns_each_picture_once(cli, run, world):
    answer = cli(
        *("predict", run, world.path("twin.png"), world.images / "more"),
        *(str(world.images / "*.png"), "--json"),
    )
    names = [record["image"] for record in answer.json]
    assert names[0] == str(world.path("twin.png")) and len(names) == len(set(names))
    everything = {str(path) for path in world.images.rglob("*.png")}
    assert set(names) == everything


def test_predict_takes_a_bare_model_and_the_latest_run(cli, run, world, tmp_path):
    bare = shutil.copy(run.path / "model.onnx", tmp_path / "m.onnx")
    outs = {
        cli("predict", source, world.path("twin.png")).out
        for source in (run, bare, run.path.parent / "latest")
    }
    assert len(outs) == 1


# ------------------------------------------------------------------------------- predict, programs


def test_predict_writes_json_json_lines_and_csv_with_the_same_numbers(
    cli, run, world, answers, chosen
):
    words = ("predict", run, world.images / "more")
    records = cli(*words, "--format", "json").json
    assert cli(*words, "--json").json == records
    lines = cli(*words, "--format", "jsonl").out.splitlines()
    assert [json.loads(line) for line in lines] == records
    table = list(csv.DictReader(io.StringIO(cli(*words, "--format", "csv").out)))
    assert [row["image"] for row in table] == [record["image"] for record in records]
    for row, record in zip(table, records, strict=True):
        expected = answers[record["image"]]
        for name in LEARNT:
            assert record["probabilities"][name] == pytest.approx(expected[name], abs=2e-6)
            assert float(row[name]) == pytest.approx(expected[name], abs=2e-6)
            decided = "present" if expected[name] >= chosen[name] else "absent"
            assert record["decisions"][name] == row[f"{name}_decision"] == decided
        assert (record["error"], row["error"]) == (None, "")


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("a.json", "json"),
        ("a.jsonl", "jsonl"),
        ("a.NDJSON", "jsonl"),
        ("a.csv", "csv"),
        ("a.txt", "text"),
        ("a", "text"),
    ],
)
def test_the_ending_of_out_chooses_the_format(cli, run, world, tmp_path, name, form):
    words = ("predict", run, world.path("twin.png"))
    answer = cli(*words, "--out", tmp_path / "new" / name)
    assert (answer.code, answer.out, answer.err) == (0, "", "")
    written = (tmp_path / "new" / name).read_text(encoding="utf-8")
    assert written == cli(*words, "--format", form).out


def test_the_format_asked_for_wins_over_the_ending(cli, run, world, tmp_path):
    cli("predict", run, world.path("twin.png"), "--format", "csv", "--out", tmp_path / "a.json")
    assert (tmp_path / "a.json").read_text().startswith("image,red,")


def test_parquet_goes_to_a_file_and_not_to_the_terminal(cli, run, world, tmp_path):
    words = ("predict", run, world.images / "more", world.path("broken.png"))
    assert cli(*words, "--out", tmp_path / "a.parquet").code == 0
    table = pl.read_parquet(tmp_path / "a.parquet")
    records = cli(*words, "--json").json
    assert table["image"].to_list() == [record["image"] for record in records]
    assert table["error"].null_count() == len(records) - 1
    assert table["red"].null_count() == table["red_decision"].null_count() == 1
    assert "--out FILE.parquet" in is_one_line(cli(*words, "--format", "parquet"))


def test_an_unknown_format_lists_the_known_ones(cli, run, world):
    answer = cli("predict", run, world.path("twin.png"), "--format", "xml")
    assert (answer.code, answer.out) == (2, "")
    assert all(name in answer.err for name in ("text", "json", "jsonl", "csv", "parquet"))


@pytest.fixture
def clashing(run, tmp_path) -> Path:
    """A model with an attribute called "image", which a wide table cannot hold."""
    model = onnx.load(run.path / "model.onnx")
    (entry,) = [entry for entry in model.metadata_props if entry.key == KEY]
    entry.value = entry.value.replace('["red", "bright", "striped"]', '["image", "b", "c"]')
    onnx.save(model, tmp_path / "clash.onnx")
    return tmp_path / "clash.onnx"


@pytest.mark.parametrize("name", ["old.csv", "old.parquet"])
def test_an_out_that_fails_leaves_the_old_file_as_it_was(cli, clashing, world, tmp_path, name):
    out = tmp_path / "out" / name
    out.parent.mkdir()
    out.write_text("precious")
    answer = cli("predict", clashing, world.path("twin.png"), "--out", out)
    assert "two columns of one name" in is_one_line(answer)
    assert out.read_text() == "precious" and len(list(out.parent.iterdir())) == 1


@pytest.mark.parametrize("where", ["folder", "file/below.csv"])
def test_an_out_that_cannot_be_written_is_one_line_and_no_defect(cli, run, world, tmp_path, where):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    answer = cli("predict", run, world.path("twin.png"), "--out", tmp_path / where)
    assert where.partition("/")[0] in is_one_line(answer)


# --------------------------------------------------------------------------- pictures that fail


@pytest.mark.parametrize("form", ["text", "json", "jsonl", "csv"])
def test_one_broken_picture_of_one_is_written_down_and_exits_3(cli, run, world, form):
    answer = cli("predict", run, world.path("broken.png"), "--format", form)
    assert answer.code == 3
    assert "broken.png" in answer.out and "PNG" in answer.out
    assert "too many skipped: 1 of 1 pictures could not be read" in answer.err
    if form == "json":
        assert answer.json[0]["probabilities"] == {}


def test_a_broken_picture_among_many_is_a_line_and_no_failure(cli, run, world):
    answer = cli("predict", run, world.images, "--json")
    assert answer.code == 0
    (failed,) = [record for record in answer.json if record["error"]]
    assert failed["image"] == str(world.path("broken.png"))
    assert answer.err.count("broken.png") == 1 and answer.err.count("\n") == 1
    assert len(answer.json) == len(world.good) + 1


def test_a_missing_picture_is_told_like_a_broken_one(cli, run, world, tmp_path):
    answer = cli("predict", run, tmp_path / "none.jpg", world.path("twin.png"), "--json")
    assert answer.code == 3
    assert [bool(record["error"]) for record in answer.json] == [True, False]


@pytest.mark.parametrize(("most", "code"), [("0.49", 3), ("0.5", 0), ("1", 0), ("0", 3)])
def test_max_skipped_says_how_many_may_fail(cli, run, world, most, code):
    pictures = (world.path("broken.png"), world.path("twin.png"))
    answer = cli("predict", run, *pictures, "--max-skipped", most)
    assert answer.code == code
    assert "not read" in answer.out and "attributes present" in answer.out


def test_what_could_be_read_is_written_even_when_too_many_failed(cli, run, world, tmp_path):
    pictures = (world.path("broken.png"), world.path("twin.png"))
    answer = cli("predict", run, *pictures, "--out", tmp_path / "a.csv")
    assert answer.code == 3
    rows = list(csv.DictReader(io.StringIO((tmp_path / "a.csv").read_text(encoding="utf-8"))))
    assert rows[0]["error"] and rows[1]["red"]


def test_nothing_to_predict_is_an_error(cli, run, tmp_path):
    assert "no picture" in is_one_line(cli("predict", run, tmp_path))
    assert "no picture" in is_one_line(cli("predict", run, tmp_path / "*.png"))
    assert cli("predict", run).code == 2


# -------------------------------------------------------------------------------------- thresholds


def test_a_threshold_for_all_and_others_for_some(cli, run, world, answers):
    path = world.path("twin.png")
    p = answers[str(path)]
    words = ("predict", run, path, "--json", "--threshold", "0.0001")
    assert set(cli(*words).json[0]["decisions"].values()) == {"present"}
    above = min(p["bright"] + 1e-4, 0.99999)
    (record,) = cli(*words, "--thresholds", f"bright={above}, striped=0.0002").json
    assert record["decisions"] == {"red": "present", "bright": "absent", "striped": "present"}
    assert "(threshold 30 %)" in cli("predict", run, path, "--threshold", "0.3").out


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        (["--threshold", "30"], "out of range"),
        (["--threshold", "0"], "out of range"),
        (["--threshold", "nan"], "out of range"),
        (["--thresholds", "red"], "ATTRIBUTE=NUMBER"),
        (["--thresholds", "red=x"], "ATTRIBUTE=NUMBER"),
        (["--thresholds", "red=0.5,=0.5"], "does not know"),
        (["--thresholds", "stripd=0.5"], "did you mean 'striped'?"),
        (["--thresholds", "always=0.5"], "not trained"),
    ],
)
def test_a_wrong_threshold_is_one_line(cli, run, world, flags, what):
    assert what in is_one_line(cli("predict", run, world.path("twin.png"), *flags))


# -------------------------------------------------------------------- models that cannot be read


def test_a_model_that_is_not_there_is_one_line(cli, world, tmp_path):
    for name in ("nowhere", "nowhere.onnx"):
        answer = cli("predict", tmp_path / name, world.path("twin.png"))
        assert "no such run folder or model file" in is_one_line(answer)
    assert "no finished run" in is_one_line(cli("predict", tmp_path, world.path("twin.png")))


def test_a_file_that_is_no_model_is_one_line(cli, world, tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"this is no model")
    answer = cli("predict", tmp_path / "m.onnx", world.path("twin.png"))
    assert "m.onnx: not a model" in is_one_line(answer)
    answer = cli("evaluate", tmp_path / "m.onnx", world.labels, "--images", world.images)
    assert "m.onnx: not a model" in is_one_line(answer)


# ------------------------------------------------------------------------------ names of all kinds


def odd_name(world, folder: Path) -> bytes:
    """A picture whose name is no UTF-8, as old archives unpack to."""
    path = os.fsencode(folder) + b"/gr\xf6\xdfe.png"
    shutil.copy(world.path("twin.png"), path)
    return path


@pytest.mark.parametrize("form", ["text", "json", "jsonl", "csv"])
def test_a_name_that_is_no_utf_8_is_predicted_in_every_format(cli, run, world, tmp_path, form):
    odd_name(world, tmp_path)
    answer = cli("predict", run, tmp_path, "--format", form)
    assert answer.code == 0, answer.err
    assert "e.png" in answer.out and "present" in answer.out


@pytest.mark.parametrize("name", ["a.txt", "a.json", "a.jsonl", "a.csv", "a.parquet"])
def test_a_name_that_is_no_utf_8_is_written_to_every_kind_of_file(cli, run, world, tmp_path, name):
    (tmp_path / "in").mkdir()
    odd_name(world, tmp_path / "in")
    answer = cli("predict", run, tmp_path / "in", "--out", tmp_path / name)
    assert answer.code == 0, answer.err
    assert b"present" in (tmp_path / name).read_bytes()


def test_programs_get_names_whole_whatever_the_terminals_encoding(run, world, tmp_path):
    path = Path(shutil.copy(world.path("twin.png"), tmp_path / "größe 漢.png"))
    for encoding in ("ascii", "cp1252"):
        environment = {"PYTHONIOENCODING": encoding}
        answer = polytag_process("predict", run, path, "--json", env=environment)
        assert answer.code == 0, answer.err
        assert answer.json[0]["image"] == str(path)


def test_people_get_their_answer_on_a_terminal_without_check_marks(run, world):
    environment = {"PYTHONIOENCODING": "ascii"}
    answer = polytag_process("predict", run, world.path("twin.png"), env=environment)
    assert answer.code == 0, answer.err
    assert "bright   present" in answer.out and "attributes present: bright" in answer.out


# --------------------------------------------------------------------------------------- exit codes


@pytest.mark.parametrize("verb", (*(v for v in VERBS if v != "cache"), "cache info", "cache clear"))
def test_every_verb_explains_itself(cli, verb):
    for flag in ("--help", "-h"):
        answer = cli(*verb.split(), flag)
        assert (answer.code, answer.err) == (0, "")
        assert f"polytag {verb} " in answer.out.splitlines()[0] and "--json" in answer.out
        assert max(map(len, answer.out.splitlines())) <= 80


def test_help_lists_every_verb_and_version_says_which(cli):
    answer = cli("--help")
    assert set(polytag.cli.cli.commands) == set(VERBS)
    assert answer.code == 0 and all(f"\n  {verb} " in answer.out for verb in VERBS)
    assert cli("--version").out == f"polytag, version {polytag.__version__}\n"


@pytest.mark.parametrize(
    "words", [["predict"], ["no-such-verb"], ["--no-such-flag"], ["train", "labels.csv"], []]
)
def test_wrong_usage_exits_2_and_says_so_on_stderr(cli, words):
    answer = cli(*words)
    assert answer.code == 2
    assert answer.out == "" and "Usage:" in answer.err


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("oops"), RuntimeError("torch"), OSError(5, "Input/output error")]
)
def test_a_defect_of_polytag_exits_101_with_its_traceback(cli, run, world, monkeypatch, error):
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("polytag.predictor.Predictor.stream", fail)
    answer = cli("predict", run, world.path("twin.png"))
    assert (answer.code, answer.out) == (101, "")
    assert "Traceback" in answer.err and type(error).__name__ in answer.err
    assert answer.err.endswith("This is a defect of polytag, not of your data. Please report it.\n")


def test_debug_shows_where_an_error_of_the_user_came_from(cli, world, tmp_path):
    answer = cli("--debug", "predict", tmp_path / "nowhere", world.path("twin.png"))
    assert answer.code == 2
    assert "Traceback" in answer.err and answer.err.splitlines()[-1].startswith("error: ")


def test_an_interrupt_exits_130_and_leaves_no_run(world, tmp_path):
    pause = (
        "import sys, time, polytag.probe as t\n"
        "def fit_probe(*_):\n"
        "    print('NOW', file=sys.stderr, flush=True)\n"
        "    time.sleep(60)\n"
        "t.fit_probe = fit_probe"
    )
    words = ("train", world.labels, "--images", world.images, "--runs", tmp_path / "runs")
    with start_polytag(*words, *QUICK_FLAGS, code=pause) as process:
        try:
            for line in process.stderr:
                if line == "NOW\n":
                    break
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
        except BaseException:
            process.kill()
            raise
    assert process.returncode == 130
    assert out == "" and err.splitlines()[-1] == "interrupted" and "Traceback" not in err
    assert not list(tmp_path.rglob("model.onnx"))
    assert not (tmp_path / "runs" / "latest").exists()


@pytest.mark.parametrize("words", [("recipes", "probe"), ("--help",)])
def test_a_reader_that_goes_away_is_no_error(words):
    assert closed_reader(words) == (0, "")


@pytest.mark.parametrize("form", ["text", "jsonl"])
def test_a_reader_of_predictions_that_goes_away_is_no_error(run, world, form):
    assert closed_reader(("predict", run, world.images / "more", "--format", form)) == (0, "")


def closed_reader(words: tuple[Word, ...]) -> tuple[int, str]:
    """Exit code and stderr of a command whose stdout nobody reads: `polytag ... | head -0`."""
    reader, writer = os.pipe()
    os.close(reader)
    with start_polytag(*words, stdout=writer) as process:
        os.close(writer)
        _, err = process.communicate(timeout=60)
    return process.returncode, err


def test_a_reader_of_one_line_gets_it(run, world):
    command = f"{sys.executable} -c 'from polytag.cli import main; main()' predict "
    command += f"'{run.path}' '{world.images}' --format jsonl | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout)["error"] in (None, "") or done.stdout.count("\n") == 1
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


# ------------------------------------------------------------------------------------------ inspect


def test_inspect_says_what_the_table_and_the_pictures_hold(cli, world):
    answer = cli("inspect", world.labels, "--images", world.images)
    assert answer.code == 0
    text = answer.out
    assert "62 pictures, 5 attributes" in text
    counts = world.table().counts()
    for name, (present, absent, na) in zip(ATTRIBUTES, counts.tolist(), strict=True):
        (line,) = [line for line in text.splitlines() if line.startswith(f"{name} ")]
        assert [int(word) for word in line.split()[-4:-1]] == [present, absent, na]
    assert "pictures: 60 can be used, 2 cannot" in text
    assert "missing.png" in text and "broken.png" in text
    assert f"{world.names[0]} = twin.png" in text
    assert "always cannot be trained: one class only" in text
    assert "never said cannot be trained: no known cell" in text


def test_inspect_as_json_says_the_same(cli, world):
    found = cli("inspect", world.labels, "--images", world.images, "--json").json
    assert (found["rows"], found["usable"]) == (62, 60)
    assert [a["name"] for a in found["attributes"]] == list(ATTRIBUTES)
    assert {token: use["meaning"] for token, use in found["tokens"].items()} == {
        "1": "present",
        "0": "absent",
        "NA": "na",
    }
    assert sum(use["count"] for use in found["tokens"].values()) == 62 * 5
    assert [row["image"] for row in found["skipped"]] == ["missing.png", "broken.png"]
    assert found["identical"] == [[world.names[0], "twin.png"]]


@pytest.mark.parametrize(
    ("flags", "code"), [([], 0), (["--max-skipped", "0.01"], 3), (["--strict"], 2)]
)
def test_inspect_prints_what_it_found_whatever_it_thinks_of_it(cli, world, flags, code):
    answer = cli("inspect", world.labels, "--images", world.images, "--json", *flags)
    assert answer.code == code
    assert answer.json["rows"] == 62
    assert ("missing.png" in answer.err) == (code != 0)


def test_a_table_that_cannot_be_read_is_one_line_with_its_place(cli, world, tmp_path):
    (tmp_path / "labels.csv").write_text("image,red\na.png,1\nb.png,1,0\n")
    for verb in ("inspect", "train"):
        answer = cli(verb, tmp_path / "labels.csv", "--images", world.images)
        assert "labels.csv:3" in is_one_line(answer)
    answer = cli("inspect", tmp_path / "none.csv", "--images", world.images)
    assert "none.csv" in is_one_line(answer)


def test_the_reading_flags_reach_the_table(cli, world, tmp_path):
    (tmp_path / "l.csv").write_text("id,red,old\ntwin.png,Y,1\npicture 7.png,N,0\n")
    found = cli(
        *("inspect", tmp_path / "l.csv", "--images", world.images, "--json"),
        *("--values", "Y=present,N=absent", "--ignore", "old", "--image-column", "id"),
    ).json
    assert found["attributes"] == [{"name": "red", "present": 1, "absent": 1, "na": 0}]


# --------------------------------------------------------------------------------- train, evaluate


def test_train_in_a_process_of_its_own_keeps_results_and_progress_apart(world, tmp_path):
    words = ("train", world.labels, "--images", world.images, "--runs", tmp_path / "runs")
    answer = polytag_process(*words, *QUICK_FLAGS, "--json")
    assert answer.code == 0, answer.err
    assert answer.json["run"] == str(tmp_path / "runs" / "probe-1")
    assert (answer.json["rows"], answer.json["skipped"]) == (60, 2)
    on_disk = (tmp_path / "runs" / "probe-1" / "metrics.json").read_text(encoding="utf-8")
    assert json.loads(on_disk) == {k: v for k, v in answer.json.items() if k != "run"}
    assert "always is not trained: one class only" in answer.err
    assert "label columns: red, bright" in answer.err
    assert "Warning" not in answer.err


def test_train_prints_a_summary_and_what_to_do_next(cli, world, tmp_path, no_plots):
    words = ("train", world.labels, "--images", world.images, "--runs", tmp_path)
    answer = cli(*words, *QUICK_FLAGS, "--name", "mine", "--seed", "7", "--title", "Mine")
    assert answer.code == 0
    assert answer.out.startswith("macro AP ") and "over 3 of 5 attributes" in answer.out
    assert f"polytag predict {tmp_path / 'mine'}" in answer.out
    assert "60 pictures, 2 skipped" in answer.out
    recipe = load_recipe(tmp_path / "mine" / "config.toml")
    assert (recipe.seed, recipe.title, recipe.probe.l2) == (7, "Mine", 1.0)
    assert recipe.backbone.name == "test_resnet"
    assert "exists already" in cli(*words, *QUICK_FLAGS, "--name", "mine").err
    assert cli("predict", tmp_path / "latest", world.path("twin.png")).code == 0


def test_a_runs_config_retrains_the_same_model_from_the_command_line(
    cli, run, world, tmp_path, no_plots
):
    answer = cli(
        *("--quiet", "train", world.labels, "--images", world.images, "--runs", tmp_path),
        *("--recipe", run.path / "config.toml"),
    )
    assert answer.code == 0
    again = tmp_path / "probe-1"
    for name in ("model.onnx", "weights.safetensors"):
        assert (again / name).read_bytes() == (run.path / name).read_bytes()


def test_quiet_leaves_results_and_warnings(cli, world, tmp_path, no_plots):
    words = ("train", world.labels, "--images", world.images, "--runs", tmp_path, *QUICK_FLAGS)
    answer = cli("--quiet", *words)
    assert answer.out.startswith("macro AP")
    assert "features:" not in answer.err and "not trained" in answer.err


@pytest.mark.parametrize(
    ("flags", "code", "what"),
    [
        (["--strict"], 2, "--strict allows none"),
        (["--max-skipped", "0.01"], 3, "more than the 1% that --max-skipped allows"),
        (["--images", "nowhere"], 2, "no such folder of pictures"),
        (["--recipe", "prob"], 2, "did you mean 'probe'?"),
        (["--set", "probe.l2"], 2, "KEY=VALUE"),
        (["--set", "probe.l2=-1"], 2, "probe.l2 cannot have this value"),
        (["--backbone", "resnet81"], 2, "did you mean 'resnet18'?"),
        (["--weights", "none.pth"], 2, "no such weights file"),
        (["--device", "tpu"], 2, "no such device"),
        (["--seed", "-1"], 2, "seed cannot have this value"),
        (["--folds", "2"], 2, "split.folds cannot have this value"),
        (["--holdout", "0.2"], 2, "a probe is judged out of fold"),
        (["--target", "f"], 2, "f1"),
        (["--target", "1.5"], 2, "decisions.target cannot have this value"),
        (["--max-error", "0.5"], 2, "decisions.max_error cannot have this value"),
        (["--confidence", "0.5"], 2, "decisions.confidence cannot have this value"),
        (["--group-by", "patient"], 2, "no column 'patient' to keep beside the labels"),
        (["--split", "part"], 2, "no column 'part' to keep beside the labels"),
        (["--set", "threshold=0.5"], 2, "unknown key"),
        (["--ignore", "blue"], 2, "blue"),
        (["--name", "a/b"], 2, "not a name for a run"),
        (["--attributes", "never said"], 2, "nothing can be learnt"),
    ],
)
def test_train_refuses_in_one_line_and_leaves_no_run(cli, world, tmp_path, flags, code, what):
    words = ("--quiet", "train", world.labels, "--images", world.images, "--runs", tmp_path)
    answer = cli(*words, *QUICK_FLAGS, *flags)
    assert (answer.code, answer.out) == (code, "")
    line = answer.err.splitlines()[-1]
    assert line.startswith("error: " if code == 2 else "too many skipped: ") and what in line
    assert "Traceback" not in answer.err
    assert list(tmp_path.iterdir()) == []


def test_evaluate_prints_the_numbers_and_what_to_know_about_them(cli, run, world, tmp_path):
    words = ("evaluate", run, world.labels, "--images", world.images)
    answer = cli(*words)
    assert answer.code == 0 and answer.out.startswith("macro AP ")
    said = answer.out.replace("\n", " ")
    assert "60 pictures measured, 2 skipped." in said
    assert "WARNING: 60 of them were trained on" in said
    told = cli(*words, "--json").json
    expected = polytag.evaluate(run, world.table(), world.images).to_dict()
    assert told.pop("gates") == []
    assert told == json.loads(json.dumps(expected))
    strict = cli(*words, "--json", "--threshold", "0.999", "--thresholds", "red=0.4").json
    assert [a["threshold"] for a in strict["attributes"][:3]] == [0.4, 0.999, 0.999]


@pytest.mark.parametrize(("flags", "code"), [(["--strict"], 2), (["--max-skipped", "0"], 3)])
def test_evaluate_refuses_too_many_skipped(cli, run, world, flags, code):
    answer = cli("evaluate", run, world.labels, "--images", world.images, *flags)
    assert (answer.code, answer.out) == (code, "")


# --------------------------------------------------------------------------------------- 80 columns


@pytest.fixture
def wide(world, tmp_path, monkeypatch) -> Path:
    """A table of 23 attributes with names of 40 characters; commands run beside it."""
    names = [f"{'an attribute with a name as long as ':_<37}{k:03}" for k in range(23)]
    rng = np.random.default_rng(1)
    values = world.truth[:, rng.integers(0, 3, 23)]
    values = np.where(rng.random(values.shape) < 0.05, 1 - values, values)
    values = np.where(rng.random(values.shape) < 0.25, np.nan, values)
    values[:, 20], values[:, 21] = 1, np.nan
    (tmp_path / "images").symlink_to(world.images, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    return write_labels(Path("labels.csv"), list(world.names), names, values)


def too_long(text: str) -> list[str]:
    return [line for line in text.splitlines() if len(line) > 80]


def test_every_summary_fits_80_columns(cli, wide, no_plots):
    answer = cli("inspect", wide, "--images", "images")
    assert answer.code == 0 and too_long(answer.out) == []
    answer = cli("train", wide, "--images", "images", *QUICK_FLAGS)
    assert answer.code == 0 and too_long(answer.out) == []
    answer = cli("evaluate", "runs/latest", wide, "--images", "images")
    assert answer.code == 0 and too_long(answer.out) == []


def test_a_summary_keeps_attributes_apart_that_begin_alike(cli, wide, no_plots):
    answer = cli("train", wide, "--images", "images", *QUICK_FLAGS)
    tables = re.findall(r"^attribute +(?:pres|F1).*\n((?:.+\n)+?)macro mean ", answer.out, re.M)
    assert len(tables) == 2
    for rows in (found.splitlines() for found in tables):
        assert len(rows) == 23 and len({row[:12] for row in rows}) == 23, rows


# ------------------------------------------------------------------------------------------ recipes


def test_recipes_are_listed_and_printed_whole(cli, tmp_path):
    answer = cli("recipes")
    assert (answer.code, answer.err) == (0, "")
    starts = [line.split()[0] for line in answer.out.splitlines() if line[0] != " "]
    assert starts == recipe_names() and max(map(len, answer.out.splitlines())) <= 80
    assert set(cli("recipes", "--json").json) == set(recipe_names())
    for name in recipe_names():
        answer = cli("recipes", name)
        (tmp_path / "r.toml").write_text(answer.out, encoding="utf-8")
        assert load_recipe(tmp_path / "r.toml") == load_recipe(name)
        assert cli("recipes", name, "--json").json["method"] == load_recipe(name).method


def test_an_unknown_recipe_is_one_line(cli):
    assert "did you mean 'probe'?" in is_one_line(cli("recipes", "prob"))


# -------------------------------------------------------------------------- decisions, and unsure


def test_the_flags_of_decisions_reach_the_recipe(cli, world, tmp_path, no_plots):
    words = ("train", world.labels, "--images", world.images, "--runs", tmp_path, "--json")
    flags = ("--target", "recall=0.9", "--max-error", "0.2", "--confidence", "0.8", "--folds", "4")
    told = cli(*words, *QUICK_FLAGS, *flags).json
    recipe = load_recipe(Path(told["run"]) / "config.toml")
    decisions = recipe.decisions
    assert (decisions.target, decisions.max_error, decisions.confidence) == ("recall=0.9", 0.2, 0.8)
    assert recipe.split.folds == told["folds"] == 4
    told = cli(*words, *QUICK_FLAGS, "--target", "0.25").json
    assert load_recipe(Path(told["run"]) / "config.toml").decisions.target == 0.25
    assert [a["threshold"] for a in told["attributes"][:3]] == [0.25] * 3


def test_thresholds_are_chosen_anew_and_the_old_ones_can_come_back(cli, run, world, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run.path, copy)
    words = ("thresholds", copy)
    assert "Say --target or --max-error" in cli(*words).err
    assert "f1" in is_one_line(cli(*words, "--target", "f"))
    told = cli(*words, "--target", "0.9", "--json")
    assert told.code == 0, told.err
    assert [a["threshold"] for a in told.json["attributes"][:3]] == [0.9] * 3
    said = cli("predict", copy, world.path(world.good[0]))
    assert said.out.count("(threshold 90 %)") == 3
    told = cli(*words, "--target", "f1")
    assert told.code == 0, told.err
    assert all(name in told.out for name in LEARNT) and too_long(told.out) == [f"run: {copy}"]
    for name in ("oof.parquet", "config.toml", "README.md"):
        assert (copy / name).read_bytes() == (run.path / name).read_bytes(), name
    assert load(copy).info == load(run).info


def test_thresholds_of_what_is_no_run_are_one_line(cli, run, tmp_path):
    assert "nowhere" in is_one_line(cli("thresholds", tmp_path / "nowhere", "--target", "f1"))
    bare = shutil.copy(run.path / "model.onnx", tmp_path / "m.onnx")
    assert "cannot be read" in is_one_line(cli("thresholds", bare, "--target", "f1"))


def test_what_training_found_no_evidence_for_is_starred(cli, run, world, tmp_path):
    model = onnx.load(run.path / "model.onnx")
    (entry,) = [entry for entry in model.metadata_props if entry.key == KEY]
    info = json.loads(entry.value)
    info["verdicts"]["red"] = "no evidence that the pictures show it: adjusted p 0.4"
    info["cuts"] = [None, [0.0001, 0.9999], None]
    entry.value = json.dumps(info)
    onnx.save(model, tmp_path / "m.onnx")
    said = cli("predict", tmp_path / "m.onnx", world.path("twin.png"))
    assert said.code == 0, said.err
    assert "red*" in said.out and "striped*" not in said.out
    assert "? bright" in said.out and "unsure" in said.out
    assert said.out.splitlines()[-1].startswith("* training could not show")
    assert (
        "unsure"
        not in cli("predict", tmp_path / "m.onnx", world.path("twin.png"), "--threshold", "0.5").out
    )
