"""`torchopt`: its meta-optimisers on the module itself; MAML++'s rates as a gradient transformation of one's own."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import torchopt
from torch import Tensor, nn
from torch.func import functional_call
from torchopt.base import GradientTransformation

from benchmarks.network import Batch, Network, Start, gradients
from benchmarks.workloads import Workload


def learned_rates(network: Network, rates: dict[str, nn.Parameter]) -> GradientTransformation:
    """Gradient descent with a rate for each tensor and step."""
    names = {id(p): name for name, p in network.adapted().items()}

    def init(params: Any) -> tuple:
        return 0, [rates[names[id(p)]] for p in params]

    def update(updates: Any, state: tuple, *, params: Any = None, inplace: bool = True) -> tuple:  # noqa: ARG001
        step, own = state
        return tuple(-rate[step] * g for rate, g in zip(own, updates, strict=True)), (step + 1, own)

    return GradientTransformation(init, update)


def build(w: Workload, start: Start, batch: Batch) -> Callable[[], dict[str, Tensor]]:
    network, rates = start.network(w), start.learned()
    inner_modules = nn.ModuleList([*(block.conv for block in network.blocks), network.head])  # all but the norms
    if w.plus:
        inner = torchopt.MetaOptimizer(inner_modules, learned_rates(network, rates))
    else:
        inner = torchopt.MetaSGD(inner_modules, lr=w.rate)
    module_state = torchopt.extract_state_dict(network, by="reference")
    inner_state = torchopt.extract_state_dict(inner, by="reference")

    def rewind() -> None:
        torchopt.recover_state_dict(network, module_state)
        torchopt.recover_state_dict(inner, inner_state)

    def second_order() -> dict[str, Tensor]:
        for sx, sy, qx, qy in zip(*batch, strict=True):
            losses = []
            for step in range(w.steps):
                inner.step(F.cross_entropy(network(sx, step), sy))
                if w.plus or step == w.steps - 1:
                    losses.append(F.cross_entropy(network(qx, step), qy))
            (torch.stack(losses).mean() / len(batch.query_x)).backward()
            rewind()
        return gradients(network, rates)

    def first_order() -> dict[str, Tensor]:
        # Meta-optimisers always build the graph of the gradients; the functional optimisers leave that to the caller.
        sgd, adapted = torchopt.sgd(lr=w.rate), network.adapted()
        for sx, sy, qx, qy in zip(*batch, strict=True):
            fast, state = tuple(adapted.values()), sgd.init(tuple(adapted.values()))
            for step in range(w.steps):
                weights = dict(zip(adapted, fast, strict=True))
                loss = F.cross_entropy(functional_call(network, weights, (sx, step)), sy)
                updates, state = sgd.update(torch.autograd.grad(loss, fast), state, inplace=False)
                fast = torchopt.apply_updates(fast, updates, inplace=False)
            weights = dict(zip(adapted, fast, strict=True))
            (F.cross_entropy(functional_call(network, weights, (qx, w.steps - 1)), qy) / len(batch.query_x)).backward()
        return gradients(network, rates)

    def predict() -> dict[str, Tensor]:
        for step in range(w.steps):
            inner.step(F.cross_entropy(network(batch.support_x[0], step), batch.support_y[0]))
            torchopt.stop_gradient(network)
        with torch.no_grad():
            logits = network(batch.query_x[0], w.steps - 1)
        rewind()
        return {"logits": logits}

    if w.predict:
        return predict
    return second_order if w.second else first_order
