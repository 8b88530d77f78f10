"""Random numbers as a pure function of whole-number keys: no state, no order of calls, the same on every machine.

A counter-based generator: keys go in, 64 random bits come out, for whole arrays of keys at once. That makes a task a
pure function of (seed, number) and costs microseconds where seeding a stateful generator for every task costs more.
The mixer is the finaliser of SplitMix64 (Steele, Lea and Flood 2014, constants of Stafford's variant 13).
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def bits(*keys: ArrayLike) -> NDArray[np.uint64]:
    """64 random bits for each tuple of keys, broadcast over arrays of whole numbers.

        h_0 = 0,     h_j = mix(h_{j-1} xor mix(key_j + golden))

    The result is the last h. The order of keys matters.

    Example:
        >>> bits(1, 2, [3, 4]).shape, bool(bits(1, 2, 3) == bits(1, 2, [3])[0]), bool(bits(1, 2) == bits(2, 1))
        ((2,), True, False)
    """
    state = np.zeros(1, np.uint64)  # arrays, not scalars: unsigned overflow is wanted and must not warn
    scalar = all(np.ndim(key) == 0 for key in keys)
    for key in keys:
        state = _mix(state ^ _mix(np.atleast_1d(np.asarray(key)).astype(np.uint64) + _GOLDEN))
    return state[0] if scalar else state


def uniform(random_bits: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Numbers in [0, 1) with 53 random bits, exact in float64.

    Example:
        >>> bool(0 <= uniform(bits(7)) < 1)
        True
    """
    return (random_bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def below(random_bits: NDArray[np.uint64], limit: ArrayLike) -> NDArray[np.int64]:
    """Whole numbers in [0, limit), for limits up to 2^31; the bias is at most limit / 2^32.

    Example:
        >>> int(below(bits(range(1000)), 10).max())
        9
    """
    return (((random_bits >> np.uint64(32)) * np.asarray(limit).astype(np.uint64)) >> np.uint64(32)).astype(np.int64)


def distinct(keys: NDArray[np.uint64], population: ArrayLike, count: int) -> NDArray[np.int64]:
    """`count` different whole numbers below `population`, in random order, for each key.

    Floyd's algorithm, so the cost does not grow with the population; then a shuffle, for its order is not uniform.

    Arguments:
        keys: (...) random bits, one for each draw.
        population: (...) or a number, at least `count` everywhere (the caller checks).
        count: k.

    Returns:
        (..., k) int64.

    Example:
        >>> sorted(distinct(bits([5]), 4, 4)[0].tolist())
        [0, 1, 2, 3]
    """
    population = np.broadcast_to(np.asarray(population, np.int64), keys.shape)
    random_bits = bits(keys[..., None], np.arange(2 * count))
    chosen = np.empty((*keys.shape, count), np.int64)
    for step in range(count):
        last = population - count + step
        candidate = below(random_bits[..., step], last + 1)
        taken = (chosen[..., :step] == candidate[..., None]).any(axis=-1)
        chosen[..., step] = np.where(taken, last, candidate)
    order = np.argsort(random_bits[..., count:], axis=-1, kind="stable")
    return np.take_along_axis(chosen, order, axis=-1)


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * _FIRST
    z = (z ^ (z >> np.uint64(27))) * _SECOND
    return z ^ (z >> np.uint64(31))
