"""A plain loop over tasks with `torch.func.functional_call` and `torch.autograd.grad`; the reference for results."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from benchmarks.network import Batch, Start, gradients
from benchmarks.workloads import Workload


def build(w: Workload, start: Start, batch: Batch) -> Callable[[], dict[str, Tensor]]:
    network, rates = start.network(w), start.learned()
    adapted = list(network.adapted())

    def adapt(fast: dict[str, Tensor], x: Tensor, y: Tensor, step: int, graph: bool) -> dict[str, Tensor]:
        loss = F.cross_entropy(functional_call(network, fast, (x, step)), y)
        found = torch.autograd.grad(loss, [fast[name] for name in adapted], create_graph=graph)
        rate = {name: rates[name][step] if rates else w.rate for name in adapted}
        return {**fast, **{name: fast[name] - rate[name] * g for name, g in zip(adapted, found, strict=True)}}

    def meta_gradient() -> dict[str, Tensor]:
        for sx, sy, qx, qy in zip(*batch, strict=True):
            fast: dict[str, Tensor] = dict(network.named_parameters())
            losses = []
            for step in range(w.steps):
                fast = adapt(fast, sx, sy, step, graph=w.second)
                if w.plus or step == w.steps - 1:
                    losses.append(F.cross_entropy(functional_call(network, fast, (qx, step)), qy))
            (torch.stack(losses).mean() / len(batch.query_x)).backward()
        return gradients(network, rates)

    def predict() -> dict[str, Tensor]:
        fast: dict[str, Tensor] = dict(network.named_parameters())
        for step in range(w.steps):
            fast = adapt(fast, batch.support_x[0], batch.support_y[0], step, graph=False)
            fast = {name: p.detach().requires_grad_() for name, p in fast.items()}
        with torch.no_grad():
            return {"logits": functional_call(network, fast, (batch.query_x[0], w.steps - 1))}

    return predict if w.predict else meta_gradient
