"""A data set of images in three splits of classes, and the tasks made from it."""

from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from fewstep.errors import BadInput
from fewstep.tasks.class_data import ClassData
from fewstep.tasks.sampler import ClassSampler, PixelValues, check_sizes
from fewstep.tasks.source import Tasks

# Seeds no user can choose: every method and every run seed is judged on the same tasks, and never on training tasks.
USER_SEEDS = 2**63
VALIDATION_SEED = USER_SEEDS + 1
TEST_SEED = USER_SEEDS + 2


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """Images whose classes are cut into three disjoint splits.

    Arguments:
        name: what a run directory and the command line call it.
        train, validation, test: the classes of each split.
        setting: which published family of settings fits it: "omniglot" or "mini_imagenet".
        values: how bytes become float32; without mean and std, 0 to 1.
        rotate: whether training tasks turn each class by random quarter turns unless told otherwise.
        options: every choice that changes pixels or classes, recorded with each run; fit for JSON.

    Raises:
        BadInput: splits that differ in image shape, or that share images: a class learned from must not be judged on.

    Example:
        >>> from fewstep.tasks import strokes
        >>> data = strokes(classes=(20, 10, 10))
        >>> tasks = data.tasks(ways=5, shots=1, queries=1, seed=0)
        >>> data.channels, data.image_size, tuple(tasks.split("test")(range(4)).support_x.shape)
        (1, 28, (4, 5, 1, 28, 28))
    """

    name: str
    train: ClassData
    validation: ClassData
    test: ClassData
    setting: str = "omniglot"
    values: PixelValues = PixelValues()  # noqa: RUF009 (frozen)
    rotate: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shapes = {tuple(split.images.shape[1:]) for split in (self.train, self.validation, self.test)}
        if len(shapes) > 1:
            raise BadInput(f"the splits of {self.name} hold images of different shapes: {sorted(shapes)}; resize them")
        for first, second in combinations(("train", "validation", "test"), 2):
            shared = _shared(getattr(self, first), getattr(self, second))
            if shared:
                raise BadInput(
                    f"the {first} and {second} splits of {self.name} share images of {shared} "
                    f"class{'' if shared == 1 else 'es'}; give each split classes of its own"
                )

    @property
    def channels(self) -> int:
        """Channels of an image: 1 for grey, 3 for colour."""
        return int(self.train.images.shape[1])

    @property
    def image_size(self) -> int:
        """Height of an image in pixels."""
        return int(self.train.images.shape[2])

    def tasks(
        self,
        ways: int = 5,
        shots: int = 1,
        queries: int = 1,
        seed: int = 0,
        rotate: bool | None = None,
        evaluation_queries: int | None = None,
    ) -> Tasks:
        """Tasks of N ways and K shots from the three splits.

        Only training tasks depend on `seed` and `rotate`; validation and test tasks are always the same ones.

        Arguments:
            ways, shots, queries: classes, support images a class, query images a class.
            seed: of the training tasks, 0 to 2^63 - 1.
            rotate: random quarter turns in training tasks; the data set's own choice when None.
            evaluation_queries: query images a class in validation and test tasks; `queries` when None.

        Raises:
            BadInput: a seed or a size out of range, a split with too few classes, a class with too few images.
        """
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < USER_SEEDS:
            raise BadInput(f"seed is {seed!r}; it must be a whole number from 0 to 2^63 - 1")
        later = queries if evaluation_queries is None else evaluation_queries
        check_sizes(ways, shots, queries)
        turn = self.rotate if rotate is None else rotate
        look = self.values
        train = ClassSampler(self.train, ways, shots, queries, seed, turn, look, "train")
        validation = ClassSampler(self.validation, ways, shots, later, VALIDATION_SEED, False, look, "validation")
        test = ClassSampler(self.test, ways, shots, later, TEST_SEED, False, look, "test")
        description = {
            "name": self.name,
            "options": dict(self.options),
            "setting": self.setting,
            "channels": self.channels,
            "image_size": self.image_size,
            "ways": ways,
            "shots": shots,
            "queries": queries,
            "evaluation_queries": later,
            "seed": seed,
            "rotate": turn,
            "classes": {"train": len(self.train), "validation": len(self.validation), "test": len(self.test)},
        }
        return Tasks(train, validation, test, description)


def _shared(first: ClassData, second: ClassData) -> int:
    """How many classes of the second hold images that lie where the first has some of its own."""
    places = []
    for data in (first, second):
        before = np.repeat(np.cumsum(data.counts) - data.counts, data.counts)
        rows = np.repeat(data.offsets, data.counts) + np.arange(data.counts.sum()) - before
        places.append(data.images.data_ptr() + rows * data.images.stride(0))
    owners = np.repeat(np.arange(len(second)), second.counts)
    return len(np.unique(owners[np.isin(places[1], places[0])]))
