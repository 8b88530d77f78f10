"""The inner loop: from meta-parameters and one task's support set to adapted parameters, step by step."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils._pytree import tree_map

from fewstep.errors import BadInput
from fewstep.metalearning.functional import Functional, Seen, Setting
from fewstep.metalearning.randomness import Keys
from fewstep.methods import Method
from fewstep.models.norm import Moments

Parameters = dict[str, Tensor]
MomentsByNorm = Mapping[str, Moments]
Loss = Callable[[Tensor, Tensor], Tensor]


class Meta(NamedTuple):
    """Everything a task starts from, as values.

    model: parameters and buffers by name. rates: of the rule. norm: per-step norm weights, (steps, …) each.
    running: per-step running statistics, moments of (steps, channels) each.
    """

    model: Parameters
    rates: Parameters
    norm: Parameters
    running: MomentsByNorm


class Task(NamedTuple):
    """One task, or several that vmap has taken together; keys: of its random numbers."""

    support_x: Any
    support_y: Tensor
    query_x: Any
    query_y: Tensor
    keys: Keys = ()


class Adaptation(NamedTuple):
    """Where a task stands after some inner steps.

    Arguments:
        step: inner steps taken.
        parameters: all parameters and buffers, adapted and moved so far.
        moved: those of them that support passes have moved.
        moments: what batch norms saw in the support pass before.
    """

    step: int
    parameters: Parameters
    moved: Parameters
    moments: MomentsByNorm


@dataclass(frozen=True)
class SupportLoss:
    """The loss of a task's support set as a function of the fast weights, and what its pass gave.

    Arguments:
        view: all parameters, those that the fast weights replace among them.
        given: moments that batch norms normalise by; their batch's own where None.
    """

    inner: "InnerLoop"
    view: Parameters
    task: Task
    step: int
    given: MomentsByNorm | None

    def __call__(self, fast: Parameters) -> tuple[Tensor, Seen]:
        inner, task = self.inner, self.task
        seen = inner.forward(
            self.view | fast, task.support_x, inner.setting, self.given, task.keys, number=2 * self.step
        )
        loss = inner.loss(seen.output, task.support_y)
        if loss.dim():
            raise BadInput(f"the loss gives a tensor of shape {tuple(loss.shape)}: take its mean (reduction='mean')")
        return loss, seen._replace(output=())


Gradient = Callable[[SupportLoss, Parameters], tuple[Parameters, Tensor, Seen]]


def gradients_of(loss: Tensor, sources: Parameters, create_graph: bool = False) -> Parameters:
    """Gradients by name, zero where the loss does not depend on a source; dense ones."""
    found = torch.autograd.grad(loss, list(sources.values()), create_graph=create_graph, materialize_grads=True)
    return {name: g.to_dense() if g.is_sparse else g for name, g in zip(sources, found, strict=True)}


def second_order(f: SupportLoss, fast: Parameters) -> tuple[Parameters, Tensor, Seen]:
    """Gradients of `f` that can be differentiated again."""
    loss, seen = f(fast)
    return gradients_of(loss, fast, create_graph=True), loss, seen


def first_order(f: SupportLoss, fast: Parameters) -> tuple[Parameters, Tensor, Seen]:
    """Gradients of `f` as constants; no graph outlives the call."""
    leaves = {name: weight.detach().requires_grad_() for name, weight in fast.items()}
    with torch.enable_grad():
        loss, seen = f(leaves)
        gradients = gradients_of(loss, leaves)
    return gradients, loss.detach(), tree_map(torch.detach, seen)


def transformed_second_order(f: SupportLoss, fast: Parameters) -> tuple[Parameters, Tensor, Seen]:
    """`second_order` for use under `torch.func` transforms."""
    gradients, (loss, seen) = torch.func.grad_and_value(f, has_aux=True)(fast)
    return gradients, loss, seen


def transformed_first_order(f: SupportLoss, fast: Parameters) -> tuple[Parameters, Tensor, Seen]:
    """`first_order` for use under `torch.func` transforms."""
    found = transformed_second_order(f, {name: weight.detach() for name, weight in fast.items()})
    return tree_map(torch.detach, found)


def at_step(meta: Meta, step: int) -> Parameters:
    """The parameters at an inner step: per-step norm weights give their row, so no module sees a step."""
    return {**meta.model, **{name: rows[min(step, len(rows) - 1)] for name, rows in meta.norm.items()}}


def running_at(meta: Meta, step: int) -> MomentsByNorm:
    """The running statistics of an inner step."""
    return {name: Moments(*(rows[min(step, len(rows) - 1)] for rows in m)) for name, m in meta.running.items()}


class InnerLoop(NamedTuple):
    """One task's forward passes and updates, as pure functions of `Meta`.

    Arguments:
        forward, setting: the model as a function, and how its passes are taken.
        loss: (output, target) → scalar. adapted: names the rule updates.
        statistics: `batch`, `running`, `support` or `frozen`, see `fewstep.Norm`.
        sharp: perturb, where the method does so.
    """

    forward: Functional
    setting: Setting
    loss: Loss
    method: Method
    adapted: tuple[str, ...]
    statistics: str
    sharp: bool = True

    def start(self, meta: Meta) -> Adaptation:
        """The task before any inner step."""
        parameters = at_step(meta, 0)
        parameters.update((name, meta.model[name]) for name in self.adapted)
        return Adaptation(0, parameters, {}, {})

    def fast(self, state: Adaptation) -> Parameters:
        """The weights that inner steps adapt."""
        return {name: state.parameters[name] for name in self.adapted}

    def advance(self, meta: Meta, state: Adaptation, task: Task, gradient: Gradient) -> Adaptation:
        """The task one inner step on.

        θ_{i+1} = rule(θ_i, ∇L_support(θ_i; row i of every per-step part))
        """
        view, fast = at_step(meta, state.step) | state.moved, self.fast(state)
        given = running_at(meta, state.step) if self.statistics == "running" else None
        f = SupportLoss(self, view, task, state.step, given)
        gradients, _, seen = gradient(f, fast)
        if self.sharp and self.method.sharpness.inner:
            ascent = self.method.sharpness.perturbation(fast, gradients, self.method.sharpness.inner)
            if self.method.sharpness.detached:
                ascent = {name: e.detach() for name, e in ascent.items()}
            # The same keys: dropout drops the same units at both points.
            gradients = gradient(f, {name: weight + ascent[name] for name, weight in fast.items()})[0]
        moved = state.moved | seen.moved
        if moved:  # a weight that its pass moved (`max_norm` of an embedding) is updated from where it went
            fast = {name: moved.get(name, weight) for name, weight in fast.items()}
        fast = self.method.rule.update(fast, gradients, meta.rates, state.step)
        moved = {name: t for name, t in moved.items() if name not in fast}
        # A query pass after update i sees the same row i as the support pass before it.
        return Adaptation(state.step + 1, {**view, **moved, **fast}, moved, seen.moments)

    def adapt(self, meta: Meta, task: Task, steps: int, gradient: Gradient) -> Iterator[Adaptation]:
        """The task's state after 0, 1, … `steps` inner steps on its support set."""
        yield (state := self.start(meta))
        for _ in range(steps):
            yield (state := self.advance(meta, state, task, gradient))

    def query_statistics(self, meta: Meta, state: Adaptation, task: Task) -> MomentsByNorm | None:
        """What normalises the queries of an adapted task; None is their own batch."""
        if not self.forward.normalises or self.statistics in ("batch", "frozen"):
            return None
        if self.statistics == "running":
            return running_at(meta, max(state.step - 1, 0))
        number = 2 * max(state.step - 1, 0)
        return self.forward(
            state.parameters, task.support_x, self.setting, None, task.keys, number, differentiable=True
        ).moments

    def predict(self, meta: Meta, state: Adaptation, task: Task) -> Seen:
        """What the pass over the queries gives after the inner steps taken so far."""
        given = self.query_statistics(meta, state, task)
        return self.forward(state.parameters, task.query_x, self.setting, given, task.keys, 2 * state.step + 1)


@dataclass
class ClosedForm:
    """`first_order` by the model's own formula where it has one, made at the first step: equal to rounding."""

    formula: Any = None
    asked: bool = False

    def __call__(self, f: SupportLoss, fast: Parameters) -> tuple[Parameters, Tensor, Seen]:
        inner = f.inner
        if not self.asked:
            self.asked = True
            if inner.loss is cross_entropy and f.given is None:
                task = f.task
                self.formula = inner.forward.cross_entropy_gradients(
                    inner.adapted, task.support_x, task.support_y, inner.setting
                )
        return (self.formula and self.formula(f.view | fast)) or first_order(f, fast)
