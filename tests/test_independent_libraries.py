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


def by_higher(network, learner, rates, sx, sy, qx, qy):
    """Query loss, and the tensors whose gradient is the meta-gradient of the network's parameters."""
    second = learner.method.order(0.0) == "second"
    # SGD has one rate a group. A group for each tensor and a tensor for its rate is one rate for each scalar.
    groups = [{"params": [network.get_parameter(name)]} for name in learner.adapted]
    with higher.innerloop_ctx(
        network, torch.optim.SGD(groups, lr=1.0), copy_initial_weights=False, track_higher_grads=second,
        override={"lr": [rates[name] for name in learner.adapted]},
    ) as (model, optimizer):  # fmt: skip
        for _ in range(learner.method.steps):
            optimizer.step(F.cross_entropy(model(sx), sy))
        loss = F.cross_entropy(model(qx), qy)
    # Where it does not track the inner steps, the fast weights are leaves: first order is the gradient there.
    return loss, list(model.parameters(time=0) if second else model.parameters())


def each_gradient(function):
    """A gradient transformation of torchopt: the function of a gradient's place and value."""

    def update(gradients, state, *, params=None, inplace=True):  # noqa: ARG001 (torchopt's signature)
        return tuple(function(i, g) for i, g in enumerate(gradients)), state

    return torchopt.base.GradientTransformation(lambda _: torchopt.base.EmptyState(), update)


def by_torchopt(network, learner, rates, sx, sy, qx, qy):
    """As `by_higher`; what `torchopt.sgd` lacks is chained before it: rates that are tensors, and first order."""
    rule = learner.method.rule
    if isinstance(rule, Sgd):
        transformations = [torchopt.sgd(lr=rule.rate)]
    else:
        transformations = [each_gradient(lambda i, g: rates[learner.adapted[i]] * g), torchopt.sgd(lr=1.0)]
    if learner.method.order(0.0) == "first":
        transformations.insert(0, each_gradient(lambda _, g: g.detach()))
    optimizer = torchopt.FuncOptimizer(torchopt.chain(*transformations))
    fast = tuple(network.get_parameter(name) for name in learner.adapted)

    def loss(x, y):
        with torchopt.nn.reparametrize(network, dict(zip(learner.adapted, fast, strict=True))):
            return F.cross_entropy(network(x), y)

    for _ in range(learner.method.steps):
        fast = optimizer.step(loss(sx, sy), fast)
    return loss(qx, qy), list(network.parameters())


def by_library(library, learner, batch):
    """Loss, and gradients by the names of the learner's meta-parameters: means over tasks."""
    network = Network().double().train()
    network.load_state_dict({**network.state_dict(), **learner.model.state_dict()})
    learned = {n: p.detach().clone().requires_grad_() for n, p in learner.rates.named_parameters()}
    rates = learned or dict.fromkeys(learner.adapted, learner.method.rule.rate)
    names = [f"model.{n}" for n, _ in network.named_parameters()] + [f"rates.{n}" for n in learned]
    mean_loss, means = 0.0, dict.fromkeys(names, 0.0)
    for task in zip(batch.support_x, batch.support_y, batch.query_x, batch.query_y, strict=True):
        loss, start = library(network, learner, rates, *task)
        mean_loss += loss.detach() / len(batch)
        gradients = torch.autograd.grad(loss, [*start, *learned.values()])
        means = {n: means[n] + g / len(batch) for n, g in zip(names, gradients, strict=True)}
    return mean_loss, means


METHODS = {
    "maml": fewstep.preset("maml", steps=3, rule__rate=0.4),
    "fomaml": fewstep.preset("fomaml", steps=3, rule__rate=0.4),
    "anil": fewstep.preset("anil", steps=3, rule__rate=0.4),
    "meta-sgd": fewstep.preset("meta-sgd", steps=2, rule=PerParameter(0.1, 0.6)),
    "maml, norms adapted": fewstep.preset("maml", steps=3, rule__rate=0.4, adapted=All()),
    "fomaml, norms adapted": fewstep.preset("fomaml", steps=3, rule__rate=0.4, adapted=All()),
    "meta-sgd, norms adapted": fewstep.preset("meta-sgd", steps=2, rule=PerParameter(0.1, 0.6), adapted=All()),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("library", [by_higher, by_torchopt], ids=lambda library: library.__name__)
def test_meta_gradients_are_equal(library, method):
    learner, batch = conv_learner(METHODS[method], WAYS, FILTERS), random_labels()
    loss, expected = by_library(library, learner, batch)
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
