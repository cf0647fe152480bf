"""The tables of an evaluation: what they say, and that they fit a terminal."""

import re
from dataclasses import replace

import numpy as np
import pytest

from polytag.results import with_verdicts
from polytag.scorecard import evaluate_arrays
from polytag.summary import headline, table, verdicts

LEARNABLE = ("learnable: better than chance, p 0.003", 0.001, 0.003)
NOTHING = ("no evidence that the pictures show it: not better than chance, p 0.4", 0.2, 0.4)
FEW = ("too few to tell: 5 present of 300 known, about 23 would do", float("nan"), float("nan"))


def drawn(attributes, rows=300, name="attribute_with_a_long_name_number_{}"):
    rng = np.random.default_rng(0)
    values = (rng.random((rows, attributes)) < 0.3).astype(float)
    values[rng.random(values.shape) < 0.2] = np.nan
    probabilities = np.clip(np.nan_to_num(values) * 0.3 + rng.random(values.shape) * 0.7, 0, 1)
    names = [name.format(k) for k in range(attributes)]
    folds = np.arange(rows) % 5
    return names, values, probabilities, np.full(attributes, 0.5), folds


def line_of(text, name, which=0):
    return [line for line in text.splitlines() if line.startswith(name)][which]


@pytest.mark.parametrize("judged", ["without verdicts", "with verdicts"])
@pytest.mark.parametrize("groups", [None, range(300)], ids=["no intervals", "intervals"])
@pytest.mark.parametrize("attributes", [1, 4, 40])
def test_no_line_is_longer_than_eighty_columns(attributes, groups, judged):
    *arrays, folds = drawn(attributes)
    evaluation = evaluate_arrays(*arrays, folds=folds, groups=groups)
    if judged == "with verdicts":
        kinds = (LEARNABLE, NOTHING, FEW)
        evaluation = with_verdicts(
            evaluation, {name: kinds[k % 3] for k, name in enumerate(arrays[0])}
        )
    text = table(evaluation)
    assert max(map(len, [headline(evaluation), *text.splitlines()])) <= 80
    tables = re.findall(r"^attribute .*\n((?:.*\n)*?)macro mean", text, re.MULTILINE)
    assert len(tables) == 2
    for rows in tables:  # names that begin alike are told apart
        assert len({row.split()[0] for row in rows.splitlines()}) == attributes


@pytest.mark.parametrize("end", ["", "_of_them_all"])
def test_names_that_begin_and_end_alike_are_told_apart(end):
    *arrays, _ = drawn(12, name="attribute_with_a_long_name_number_{}" + end)
    evaluation = evaluate_arrays(*arrays, groups=range(300))
    rows = table(evaluation).splitlines()[1:13]
    assert len({row.split()[0] for row in rows}) == 12


def test_a_third_of_a_million_rows_fit_too():
    values = np.zeros((300_000, 1))
    values[:40_000] = np.nan
    values[-120_000:] = 1
    evaluation = evaluate_arrays(["a long name of it"], values, np.full(values.shape, 0.4), [0.5])
    interval = {"low": 0.4, "high": 0.5}
    macro = {name: replace(mean, **interval) for name, mean in evaluation.macro.items()}
    a = evaluation.attributes[0]
    numbers = {metric: replace(getattr(a, metric), **interval) for metric in ("ap", "auc", "f1")}
    wide = replace(evaluation, macro=macro, attributes=(replace(a, **numbers),))
    for each in (evaluation, with_verdicts(wide, {a.name: NOTHING})):
        assert max(map(len, table(each).splitlines())) <= 80
        assert "120000 140000 40000" in table(each)


def test_every_number_stands_beside_its_guess():
    evaluation = evaluate_arrays(["red"], [[1], [1], [0], [0]], [[0.9], [0.8], [0.3], [0.6]], [0.5])
    text = table(evaluation)
    assert line_of(text, "red").split() == ["red", "2", "2", "0", "1.00", ".500", "1.00"]
    assert line_of(text, "red", 1).split() == [
        *("red", ".800", ".667", ".750", ".125", ".250", ".300", ".500"),
    ]
    assert line_of(text, "attribute").split() == [
        *("attribute", "pres", "abs", "NA", "AP", "guess", "AUC")
    ]
    assert line_of(text, "attribute", 1).split() == [
        *("attribute", "F1", "guess", "bal.acc", "Brier", "guess", "ECE", "thresh.")
    ]
    assert "Hamming accuracy  .750  guess .500" in text


