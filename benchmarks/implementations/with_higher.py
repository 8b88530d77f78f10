"""`higher`: its inner-loop context over a module and an optimiser; MAML++'s rates as overrides of parameter groups."""

from collections.abc import Callable

import higher
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.network import Batch, Start, gradients
from benchmarks.workloads import Workload


def build(w: Workload, start: Start, batch: Batch) -> Callable[[], dict[str, Tensor]]:
    network, rates = start.network(w), start.learned()
    adapted = network.adapted()
    norms = [p for name, p in network.named_parameters() if name not in adapted]
    groups = [{"params": [p]} for p in adapted.values()] if w.plus else [{"params": list(adapted.values())}]
    # The norms step at rate 0: what the optimiser leaves out would be differentiated through all steps at every step.
    optimizer = torch.optim.SGD([*groups, {"params": norms, "lr": 0.0}], lr=w.rate)

    def inner_loop(track: bool):
        return higher.innerloop_ctx(network, optimizer, copy_initial_weights=False, track_higher_grads=track)

    def adapt(model: torch.nn.Module, inner: higher.optim.DifferentiableOptimizer, x: Tensor, y: Tensor, step: int):
        override = {"lr": [*(rates[name][step] for name in adapted), 0.0]} if w.plus else None
        inner.step(F.cross_entropy(model(x, step), y), override=override)

    def second_order() -> dict[str, Tensor]:
        for sx, sy, qx, qy in zip(*batch, strict=True):
            with inner_loop(track=True) as (model, inner):
                losses = []
                for step in range(w.steps):
                    adapt(model, inner, sx, sy, step)
                    if w.plus or step == w.steps - 1:
                        losses.append(F.cross_entropy(model(qx, step), qy))
                (torch.stack(losses).mean() / len(batch.query_x)).backward()
        return gradients(network, rates)

    def first_order() -> dict[str, Tensor]:
        # Without tracking, the gradient at the adapted weights is the meta-gradient.
        parameters = list(network.parameters())
        for sx, sy, qx, qy in zip(*batch, strict=True):
            with inner_loop(track=False) as (model, inner):
                for step in range(w.steps):
                    adapt(model, inner, sx, sy, step)
                loss = F.cross_entropy(model(qx, w.steps - 1), qy) / len(batch.query_x)
                for p, g in zip(parameters, torch.autograd.grad(loss, list(model.parameters())), strict=True):
                    p.grad = g if p.grad is None else p.grad + g
        return gradients(network, rates)

    def predict() -> dict[str, Tensor]:
        with inner_loop(track=False) as (model, inner):
            for step in range(w.steps):
                adapt(model, inner, batch.support_x[0], batch.support_y[0], step)
            with torch.no_grad():
                return {"logits": model(batch.query_x[0], w.steps - 1)}

    if w.predict:
        return predict
    return second_order if w.second else first_order
