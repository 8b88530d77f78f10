"""The meta-gradient of a meta-batch, by strategies with equal results.

    meta-loss(meta) = (1/B) Σ_b Σ_i w_i L(query_b; θ_{i+1}^b)

`loop` goes task by task with plain autograd; `vectorized` takes all tasks at once; `recompute`, in a file of its own,
keeps one inner step's graph at a time; `compiled`, in another, has torch compile the first two. The gradient is taken
for each task inside the vmap, then averaged: differentiating the mean of a vmapped loss instead is silently wrong in
second order where built-in norm layers have adapted weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from fewstep.metalearning.functional import Functional
from fewstep.metalearning.inner_loop import (
    Gradient,
    InnerLoop,
    Meta,
    MomentsByNorm,
    Parameters,
    Task,
    first_order,
    gradients_of,
    second_order,
    transformed_first_order,
    transformed_second_order,
)
from fewstep.metalearning.proof import double
from fewstep.metalearning.randomness import Keys
from fewstep.metalearning.side_by_side import at_once, side_by_side
from fewstep.methods.schedules import Order
from fewstep.models.norm import Moments
from fewstep.tasks.batch import TaskBatch


@dataclass(frozen=True)
class Plan:
    """What a method prescribes at one moment of the training: derivative order and step weights.

    A weight is None, not zero, where no query loss is asked for; it may be a tensor.
    """

    order: Order
    step_weights: Sequence[float | Tensor | None]

    def weight(self, step: int, steps: int) -> float | Tensor | None:
        """Of the query loss after so many of `steps` inner steps; None before the first, unless there is none."""
        return self.step_weights[max(step - 1, 0)] if step or not steps else None


class Outcome(NamedTuple):
    """What a task gives beside its gradient.

    Arguments:
        loss: its meta-loss. query_logits: query output after the last step.
        moments: what batch norms saw in the support passes, (steps, channels) each.
        moved: parameters and buffers as the support passes left them, of those that they move.
    """

    loss: Tensor
    query_logits: Tensor
    moments: dict[str, Moments]
    moved: Parameters


Result = tuple[Parameters, Outcome]  # mean gradients by meta-parameter name; outcomes with a leading task axis


class Fixed(NamedTuple):
    """What tasks start from and the outer loop does not learn: frozen parameters, buffers, running statistics."""

    model: Parameters
    running: MomentsByNorm

    def with_learned(self, learned: Mapping[str, Tensor]) -> Meta:
        """All that a task starts from, with the learned tensors under their meta-parameter names."""
        parts: dict[str, Parameters] = {"model": dict(self.model), "rates": {}, "norm": {}}
        for name, tensor in learned.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = tensor
        return Meta(parts["model"], parts["rates"], parts["norm"], self.running)


class Work(NamedTuple):
    """A meta-gradient to be taken: from these values alone."""

    inner: InnerLoop
    plan: Plan
    learned: Parameters
    fixed: Fixed
    batch: TaskBatch
    keys: Keys

    def task(self, index: int) -> Task:
        """One task of the meta-batch."""
        b = self.batch
        sx, sy, qx, qy = tree_map(lambda t: t[index], (b.support_x, b.support_y, b.query_x, b.query_y))
        return Task(sx, sy, qx, qy, self.keys[index : index + 1])

    def part(self, which: range) -> "Work":
        """The same for some of the tasks."""
        some = slice(which.start, which.stop)
        return self._replace(batch=self.batch[some], keys=self.keys[some])

    def in_short(self, tasks: int) -> "Work":
        """One inner step of some tasks."""
        method = self.inner.method.replace(steps=min(self.inner.method.steps, 1))
        short = self.part(range(min(tasks, len(self.batch))))
        return short._replace(inner=self.inner._replace(method=method), plan=Plan(self.plan.order, [1.0]))

    def double(self) -> "Work":
        """The same in float64."""
        learned, fixed = double((self.learned, self.fixed))
        return self._replace(learned=learned, fixed=fixed, batch=self.batch.to(torch.float64))

    def leaves(self) -> Parameters:
        """The learned tensors as the sources of a gradient."""
        return {name: tensor.detach().requires_grad_() for name, tensor in self.learned.items()}


def stacked(seen: Sequence[MomentsByNorm]) -> dict[str, Moments]:
    """Moments of the inner steps, (steps, channels) each."""
    return {
        name: Moments(*(torch.stack(rows).detach() for rows in zip(*(s[name] for s in seen), strict=True)))
        for name in (seen[0] if seen else {})
    }


def detached(tree: Any) -> Any:
    """The tensors of a tree without their graphs; what else a model puts out is left away."""
    return tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else (), tree)


def task_loss(inner: InnerLoop, plan: Plan, meta: Meta, gradient: Gradient, task: Task) -> tuple[Tensor, Outcome]:
    """Σ_i w_i meta_loss(θ_{i+1}) of one task; a query pass only where a weight asks for one."""
    steps, total = inner.method.steps, 0.0  # type: int, Any
    moments: list[MomentsByNorm] = []
    for state in inner.adapt(meta, task, steps, gradient):
        if state.step:
            moments.append(state.moments)
        weight = plan.weight(state.step, steps)
        if weight is None and state.step < steps:
            continue
        seen = inner.predict(meta, state, task)
        if weight is not None:
            loss = inner.loss(seen.output, task.query_y)
            total = total + weight * inner.method.meta_loss(loss, meta.model, inner.fast(state))
    left = state.moved if steps else seen.moved
    loss, logits, left = detached((total, seen.output, left))
    return total, Outcome(loss, logits, stacked(moments or [seen.moments]), left)  # type: ignore[return-value]


@dataclass
class Mean:
    """The mean gradient of tasks as they come, and their outcomes with a leading task axis; one gradient is held."""

    sums: Parameters = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)

    def add(self, result: Result) -> None:
        gradients, outcome = result
        self.sums = self.sums or {name: torch.zeros_like(g) for name, g in gradients.items()}
        for name, total in self.sums.items():
            total.add_(gradients[name])
        self.outcomes.append(outcome)

    def result(self) -> Result:
        means = {name: total / len(self.outcomes) for name, total in self.sums.items()}
        return means, tree_map(lambda *each: torch.stack(each), *self.outcomes)


@dataclass(frozen=True)
class OneTask:
    """From a task's number to its gradient and outcome, by plain autograd."""

    work: Work

    def __call__(self, index: int) -> Result:
        work, leaves = self.work, self.work.leaves()
        gradient = second_order if work.plan.order == "second" else first_order
        loss, outcome = task_loss(work.inner, work.plan, work.fixed.with_learned(leaves), gradient, work.task(index))
        return gradients_of(loss, leaves), outcome


