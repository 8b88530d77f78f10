"""Batch norm and pooling in one: derivatives against finite differences and against torch's two, tasks under vmap."""

import pytest
import torch
from torch import nn
from torch.autograd import grad, gradcheck, gradgradcheck
from torch.nn import functional as F

from fewstep.models.batch_norm import normalise
from fewstep.models.norm import PooledBatchNorm

EPS = 1e-5
SIGNS = {"rising": [0.7, 1.3, 0.2], "falling": [-0.7, -1.3, -0.2], "mixed": [0.7, -1.3, 0.2]}


def own(x, weight=None, bias=None):
    return normalise(x, weight, bias, EPS, pool=True)[0]


def torchs(x, weight=None, bias=None):
    return F.max_pool2d(F.batch_norm(x, None, None, weight, bias, training=True, eps=EPS), 2)


def tensors(shape, weight, layout=torch.contiguous_format, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x = (2 * torch.randn(shape, generator=generator, dtype=dtype) + 1).contiguous(memory_format=layout)
    bias = torch.randn(shape[1], generator=generator, dtype=dtype)
    return [t.requires_grad_() for t in (x, torch.tensor(weight, dtype=dtype), bias)]


@pytest.mark.parametrize("weight", SIGNS.values(), ids=SIGNS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(4, 4), (2, 5), (3, 3)])
def test_first_and_second_derivatives_match_finite_differences(size, layout, weight):
    inputs = tensors((2, 3, *size), weight, layout)
    assert gradcheck(own, inputs)
    assert gradgradcheck(own, inputs)


def test_third_derivatives_match_finite_differences():
    def first(x, weight):
        return grad(own(x, weight).sin().sum(), (x, weight), create_graph=True)

    assert gradgradcheck(first, tensors((2, 3, 3, 2), SIGNS["mixed"])[:2])


@pytest.mark.parametrize("weight", SIGNS.values(), ids=SIGNS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-4)])
def test_everything_equals_torch(weight, layout, dtype, tolerance):
    inputs = tensors((6, 3, 7, 10), weight, layout, dtype)
    results = []
    for function in (own, torchs):
        torch.manual_seed(0)
        y = function(*inputs)
        a = torch.randn(y.shape, dtype=dtype).requires_grad_()
        first = grad(y, inputs, a, create_graph=True)
        cotangents = [torch.randn(t.shape, dtype=dtype) for t in first]
        results.append([y, *first, *grad(first, (*inputs[:2], a), cotangents)])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)
    y, dx, _, _, ddx, ddweight, dda = results[0]
    assert all(t.is_contiguous(memory_format=layout) for t in (y, dx, ddx, dda))
    assert ddweight.shape == (3,)


def test_statistics_are_those_of_the_whole_map():
    x = tensors((4, 3, 5, 5), SIGNS["mixed"])[0]
    _, mean, var = normalise(x, None, None, EPS, pool=True)
    torch.testing.assert_close(mean, x.mean((0, 2, 3)))
    torch.testing.assert_close(var, x.var((0, 2, 3), correction=0))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_tasks_under_vmap_equal_a_loop(layout):
    def after_a_step(scale, images):
        def loss(scale):
            x = (images * scale["conv"][:, None, None]).tanh()
            return own(x, scale["weight"], scale["bias"]).sin().square().sum()

        gradient = torch.func.grad(loss)(scale)
        return loss({name: scale[name] - 0.1 * gradient[name] for name in scale})

    images = torch.stack([torch.randn(5, 4, 6, 5, dtype=torch.float64).contiguous(memory_format=layout)] * 3)
    images = images + torch.randn(3, 1, 1, 6, 5, dtype=torch.float64)
    scale = {name: torch.randn(3, 4, dtype=torch.float64) for name in ("conv", "weight", "bias")}
    together = torch.func.vmap(torch.func.grad(after_a_step))(scale, images)
    for task in range(3):
        alone = torch.func.grad(after_a_step)({name: value[task] for name, value in scale.items()}, images[task])
        for name, value in alone.items():
            torch.testing.assert_close(together[name][task], value, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("keeps", [True, False])
def test_the_layer_equals_torchs_two(keeps):
    own, torchs = PooledBatchNorm(3, track_running_stats=keeps), nn.BatchNorm2d(3, track_running_stats=keeps)
    x = torch.randn(4, 3, 6, 6)
    torch.testing.assert_close(own(x), F.max_pool2d(torchs(x), 2))
    torch.testing.assert_close(own.eval()(x), F.max_pool2d(torchs.eval()(x), 2))
    assert list(own.state_dict()) == list(torchs.state_dict())


def test_bfloat16_maps_with_float32_weights_differentiate_twice():
    x = torch.randn(8, 3, 4, 4).bfloat16().requires_grad_()
    (dx,) = grad(own(x, torch.ones(3), torch.zeros(3)).sin().sum(), x, create_graph=True)
    (second,) = grad(dx.float().square().sum(), x)
    assert dx.dtype == second.dtype == torch.bfloat16
    assert second.isfinite().all()
