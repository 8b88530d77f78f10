"""The outputs for the queries of many tasks, after their inner steps: what evaluation judges."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import BadInput
from fewstep.metalearning.inner_loop import ClosedForm, Gradient, Meta, Parameters, Task, transformed_first_order
from fewstep.metalearning.meta_gradient import Work, moved_by_task, threads
from fewstep.metalearning.side_by_side import side_by_side


@dataclass(frozen=True)
class Answers:
    """Query outputs of a task: after every inner step or the last, then with each query normalised for itself.

    Arguments:
        meta: what tasks start from. steps: inner steps.
        every_step: after every step. alone: also with queries normalised by the support set, at the end.
    """

    meta: Meta
    steps: int
    every_step: bool
    alone: bool

    def __call__(self, work: Work, strategy: str) -> Tensor:
        """Of all tasks of a meta-batch: (B, passes, Q, …)."""
        if strategy == "vectorized":
            return self._at_once(work)
        found: list[Tensor] = []
        side_by_side(
            lambda n: torch.stack(list(self._of(work, self.meta, work.task(n), ClosedForm()))),
            len(work.batch),
            found.append,
            threads(work.inner.forward, work.batch, graph=False),
        )
        return torch.stack(found)

    def _at_once(self, work: Work) -> Tensor:
        def outputs(moves: Parameters, sx: Any, sy: Tensor, qx: Any) -> Tensor:
            meta, task = self.meta._replace(model=self.meta.model | moves), Task(sx, sy, qx, batch.query_y, work.keys)
            return torch.stack(list(self._of(work, meta, task, transformed_first_order)))

        batch = work.batch
        parts = batch.support_x, batch.support_y, batch.query_x
        return torch.func.vmap(outputs, randomness="different")(moved_by_task(work, self.meta.model), *parts)

    def _of(self, work: Work, meta: Meta, task: Task, gradient: Gradient) -> Iterator[Tensor]:
        for state in work.inner.adapt(meta, task, self.steps, gradient):
            if self.every_step or state.step == self.steps:
                yield _tensor(work.inner.predict(meta, state, task).output)
        if self.alone:
            yield _tensor(work.inner._replace(statistics="support").predict(meta, state, task).output)


def _tensor(output: Any) -> Tensor:
    if not isinstance(output, Tensor):
        raise BadInput(
            f"evaluation judges one output tensor, and the model gives a {type(output).__name__}: wrap it in a module "
            "that returns the tensor to be judged"
        )
    return output
