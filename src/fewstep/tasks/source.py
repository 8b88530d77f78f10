"""Where tasks come from: three functions from task numbers to a meta-batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from fewstep.errors import BadInput, unknown
from fewstep.tasks.batch import TaskBatch

TaskFunction = Callable[[Sequence[int]], TaskBatch]
"""From task numbers to a meta-batch. Task i depends on i (and a seed fixed beforehand) and on nothing else."""

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, eq=False)
class Tasks:
    """Tasks for meta-training, for choosing the best model, and for the reported score.

    Task i is a pure function of the number i: neither the number of loader workers or processes nor an interruption of
    the run changes a task.

    Arguments:
        train, validation, test: functions from task numbers to a `TaskBatch` of as many tasks.
        description: what a run directory records about these tasks; must be fit for JSON.

    Raises:
        BadInput: a split that is no function.

    Example:
        >>> import torch
        >>> def lines(numbers):  # regression tasks of one's own: lines of random slope
        ...     slope = torch.tensor([float(n % 7) for n in numbers]).view(-1, 1, 1)
        ...     x = torch.linspace(-1, 1, 10).view(1, 10, 1).expand(len(numbers), 10, 1)
        ...     return TaskBatch(x[:, ::2], slope * x[:, ::2], x[:, 1::2], slope * x[:, 1::2])
        >>> tasks = Tasks(lines, lines, lines)
        >>> len(tasks.split("test")([0, 1, 2]))
        3
    """

    train: TaskFunction
    validation: TaskFunction
    test: TaskFunction
    description: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in SPLITS:
            if not callable(getattr(self, name)):
                raise BadInput(
                    f"Tasks.{name} must be a function from task numbers to a TaskBatch, "
                    f"not {type(getattr(self, name)).__name__}"
                )

    def split(self, name: str) -> TaskFunction:
        """The function of one split: train, validation or test.

        Raises:
            BadInput: an unknown split.
        """
        if name not in SPLITS:
            raise unknown("split", name, SPLITS)
        function: TaskFunction = getattr(self, name)
        return function


class TaskDataset(torch.utils.data.Dataset[TaskBatch]):
    """Meta-batches as a torch data set, for a `DataLoader` that samples in worker processes.

    Arguments:
        function: one split of `Tasks`.
        count: how many tasks in all.
        size: tasks in a meta-batch; the last one may be smaller.

    Example:
        >>> from fewstep.tasks import sinusoid
        >>> loader = torch.utils.data.DataLoader(TaskDataset(sinusoid().train, count=10, size=4), batch_size=None)
        >>> [len(batch) for batch in loader]
        [4, 4, 2]
    """

    def __init__(self, function: TaskFunction, count: int, size: int) -> None:
        if count < 1 or size < 1:
            raise BadInput(f"a TaskDataset needs count and size of at least 1, not {count} and {size}")
        self.function, self.count, self.size = function, count, size

    def __len__(self) -> int:
        return -(-self.count // self.size)

    def __getitem__(self, position: int) -> TaskBatch:
        if not 0 <= position < len(self):
            raise IndexError(position)
        start = position * self.size
        return self.function(range(start, min(start + self.size, self.count)))
