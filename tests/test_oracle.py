"""The oracle is itself checked, against finite differences, closed forms and PyTorch's own modules."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from oracle import (
    adam,
    conv4_forward,
    cosine,
    finite_difference,
    meta_gradient,
    released_iteration,
    step_weights,
)
from torch import nn

STAGES, CHANNELS, WAYS = 2, 3, 3
conv2_forward = partial(conv4_forward, stages=STAGES)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """The tensors are tiny: threads would only wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def draw():
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator)


def conv_parameters(draw, stages=STAGES, features=CHANNELS * 4):
    p = {}
    for i in range(stages):
        inputs = 1 if i == 0 else CHANNELS
        p[f"blocks.{i}.conv.weight"] = draw(CHANNELS, inputs, 3, 3) / math.sqrt(9 * inputs)
        p[f"blocks.{i}.conv.bias"] = 0.1 * draw(CHANNELS)
    return p | {"head.weight": draw(WAYS, features) / math.sqrt(features), "head.bias": 0.1 * draw(WAYS)}


def norm_affines(draw, *shape, stages=STAGES):
    norms = {}
    for i in range(stages):
        norms[f"blocks.{i}.norm.weight"] = 1 + 0.1 * draw(*shape)
        norms[f"blocks.{i}.norm.bias"] = 0.1 * draw(*shape)
    return norms


def image_tasks(draw, tasks=2, support=6, query=9, size=8):
    def labels(n):
        return (torch.arange(n) % WAYS).expand(tasks, n)

    return draw(tasks, support, 1, size, size), labels(support), draw(tasks, query, 1, size, size), labels(query)


def learned_rates(draw, parameters, steps):
    return {name: 0.1 + 0.05 * draw(steps) for name in parameters}


def split(meta):
    """{"model.a": t, ...} to {"model": {"a": t}, ...}."""
    parts = {}
    for name, t in meta.items():
        part, rest = name.split(".", 1)
        parts.setdefault(part, {})[rest] = t
    return parts


def test_conv4_forward_is_the_network_of_pytorch_modules(draw):
    p, norms = conv_parameters(draw, stages=4, features=CHANNELS), norm_affines(draw, CHANNELS, stages=4)
    layers = []
    for i in range(4):
        conv = nn.Conv2d(1 if i == 0 else CHANNELS, CHANNELS, 3, padding=1).double()
        conv.load_state_dict({key: p[f"blocks.{i}.conv.{key}"] for key in ("weight", "bias")})
        norm = nn.BatchNorm2d(CHANNELS, track_running_stats=False).double()
        norm.load_state_dict({key: norms[f"blocks.{i}.norm.{key}"] for key in ("weight", "bias")})
        layers += [conv, norm, nn.LeakyReLU(0.01), nn.MaxPool2d(2)]
    x = draw(5, 1, 28, 28)
    expected = F.linear(nn.Sequential(*layers, nn.Flatten())(x), p["head.weight"], p["head.bias"])
    torch.testing.assert_close(conv4_forward(p, x, norms), expected)


