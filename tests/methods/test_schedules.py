"""Schedules against the numbers of their sources."""

import math

import oracle
import pytest

import fewstep
from fewstep.methods import Annealed, Cosine, FirstThenSecond, LastStep, Uniform


@pytest.mark.parametrize(("epochs", "over"), [(100, 10), (100, 15), (150, 15)])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_annealed_weights_equal_the_released_formula_at_every_epoch(epochs, over, steps):
    schedule = Annealed(over=over / epochs, levels=epochs)
    for epoch in range(epochs):
        for part in (0.0, 0.5, 0.998):  # constant within an epoch
            weights = schedule((epoch + part) / epochs, steps)
            assert weights == pytest.approx(oracle.step_weights(epoch, steps, over), abs=1e-12)
            assert sum(weights) == pytest.approx(1.0)


def test_the_weights_the_paper_code_prints_for_five_steps_and_ten_epochs():
    schedule = Annealed(over=10 / 100, levels=100)
    for epoch in range(10):
        assert schedule(epoch / 100, 5) == pytest.approx([0.2 - 0.02 * epoch] * 4 + [0.2 + 0.08 * epoch])
    assert schedule(0.1, 5) == LastStep()(0.1, 5) == (0, 0, 0, 0, 1)


def test_the_floor_binds_in_a_long_anneal_and_may_be_kept():
    long = Annealed(over=0.5, floor=0.03)
    assert long(0.499, 5)[:4] == pytest.approx([0.006] * 4)
    assert long(0.5, 5) == (0, 0, 0, 0, 1)
    kept = Annealed(over=0.1, floor=0.03, keep_floor=True)
    assert kept(0.9, 5) == pytest.approx([0.006] * 4 + [0.976])


def test_uniform_and_zero_steps():
    assert Uniform()(0.3, 4) == (0.25,) * 4
    for weights in (Uniform(), LastStep(), Annealed()):
        assert tuple(weights(0.0, 0)) == (1.0,)


def test_order_changes_exactly_at_the_published_epoch():
    order = FirstThenSecond(until=50 / 150, levels=150)
    assert [order(e / 150) for e in (0, 49, 50, 149)] == ["first", "first", "second", "second"]
    assert order(49.999 / 150) == "first"
    for epoch in range(150):  # k / 150 must not fall to the level below
        assert order(epoch / 150) == ("first" if epoch < 50 else "second")


def test_cosine_equals_the_formula_and_is_constant_within_an_epoch():
    schedule = Cosine(1e-3, 1e-5, levels=100)
    for epoch in range(100):
        expected = oracle.cosine(epoch, 100, 1e-3, 1e-5)
        assert schedule(epoch / 100) == pytest.approx(expected)
        assert schedule((epoch + 0.9) / 100) == pytest.approx(expected)
    assert Cosine(1e-3, 1e-5)(0.5) == pytest.approx((1e-3 + 1e-5) / 2)
    assert math.isclose(schedule(1.0), 1e-5)


@pytest.mark.parametrize(
    "make", [lambda: FirstThenSecond(until=50), lambda: Annealed(over=-1), lambda: Annealed(floor=3)]
)
def test_fractions_outside_zero_and_one(make):
    with pytest.raises(fewstep.BadInput, match="a fraction of the training, between 0 and 1"):
        make()
