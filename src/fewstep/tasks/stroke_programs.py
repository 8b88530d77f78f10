"""What a procedural character is: a few pen strokes of simple kinds and how they are put together.

The idea follows Lake, Salakhutdinov and Tenenbaum (Science 350, 2015): a concept is a small program of strokes and
relations between them. Nothing is learned here; every choice comes from the class number alone.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fewstep.tasks.randomness import below, bits, uniform

STROKES = 4  # at most
PIECES = 8  # of a stroke at most, so 9 control points
ALPHABET = 25  # consecutive class numbers that share a taste for some kinds of strokes
_TASTE, _SHAPE, _LAYOUT, _SIZE = 101, 102, 103, 104  # keys that keep the draws apart
_CANDIDATES = 4  # places tried for a stroke; the first that keeps its distance from the others is taken
_APART = 0.3  # that distance, squared, between the middles of two strokes

_STROKE_COUNTS = (0.16, 0.56, 0.86)  # cumulative chances of 1, 2 and 3 strokes
# A stroke walks in pieces, turning after each by an angle given as the tangent of its half; from piece `switch` on the
# turn is multiplied by `then`. Pairs are the least and the most.
_KINDS = np.array(
    [
        # chance pieces  turn        switch then         first last length      smooth
        [0.17, 2, 2, 0.00, 0.07, 9, 1.00, 1.00, 1.0, 1.0, 0.42, 0.80, 0.5],  # line, hardly bent
        [0.18, 3, 5, 0.14, 0.34, 9, 1.00, 1.00, 1.0, 1.0, 0.30, 0.46, 0.5],  # arc
        [0.08, 6, 6, 0.53, 0.62, 9, 1.00, 1.00, 1.0, 1.0, 0.26, 0.40, 0.5],  # loop
        [0.11, 7, 8, 0.50, 0.60, 4, -0.6, 0.20, 1.0, 1.3, 0.22, 0.34, 0.5],  # loop with a tail
        [0.13, 5, 7, 0.30, 0.55, 3, -1.3, -0.8, 1.0, 1.0, 0.24, 0.36, 0.5],  # wave
        [0.11, 5, 6, 0.32, 0.58, 9, 1.00, 1.00, 3.0, 1.0, 0.22, 0.32, 0.5],  # stem, then a curl
        [0.08, 5, 6, 0.32, 0.58, 3, 0.00, 0.40, 1.0, 3.0, 0.22, 0.32, 0.5],  # curl, then a stem
        [0.08, 2, 4, 0.75, 1.50, 1, -1.2, -0.8, 1.0, 1.0, 0.50, 0.85, 0.0],  # zigzag
        [0.10, 2, 4, 0.85, 1.10, 9, 1.00, 1.00, 1.0, 1.0, 0.50, 0.85, 0.0],  # corners of a box
    ]
)
_LINE = 0
# Pens start rightwards and downwards more often than not.
_HEADINGS = np.array([(1, 0), (1, 0), (1, 0), (0, 1), (0, 1), (0, 1), (1, 1), (-1, 1), (1, -1), (-1, 0)], np.float64)


@dataclass(frozen=True, eq=False)
class Programs:
    """Characters before a drawer's style, in a box from -1 to 1 with y down.

    Arguments:
        points: (n, strokes, 9, 2) control points; those after a stroke's last repeat it.
        segments: (n, strokes) pieces of each stroke, 0 when there is no such stroke.
        smooth: (n, strokes) 1/2 for curves, 0 for straight pieces.
    """

    points: NDArray[np.float64]
    segments: NDArray[np.int64]
    smooth: NDArray[np.float64]


def programs(classes: NDArray[np.int64]) -> Programs:
    """The program of each class number.

    Example:
        >>> programs(np.arange(3)).points.shape
        (3, 4, 9, 2)
    """
    stroke = np.arange(STROKES)
    keys = bits(_SHAPE, classes)[:, None]
    extra = _count_below(uniform(bits(keys, STROKES)), _STROKE_COUNTS)
    keys = bits(keys, stroke)
    kind = _kinds(classes, uniform(bits(keys, 0)))
    # A line by itself is no character.
    kind = np.where((extra == 0) & (kind == _LINE), 1 + below(bits(keys, 1), len(_KINDS) - 1), kind)
    segments = _between(_KINDS[kind, 1], _KINDS[kind, 2] + 1, uniform(bits(keys, 2))).astype(np.int64)
    shapes = _walk(keys, _KINDS[kind], segments)
    shapes *= np.where(stroke == 0, 1.0, 0.6 + 0.5 * uniform(bits(keys, 3)))[..., None, None]
    present = stroke <= extra
    segments = np.where(present, segments, 0)
    return Programs(_fit(classes, _arrange(classes, shapes, segments), present), segments, _KINDS[kind, -1])


def _kinds(classes: NDArray[np.int64], chance: NDArray[np.float64]) -> NDArray[np.int64]:
    """A kind for each stroke; classes of one alphabet share how much they like each kind."""
    taste = uniform(bits(bits(_TASTE, classes // ALPHABET)[:, None], np.arange(len(_KINDS))))
    weights = np.cumsum(_KINDS[:, 0] * (0.15 + taste * taste * 2.0), axis=1)
    return _count_below(chance * weights[:, -1:], weights[:, None, :-1])


def _walk(keys: NDArray[np.uint64], kinds: NDArray[np.float64], segments: NDArray[np.int64]) -> NDArray[np.float64]:
    """Control points of each stroke: a walk that turns as its kind does, centred on its bounding box."""
    heading = _HEADINGS[below(bits(keys, 10), len(_HEADINGS))]
    heading = heading + 0.32 * (uniform(bits(keys[..., None], [11, 12])) - 0.5)
    heading = heading / np.sqrt(heading[..., 0] * heading[..., 0] + heading[..., 1] * heading[..., 1])[..., None]
    turn = _between(kinds[..., 3], kinds[..., 4], uniform(bits(keys, 13)))
    turn = np.where(uniform(bits(keys, 14)) < 0.5, -turn, turn)
    later = turn * _between(kinds[..., 6], kinds[..., 7], uniform(bits(keys, 15)))
    length = _between(kinds[..., 10], kinds[..., 11], uniform(bits(keys, 16)))
    vary = 0.82 + 0.36 * uniform(bits(keys[..., None], 20 + np.arange(PIECES)))
    points = np.zeros((*segments.shape, PIECES + 1, 2))
    for piece in range(PIECES):
        special = kinds[..., 8] if piece == 0 else np.where(piece == segments - 1, kinds[..., 9], 1.0)
        reach = np.where(piece < segments, length * vary[..., piece] * special, 0.0)
        points[..., piece + 1, :] = points[..., piece, :] + reach[..., None] * heading
        heading = _turned(heading, np.where(piece + 1 >= kinds[..., 5], later, turn))
    return points - (points.min(axis=-2, keepdims=True) + points.max(axis=-2, keepdims=True)) / 2


def _arrange(
    classes: NDArray[np.int64], shapes: NDArray[np.float64], segments: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Strokes in their places: mostly joined to a point of an earlier stroke, some on their own."""
    points, rows = shapes.copy(), np.arange(len(classes))
    centres = np.zeros((len(classes), STROKES, 2))
    for stroke in range(1, STROKES):
        best = np.full(len(classes), -1.0)
        keys = bits(_LAYOUT, classes, stroke)
        joined = uniform(bits(keys, 0)) < 0.7
        for candidate in range(_CANDIDATES):
            draw = bits(keys[:, None], 10 * candidate + 10 + np.arange(5))
            chance = uniform(draw)
            earlier = below(draw[:, 4], stroke)
            joint = points[rows, earlier, _anchor(chance[:, 0], segments[rows, earlier], (0.35, 0.80))]
            own = shapes[rows, stroke, _anchor(chance[:, 1], segments[:, stroke], (0.5, 0.85))]
            offset = np.where(joined[:, None], joint - own, 2.2 * (chance[:, 2:4] - 0.5))
            gaps = centres[:, :stroke] - offset[:, None]
            clearance = (gaps[..., 0] * gaps[..., 0] + gaps[..., 1] * gaps[..., 1]).min(axis=1)
            better = np.minimum(clearance, _APART) > best
            best = np.where(better, np.minimum(clearance, _APART), best)
            centres[better, stroke] = offset[better]
        points[:, stroke] = shapes[:, stroke] + centres[:, stroke, None]
    return points


