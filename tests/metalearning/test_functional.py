"""A model as a pure function: a body for each pass under way, tied weights in every place, nothing left behind."""

import copy
import gc
import threading
import weakref

import pytest
import torch
from problems import vectors
from torch import nn

import fewstep
from fewstep.metalearning import facts as known_facts
from fewstep.metalearning.functional import Functional
from fewstep.models.norm import Moments


class Watched(nn.Module):
    """Linear and tanh; tells which bodies there are and lets `inside` run in a pass."""

    def __init__(self, inside=lambda: None):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.inside, self.bodies = inside, set()

    def __deepcopy__(self, memo):
        body = copy.copy(self)
        body._modules = copy.deepcopy(self._modules, memo)
        return body

    def forward(self, x):
        self.bodies.add(self)
        y = self.linear(x)
        self.inside()
        return self.linear(y.tanh() @ torch.ones(3, 4))


def tensors(model):
    """Its parameters and buffers, apart from it."""
    return {name: t.detach().clone() for name, t in (*model.named_parameters(), *model.named_buffers())}


def on_threads(work, count):
    threads = [threading.Thread(target=work, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)


def test_there_are_as_many_bodies_as_passes_at_once():
    together = threading.Barrier(1)
    model = Watched(lambda: together.wait(60))
    forward, x = Functional(model), torch.randn(3, 2, 4)
    setting = forward.setting()
    weights = [tensors(Watched()) for _ in range(3)]
    right = [forward(w, each, setting).output for w, each in zip(weights, x, strict=True)]
    found = {}

    def ask(index):
        found[index] = forward(weights[index], x[index], setting).output

    for _ in range(20):  # threads that come and go
        on_threads(ask, 1)
    assert len(model.bodies) == 1
    together = threading.Barrier(3)  # passes only where three are under way at once
    for _ in range(5):
        found.clear()
        on_threads(ask, 3)
        assert [torch.equal(found[i], right[i]) for i in range(3)] == [True] * 3
    assert len(model.bodies) == 3
    assert model not in model.bodies


def test_a_model_that_is_its_own_body_serves_one_pass_at_a_time():
    """It waits for the lock, and is what it was in between."""
    model = Watched()
    busy = []

    def inside():
        busy.append(threading.current_thread())
        assert len(busy) == 1
        busy.pop()

    model.inside = inside
    forward, x = Functional(model, itself=True), torch.randn(4, 2, 4)
    weights, own = [tensors(Watched()) for _ in range(4)], tensors(model)
    right = [Functional(model)(w, each, forward.setting()).output for w, each in zip(weights, x, strict=True)]
    wrong = []

    def ask(index):
        for _ in range(50):
            if not torch.equal(forward(weights[index], x[index], forward.setting()).output, right[index]):
                wrong.append(index)

    on_threads(ask, 4)
    assert not wrong
    assert all(torch.equal(own[name], p) for name, p in model.named_parameters())
    assert model in model.bodies


@pytest.mark.parametrize("itself", [False, True])
def test_a_pass_inside_a_pass_disturbs_neither(itself):
    deeper = []
    model = Watched(lambda: deeper and deeper.pop()())
    forward, x, found = Functional(model, itself), torch.randn(2, 4), []
    setting, outer, inner = forward.setting(), tensors(model), tensors(Watched())
    right = [forward(weights, x, setting).output for weights in (inner, outer)]
    deeper.append(lambda: found.append(forward(inner, x, setting).output))
    found.append(forward(outer, x, setting).output)
    assert [torch.equal(a, b) for a, b in zip(found, right, strict=True)] == [True, True]


@pytest.mark.parametrize("itself", [False, True])
@pytest.mark.parametrize("call", ["by its own statistics", "by given ones", "with an error"])
def test_a_pass_keeps_none_of_its_tensors_alive(call, itself):
    """Neither weights nor input nor statistics."""
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    forward, weights, x = Functional(model, itself), tensors(model), torch.randn(5, 9 if call == "with an error" else 4)
    setting, statistics = forward.setting(), {"1": Moments(torch.zeros(3), torch.ones(3))}
    if call == "by its own statistics":
        statistics = forward(weights, x, setting, differentiable=True).moments
    elif call == "by given ones":
        forward(weights, x, setting, given=statistics)
    else:
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            forward(weights, x, setting, given=statistics)
    alive = [weakref.ref(t) for t in (*weights.values(), x, *statistics["1"])]
    del weights, x, statistics
    gc.collect()
    assert [ref() for ref in alive] == [None] * len(alive)


def test_a_lasting_body_lives_as_long_as_the_graph_of_its_pass():
    model = Watched()
    forward, weights = Functional(model, lasting=True), tensors(model)
    weights["linear.weight"].requires_grad_()
    output = forward(weights, torch.randn(2, 4), forward.setting()).output
    forward(weights, torch.randn(2, 4), forward.setting())
    assert len(model.bodies) == 2  # none is used again
    alive = [weakref.ref(body) for body in model.bodies]
    model.bodies.clear()
    del output
    gc.collect()
    assert [ref() for ref in alive] == [None, None]


def test_given_statistics_hold_for_one_pass():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    forward, x = Functional(model), torch.randn(5, 4)
    weights, setting = tensors(model), forward.setting()
    plain, seen, _ = forward(weights, x, setting)
    mean, var = (torch.randn(3), torch.rand(3) + 1)
    given = forward(weights, x, setting, given={"1": Moments(mean, var)})
    assert not given.moments  # none of the batch's own
    torch.testing.assert_close(given.output, (model[0](x) - mean) / (var + 1e-5).sqrt())
    assert torch.equal(forward(weights, x, setting).output, plain)
    torch.testing.assert_close(seen["1"].mean, model[0](x).mean(0))
    torch.testing.assert_close(seen["1"].var, model[0](x).var(0, unbiased=False))


def test_a_setting_holds_for_one_pass():
    """Modes and frozen norms of one pass are not those of the next, in one body and in the model itself."""
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
    with torch.no_grad():
        model[1].running_mean.fill_(3.0)
    x, own = torch.randn(5, 4), copy.deepcopy(model).eval()
    for itself in (False, True):
        forward = Functional(model, itself)
        weights, training, evaluation = tensors(model), forward.setting(), forward.setting(False, statistics="frozen")
        known_facts.facts(forward, training, weights, x)
        known_facts.facts(forward, evaluation, weights, x)
        for _ in range(2):
            assert (forward(weights, x, training, keys=(1,)).output == 0).any()
            found = forward(weights, x, evaluation)
            torch.testing.assert_close(found.output, own(x))
            assert not found.moments
        assert all(layer.training for layer in model.modules())


class Tied(nn.Module):
    """One weight under two names, one layer under two names."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(3, 3), nn.Linear(3, 3), nn.BatchNorm1d(3)
        self.second.weight = self.first.weight
        self.again, self.norm_again = self.first, self.norm

    def forward(self, x):
        return self.norm_again(self.again(self.norm(self.second(self.first(x)))))


@pytest.mark.parametrize("itself", [False, True])
def test_what_is_tied_is_tied_in_a_pass(itself):
    model = Tied().train()
    other, x = copy.deepcopy(model), torch.randn(5, 3)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter))
    forward = Functional(model, itself)
    output, seen, _ = forward(dict(other.named_parameters()), x, forward.setting())
    torch.testing.assert_close(output, other(x))
    assert list(seen) == ["norm"]


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy])
def test_a_copy_answers_too(copied):
    model = nn.Linear(4, 3)
    forward, x = Functional(model), torch.randn(2, 4)
    expected = forward(tensors(model), x, forward.setting()).output
    assert torch.equal(copied(forward)(tensors(model), x, forward.setting()).output, expected)


class Moving(nn.Module):
    """A mean of its inputs, and the last input in an attribute."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.register_buffer("mean", torch.zeros(4))
        self.last = None

    def forward(self, x):
        self.mean.lerp_(x.detach().mean(0), 0.5)
        self.last = x
        return self.linear(x - self.mean)


@pytest.mark.parametrize("itself", [False, True])
def test_what_a_pass_moves_comes_out_and_nothing_else_changes(itself):
    model = Moving()
    forward, weights, x = Functional(model, itself), tensors(model), torch.randn(5, 4)
    setting, before = forward.setting(), tensors(model)
    known_facts.facts(forward, setting, weights, x)
    assert forward.known(setting).moves == {"mean"}
    for _ in range(2):
        moved = forward(weights, x, setting).moved
        torch.testing.assert_close(moved, {"mean": x.mean(0) / 2})
    assert model.last is None
    for now in (weights, tensors(model)):
        assert all(torch.equal(before[name], t) for name, t in now.items())
    alive = weakref.ref(x)
    del x, moved
    gc.collect()
    assert alive() is None


def test_a_model_is_proven_on_other_weights_and_once(caplog):
    """A copy that answers alike on the model's own weights may still be none of it; the proof costs one batch."""

    class ByList(nn.Module):
        passes = 0

        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.randn(3, 4, dtype=torch.float64))
            self.kept = [self.a]

        def forward(self, x):
            ByList.passes += 1
            return x @ self.kept[0].T

    learner, batch = fewstep.Learner(ByList(), fewstep.preset("maml"), strategy="loop"), vectors()
    learner.meta_gradient(batch)
    first, ByList.passes = ByList.passes, 0
    learner.meta_gradient(batch)
    assert ByList.passes < first
    assert [record.name for record in caplog.records] == ["fewstep"]
    assert "passes run in the model itself" in caplog.text
    assert "a (of ByList)" in caplog.text
    assert learner._forward.itself
    assert learner.threads(batch) == 1


def test_a_model_that_fails_in_the_proof_fails_with_its_own_error():
    learner = fewstep.Learner(nn.Linear(5, 3).double(), fewstep.preset("maml"))
    for _ in range(2):
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            learner.meta_gradient(vectors(features=4))


def test_data_that_proves_nothing_leaves_the_proof_to_the_next_batch():
    """A NaN equals nothing."""

    class ByLambda(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3).double()
            self.run = lambda x: self.linear(x)

        def forward(self, x):
            return self.run(x)

    learner, batch = fewstep.Learner(ByLambda(), fewstep.preset("maml"), strategy="loop"), vectors()
    broken = vectors()
    broken.support_x[0, 0, 0] = float("nan")
    learner.meta_gradient(broken)
    assert not learner._forward.itself
    assert all(g.abs().max() > 0 for g in learner.meta_gradient(batch).gradients.values())
    assert learner._forward.itself
