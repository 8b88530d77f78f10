"""The block of Conv4: convolution, batch norm, max-pooling, activation; and several as one function."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook

from fewstep.models import native
from fewstep.models.batch_norm import apply_statistics, batch_statistics
from fewstep.models.convolution import Conv2d, Grouped
from fewstep.models.norm import Moments, PooledBatchNorm, Values, values_of


class Block(nn.Module):
    """Convolution 3×3, batch norm, activation, then half the size: by max-pooling 2×2 or by the stride."""

    def __init__(self, channels: int, filters: int, pool: bool, negative_slope: float) -> None:
        super().__init__()
        self.conv = Conv2d(channels, filters, 3, stride=1 if pool else 2, padding=1)
        norm = PooledBatchNorm if pool else nn.BatchNorm2d  # the activation never decreases: it commutes with pooling
        self.norm = norm(filters, track_running_stats=False)
        self.negative_slope = negative_slope

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.norm(self.conv(x)), self.negative_slope)


def through(blocks: Iterable[nn.Module], x: Tensor) -> Tensor:
    """x through one block after another: as one function where kernels take them all, and no hook waits between.

    Example:
        >>> through([Block(1, 8, True, 0.1), Block(8, 8, True, 0.1)], torch.randn(5, 1, 8, 8)).shape
        torch.Size([5, 8, 2, 2])
    """
    layers: list[Any] = list(blocks)
    norms = alike(layers)
    filters = [block.conv.weight for block in layers] if norms else []
    if norms is None or not native.takes_blocks(x, filters):
        for block in layers:
            x = block(x)
        return x
    shifts = [block.conv.bias for block in layers]
    weights, biases = [block.norm.weight for block in layers], [block.norm.bias for block in layers]
    settings = layers[0].norm.eps, layers[0].negative_slope
    x, means, variances = fused(x, filters, shifts, weights, biases, *settings, norms.given)
    if norms.given is None:
        norms.tell(means, variances)
    return x


def alike(blocks: Sequence[Any]) -> Values | None:
    """The norms of blocks that are what they were built as, with the same settings and without hooks; else None."""
    if not blocks or _has_any_global_hook():
        return None
    first = blocks[0]
    for block in blocks:
        if type(block) is not Block or block.negative_slope != first.negative_slope or block.norm.eps != first.norm.eps:
            return None
        conv = block.conv
        moves = conv.kernel_size, conv.stride, conv.padding
        if type(conv) is not Conv2d or moves != ((3, 3), (1, 1), (1, 1)):
            return None
    norms = [block.norm for block in blocks]
    return values_of(norms, [*blocks, *(block.conv for block in blocks)])


Vectors = Sequence[Tensor | None]


def fused(
    x: Tensor, filters: Sequence[Tensor], shifts: Vectors, weights: Vectors, biases: Vectors, eps: float, slope: float,
    given: Sequence[Moments] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """h_B of h_i = LeakyReLU(max-pool(norm(W_i ∗ h_{i−1} + b_i))), h_0 = x, where `native.takes_blocks`.

    Arguments:
        x: (N, C, H, W). filters: W_i (F, C, 3, 3), then (F, F, 3, 3).
        shifts: b_i (F,) or None. Their gradient is zero: batch norm takes away what they add.
        weights, biases: γ_i and β_i (F,) of the norms; None for ones and zeros.
        eps: ε, added to the variances. slope: of the activation below zero.
        given: means and variances (F,) to normalise by, under `torch.no_grad` alone; the batch's own where None.

    Returns:
        h_B (N, F, H // 2^B, W // 2^B), the means (B, F) and the biased variances (B, F) of W_i ∗ h_{i−1} + b_i, which
        carry no gradient.

    Raises:
        ValueError: a vector of another length or type, too few or too many; given statistics in grad mode.

    Example:
        >>> x, none = torch.randn(5, 1, 8, 8), [None, None]
        >>> filters = [torch.randn(16, 1, 3, 3), torch.randn(16, 16, 3, 3)]
        >>> taken = native.takes_blocks(x, filters)
        >>> (fused(x, filters, none, none, none, 1e-5, 0.01)[0] if taken else x[..., :2, :2]).shape[2:]
        torch.Size([2, 2])
    """
    settings, count, fixed = Settings(eps, slope, keep=torch.is_grad_enabled()), len(filters), None
    if any(len(each) != count for each in (shifts, weights, biases, given or filters)):
        raise ValueError(f"{count} blocks need as many filters, shifts, weights, biases and statistics")
    if given and settings.keep:
        raise ValueError("given statistics have no derivatives here: call fused() under torch.no_grad()")
    vectors = native.rows(filters[0], weights, biases, shifts, missing=(1, 0, 0))
    if given:
        fixed = native.rows(filters[0], *zip(*given, strict=True), missing=(0, 0))
    y, _, moments, *_ = _Blocks.apply(x, vectors, fixed, *filters, settings)
    return y, moments[:count], moments[count : 2 * count]


@dataclass(frozen=True)
class Settings:
    """ε, the activation's slope, groups of channels; whether to keep what derivatives need, to compute those of x."""

    eps: float
    slope: float
    groups: int = 1
    keep: bool = True
    of_x: bool = False


# With z_i = W_i ∗ h_{i−1}, the gradients a_i of h_i and the cotangents u of the first gradient:
#
#     dz_i, dγ_i, dβ_i = norm'(a_i; z_i, γ_i),  a_{i−1} = W_iᵀ dz_i + what else asks for h_{i−1},  dW_i = dz_i ⋆ h_{i−1}
#     u_z = W_i ∗ u_{i−1} + u_W ∗ h_{i−1}
#     u_i = ∂/∂a_i, g_z, ∂/∂γ_i = norm''(u_z, u_γ, u_β; a_i, z_i, γ_i)
#     ∂/∂h_{i−1} = W_iᵀ g_z + u_Wᵀ dz_i,  ∂/∂W_i = g_z ⋆ h_{i−1} + dz_i ⋆ u_{i−1}
#
# What lies between the blocks is a result of its own, so that the last line waits for the pass through the first line
# that is made anyway. `vectors` are γ_i, then β_i, then b_i.


class _Blocks(Grouped):
    """(x, vectors, statistics, W_i) -> h_B, the other h_i and what derivatives need."""

    filters_in = range(3, sys.maxsize)

    @staticmethod
    def forward(x: Tensor, vectors: Tensor, given: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
        *filters, at = rest
        return native.blocks(x, vectors, given, filters, at.eps, at.slope, at.groups, at.keep)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, vectors, _, *filters, ctx.at = inputs
        ctx.mark_non_differentiable(*output[2 if ctx.at.keep else 0 :])  # a transform may not have seen `no_grad`
        ctx.save_for_backward(x, vectors, *output[1:], *filters)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, a: Tensor | None, a_inner: Tensor | None, *_: Any) -> Any:
        x, vectors, inner, moments, z, corner, *filters = ctx.saved_tensors
        if a is None and a_inner is None:
            return (None,) * (4 + len(filters))
        if a is None:
            a = x.new_zeros(len(x), len(filters[0]), *(size >> len(filters) for size in x.shape[2:]))
        at = replace(ctx.at, of_x=ctx.needs_input_grad[0])
        dx, d_vectors, _, *d_filters = _First.apply(a, a_inner, x, vectors, inner, moments, z, corner, *filters, at)
        return dx, d_vectors, None, *d_filters, None


class _First(Grouped):
    """(a_B, a_i, x, vectors, h_i, W_i) -> dx, their gradient, dW_i; and the whole gradient of h_i."""

    filters_in, filters_out = range(8, sys.maxsize), range(3, sys.maxsize)

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor | None, ...]:
        a, a_inner, x, vectors, inner, moments, z, corner, *filters, at = inputs
        given = a, a_inner, x, vectors, inner, moments, z, corner, filters
        return native.blocks_first(*given, at.slope, at.groups, at.of_x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *given, ctx.at = inputs
        _, d_vectors, d_inner, *_ = output
        ctx.mark_non_differentiable(d_inner)
        ctx.save_for_backward(*given[:8], d_vectors, d_inner, *given[8:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, u_x: Any, u_vectors: Any, _: Any, *u_filters: Any) -> Any:
        *given, d_vectors, d_inner = ctx.saved_tensors[:10]
        filters, at = ctx.saved_tensors[10:], replace(ctx.at, of_x=ctx.needs_input_grad[2])
        results = _Second.apply(u_x, u_vectors, *given, d_vectors, d_inner, *filters, *u_filters, at)
        g_a, g_a_inner, *g_maps = results[:5]
        g_a_inner = g_a_inner if ctx.needs_input_grad[1] else None
        return g_a, g_a_inner, *g_maps, None, None, None, *results[5:], None


class _Second(Grouped):
    """(u_x, u_vectors, u_W_i) -> their pull-back to (a_B, a_i, x, vectors, h_i, W_i)."""

    filters_in, filters_out = range(12, sys.maxsize), range(5, sys.maxsize)

    @staticmethod
    def forward(u_x: Any, u_vectors: Any, a: Tensor, _: Any, *rest: Any) -> tuple[Tensor | None, ...]:
        x, vectors, inner, moments, z, corner, d_vectors, d_inner, *filters, at = rest
        filters, u_filters = filters[: len(filters) // 2], filters[len(filters) // 2 :]
        given = a, x, vectors, inner, moments, z, corner, filters, d_vectors, d_inner
        return native.blocks_second(u_x, u_vectors, u_filters, *given, at.slope, at.groups, at.of_x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, _output: Any) -> None:
        *tensors, ctx.at = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        # Third derivatives are rare: torch derives them from the plain formulas.
        saved, count = ctx.saved_tensors, (len(ctx.saved_tensors) - 12) // 2
        corner = saved[9]
        places = [0, 1, *range(2, 7), *range(12, len(saved))]  # of what the second derivative depends on
        given = [i for i in places if saved[i] is not None]
        wanted = [i for i, c in enumerate(cotangents) if c is not None]

        def first(a: Tensor, a_inner: Tensor, x: Tensor, vectors: Tensor, inner: Tensor, *filters: Tensor) -> Any:
            return _plain_first(a, a_inner, x, vectors, inner, filters, corner, ctx.at)

        def second(*given_tensors: Tensor) -> tuple[Tensor, ...]:
            inputs: dict[int, Tensor] = dict(zip(given, given_tensors, strict=True))
            inputs.setdefault(3, torch.zeros_like(saved[6]))
            point = [inputs[i] for i in (*range(2, 7), *range(12, 12 + count))]
            outputs, pull_back = torch.func.vjp(first, *point)[:2]
            us = [inputs.get(i) for i in (0, 1, *range(12 + count, 12 + 2 * count))]
            us = [torch.zeros_like(t) if u is None else u for u, t in zip(us, outputs, strict=True)]
            results = pull_back(tuple(us))
            return tuple(results[i] for i in wanted)

        pull_back = torch.func.vjp(second, *(saved[i] for i in given))[1]
        gradients = dict(zip(given, pull_back(tuple(cotangents[i] for i in wanted)), strict=True))
        return *(gradients.get(i) for i in range(len(saved))), None


def _plain_first(
    a: Tensor, a_inner: Tensor, x: Tensor, vectors: Tensor, inner: Tensor, filters: Sequence[Tensor], corner: Tensor,
    at: Settings,
) -> tuple[Tensor, ...]:  # fmt: skip
    """What `_First` computes, of torch's operators."""
    count, (n, _, height, width) = len(filters), x.shape
    pixels = [n * (height >> i) * (width >> i) for i in range(1, count + 1)]

    def maps(rows: Tensor, i: int) -> Tensor:
        start = sum(pixels[:i])
        return rows[start : start + pixels[i]].view(n, height >> i + 1, width >> i + 1, -1).permute(0, 3, 1, 2)

    d_vectors, d_filters = [torch.zeros_like(vectors[0])] * (3 * count), list(filters)
    for i in reversed(range(count)):
        given = maps(inner, i - 1) if i else x
        point, plain = (
            (given, filters[i], vectors[i], vectors[count + i]),
            partial(_plain, corner=maps(corner, i), at=at),
        )
        a, d_filters[i], d_vectors[i], d_vectors[count + i] = torch.func.vjp(plain, *point)[1](a)
        a = a + maps(a_inner, i - 1) if i else a
    return a, torch.stack(d_vectors), *d_filters


def _plain(x: Tensor, filters: Tensor, weight: Tensor, bias: Tensor, corner: Tensor, at: Settings) -> Tensor:
    z = F.conv2d(x, filters, None, padding=1, groups=at.groups)
    y = apply_statistics(z, *batch_statistics(z), weight, bias, at.eps)
    windows = y.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)
    return F.leaky_relu(windows.gather(4, corner[..., None].long())[..., 0], at.slope)
