"""Gates: a number passes or fails for what it is, and one that is not defined never passes."""

from __future__ import annotations

import numpy as np
import pytest

from polytag.errors import RecipeError
from polytag.gates import Gate, check_gates, parse_gates
from polytag.results import METRICS, TOGETHER, Evaluation
from polytag.scorecard import evaluate_arrays

NAMES = ["red", "dark.red", "empty"]


@pytest.fixture(scope="module")
def judged() -> Evaluation:
    rng = np.random.default_rng(0)
    values = (rng.random((80, 3)) < 0.4).astype(float)
    values[:, 2] = np.nan
    probabilities = np.clip(values * 0.4 + rng.uniform(0, 0.6, (80, 3)), 0, 1)
    probabilities[:, 2] = 0.5
    return evaluate_arrays(NAMES, values, probabilities, [0.5] * 3, groups=np.arange(80))


def passed(judged: Evaluation, *words: str) -> list[bool]:
    return [passage.passed for passage in check_gates(parse_gates(words, NAMES), judged)]


def test_every_number_can_be_a_gate(judged):
    names = [f"macro_{metric}" for metric in METRICS] + list(TOGETHER)
    names += [f"{name}.{metric}" for name in ("red", "dark.red") for metric in METRICS]
    for name in names:
        gate = parse_gates([f"{name}=0"], NAMES)
        assert check_gates(gate, judged)[0].value is not None, name


def test_a_number_at_its_bound_passes_and_one_beyond_it_fails(judged):
    value = float(judged.macro["ap"].value)
    assert passed(judged, f"macro_ap={value!r}", f"macro_ap={float(np.nextafter(value, 2))!r}") == [
        True,
        False,
    ]


@pytest.mark.parametrize("name", ["log_loss", "macro_brier", "red.ece", "macro_ece"])
def test_a_loss_fails_above_its_bound(judged, name):
    assert passed(judged, f"{name}=0.000001", f"{name}=5") == [False, True]
    (passage,) = check_gates(parse_gates([f"{name}=0.000001"], NAMES), judged)
    assert passage.is_loss and "is above 1e-06" in str(passage) and "FAILED" in str(passage)


def test_the_ends_of_an_interval_can_be_held_against_a_bound(judged):
    ap = judged.macro["ap"]
    between = (ap.low + ap.value) / 2
    words = (f"macro_ap={between}", f"macro_ap.low={between}", f"macro_ap.high={between}")
    assert passed(judged, *words) == [True, False, True]
    red = judged.attributes[0].f1
    assert passed(judged, f"red.f1.low={float(red.low)!r}") == [True]


def test_what_is_not_defined_fails_and_says_why(judged):
    (passage,) = check_gates(parse_gates(["empty.ap=0"], NAMES), judged)
    assert not passage.passed and passage.value is None
    assert "no known cell" in str(passage)
    plain = evaluate_arrays(["red"], [[1], [0]], [[0.9], [0.1]], [0.5])
    (passage,) = check_gates([Gate("macro_ap.low", 0.0)], plain)
    assert not passage.passed and "no interval" in str(passage)


def test_an_attribute_may_hold_a_dot_or_an_equals_sign():
    names = ["a.b", "x=y", "f1"]
    found = parse_gates(["a.b.f1.low=0.5", "x=y.ap=.5", "f1.f1=1"], names)
    assert [gate.name for gate in found] == ["a.b.f1.low", "x=y.ap", "f1.f1"]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("macro_app=0.5", "did you mean 'macro_ap'"),
        ("redd.f1=0.5", "did you mean 'red'"),
        ("red.acuracy=0.5", "did you mean 'accuracy'"),
        ("red.f2=0.5", "known: .*, f1, .*ATTRIBUTE.METRIC"),
        ("ap=0.5", "known: .*macro_ap"),
        ("macro_ap", "not a gate; got 'macro_ap', expected NAME=NUMBER"),
        ("macro_ap=high", "not a gate"),
        ("macro_ap=nan", "not a gate"),
        ("=0.5", "not a gate"),
    ],
)
def test_a_name_that_is_not_known_is_refused_with_what_is(word, message):
    with pytest.raises(RecipeError, match=message):
        parse_gates([word], NAMES)
