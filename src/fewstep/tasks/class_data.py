"""Labelled images held once in memory, and the classes cut out of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fewstep.errors import BadInput


@dataclass(frozen=True, eq=False)
class ClassData:
    """Classes as runs of rows in one tensor of images, so that splits and rotated classes share the pixels.

    Class c is the images `offsets[c]` to `offsets[c] + counts[c] - 1`, each turned by `rotations[c]` quarter turns.

    Arguments:
        images: (n, channels, height, width) uint8.
        offsets: (classes,) first image of each class.
        counts: (classes,) how many images each class has; they may differ.
        names: (classes,) what each class is called.
        rotations: (classes,) quarter turns, 0 to 3; all zero when left out.

    Raises:
        BadInput: parts that do not fit together, a class without images, images of another type or shape, rotations of
            images that are not square.

    Example:
        >>> import torch
        >>> data = ClassData.from_labels(torch.zeros(6, 1, 8, 8, dtype=torch.uint8), [1, 0, 1, 0, 1, 1], ("a", "b"))
        >>> len(data), data.counts.tolist(), len(data.rotated())
        (2, [2, 4], 8)
    """

    images: torch.Tensor
    offsets: NDArray[np.int64]
    counts: NDArray[np.int64]
    names: tuple[str, ...]
    rotations: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.images, torch.Tensor) or self.images.dtype != torch.uint8 or self.images.ndim != 4:
            found = getattr(self.images, "dtype", type(self.images).__name__), tuple(getattr(self.images, "shape", ()))
            raise BadInput(f"images must be a uint8 tensor (n, channels, height, width), not {found[0]} {found[1]}")
        object.__setattr__(self, "offsets", np.asarray(self.offsets, np.int64))
        object.__setattr__(self, "counts", np.asarray(self.counts, np.int64))
        turns = np.zeros(len(self.names)) if self.rotations is None else self.rotations
        object.__setattr__(self, "rotations", np.asarray(turns, np.int64))
        sizes = {len(self.names), *self.offsets.shape, *self.counts.shape, *self.turns.shape}
        if len(sizes) != 1 or self.offsets.ndim != 1:
            raise BadInput(
                f"names ({len(self.names)}), offsets {self.offsets.shape}, counts {self.counts.shape} and "
                f"rotations {self.turns.shape} must hold one entry for each class"
            )
        if not len(self.names):
            raise BadInput("there are no classes; give at least one")
        if (self.counts < 1).any():
            raise BadInput(f"class {self.names[int(np.argmin(self.counts))]!r} has no images; leave it out or add some")
        if (self.offsets < 0).any() or int((self.offsets + self.counts).max()) > len(self.images):
            raise BadInput(f"offsets and counts reach outside the {len(self.images)} images")
        if self.turns.any():
            if ((self.turns < 0) | (self.turns > 3)).any():
                raise BadInput("rotations are quarter turns, 0 to 3")
            require_square(self.images)

    @property
    def turns(self) -> NDArray[np.int64]:
        """Quarter turns of each class, (classes,)."""
        assert self.rotations is not None  # filled by __post_init__
        return self.rotations

    def __len__(self) -> int:
        return len(self.names)

    @staticmethod
    def from_labels(images: torch.Tensor, labels: Sequence[int], names: Sequence[str]) -> "ClassData":
        """Classes from a class number for each image, in any order; images of a class keep their order."""
        numbers = np.asarray(labels, np.int64)
        if numbers.shape != (len(images),) or (numbers < 0).any() or (numbers >= len(names)).any():
            raise BadInput(f"labels must be {len(images)} numbers, one for each image, from 0 to {len(names) - 1}")
        counts = np.bincount(numbers, minlength=len(names))
        order = torch.from_numpy(np.argsort(numbers, kind="stable"))
        return ClassData(images[order], np.cumsum(counts) - counts, counts, tuple(names))

    def select(self, classes: Sequence[int] | NDArray[np.int64]) -> "ClassData":
        """Some of the classes, in the given order, over the same images."""
        rows = np.asarray(classes, np.int64)
        names = tuple(self.names[row] for row in rows)
        return ClassData(self.images, self.offsets[rows], self.counts[rows], names, self.turns[rows])

    def rotated(self) -> "ClassData":
        """Four classes for each one: the class itself and its copies turned by 90, 180 and 270 degrees."""
        names = tuple(f"{name} turned {90 * k}" if k else name for name in self.names for k in range(4))
        turns = (self.turns[:, None] + np.arange(4)).reshape(-1) % 4
        return ClassData(self.images, self.offsets.repeat(4), self.counts.repeat(4), names, turns)

    def of_class(self, number: int) -> torch.Tensor:
        """All images of one class, turned as the class says: (count, channels, height, width) uint8."""
        start = int(self.offsets[number])
        return torch.rot90(self.images[start : start + int(self.counts[number])], int(self.turns[number]), (2, 3))

    def describe(self) -> dict[str, Any]:
        """How many classes and images, fit for JSON."""
        return {"classes": len(self), "images": int(self.counts.sum())}


def require_square(images: torch.Tensor) -> None:
    """Raise BadInput unless a quarter turn keeps the shape of the images."""
    if images.shape[2] != images.shape[3]:
        raise BadInput(
            f"images of {images.shape[2]} x {images.shape[3]} pixels cannot be turned by 90 degrees; make "
            "them square or turn rotations off"
        )
