"""The column solver against closed forms and scipy."""

from itertools import pairwise

import numpy as np
import scipy.optimize

from polytag.lbfgs import minimise_columns


def test_quadratics_of_different_shape_are_all_solved():
    rng = np.random.default_rng(0)
    matrices = [
        (lambda a: a @ a.T / 30 + np.eye(30) * 0.2)(rng.normal(size=(30, 30))) for _ in "abc"
    ]
    aims = rng.normal(size=(30, 3))

    def objective(x):
        gap = x - aims
        gradient = np.stack([m @ gap[:, k] for k, m in enumerate(matrices)], axis=1)
        return 1 + (gap * gradient).sum(axis=0) / 2, gradient.astype(np.float32)

    start = np.zeros((30, 3), np.float32)
    found = minimise_columns(objective, start, tolerance=1e-9, max_iterations=200)
    np.testing.assert_allclose(found, aims, atol=2e-3)


def rosenbrock(x):
    a, b = x[0].astype(float), x[1].astype(float)
    gradient = np.stack([-400 * a * (b - a**2) - 2 * (1 - a), 200 * (b - a**2)])
    return 1 + 100 * (b - a**2) ** 2 + (1 - a) ** 2, gradient.astype(np.float32)


def test_a_hard_column_does_not_hold_back_or_spoil_an_easy_one():
    def objective(x):
        hard, g = rosenbrock(x[:, :1])
        easy = 1 + (x[:, 1:].astype(float) ** 2).sum(axis=0) / 2
        return np.concatenate([hard, easy]), np.concatenate([g, x[:, 1:]], axis=1)

    start = np.array([[-1.2, 5], [1, 5]], np.float32)
    found = minimise_columns(objective, start, tolerance=1e-10, max_iterations=500)
    expected = scipy.optimize.rosen(found[:, 0].astype(float))
    assert expected < 1e-3
    np.testing.assert_allclose(found[:, 1], 0, atol=1e-6)


def test_every_iteration_is_noted_and_none_gets_worse():
    seen = []
    start = np.array([[-1.2], [1]], np.float32)
    minimise_columns(rosenbrock, start, tolerance=1e-8, max_iterations=30, note=seen.append)
    values = [float(rosenbrock(point)[0][0]) for point in seen]
    assert len(values) > 5
    assert values[0] == rosenbrock(start)[0][0]
    assert all(b <= a + 1e-5 * abs(a) for a, b in pairwise(values))


def test_a_start_at_the_minimum_stays():
    point = np.zeros((2, 2), np.float32)
    found = minimise_columns(
        lambda x: (1 + (x**2).sum(axis=0), 2 * x), point, tolerance=1e-6, max_iterations=5
    )
    np.testing.assert_array_equal(found, point)
