"""Shrinking many images at once, bit for bit as Pillow does it one by one."""

import math

import numpy as np
from numpy.typing import NDArray

_PRECISION = 22  # bits of Pillow's fixed-point weights


def lanczos(images: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Lanczos with Pillow's rounding: a horizontal pass, then a vertical one, in 22-bit fixed point.

    Equal to `Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS)` for every grey image, at a fraction
    of the time. Every product and sum is a whole number below 2^53, so float64 matrix products are exact in any order.

    Arguments:
        images: (n, side, side) uint8.
        size: side of the result in pixels.

    Example:
        >>> lanczos(np.full((2, 105, 105), 255, np.uint8), 28).min()
        np.uint8(255)
    """
    side = images.shape[-1]
    if side == size:
        return images.copy()
    weights = _weights(side, size)
    across = _to_bytes(images.reshape(-1, side).astype(np.float64) @ weights.T).reshape(len(images), side, size)
    return _to_bytes(weights @ across.astype(np.float64))


def nearest(images: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Nearest neighbour as Pillow picks it: each output pixel takes the input pixel under its centre.

    Arguments and result as for `lanczos`.

    Example:
        >>> nearest(np.arange(16, dtype=np.uint8).reshape(1, 4, 4), 2)[0].tolist()
        [[5, 7], [13, 15]]
    """
    side = images.shape[-1]
    picked = ((2 * np.arange(size) + 1) * side) // (2 * size)
    return images[:, picked[:, None], picked]


def _to_bytes(sums: NDArray[np.float64]) -> NDArray[np.uint8]:
    sums *= 2.0**-_PRECISION  # exact: a power of two
    sums += 0.5
    return np.clip(np.floor(sums, out=sums), 0, 255, out=sums).astype(np.uint8)


def _weights(side: int, size: int) -> NDArray[np.float64]:
    """(size, side) whole-number weights, each row adding to about 2^22."""
    scale = side / size
    stretch = max(scale, 1.0)
    weights = np.zeros((size, side))
    for row in range(size):
        centre = (row + 0.5) * scale
        first = max(int(centre - 3 * stretch + 0.5), 0)
        last = min(int(centre + 3 * stretch + 0.5), side)
        taps = [_kernel((column - centre + 0.5) / stretch) for column in range(first, last)]
        total = sum(taps)
        weights[row, first:last] = [math.trunc(math.copysign(0.5, tap) + tap / total * 2**_PRECISION) for tap in taps]
    return weights


def _kernel(x: float) -> float:
    if x == 0:
        return 1.0
    return 3 * math.sin(math.pi * x) * math.sin(math.pi * x / 3) / (math.pi * x) ** 2 if -3 <= x < 3 else 0.0
