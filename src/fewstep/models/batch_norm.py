"""Batch norm with its second derivative in closed form, and batch norm by given statistics."""

from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import BadInput
from fewstep.models.functions import Channelwise, layout, pick, place
from fewstep.models.max_pool import SIZE, max_pool

aten = torch.ops.aten


def normalise(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, pool: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Batch norm of x by its own statistics, quick to differentiate twice.

        y = γ x̂ + β,  x̂ = (x − μ) / √(σ² + ε),  μ and σ² over all dimensions but the second

    Torch's own second derivative takes some twenty passes over the maps; this one writes two maps. Every derivative
    agrees with torch's, and under vmap each task keeps its own statistics.

    Arguments:
        x: (N, C, *).
        weight: γ (C,); None for ones.
        bias: β (C,); None for zeros.
        eps: ε, added to the variance.
        pool: keep the largest y of every 2×2 pixels of maps (N, C, H, W); see `fewstep.models.block`.

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
    if torch.compiler.is_compiling():
        # The compiler of torch drops a function's own derivatives (pytorch issue 193279), so it gets parts to fuse.
        mean, var = batch_statistics(x)
        y = apply_statistics(x, mean, var, weight, bias, eps)
        return max_pool(y) if pool else y, mean.detach(), var.detach()
    weight = x.new_ones(x.shape[1]) if weight is None else weight
    bias = x.new_zeros(x.shape[1]) if bias is None else bias
    kept, at = _Extremes.apply(x.detach(), weight.detach()) if pool else (None, None)
    y, mean, _, var = _Normalise.apply(x, weight, bias, kept, at, eps)
    return y, mean.detach(), var.detach()


def apply_statistics(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """Batch norm of x (N, C, *) by given statistics: affine in x, differentiable in every argument.

        y = γ (x − μ) / √(σ² + ε) + β,  γ of ones and β of zeros where None

    Example:
        >>> apply_statistics(torch.ones(1, 1), torch.zeros(1), torch.ones(1), None, None, eps=0.0)
        tensor([[1.]])
    """
    scale = torch.rsqrt(var + eps)
    scale = _channels(scale if weight is None else scale * weight, x)
    centred = x - _channels(mean, x)  # in γ r x + (β − γ r μ) the first digits of large means cancel, in dσ² as well
    return centred * scale if bias is None else torch.addcmul(_channels(bias, x), scale, centred)


def batch_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel of x (N, C, *), differentiable in x.

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
# and for cotangents (u, u_γ, u_β) of these, with t₁ = m(u), t₂ = m(u x̂), q = m(u a) − t₁ s₁ − t₂ s₂:
#
#     ∂/∂a = γ r (u − t₁ − x̂ t₂) + u_γ x̂ + u_β
#     ∂/∂x = −γ r² (s₂ (u − t₁) + t₂ (a − s₁) + x̂ (q − 2 t₂ s₂)) + u_γ r (a − s₁ − x̂ s₂)
#     ∂/∂γ = M r q
#
# Each is a linear combination of whole maps with a coefficient per channel. Where the output is pooled, a is zero but
# at the pixels that stayed: sums over a run over these alone, and ∂/∂a is asked for there alone. The statistics and
# the pixels that stay (`kept`, `at`; None if all do) are constants: how they depend on x is inside these formulas.


class _Extremes(Channelwise):
    """(x, γ) -> the values that pooling keeps of γ x + β, and where they are."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        if x.device.type == "cpu" and not (weight < 0).any():  # elsewhere looking would wait for the device
            return aten.max_pool2d_with_indices(x, SIZE, SIZE)
        sign = _channels(torch.where(weight < 0, -1, 1).to(x.dtype), x)
        kept, at = aten.max_pool2d_with_indices(x * sign, SIZE, SIZE)
        return kept * sign, at

    @staticmethod
    def setup_context(ctx: Any, _inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(*output)


class _Normalise(Channelwise):
    """(x, γ, β) -> y, μ, r, σ²."""

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor, kept: Tensor | None, _at: Tensor | None, eps: float
    ) -> tuple[Tensor, ...]:
        mean, var = _moments(x)
        rstd = torch.rsqrt(var + eps)
        scale = weight * rstd
        values = x if kept is None else kept
        return _combine(torch.addcmul(bias, scale, mean, value=-1), (scale, values)).to(x.dtype), mean, rstd, var

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, weight, _, kept, at, _ = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(x, weight, kept, at, *output[1:3])
        ctx.eps = inputs[-1]

    @staticmethod
    def backward(ctx: Any, a: Tensor, *_: Any) -> Any:
        return *_First.apply(a, *ctx.saved_tensors, ctx.eps), None, None, None


class _First(Channelwise):
    """(a, x, γ) -> dx, dγ, dβ."""

    @staticmethod
    def forward(
        a: Tensor, x: Tensor, weight: Tensor, kept: Tensor | None, at: Tensor | None, mean: Tensor, rstd: Tensor,
        _eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        a = a.contiguous(memory_format=layout(x))
        d_weight, d_bias = _sums(a, x if kept is None else kept, mean, rstd)
        count = x.numel() // x.shape[1]
        scale = weight * rstd
        of_x = -scale * rstd * d_weight / count
        constant = -(scale * d_bias / count).addcmul_(of_x, mean)
        return _plus(_combine(constant, (of_x, x)), scale, a, at).to(x.dtype), d_weight, d_bias

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *tensors, ctx.eps = inputs
        ctx.save_for_backward(*tensors, *output[1:])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        return *_Second.apply(*cotangents, *ctx.saved_tensors, ctx.eps), *[None] * 5


class _Second(Channelwise):
    """(u, u_γ, u_β) -> their pull-back to (a, x, γ)."""

    @staticmethod
    def forward(
        u: Tensor, u_weight: Tensor, u_bias: Tensor, a: Tensor, x: Tensor, weight: Tensor, kept: Tensor | None,
        at: Tensor | None, mean: Tensor, rstd: Tensor, d_weight: Tensor, d_bias: Tensor, _eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        u, a = (t.contiguous(memory_format=layout(x)) for t in (u, a))
        values, u_there = (x, u) if kept is None or at is None else (kept, pick(u, at))
        count = x.numel() // x.shape[1]
        sums = (d_bias, d_weight, *_sums(u, x, mean, rstd), _products(u_there, a, mean))
        s1, s2, t2, t1, ua = torch.stack(sums).div_(count).unbind()
        q = torch.addcmul(ua, t1, s1, value=-1).addcmul_(t2, s2, value=-1)
        # Coefficients of u, a and x in each result; that of x in ∂/∂a is also that of a in ∂/∂x. Small maps cost less
        # than the calls that handle their channels, hence the fused multiply-adds.
        scale = weight * rstd
        shared = rstd * torch.addcmul(u_weight, scale, t2, value=-1)
        constant = torch.addcmul(u_bias, scale, t1, value=-1).addcmul_(shared, mean, value=-1)
        g_a = _combine(constant, (scale, u_there), (shared, values))
        rs2 = rstd * s2
        of_u = -scale * rs2
        of_x = -rstd * (scale * rstd * q).addcmul_(of_u, t2).addcmul_(shared, s2)
        constant = -(of_u * t1).addcmul_(shared, s1).addcmul_(of_x, mean)
        g_x = _plus(_combine(constant, (of_u, u), (of_x, x)), shared, a, at)
        return g_a.to(a.dtype), g_x.to(x.dtype), count * rstd * q

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, _output: Any) -> None:
        ctx.save_for_backward(*inputs[:6], inputs[7])
        ctx.eps = inputs[-1]

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        # Third derivatives are rare: let torch derive them from the plain formula.
        *point, at = ctx.saved_tensors
        first = partial(_plain_first, at=at, eps=ctx.eps)

        def second(u: Tensor, u_weight: Tensor, u_bias: Tensor, *point: Tensor) -> Any:
            return torch.func.vjp(first, *point)[1]((u, u_weight, u_bias))

        return *torch.func.vjp(second, *point)[1](cotangents), *[None] * 7


def _plain_first(a: Tensor, x: Tensor, weight: Tensor, at: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """What `_First` computes, from parts that torch can differentiate."""
    mean, var = batch_statistics(x)
    normalised = apply_statistics(x, mean, var, None, None, eps)
    if at is not None:
        a = torch.zeros_like(x).flatten(2).scatter_add(2, at.flatten(2), a.flatten(2)).view(x.shape)
    d_weight, d_bias = (t.transpose(0, 1).flatten(1).sum(1) for t in (a * normalised, a))
    count = x.numel() // x.shape[1]
    dx = a - _channels(d_bias / count, x) - normalised * _channels(d_weight / count, x)
    return dx * _channels(weight * torch.rsqrt(var + eps), x), d_weight, d_bias


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """As `batch_statistics`, which on a CPU takes ten times as long with channels last."""
    if x.device.type != "cpu":
        return batch_statistics(x)
    parts, channels = _parts(x), x.shape[1]
    mean, var = aten.batch_norm_update_stats(_in_lines(x, parts), None, None, 0.0)
    if parts == 1:
        return mean, var
    mean, var = mean.view(parts, channels), var.view(parts, channels)
    whole = mean.mean(0)
    return whole, var.add_(mean.sub_(whole).square_()).mean(0)


def _sums(u: Tensor, x: Tensor, centre: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Σ u (x − centre) scale and Σ u of each channel, in one pass that writes no map."""
    parts, channels = _parts(x), x.shape[1]
    if parts == 1:
        return _native_sums(u, x, centre, scale)
    sums = _native_sums(_in_lines(u, parts), _in_lines(x, parts), centre.repeat(parts), scale.repeat(parts))
    weighted, plain = (t.view(parts, channels).sum(0) for t in sums)
    return weighted, plain


def _products(u: Tensor, a: Tensor, like: Tensor) -> Tensor:
    """Σ u a of each channel."""
    parts, channels = _parts(a), a.shape[1]
    zeros, ones = like.new_zeros(parts * channels), like.new_ones(parts * channels)
    sums = _native_sums(_in_lines(u, parts), _in_lines(a, parts), zeros, ones)[0]
    return sums.view(parts, channels).sum(0) if parts > 1 else sums


def _native_sums(u: Tensor, x: Tensor, centre: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    return aten.native_batch_norm_backward(u, x, scale, None, None, centre, scale, True, 0.0, [False, True, True])[1:]


def _parts(x: Tensor) -> int:
    """Into how many parts the pixels of maps fall, that torch shall add up each by itself and then together.

    With the channels last it adds pixel after pixel in the type of the maps: a thousand equal ones, as drawings have on
    their background, are then off by a thousand half units in the last place, each in the same direction.
    """
    last = x.is_contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x.dim() == 2 and x.is_contiguous()
    return _parts_of(x.numel() // x.shape[1]) if last and x.device.type == "cpu" else 1


@lru_cache
def _parts_of(pixels: int) -> int:
    return next(pixels // lines for lines in range(128, 0, -1) if pixels % lines == 0)


def _in_lines(x: Tensor, parts: int) -> Tensor:
    """Dense maps with the channels last as (pixels / parts, parts · C): a column is a channel of one part."""
    wide = parts * x.shape[1]
    return x if parts == 1 else x.as_strided((x.numel() // wide, wide), (wide, 1))


def _combine(constant: Tensor, *terms: tuple[Tensor, Tensor]) -> Tensor:
    """constant + Σ coefficient · map, coefficients and constant per channel, with a single new map."""
    (coefficient, x), *rest = terms
    out = torch.addcmul(_channels(constant, x), _channels(coefficient, x), x)
    for coefficient, x in rest:
        out.addcmul_(_channels(coefficient, x), x)
    return out


def _plus(out: Tensor, coefficient: Tensor, a: Tensor, at: Tensor | None) -> Tensor:
    """`out` with coefficient · a added, to the pixels where it belongs."""
    if at is None:
        return out.addcmul_(_channels(coefficient, a), a)
    return place(out, a * _channels(coefficient, a), at)


def _channels(v: Tensor, x: Tensor) -> Tensor:
    """A vector of channels, to be combined with maps like x."""
    return v.view(-1, *[1] * (x.dim() - 2))
