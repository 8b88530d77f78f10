"""Classification tasks from labelled images: which classes, which images, which label."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fewstep.errors import BadInput
from fewstep.tasks.batch import TaskBatch
from fewstep.tasks.class_data import ClassData, require_square
from fewstep.tasks.randomness import below, bits, distinct

_CLASSES, _IMAGES, _TURNS = range(3)  # keys that keep the three draws of a task independent
SEED_LIMIT = 2**64


@dataclass(frozen=True)
class PixelValues:
    """How a byte becomes the number a network sees: (byte / 255 - mean) / std, a value for each channel.

    Without mean and std the range is 0 to 1.

    Example:
        >>> PixelValues()(torch.tensor([[[[0, 255]]]], dtype=torch.uint8)).tolist()
        [[[[0.0, 1.0]]]]
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Bytes (..., channels, height, width) to float32 of the same shape."""
        # A division, so that 255 is exactly 1; in NumPy, which starts no threads for so little work.
        values = torch.from_numpy(np.divide(images.numpy(), np.float32(255), dtype=np.float32))
        if self.mean:
            values.sub_(torch.tensor(self.mean).view(-1, 1, 1))
        if self.std:
            values.div_(torch.tensor(self.std).view(-1, 1, 1))
        return values


class ClassSampler:
    """N-way K-shot tasks; task i is a pure function of (seed, i), so any worker or process makes the same one.

    Draws N classes without replacement in random order (their order is the label), then K + Q different images of each:
    the first K are support, the rest query. Called with B task numbers, it gives a `TaskBatch` whose examples come
    label by label: K of label 0, then K of label 1.

    Arguments:
        data: the classes of one split.
        ways: N, classes of a task.
        shots: K, support images of each class.
        queries: Q, query images of each class.
        seed: 0 to 2^64 - 1.
        rotate: turn each class of a task by its own random quarter turns, its support and query images alike.
        values: how bytes become float32.
        split: what error messages call the data.

    Raises:
        BadInput: a size that is not positive, fewer than N classes, a class with fewer than K + Q images, a seed out of
            range, rotations of images that are not square.

    Source: Vinyals et al. 2016 (arXiv 1606.04080); rotation as in MAML++ (arXiv 1810.09502).

    Shapes: B numbers -> x (B, N K, channels, height, width) and (B, N Q, ...) float32, y (B, N K) and (B, N Q) int64.

    Example:
        >>> data = ClassData.from_labels(torch.zeros(40, 1, 8, 8, dtype=torch.uint8), [i % 8 for i in range(40)],
        ...                              tuple("abcdefgh"))
        >>> batch = ClassSampler(data, ways=5, shots=1, queries=2, seed=0)([0, 1, 2])
        >>> tuple(batch.support_x.shape), batch.query_y[0].tolist()
        ((3, 5, 1, 8, 8), [0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
    """

    def __init__(
        self,
        data: ClassData,
        ways: int,
        shots: int,
        queries: int,
        seed: int,
        rotate: bool = False,
        values: PixelValues | None = None,
        split: str = "given",
    ) -> None:
        check_sizes(ways, shots, queries)
        if not 0 <= seed < SEED_LIMIT:
            raise BadInput(f"seed is {seed}; it must lie between 0 and 2^64 - 1")
        if ways > len(data):
            raise BadInput(
                f"the {split} split has {len(data)} classes, too few for {ways} ways; ask for fewer ways or add classes"
            )
        short = np.flatnonzero(data.counts < shots + queries)
        if len(short):
            worst = int(short[np.argmin(data.counts[short])])
            also = f"; {len(short)} of {len(data)} classes are short" if len(short) > 1 else ""
            raise BadInput(
                f"class {data.names[worst]!r} of the {split} split has {data.counts[worst]} images; shots + "
                f"queries needs {shots + queries}{also}; ask for fewer or add images"
            )
        if rotate:
            require_square(data.images)
        self.data, self.ways, self.shots, self.queries, self.seed = data, ways, shots, queries, seed
        self.rotate, self.values = rotate, values or PixelValues()
        labels = torch.arange(ways)
        self._support_y, self._query_y = labels.repeat_interleave(shots), labels.repeat_interleave(queries)

    def draw(self, indices: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """What task numbers stand for: classes (B, N), rows of `data.images` (B, N, K + Q), quarter turns (B, N)."""
        tasks = bits(self.seed, _task_numbers(indices))[:, None]
        classes = distinct(bits(tasks[:, 0], _CLASSES), len(self.data), self.ways)
        labels = np.arange(self.ways)
        samples = distinct(bits(tasks, _IMAGES, labels), self.data.counts[classes], self.shots + self.queries)
        turns = self.data.turns[classes]
        if self.rotate:
            turns = (turns + below(bits(tasks, _TURNS, labels), 4)) % 4
        return classes, self.data.offsets[classes][..., None] + samples, turns

    def __call__(self, indices: Sequence[int]) -> TaskBatch:
        """The tasks of these numbers."""
        _, rows, turns = self.draw(indices)
        count, images = len(rows), self.data.images
        pixels = images.numpy()[rows.reshape(count * self.ways, -1)]
        for k in range(1, 4):
            chosen = np.flatnonzero(turns.reshape(-1) == k)
            if len(chosen):
                pixels[chosen] = np.rot90(pixels[chosen], k, (3, 4))
        tasks = torch.from_numpy(pixels).view(count, self.ways, -1, *images.shape[1:])
        return TaskBatch(
            self.values(tasks[:, :, : self.shots].flatten(1, 2)),
            self._support_y.expand(count, -1).clone(),
            self.values(tasks[:, :, self.shots :].flatten(1, 2)),
            self._query_y.expand(count, -1).clone(),
        )

    def describe(self) -> dict[str, object]:
        """The sizes and options of the tasks, fit for JSON."""
        return {
            "ways": self.ways,
            "shots": self.shots,
            "queries": self.queries,
            "seed": self.seed,
            "rotate": self.rotate,
            "values": asdict(self.values),
            **self.data.describe(),
        }


def check_sizes(ways: int, shots: int, queries: int) -> None:
    """Raise BadInput unless ways, shots and queries are all at least 1."""
    for name, value in (("ways", ways), ("shots", shots), ("queries", queries)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise BadInput(f"{name} is {value!r}; it must be a whole number of at least 1")


def _task_numbers(indices: Sequence[int]) -> NDArray[np.int64]:
    numbers = np.asarray(indices, np.int64)
    if numbers.ndim != 1 or (numbers < 0).any():
        raise BadInput("task numbers must be a flat list of whole numbers from 0 up")
    return numbers
