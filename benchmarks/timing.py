"""How everything is timed: in rounds, A B C A B C …, so that a drift of the machine reaches all alike."""

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from benchmarks.command import say

LEAST_ROUNDS = 3
T = TypeVar("T")


def in_turn(those: Sequence[T], rounds: int, at_most: float = math.inf, shuffled: bool = False) -> Iterator[T]:
    """Who is to take a turn, round by round.

    Arguments:
        rounds: at most. at_most: seconds after which no new round begins, once there are three.
        shuffled: another order in every round.

    Example:
        >>> list(in_turn("ABC", rounds=2))
        ['A', 'B', 'C', 'A', 'B', 'C']
    """
    stop = time.monotonic() + at_most
    for number in range(rounds):
        if number >= LEAST_ROUNDS and time.monotonic() > stop:
            return
        say(f"  round {number + 1}")
        order = list(those)
        if shuffled:
            random.Random(number).shuffle(order)
        yield from order


def turn(step: Callable[[], Any], least: float = 0.0, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of a step, the mean of a turn of at least `least` seconds."""
    started, count = clock(), 0
    while True:
        step()
        count += 1
        taken = clock() - started
        if taken >= least:
            return taken / count


def compare(steps: Mapping[T, Callable[[], Any]], rounds: int) -> dict[T, list[float]]:
    """Seconds of steps in this process, in turn, after one of each that is not timed."""
    seconds: dict[T, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    for name in in_turn(list(steps), rounds):
        seconds[name].append(turn(steps[name]))
    return seconds
