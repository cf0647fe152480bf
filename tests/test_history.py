"""What a training records: history.csv, epoch lines, and the way through a checkpoint."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, log_loss

from polytag.history import EPOCH_HEADER, Epoch, History, Validation, validate
from polytag.runs import write_rows

NAN = float("nan")


def validation(loss: float = 0.5) -> Validation:
    return Validation(loss, 0.625, 0.75, 0.25, (0.5, NAN))


def history() -> History:
    """Two stages of one epoch of two iterations, judged before the first and after each."""
    epochs = [
        Epoch("head", 0, 0, NAN, 0.25, validation(0.9)),
        Epoch("head", 1, 2, 0.65, 12.34, validation()),
        Epoch("all", 1, 4, 0.45, 100.0, validation(0.7)),
    ]
    stages = ["head", "head", "all", "all"]
    lists = ([0.7, 0.6, 0.5, 0.4], [1e-3, 1e-3, NAN, 1e-5], stages)
    return History(("red", "blue"), *lists, epochs, epochs[1])


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_history_csv_has_a_row_an_iteration_then_a_row_an_epoch(tmp_path):
    kept = history()
    write_rows(tmp_path / "history.csv", kept.header(), kept.rows())
    rows = read(tmp_path / "history.csv")
    iterations, epochs = rows[:4], rows[4:]
    assert [(row["iteration_number"], row["training_loss"]) for row in iterations] == [
        *(("0", "0.7"), ("1", "0.6"), ("2", "0.5"), ("3", "0.4"))
    ]
    assert [row["lr"] for row in iterations] == ["0.001", "0.001", "", "1e-05"]
    assert {row["epoch"] for row in iterations} == {""}
    # An epoch stands at its last iteration, the one before training at the first.
    assert [row["iteration_number"] for row in epochs] == ["0", "1", "3"]
    assert [(row["stage"], row["epoch"]) for row in epochs] == [
        *(("head", "0"), ("head", "1"), ("all", "1"))
    ]
    assert {row["training_loss"] for row in epochs} == {""}
    last = epochs[1]
    assert (last["validation_loss"], last["macro_ap"], last["exact_match"]) == (
        *("0.5", "0.625", "0.25"),
    )
    assert (last["accuracy red"], last["accuracy blue"], last["seconds"]) == ("0.5", "", "12.3")


def test_without_choosing_rows_there_are_no_columns_of_attributes(tmp_path):
    plain = History(("red",), [0.7], [1e-3], ["all"], [Epoch("all", 1, 1, 0.7, 1.0, None)])
    write_rows(tmp_path / "history.csv", plain.header(), plain.rows())
    iteration, epoch = read(tmp_path / "history.csv")
    assert "accuracy red" not in epoch
    assert (iteration["training_loss"], epoch["epoch"], epoch["macro_ap"]) == ("0.7", "1", "")


def test_a_solver_without_epochs_has_four_columns():
    assert History(("red",), [0.7], [NAN], ["fit"]).header() == [
        *("iteration_number", "training_loss", "lr", "stage")
    ]


@pytest.mark.parametrize("with_validation", [True, False])
@pytest.mark.parametrize("stage", ["all", "a name that is much too long for a line"])
def test_epoch_lines_stand_under_their_header_in_80_columns(stage, with_validation):
    found = validation() if with_validation else None
    line = Epoch(stage, 100, 9, 123.45678, 12345.6, found).line(100)
    assert len(line) <= 80 and len(EPOCH_HEADER) <= 80
    words = {"100/100": "epoch", "123.4568": "training", "12345.6": "s"}
    words |= (
        {"0.5000": "choosing", "0.625": "macro AP", "0.250": "exact"} if with_validation else {}
    )
    for word, column in words.items():  # right-aligned, each under its own heading
        assert line.index(word) + len(word) == EPOCH_HEADER.rindex(column) + len(column)


def test_a_history_survives_a_checkpoint():
    arrays, state = history().to_state()
    state = json.loads(json.dumps(state))
    again = History.from_state(("red", "blue"), arrays, state)
    assert repr(again) == repr(history())  # NaN is not equal to NaN
    assert again.best is again.epochs[1]
    best = History(("red",), [0.7], [0.1], ["all"])
    assert History.from_state(("red",), *best.to_state()).best is None


def test_losses_survive_a_checkpoint_bit_for_bit():
    losses = [math.pi / 3**i for i in range(40)]
    kept = History(("red",), losses, [0.1 / 3] * 40, ["all"] * 40)
    assert History.from_state(("red",), *kept.to_state()).losses == losses


def test_numbers_on_the_choosing_rows_leave_holes_out():
    values = np.array([[1, 0], [0, NAN], [1, 1], [NAN, 0]], dtype=np.float32)
    logits = np.array([[2, -1], [1, 50], [0.5, 0.2], [-50, -3]], dtype=np.float32)
    found = validate(("a", "b"), logits, values)
    p, known = 1 / (1 + np.exp(-logits.astype(float))), ~np.isnan(values)
    assert found.loss == pytest.approx(log_loss(values[known], p[known]))
    each = [average_precision_score(values[known[:, k], k], p[known[:, k], k]) for k in range(2)]
    assert found.macro_ap == pytest.approx(np.mean(each))
    right = (p >= 0.5) == values
    assert found.hamming == pytest.approx(right[known].mean())
    assert found.exact_match == pytest.approx(
        np.mean([(right | ~known)[i].all() for i in range(4)])
    )
    assert found.accuracy == pytest.approx([right[known[:, k], k].mean() for k in range(2)])


def test_a_history_is_read_back_from_its_rows(tmp_path):
    kept = history()
    write_rows(tmp_path / "history.csv", kept.header(), kept.rows())
    again = History.from_rows(("red", "blue"), read(tmp_path / "history.csv"))
    assert repr(again.losses) == repr(kept.losses) and repr(again.rates) == repr(kept.rates)
    assert again.stages == kept.stages
    # The mean training loss of an epoch is not written; seconds are, to a tenth.
    expected = [
        Epoch(each.stage, each.number, each.iteration, NAN, round(each.seconds, 1), each.validation)
        for each in kept.epochs
    ]
    assert repr(again.epochs) == repr(expected)
    assert again.best is None


def test_a_history_without_epochs_or_choosing_rows_is_read_back_too(tmp_path):
    epoch = Epoch("all", 1, 1, NAN, 1.0, None)
    for plain in (
        History(("red",), [0.7], [1e-3], ["all"], [epoch]),
        History(("red",), [0.7, 0.5], [NAN, NAN], ["probe", "probe"]),
    ):
        write_rows(tmp_path / "history.csv", plain.header(), plain.rows())
        again = History.from_rows(("red",), read(tmp_path / "history.csv"))
        assert repr(again) == repr(plain)