def _anchor(chance: NDArray[np.float64], segments: NDArray[np.int64], limits: tuple[float, float]) -> NDArray[np.int64]:
    """A control point of a stroke: its start, its middle or its end."""
    return np.where(chance < limits[0], 0, np.where(chance < limits[1], segments // 2, segments))


def _fit(classes: NDArray[np.int64], points: NDArray[np.float64], present: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The same characters, centred, and about two thirds of the page high or wide."""
    shown = np.where(present[..., None, None], points, points[:, :1, :1])
    flat = shown.reshape(len(points), -1, 2)
    low, high = flat.min(axis=1), flat.max(axis=1)
    reach = np.maximum((high - low).max(axis=1), 0.3) / 2
    size = 0.50 + 0.2 * uniform(bits(_SIZE, classes))
    return (shown - ((low + high) / 2)[:, None, None]) * (size / reach)[:, None, None, None]


def _between(low: NDArray[np.float64], high: NDArray[np.float64], fraction: NDArray[np.float64]) -> NDArray[np.float64]:
    return low + (high - low) * fraction


def _turned(vector: NDArray[np.float64], tangent: NDArray[np.float64]) -> NDArray[np.float64]:
    """A rotation by the angle whose half has this tangent; rational, so exact where sines are not."""
    square = tangent * tangent
    cosine, sine = (1 - square) / (1 + square), 2 * tangent / (1 + square)
    return np.stack(
        [cosine * vector[..., 0] - sine * vector[..., 1], sine * vector[..., 0] + cosine * vector[..., 1]], axis=-1
    )


def _count_below(values: NDArray[np.float64], limits: object) -> NDArray[np.int64]:
    """How many of the ascending limits lie at or below each value."""
    return (values[..., None] >= np.asarray(limits)).sum(axis=-1)
