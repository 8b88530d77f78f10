"""Modules of every kind that people bring, each with a plain reference: what the any-kind tests run through."""

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import fewstep

STEPS, RATE = 2, 0.3


def rows(seed=0):
    """Two tasks of three classes of vectors, away from mean zero."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 2, 6, 4, generator=g, dtype=torch.float64) + 0.5
    y = torch.arange(3).repeat(2, 2)
    return fewstep.TaskBatch(x[0], y, x[1], y)


def sequences():
    x = rows()
    wide = [torch.stack([t, t.flip(-1), t.cos()], 2) for t in (x.support_x, x.query_x)]
    return fewstep.TaskBatch(wide[0], x.support_y, wide[1], x.query_y)


def words():
    g = torch.Generator().manual_seed(1)
    x = torch.randint(11, (2, 2, 6, 5), generator=g)
    y = torch.arange(3).repeat(2, 2)
    return fewstep.TaskBatch(x[0], y, x[1], y)


def pairs():
    """Two inputs: a vector and a condition."""
    b = rows()
    condition = [t[..., :2].sin() for t in (b.support_x, b.query_x)]
    return fewstep.TaskBatch((b.support_x, condition[0]), b.support_y, (b.query_x, condition[1]), b.query_y)


@dataclass(frozen=True)
class Kind:
    """A kind of module.

    Arguments:
        make: builds one.
        batch: tasks for it.
        straight: the same function with the same names of parameters as `functional_call` can take it, where it cannot
            take the module itself.
        refused: what the message says, where no strategy may take it.
        slope: draws random numbers, or has no reference: finite differences of its meta-loss stand in.
        loops: vmap cannot take it, so that `vectorized` refuses it and `auto` goes on by `loop`.
        onward: gradients flow from pass to pass by other ways than weights, so that `recompute` refuses it.
    """

    make: Callable[[], nn.Module]
    batch: Callable = rows
    straight: Callable[[], nn.Module] | None = None
    refused: str = ""
    slope: bool = False
    loops: bool = False
    onward: bool = False


class Net(nn.Module):
    """Body, tanh, head."""

    def __init__(self, middle=None):
        super().__init__()
        self.body, self.middle, self.head = (
            nn.Linear(4, 5),
            nn.Identity() if middle is None else middle,
            nn.Linear(5, 3),
        )

    def forward(self, x):
        return self.head(torch.tanh(self.middle(self.body(x))))


# --- weights reached by another way ----------------------------------------------------------------------------------


class ByNames(nn.Module):
    """The straight form of those that follow."""

    def __init__(self):
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.randn(size, dtype=torch.float64)) for size in ((5, 4), (3, 5)))
        self.remember()

    def remember(self):
        pass

    def weights(self):
        return self.a, self.b

    def forward(self, x):
        a, b = self.weights()
        return torch.tanh(x @ a.T) @ b.T


class ByList(ByNames):
    def remember(self):
        self.layers = [self.a, self.b]

    def weights(self):
        return self.layers


class ByDict(ByNames):
    def remember(self):
        self.named = dict(self.named_parameters())

    def weights(self):
        return self.named["a"], self.named["b"]


class ByLambda(ByNames):
    def remember(self):
        self.run = lambda x: torch.tanh(x @ self.a.T) @ self.b.T

    def forward(self, x):
        return self.run(x)


class ByPartial(ByNames):
    def remember(self):
        self.first = functools.partial(F.linear, weight=self.a)

    def forward(self, x):
        return torch.tanh(self.first(x)) @ self.b.T


class ByReference(ByNames):
    """Kept as a plain attribute beside the registered one."""

    def remember(self):
        object.__setattr__(self, "kept", (self.a,))

    def weights(self):
        return self.kept[0], self.b


class ByMethod(ByNames):
    def remember(self):
        self.run = self.inside

    def inside(self, x):
        return torch.tanh(x @ self.a.T) @ self.b.T

    def forward(self, x):
        return self.run(x)


class ByView(ByNames):
    """A view taken beforehand, with its graph: no function of the parameter's name."""

    def remember(self):
        self.view = self.a.t()

    def forward(self, x):
        return torch.tanh(x @ self.view) @ self.b.T


