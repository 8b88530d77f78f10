"""Where the seconds of a real training go beside the meta-gradient: sampling, transfer, checkpoints, validation.

MAML++ on strokes, Conv4-64, through `fewstep.train` with a validation and a checkpoint at the end of the epoch. Every
part is timed where the training calls it.
"""

import tempfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch

import fewstep
from benchmarks.timing import turn
from fewstep.models import Conv4
from fewstep.training import trainer

VALIDATION_TASKS = 600  # of an epoch, as published


def shares(ways: int, iterations: int, filters: int, meta_batch: int, validation_tasks: int) -> dict[str, Any]:
    """Seconds of an outer step by part, of the checkpoint after an epoch, and of validation a task."""
    seconds: dict[str, float] = defaultdict(float)

    def timed(function: Callable[..., Any], part: str) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            found: list[Any] = []
            seconds[part] += turn(lambda: found.append(function(*arguments, **named)))
            return found[0]

        return call

    torch.manual_seed(0)
    drawn, method = fewstep.strokes(classes=(200, 40, 40)).tasks(ways=ways), fewstep.preset("maml++")
    learner = fewstep.Learner(Conv4(ways, filters=filters), method)
    batch = drawn.train(range(meta_batch))
    transfer = turn(lambda: batch.to(learner.device))
    tasks = replace(drawn, train=timed(drawn.train, "sampling"))
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.object(learner, "meta_gradient", timed(learner.meta_gradient, "meta_gradient")),
        patch.object(trainer, "save_checkpoint", timed(trainer.save_checkpoint, "checkpoint")),
        patch.object(trainer, "validate", timed(trainer.validate, "validation")),
    ):
        options = {"epochs": 1, "iterations": iterations, "validation_tasks": validation_tasks}
        total = turn(lambda: fewstep.train(learner, tasks, folder, meta_batch=meta_batch, **options))
    step = {part: seconds[part] / iterations for part in ("sampling", "meta_gradient")}
    rest = max(0.0, (total - sum(seconds.values())) / iterations - transfer)  # tasks may be drawn beside it all
    return {
        "what": f"{ways}-way 1-shot, MAML++, Conv4-{filters}, {meta_batch} tasks",
        "step": {"sampling": step["sampling"], "transfer": transfer, "meta_gradient": step["meta_gradient"],
                 "rest": rest},
        "checkpoint": seconds["checkpoint"],
        "validation_task": seconds["validation"] / validation_tasks,
        "epoch": {"steps": method.recipe.iterations, "validation_tasks": VALIDATION_TASKS},
    }  # fmt: skip


def all_shares(scale: float) -> list[dict[str, Any]]:
    """Of a 5-way and of a 20-way training."""
    shares(3, 2, 4, 2, 2)  # what happens once in a process
    iterations, filters, meta_batch, validation_tasks = (max(2, round(n * scale)) for n in (20, 64, 8, 40))
    return [shares(ways, iterations, filters, meta_batch, validation_tasks) for ways in (5, 20)]
