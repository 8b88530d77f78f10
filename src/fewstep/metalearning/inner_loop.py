"""The inner loop: from meta-parameters and one task's support set to adapted parameters, step by step."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fewstep.metalearning.functional import Functional, Moments, Statistics
from fewstep.metalearning.randomness import rewinder
from fewstep.methods import Method
from fewstep.methods.rules import row

Parameters = dict[str, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]


class Meta(NamedTuple):
    """Everything a task starts from, as values.

    model: parameters and buffers by name. rates: of the rule. norm: per-step norm weights, (steps, …) each.
    running: per-step running statistics, moments of (steps, channels) each.
    """

    model: Parameters
    rates: Parameters
    norm: Parameters
    running: Statistics


class Adaptation(NamedTuple):
    """Where a task stands after some inner steps: its parameters, and what normalised the support pass before."""

    step: int
    parameters: Parameters
    support_loss: Tensor | None
    support_statistics: Statistics


@dataclass
class SupportLoss:
    """The loss of a task's support set, and the statistics of its pass, as a function of the fast weights.

    view: all parameters, those that the fast weights replace among them. given: statistics to normalise by, or None.
    """

    forward: Functional
    loss: Loss
    view: Parameters
    x: Any
    y: Tensor
    given: Statistics | None

    def __call__(self, fast: Parameters) -> tuple[Tensor, Statistics]:
        output, seen = self.forward(self.view | fast, self.x, self.given)
        return self.loss(output, self.y), seen


Gradient = Callable[[SupportLoss, Parameters], tuple[Parameters, Tensor, Statistics]]


def second_order(f: Callable, fast: Parameters) -> tuple[Parameters, Tensor, Any]:
    """Gradients of `f` that can be differentiated again."""
    loss, seen = f(fast)
    gradients = torch.autograd.grad(loss, list(fast.values()), create_graph=True, materialize_grads=True)
    return dict(zip(fast, gradients, strict=True)), loss, seen


def first_order(f: Callable, fast: Parameters) -> tuple[Parameters, Tensor, Any]:
    """Gradients of `f` as constants; no graph outlives the call."""
    leaves = {name: weight.detach().requires_grad_() for name, weight in fast.items()}
    with torch.enable_grad():
        loss, seen = f(leaves)
        gradients = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
    seen = {name: Moments(m.mean.detach(), m.var.detach()) for name, m in seen.items()}
    return dict(zip(fast, gradients, strict=True)), loss.detach(), seen


def transformed_second_order(f: Callable, fast: Parameters) -> tuple[Parameters, Tensor, Any]:
    """`second_order` for use under `torch.func` transforms."""
    gradients, (loss, seen) = torch.func.grad_and_value(f, has_aux=True)(fast)
    return gradients, loss, seen


def transformed_first_order(f: Callable, fast: Parameters) -> tuple[Parameters, Tensor, Any]:
    """`first_order` for use under `torch.func` transforms."""
    gradients, loss, seen = transformed_second_order(f, {name: weight.detach() for name, weight in fast.items()})
    return {name: g.detach() for name, g in gradients.items()}, loss.detach(), seen


def at_step(meta: Meta, step: int) -> Parameters:
    """The view of the parameters at an inner step: per-step norm weights give their row, so no module sees a step."""
    return {**meta.model, **{name: row(rows, step) for name, rows in meta.norm.items()}}


def running_at(meta: Meta, step: int) -> Statistics:
    """The running statistics of an inner step."""
    return {name: Moments(row(m.mean, step), row(m.var, step)) for name, m in meta.running.items()}


class InnerLoop(NamedTuple):
    """One task's forward passes and updates, as pure functions of `Meta`.

    forward: the model as a function. loss: (output, target) → scalar. adapted: names the rule updates.
    statistics: `batch`, `running` or `support`, see `fewstep.Norm`. sharp: perturb, where the method does so.
    """

    forward: Functional
    loss: Loss
    method: Method
    adapted: tuple[str, ...]
    statistics: str
    sharp: bool = True

    def closed_form(self, x: Any, y: Tensor) -> Gradient:
        """`first_order` on a support set, by the model's own formula where it has one: equal to rounding."""

        @functools.cache  # made at the first step: there may be none
        def formula() -> Any:
            if self.loss is not cross_entropy or self.statistics == "running":
                return None
            return self.forward.cross_entropy_gradients(self.adapted, x, y)

        def gradient(f: SupportLoss, fast: Parameters) -> tuple[Parameters, Tensor, Any]:
            return (formula() and formula()(f.view | fast)) or first_order(f, fast)

        return gradient

    def start(self, meta: Meta) -> Adaptation:
        """The task before any inner step."""
        return Adaptation(0, at_step(meta, 0) | {name: meta.model[name] for name in self.adapted}, None, {})

    def advance(self, meta: Meta, state: Adaptation, x: Any, y: Tensor, gradient: Gradient) -> Adaptation:
        """The task one inner step on.

        θ_{i+1} = rule(θ_i, ∇L_support(θ_i; row i of every per-step part))
        """
        view, fast = at_step(meta, state.step), {name: state.parameters[name] for name in self.adapted}
        given = running_at(meta, state.step) if self.statistics == "running" else None
        support_loss = SupportLoss(self.forward, self.loss, view, x, y, given)
        rewind = rewinder(y.device) if self.sharp and self.method.sharpness.inner else None
        gradients, loss, seen = gradient(support_loss, fast)
        if rewind:
            rewind()  # dropout drops the same units at both points
            gradients = self._at_the_worst_point(support_loss, fast, gradients, gradient)
        fast = self.method.rule.update(fast, gradients, meta.rates, state.step)
        # A query pass after update i sees the same row i as the support pass before it.
        return Adaptation(state.step + 1, view | fast, loss, seen)

    def adapt(self, meta: Meta, x: Any, y: Tensor, steps: int, gradient: Gradient) -> Iterator[Adaptation]:
        """The task's state after 0, 1, … `steps` inner steps on its support set."""
        yield (state := self.start(meta))
        for _ in range(steps):
            yield (state := self.advance(meta, state, x, y, gradient))

    def _at_the_worst_point(
        self, support_loss: SupportLoss, fast: Parameters, gradients: Parameters, gradient: Gradient
    ) -> Parameters:
        """The gradient at θ + ε, where ε is the sharpness's inner perturbation."""
        sharpness = self.method.sharpness
        epsilon = sharpness.perturbation(fast, gradients, sharpness.inner)
        if sharpness.detached:
            epsilon = {name: e.detach() for name, e in epsilon.items()}
        return gradient(support_loss, {name: weight + epsilon[name] for name, weight in fast.items()})[0]

    def query_statistics(self, meta: Meta, state: Adaptation, support_x: Any) -> Statistics | None:
        """What normalises the queries of an adapted task; None is their own batch."""
        if not self.forward.batch_norms or self.statistics == "batch":
            return None
        if self.statistics == "running":
            return running_at(meta, max(state.step - 1, 0))
        return self.forward(state.parameters, support_x, differentiable=True)[1]

    def predict(self, meta: Meta, state: Adaptation, support_x: Any, query_x: Any) -> Tensor:
        """The output for the queries after the inner steps taken so far."""
        return self.forward(state.parameters, query_x, self.query_statistics(meta, state, support_x))[0]
