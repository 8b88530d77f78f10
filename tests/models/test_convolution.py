"""Convolution: derivatives against finite differences and against torch's, tasks under vmap against a loop."""

from itertools import product

import pytest
import torch
from torch import nn
from torch.autograd import grad, gradcheck, gradgradcheck

from fewstep.models.convolution import Conv2d

KINDS = {"same": (2, 3, 3, 1, 1, True), "stride": (2, 3, 3, 2, 1, True), "bare": (1, 2, 2, 1, 0, False)}


def layers(kind, layout=torch.channels_last):
    """Ours and torch's with the same weights."""
    channels, filters, size, stride, padding, bias = KINDS[kind]
    torch.manual_seed(0)
    own = Conv2d(channels, filters, size, stride, padding, bias).double().to(memory_format=layout)
    theirs = nn.Conv2d(channels, filters, size, stride, padding, bias=bias).double()
    theirs.load_state_dict(own.state_dict())
    return own, theirs


def function(layer):
    names = [name for name, _ in layer.named_parameters()]

    def apply(x, *weights):
        return torch.func.functional_call(layer, dict(zip(names, weights, strict=True)), (x,))

    return apply


def inputs(layer, shape=(2, 5, 4)):
    x = torch.randn(2, layer.in_channels, *shape[1:], dtype=torch.float64).requires_grad_()
    return [x, *(p.detach().requires_grad_() for p in layer.parameters())]


@pytest.mark.parametrize("kind", KINDS)
def test_first_and_second_derivatives_match_finite_differences(kind):
    own, _ = layers(kind)
    assert gradcheck(function(own), inputs(own))
    assert gradgradcheck(function(own), inputs(own))


@pytest.mark.parametrize("wanted", [which for which in product([True, False], repeat=3) if any(which)])
def test_any_of_the_inputs_may_be_constant(wanted):
    own, _ = layers("same")
    some = [t.requires_grad_(on) for t, on in zip(inputs(own), wanted, strict=True)]
    assert gradgradcheck(function(own), some)


def test_third_derivatives_match_finite_differences():
    own, _ = layers("same")

    def first(x, weight, bias):
        return grad(function(own)(x, weight, bias).sin().sum(), (x, weight, bias), create_graph=True)

    assert gradgradcheck(first, inputs(own, (2, 3, 2)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_everything_equals_torch(kind, layout):
    results = []
    for layer in layers(kind, layout):
        torch.manual_seed(1)
        some = inputs(layer)
        y = function(layer)(*some)
        a = torch.randn(y.shape, dtype=y.dtype).requires_grad_()
        first = grad(y, some, a, create_graph=True)
        second = grad(first, (*some[:2], a), [torch.randn(t.shape, dtype=t.dtype) for t in first])
        results.append([y, *first, *second])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shared", [True, False])
def test_tasks_under_vmap_equal_a_loop(kind, shared):
    own, _ = layers(kind)
    apply = function(own)

    def after_a_step(weights, x):
        def loss(weights):
            return apply(x.tanh(), *weights).sin().square().sum()

        gradient = torch.func.grad(loss)(weights)
        return loss([w - 0.1 * g for w, g in zip(weights, gradient, strict=True)])

    both = torch.func.grad(after_a_step, argnums=(0, 1))
    x = torch.randn(3, 2, own.in_channels, 5, 4, dtype=torch.float64)
    weights = [p.detach() if shared else torch.randn(3, *p.shape, dtype=torch.float64) for p in own.parameters()]
    together, of_x = torch.func.vmap(both, in_dims=(None if shared else 0, 0))(weights, x)
    for task in range(3):
        alone, alone_x = both([w if shared else w[task] for w in weights], x[task])
        torch.testing.assert_close(of_x[task], alone_x, rtol=1e-10, atol=1e-12)
        for mine, theirs in zip(together, alone, strict=True):
            torch.testing.assert_close(mine[task], theirs, rtol=1e-10, atol=1e-12)


def test_vmap_inside_vmap_equals_loops():
    own, _ = layers("same")
    apply = function(own)
    weights = [torch.randn(2, 3, *p.shape, dtype=torch.float64) for p in own.parameters()]
    x = torch.randn(2, 3, 2, 2, 4, 5, dtype=torch.float64)
    nested = torch.func.vmap(torch.func.vmap(apply))(x, *weights)
    for i, j in product(range(2), range(3)):
        torch.testing.assert_close(nested[i, j], apply(x[i, j], *(w[i, j] for w in weights)))


def test_maps_of_tasks_lie_channels_last_without_copies():
    own = Conv2d(4, 8, 3, padding=1)
    apply = function(own)
    weights = [torch.randn(3, *p.shape) for p in own.parameters()]
    y = torch.func.vmap(apply)(torch.randn(3, 5, 4, 6, 6), *weights)
    assert y.movedim(0, 1).flatten(1, 2).is_contiguous(memory_format=torch.channels_last)
