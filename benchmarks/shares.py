"""Where the seconds of a real training go beside the meta-gradient: sampling, transfer, checkpoints, validation.

    python -m benchmarks.shares --threads 2      JSON on standard output

MAML++ on strokes, Conv4-64, through `fewstep.train` with a validation and a checkpoint at the end of the epoch. Every
part is timed where the training calls it.
"""

import argparse
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch

import fewstep
from fewstep.cli.machine import prepare
from fewstep.models import Conv4
from fewstep.tasks import TaskBatch
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


@contextmanager
def replaced(owner: Any, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """`owner.name` is another function meanwhile."""
    whole = vars(owner).get(name)
    setattr(owner, name, function)
    try:
        yield
    finally:
        delattr(owner, name) if whole is None else setattr(owner, name, whole)


def shares(ways: int, iterations: int, filters: int, meta_batch: int, validation_tasks: int) -> dict[str, Any]:
    """Seconds of an outer step by part, of the checkpoint after an epoch, and of validation a task."""
    torch.manual_seed(0)
    tasks = fewstep.strokes(classes=(200, 40, 40)).tasks(ways=ways)
    method = fewstep.preset("maml++")
    learner = fewstep.Learner(Conv4(ways, filters=filters), method)
    parts = Parts()
    tasks = replace(tasks, train=parts.timed(tasks.train, "sampling"))
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        for owner, name, part in (
            (TaskBatch, "to", "transfer"),
            (learner, "meta_gradient", "meta_gradient"),
            (trainer, "save_checkpoint", "checkpoint"),
            (trainer, "validate", "validation"),
        ):
            stack.enter_context(replaced(owner, name, parts.timed(getattr(owner, name), part)))
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


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shares", description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scale", type=float, default=1.0)
    options = parser.parse_args()
    prepare(options.threads)

    def less(value: int) -> int:
        return max(2, round(value * options.scale))

    shares(3, 2, 4, 2, 2)  # what happens once in a process
    print(json.dumps([shares(ways, less(20), less(64), less(8), less(40)) for ways in (5, 20)]))


if __name__ == "__main__":
    main()