def test_intervals_stand_behind_their_numbers():
    *arrays, _ = drawn(2, name="colour {}")
    evaluation = evaluate_arrays(*arrays, groups=range(300))
    text = table(evaluation)
    first = evaluation.attributes[0]
    for which, shown in ((0, (first.ap, first.auc)), (1, (first.f1, first.balanced_accuracy))):
        for number in shown:
            cells = [f"{each:.3f}"[1:] for each in (number.value, number.low, number.high)]
            assert "{} {}-{}".format(*cells) in line_of(text, "colour 0", which)
    ap = evaluation.macro["ap"]
    assert headline(evaluation) == (
        f"macro AP {ap.value:.3f} (guessing: {ap.chance:.3f}), "
        f"95 % {ap.low:.3f}-{ap.high:.3f}, over 2 of 2 attributes"
    )
    assert "95 %" not in table(evaluate_arrays(*arrays))


def test_verdicts_come_first_and_name_what_cannot_be_told():
    *arrays, _ = drawn(4, name="colour {}")
    evaluation = evaluate_arrays(*arrays)
    assert verdicts(evaluation) == [] and "verdict" not in table(evaluation)
    judged = with_verdicts(
        evaluation,
        {"colour 0": LEARNABLE, "colour 1": NOTHING, "colour 2": FEW, "colour 3": LEARNABLE},
    )
    text = table(judged)
    assert text.splitlines()[:5] == [
        "learnable: 2 of 4 attributes",
        "no evidence that the pictures show it: colour 1",
        "too few to tell: colour 2 (5 present of 300 known, about 23 would do)",
        "",
        line_of(text, "attribute"),
    ]
    ends = [line_of(text, f"colour {k}").split("  ")[-1] for k in range(4)]
    assert ends == ["learnable", "no evidence", "too few", "learnable"]
    all_learnable = with_verdicts(evaluation, dict.fromkeys(arrays[0], LEARNABLE))
    assert verdicts(all_learnable) == ["learnable: 4 of 4 attributes"]


def test_means_say_over_how_many_attributes():
    *arrays, _ = drawn(4, name="colour {}")
    assert "macro means over 4 of 4 attributes" in table(evaluate_arrays(*arrays))
    arrays[1][arrays[1][:, 2] == 1, 2] = np.nan
    text = " ".join(table(evaluate_arrays(*arrays)).split())
    assert (
        "macro means of AP, AUC, F1 and bal.acc over 3 of 4 attributes, of Brier and ECE over 4 of "
        "4 attributes" in text
    )
    assert "colour 2: no present cell among" in text


def test_the_mean_over_folds_stands_at_the_end():
    *arrays, folds = drawn(2)
    evaluation = evaluate_arrays(*arrays, folds=folds)
    mean = f"{evaluation.macro['ap'].mean_over_folds:.3f}"[1:]
    assert table(evaluation).splitlines()[-1].startswith(f"macro AP, mean over folds: {mean} guess")


def test_what_is_not_measured_is_a_dash_and_has_its_reason_below():
    values = [[1, np.nan], [0, np.nan]]
    evaluation = evaluate_arrays(["red", "blue"], values, [[0.9, 0.5], [0.1, 0.5]], [0.5, 0.5])
    text = table(evaluation)
    assert line_of(text, "blue").split() == ["blue", "0", "0", "2", "-", "-", "-"]
    assert "blue: no known cell among 2 rows" in text
    assert headline(evaluation) == "macro AP 1.000 (guessing: 0.500), over 1 of 2 attributes"


def test_without_any_measured_attribute_the_headline_says_so():
    evaluation = evaluate_arrays(["red"], [[np.nan]], [[0.5]], [0.5], groups=[0])
    assert headline(evaluation) == "macro AP is not defined: no attribute has it"
    assert line_of(table(evaluation), "red", 1).split() == ["red", *"-------"[:6], ".500"]
