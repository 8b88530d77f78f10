"""Batch norm: derivatives against finite differences and against torch, tasks under vmap against a loop."""

from itertools import product

import pytest
import torch
from torch.autograd import grad, gradcheck, gradgradcheck
from torch.nn import functional as F

from fewstep.errors import BadInput
from fewstep.models.batch_norm import apply_statistics, batch_statistics, normalise

EPS = 1e-5
SHAPES = [(5, 3), (4, 2, 3), (2, 3, 4, 3), (1, 2, 2, 2), (2, 2, 2, 1, 3)]


def own(x, weight=None, bias=None):
    return normalise(x, weight, bias, EPS)[0]


def torchs(x, weight=None, bias=None):
    return F.batch_norm(x, None, None, weight, bias, training=True, eps=EPS)


def tensors(shape, *, layout=torch.contiguous_format, dtype=torch.float64, seed=0):
    """Maps far from standard, and a scale and shift of their channels."""
    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.randn(shape, generator=generator, dtype=dtype) + 1
    weight, bias = torch.randn(2, shape[1], generator=generator, dtype=dtype)
    return [t.requires_grad_() for t in (x.contiguous(memory_format=layout), weight, bias)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("affine", ["both", "weight", "bias", "none", "zero"])
def test_first_and_second_derivatives_match_finite_differences(shape, affine):
    x, weight, bias = tensors(shape)
    if affine == "zero":
        weight = torch.zeros_like(weight).requires_grad_()
    arguments = {"both": (x, weight, bias), "zero": (x, weight, bias), "weight": (x, weight), "none": (x,)}
    function = (lambda x, bias: own(x, None, bias)) if affine == "bias" else own
    inputs = arguments.get(affine, (x, bias))
    assert gradcheck(function, inputs)
    assert gradgradcheck(function, inputs)


@pytest.mark.parametrize("shape", [(5, 3), (2, 2, 2, 2)])
def test_third_derivatives_match_finite_differences(shape):
    def first(x, weight):
        return grad(own(x, weight).sin().sum(), (x, weight), create_graph=True)

    assert gradgradcheck(first, tensors(shape)[:2])


@pytest.mark.parametrize("wanted", [which for which in product([True, False], repeat=3) if any(which)])
def test_any_of_the_inputs_may_be_constant(wanted):
    inputs = [t.requires_grad_(on) for t, on in zip(tensors((3, 2, 2, 2)), wanted, strict=True)]
    assert gradgradcheck(own, inputs)


def derivatives(function, inputs, directions):
    """Output, first derivatives along a direction, and second derivatives along further ones."""
    y = function(*inputs)
    first = grad(y, inputs, directions[0], create_graph=True)
    second = grad(first, (*inputs[:2], directions[0]), directions[1:])
    return [y, *first, *second]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-4)])
