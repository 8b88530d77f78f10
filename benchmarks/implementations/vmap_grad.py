"""The textbook of `torch.func`: the gradient of one task's meta-loss, `vmap` over tasks, then the mean."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, grad, vmap

from benchmarks.network import Batch, Start, named
from benchmarks.workloads import Workload


def build(w: Workload, start: Start, batch: Batch) -> Callable[[], dict[str, Tensor]]:
    network = start.network(w)
    adapted = list(network.adapted())

    def support_loss(fast: dict, rest: dict, x: Tensor, y: Tensor, step: int) -> Tensor:
        return F.cross_entropy(functional_call(network, rest | fast, (x, step)), y)

    def adapt(weights: dict, rates: dict, x: Tensor, y: Tensor, step: int) -> dict[str, Tensor]:
        fast = {name: weights[name] for name in adapted}
        gradients = grad(support_loss)(fast, weights, x, y, step)
        if not w.second:
            gradients = {name: g.detach() for name, g in gradients.items()}
        rate = {name: rates[name][step] if rates else w.rate for name in adapted}
        return weights | {name: fast[name] - rate[name] * g for name, g in gradients.items()}

    def meta_loss(weights: dict, rates: dict, sx: Tensor, sy: Tensor, qx: Tensor, qy: Tensor) -> Tensor:
        losses = []
        for step in range(w.steps):
            weights = adapt(weights, rates, sx, sy, step)
            if w.plus or step == w.steps - 1:
                losses.append(F.cross_entropy(functional_call(network, weights, (qx, step)), qy))
        return torch.stack(losses).mean()

    of_tasks = vmap(grad(meta_loss, argnums=(0, 1)), in_dims=(None, None, 0, 0, 0, 0))

    def meta_gradient() -> dict[str, Tensor]:
        weights, rates = of_tasks(start.weights, start.rates, *batch)
        return {name: g.mean(0) for name, g in named(weights, rates).items()}

    @torch.no_grad()
    def predict() -> dict[str, Tensor]:
        weights = start.weights
        for step in range(w.steps):
            weights = adapt(weights, start.rates, batch.support_x[0], batch.support_y[0], step)
        return {"logits": functional_call(network, weights, (batch.query_x[0], w.steps - 1))}

    return predict if w.predict else meta_gradient
