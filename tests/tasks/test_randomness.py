import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.tasks.randomness import below, bits, distinct, uniform


def test_the_stream_never_changes():
    assert [int(value) for value in bits(1, 2, [0, 1])] == [7646902884856827076, 14279837455593027829]


def test_bits_are_uniform_and_independent_of_each_other():
    values = uniform(bits(5, np.arange(64)[:, None], np.arange(1024)))
    assert abs(values.mean() - 0.5) < 4 / np.sqrt(12 * values.size)
    counts = np.bincount((values * 64).astype(int).reshape(-1), minlength=64)
    assert ((counts - 1024) ** 2 / 1024).sum() < 63 + 4 * np.sqrt(126)
    neighbours = [
        np.corrcoef(values[:-1].reshape(-1), values[1:].reshape(-1))[0, 1],
        np.corrcoef(values[:, :-1].reshape(-1), values[:, 1:].reshape(-1))[0, 1],
    ]
    assert np.abs(neighbours).max() < 4 / 256


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(1, 30), st.integers(0, 40))
def test_distinct_numbers_are_distinct_and_below_the_population(seed, count, more):
    drawn = distinct(bits(seed, np.arange(6)), count + more, count)
    assert drawn.shape == (6, count)
    assert drawn.min() >= 0
    assert drawn.max() < count + more
    assert all(len(set(row)) == count for row in drawn.tolist())


def test_every_ordered_sample_is_equally_likely():
    drawn = distinct(bits(9, np.arange(24000)), 4, 3)
    counts = np.bincount(drawn @ [16, 4, 1], minlength=64)
    counts = counts[counts > 0]
    assert len(counts) == 24
    assert ((counts - 1000) ** 2 / 1000).sum() < 23 + 4 * np.sqrt(46)


@pytest.mark.parametrize("limit", [1, 2, 7, 1000])
def test_below_reaches_every_number(limit):
    assert set(below(bits(3, np.arange(20 * limit + 20)), limit).tolist()) <= set(range(limit))
    assert len(set(below(bits(3, np.arange(40 * limit + 20)), limit).tolist())) == limit
