"""Meta-gradients in float32 are as near to float64's as those of a plain loop over torch's layers, on every path."""

import statistics
from functools import partial

import pytest
import torch
from rounding import KINDS, double, errors, own, plain_layers, side_by_side, task, without_kernels

import fewstep
from fewstep.models import Conv4, ResNet12
from fewstep.models.batch_norm import apply_statistics, batch_statistics, normalise

LAST = torch.channels_last
MODELS = {
    "conv4": partial(Conv4, 5, filters=16, image_size=20, blocks=3),
    "strides": partial(Conv4, 5, filters=16, image_size=20, blocks=3, downsample="stride"),
    "resnet12": partial(ResNet12, 5, 1, image_size=20, widths=(16, 16)),
}


def kernels(gradient):
    return gradient


def operators(gradient):
    def without(*given, **settings):
        with without_kernels():
            return gradient(*given, **settings)

    return without


PATHS = {
    f"{by.__name__}, {gradient.__name__}": by(gradient)
    for by in (kernels, operators)
    for gradient in (own, side_by_side)
}


def hold(found, medians, worst):
    """Errors and margins: rows of (plain, ours), in the median and, where no choice was near another, in the worst."""
    plain = statistics.median(each[0] for each, _ in found)
    for i, path in enumerate(PATHS, 1):
        assert statistics.median(each[i] for each, _ in found) <= medians * plain, path
        for seed, (each, margin) in enumerate(found):
            assert margin < 2e-5 or each[i] <= worst * max(each[0], plain), (path, seed)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", KINDS)
def test_second_order_is_as_exact_as_a_plain_loops(kind, name):
    found = []
    for seed in range(5):
        torch.manual_seed(seed)
        found.append(errors(MODELS[name](), task(kind, seed, size=20), PATHS.values()))
    hold(found, 4, 10)


def test_five_steps_on_drawings_without_kernels_are_as_exact_as_a_plain_loops():
    """The gradient was off by a thousandth to a fifth: sums over a flat background had lost their digits."""
    found = []
    for seed in range(3):
        torch.manual_seed(seed)
        given = Conv4(5), task("drawings", seed, size=28)
        found.append(errors(*given, [lambda *given: operators(own)(*given, steps=5)], steps=5)[0])
    plain, ours = map(statistics.median, zip(*found, strict=True))
    assert ours < 4 * plain


@pytest.mark.slow
@pytest.mark.parametrize("size", [16, 24, 32])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", KINDS)
def test_second_order_is_as_exact_as_a_plain_loops_over_many_tasks(kind, name, size):
    """In networks so small that most tasks have no choice near another, which rounding turns into 1e-3 and more."""
    found = []
    for seed in range(12):
        torch.manual_seed(seed)
        found.append(errors(MODELS[name](image_size=size), task(kind, seed, size=size), PATHS.values()))
    hold(found, 3, 10)


def preset_errors(name, kind, seed, strategies=("loop", "vectorized")):
    """Relative errors of torch's layers in a loop, then those of ours by every strategy, with kernels and without."""
    method = fewstep.preset(name)
    method = method.replace(steps=min(method.steps, 3))
    x, y, query_x, query_y = (t[None] for t in task(kind, seed, size=20))

    def gradient(strategy, dtype=torch.float32):
        torch.manual_seed(seed)
        learner = fewstep.Learner(Conv4(5, filters=16, image_size=20, blocks=2).to(dtype), method, strategy=strategy)
        found = learner.meta_gradient(fewstep.TaskBatch(x.to(dtype), y, query_x.to(dtype), query_y), 0.9).gradients
        return torch.cat([g.flatten().double() for _, g in sorted(found.items())])

    exact = gradient("loop", torch.float64)
    with plain_layers():
        found = [gradient("loop")]
    found += [gradient(strategy) for strategy in strategies]
    with without_kernels():
        found += [gradient(strategy) for strategy in strategies]
    return [float((g - exact).norm() / exact.norm()) for g in found]


def hold_presets(found, medians):
    plain, *ours = map(statistics.median, zip(*found, strict=True))
    assert all(error <= medians * plain + 1e-6 for error in ours), (plain, ours)


@pytest.mark.parametrize("name", ["maml++", "sharp-maml-both"])
def test_presets_on_drawings_are_as_exact_as_over_torchs_layers(name):
    hold_presets([preset_errors(name, "drawings", seed) for seed in range(3)], 4)


@pytest.mark.slow
@pytest.mark.parametrize("name", fewstep.preset_names())
@pytest.mark.parametrize("kind", KINDS)
def test_presets_are_as_exact_as_over_torchs_layers(kind, name):
    hold_presets([preset_errors(name, kind, seed) for seed in range(9)], 3)


# --- what the errors are made of --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 64, 28, 28), (75, 16, 28, 28), (7, 16, 13, 11), (3000, 16)], ids=str)
def test_moments_of_a_flat_background_keep_their_digits(shape):
    """Torch adds maps with the channels last up in float32: the mean was off by 1e-4 standard deviations, and more."""
    torch.manual_seed(0)
    x = 1 + 0.3 * torch.randn(shape)
    x[: len(x) * 3 // 4] = 0.7
    x = x.contiguous(memory_format=LAST) if len(shape) == 4 else x
    exact_mean, exact_var = batch_statistics(x.double())
    with torch.no_grad():
        _, mean, var = normalise(x, None, None, 0.0)
    assert ((mean - exact_mean).abs() / exact_var.sqrt()).max() < 5e-6
    assert (var / exact_var - 1).abs().max() < 5e-6


@pytest.mark.parametrize("pool", [True, False])
def test_sums_over_a_flat_background_keep_their_digits(pool):
    torch.manual_seed(0)
    x, a = (torch.randn(20, 16, 28, 28).contiguous(memory_format=LAST) for _ in range(2))
    a[:15] = 0.7
    a = (a[..., ::2, ::2] if pool else a).contiguous(memory_format=LAST)

    def gradients(x, a):
        weight = x.new_ones(16).requires_grad_()
        bias = x.new_zeros(16).requires_grad_()
        return torch.autograd.grad(normalise(x, weight, bias, 1e-5, pool)[0], (weight, bias), a)

    for mine, exact in zip(gradients(x, a), gradients(*double((x, a))), strict=True):
        assert (mine - exact).norm() < 2e-6 * exact.norm()


def test_given_statistics_with_large_means_keep_their_digits():
    """Of the output, and of the gradient of the variance, where Σ a x and μ Σ a would cancel."""
    torch.manual_seed(0)
    x, a = 1000 + torch.randn(20, 16, 8, 8), torch.randn(20, 16, 8, 8)
    mean, var = (t.clone() for t in batch_statistics(x))

    def results(x, a, mean, var):
        leaf = var.detach().requires_grad_()
        y = apply_statistics(x, mean, leaf, torch.ones_like(mean), torch.zeros_like(mean), 1e-5)
        return y.detach(), *torch.autograd.grad(y, leaf, a)

    for mine, exact in zip(results(x, a, mean, var), results(*double((x, a, mean, var))), strict=True):
        assert (mine - exact).norm() < 1e-5 * exact.norm()
