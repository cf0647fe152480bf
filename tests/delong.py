"""DeLong's paired test of two AUCs, from the covariance that polytag computes.

DeLong, DeLong & Clarke-Pearson, Biometrics 44, 1988, equation 6.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from polytag.intervals import delong


class Difference(NamedTuple):
    value: float  # first - second
    low: float
    high: float
    z: float
    p_value: float  # two-sided


def delong_test(values: object, first: object, second: object) -> Difference:
    """Test that two scorings of the same independent rows have the same AUC, at 95 %."""
    auc, covariance = delong(values, np.column_stack([first, second]))
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    value, deviation = float(auc[0] - auc[1]), math.sqrt(max(variance, 0.0))
    half = 1.959963984540054 * deviation
    z = value / deviation if deviation else 0.0  # two that rank alike: 0, and certainly so
    return Difference(value, value - half, value + half, z, math.erfc(abs(z) / math.sqrt(2)))
