"""How far float32 meta-gradients are from float64's, and how far those of a plain loop over torch's layers are."""

import contextlib
import copy
from unittest.mock import patch

import torch
from torch.func import functional_call
from torch.nn import functional as F

import fewstep
from fewstep.models import Conv4, native, norm
from fewstep.models.convolution import Conv2d
from fewstep.models.norm import exchange

KINDS = ("drawings", "photographs", "noise")


def task(kind, seed, ways=5, size=16, channels=1):
    """Support images, their labels, and as many queries.

    Drawings have a flat background; photographs are smooth, far from zero, of 256 grey levels.
    """
    g, count = torch.Generator().manual_seed(seed), 2 * ways
    if kind == "drawings":
        tasks = fewstep.strokes(classes=(ways, ways, ways), image_size=size, seed=seed).tasks(ways, shots=1, queries=1)
        batch = tasks.train([0])
        x = torch.cat((batch.support_x[0], batch.query_x[0])).expand(-1, channels, -1, -1)
    else:
        x = torch.randn(count, channels, size, size, generator=g)
    if kind == "photographs":
        light = 0.5 + 0.15 * torch.randn(count, channels, 1, 1, generator=g)
        shapes = torch.randn(count, channels, size // 4, size // 4, generator=g)
        x = light + 0.1 * F.interpolate(shapes, size=(size, size), mode="bicubic") + 0.01 * x
        x = (x.clamp(0, 1) * 255).round() / 255
    y = torch.arange(ways)
    return x[:ways], y, x[ways:], y


class Plain:
    """Conv4 and ResNet12 of torch's functions, as functions of the parameters by name.

    `margin`: how near a choice of a pass was to another one (which of four pixels is kept, which side of zero a number
    lies on), in standard deviations. Two numbers that are equal are none: equal surroundings gave them.
    """

    def __init__(self, model):
        self.model, self.margin = model, float("inf")

    def __call__(self, p, x):
        return (self.conv4 if isinstance(self.model, Conv4) else self.resnet12)(p, x)

    def conv4(self, p, x):
        for i, block in enumerate(self.model.blocks):
            z = F.conv2d(x, p[f"blocks.{i}.conv.weight"], p[f"blocks.{i}.conv.bias"], block.conv.stride, 1)
            x = self.norm(p, f"blocks.{i}.norm", z)
            x = self.activated(self.pooled(x) if self.model.pool else x, block.negative_slope)
        return F.linear(x.flatten(1) if self.model.pool else x.mean((2, 3)), p["head.weight"], p["head.bias"])

    def resnet12(self, p, x):
        for i, block in enumerate(self.model.blocks):
            h, at = x, f"blocks.{i}."
            for j in range(3):
                h = self.activated(h, block.negative_slope) if j else h
                h = self.norm(p, f"{at}norms.{j}", F.conv2d(h, p[f"{at}convs.{j}.weight"], padding=1))
            h = h + self.norm(p, f"{at}shortcut_norm", F.conv2d(x, p[f"{at}shortcut.weight"]))
            x = self.activated(self.pooled(h), block.negative_slope)
        return F.linear(x.mean((2, 3)), p["head.weight"], p["head.bias"])

    def norm(self, p, name, x):
        return F.batch_norm(x, None, None, p[f"{name}.weight"], p[f"{name}.bias"], training=True)

    def pooled(self, x):
        if x.dtype == torch.float64:
            first, second = x.detach().unfold(2, 2, 2).unfold(3, 2, 2).flatten(4).topk(2, -1).values.unbind(-1)
            self._saw(first - second)
        return F.max_pool2d(x, 2)

    def activated(self, x, slope):
        self._saw(x.detach().abs())
        return F.leaky_relu(x, slope)

    def _saw(self, distances):
        apart = distances[distances > 1e-12]
        if distances.dtype == torch.float64 and len(apart):
            self.margin = min(self.margin, float(apart.min()))


def maml(forward, parameters, task, steps=2, rate=0.1):
    """The gradient of a query loss after some steps of gradient descent, in second order, as one vector."""
    support_x, support_y, query_x, query_y = task
    leaves = [p.detach().clone().requires_grad_() for p in parameters.values()]
    fast = dict(zip(parameters, leaves, strict=True))
    for _ in range(steps):
        loss = F.cross_entropy(forward(fast, support_x), support_y)
        gradients = torch.autograd.grad(loss, list(fast.values()), create_graph=True)
        fast = {name: p - rate * g for (name, p), g in zip(fast.items(), gradients, strict=True)}
    gradients = torch.autograd.grad(F.cross_entropy(forward(fast, query_x), query_y), leaves)
    return torch.cat([g.flatten() for g in gradients])


def double(tensors):
    """Numbers in float64, others as they are."""
    return [t.double() if t.is_floating_point() else t for t in tensors]


def first(tensor):
    """A copy with the channels first, by its strides too where there is one channel."""
    return tensor.clone(memory_format=torch.contiguous_format)


def errors(model, tasks, gradients, steps=2, rate=0.1):
    """The relative errors of a task's meta-gradient: of the plain loop, then of each of `gradients`; and the margin.

    Arguments:
        gradients: functions of (model, task) to a vector.
    """
    # Channels first: with the channels last, as the weights say, torch's own batch norm adds up in float32.
    parameters, plain = {name: first(p.detach()) for name, p in model.named_parameters()}, Plain(model)
    exact = maml(plain, {name: p.double() for name, p in parameters.items()}, double(tasks), steps, rate)
    found = [maml(plain, parameters, tasks, steps, rate), *(g(model, tasks) for g in gradients)]
    return [float((g.double() - exact).norm() / exact.norm()) for g in found], plain.margin


def own(model, task, steps=2, rate=0.1):
    """The model's own meta-gradient, by a plain loop, its norms as a pass of fewstep has them."""
    copied = copy.deepcopy(model)
    exchange(copied)
    parameters = dict(model.named_parameters())
    return maml(lambda p, x: functional_call(copied, p, (x,)), parameters, task, steps, rate)


def side_by_side(model, task, steps=2, rate=0.1):
    """The same of two equal tasks under vmap."""
    copied, parameters = copy.deepcopy(model), {name: p.detach() for name, p in model.named_parameters()}
    exchange(copied)

    def loss(p, x, y):
        return F.cross_entropy(functional_call(copied, p, (x,)), y)

    def adapted(p, support_x, support_y, query_x, query_y):
        fast = p
        for _ in range(steps):
            gradients = torch.func.grad(loss)(fast, support_x, support_y)
            fast = {name: fast[name] - rate * gradients[name] for name in fast}
        return loss(fast, query_x, query_y)

    twice = [torch.stack((t, t)) for t in task]
    gradients = torch.func.vmap(torch.func.grad(adapted), (None, 0, 0, 0, 0))(parameters, *twice)
    return torch.cat([g[0].flatten() for g in gradients.values()])


@contextlib.contextmanager
def without_kernels():
    """Torch's operators alone, as on a machine without a compiler."""
    with patch.object(native, "_library", lambda: None):
        yield


@contextlib.contextmanager
def plain_layers():
    """Torch's own layers in a model of ours, channels first, for a method that a plain loop has no lines for."""

    def normalise(x, weight, bias, eps, pool=False):
        y = F.batch_norm(first(x), None, None, weight, bias, training=True, eps=eps)
        var, mean = torch.var_mean(x.detach(), [d for d in range(x.dim()) if d != 1], correction=0)
        return F.max_pool2d(y, 2) if pool else y, mean, var

    convolution = patch.object(Conv2d, "forward", torch.nn.Conv2d.forward)
    with without_kernels(), patch.object(norm, "normalise", normalise), convolution:
        yield
