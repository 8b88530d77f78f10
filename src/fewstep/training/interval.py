"""The mean over tasks, and how far from it the mean over all tasks may be."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any


@lru_cache
def student(degrees: int) -> float:
    """The t for which P(|T| ≤ t) = 0.95, T being of Student's distribution.

        P(|T| ≤ t) = 2/π (θ + sin θ (cos θ + 2/3 cos³ θ + 2·4/(3·5) cos⁵ θ + … ))   odd degrees ν, up to cos^(ν−2)
                   = sin θ (1 + 1/2 cos² θ + 1·3/(2·4) cos⁴ θ + … )                 even ones,   θ = atan(t/√ν)

    The root is found by Newton's method, which climbs to it from below, since the function is concave.

    Arguments:
        degrees: ν, of freedom: one less than the numbers that a deviation is taken from; at least 1.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.

    Example:
        >>> [round(student(degrees), 3) for degrees in (1, 2, 10, 599)]
        [12.706, 4.303, 2.228, 1.964]
    """
    norm = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2) - 0.5 * math.log(degrees * math.pi)
    t, step = 1.959963984540054, 1.0
    while step > 1e-12 * t:
        angle = math.atan(t / math.sqrt(degrees))
        odd, cos = degrees % 2, math.cos(angle)
        term, total = cos if odd else 1.0, 0.0
        for power in range(1 + odd, degrees, 2):
            total += term
            term *= cos * cos * power / (power + 1)
        inside = 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
        density = math.exp(norm - (degrees + 1) / 2 * math.log1p(t * t / degrees))
        step = (0.95 - inside) / (2 * density)
        t += step
    return t


def mean_and_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half-width of its 95 % interval, t · std / √n with the unbiased std and Student's t of n − 1 degrees.

    Values that are NaN, those of tasks that diverged, are left out. One value has no interval: its half-width is
    infinite.

    Example:
        >>> mean_and_interval([0.0, 1.0, 0.0, 1.0])[0], mean_and_interval([0.5])
        (0.5, (0.5, inf))
    """
    values = [value for value in values if not math.isnan(value)]
    n = len(values)
    mean = math.fsum(values) / n if n else math.nan
    if n < 2:
        return mean, math.inf
    variance = math.fsum((v - mean) ** 2 for v in values) / (n - 1)
    return mean, student(n - 1) * math.sqrt(variance / n)


def plain(value: Any) -> Any:
    """The same record for JSON, which has no word for what is not finite: that becomes None.

    Example:
        >>> plain({"interval95": math.inf, "per_task": (0.5, math.nan)})
        {'interval95': None, 'per_task': [0.5, None]}
    """
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
