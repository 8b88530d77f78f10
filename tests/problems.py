"""Small problems that the tests share."""

import copy
import dataclasses

import torch
import torch.nn.functional as F

import fewstep
from fewstep.methods import SecondOrder
from fewstep.models import MLP, Conv4


def images(tasks=2, ways=3, shots=2, queries=2, size=16, channels=1, dtype=torch.float64, seed=0):
    """A meta-batch of noise images; labels run through the ways."""
    g = torch.Generator().manual_seed(seed)

    def half(count):
        x = torch.randn(tasks, ways * count, channels, size, size, generator=g, dtype=dtype)
        return x, torch.arange(ways).repeat(tasks, count)

    return fewstep.TaskBatch(*half(shots), *half(queries))


def vectors(tasks=3, ways=3, shots=2, queries=4, features=4, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)

    def half(count):
        return torch.randn(tasks, ways * count, features, generator=g, dtype=dtype), torch.arange(ways).repeat(
            tasks, count
        )

    return fewstep.TaskBatch(*half(shots), *half(queries))


def conv_learner(method, ways=3, filters=4, size=16, strategy="auto", **options):
    """Conv4 in float64 whose norms' affine weights are not at their trivial initial values."""
    model = Conv4(ways=ways, filters=filters, image_size=size, **options).double()
    learner = fewstep.Learner(model, method, F.cross_entropy, strategy)
    with torch.no_grad():
        for name, p in learner.meta_parameters().items():
            if name.startswith("rates."):
                p.mul_(1 + 0.2 * torch.randn_like(p))  # every row and entry another one
            elif ".norm." in name or name.endswith("bias"):
                p.add_(0.2 * torch.randn_like(p))
    return learner


def mlp_learner(method, features=4, ways=3, strategy="auto"):
    return fewstep.Learner(MLP(features, ways, (5,), "tanh").double(), method, F.cross_entropy, strategy)


def with_rates(method, rate):
    """The method with inner rates of that size, fixed ones or learned ones at their start."""
    rates = [f.name for f in dataclasses.fields(method.rule) if isinstance(getattr(method.rule, f.name), float)]
    return method.replace(rule=dataclasses.replace(method.rule, **dict.fromkeys(rates, rate)))


def lively(name, at_most=3, **changes):
    """A preset of at most so many inner steps, with rates and radii so large that second derivatives matter."""
    method = with_rates(fewstep.preset(name), 0.4)
    radii = {f"sharpness__{loop}": 0.2 for loop in ("inner", "outer") if getattr(method.sharpness, loop)}
    return method.replace(steps=min(method.steps, at_most), **radii).replace(**changes)


def exact(method):
    """The method in second order with nothing taken as a constant: its gradient is the slope of its meta-loss."""
    parts = [f.name for f in dataclasses.fields(method) if hasattr(getattr(method, f.name), "detached")]
    return method.replace(order=SecondOrder(), **{f"{part}__detached": False for part in parts})


def sibling(learner, **changes):
    """A learner of its own with the same weights, its method changed in other parts than rule, steps and norm."""
    model, method = copy.deepcopy(learner.model), learner.method.replace(**changes)
    other = fewstep.Learner(model, method, learner.loss, learner.strategy)
    other.load_state_dict(learner.state_dict())
    return other


def directional(learner, batch, progress, names, h=1e-6):
    """Slope of the meta-loss along a random unit direction of some meta-parameters, by a central difference.

    Returns the slope and the direction, {name: tensor}.
    """
    parameters = {name: learner.meta_parameters()[name] for name in names}
    direction = {name: torch.randn_like(p) for name, p in parameters.items()}
    length = torch.stack([d.square().sum() for d in direction.values()]).sum().sqrt()
    direction = {name: d / length for name, d in direction.items()}
    losses = []
    with torch.no_grad():
        for sign in (1, -2, 1):  # forth, back past the start, and home
            for name, p in parameters.items():
                p.add_(direction[name], alpha=sign * h)
            losses.append(learner.meta_gradient(batch, progress).loss.item())
    return (losses[0] - losses[1]) / (2 * h), direction


def relative(a, b):
    """‖a − b‖ / ‖b‖ over two dictionaries of tensors with equal keys."""
    assert a.keys() == b.keys()
    flat = [torch.cat([t.detach().flatten() for t in (x[k] for k in sorted(x))]) for x in (a, b)]
    return float((flat[0] - flat[1]).norm() / flat[1].norm().clamp_min(1e-30))
