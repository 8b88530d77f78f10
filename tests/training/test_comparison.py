"""The table of a comparison, against numbers worked out by hand and against what must hold for any numbers."""

import math
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep import BadInput
from fewstep.training.comparison import Entry, compare
from fewstep.training.interval import student

TASKS = 5
VALUES = st.lists(st.floats(0, 1, allow_subnormal=False), min_size=TASKS, max_size=TASKS)
BY_SEED = st.dictionaries(st.integers(0, 3), VALUES, min_size=1, max_size=3)


def test_numbers_worked_out_by_hand():
    first = Entry("first", {0: (0.0, 0.5, 1.0, 0.5), 1: (0.5, 0.5, 1.0, 1.0)}, 60.0, 2.0, 1000)
    other = Entry("other", {0: (0.5, 0.5, 1.0, 1.0), 1: (1.0, 1.0, 1.0, 1.0)})
    a, b = compare([first, other])
    assert a.value == pytest.approx(0.625)  # means over seeds: 0.25 0.5 1 0.75
    assert a.interval95 == pytest.approx(student(3) * math.sqrt((0.375**2 + 2 * 0.125**2 + 0.375**2) / 3 / 4))
    assert a.spread == pytest.approx(0.125 * math.sqrt(2))  # of 0.5 and 0.75, unbiased
    assert (a.difference, a.difference_interval95, a.paired_seeds) == (None, None, ())
    assert (a.training_seconds, a.evaluation_seconds, a.peak_memory) == (60.0, 2.0, 1000)
    assert b.value == pytest.approx(0.875)
    assert b.difference == pytest.approx(0.25)  # task by task: 0.5 0.25 0 0.25
    assert b.difference_interval95 == pytest.approx(student(3) * math.sqrt(2 * 0.25**2 / 3 / 4))
    assert b.paired_seeds == (0, 1)
    assert (a.best, b.best) == (False, True)


def test_seeds_are_paired_where_both_have_them():
    first = Entry("first", {0: (0.1, 0.2), 7: (0.9, 0.9)})
    other = Entry("other", {0: (0.2, 0.4), 3: (0.0, 0.0)})
    row = compare([first, other])[1]
    assert row.difference == pytest.approx(0.15)  # of seed 0 alone: 0.1 and 0.2
    assert row.paired_seeds == (0,)
    assert row.seeds == (0, 3)


def test_without_a_seed_in_common_the_means_over_seeds_are_compared():
    first = Entry("first", {0: (0.1, 0.3), 1: (0.3, 0.5)})
    other = Entry("other", {2: (0.5, 0.4)})
    row = compare([first, other])[1]
    assert row.difference == pytest.approx(0.15)  # 0.5 − 0.2 and 0.4 − 0.4
    assert row.difference_interval95 == pytest.approx(student(1) * math.sqrt(2 * 0.15**2 / 2))
    assert row.paired_seeds == ()


def test_less_loss_is_better():
    rows = compare([Entry("a", {0: (1.0, 2.0)}), Entry("b", {0: (0.5, 1.0)})], metric="loss")
    assert [row.best for row in rows] == [False, True]
    assert rows[1].difference == pytest.approx(-0.75)


@settings(deadline=None)
@given(BY_SEED, BY_SEED)
def test_what_holds_for_any_measurements(ours, theirs):
    rows = compare([Entry("first", theirs), Entry("other", ours)])
    assert max(row.value for row in rows if row.best) == max(row.value for row in rows)
    for row, given_values in zip(rows, (theirs, ours), strict=True):
        assert row.value == pytest.approx(statistics.fmean(statistics.fmean(v) for v in given_values.values()))
        assert (row.spread is None) == (len(given_values) == 1)
        if row.spread is not None:
            assert row.spread == pytest.approx(statistics.stdev(statistics.fmean(v) for v in given_values.values()))
    if set(ours) == set(theirs):
        assert rows[1].difference == pytest.approx(rows[1].value - rows[0].value)
    mirrored = compare([Entry("other", ours), Entry("first", theirs)])[1]
    assert mirrored.difference == pytest.approx(-rows[1].difference)
    assert mirrored.difference_interval95 == pytest.approx(rows[1].difference_interval95)


@settings(deadline=None)
@given(BY_SEED, st.permutations(range(TASKS)), st.floats(-1, 1))
def test_pairing_sees_through_hard_and_easy_tasks(values, order, gain):
    """A gain that is the same on every task has no interval, however much the tasks differ; order means nothing."""
    better = {seed: [v + gain for v in row] for seed, row in values.items()}
    row = compare([Entry("first", values), Entry("better", better)])[1]
    assert row.difference == pytest.approx(gain, abs=1e-12)
    assert row.difference_interval95 == pytest.approx(0, abs=1e-12)
    shuffled = {seed: [row[i] for i in order] for seed, row in reversed(values.items())}
    again, plain = (compare([Entry("x", v)])[0] for v in (shuffled, values))
    assert again.value == pytest.approx(plain.value)
    assert again.interval95 == pytest.approx(plain.interval95)


def test_what_cannot_be_compared():
    with pytest.raises(BadInput, match="nothing to compare"):
        compare([])
    with pytest.raises(BadInput, match="nothing to compare"):
        compare([Entry("a", {})])
    with pytest.raises(BadInput, match="measurements of 1 and 2 tasks cannot be compared"):
        compare([Entry("a", {0: (0.5,)}), Entry("b", {0: (0.5, 0.5)})])


def test_a_task_that_diverged_is_left_out_with_its_partner():
    nan = math.nan
    first = Entry("first", {0: (0.1, 0.3, nan), 1: (0.3, 0.5, 0.9)})
    other = Entry("other", {0: (nan, 0.2, 0.4), 1: (0.2, 0.2, 0.4)})
    a, b = compare([first, other], "loss")
    assert a.value == pytest.approx((0.2 + 0.4) / 2)
    assert b.difference == pytest.approx(0.2 - 0.4)  # the one task that all have
    assert a.spread == pytest.approx(statistics.stdev([0.2, (0.3 + 0.5 + 0.9) / 3]))
    assert b.difference_interval95 == math.inf
    assert b.to_json()["difference_interval95"] is None
