"""The meta-gradient with the graph of one inner step at a time: memory flat in the number of steps.

Forwards, only the fast weights θ_0 … θ_N are kept. Backwards, each inner step is taken again with its graph, and the
adjoint v_i = ∂ meta-loss / ∂θ_i goes through it:

    v_i = (∂θ_{i+1}/∂θ_i)ᵀ v_{i+1} + w_{i−1} ∇L_query(θ_i)
    gradient += (∂θ_{i+1}/∂meta)ᵀ v_{i+1} + w_i ∂L_query/∂meta

It costs one more first-order adaptation than `loop`. Random numbers are functions of their pass, so those drawn
backwards are those drawn forwards.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from fewstep.errors import BadInput
from fewstep.metalearning.facts import real
from fewstep.metalearning.inner_loop import Adaptation, Parameters, Task, at_step, first_order, second_order
from fewstep.metalearning.meta_gradient import Outcome, Result, Work, detached, stacked


def recompute(work: Work) -> Result:
    """Task by task, inner step by inner step.

    Raises:
        BadInput: a model through whose moved buffers gradients flow from step to step.
    """
    if work.inner.forward.known(work.inner.setting).through:
        raise BadInput(
            "the model's passes move a buffer through which gradients flow from one inner step to the next, which "
            "recompute would cut: take strategy loop, or write to the buffer under torch.no_grad"
        )
    leaves = work.leaves()
    sums = {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    outcomes = [_Sweep(work, leaves, sums).of(work.task(index)) for index in range(len(work.batch))]
    return {n: s / len(outcomes) for n, s in sums.items()}, tree_map(lambda *each: torch.stack(each), *outcomes)


class _Sweep:
    """One task's sweep forwards and back; gradients are added to `sums`."""

    def __init__(self, work: Work, leaves: Parameters, sums: Parameters):
        self.inner, self.plan, self.leaves, self.sums = work.inner, work.plan, leaves, sums
        self.meta = work.fixed.with_learned(leaves)
        self.gradient = second_order if work.plan.order == "second" else first_order

    def of(self, task: Task) -> Outcome:
        inner, steps = self.inner, self.inner.method.steps
        with torch.no_grad():
            states = list(inner.adapt(self.meta, task, steps, first_order))
        total: Any = 0.0
        adjoint = {name: torch.zeros_like(self.meta.model[name]) for name in inner.adapted}
        for state in reversed(states):
            weight = self.plan.weight(state.step, steps)
            here, fast = self._detached(state)
            if weight is not None or state.step == steps:
                seen = inner.predict(self.meta, here, task)
                if state.step == steps:
                    last = detached(seen)
            if weight is not None:
                loss = weight * inner.method.meta_loss(inner.loss(seen.output, task.query_y), self.meta.model, fast)
                total = total + loss.detach()
                adjoint = _sum(adjoint, self._pull_back([loss], None, fast))
            if state.step:
                before, fast = self._detached(states[state.step - 1])
                after = inner.fast(inner.advance(self.meta, before, task, self.gradient))
                if not inner.forward.repeats and real(after):
                    _check_repeats(after, inner.fast(state))
                adjoint = self._pull_back(list(after.values()), list(adjoint.values()), fast)
        inner.forward.repeats = True
        for name, v in adjoint.items():  # θ_0 is the initialisation
            self.sums[f"model.{name}"].add_(v)
        moments = stacked([state.moments for state in states[1:]] or [last.moments])
        moved = states[-1].moved if steps else last.moved
        return Outcome(total, last.output, moments, tree_map(torch.detach, moved))

    def _detached(self, state: Adaptation) -> tuple[Adaptation, Parameters]:
        """The state with fast weights that are leaves; norm rows and frozen weights stay tied to the learned ones."""
        fast = {name: weight.detach().requires_grad_() for name, weight in self.inner.fast(state).items()}
        view = at_step(self.meta, max(state.step - 1, 0))
        return state._replace(parameters=view | state.moved | fast), fast

    def _pull_back(self, outputs: Sequence[Tensor], adjoint: Sequence[Tensor] | None, fast: Parameters) -> Parameters:
        """Adds the part of the meta-parameters to the sums; gives the part of the fast weights."""
        sources = [*fast.values(), *self.leaves.values()]
        found = torch.autograd.grad(outputs, sources, adjoint, materialize_grads=True)
        for total, gradient in zip(self.sums.values(), found[len(fast) :], strict=True):
            total.add_(gradient)
        return {n: g.to_dense() if g.is_sparse else g for n, g in zip(fast, found, strict=False)}


def _check_repeats(again: Parameters, first: Parameters) -> None:
    """Raise BadInput where an inner step comes out otherwise when it is taken again."""
    for name, weight in first.items():
        if not torch.allclose(again[name], weight, 1e-3, 1e-3 * float(weight.abs().max()), equal_nan=True):
            raise BadInput(
                f"an inner step gives another {name} when it is taken again: the rule, loss or model remembers earlier "
                "calls, which strategy recompute cannot take; take strategy loop"
            )


def _sum(a: Parameters, b: Parameters) -> Parameters:
    return {name: a[name] + b[name] for name in a}
