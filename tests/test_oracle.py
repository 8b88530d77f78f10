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
    mlp_forward,
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


def check_by_differences(forward, parameters, norms, rates, batch, **settings):
    """A few entries of every gradient against differences of the loss, to 1e-6 of the norm of the whole gradient."""
    per_step = settings["per_step_norm"]
    meta = {f"model.{name}": t for name, t in parameters.items()}
    meta |= {f"{'norm' if per_step else 'model'}.{name}": t for name, t in norms.items()}
    meta |= {f"rates.{name}": t for name, t in rates.items()} if isinstance(rates, dict) else {}

    def loss(moved):
        parts = split(moved)
        model = {name: parts["model"][name] for name in parameters}
        affine = {name: parts["norm" if per_step else "model"][name] for name in norms}
        return meta_gradient(forward, model, affine, parts.get("rates", rates), batch, second_order=False, **settings)[
            0
        ]

    _, _, gradients = meta_gradient(forward, parameters, norms, rates, batch, second_order=True, **settings)
    assert gradients.keys() == meta.keys()
    scale = math.sqrt(sum(float((g**2).sum()) for g in gradients.values()))
    for name, gradient in gradients.items():
        assert gradient.shape == meta[name].shape
        n = gradient.numel()
        indices = [n // 2] if name.startswith("model.") else sorted({0, n // 2, n - 1})
        expected = finite_difference(loss, meta, name, indices, h=1e-6)
        torch.testing.assert_close(gradient.flatten()[indices], expected, rtol=0, atol=1e-6 * scale, msg=name)


@pytest.mark.parametrize("downsample", ["max_pool", "stride"])
@pytest.mark.parametrize("normalised", [True, False])
def test_conv4_forward_is_the_network_of_pytorch_modules(draw, downsample, normalised):
    p, norms = conv_parameters(draw, stages=4, features=CHANNELS), norm_affines(draw, CHANNELS, stages=4)
    stride = 1 if downsample == "max_pool" else 2
    layers = []
    for i in range(4):
        conv = nn.Conv2d(1 if i == 0 else CHANNELS, CHANNELS, 3, stride=stride, padding=1).double()
        conv.load_state_dict({key: p[f"blocks.{i}.conv.{key}"] for key in ("weight", "bias")})
        norm = nn.BatchNorm2d(CHANNELS, track_running_stats=False).double()
        norm.load_state_dict({key: norms[f"blocks.{i}.norm.{key}"] for key in ("weight", "bias")})
        layers += [conv, *([norm] if normalised else []), nn.LeakyReLU(0.01)]
        layers += [nn.MaxPool2d(2)] if downsample == "max_pool" else []
    layers += [nn.Flatten() if downsample == "max_pool" else nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    x = draw(5, 1, 28, 28)
    expected = F.linear(nn.Sequential(*layers)(x), p["head.weight"], p["head.bias"])
    result = conv4_forward(p, x, norms if normalised else None, downsample=downsample)
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
@pytest.mark.parametrize("normalised", [True, False])
def test_maml_gradient_agrees_with_differences(draw, steps, normalised):
    norms = norm_affines(draw, CHANNELS) if normalised else {}
    weights = [0.0] * (steps - 1) + [1.0]
    check_by_differences(
        conv2_forward, conv_parameters(draw), norms, 0.1, image_tasks(draw),
        steps=steps, step_weights=weights, loss=F.cross_entropy, per_step_norm=False,
    )  # fmt: skip


def test_strided_gradient_agrees_with_differences(draw):
    forward = partial(conv4_forward, stages=STAGES, downsample="stride")
    check_by_differences(
        forward, conv_parameters(draw, features=CHANNELS), norm_affines(draw, CHANNELS), 0.1, image_tasks(draw),
        steps=2, step_weights=[0.0, 1.0], loss=F.cross_entropy, per_step_norm=False,
    )  # fmt: skip


@pytest.mark.parametrize("steps", [1, 3])
def test_maml_plus_plus_gradient_agrees_with_differences(draw, steps):
    p = conv_parameters(draw)
    check_by_differences(
        conv2_forward, p, norm_affines(draw, steps, CHANNELS), learned_rates(draw, p, steps), image_tasks(draw),
        steps=steps, step_weights=step_weights(3, steps, 10), loss=F.cross_entropy, per_step_norm=True,
    )  # fmt: skip


def test_regression_gradient_agrees_with_differences(draw):
    p = {"layers.0.weight": draw(8, 1), "layers.0.bias": draw(8), "layers.1.weight": 0.3 * draw(8, 8)}
    p |= {"layers.1.bias": 0.1 * draw(8), "head.weight": 0.3 * draw(1, 8), "head.bias": 0.1 * draw(1)}
    batch = draw(3, 5, 1), draw(3, 5, 1), draw(3, 7, 1), draw(3, 7, 1)
    settings = {"steps": 2, "step_weights": [0.0, 1.0], "loss": F.mse_loss, "per_step_norm": False}
    check_by_differences(mlp_forward, p, {}, 0.05, batch, **settings)
    _, predictions, _ = meta_gradient(mlp_forward, p, None, 0.05, batch, second_order=True, **settings)
    assert predictions.shape == (3, 7, 1)


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
            lambda p, x, _: x @ p["w"], {"w": theta}, {}, rates, batch, steps=steps, second_order=second_order,
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


def test_first_order_is_the_query_gradient_at_the_adapted_parameters(draw):
    p, norms, batch, rate = conv_parameters(draw), norm_affines(draw, CHANNELS), image_tasks(draw), 0.1
    unadapted = {"steps": 0, "second_order": False, "step_weights": [1.0], "loss": F.cross_entropy}
    settings = unadapted | {"steps": 2, "step_weights": [0.25, 0.75]}
    value, logits, gradients = meta_gradient(conv2_forward, p, norms, rate, batch, **settings)

    expected = {name: torch.zeros_like(g) for name, g in gradients.items()}
    expected_value = 0.0
    for b in range(2):
        sx, sy, qx, qy = (t[b : b + 1] for t in batch)
        theta = p
        for weight in settings["step_weights"]:
            _, _, g = meta_gradient(conv2_forward, theta, norms, rate, (sx, sy, sx, sy), **unadapted)
            theta = {name: t - rate * g[f"model.{name}"] for name, t in theta.items()}
            loss, last, g = meta_gradient(conv2_forward, theta, norms, rate, (sx, sy, qx, qy), **unadapted)
            expected_value += weight * loss / 2
            expected = {name: t + weight * g[name] / 2 for name, t in expected.items()}
        torch.testing.assert_close(logits[b], last[0])
    torch.testing.assert_close(value, expected_value)
    torch.testing.assert_close(gradients, expected)


def test_first_order_reaches_only_the_norm_row_of_the_weighted_query_pass(draw):
    p, norms = conv_parameters(draw), norm_affines(draw, 3, CHANNELS)
    settings = {"steps": 3, "step_weights": [0.0, 0.0, 1.0], "loss": F.cross_entropy, "per_step_norm": True}
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
            steps=2, second_order=True, step_weights=weights, loss=loss, per_step_norm=True,
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
