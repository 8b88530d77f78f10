"""Modules of every kind under every strategy: the gradient of a plain loop, or one sentence that says what it is."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from kinds import KINDS, RATE, STEPS
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

import fewstep
from fewstep.methods import All


def plain(model, batch):
    """Second-order MAML by `functional_call`: mean query loss, its gradient, and where support passes left buffers."""
    learn = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters() if p.requires_grad}
    rest = {n: t.detach() for n, t in (*model.named_parameters(), *model.named_buffers()) if n not in learn}
    total, moved = 0.0, []

    def one(value, task):
        return tuple(v[task] for v in value) if isinstance(value, tuple) else (value[task],)

    def run(tensors, inputs):
        """The output, and the tensors as the pass left them; it writes to copies."""
        here = {n: t.clone() for n, t in tensors.items()}
        with sdpa_kernel(SDPBackend.MATH):
            return functional_call(model, here, inputs), here

    for task in range(len(batch)):
        now = learn | rest
        for _ in range(STEPS):
            output, now = run(now, one(batch.support_x, task))
            loss = F.cross_entropy(output, batch.support_y[task])
            slopes = torch.autograd.grad(loss, [now[n] for n in learn], create_graph=True, materialize_grads=True)
            now |= {n: now[n] - RATE * g.to_dense() for n, g in zip(learn, slopes, strict=True)}
        moved.append({n: now[n].detach().double() for n in rest if not torch.equal(now[n], rest[n])})
        total = total + F.cross_entropy(run(now, one(batch.query_x, task))[0], batch.query_y[task]) / len(batch)
    gradients = torch.autograd.grad(total, list(learn.values()), materialize_grads=True)
    means = {n: torch.stack([m[n] for m in moved]).mean(0) for n in moved[0]}
    return total.detach(), {n: g.to_dense() for n, g in zip(learn, gradients, strict=True)}, means


def learner_of(model, strategy):
    return fewstep.Learner(
        model, fewstep.preset("maml", steps=STEPS, rule__rate=RATE, adapted=All()), strategy=strategy
    )


def slope_error(model, batch, strategy):
    """How far the gradient is from a slope of the meta-loss, relatively; with equal random numbers."""
    learner = learner_of(model, strategy)

    def result():
        torch.manual_seed(5)
        return learner.meta_gradient(batch)

    gradients, names = result().gradients, dict(learner.meta_parameters())
    g = torch.Generator().manual_seed(1)
    direction = {n: torch.randn(p.shape, generator=g, dtype=p.dtype) for n, p in names.items()}
    start, losses = {n: p.detach().clone() for n, p in names.items()}, []
    for sign in (1, -1):
        with torch.no_grad():
            for n, p in names.items():
                p.copy_(start[n] + sign * 1e-6 * direction[n])
        losses.append(float(result().loss))
    with torch.no_grad():
        for n, p in names.items():
            p.copy_(start[n])
    expected = (losses[0] - losses[1]) / 2e-6
    return abs(sum(float((gradients[n] * direction[n]).sum()) for n in names) - expected) / abs(expected)


def snapshot(model):
    """Everything of a model that a call could change: bits, attributes, modes, hooks."""
    found = {}
    for name, layer in model.named_modules(remove_duplicate=False):
        for key, value in layer.__dict__.items():
            if key not in ("_parameters", "_buffers"):
                found[name, key] = _mark(value)
                continue
            for inner, t in value.items():
                made = t is not None and not nn.parameter.is_lazy(t)
                found[name, inner] = (id(t), t.requires_grad, t.grad is None, _bits(t)) if made else id(t)
    return found


def _mark(value):
    if isinstance(value, dict):
        return tuple((key, _mark(inner)) for key, inner in value.items())
    if isinstance(value, list | tuple):
        return type(value), *map(_mark, value)
    if isinstance(value, torch.Tensor):
        return id(value), _bits(value)
    return value if isinstance(value, int | float | str | None) else id(value)


def _bits(tensor):
    return tensor.detach().numpy().tobytes()


def changed(before, after):
    absent = object()
    return {at for at in before | after if before.get(at, absent) != after.get(at, absent)}


def made(kind):
    torch.manual_seed(0)
    return kind.make().double()


STRATEGIES = ["loop", "vectorized", "recompute"]
TAKEN = [name for name, kind in KINDS.items() if not kind.refused]


@pytest.fixture(autouse=True)
def _torchs_own_warnings():
    """Torch warns of what it will drop some day: hooks for weights, tracing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", TAKEN)
