"""The meta-gradient against two libraries of other authors, `higher` and `torchopt`.

Each runs its own functional model and its own differentiable optimiser on a Conv4 of torch's own modules in training
mode, whose batch norms keep running statistics and normalise by their batch. Neither knows anything of fewstep.
"""

from collections import OrderedDict

import higher
import pytest
import torch
import torch.nn.functional as F
import torchopt
from problems import conv_learner
from torch import nn

import fewstep
from fewstep.methods import All, PerParameter, Sgd

WAYS, FILTERS = 3, 4


class Network(nn.Module):
    """Conv4 for images of 16×16 with parameters of the same names, in the order of its paper."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(
                OrderedDict(
                    conv=nn.Conv2d(FILTERS if i else 1, FILTERS, 3, padding=1),
                    norm=nn.BatchNorm2d(FILTERS),
                    activation=nn.LeakyReLU(0.01),
                    pool=nn.MaxPool2d(2),
                )
            )
            for i in range(4)
        )
        self.head = nn.Linear(FILTERS, WAYS)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x.flatten(1))


def random_labels(tasks=3, support=6, query=9):
    """Noise images; a class may be missing from a support set."""
    x, y = torch.randn(tasks, support + query, 1, 16, 16).double(), torch.randint(WAYS, (tasks, support + query))
    return fewstep.TaskBatch(x[:, :support], y[:, :support], x[:, support:], y[:, support:])


def by_higher(network, method, rates, sx, sy, qx, qy):
    """Query loss, and the tensors whose gradient is the meta-gradient of the network's parameters.

    The inner loop adapts the parameters that have a rate, {name: number or tensor}.
    """
    second = method.order(0.0) == "second"
    # SGD has one rate a group. A group for each tensor and a tensor for its rate is one rate for each scalar.
    groups = [{"params": [network.get_parameter(name)]} for name in rates]
    with higher.innerloop_ctx(
        network, torch.optim.SGD(groups, lr=1.0), copy_initial_weights=False, track_higher_grads=second,
        override={"lr": list(rates.values())},
    ) as (model, optimizer):  # fmt: skip
        for _ in range(method.steps):
            optimizer.step(F.cross_entropy(model(sx), sy))
        loss = F.cross_entropy(model(qx), qy)
    # Where it does not track the inner steps, the fast weights are leaves: first order is the gradient there.
    return loss, list(model.parameters(time=0) if second else model.parameters())


def each_gradient(function):
    """A gradient transformation of torchopt: the function of a gradient's place and value."""

    def update(gradients, state, *, params=None, inplace=True):  # noqa: ARG001 (torchopt's signature)
        return tuple(function(i, g) for i, g in enumerate(gradients)), state

    return torchopt.base.GradientTransformation(lambda _: torchopt.base.EmptyState(), update)


def by_torchopt(network, method, rates, sx, sy, qx, qy):
    """As `by_higher`; what `torchopt.sgd` lacks is chained before it: rates that are tensors, and first order."""
    each_rate = list(rates.values())
    if isinstance(method.rule, Sgd):
        transformations = [torchopt.sgd(lr=method.rule.rate)]
    else:
        transformations = [each_gradient(lambda i, g: each_rate[i] * g), torchopt.sgd(lr=1.0)]
    if method.order(0.0) == "first":
        transformations.insert(0, each_gradient(lambda _, g: g.detach()))
    optimizer = torchopt.FuncOptimizer(torchopt.chain(*transformations))
    fast = tuple(network.get_parameter(name) for name in rates)

    def loss(x, y):
        with torchopt.nn.reparametrize(network, dict(zip(rates, fast, strict=True))):
            return F.cross_entropy(network(x), y)

    for _ in range(method.steps):
        fast = optimizer.step(loss(sx, sy), fast)
    return loss(qx, qy), list(network.parameters())


def by_library(library, learner, adapted, batch):
    """Loss, and gradients by the names of the learner's meta-parameters: means over tasks."""
    method = learner.method
    network = Network().double().train()
    network.load_state_dict({**network.state_dict(), **learner.model.state_dict()})
    learned = {n: p.detach().clone().requires_grad_() for n, p in learner.rates.named_parameters()}
    parameters = [n for n, _ in network.named_parameters()]
    rates = {n: learned[n] if learned else method.rule.rate for n in parameters if adapted(n)}
    names = [f"model.{n}" for n in parameters] + [f"rates.{n}" for n in learned]
    mean_loss, means = 0.0, dict.fromkeys(names, 0.0)
    for task in zip(batch.support_x, batch.support_y, batch.query_x, batch.query_y, strict=True):
        loss, start = library(network, method, rates, *task)
        mean_loss += loss.detach() / len(batch)
        gradients = torch.autograd.grad(loss, [*start, *learned.values()])
        means = {n: means[n] + g / len(batch) for n, g in zip(names, gradients, strict=True)}
    return mean_loss, means


MAML, FOMAML, ANIL = (fewstep.preset(name, steps=3, rule__rate=0.4) for name in ("maml", "fomaml", "anil"))
META_SGD = fewstep.preset("meta-sgd", steps=2, rule=PerParameter(0.1, 0.6))


def all_but_norms(name):
    return ".norm." not in name


def everything(_):
    return True


METHODS = {  # and the names that the inner loop is to adapt
    "maml": (MAML, all_but_norms),
    "fomaml": (FOMAML, all_but_norms),
    "anil": (ANIL, lambda name: name.startswith("head.")),
    "meta-sgd": (META_SGD, all_but_norms),
    "maml, norms adapted": (MAML.replace(adapted=All()), everything),
    "fomaml, norms adapted": (FOMAML.replace(adapted=All()), everything),
    "meta-sgd, norms adapted": (META_SGD.replace(adapted=All()), everything),
}


@pytest.mark.parametrize(("method", "adapted"), METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("library", [by_higher, by_torchopt], ids=lambda library: library.__name__)
def test_meta_gradients_are_equal(library, method, adapted):
    learner, batch = conv_learner(method, WAYS, FILTERS), random_labels()
    loss, expected = by_library(library, learner, adapted, batch)
    for strategy in ("loop", "vectorized"):
        result = learner.meta_gradient(batch, strategy=strategy)
        assert result.gradients.keys() == expected.keys()
        torch.testing.assert_close(result.loss, loss, rtol=1e-10, atol=0.0)
        for name, gradient in result.gradients.items():
            # A convolution's bias in front of a batch norm has no gradient but rounding.
            bound = 1e-8 * min(1.0, float(expected[name].abs().max())) + 1e-14
            torch.testing.assert_close(
                gradient, expected[name], rtol=0.0, atol=bound, msg=lambda m, n=name: f"{n}: {m}"
            )
