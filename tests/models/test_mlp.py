"""MLP: the sinusoid network of MAML, its initialisations and what it refuses."""

import pytest
import torch
from torch.nn import functional as F

from fewstep.errors import BadInput
from fewstep.models import MLP


def test_default_is_the_sinusoid_network():
    model = MLP()
    names = [f"layers.{i}.{kind}" for i in range(2) for kind in ("weight", "bias")]
    assert list(dict(model.named_parameters())) == [*names, "head.weight", "head.bias"]
    assert sum(p.numel() for p in model.parameters()) == 80 + 1640 + 41
    x = torch.randn(10, 1)
    h = F.relu(F.linear(x, model.layers[0].weight, model.layers[0].bias))
    h = F.relu(F.linear(h, model.layers[1].weight, model.layers[1].bias))
    torch.testing.assert_close(model(x), F.linear(h, model.head.weight, model.head.bias))


@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu", "silu"])
def test_features_beyond_one_dimension_are_flattened(activation):
    model = MLP(inputs=12, outputs=3, hidden=(7,), activation=activation)
    x = torch.randn(5, 3, 2, 2)
    hidden = getattr(torch.nn.functional, activation)(model.layers[0](x.flatten(1)))
    torch.testing.assert_close(model(x), model.head(hidden))
    assert MLP(inputs=2, hidden=())(torch.zeros(4, 2)).shape == (4, 1)


def test_truncated_normal():
    torch.manual_seed(0)
    model = MLP(hidden=(200, 200), init="truncated_normal")
    for linear in (*model.layers, model.head):
        assert linear.weight.abs().max() <= 0.02
        assert not linear.bias.any()
    # A normal cut at two standard deviations keeps 0.88 of the deviation.
    assert model.layers[1].weight.std().item() == pytest.approx(0.0088, rel=0.02)


def test_under_vmap_and_twice_differentiable():
    model = MLP().double()
    weights = {name: p.detach() for name, p in model.named_parameters()}
    x = torch.randn(3, 10, 1).double()

    def meta_gradient(weights, x):
        def loss(weights):
            return torch.func.functional_call(model, weights, (x,)).square().mean()

        steps = torch.func.grad(lambda w: loss({n: w[n] - 0.1 * g for n, g in torch.func.grad(loss)(w).items()}))
        return steps(weights)

    vectorised = torch.func.vmap(meta_gradient, in_dims=(None, 0))(weights, x)
    for name, value in meta_gradient(weights, x[1]).items():
        torch.testing.assert_close(vectorised[name][1], value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "rellu"}, "did you mean 'relu'"),
        ({"init": "truncated"}, "did you mean 'truncated_normal'"),
        ({"hidden": (40, 0)}, "sizes of at least one"),
    ],
)
def test_what_cannot_be_built_is_refused(options, message):
    with pytest.raises(BadInput, match=message):
        MLP(**options)


def test_other_features_are_refused():
    with pytest.raises(BadInput, match="built for 4 features; the examples have 5"):
        MLP(inputs=4)(torch.zeros(2, 5))