class Gained(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head, self.gain = nn.Linear(4, 5), nn.Linear(5, 3), nn.Parameter(torch.full((5,), 1.5))
        self.remember()

    def remember(self):
        pass

    def forward(self, x):
        return self.head(torch.tanh(self.body(x) * self.gain))


class GainedByHook(Gained):
    def remember(self):
        self.body.register_forward_hook(lambda *given: given[2] * self.gain)

    def forward(self, x):
        return self.head(torch.tanh(self.body(x)))


class Outside(nn.Module):
    """A dictionary of registered modules that is not itself registered."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(4, 5), nn.Linear(5, 3)
        self.by_name = {"body": self.body, "head": self.head}

    def forward(self, x):
        return self.by_name["head"](torch.tanh(self.by_name["body"](x)))


class Unregistered(nn.Module):
    """Layers in a plain list: weights that nobody knows by name are constants."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(5, 3)
        self.rest = [nn.Linear(4, 5).double()]

    def forward(self, x):
        return self.head(torch.tanh(self.rest[0](x)))


# --- norms -----------------------------------------------------------------------------------------------------------


class ScaledNorm(nn.BatchNorm1d):
    def __init__(self, features):
        super().__init__(features)
        self.scale = nn.Parameter(torch.tensor(1.7))

    def forward(self, x):
        return self.scale * super().forward(x) + 0.1 * x


class ActiveNorm(nn.BatchNorm1d):
    def forward(self, x):
        return F.elu(super().forward(x))


class ConditionalNorm(nn.BatchNorm1d):
    def __init__(self, features):
        super().__init__(features, affine=False)
        self.gamma, self.beta = nn.Linear(2, features), nn.Linear(2, features)

    def forward(self, x, condition):
        return super().forward(x) * (1 + self.gamma(condition)) + self.beta(condition)


class Conditional(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(4, 5), ConditionalNorm(5), nn.Linear(5, 3)

    def forward(self, x, condition):
        return self.head(torch.tanh(self.norm(self.body(x), condition)))


class FrozenNorm(nn.BatchNorm1d):
    """As detection models have it: a norm by its own statistics, whatever its mode."""

    def __init__(self, features):
        super().__init__(features)
        with torch.no_grad():
            self.running_mean.uniform_(-1, 1)
            self.running_var.uniform_(1, 4)

    def forward(self, x):
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return x * scale + (self.bias - self.running_mean * scale)


class ByHandNorm(nn.Module):
    """Batch norm by the functional call on own buffers, as hand-written MAML networks have it."""

    def __init__(self):
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.ones(5)), nn.Parameter(torch.zeros(5))
        self.register_buffer("mean", torch.zeros(5))
        self.register_buffer("var", torch.ones(5))

    def forward(self, x):
        return F.batch_norm(x, self.mean, self.var, self.gamma, self.beta, training=self.training)


class Instance(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv1d(1, 5, 2), nn.Linear(5, 3)
        self.norm = nn.InstanceNorm1d(5, affine=True, track_running_stats=True)

    def forward(self, x):
        return self.head(torch.tanh(self.norm(self.body(x[:, None])) ** 2).mean(2))


class InputNormaliser(nn.Module):
    """An exponential mean of the inputs, moved by hand."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        if self.training:
            with torch.no_grad():
                self.mean.lerp_(x.mean(0), 0.2)
        return self.linear(torch.tanh(x - self.mean))


class Reassigned(InputNormaliser):
    """The same, with the buffer set anew."""

    def forward(self, x):
        if self.training:
            self.mean = 0.8 * self.mean + 0.2 * x.detach().mean(0)
        return self.linear(torch.tanh(x - self.mean))


class GraphInBuffer(InputNormaliser):
    """A buffer through which gradients flow from pass to pass."""

    def forward(self, x):
        y = self.linear(torch.tanh(x - self.mean))
        self.mean = 0.8 * self.mean + 0.2 * y.mean() + x.detach().mean(0)
        return y


class Counting(nn.Module):
    """A whole number in a buffer, which sets the temperature."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.register_buffer("passes", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        self.passes += 1
        return self.linear(x) / (1 + self.passes)


# --- hooks -----------------------------------------------------------------------------------------------------------


def hooked(module, register):
    register(module)
    return module


def post(module):
    module.register_forward_hook(lambda *given: given[2] + 0.3 * given[2].sin())


def pre(module):
    module.register_forward_pre_hook(lambda _, inputs: (1.2 * inputs[0],))


def with_kwargs(module):
    module.register_forward_hook(lambda *given: given[3] * 0.7, with_kwargs=True)
    module.register_forward_pre_hook(lambda _, inputs, named: ((inputs[0] + 0.1,), named), with_kwargs=True)


def noting(module):
    seen = []
    module.register_forward_hook(lambda *given: seen.append(tuple(given[2].shape)))


def full_backward(module):
    module.register_full_backward_hook(lambda *_: None)


def halving_backward(module):
    module.register_full_backward_hook(lambda *given: tuple(None if g is None else 0.5 * g for g in given[1]))


# --- recurrent, attention, and others --------------------------------------------------------------------------------


class Recurrent(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer, self.head = layer(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.layer(x)[0][:, -1])


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


class Transformer(nn.Module):
    def __init__(self, dropout=0.0):
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=dropout, activation="gelu", batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.encoder(x).mean(1))


class Checkpointed(nn.Module):
    def __init__(self, *more):
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), *more), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(checkpoint(self.body, x, use_reentrant=False))


