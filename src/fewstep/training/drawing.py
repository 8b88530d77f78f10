"""Tasks as training and evaluation take them: looked at, and in training drawn while the step before is computed."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from fewstep.errors import BadInput
from fewstep.tasks.batch import TaskBatch
from fewstep.tasks.source import TaskFunction


def drawn(function: TaskFunction, numbers: range, name: str) -> TaskBatch:
    """The tasks of these numbers.

    Arguments:
        name: what the function is called in a message.

    Raises:
        BadInput: it gave something else than a meta-batch of as many tasks.
    """
    batch = function(numbers)
    if not isinstance(batch, TaskBatch):
        raise BadInput(f"the {name} function gave a {type(batch).__name__}; it must give a TaskBatch")
    if len(batch) != len(numbers):
        tasks, wanted = (f"{n} {what}{'' if n == 1 else 's'}" for n, what in (
            (len(batch), "task"), (len(numbers), "number")))  # fmt: skip
        raise BadInput(f"the {name} function gave {tasks} for {wanted}; it must give a task for each")
    return batch


class Ahead:
    """The meta-batches of outer steps, each drawn on one thread while the step before it is computed.

    A task is a pure function of its number, so when it is drawn changes nothing. Where drawing moves torch's generator,
    which belongs to the whole process, every meta-batch is drawn when it is asked for. No two draws run at once, and
    none runs beside a validation.

    Arguments:
        draw: from an outer step to its meta-batch. epoch: outer steps in an epoch; its last one draws nothing ahead.

    Example:
        >>> with Ahead(lambda step: step * step, epoch=3) as batches:
        ...     [batches(step) for step in range(4)]
        [0, 1, 4, 9]
    """

    def __init__(self, draw: Callable[[int], TaskBatch], epoch: int):
        self._draw, self._epoch = draw, epoch
        self._pool = ThreadPoolExecutor(1, "fewstep-tasks")
        self._pool.submit(torch.get_num_threads).result()  # torch sets the thread up like this one, as it is now
        self._coming: tuple[int, Future[TaskBatch]] | None = None

    def __enter__(self) -> "Ahead":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def __call__(self, step: int) -> TaskBatch:
        """The meta-batch of an outer step.

        Raises:
            BadInput, or whatever else drawing it raises.
        """
        coming, self._coming = self._coming, None
        if coming and coming[0] == step:
            batch, ahead = coming[1].result(), True
        else:
            if coming:
                coming[1].exception()  # waits: no two draws at once
            before = torch.get_rng_state()
            batch = self._draw(step)
            ahead = torch.equal(before, torch.get_rng_state())
        if ahead and (step + 1) % self._epoch:
            self._coming = step + 1, self._pool.submit(self._draw, step + 1)
        return batch
