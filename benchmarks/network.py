"""What every implementation is given: a network of built-in modules, weights to start from, and tasks."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.workloads import Workload


class Norm(nn.Module):
    """Batch norm by the batch's own statistics; in MAML++ with a weight and a bias for each inner step."""

    def __init__(self, w: Workload):
        super().__init__()
        shape = (w.steps, w.filters) if w.plus else (w.filters,)
        self.weight, self.bias = nn.Parameter(torch.ones(shape)), nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor, step: int) -> Tensor:
        weight, bias = (p[step] if p.dim() > 1 else p for p in (self.weight, self.bias))
        return F.batch_norm(x, None, None, weight, bias, training=True)


class Block(nn.Module):
    def __init__(self, inputs: int, w: Workload):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(inputs, w.filters, 3, padding=1), Norm(w)

    def forward(self, x: Tensor, step: int) -> Tensor:
        return F.max_pool2d(F.leaky_relu(self.norm(self.conv(x), step), 0.01), 2)


class Network(nn.Module):
    """Conv4 as its users write it: built-in layers, channels first. `step` chooses the norm weights of MAML++."""

    def __init__(self, w: Workload):
        super().__init__()
        self.blocks = nn.ModuleList(Block(w.filters if i else w.channels, w) for i in range(w.blocks))
        self.head = nn.Linear(w.filters * (w.size >> w.blocks) ** 2, w.ways)

    def forward(self, x: Tensor, step: int = 0) -> Tensor:
        for block in self.blocks:
            x = block(x, step)
        return self.head(x.flatten(1))

    def adapted(self) -> dict[str, nn.Parameter]:
        """What the inner loop updates: all but the norms."""
        return {name: p for name, p in self.named_parameters() if ".norm." not in name}


class Start(NamedTuple):
    """Weights by the names of `Network`, and for MAML++ a rate (steps,) for each adapted one."""

    weights: dict[str, Tensor]
    rates: dict[str, Tensor]

    def to(self, device: str | torch.device, dtype: torch.dtype) -> "Start":
        return Start(*({name: t.to(device, dtype) for name, t in part.items()} for part in self))

    def network(self, w: Workload) -> Network:
        network = Network(w).to(self.weights["head.bias"])
        network.load_state_dict(self.weights)
        return network

    def learned(self) -> dict[str, nn.Parameter]:
        """The rates as parameters of the outer loop."""
        return {name: nn.Parameter(rate.clone()) for name, rate in self.rates.items()}


class Batch(NamedTuple):
    """Tasks: images (tasks, n, channels, size, size), labels (tasks, n)."""

    support_x: Tensor
    support_y: Tensor
    query_x: Tensor
    query_y: Tensor

    def to(self, device: str | torch.device, dtype: torch.dtype) -> "Batch":
        return Batch(*(t.to(device, dtype if t.is_floating_point() else t.dtype) for t in self))


def start(w: Workload) -> Start:
    """Where every implementation starts; no two rows or entries of a learned part are alike."""
    generator = torch.Generator().manual_seed(1)
    weights = {}
    for name, p in Network(w).named_parameters():
        if p.dim() > 1 and ".norm." not in name:
            weights[name] = nn.init.xavier_uniform_(torch.empty_like(p.data), generator=generator)
        else:
            weights[name] = p.data.zero_() if ".norm." not in name else p.data
            weights[name] += 0.1 * torch.randn(p.shape, generator=generator)
    names = Network(w).adapted() if w.plus else ()
    return Start(weights, {n: w.rate * (0.5 + torch.rand(w.steps, generator=generator)) for n in names})


def tasks(w: Workload, seed: int = 0) -> Batch:
    """Noise of each task's own; the images of a class share a part, so that there is something to learn."""
    generator = torch.Generator().manual_seed(2 + seed)
    classes = torch.randn(w.tasks, 1, w.ways, w.channels, w.size, w.size, generator=generator)

    def half(count: int) -> tuple[Tensor, Tensor]:
        noise = torch.randn(w.tasks, count, *classes.shape[2:], generator=generator)
        return (classes + noise).flatten(1, 2), torch.arange(w.ways).repeat(w.tasks, count)

    return Batch(*half(w.shots), *half(w.queries))


def gradients(network: Network, rates: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """What `backward` left, under the names that results are compared by; and nothing is left for the next time."""
    parameters = named(dict(network.named_parameters()), rates)
    found = {name: p.grad for name, p in parameters.items() if p.grad is not None}
    for p in parameters.values():
        p.grad = None
    return found


def named(weights: dict, rates: dict) -> dict:
    """Weights and rates in one dictionary, as results are compared."""
    return {**weights, **{f"rates.{name}": rate for name, rate in rates.items()}}


def distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest ‖a − b‖ / ‖b‖ of a tensor; infinite where a tensor is missing or an entry not finite.

    Biases in front of a batch norm have no gradient but rounding: a tensor counts as at least a hundredth of them all.
    """
    if found.keys() != expected.keys():
        return math.inf
    norms = {name: t.double().norm().item() for name, t in expected.items()}
    least = 0.01 * sum(norm**2 for norm in norms.values()) ** 0.5
    off = {name: (found[name].double() - t.double()).norm().item() for name, t in expected.items()}
    if not all(math.isfinite(each) for each in (*norms.values(), *off.values())):
        return math.inf
    return max(off[name] / max(norm, least) for name, norm in norms.items())
