"""Batch norm with its second derivative in closed form, and batch norm by given statistics."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from fewstep.errors import BadInput
from fewstep.models.folding import fold, unfold

aten = torch.ops.aten


def normalise(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Batch norm of x by its own statistics, quick to differentiate twice.

        y = γ x̂ + β,  x̂ = (x − μ) / √(σ² + ε),  μ and σ² over all dimensions but the second

    Torch's own second derivative takes some twenty passes over the map; this one takes six. Every derivative agrees
    with torch's, and under vmap each task keeps its own statistics.

    Args:
        x: (N, C, *).
        weight: γ (C,); None for ones.
        bias: β (C,); None for zeros.
        eps: ε, added to the variance.

    Returns:
        y (N, C, *), μ (C,) and the biased variance σ² (C,); no gradient flows through the statistics.

    Raises:
        BadInput: a single value per channel, which its own mean turns to zero.

    Source: Ioffe and Szegedy, Batch normalization, ICML 2015.

    Example:
        >>> y, mean, var = normalise(torch.tensor([[1.0], [3.0]]), None, None, eps=0.0)
        >>> y.flatten(), mean, var
        (tensor([-1.,  1.]), tensor([2.]), tensor([1.]))
    """
    if x.numel() == x.shape[1]:
        raise BadInput(
            f"batch norm sees one value per channel (its input is {'×'.join(map(str, x.shape))}) and needs at least two: "
            "more images per pass or a larger input"
        )
    weight = x.new_ones(x.shape[1]) if weight is None else weight
    bias = x.new_zeros(x.shape[1]) if bias is None else bias
    y, mean, rstd = _Normalise.apply(x, weight, bias, eps)
    return y, mean, (rstd.pow(-2) - eps).clamp(min=0)