class Unchecked(Checkpointed):
    def forward(self, x):
        return self.head(self.body(x))


class Words(nn.Module):
    def __init__(self, scale=1.0, **options):
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 5, **options), nn.Linear(5, 3)
        with torch.no_grad():
            self.embed.weight.mul_(scale)

    def forward(self, x):
        return self.head(torch.tanh(self.embed(x).mean(1)))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.into, self.back, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.back.weight = self.into.weight
        self.again = self.name_again()

    def name_again(self):
        return self.into

    def forward(self, x):
        return self.head(torch.tanh(self.back(torch.tanh((self.again or self.into)(torch.tanh(self.into(x)))))))


class TiedPlainly(Tied):
    """`functional_call` leaves another weight behind in a layer of two names."""

    def name_again(self):
        return None


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.head = nn.Parameter(torch.randn(5, 4, dtype=torch.complex128)), nn.Linear(5, 3)

    def double(self):
        self.head.double()
        return self

    def forward(self, x):
        return self.head((x.to(self.weight.dtype) @ self.weight.T).abs())


class Force(nn.Module):
    """The output is a derivative of an energy by the input."""

    def __init__(self):
        super().__init__()
        self.energy, self.head = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)), nn.Linear(4, 3)

    def forward(self, x):
        with torch.enable_grad():
            at = x.detach().clone().requires_grad_()
            (slope,) = torch.autograd.grad(self.energy(at).sum(), at, create_graph=True)
        return self.head(torch.tanh(slope))


class Keeping(Net):
    """Output and features kept in attributes."""

    def __init__(self):
        super().__init__()
        self.features, self.log = None, []

    def forward(self, x):
        self.features = self.body(x)
        self.log = [tuple(self.features.shape)]
        return self.head(torch.tanh(self.features))


def used(model):
    """After a pass of the user's own: attributes hold tensors that carry a graph."""
    model(rows().support_x[0])
    return model


class Caching(Net):
    """Keeps what it made of its weights at the first call: later ones are no function of them."""

    cached = None

    def forward(self, x):
        if self.cached is None:
            self.cached = self.body.weight.detach().square().mean()
        return super().forward(x) * (1 + self.cached)


class NotCaching(Caching):
    def forward(self, x):
        return Net.forward(self, x) * (1 + self.body.weight.detach().square().mean())


