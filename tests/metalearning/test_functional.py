"""A model as a pure function: a twin for each call under way, tied weights in every place, nothing left behind."""

import copy
import gc
import threading
import weakref

import pytest
import torch
from torch import nn

from fewstep.metalearning.functional import Functional, Moments


class Watched(nn.Module):
    """Linear and tanh; tells which twins there are and lets `inside` run in a call."""

    def __init__(self, inside=lambda: None):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.inside, self.twins = inside, set()

    def __deepcopy__(self, memo):
        twin = copy.copy(self)
        twin._modules = copy.deepcopy(self._modules, memo)
        return twin

    def forward(self, x):
        self.twins.add(self)
        y = self.linear(x)
        self.inside()
        return self.linear(y.tanh() @ torch.ones(3, 4))


def parameters(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def on_threads(work, count):
    threads = [threading.Thread(target=work, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)


def test_there_are_as_many_twins_as_calls_at_once():
    together = threading.Barrier(1)
    model = Watched(lambda: together.wait(60))
    forward, x = Functional(model), torch.randn(3, 2, 4)
    weights = [parameters(Watched()) for _ in range(3)]
    right = [forward(w, each)[0] for w, each in zip(weights, x, strict=True)]
    found = {}

    def ask(index):
        found[index] = forward(weights[index], x[index])[0]

    for _ in range(20):  # threads that come and go
        on_threads(ask, 1)
    assert len(model.twins) == 1
    together = threading.Barrier(3)  # passes only where three are under way at once
    for _ in range(5):
        found.clear()
        on_threads(ask, 3)
        assert [torch.equal(found[i], right[i]) for i in range(3)] == [True] * 3
    assert len(model.twins) == 3


def test_a_call_inside_a_call_disturbs_neither():
    deeper = []
    model = Watched(lambda: deeper and deeper.pop()())
    forward, x, found = Functional(model), torch.randn(2, 4), []
    outer, inner = parameters(model), parameters(Watched())
    right = [forward(weights, x)[0] for weights in (inner, outer)]
    deeper.append(lambda: found.append(forward(inner, x)[0]))
    found.append(forward(outer, x)[0])
    assert [torch.equal(a, b) for a, b in zip(found, right, strict=True)] == [True, True]


@pytest.mark.parametrize("call", ["by its own statistics", "by given ones", "with an error"])
def test_a_call_keeps_none_of_its_tensors_alive(call):
    """Neither weights nor input nor statistics."""
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    forward, weights, x = Functional(model), parameters(model), torch.randn(5, 9 if call == "with an error" else 4)
    statistics = {"1": Moments(torch.zeros(3), torch.ones(3))}
    if call == "by its own statistics":
        _, statistics = forward(weights, x, differentiable=True)
    elif call == "by given ones":
        forward(weights, x, given=statistics)
    else:
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            forward(weights, x, given=statistics)
    alive = [weakref.ref(t) for t in (*weights.values(), x, *statistics["1"])]
    del weights, x, statistics
    gc.collect()
    assert [ref() for ref in alive] == [None] * len(alive)


def test_given_statistics_hold_for_one_call():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    forward, x = Functional(model), torch.randn(5, 4)
    plain, seen = forward(parameters(model), x)
    other = {name: moments._replace(mean=moments.mean + 1) for name, moments in seen.items()}
    assert not torch.equal(forward(parameters(model), x, given=other)[0], plain)
    assert torch.equal(forward(parameters(model), x)[0], plain)


class Tied(nn.Module):
    """One weight under two names, one layer under two names."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(3, 3), nn.Linear(3, 3), nn.BatchNorm1d(3)
        self.second.weight = self.first.weight
        self.again, self.norm_again = self.first, self.norm

    def forward(self, x):
        return self.norm_again(self.again(self.norm(self.second(self.first(x)))))


def test_what_is_tied_is_tied_in_a_call():
    model = Tied().train()
    other, x = copy.deepcopy(model), torch.randn(5, 3)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter))
    forward = Functional(model)
    output, seen = forward(dict(other.named_parameters()), x)
    torch.testing.assert_close(output, other(x))
    assert list(seen) == ["norm"]


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy])
def test_a_copy_answers_too(copied):
    model = nn.Linear(4, 3)
    forward, x = Functional(model), torch.randn(2, 4)
    expected = forward(parameters(model), x)[0]
    assert torch.equal(copied(forward)(parameters(model), x)[0], expected)
