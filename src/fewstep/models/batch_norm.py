"""Batch norm with its second derivative in closed form, and batch norm by given statistics."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import BadInput
from fewstep.models.functions import Channelwise, layout

aten = torch.ops.aten


def normalise(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Batch norm of x by its own statistics, quick to differentiate twice.

        y = γ x̂ + β,  x̂ = (x − μ) / √(σ² + ε),  μ and σ² over all dimensions but the second

    Torch's own second derivative takes some twenty passes over the maps; this one writes two maps. Every derivative
    agrees with torch's, and under vmap each task keeps its own statistics.

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
        shape = "×".join(map(str, x.shape))
        raise BadInput(
            f"batch norm sees one value per channel in an input of {shape}; it needs at least two: "
            "more images per pass or a larger input"
        )
    weight = x.new_ones(x.shape[1]) if weight is None else weight
    bias = x.new_zeros(x.shape[1]) if bias is None else bias
    # The compiler of torch drops a function's own derivatives (pytorch issue 193279), so it gets torch's to fuse.
    function = _Normalise.forward if torch.compiler.is_compiling() else _Normalise.apply
    y, mean, rstd = function(x, weight, bias, eps)
    return y, mean.detach(), (rstd.detach().pow(-2) - eps).clamp(min=0)


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


class _Normalise(Channelwise):
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


class _First(Channelwise):
    """(a, x, γ) -> dx, dγ, dβ."""

    @staticmethod
    def forward(a: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, eps: float) -> Any:
        a = a.contiguous(memory_format=layout(x))
        return aten.native_batch_norm_backward(a, x, weight, None, None, mean, rstd, True, eps, [True] * 3)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *tensors, ctx.eps = inputs
        ctx.save_for_backward(*tensors, *output[1:])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        return *_Second.apply(*cotangents, *ctx.saved_tensors, ctx.eps), None, None, None


class _Second(Channelwise):
    """(u, u_γ, u_β) -> their pull-back to (a, x, γ)."""

    @staticmethod
    def forward(
        u: Tensor, u_weight: Tensor, u_bias: Tensor, a: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor,
        d_weight: Tensor, d_bias: Tensor, _eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        u, a = (t.contiguous(memory_format=layout(x)) for t in (u, a))
        count = x.numel() // x.shape[1]
        s1, s2, t2, t1 = torch.stack((d_bias, d_weight, *_sums(u, x, mean, rstd))).div_(count).unbind()
        q = torch.addcmul(_sums(u, a, s1, torch.ones_like(s1))[0] / count, s2, t2, value=-1)  # p − t₂ s₂
        # Coefficients of u, a and x in each result; that of x in ∂/∂a is also that of a in ∂/∂x. Small maps cost less
        # than the calls that handle their channels, hence the fused multiply-adds.
        scale = weight * rstd
        shared = rstd * torch.addcmul(u_weight, scale, t2, value=-1)
        g_a = _combine(
            torch.addcmul(u_bias, scale, t1, value=-1).addcmul_(shared, mean, value=-1), (scale, u), (shared, x)
        )
        rs2 = rstd * s2
        of_u = -scale * rs2
        of_x = -rstd * (scale * rstd * q).addcmul_(of_u, t2).addcmul_(shared, s2)
        constant = -(of_u * t1).addcmul_(shared, s1).addcmul_(of_x, mean)
        g_x = _combine(constant, (of_u, u), (shared, a), (of_x, x))
        return g_a, g_x, count * rstd * q

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, _output: Any) -> None:
        ctx.save_for_backward(*inputs[:6])
        ctx.eps = inputs[-1]

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        # Third derivatives are rare: let torch derive them from the plain formula.
        def second(u: Tensor, u_weight: Tensor, u_bias: Tensor, *point: Tensor) -> Any:
            return torch.func.vjp(partial(_plain_first, eps=ctx.eps), *point)[1]((u, u_weight, u_bias))

        return *torch.func.vjp(second, *ctx.saved_tensors)[1](cotangents), *[None] * 5


def _plain_first(a: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """What `_First` computes, from parts that torch can differentiate."""
    mean, var = batch_statistics(x)
    normalised = apply_statistics(x, mean, var, None, None, eps)
    d_weight, d_bias = (t.transpose(0, 1).flatten(1).sum(1) for t in (a * normalised, a))
    count = x.numel() // x.shape[1]
    dx = a - _channels(d_bias / count, x) - normalised * _channels(d_weight / count, x)
    return dx * _channels(weight * torch.rsqrt(var + eps), x), d_weight, d_bias


def _sums(u: Tensor, x: Tensor, centre: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Σ u (x − centre) scale and Σ u of each channel, in one pass that writes no map."""
    _, weighted, plain = aten.native_batch_norm_backward(
        u, x, scale, None, None, centre, scale, True, 0.0, [False, True, True]
    )
    return weighted, plain


def _combine(constant: Tensor, *terms: tuple[Tensor, Tensor]) -> Tensor:
    """constant + Σ coefficient · map, coefficients and constant per channel, with a single new map."""
    (coefficient, x), *rest = terms
    out = x * _channels(coefficient, x)
    for coefficient, x in rest:
        out.addcmul_(_channels(coefficient, x), x)
    return out.add_(_channels(constant, x))


def _channels(v: Tensor, x: Tensor) -> Tensor:
    """A vector of channels, to be combined with maps like x."""
    return v.view(-1, *[1] * (x.dim() - 2))