class Warming(Net):
    """A counter in an attribute that changes the output."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x) / self.calls


class Logging(Net):
    """A counter in an attribute that does not change the output."""

    def __init__(self):
        super().__init__()
        self.calls, self.sizes = 0, {}

    def forward(self, x):
        self.calls += 1
        self.sizes[len(x)] = self.sizes.get(len(x), 0) + 1
        return super().forward(x)


class NumPyNoise(Net):
    def forward(self, x):
        return super().forward(x) + float(np.random.rand())


class OwnGenerator(Net):
    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(1)

    def __deepcopy__(self, memo):
        other = copy.copy(self)
        other.__dict__["_modules"] = copy.deepcopy(self._modules, memo)
        return other

    def forward(self, x):
        return super().forward(x) + torch.rand(len(x), 1, generator=self.generator, dtype=x.dtype)


class Noisy(Net):
    def forward(self, x):
        return super().forward(x + 0.1 * torch.randn_like(x)) * (0.5 + torch.rand((), dtype=x.dtype))


class Asking(Net):
    """Asks for a value, which vmap cannot tell."""

    def forward(self, x):
        return super().forward(x) if x.sum().item() < 1e9 else super().forward(-x)


class OwnSetting(Net):
    """Sets its own attributes through __setattr__ with side effects, and has slots of its own."""

    def __init__(self):
        super().__init__()
        self.settings = {"scale": 2.0, "inner": [1.0, 2.0]}

    def forward(self, x):
        return super().forward(x) * self.settings["scale"] * self.settings["inner"][1]


class NotCopied(Net):
    """Holds what cannot be copied."""

    def __init__(self):
        super().__init__()
        self.file = (i for i in range(3))


def old_weight_norm():
    return Net(nn.utils.weight_norm(nn.Linear(5, 5)))


def old_spectral_norm():
    return Net(nn.utils.spectral_norm(nn.Linear(5, 5)))


class WithoutModule(nn.Module):
    """What `DataParallel` is on a CPU."""

    def __init__(self):
        super().__init__()
        self.module = Net()

    def forward(self, x):
        return self.module(x)


class DataWriter(InputNormaliser):
    """An exponential mean moved by `.data`, which torch counts as no change."""

    def forward(self, x):
        if self.training:
            self.mean.data.mul_(0.8).add_(0.2 * x.detach().mean(0))
        return self.linear(torch.tanh(x - self.mean))


def compiled(model):
    return torch.compile(model, backend="eager")


def traced(model):
    return torch.jit.trace(model, rows().support_x[0].to(next(model.parameters()).dtype))


def lazy():
    return nn.Sequential(nn.LazyLinear(5), nn.Tanh(), nn.Linear(5, 3))


KINDS = {
    "plain": Kind(Net),
    "list": Kind(ByList, straight=ByNames, loops=True),
    "dict of parameters": Kind(ByDict, straight=ByNames, loops=True),
    "lambda": Kind(ByLambda, straight=ByNames, loops=True),
    "partial": Kind(ByPartial, straight=ByNames, loops=True),
    "kept reference": Kind(ByReference, straight=ByNames, loops=True),
    "bound method": Kind(ByMethod, straight=ByNames),
    "view kept": Kind(ByView, refused="the weight a is reached by another way"),
    "hook closure": Kind(GainedByHook, straight=Gained, loops=True),
    "dict of modules": Kind(Outside),
    "unregistered layer": Kind(Unregistered, slope=True),
    "batch norm": Kind(lambda: Net(nn.BatchNorm1d(5))),
    "norm scaled": Kind(lambda: Net(ScaledNorm(5))),
    "norm with activation": Kind(lambda: Net(ActiveNorm(5))),
    "norm conditional": Kind(Conditional, pairs),
    "norm frozen": Kind(lambda: Net(FrozenNorm(5))),
    "hook on a norm": Kind(lambda: Net(hooked(nn.BatchNorm1d(5), post))),
    "pre hook on a norm": Kind(lambda: Net(hooked(nn.BatchNorm1d(5), pre))),
    "hook on a layer": Kind(lambda: Net(hooked(nn.Linear(5, 5), post))),
    "pre hook on a layer": Kind(lambda: Net(hooked(nn.Linear(5, 5), pre))),
    "hooks with kwargs": Kind(lambda: Net(hooked(nn.Linear(5, 5), with_kwargs))),
    "hook that notes": Kind(lambda: Net(hooked(nn.Linear(5, 5), noting))),
    "full backward hook": Kind(lambda: Net(hooked(nn.Linear(5, 5), full_backward)), loops=True),
    "halving backward hook": Kind(lambda: Net(hooked(nn.Linear(5, 5), halving_backward)), loops=True),
    "weight_norm": Kind(lambda: Net(parametrizations.weight_norm(nn.Linear(5, 5)))),
    "spectral_norm": Kind(lambda: Net(parametrizations.spectral_norm(nn.Linear(5, 5))), loops=True),
    "orthogonal": Kind(lambda: Net(parametrizations.orthogonal(nn.Linear(5, 5)))),
    "old spectral_norm": Kind(old_spectral_norm, loops=True),
    "old weight_norm": Kind(old_weight_norm, straight=old_weight_norm),
    "old spectral_norm, used": Kind(lambda: used(old_spectral_norm().double()), straight=old_spectral_norm, loops=True),
    "batch norm by hand": Kind(lambda: Net(ByHandNorm())),
    "instance norm that tracks": Kind(Instance),
    "input normaliser": Kind(InputNormaliser),
    "input normaliser, reassigned": Kind(Reassigned),
    "input normaliser by .data": Kind(DataWriter, loops=True),
    "graph in a buffer": Kind(GraphInBuffer, onward=True),
    "counter in a buffer": Kind(Counting),
    "lstm": Kind(lambda: Recurrent(nn.LSTM), sequences, loops=True),
    "gru": Kind(lambda: Recurrent(nn.GRU), sequences, loops=True),
    "rnn": Kind(lambda: Recurrent(nn.RNN), sequences, loops=True),
    "checkpointing": Kind(Checkpointed, straight=Unchecked, loops=True),
    "checkpointing around dropout": Kind(
        lambda: Checkpointed(nn.Dropout(0.5)), refused="activation checkpointing around"
    ),
    "max_norm": Kind(lambda: Words(3.0, max_norm=1.0), words, loops=True),
    "sparse": Kind(lambda: Words(sparse=True), words, loops=True),
    "lazy": Kind(lazy, refused=r"0 \(LazyLinear\)"),
    "compiled": Kind(lambda: compiled(Net()), refused="the model is compiled"),
    "compiled layer": Kind(lambda: Net(compiled(nn.Linear(5, 5))), refused="middle is compiled"),
    "scripted": Kind(lambda: torch.jit.script(Net().double()), straight=Net, loops=True),
    "traced": Kind(lambda: traced(Net().double()), straight=Net),
    "tied": Kind(Tied, straight=TiedPlainly),
    "attention": Kind(Attending, sequences),
    "transformer": Kind(Transformer, sequences),
    "transformer with dropout": Kind(lambda: Transformer(0.3), sequences, slope=True, loops=True),
    "complex weights": Kind(Complex),
    "derivative by the input": Kind(Force, loops=True),
    "output kept": Kind(Keeping),
    "output kept, used": Kind(lambda: used(Keeping().double()), straight=Keeping),
    "counter that logs": Kind(Logging),
    "counter that changes the output": Kind(Warming, refused=r"Warming\.calls"),
    "cache": Kind(Caching, straight=NotCaching),
    "numpy randomness": Kind(NumPyNoise, refused="NumPy"),
    "own generator": Kind(OwnGenerator, refused="generator of its own"),
    "data parallel": Kind(lambda: nn.DataParallel(Net()), straight=WithoutModule),
    "dropout": Kind(lambda: Net(nn.Dropout(0.5)), slope=True),
    "rrelu": Kind(lambda: Net(nn.RReLU()), slope=True, loops=True),
    "noise": Kind(Noisy, slope=True),
    "asks for a value": Kind(Asking, loops=True),
    "settings in containers": Kind(OwnSetting),
    "cannot be copied": Kind(NotCopied, straight=Net, loops=True),
}
