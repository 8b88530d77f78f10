"""Schedules: functions of progress, the fraction of the training done (0 to 1).

A schedule that its source keeps constant within an epoch has `levels`, the number of epochs of the published run:
progress is cut to multiples of 1/levels, so a run of any length has the published shape, and a run of the published
length changes exactly at the published epochs.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from fewstep.errors import BadInput
from fewstep.methods.records import Part

Order = Literal["first", "second"]


def _cut(progress: float, levels: int | None) -> float:
    """Progress rounded down to a multiple of 1/levels; the tolerance keeps k/n on its own level."""
    return progress if levels is None else math.floor(progress * levels + 1e-6) / levels


def _check_rates(part: object, levels: int | None, *rates: float) -> None:
    if not all(0 <= rate < math.inf for rate in rates) or (levels is not None and levels < 1):
        raise BadInput(f"{type(part).__name__}: rates must be finite numbers from 0 up, and levels at least 1")


def _check_fraction(part: object, name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise BadInput(f"{type(part).__name__}: {name} is {value}; it is a fraction of the training, between 0 and 1")


# --- derivative order: progress -> "first" | "second" ---------------------------------------------------------------


class OrderSchedule(Part, Protocol):
    def __call__(self, progress: float) -> Order: ...


@dataclass(frozen=True)
class SecondOrder(OrderSchedule, word="second"):
    """Differentiate through the inner gradients, all the training long (MAML, arXiv 1703.03400).

    Example:
        >>> SecondOrder()(0.0)
        'second'
    """

    def __call__(self, progress: float) -> Order:  # noqa: ARG002 - every schedule takes progress
        return "second"


@dataclass(frozen=True)
class FirstOrder(OrderSchedule, word="first"):
    """Take inner gradients as constants, all the training long (first-order MAML, arXiv 1703.03400 §5.2).

    Example:
        >>> FirstOrder()(0.9)
        'first'
    """

    def __call__(self, progress: float) -> Order:  # noqa: ARG002
        return "first"


@dataclass(frozen=True)
class FirstThenSecond(OrderSchedule, word="annealed"):
    """First order until a fraction of the training, second order from there (DA of MAML++, arXiv 1810.09502).

    Arguments:
        until: fraction of the training with first-order gradients.
        levels: epochs of the published run, see the module.

    Example:
        >>> order = FirstThenSecond(until=50 / 150, levels=150)
        >>> order(49.9 / 150), order(50 / 150)
        ('first', 'second')
    """

    until: float = 50 / 150
    levels: int | None = None

    def __post_init__(self) -> None:
        _check_fraction(self, "until", self.until)
        _check_rates(self, self.levels)

    def __call__(self, progress: float) -> Order:
        return "first" if _cut(progress, self.levels) < self.until - 1e-9 else "second"


# --- step weights: (progress, steps) -> one weight for the query loss after each inner step --------------------------


class StepWeights(Part, Protocol):
    def __call__(self, progress: float, steps: int) -> tuple[float, ...]: ...


@dataclass(frozen=True)
class LastStep(StepWeights, word="last"):
    """Only the query loss after the last inner step counts: w = (0, …, 0, 1).

    Example:
        >>> LastStep()(0.0, 3)
        (0.0, 0.0, 1.0)
    """

    def __call__(self, progress: float, steps: int) -> tuple[float, ...]:  # noqa: ARG002
        return (0.0,) * (steps - 1) + (1.0,)


@dataclass(frozen=True)
class Uniform(StepWeights):
    """The query loss after every inner step counts the same: w_i = 1/N.

    Example:
        >>> Uniform()(0.5, 4)
        (0.25, 0.25, 0.25, 0.25)
    """

    def __call__(self, progress: float, steps: int) -> tuple[float, ...]:  # noqa: ARG002
        return (1 / steps,) * steps if steps else (1.0,)


@dataclass(frozen=True)
class Annealed(StepWeights):
    """Multi-step loss, from uniform to the last step (MSL of MAML++, arXiv 1810.09502 and its released code).

        w_i = max((1/N)(1 − p/over), floor/N)  for i < N−1,   w_{N−1} = 1 − Σ w_i;   the last step alone once p ≥ over

    Arguments:
        over: fraction p of the training over which the weights move to the last step.
        floor: no weight falls below floor/N while annealing.
        keep_floor: stay at the floor after `over` (the code of October 2018) instead of the last step alone.
        levels: epochs of the published run, see the module.

    Example:
        >>> weights = Annealed(over=10 / 100, levels=100)
        >>> [round(w, 3) for w in weights(9 / 100, 5)]
        [0.02, 0.02, 0.02, 0.02, 0.92]
        >>> weights(10 / 100, 5)
        (0.0, 0.0, 0.0, 0.0, 1.0)
    """

    over: float = 15 / 150
    floor: float = 0.03
    keep_floor: bool = False
    levels: int | None = None

    def __post_init__(self) -> None:
        _check_fraction(self, "over", self.over)
        _check_fraction(self, "floor", self.floor)
        _check_rates(self, self.levels)

    def __call__(self, progress: float, steps: int) -> tuple[float, ...]:
        progress = _cut(progress, self.levels)
        done = progress >= self.over - 1e-9
        if steps < 2 or (done and not self.keep_floor):
            return LastStep()(progress, steps)
        each = max((1 - progress / self.over) / steps if not done else 0.0, self.floor / steps)
        return (each,) * (steps - 1) + (1 - (steps - 1) * each,)


# --- outer rate: progress -> learning rate of the outer optimiser ----------------------------------------------------


class RateSchedule(Part, Protocol):
    def __call__(self, progress: float) -> float: ...

    def starting(self, rate: float) -> "RateSchedule":
        """The same schedule from another rate on."""
        ...


@dataclass(frozen=True)
class Constant(RateSchedule):
    """The same outer rate all the training long.

    Arguments:
        rate: outer learning rate, where its schedule starts.

    Example:
        >>> Constant(1e-3)(0.7)
        0.001
    """

    rate: float = 1e-3

    def __post_init__(self) -> None:
        _check_rates(self, None, self.rate)

    def __call__(self, progress: float) -> float:  # noqa: ARG002
        return self.rate

    def starting(self, rate: float) -> "Constant":
        return Constant(rate)


@dataclass(frozen=True)
class Cosine(RateSchedule):
    """One cosine descent of the outer rate (CA of MAML++, arXiv 1810.09502).

        β(p) = β_min + ½ (β_max − β_min)(1 + cos(πp))

    Arguments:
        maximum, minimum: the outer rate at p = 0 and at p = 1.
        levels: epochs of the published run, see the module.

    Example:
        >>> Cosine(1e-3, 1e-5)(0.0), round(Cosine(1e-3, 1e-5)(1.0), 8)
        (0.001, 1e-05)
    """

    maximum: float = 1e-3
    minimum: float = 1e-5
    levels: int | None = None

    def __post_init__(self) -> None:
        _check_rates(self, self.levels, self.maximum, self.minimum)

    def __call__(self, progress: float) -> float:
        swing = 1 + math.cos(math.pi * _cut(progress, self.levels))
        return self.minimum + (self.maximum - self.minimum) * swing / 2

    def starting(self, rate: float) -> "Cosine":
        return replace(self, maximum=rate)


@dataclass(frozen=True)
class Linear(RateSchedule):
    """A straight line of the outer rate (Reptile, arXiv 1803.02999).

        β(p) = (1 − p) β_start + p β_end

    Arguments:
        start, end: the outer rate at p = 0 and at p = 1.

    Example:
        >>> Linear(1.0, 0.0)(0.25)
        0.75
    """

    start: float = 1.0
    end: float = 0.0

    def __post_init__(self) -> None:
        _check_rates(self, None, self.start, self.end)

    def __call__(self, progress: float) -> float:
        return (1 - progress) * self.start + progress * self.end

    def starting(self, rate: float) -> "Linear":
        return replace(self, start=rate)
