"""Small problems that the tests share."""

from dataclasses import fields

import torch
import torch.nn.functional as F

import fewstep
from fewstep.methods import SecondOrder
from fewstep.models import MLP, Conv4


def exact(method):
    """The method with nothing taken as a constant: its meta-gradient is the derivative of its meta-loss."""
    parts = [f.name for f in fields(method) if hasattr(getattr(method, f.name), "detached")]
    return method.replace(order=SecondOrder(), sharpness__outer=0.0, **{f"{part}__detached": False for part in parts})


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


def conv_learner(method, ways=3, filters=3, size=16, strategy="auto", **options):
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


def relative(a, b):
    """‖a − b‖ / ‖b‖ over two dictionaries of tensors with equal keys."""
    assert a.keys() == b.keys()
    flat = [torch.cat([t.detach().flatten() for t in (x[k] for k in sorted(x))]) for x in (a, b)]
    return float((flat[0] - flat[1]).norm() / flat[1].norm().clamp_min(1e-30))
