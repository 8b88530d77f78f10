"""From measured seconds and bytes to exponents, and the three counts that explain the seconds."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

COUNTS = ("calls", "values", "flops")
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Fit:
    """y = scale · x^exponent by least squares of logarithms; `error` is the exponent's standard error.

    Example:
        >>> f"{Fit(1.0, 0.02, 3.0)}", Fit(2.0, 0.0, 3.0).at(2)
        ('1.00 ± 0.02', 12.0)
    """

    exponent: float
    error: float
    scale: float

    def at(self, x: float) -> float:
        return self.scale * x**self.exponent

    def __str__(self) -> str:
        return f"{self.exponent:.2f} ± {self.error:.2f}"


def fit(x: Iterable[float], y: Iterable[float]) -> Fit | None:
    """The power law through the points above zero; None with fewer than three of them.

    Example:
        >>> str(fit([1, 2, 4], [3, 12, 48]))
        '2.00 ± 0.00'
    """
    pairs = [(a, b) for a, b in zip(x, y, strict=True) if b > 0]
    if len(pairs) < 3:
        return None
    u, v = np.log(np.array(pairs, dtype=float)).T
    spread = ((u - u.mean()) ** 2).sum()
    exponent = ((u - u.mean()) * (v - v.mean())).sum() / spread
    left = v - v.mean() - exponent * (u - u.mean())
    error = np.sqrt((left**2).sum() / (len(u) - 2) / spread)
    scale = np.exp(v.mean() - exponent * u.mean())
    return Fit(float(exponent), float(error), float(scale))


def last_slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Exponent between the two last points: where what is fixed weighs least.

    Example:
        >>> last_slope([1, 2, 4], [5, 6, 12])
        1.0
    """
    return float(np.log(y[-1] / y[-2]) / np.log(x[-1] / x[-2]))


def seconds(record: Record) -> list[float]:
    """Median seconds of every point of a series."""
    return [median(rounds) for rounds in record["seconds"]]


def bytes_used(record: Record) -> list[int]:
    return [found["used"] for found in record["memory"]]


def counts(records: Iterable[Record]) -> NDArray[np.float64]:
    """Calls, values and operations of every point, one row each."""
    return np.array([[point[name] for name in COUNTS] for record in records for point in record["counts"]], dtype=float)


def prices(records: Sequence[Record]) -> NDArray[np.float64]:
    """Seconds of a call, of a value and of an operation, by least squares of the relative error over all points.

        seconds ≈ a · calls + b · values + c · operations,   a, b, c ≥ 0

    Example:
        >>> points = [{"calls": 1, "values": 5, "flops": 9}, {"calls": 2, "values": 3, "flops": 1},
        ...           {"calls": 5, "values": 1, "flops": 7}]
        >>> measured = [[2 * p["calls"] + p["flops"]] for p in points]
        >>> prices([{"counts": points, "seconds": measured}]).round(6).tolist()
        [2.0, 0.0, 1.0]
    """
    taken = np.array([value for record in records for value in seconds(record)])
    rows = counts(records) / taken[:, None]
    best, least = np.zeros(len(COUNTS)), np.inf
    # With three unknowns the best point without negative prices is found by trying which of them are zero.
    for size in range(1, len(COUNTS) + 1):
        for chosen in combinations(range(len(COUNTS)), size):
            found = np.zeros(len(COUNTS))
            unit = rows[:, chosen].mean(0)
            found[list(chosen)] = np.linalg.lstsq(rows[:, chosen] / unit, np.ones(len(taken)), rcond=None)[0] / unit
            off = ((rows @ found - 1) ** 2).sum()
            if found.min() >= 0 and off < least:
                best, least = found, off
    return best
