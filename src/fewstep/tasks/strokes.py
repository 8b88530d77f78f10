"""Strokes: an embedded, procedural alphabet in the spirit of Omniglot that needs no download."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from fewstep.errors import BadInput, unknown
from fewstep.tasks.class_data import ClassData
from fewstep.tasks.image_dataset import ImageDataset
from fewstep.tasks.pen import draw_curves
from fewstep.tasks.randomness import bits, uniform
from fewstep.tasks.stroke_programs import PIECES, STROKES, programs

ROTATIONS = ("task", "classes", "off")
_SPAN = 2**20  # class numbers of one split of one seed
_STYLE, _SAMPLE = 201, 202
_EDGE = 0.86  # no stroke goes beyond it; the page runs from -1 to 1
_CHUNK = 256  # images drawn together; their working arrays stay in the cache


def strokes(
    classes: tuple[int, int, int] = (800, 100, 200),
    drawers: int = 20,
    image_size: int = 28,
    seed: int = 0,
    rotations: str = "task",
) -> ImageDataset:
    """Characters made of one to four pen strokes, written by drawers who each have a hand of their own.

    A class is a small program (kinds of strokes, where they start, how they join); an image is that program in one
    drawer's style with motor noise and a small affine change. The same numbers give the same bytes on every machine.
    Values are float32 from 0 (paper) to 1 (ink).

    Arguments:
        classes: how many in the training, validation and test split. Classes of two splits never coincide, and a
            split's first classes stay the same when more are asked for.
        drawers: images of each class, one a drawer.
        image_size: side of the images in pixels, 14 to 256.
        seed: another seed, another world of classes; 0 to 2^20 - 1.
        rotations: "task" (default): each class of a training task is turned by its own random quarter turns.
            "classes": turned copies are classes of their own, in all splits. "off": none.

    Raises:
        BadInput: an unknown option, sizes or a seed out of range.

    Source: the idea of characters as programs is Lake et al.'s (Science 350, 2015).

    Example:
        >>> data = strokes(classes=(30, 10, 10), drawers=5)
        >>> data.name, len(data.train), tuple(data.train.images.shape)
        ('strokes', 30, (150, 1, 28, 28))
    """
    if rotations not in ROTATIONS:
        raise unknown("option for rotations of strokes,", str(rotations), ROTATIONS)
    if len(classes) != 3 or not all(_whole(count, 1, _SPAN) for count in classes):
        raise BadInput(
            f"classes is {classes!r}; it must be three whole numbers of at least 1, for training, validation and test"
        )
    if not _whole(drawers, 1, 2**31):
        raise BadInput(f"drawers is {drawers!r}; it must be a whole number of at least 1")
    if not _whole(seed, 0, _SPAN - 1):
        raise BadInput(f"seed is {seed!r}; it must be a whole number from 0 to {_SPAN - 1}")
    splits = []
    for part, count in enumerate(classes):
        first = (seed * 3 + part) * _SPAN
        numbers = np.arange(first, first + count)
        images = draw(numbers.repeat(drawers), np.tile(np.arange(drawers), count), seed, image_size)
        names = tuple(f"character {number}" for number in numbers.tolist())
        data = ClassData(images, np.arange(count) * drawers, np.full(count, drawers), names)
        splits.append(data.rotated() if rotations == "classes" else data)
    options = {
        "classes": list(classes),
        "drawers": drawers,
        "image_size": image_size,
        "seed": seed,
        "rotations": rotations,
    }
    train, validation, test = splits
    return ImageDataset("strokes", train, validation, test, rotate=rotations == "task", options=options)


def draw(
    class_ids: Sequence[int] | NDArray[np.int64],
    drawer_ids: Sequence[int] | NDArray[np.int64],
    sample_seed: int = 0,
    image_size: int = 28,
) -> torch.Tensor:
    """One image for each pair of a class and a drawer: (n, 1, image_size, image_size) uint8, 255 is ink.

    Another `sample_seed` is the same hand writing the same character once more.

    Example:
        >>> tuple(draw([7, 7, 8], [0, 1, 0]).shape)
        (3, 1, 28, 28)
    """
    classes, drawers = np.asarray(class_ids, np.int64), np.asarray(drawer_ids, np.int64)
    if classes.ndim != 1 or classes.shape != drawers.shape or (classes < 0).any() or (drawers < 0).any():
        raise BadInput("class_ids and drawer_ids must be two lists of equal length, of whole numbers from 0 up")
    if not _whole(image_size, 14, 256):
        raise BadInput(f"image_size is {image_size!r}; it must be a whole number of pixels from 14 to 256")
    images = np.empty((len(classes), 1, image_size, image_size), np.uint8)
    for start in range(0, len(classes), _CHUNK):
        part = slice(start, start + _CHUNK)
        images[part, 0] = _draw(classes[part], drawers[part], sample_seed, image_size)
    return torch.from_numpy(images)


def _draw(classes: NDArray[np.int64], drawers: NDArray[np.int64], sample_seed: int, size: int) -> NDArray[np.uint8]:
    unique, back = np.unique(classes, return_inverse=True)
    program = programs(unique)
    points, segments = program.points[back], program.segments[back]
    style = uniform(bits(bits(_STYLE, drawers)[:, None], np.arange(7))) - 0.5
    keys = bits(_SAMPLE, sample_seed, bits(classes, drawers))[:, None]
    neatness = 1 + 0.9 * style[:, 0]

    # The hand trembles: neighbouring control points miss their places together, and a stroke as a whole misses too.
    noise = _normal(bits(keys, np.arange(STROKES * (PIECES + 5) * 2))).reshape(-1, STROKES, PIECES + 5, 2)
    low, high = points.min(axis=2, keepdims=True), points.max(axis=2, keepdims=True)
    middle, extent = (low + high) / 2, (high - low).max(axis=3, keepdims=True)
    tremble = neatness[:, None, None, None]
    wander = noise[:, :, : PIECES + 1] + noise[:, :, 1 : PIECES + 2]
    points = middle + (1 + 0.14 * tremble * noise[:, :, -1:]) * (points - middle)
    points = points + tremble * ((0.013 + 0.028 * extent) * wander + 0.07 * noise[:, :, -2:-1])

    # Then the whole character is slanted, sized, turned and placed, partly by habit and partly by chance.
    chance = _normal(bits(keys, np.arange(900, 906)))
    slant = 0.32 * style[:, 1] + 0.08 * chance[:, 0]
    scale = 1 + 0.26 * style[:, 2] + 0.08 * chance[:, 1]
    aspect = 1 + 0.20 * style[:, 3] + 0.08 * chance[:, 2]
    tilt = 0.12 * style[:, 4] + 0.06 * chance[:, 3]
    x, y = points[..., 0], points[..., 1]
    a, b, c, d = (value[:, None, None] for value in (slant, scale, aspect, tilt))
    wide, high = b * c * (x - a * y), b / c * y
    placed = np.stack(
        [wide - d * high + 0.1 * chance[:, 4, None, None], high + d * wide + 0.1 * chance[:, 5, None, None]], axis=-1
    )
    corners = placed.reshape(len(classes), -1, 2)
    low, high = corners.min(axis=1), corners.max(axis=1)
    fit = np.minimum(2 * _EDGE / (high - low).max(axis=1, keepdims=True), 1)
    over = np.maximum(fit * high - _EDGE, 0) + np.minimum(fit * low + _EDGE, 0)
    pixels = (fit[:, None, None] * placed - over[:, None, None] + 1) * (size / 2)
    smooth = program.smooth[back] + np.where(program.smooth[back] == 0, 0.22, 0.08) * (style[:, 5:6] + 0.5)
    radius = (0.75 + 0.16 * style[:, 6]) * (size / 28)
    return draw_curves(pixels.astype(np.float32), segments, smooth.astype(np.float32), radius.astype(np.float32), size)


def _normal(random_bits: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Nearly normal numbers of variance 1, at most 3.5 large: the sum of four 16-bit uniforms, exact everywhere."""
    parts = [((random_bits >> np.uint64(shift)) & np.uint64(0xFFFF)).astype(np.float64) for shift in (0, 16, 32, 48)]
    return (parts[0] + parts[1] + parts[2] + parts[3] - 131070.0) * (1.7320508075688772 / 65536)


def _whole(value: object, least: int, most: int) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and least <= int(value) <= most