def loop(work: Work) -> Result:
    """Task by task, side by side on threads: a task's graph is freed before its thread builds the next."""
    mean = Mean()
    side_by_side(OneTask(work), len(work.batch), mean.add, threads(work.inner.forward, work.batch))
    return mean.result()


def threads(forward: Functional, batch: TaskBatch, graph: bool = True) -> int:
    """How many tasks of a meta-batch are under way at once, where they go one by one."""
    return 1 if forward.itself else at_once(len(batch), batch.support_y.device, batch.values if graph else 0)


@dataclass(frozen=True)
class Transformed:
    """From learned tensors and a task's parts to its gradient and outcome, for `torch.func` transforms."""

    inner: InnerLoop
    plan: Plan
    fixed: Fixed
    keys: Keys
    __name__ = "gradient_of_a_task"  # vmap asks for it

    def __call__(self, learned: Parameters, moves: Parameters, *parts: Any) -> Result:
        return torch.func.grad(self._loss, has_aux=True)(learned, moves, *parts)

    def _loss(self, learned: Parameters, moves: Parameters, sx: Any, sy: Tensor, qx: Any, qy: Tensor) -> Any:
        gradient = transformed_second_order if self.plan.order == "second" else transformed_first_order
        meta = self.fixed.with_learned(learned)
        meta.model.update(moves)
        return task_loss(self.inner, self.plan, meta, gradient, Task(sx, sy, qx, qy, self.keys))

    def of_all(self, learned: Parameters, moves: Parameters, *parts: Any) -> Result:
        """The same of several tasks at once: the mean gradient, and outcomes with a leading task axis."""
        mapped = torch.func.vmap(self, in_dims=(None, 0, 0, 0, 0, 0), randomness="different")
        gradients, outcomes = mapped(learned, moves, *parts)
        return tree_map(lambda g: g.mean(0), gradients), outcomes


def moved_by_task(work: Work, model: Parameters) -> Parameters:
    """What passes move, once for each task, so that under vmap each moves its own."""
    names = [name for name in work.inner.forward.known(work.inner.setting).moves if name in model]
    return {name: model[name].expand(len(work.batch), *model[name].shape) for name in names}


def vectorized(work: Work) -> Result:
    """All tasks at once under vmap."""
    batch, learned = work.batch, {name: tensor.detach() for name, tensor in work.learned.items()}
    parts = batch.support_x, batch.support_y, batch.query_x, batch.query_y
    of = Transformed(work.inner, work.plan, work.fixed, work.keys)
    return of.of_all(learned, moved_by_task(work, work.fixed.model), *parts)
