"""The meta-gradient with the graph of one inner step at a time: memory flat in the number of steps.

Forwards, only the fast weights θ_0 … θ_N are kept. Backwards, each inner step is taken again with its graph, and the
adjoint v_i = ∂ meta-loss / ∂θ_i goes through it:

    v_i = (∂θ_{i+1}/∂θ_i)ᵀ v_{i+1} + w_{i−1} ∇L_query(θ_i)
    gradient += (∂θ_{i+1}/∂meta)ᵀ v_{i+1} + w_i ∂L_query/∂meta

It costs one more first-order adaptation than `loop`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from fewstep.metalearning.inner_loop import Adaptation, InnerLoop, Meta, Parameters, at_step, first_order, second_order
from fewstep.metalearning.meta_gradient import Outcome, Plan, Result, Whole, parts_of, stacked
from fewstep.metalearning.randomness import rewinder
from fewstep.tasks.batch import TaskBatch


def recompute(inner: InnerLoop, plan: Plan, learned: Parameters, whole: Whole, batch: TaskBatch) -> Result:
    """Task by task, inner step by inner step."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in learned.items()}
    sums = {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    outcomes = []
    for index in range(len(batch)):
        sx, sy, qx, qy = tree_map(lambda t, index=index: t[index], parts_of(batch))
        task = _Task(inner, plan, whole(leaves), leaves, sums)
        outcomes.append(task.run(sx, sy, qx, qy))
    return {n: s / len(batch) for n, s in sums.items()}, tree_map(lambda *each: torch.stack(each), *outcomes)


class _Task:
    """One task's sweep forwards and back; gradients are added to `sums`."""

    def __init__(self, inner: InnerLoop, plan: Plan, meta: Meta, leaves: Parameters, sums: Parameters):
        self.inner, self.plan, self.meta, self.leaves, self.sums = inner, plan, meta, leaves, sums
        self.gradient = second_order if plan.order == "second" else first_order

    def run(self, sx: Any, sy: Tensor, qx: Any, qy: Tensor) -> Outcome:
        inner, steps, device = self.inner, self.inner.method.steps, sy.device
        with torch.no_grad():
            states, rewinds = [inner.start(self.meta)], []
            for _ in range(steps):
                rewinds.append(rewinder(device))
                states.append(inner.advance(self.meta, states[-1], sx, sy, first_order))
        total: Any = 0.0
        adjoint = {name: torch.zeros_like(self.meta.model[name]) for name in inner.adapted}
        for state in reversed(states):
            weight = self.plan.step_weights[max(state.step - 1, 0)] if state.step or not steps else None
            state, fast = self._detached(state)
            if weight is not None or state.step == steps:
                logits = inner.predict(self.meta, state, sx, qx)
                if state.step == steps:
                    final = logits.detach()
            if weight is not None:
                loss = weight * inner.method.meta_loss(inner.loss(logits, qy), self.meta.model, fast)
                total = total + loss.detach()
                adjoint = _sum(adjoint, self._pull_back([loss], None, fast))
            if state.step:
                later = rewinder(device)
                rewinds[state.step - 1]()  # dropout drops what it dropped forwards
                before, fast = self._detached(states[state.step - 1])
                after = inner.advance(self.meta, before, sx, sy, self.gradient)
                later()
                outputs = [after.parameters[n] for n in inner.adapted]
                adjoint = self._pull_back(outputs, [adjoint[n] for n in inner.adapted], fast)
        for name, v in adjoint.items():  # θ_0 is the initialisation
            self.sums[f"model.{name}"].add_(v)
        return Outcome(total, final, stacked([state.support_statistics for state in states[1:]]))

    def _detached(self, state: Adaptation) -> tuple[Adaptation, Parameters]:
        """The state with fast weights that are leaves; norm rows and frozen weights stay tied to the learned ones."""
        fast = {name: state.parameters[name].detach().requires_grad_() for name in self.inner.adapted}
        view = at_step(self.meta, max(state.step - 1, 0))
        return state._replace(parameters=view | fast), fast

    def _pull_back(self, outputs: Sequence[Tensor], adjoint: Sequence[Tensor] | None, fast: Parameters) -> Parameters:
        """Adds the part of the meta-parameters to the sums; gives the part of the fast weights."""
        sources = [*fast.values(), *self.leaves.values()]
        gradients = torch.autograd.grad(outputs, sources, adjoint, materialize_grads=True)
        for total, gradient in zip(self.sums.values(), gradients[len(fast) :], strict=True):
            total.add_(gradient)
        return dict(zip(fast, gradients, strict=False))


def _sum(a: Parameters, b: Parameters) -> Parameters:
    return {name: a[name] + b[name] for name in a}
