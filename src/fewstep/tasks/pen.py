"""A pen: smooth curves through control points, drawn as anti-aliased lines on many small pages at once.

Only + - * / and square roots of single numbers are used, and maxima, whose order does not matter: all are exact by the
IEEE standard, so the bytes are the same on every machine.
"""

import numpy as np
from numpy.typing import NDArray

_SPACING = 2.4  # points for each pixel of chord: half a pixel apart on ordinary curves
_MARGIN = 4  # pixels around a page that catch ink beyond its edge


def draw_curves(
    points: NDArray[np.float32],
    segments: NDArray[np.int64],
    smooth: NDArray[np.float32],
    radius: NDArray[np.float32],
    size: int,
) -> NDArray[np.uint8]:
    """Pages with the ink of their strokes: 255 on the line, 0 on paper, grey across half a pixel at its edge.

        tangent at p_i = s (p_{i+1} - p_{i-1}),     ink at distance d = clip(r + 1/2 - d, 0, 1)

    A stroke is the cubic Hermite chain through its control points p_i: s = 1/2 is the Catmull-Rom curve, s = 0 gives
    straight pieces.

    Arguments:
        points: (pages, strokes, K, 2) control points x, y in pixels, y down.
        segments: (pages, strokes) pieces in use of each stroke, 0 to K - 1.
        smooth: (pages, strokes) s.
        radius: (pages,) r, half of the line's width in pixels.
        size: side of a page in pixels.

    Returns:
        (pages, size, size) uint8.

    Example:
        >>> line = np.array([[[[4.5, 8.5], [11.5, 8.5]]]], np.float32)
        >>> page = draw_curves(line, np.array([[1]]), np.zeros((1, 1), np.float32), np.ones(1, np.float32), 16)[0]
        >>> page[8, 3:13:3].tolist()
        [127, 255, 255, 127]
    """
    page, stroke, piece = np.nonzero(np.arange(points.shape[2] - 1) < segments[..., None])
    start, end = points[page, stroke, piece], points[page, stroke, piece + 1]
    last = segments[page, stroke]
    before = points[page, stroke, np.maximum(piece - 1, 0)]
    after = points[page, stroke, np.minimum(piece + 2, last)]
    tension = smooth[page, stroke][:, None]
    leave, arrive = tension * (end - before), tension * (after - start)
    chord = end - start
    length = np.sqrt(chord[:, 0] * chord[:, 0] + chord[:, 1] * chord[:, 1])
    groups = np.minimum((length * np.float32(_SPACING)).astype(np.int64) // 4, 16 * size) + 1
    window = 2 * int(np.ceil(radius.max() + 0.5))
    side = size + 2 * _MARGIN + window
    canvas = np.zeros(len(points) * side * side, np.uint8)
    for group in np.unique(groups):  # pieces of like length get like numbers of points
        chosen = np.flatnonzero(groups == group)
        t = (np.arange(4 * group, dtype=np.float32) / np.float32(4 * group - 1))[:, None]
        u = 1 - t
        path = (
            u * u * (1 + 2 * t) * start[chosen, None]
            + t * t * (3 - 2 * t) * end[chosen, None]
            + t * u * (u * leave[chosen, None] - t * arrive[chosen, None])
        )
        on = page[chosen].repeat(4 * group)
        _stamp(canvas, path.astype(np.float32, copy=False).reshape(-1, 2), on, radius[on], window, side)
    pages = canvas.reshape(len(points), side, side)
    edge = _MARGIN + window // 2
    return np.ascontiguousarray(pages[:, edge : edge + size, edge : edge + size])


def _stamp(
    canvas: NDArray[np.uint8],
    path: NDArray[np.float32],
    page: NDArray[np.int64],
    radius: NDArray[np.float32],
    window: int,
    side: int,
) -> None:
    """Round dots at the points of a path, each in a small window of pixels; where dots meet the darker one stays."""
    half = window // 2
    shifted = path + np.float32(_MARGIN + half)
    shifted = np.clip(shifted, np.float32(half), np.float32(side - half - 1))
    corner = (shifted + np.float32(0.5)).astype(np.int64) - half  # the nearest `window` pixel centres start here
    offsets = np.arange(window)
    gap = (corner[:, :, None] + offsets).astype(np.float32) + np.float32(0.5) - shifted[:, :, None]
    gap *= gap
    distance = np.sqrt(gap[:, 1, :, None] + gap[:, 0, None, :]).reshape(len(path), -1)
    ink = np.clip((radius + np.float32(0.5))[:, None] - distance, np.float32(0), np.float32(1))
    base = (page * side + corner[:, 1]) * side + corner[:, 0]
    where = base[:, None] + (offsets[:, None] * side + offsets).reshape(-1)
    np.maximum.at(canvas, where.reshape(-1), (ink * np.float32(255)).astype(np.uint8).reshape(-1))