@pytest.mark.parametrize("steps", [1, 3])
def test_gradient_agrees_with_differences(draw, steps):
    """A few entries of every gradient against differences of the loss, to 1e-6 of the norm of the whole gradient."""
    p, norms, batch = conv_parameters(draw), norm_affines(draw, steps, CHANNELS), image_tasks(draw)
    rates = learned_rates(draw, p, steps)
    meta = {f"{part}.{n}": t for part, ts in (("model", p), ("norm", norms), ("rates", rates)) for n, t in ts.items()}
    settings = {"step_weights": step_weights(3, steps, 10), "loss": F.cross_entropy}

    def loss(moved):
        parts = split(moved)
        tensors = parts["model"], parts["norm"], parts["rates"]
        return meta_gradient(conv2_forward, *tensors, batch, second_order=False, **settings)[0]

    _, _, gradients = meta_gradient(conv2_forward, p, norms, rates, batch, second_order=True, **settings)
    assert gradients.keys() == meta.keys()
    scale = math.sqrt(sum(float((g**2).sum()) for g in gradients.values()))
    for name, gradient in gradients.items():
        assert gradient.shape == meta[name].shape
        n = gradient.numel()
        indices = [n // 2] if name.startswith("model.") else sorted({0, n // 2, n - 1})
        expected = finite_difference(loss, meta, name, indices, h=1e-6)
        torch.testing.assert_close(gradient.flatten()[indices], expected, rtol=0, atol=1e-6 * scale, msg=name)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_quadratic_closed_form(draw, steps):
    """Support ½(θ−b)ᵀA(θ−b), query ½|θ−c|²: the gradient is (I−αA)ᴺ(θ′−c), and θ′−c in first order."""
    root, b, c, theta = draw(4, 4), draw(4), draw(4), draw(4)
    A, eye, alpha = root.T @ root, torch.eye(4, dtype=torch.float64), 0.05
    batch = [t[None] for t in (root, root @ b, eye, c)]
    rates = {"w": torch.full((steps,), alpha, dtype=torch.float64)}

    adapted, inner = theta, []
    for _ in range(steps):
        inner.append(A @ (adapted - b))
        adapted = adapted - alpha * inner[-1]
    shrink = eye - alpha * A

    def gradients(second_order):
        value, output, g = meta_gradient(
            lambda p, x, _: x @ p["w"], {"w": theta}, {}, rates, batch, second_order=second_order,
            step_weights=[0.0] * (steps - 1) + [1.0], loss=lambda out, y: 0.5 * ((out - y) ** 2).sum(),
        )  # fmt: skip
        torch.testing.assert_close(output[0], adapted)
        torch.testing.assert_close(value, 0.5 * ((adapted - c) ** 2).sum())
        return g

    first, second = gradients(False), gradients(True)
    torch.testing.assert_close(first["model.w"], adapted - c)
    torch.testing.assert_close(second["model.w"], torch.linalg.matrix_power(shrink, steps) @ (adapted - c))
    for i in range(steps):
        after = torch.linalg.matrix_power(shrink, steps - 1 - i) @ (adapted - c)
        torch.testing.assert_close(first["rates.w"][i], -inner[i] @ (adapted - c))
        torch.testing.assert_close(second["rates.w"][i], -inner[i] @ after)


def test_first_order_reaches_only_the_norm_row_of_the_weighted_query_pass(draw):
    p, norms = conv_parameters(draw), norm_affines(draw, 3, CHANNELS)
    settings = {"step_weights": [0.0, 0.0, 1.0], "loss": F.cross_entropy}
    batch, rates = image_tasks(draw), learned_rates(draw, p, 3)
    first = meta_gradient(conv2_forward, p, norms, rates, batch, second_order=False, **settings)[2]
    second = meta_gradient(conv2_forward, p, norms, rates, batch, second_order=True, **settings)[2]
    for name in norms:
        assert first[f"norm.{name}"][:2].count_nonzero() == 0
        assert first[f"norm.{name}"][2].count_nonzero() == CHANNELS
        assert second[f"norm.{name}"].count_nonzero() == 3 * CHANNELS
    assert all(first[f"rates.{name}"].count_nonzero() == 3 for name in p)


def test_step_weights():
    for epoch in range(10):
        assert step_weights(epoch, 5, 10) == pytest.approx([0.2 - 0.02 * epoch] * 4 + [0.2 + 0.08 * epoch])
    assert step_weights(9, 5, 10) == pytest.approx([0.02] * 4 + [0.92])
    assert step_weights(10, 5, 10) == [0, 0, 0, 0, 1]
    assert step_weights(39, 5, 40) == pytest.approx([0.006] * 4 + [0.976])  # the floor holds only when E > 33
    assert step_weights(32, 5, 33) == pytest.approx([1 / 165] * 4 + [161 / 165])
    assert step_weights(0, 1, 10) == step_weights(7, 1, 10) == [1]
    for N in (1, 2, 3, 5):
        for E in (0, 1, 10, 15, 40):
            for epoch in range(E + 2):
                assert sum(step_weights(epoch, N, E)) == pytest.approx(1)


def test_cosine():
    assert cosine(0, 100, 1e-3, 1e-5) == pytest.approx(1e-3)
    assert cosine(50, 100, 1e-3, 1e-5) == pytest.approx(5.05e-4)
    assert cosine(100, 100, 1e-3, 1e-5) == pytest.approx(1e-5)


def test_adam_is_that_of_pytorch(draw):
    meta, state = {"a": draw(3, 2), "b": draw(4)}, ({}, {}, 0)
    theirs = {name: t.clone().requires_grad_() for name, t in meta.items()}
    optimizer = torch.optim.Adam(theirs.values())
    for rate in (1e-3, 1e-2, 1e-4):
        gradients = {name: draw(*t.shape) for name, t in meta.items()}
        meta, state = adam(meta, gradients, state, rate)
        optimizer.param_groups[0]["lr"] = rate
        for name, t in theirs.items():
            t.grad = gradients[name]
        optimizer.step()
        torch.testing.assert_close(meta, {name: t.detach() for name, t in theirs.items()})
    assert state[2] == 3


@pytest.mark.parametrize("clamp", [None, 10.0])
def test_released_iteration(draw, clamp):
    p, norms = conv_parameters(draw), norm_affines(draw, 2, CHANNELS)
    rates = {name: torch.full((2,), 1e-4, dtype=torch.float64) for name in p}
    meta = {f"model.{n}": t for n, t in p.items()} | {f"norm.{n}": t for n, t in norms.items()}
    meta |= {f"rates.{n}": t for n, t in rates.items()}
    state = ({}, {}, 0)
    theirs = {name: t.clone().requires_grad_() for name, t in meta.items()}
    optimizer = torch.optim.Adam(theirs.values())

    def loss(logits, labels):  # large enough for the clamp to bind
        return 1000 * F.cross_entropy(logits, labels)

    for epoch, weights, rate in ((0, [0.5, 0.5], 1e-3), (2, [0.25, 0.75], 5.05e-4), (4, [0.0, 1.0], 1e-5)):
        batch = image_tasks(draw)
        meta, state = released_iteration(
            conv2_forward,
            meta,
            state,
            batch,
            epoch=epoch,
            total_epochs=4,
            steps=2,
            loss_epochs=4,
            clamp=clamp,
            loss=loss,
        )
        parts = split(theirs)
        _, _, gradients = meta_gradient(
            conv2_forward, parts["model"], parts["norm"], parts["rates"], batch,
            second_order=True, step_weights=weights, loss=loss,
        )  # fmt: skip
        clamped = [name for name, g in gradients.items() if g.abs().max() > 10]
        assert {name.split(".")[0] for name in clamped} == {"model", "norm", "rates"}
        for name, t in theirs.items():
            t.grad = gradients[name]
            if clamp and name.startswith(("model.", "norm.")):
                t.grad.clamp_(-10, 10)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        torch.testing.assert_close(meta, {name: t.detach() for name, t in theirs.items()})
