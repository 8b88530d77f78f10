"""The yardstick: a plain `torch.autograd` loop over tasks, as one writes it with built-in modules."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fewstep import Learner, TaskBatch


def built_in(ways: int, channels: int, filters: int, size: int) -> nn.Module:
    """Conv4 of built-in layers alone, channels first; parameters are named as those of `fewstep.models.Conv4`."""

    def block(inputs: int) -> nn.Module:
        layers = nn.Sequential()
        layers.add_module("conv", nn.Conv2d(inputs, filters, 3, padding=1))
        layers.add_module("norm", nn.BatchNorm2d(filters, track_running_stats=False))
        layers.add_module("activation", nn.LeakyReLU(0.01))
        layers.add_module("pool", nn.MaxPool2d(2))
        return layers

    model = nn.Sequential()
    model.add_module("blocks", nn.Sequential(*(block(filters if i else channels) for i in range(4))))
    model.add_module("flatten", nn.Flatten())
    model.add_module("head", nn.Linear(filters * (size >> 4) ** 2, ways))
    return model


def meta_gradient(model: nn.Module, learner: Learner, batch: TaskBatch, progress: float) -> dict[str, Tensor]:
    """The meta-gradient of the learner's method, from its meta-parameters, by nested `autograd.grad`."""
    method = learner.method
    meta = {name: p.detach().clone().requires_grad_() for name, p in learner.meta_parameters().items()}
    second = method.order(progress) == "second"
    weights = method.step_weights(progress, method.steps)
    total: dict[str, Tensor] = {name: torch.zeros_like(p) for name, p in meta.items()}
    for b in range(len(batch)):
        fast = {n: meta[f"model.{n}"] for n in learner.adapted}
        loss = torch.zeros(())
        for step in range(method.steps):
            norms = {n[5:]: rows[step] for n, rows in meta.items() if n.startswith("norm.")}
            rest = {n[6:]: p for n, p in meta.items() if n.startswith("model.") and n[6:] not in fast}
            logits = functional_call(model, rest | norms | fast, batch.support_x[b])
            support = F.cross_entropy(logits, batch.support_y[b])
            gradients = torch.autograd.grad(support, list(fast.values()), create_graph=second)
            fast = {
                n: w - (meta[f"rates.{n}"][step] if f"rates.{n}" in meta else method.rule.rate) * g
                for (n, w), g in zip(fast.items(), gradients, strict=True)
            }
            if weights[step]:
                query = functional_call(model, rest | norms | fast, batch.query_x[b])
                loss = loss + weights[step] * F.cross_entropy(query, batch.query_y[b])
        outer = torch.autograd.grad(loss, list(meta.values()), allow_unused=True)
        for name, g in zip(meta, outer, strict=True):
            if g is not None:
                total[name] += g / len(batch)
    return total
