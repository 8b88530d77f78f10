"""The meta-gradient of a meta-batch, by strategies with equal results.

    meta-loss(meta) = (1/B) Σ_b Σ_i w_i L(query_b; θ_{i+1}^b)

`loop` goes task by task with plain autograd; `vectorized` takes all tasks at once; `recompute`, in a file of its own,
keeps one inner step's graph at a time; `compiled`, in another, has torch compile the first two. The gradient is taken
for each task inside the vmap, then averaged: differentiating the mean of a vmapped loss instead is silently wrong in
second order where built-in norm layers have adapted weights.
"""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from fewstep.metalearning.functional import Moments, Statistics
from fewstep.metalearning.inner_loop import (
    Gradient,
    InnerLoop,
    Meta,
    Parameters,
    first_order,
    second_order,
    transformed_first_order,
    transformed_second_order,
)
from fewstep.metalearning.side_by_side import side_by_side
from fewstep.methods.schedules import Order
from fewstep.tasks.batch import TaskBatch


@dataclass(frozen=True)
class Plan:
    """What a method prescribes at one moment of the training: derivative order and step weights.

    A weight is None, not zero, where no query loss is asked for; it may be a tensor.
    """

    order: Order
    step_weights: Sequence[float | Tensor | None]


class Outcome(NamedTuple):
    """What a task gives beside its gradient: query output after the last step, support statistics by step."""

    loss: Tensor
    query_logits: Tensor
    statistics: Statistics


Whole = Callable[[Parameters], Meta]  # learned tensors, by meta-parameter name → all that a task starts from
Result = tuple[Parameters, Outcome]  # mean gradients by meta-parameter name; outcomes with a leading task axis


def parts_of(batch: TaskBatch) -> tuple:
    return batch.support_x, batch.support_y, batch.query_x, batch.query_y


def stacked(seen: Sequence[Statistics]) -> Statistics:
    """Statistics of the inner steps, (steps, channels) each."""
    return {
        name: Moments(*(torch.stack([getattr(s[name], part) for s in seen]).detach() for part in ("mean", "var")))
        for name in (seen[0] if seen else {})
    }


def _task_loss(
    inner: InnerLoop, plan: Plan, meta: Meta, gradient: Gradient, sx: Any, sy: Tensor, qx: Any, qy: Tensor
) -> tuple[Tensor, Outcome]:
    """Σ_i w_i meta_loss(θ_{i+1}) of one task; a query pass only where a weight asks for one."""
    steps, meta_loss = inner.method.steps, inner.method.meta_loss
    total: Any = 0.0
    seen: list[Statistics] = []
    for state in inner.adapt(meta, sx, sy, steps, gradient):
        if state.step:
            seen.append(state.support_statistics)
        elif steps:
            continue
        weight = plan.step_weights[max(state.step - 1, 0)]
        if weight is not None or state.step == steps:
            logits = inner.predict(meta, state, sx, qx)
            if weight is not None:
                fast = {name: state.parameters[name] for name in inner.adapted}
                total = total + weight * meta_loss(inner.loss(logits, qy), meta.model, fast)
    return total, Outcome(total.detach(), logits.detach(), stacked(seen))


def averaged(results: Iterable[Result]) -> Result:
    """The mean gradient of tasks, and their outcomes with a leading task axis; one gradient is held at a time."""
    sums: Parameters = {}
    outcomes = []
    for gradients, outcome in results:
        sums = sums or {name: torch.zeros_like(g) for name, g in gradients.items()}
        sums = {name: total.add_(gradients[name]) for name, total in sums.items()}
        outcomes.append(outcome)
    means = {name: total / len(outcomes) for name, total in sums.items()}
    return means, tree_map(lambda *each: torch.stack(each), *outcomes)


def loop(inner: InnerLoop, plan: Plan, learned: Parameters, whole: Whole, batch: TaskBatch) -> Result:
    """Task by task, side by side on threads: a task's graph is freed before its thread builds the next."""
    gradient = second_order if plan.order == "second" else first_order

    def task(index: int) -> Result:
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in learned.items()}
        parts = tree_map(lambda t: t[index], parts_of(batch))
        loss, outcome = _task_loss(inner, plan, whole(leaves), gradient, *parts)  # own buffers for every task
        gradients = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
        return dict(zip(leaves, gradients, strict=True)), outcome

    about = inner.forward, batch.support_y.device, batch.values
    with contextlib.closing(side_by_side(task, len(batch), *about)) as results:
        return averaged(results)


def of_a_task(inner: InnerLoop, plan: Plan, whole: Whole) -> Callable[..., Result]:
    """From learned tensors and a task's parts to its gradient and outcome, for `torch.func` transforms."""
    gradient = transformed_second_order if plan.order == "second" else transformed_first_order

    def task(learned: Parameters, sx: Any, sy: Tensor, qx: Any, qy: Tensor) -> tuple[Tensor, Outcome]:
        return _task_loss(inner, plan, whole(learned), gradient, sx, sy, qx, qy)

    return torch.func.grad(task, has_aux=True)


def of_all_tasks(inner: InnerLoop, plan: Plan, whole: Whole) -> Callable[..., Result]:
    """The same for the parts of a meta-batch: the mean gradient, and outcomes with a leading task axis."""
    mapped = torch.func.vmap(of_a_task(inner, plan, whole), in_dims=(None, 0, 0, 0, 0), randomness="different")

    def tasks(learned: Parameters, *parts: Any) -> Result:
        gradients, outcomes = mapped(learned, *parts)
        return tree_map(lambda g: g.mean(0), gradients), outcomes

    return tasks


def vectorized(inner: InnerLoop, plan: Plan, learned: Parameters, whole: Whole, batch: TaskBatch) -> Result:
    """All tasks at once under vmap."""
    return of_all_tasks(inner, plan, whole)({name: t.detach() for name, t in learned.items()}, *parts_of(batch))