def apply_statistics(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """Batch norm of x by given statistics: affine in x, differentiable in every argument.

        y = γ (x − μ) / √(σ² + ε) + β

    Args:
        x: (N, C, *).
        mean, var: μ and σ² (C,).
        weight, bias: γ and β (C,); None for ones and zeros.
        eps: ε.

    Returns:
        y (N, C, *).

    Example:
        >>> apply_statistics(torch.ones(1, 1), torch.zeros(1), torch.ones(1), None, None, eps=0.0)
        tensor([[1.]])
    """
    scale = torch.rsqrt(var + eps)
    scale = scale if weight is None else scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    return torch.addcmul(_channels(shift, x), _channels(scale, x), x)


def batch_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel, differentiable in x.

        μ = mean(x),  σ² = mean((x − μ)²),  over all dimensions but the second

    Args:
        x: (N, C, *).

    Returns:
        μ (C,), σ² (C,).

    Example:
        >>> batch_statistics(torch.tensor([[1.0], [3.0]]))
        (tensor([2.]), tensor([1.]))
    """
    var, mean = torch.var_mean(x, [d for d in range(x.dim()) if d != 1], correction=0)
    return mean, var


# The derivatives. For a channel of M values, r = 1/√(σ² + ε), a = ∂L/∂y, and m the mean over the M values:
#
#     dx = γ r (a − s₁ − x̂ s₂),  dγ = M s₂,  dβ = M s₁        with s₁ = m(a), s₂ = m(a x̂)
#
# and for cotangents (u, u_γ, u_β) of these, with t₁ = m(u), t₂ = m(u x̂), p = m(u (a − s₁)):
#
#     ∂/∂a = γ r (u − t₁ − x̂ t₂) + u_γ x̂ + u_β
#     ∂/∂x = −γ r² (s₂ (u − t₁) + t₂ (a − s₁) + x̂ (p − 3 t₂ s₂)) + u_γ r (a − s₁ − x̂ s₂)
#     ∂/∂γ = M r (p − t₂ s₂)
#
# Each is a linear combination of whole maps with a coefficient per channel. The statistics are saved as constants: how
# they depend on x is inside these formulas.


class _Normalise(Function):
    """(x, γ, β) -> y, μ, r."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        return aten.native_batch_norm(x, weight, bias, None, None, True, 0.0, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, weight, _, ctx.eps = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(x, weight, *output[1:])

    @staticmethod
    def backward(ctx: Any, a: Tensor, *_: Any) -> Any:
        return *_First.apply(a, *ctx.saved_tensors, ctx.eps), None

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Any:
        x, weight, bias = (fold(t, d, info.batch_size) for t, d in zip((x, weight, bias), in_dims, strict=False))
        return unfold(_Normalise.apply(x, weight, bias, eps), info.batch_size)


class _First(Function):
    """(a, x, γ) -> dx, dγ, dβ."""

    @staticmethod
    def forward(a: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, eps: float) -> Any:
        a = _like(a, x)
        return aten.native_batch_norm_backward(a, x, weight, None, None, mean, rstd, True, eps, [True] * 3)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *tensors, ctx.eps = inputs
        ctx.save_for_backward(*tensors, *output[1:])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        return *_Second.apply(*cotangents, *ctx.saved_tensors, ctx.eps), None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        *tensors, eps = inputs
        folded = [fold(t, d, info.batch_size) for t, d in zip(tensors, in_dims, strict=False)]
        return unfold(_First.apply(*folded, eps), info.batch_size)


class _Second(Function):
    """(u, u_γ, u_β) -> their pull-back to (a, x, γ)."""

    @staticmethod
    def forward(
        u: Tensor, u_weight: Tensor, u_bias: Tensor, a: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor,
        d_weight: Tensor, d_bias: Tensor, eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        u, a = _like(u, x), _like(a, x)
        count = x.numel() // x.shape[1]
        s1, s2 = d_bias / count, d_weight / count
        t2, t1 = (total / count for total in _sums(u, x, mean, rstd))
        p = _sums(u, a, s1, torch.ones_like(s1))[0] / count
        scale = weight * rstd
        x_a = rstd * (u_weight - scale * t2)
        g_a = _combine(u_bias - scale * t1 - x_a * mean, (scale, u), (x_a, x))
        u_x = -scale * rstd * s2
        a_x = rstd * (u_weight - scale * t2)
        x_x = -(rstd**2) * (scale * (p - 3 * t2 * s2) + u_weight * s2)
        g_x = _combine(-u_x * t1 - a_x * s1 - x_x * mean, (u_x, u), (a_x, a), (x_x, x))
        return g_a, g_x, count * rstd * (p - t2 * s2)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs[:6])
        ctx.eps = inputs[-1]

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        # Nobody is in a hurry for third derivatives: let torch derive them from the plain formula.
        def first(a: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            mean, var = batch_statistics(x)
            rstd = torch.rsqrt(var + ctx.eps)
            h = (x - _channels(mean, x)) * _channels(rstd, x)
            d_bias, d_weight = a.transpose(0, 1).flatten(1).sum(1), (a * h).transpose(0, 1).flatten(1).sum(1)
            count = x.numel() // x.shape[1]
            dx = a - _channels(d_bias / count, x) - h * _channels(d_weight / count, x)
            return dx * _channels(weight * rstd, x), d_weight, d_bias

        def second(u: Tensor, u_weight: Tensor, u_bias: Tensor, *point: Tensor) -> Any:
            return torch.func.vjp(first, *point)[1]((u, u_weight, u_bias))

        return *torch.func.vjp(second, *ctx.saved_tensors)[1](cotangents), *[None] * 5

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        *tensors, eps = inputs
        folded = [fold(t, d, info.batch_size) for t, d in zip(tensors, in_dims, strict=False)]
        return unfold(_Second.apply(*folded, eps), info.batch_size)


def _sums(u: Tensor, x: Tensor, centre: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Σ u (x − centre) scale and Σ u of each channel, in one pass that writes no map."""
    _, weighted, plain = aten.native_batch_norm_backward(
        u, x, None, None, None, centre, scale, True, 0.0, [False, True, True]
    )
    return weighted, plain


def _combine(constant: Tensor, *terms: tuple[Tensor, Tensor]) -> Tensor:
    """constant + Σ coefficient · map, coefficients and constant per channel, with a single new map."""
    (coefficient, x), *rest = terms
    out = torch.addcmul(_channels(constant, x), _channels(coefficient, x), x)
    for coefficient, x in rest:
        out.addcmul_(_channels(coefficient, x), x)
    return out


def _channels(v: Tensor, x: Tensor) -> Tensor:
    """A vector of channels, to be combined with maps like x."""
    return v.view(-1, *[1] * (x.dim() - 2))


def _like(u: Tensor, x: Tensor) -> Tensor:
    """u in the memory layout of x."""
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return u.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