def test_output_and_both_derivatives_equal_torch(layout, dtype, tolerance):
    inputs = tensors((6, 8, 7, 5), layout=layout, dtype=dtype)
    directions = [torch.randn_like(t, requires_grad=True) for t in (inputs[0], *inputs)]
    for mine, theirs in zip(*(derivatives(f, inputs, directions) for f in (own, torchs)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("given", [torch.contiguous_format, torch.channels_last])
def test_maps_and_gradients_keep_the_memory_layout_of_the_input(layout, given):
    x, weight, bias = tensors((3, 4, 5, 6), layout=layout)
    direction = torch.randn(3, 4, 5, 6, dtype=torch.float64).contiguous(memory_format=given).requires_grad_()
    y = own(x, weight, bias)
    (dx,) = grad(y, x, direction, create_graph=True)
    second = grad(dx, (x, direction), torch.randn_like(x).contiguous(memory_format=given))
    assert all(t.is_contiguous(memory_format=layout) for t in (y, dx, *second))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_statistics_are_those_of_the_input_and_constant(dtype):
    x = (3 * torch.randn(16, 4, 8, dtype=torch.float64) + 2).to(dtype).requires_grad_()
    y, mean, var = normalise(x, None, None, EPS)
    tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(mean.double(), x.double().mean((0, 2)), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(var.double(), x.double().var((0, 2), correction=0), rtol=tolerance, atol=tolerance)
    assert y.requires_grad
    assert not mean.requires_grad
    assert not var.requires_grad


def test_bfloat16_maps_with_float32_weights_differentiate_twice():
    x = torch.randn(8, 3, 4, 4).bfloat16().requires_grad_()
    (dx,) = grad(own(x, torch.ones(3), torch.zeros(3)).sin().sum(), x, create_graph=True)
    (second,) = grad(dx.float().square().sum(), x)
    assert dx.dtype == second.dtype == torch.bfloat16
    assert second.isfinite().all()


def task_gradient(scale, images, norm=own):
    """The meta-gradient of one task: a step on its loss inside, the loss after it outside."""

    def loss(scale):
        return norm((images * scale["conv"][:, None, None]).tanh(), scale["weight"], scale["bias"]).sin().square().sum()

    def after_a_step(scale):
        gradient = torch.func.grad(loss)(scale)
        return loss({name: scale[name] - 0.1 * gradient[name] for name in scale})

    return torch.func.grad(after_a_step)(scale)


@pytest.mark.parametrize("size", [(), (5,), (3, 4)])
@pytest.mark.parametrize("shared", [True, False])
def test_tasks_under_vmap_equal_a_loop(size, shared):
    if size != (3, 4):  # the scale of `conv` is written for maps of two dimensions

        def norm(x, *affine):
            return own(x.flatten(2) if size else x.flatten(2).mean(2), *affine).unsqueeze(-1)
    else:
        norm = own
    images = torch.randn(3, 5, 4, 3, 4, dtype=torch.float64)
    scale = {name: torch.randn(*([] if shared else [3]), 4, dtype=torch.float64) for name in ("conv", "weight", "bias")}

    def one(scale, images):
        return task_gradient(scale, images, norm)

    vectorised = torch.func.vmap(one, in_dims=(None if shared else 0, 0))(scale, images)
    for task in range(3):
        looped = one(scale if shared else {name: value[task] for name, value in scale.items()}, images[task])
        for name, value in looped.items():
            torch.testing.assert_close(vectorised[name][task], value, rtol=1e-10, atol=1e-12)


def test_the_task_dimension_may_be_anywhere_and_images_shared():
    images = torch.randn(5, 4, 3, 2, 4, dtype=torch.float64)  # tasks third
    weight = torch.randn(4, 3, dtype=torch.float64)
    vectorised = torch.func.vmap(own, in_dims=(2, 1))(images, weight)
    alone = torch.func.vmap(own, in_dims=(None, 1))(images[:, :, 0], weight)
    for task in range(3):
        torch.testing.assert_close(vectorised[task], own(images[:, :, task], weight[:, task]))
        torch.testing.assert_close(alone[task], own(images[:, :, 0], weight[:, task]))


def test_transformed_gradient_equals_torch():
    scale = {name: torch.randn(4, dtype=torch.float64) for name in ("conv", "weight", "bias")}
    images = torch.randn(5, 4, 3, 4, dtype=torch.float64)
    mine, theirs = task_gradient(scale, images), task_gradient(scale, images, torchs)
    for name in scale:
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-10, atol=1e-12)


def test_given_statistics_reproduce_batch_norm_and_are_differentiable():
    x, weight, bias = tensors((3, 2, 2, 2))
    torch.testing.assert_close(
        apply_statistics(x, *batch_statistics(x), weight, bias, EPS), own(x, weight, bias), rtol=1e-12, atol=1e-12
    )
    mean, var = torch.randn(2, dtype=torch.float64), torch.rand(2, dtype=torch.float64) + 0.5
    inputs = (x, mean.requires_grad_(), var.requires_grad_(), weight, bias)
    assert gradcheck(lambda *t: apply_statistics(*t, EPS), inputs)
    assert gradgradcheck(lambda *t: apply_statistics(*t, EPS), inputs)
    expected = F.batch_norm(x, mean.detach(), var.detach(), eps=EPS)
    torch.testing.assert_close(apply_statistics(x, mean, var, None, None, EPS), expected)
    assert gradgradcheck(batch_statistics, (x,))


@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1, 1)])
def test_one_value_per_channel_is_refused(shape):
    with pytest.raises(
        BadInput, match=r"one value per channel .* at least two: more images per pass or a larger input"
    ):
        own(torch.zeros(shape))
