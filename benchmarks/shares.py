"""Where the seconds of a real training go beside the meta-gradient: sampling, transfer, checkpoints, validation.

MAML++ on strokes, Conv4-64, through `fewstep.train` with a validation and a checkpoint at the end of the epoch. Every
part is timed where the training calls it.
"""

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch

import fewstep
from fewstep.models import Conv4
from fewstep.training import trainer

VALIDATION_TASKS = 600  # of an epoch, as published


class Parts:
    """Seconds by part; of calls inside one another the outer one counts."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._busy = False

    def timed(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        """The function, adding the time of every call to a part."""

        def call(*arguments: Any, **named: Any) -> Any:
            if self._busy:
                return function(*arguments, **named)
            started, self._busy = time.perf_counter(), True
            try:
                return function(*arguments, **named)
            finally:
                self.seconds[part] += time.perf_counter() - started
                self._busy = False

        return call


def shares(ways: int, iterations: int, filters: int, meta_batch: int, validation_tasks: int) -> dict[str, Any]:
    """Seconds of an outer step by part, of the checkpoint after an epoch, and of validation a task."""
    torch.manual_seed(0)
    tasks = fewstep.strokes(classes=(200, 40, 40)).tasks(ways=ways)
    method = fewstep.preset("maml++")
    learner = fewstep.Learner(Conv4(ways, filters=filters), method)
    parts = Parts()
    tasks = replace(tasks, train=parts.timed(tasks.train, "sampling"))
    called = [(fewstep.TaskBatch, "to", "transfer"), (learner, "meta_gradient", "meta_gradient"),
              (trainer, "save_checkpoint", "checkpoint"), (trainer, "validate", "validation")]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        for owner, name, part in called:
            stack.enter_context(patch.object(owner, name, parts.timed(getattr(owner, name), part)))
        started = time.perf_counter()
        options = {"meta_batch": meta_batch, "validation_tasks": validation_tasks}
        fewstep.train(learner, tasks, folder, epochs=1, iterations=iterations, **options)
        total = time.perf_counter() - started
    seconds = parts.seconds
    step = {part: seconds[part] / iterations for part in ("sampling", "transfer", "meta_gradient")}
    return {
        "what": f"{ways}-way 1-shot, MAML++, Conv4-{filters}, {meta_batch} tasks",
        "step": {**step, "rest": (total - sum(seconds.values())) / iterations},
        "checkpoint": seconds["checkpoint"],
        "validation_task": seconds["validation"] / validation_tasks,
        "epoch": {"steps": method.recipe.iterations, "validation_tasks": VALIDATION_TASKS},
    }


def all_shares(scale: float) -> list[dict[str, Any]]:
    """Of a 5-way and of a 20-way training."""
    shares(3, 2, 4, 2, 2)  # what happens once in a process
    iterations, filters, meta_batch, validation_tasks = (max(2, round(n * scale)) for n in (20, 64, 8, 40))
    return [shares(ways, iterations, filters, meta_batch, validation_tasks) for ways in (5, 20)]
