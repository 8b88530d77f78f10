"""Student's t against the printed table, and what has no interval."""

import math

import pytest

from fewstep.training.interval import mean_and_interval, student

TABLE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228,
         20: 2.086, 25: 2.060, 29: 2.045, 30: 2.042, 40: 2.021, 60: 2.000, 120: 1.980, 599: 1.964}  # fmt: skip


@pytest.mark.parametrize(("degrees", "t"), TABLE.items())
def test_the_table(degrees, t):
    assert round(student(degrees), 3) == t


def test_it_falls_to_that_of_the_normal_distribution():
    values = [student(degrees) for degrees in range(1, 200)]
    assert values == sorted(values, reverse=True)
    assert student(100_001) == pytest.approx(1.959964, abs=3e-5)
    assert student(1) == pytest.approx(math.tan(0.475 * math.pi), rel=1e-12)  # that of Cauchy
    assert student(2) == pytest.approx(math.sqrt(2 * 0.95**2 / (1 - 0.95**2)), rel=1e-12)


def test_two_values_say_little_and_one_nothing():
    assert mean_and_interval([0.4, 0.6]) == (0.5, pytest.approx(12.7062 * 0.1, rel=1e-5))
    assert mean_and_interval([0.4]) == (0.4, math.inf)
    assert mean_and_interval([0.4, math.nan, 0.6]) == mean_and_interval([0.4, 0.6])
