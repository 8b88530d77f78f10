"""Convolution, batch norm, max-pooling and activation as one function with two derivatives in closed form."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.models import native
from fewstep.models.batch_norm import apply_statistics, batch_statistics, normalise
from fewstep.models.convolution import Conv2d, Geometry, Grouped
from fewstep.models.max_pool import max_pool

WHOLE = Geometry([1, 1], [1, 1])
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class PooledBatchNorm(nn.BatchNorm2d):
    """Batch norm, then max-pooling 2×2, in a third of the passes over the maps that the two take apart.

        y = max over 2×2 of γ x̂ + β

    An affine map keeps or turns the order of numbers, so the pixels that stay are known before anything is normalised,
    and only they are. Parameters and buffers are those of `torch.nn.BatchNorm2d`.

    Shapes: (N, C, H, W) -> (N, C, H // 2, W // 2).

    Example:
        >>> PooledBatchNorm(3, track_running_stats=False)(torch.randn(4, 3, 9, 8)).shape
        torch.Size([4, 3, 4, 4])
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.track_running_stats:  # torch keeps them; the twin of a `Learner` does without
            return max_pool(super().forward(x))
        return normalise(x, self.weight, self.bias, self.eps, pool=True)[0]

    def after(self, convolution: nn.Conv2d, x: Tensor, slope: float) -> Tensor:
        """LeakyReLU of the pooled norm of a convolution; one function where kernels take it."""
        if self.track_running_stats or type(self) is not PooledBatchNorm or not fuses(convolution, self, x):
            return F.leaky_relu(self(convolution(x)), slope)
        return block(x, convolution.weight, convolution.bias, self.weight, self.bias, self.eps, slope)[0]


def fuses(convolution: nn.Conv2d, norm: nn.Module, x: Tensor) -> bool:
    """Whether `block` can stand for a convolution of x and what comes after it; not where somebody's hook looks."""
    return (
        type(convolution) is Conv2d
        and (convolution.kernel_size, convolution.stride, convolution.padding) == ((3, 3), (1, 1), (1, 1))
        and not any(getattr(layer, hooks) for layer in (convolution, norm) for hooks in HOOKS)
        and native.takes(x, convolution.weight)
        and min(x.shape[2:]) > 1
    )


def block(
    x: Tensor,
    filters: Tensor,
    shift: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """LeakyReLU(max-pool(norm(W ∗ x + b))), where `native.takes` x: a call for what is a dozen operators otherwise.

    Args:
        x: (N, C, H, W).
        filters: W (F, C, 3, 3).
        shift: b (F,) or None. Its gradient is zero: batch norm takes away what it adds.
        weight, bias: γ and β (F,) of the norm; None for ones and zeros.
        eps: ε, added to the variance.
        slope: of the activation below zero.

    Returns:
        y (N, F, H // 2, W // 2), the mean (F,) and the biased variance (F,) of W ∗ x + b, which carry no gradient.

    Raises:
        ValueError: a vector of another length or type.

    Example:
        >>> x, filters = torch.randn(5, 1, 8, 8), torch.randn(8, 1, 3, 3)
        >>> list(block(x, filters, None, None, None, 1e-5, 0.01)[0].shape) if native.takes(x, filters) else [5, 8, 4, 4]
        [5, 8, 4, 4]
    """
    for vector in (shift, weight, bias):
        if vector is not None and not native.fits(vector, filters):
            raise ValueError(
                f"the convolution gives {len(filters)} channels of {x.dtype} on {x.device}; its bias or the norm after "
                f"it has {tuple(vector.shape)} of {vector.dtype} on {vector.device}"
            )
    weight = x.new_ones(len(filters)) if weight is None else weight
    bias = x.new_zeros(len(filters)) if bias is None else bias
    y, mean, var, *_ = _Block.apply(x, filters, weight, bias, shift, eps, slope, WHOLE)
    return y, mean, var


# With z = W ∗ x, the gradient a of y and the cotangents u of the first gradient:
#
#     dz, dγ, dβ = norm'(a; z, γ),  dx = Wᵀ dz,  dW = dz ⋆ x
#     u_z = W ∗ u_x + u_W ∗ x
#     ∂/∂a, g_z, ∂/∂γ = norm''(u_z, u_γ, u_β; a, z, γ)
#     ∂/∂x = Wᵀ g_z + u_Wᵀ dz,  ∂/∂W = g_z ⋆ x + dz ⋆ u_x


class _Block(Grouped):
    """(x, W, γ, β) -> y and what its derivatives need."""

    filters_in = (1,)

    @staticmethod
    def forward(
        x: Tensor, filters: Tensor, weight: Tensor, bias: Tensor, shift: Tensor | None, eps: float, slope: float,
        at: Geometry,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        return native.block(x, filters, shift, weight, bias, eps, slope, at.groups)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *tensors, _, ctx.eps, ctx.slope, ctx.at = inputs
        ctx.mark_non_differentiable(*output[1:])
        _, mean, _, *rest = output
        ctx.save_for_backward(*tensors, mean, *rest)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, a: Tensor | None, *_: Any) -> Any:
        if a is None:
            return (None,) * 8
        x, filters, weight, bias, mean, rstd, z, kept, corner = ctx.saved_tensors
        settings = ctx.needs_input_grad[0], ctx.eps, ctx.slope, ctx.at
        results = _First.apply(a, x, filters, weight, bias, mean, rstd, z, kept, corner, *settings)
        of_shift = results[3] * 0 if ctx.needs_input_grad[4] else None  # not a constant: it may be differentiated
        return *results[:4], of_shift, None, None, None


class _First(Grouped):
    """(a, x, W, γ) -> dx, dW, dγ, dβ, and dz for the second derivative."""

    filters_in, filters_out = (2,), (1,)

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor | None, ...]:
        *given, of_x, _, slope, at = inputs
        return native.block_first(*given, slope=slope, groups=at.groups, of_x=of_x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *tensors, _, ctx.eps, ctx.slope, ctx.at = inputs
        ctx.mark_non_differentiable(output[4])
        ctx.save_for_backward(*tensors, *output[2:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        settings = ctx.needs_input_grad[1], ctx.eps, ctx.slope, ctx.at
        results = _Second.apply(*cotangents[:4], *ctx.saved_tensors, *settings)
        return *results, *[None] * 10


class _Second(Grouped):
    """(u_x, u_W, u_γ, u_β) -> their pull-back to (a, x, W, γ)."""

    filters_in, filters_out = (1, 6), (2,)

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor | None, ...]:
        *given, of_x, _, slope, at = inputs
        return native.block_second(*given, slope=slope, groups=at.groups, of_x=of_x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, _output: Any) -> None:
        *tensors, _, ctx.eps, ctx.slope, ctx.at = inputs
        ctx.save_for_backward(*tensors[:9], tensors[13])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        # Third derivatives are rare: torch derives them from the plain formula.
        *_, corner = ctx.saved_tensors
        given = [i for i, t in enumerate(ctx.saved_tensors[:9]) if t is not None]
        wanted = [i for i, c in enumerate(cotangents) if c is not None]

        def first(a: Tensor, *point: Tensor) -> Any:
            plain = partial(_plain, corner=corner, eps=ctx.eps, slope=ctx.slope, groups=ctx.at.groups)
            return torch.func.vjp(plain, *point)[1](a)

        def second(*given_tensors: Tensor) -> tuple[Tensor, ...]:
            inputs: dict[int, Tensor] = dict(zip(given, given_tensors, strict=True))
            point = tuple(inputs[i] for i in range(4, 9))
            outputs, pull_back = torch.func.vjp(first, *point)[:2]
            u = tuple(inputs[i] if i in inputs else torch.zeros_like(output) for i, output in enumerate(outputs))
            return tuple(pull_back(u)[i] for i in wanted)

        pull_back = torch.func.vjp(second, *(ctx.saved_tensors[i] for i in given))[1]
        gradients = dict(zip(given, pull_back(tuple(cotangents[i] for i in wanted)), strict=True))
        return *(gradients.get(i) for i in range(9)), *[None] * 12


def _plain(
    x: Tensor, filters: Tensor, weight: Tensor, bias: Tensor, corner: Tensor, eps: float, slope: float, groups: int
) -> Tensor:
    z = F.conv2d(x, filters, None, padding=1, groups=groups)
    y = apply_statistics(z, *batch_statistics(z), weight, bias, eps)
    windows = y.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)
    return F.leaky_relu(windows.gather(4, corner[..., None].long())[..., 0], slope)