def test_every_kind_has_the_gradient_of_a_plain_loop(name, strategy):
    kind, batch = KINDS[name], KINDS[name].batch()
    model = made(kind)
    before = snapshot(model)
    if {"vectorized": kind.loops, "recompute": kind.onward}.get(strategy):
        with pytest.raises(fewstep.BadInput, match=r"strategy loop|for layer body"):
            learner_of(model, strategy).meta_gradient(batch)
    elif kind.slope:
        assert slope_error(model, batch, strategy) < 1e-6
    else:
        result = learner_of(model, strategy).meta_gradient(batch)
        assert not changed(before, snapshot(model))
        straight = model
        if kind.straight:
            straight = kind.straight().double()
            straight.load_state_dict(model.state_dict(), strict=False)
        loss, gradients, moved = plain(straight if kind.straight else copy.deepcopy(model), batch)
        assert abs(result.loss - loss) < 1e-10
        assert list(result.gradients) == [f"model.{n}" for n in gradients]
        for n, gradient in gradients.items():
            assert (result.gradients[f"model.{n}"] - gradient).abs().max() < 1e-10, n
        own = {n for n in moved if ("running_" not in n and "num_batches" not in n) or "instance" in name}
        assert own <= result.moved.keys()  # what torch's batch norms move comes out as moments instead
        for n in result.moved.keys() & dict(model.named_buffers()).keys():
            assert (result.moved[n] - moved[n]).abs().max() < 1e-10, n
    assert not changed(before, snapshot(model))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.refused])
def test_what_no_strategy_may_take_is_refused_by_name(name, strategy):
    kind = KINDS[name]
    model = made(kind)
    before = snapshot(model)
    for _ in range(2):  # a refusal is no one-time event
        with pytest.raises(fewstep.BadInput, match=kind.refused):
            learner_of(model, strategy).meta_gradient(kind.batch())
    assert not changed(before, snapshot(model))


@pytest.mark.parametrize("name", TAKEN)
def test_every_kind_adapts_and_is_evaluated(name):
    """Auto chooses what the model can take; nothing of the model changes, and two evaluations agree to the bit."""
    kind, batch = KINDS[name], KINDS[name].batch()
    model = made(kind)
    before = snapshot(model)
    learner = learner_of(model, "auto")
    one = [tuple(t[0] for t in x) if isinstance(x, tuple) else x[0] for x in (batch.support_x, batch.query_x)]
    for modes in (True, False):
        torch.manual_seed(1)
        predictor = learner.adapt(one[0], batch.support_y[0])
        first = predictor(one[1])
        assert first.shape == (6, 3)
        assert torch.equal(first, predictor(one[1]))
        torch.manual_seed(1)
        outputs = learner.query_outputs(batch, every_step=True, alone=True)
        assert outputs.shape == (2, STEPS + 2, 6, 3)
        torch.testing.assert_close(outputs[0, -1], first, rtol=1e-9, atol=1e-9)
        assert not changed(before, snapshot(model))
        if modes:
            model.eval()
            before = snapshot(model)
    with torch.no_grad():  # what a training step does to the weights
        for p in model.parameters():
            p.mul_(1.5)
    torch.manual_seed(1)
    assert not torch.equal(learner.adapt(one[0], batch.support_y[0])(one[1]), first)
    torch.manual_seed(1)
    assert learner.meta_gradient(batch).loss.isfinite()
