"""The meta-gradient and the outer step of MAML++ written plainly from the equations, to check the library against."""

import math

import torch
import torch.nn.functional as F


def batch_norm(x, weight, bias, eps=1e-5):
    """Normalise (B, C, H, W) by the mean and the biased variance of the batch itself."""
    mean = x.mean(dim=(0, 2, 3), keepdim=True)
    variance = ((x - mean) ** 2).mean(dim=(0, 2, 3), keepdim=True)
    return weight.view(1, -1, 1, 1) * (x - mean) / torch.sqrt(variance + eps) + bias.view(1, -1, 1, 1)


def conv4_forward(p, x, norms, negative_slope=0.01, stages=4):
    """Blocks of convolution, norm, leaky ReLU and max-pooling, then a linear head."""
    for i in range(stages):
        x = F.conv2d(x, p[f"blocks.{i}.conv.weight"], p[f"blocks.{i}.conv.bias"], padding=1)
        x = batch_norm(x, norms[f"blocks.{i}.norm.weight"], norms[f"blocks.{i}.norm.bias"])
        x = F.max_pool2d(F.leaky_relu(x, negative_slope), 2)
    return F.linear(x.flatten(1), p["head.weight"], p["head.bias"])


def meta_gradient(forward, parameters, norms, rates, batch, *, second_order, step_weights, loss):
    """Mean over tasks of Σᵢ wᵢ L_query(θᵢ₊₁), with θᵢ₊₁ = θᵢ − rateᵢ ∇L_support(θᵢ); returns loss, logits, gradients.

    `forward(p, x, norms)` gives the logits. Norm affines are never adapted: (steps, C) tensors whose row i serves the
    support pass before update i and the query pass after it. `rates` has a (steps,) tensor for each parameter. The
    logits are those after the last update, of shape (tasks, queries, ways). First order takes the inner gradients as
    constants. The gradients are named "model.<parameter>", "norm.<norm>" and "rates.<parameter>", zero where nothing
    arrives.
    """
    meta = {f"model.{name}": t for name, t in parameters.items()}
    meta |= {f"norm.{name}": t for name, t in norms.items()}
    meta |= {f"rates.{name}": t for name, t in rates.items()}
    meta = {name: t.detach().clone().requires_grad_() for name, t in meta.items()}
    tasks = len(batch[0])
    mean_loss, all_logits = 0.0, []
    gradients = {name: torch.zeros_like(t) for name, t in meta.items()}
    for support_x, support_y, query_x, query_y in zip(*batch, strict=True):
        theta = {name: meta[f"model.{name}"] for name in parameters}
        task_loss = 0.0
        for i, weight in enumerate(step_weights):
            affine = {name: meta[f"norm.{name}"][i] for name in norms}
            support_loss = loss(forward(theta, support_x, affine), support_y)
            inner = torch.autograd.grad(support_loss, list(theta.values()), create_graph=second_order)
            updated = {}
            for (name, value), gradient in zip(theta.items(), inner, strict=True):
                updated[name] = value - meta[f"rates.{name}"][i] * gradient
            theta = updated
            logits = forward(theta, query_x, affine)
            task_loss = task_loss + weight * loss(logits, query_y)
        outer = torch.autograd.grad(task_loss, list(meta.values()), allow_unused=True)
        for name, gradient in zip(meta, outer, strict=True):
            if gradient is not None:
                gradients[name] += gradient / tasks
        mean_loss = mean_loss + task_loss.detach() / tasks
        all_logits.append(logits.detach())
    return mean_loss, torch.stack(all_logits), gradients


def step_weights(epoch, N, E):
    """Weights of the query losses after the N updates: equal at epoch 0, the last loss alone from epoch E on."""
    if epoch >= E:
        return [0.0] * (N - 1) + [1.0]
    floor = 0.03 / N
    early = max(1 / N - epoch / (N * E), floor)
    last = min(1 / N + epoch * (N - 1) / (N * E), 1 - (N - 1) * floor)
    return [early] * (N - 1) + [last]


def cosine(epoch, total, high, low):
    """Learning rate falling from high at epoch 0 to low at epoch `total` along half a cosine."""
    return low + 0.5 * (high - low) * (1 + math.cos(math.pi * epoch / total))


def adam(meta, gradients, state, rate, beta1=0.9, beta2=0.999, eps=1e-8):
    """One Adam step; the state is (m, v, t), at the start ({}, {}, 0)."""
    m, v, t = state
    t = t + 1
    new_meta, new_m, new_v = {}, {}, {}
    for name, g in gradients.items():
        new_m[name] = beta1 * m.get(name, 0.0) + (1 - beta1) * g
        new_v[name] = beta2 * v.get(name, 0.0) + (1 - beta2) * g**2
        m_hat = new_m[name] / (1 - beta1**t)
        v_hat = new_v[name] / (1 - beta2**t)
        new_meta[name] = meta[name].detach() - rate * m_hat / (torch.sqrt(v_hat) + eps)
    return new_meta, (new_m, new_v, t)


def released_iteration(
    forward, meta, state, batch, *, epoch, total_epochs, steps, loss_epochs, clamp=None, high=1e-3, low=1e-5,
    loss=F.cross_entropy,
):  # fmt: skip
    """One outer step of MAML++ as its authors released it; returns the new meta-parameters and Adam state.

    `meta` maps the names that `meta_gradient` gives its gradients ("model.", per-step "norm.", "rates.") to tensors.
    """
    parts = {"model": {}, "norm": {}, "rates": {}}
    for name, t in meta.items():
        part, rest = name.split(".", 1)
        parts[part][rest] = t
    _, _, gradients = meta_gradient(
        forward, parts["model"], parts["norm"], parts["rates"], batch, second_order=True,
        step_weights=step_weights(epoch, steps, loss_epochs), loss=loss,
    )  # fmt: skip
    if clamp is not None:
        for name, g in gradients.items():
            if not name.startswith("rates."):
                gradients[name] = g.clamp(-clamp, clamp)
    return adam(meta, gradients, state, cosine(epoch, total_epochs, high, low))


def finite_difference(f, tensors, name, indices, h=1e-5):
    """Central differences of the scalar f(tensors) in the given flat entries of one tensor, in float64."""
    differences = []
    for index in indices:
        values = []
        for shift in (h, -h):
            moved = {key: t.detach().double().clone() for key, t in tensors.items()}
            moved[name].view(-1)[index] += shift
            values.append(float(f(moved)))
        differences.append((values[0] - values[1]) / (2 * h))
    return torch.tensor(differences, dtype=torch.float64)
