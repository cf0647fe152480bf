"""The table of an evaluation: what it says, and that it fits a terminal."""

import numpy as np
import pytest

from polytag.metrics import evaluate_arrays
from polytag.summary import headline, table


def drawn(attributes, rows=300, name="attribute_with_a_long_name_number_{}"):
    rng = np.random.default_rng(0)
    values = (rng.random((rows, attributes)) < 0.3).astype(float)
    values[rng.random(values.shape) < 0.2] = np.nan
    probabilities = np.clip(np.nan_to_num(values) * 0.3 + rng.random(values.shape) * 0.7, 0, 1)
    names = [name.format(k) for k in range(attributes)]
    folds = np.arange(rows) % 5
    return names, values, probabilities, np.full(attributes, 0.5), folds


@pytest.mark.parametrize("attributes", [1, 4, 40])
def test_no_line_is_longer_than_eighty_columns(attributes):
    *arrays, folds = drawn(attributes)
    evaluation = evaluate_arrays(*arrays, folds=folds)
    lines = [headline(evaluation), *table(evaluation).splitlines()]
    assert max(map(len, lines)) <= 80
    assert sum(line.startswith("attribu…") for line in lines) == attributes


def test_a_third_of_a_million_rows_fit_too():
    values = np.zeros((300_000, 1))
    values[:40_000] = np.nan
    values[-120_000:] = 1
    evaluation = evaluate_arrays(["a long name of it"], values, np.full(values.shape, 0.4), [0.5])
    assert max(map(len, table(evaluation).splitlines())) <= 80


def test_every_number_stands_beside_its_guess():
    evaluation = evaluate_arrays(["red"], [[1], [1], [0], [0]], [[0.9], [0.8], [0.3], [0.6]], [0.5])
    line = next(line for line in table(evaluation).splitlines() if line.startswith("red"))
    assert line.split() == [
        *("red", "2", "2", "0"),
        *("1.00", "(.500)", "1.00", ".800", "(.667)", ".750", "(.500)"),
    ]


def test_what_is_not_measured_is_a_dash_and_has_its_reason_below():
    values = [[1, np.nan], [0, np.nan]]
    evaluation = evaluate_arrays(["red", "blue"], values, [[0.9, 0.5], [0.1, 0.5]], [0.5, 0.5])
    text = table(evaluation)
    assert next(line for line in text.splitlines() if line.startswith("blue")).split()[4] == "-"
    assert "blue: no known cell among 2 rows" in text
    assert headline(evaluation) == "macro AP 1.000 (guessing: 0.500), over 1 of 2 attributes"


def test_without_any_measured_attribute_the_headline_says_so():
    evaluation = evaluate_arrays(["red"], [[np.nan]], [[0.5]], [0.5])
    assert headline(evaluation) == "macro AP is not defined: no attribute has it"
