"""Convolution whose second derivative is as few convolutions as there are."""

from collections.abc import Container
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.models import native
from fewstep.models.functions import Quick, fold, unfold

aten = torch.ops.aten


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d` without groups or dilation, quicker to differentiate twice.

        y = W ∗ x + b

    Torch's own second derivative also asks for that of the images, and takes the weight's as a convolution with maps
    for kernels. Every derivative agrees with torch's.

    Shapes: (N, C, H, W) -> (N, F, H', W').

    Example:
        >>> Conv2d(1, 2, 3, padding=1)(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 2, 8, 8])
    """

    def __init__(self, channels: int, filters: int, size: int, stride: int = 1, padding: int = 0, bias: bool = True):
        super().__init__(channels, filters, size, stride, padding, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        stride, padding = list(self.stride), [int(p) for p in self.padding]
        if torch.compiler.is_compiling():
            # The compiler of torch drops a function's own derivatives: pytorch issue 193279.
            return F.conv2d(x, self.weight, self.bias, stride, padding)
        weight, bias = self.weight, self.bias
        device = x.device.type
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)  # derivatives are taken outside of autocast
            x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        return _Convolve.apply(x, weight, bias, Geometry(stride, padding))


# With cotangents a of y, and then (u, u_W, u_b) of the first gradient:
#
#     dx = Wᵀ a,  dW = a ⋆ x,  db = Σ a
#     ∂/∂a = W ∗ u + u_W ∗ x + u_b,  ∂/∂x = u_Wᵀ a,  ∂/∂W = a ⋆ u
#
# ∂/∂a is a single convolution of u and x side by side. Nothing is computed that nobody asked for.


@dataclass(frozen=True)
class Geometry:
    """How filters move, and into how many groups channels fall."""

    stride: list[int]
    padding: list[int]
    groups: int = 1


class Grouped(Quick):
    """An autograd function of maps (N, C, *), filters and vectors (C,), the last argument a dataclass with its groups.

    Under vmap tasks are groups of channels, as in `Channelwise`, whose maps then need no copy. Filters are known by
    their place among the arguments and the results.
    """

    filters_in: Container[int] = ()
    filters_out: Container[int] = ()

    @classmethod
    def vmap(cls, info: Any, in_dims: Any, *inputs: Any) -> Any:
        tasks, (*given, geometry) = info.batch_size, inputs
        folded = [
            t if not isinstance(t, Tensor) else (_fold_filters if i in cls.filters_in else _fold)(t, d, tasks)
            for i, (t, d) in enumerate(zip(given, in_dims[:-1], strict=True))
        ]
        results = cls.apply(*folded, replace(geometry, groups=geometry.groups * tasks))
        if isinstance(results, Tensor):
            return unfold(results, tasks)
        split = (
            (None, None)
            if t is None
            else (t.unflatten(0, (tasks, -1)), 0)
            if i in cls.filters_out
            else unfold(t, tasks)
            for i, t in enumerate(results)
        )
        tensors, dims = zip(*split, strict=True)
        return tensors, dims


def _fold(t: Tensor, dim: int | None, tasks: int) -> Tensor:
    t = fold(t, dim, tasks)
    return t.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2) if t.dim() == 4 else t  # channels last


def _fold_filters(t: Tensor, dim: int | None, tasks: int) -> Tensor:
    return (t.expand(tasks, *t.shape) if dim is None else t.movedim(dim, 0)).flatten(0, 1)


class _Convolve(Grouped):
    """(x, W, b) -> y."""

    filters_in = (1,)

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, at: Geometry) -> Tensor:
        return _convolution(x, weight, bias, at)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, _output: Any) -> None:
        x, weight, _, ctx.at = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, a: Tensor) -> Any:
        wanted = "".join("01"[needed] for needed in ctx.needs_input_grad[:3])
        return *_First.apply(a, *ctx.saved_tensors, wanted, ctx.at), None


class _First(Grouped):
    """(a, x, W) -> dx, dW, db, those that are wanted."""

    filters_in, filters_out = (2,), (1,)

    @staticmethod
    def forward(a: Tensor, x: Tensor, weight: Tensor, wanted: str, at: Geometry) -> tuple[Tensor | None, ...]:
        return _gradients(a, x, weight, wanted, at)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, _output: Any) -> None:
        *tensors, _, ctx.at = inputs
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        wanted = "".join("01"[needed] for needed in ctx.needs_input_grad[:3])
        return *_Second.apply(*cotangents, *ctx.saved_tensors, wanted, ctx.at), None, None


class _Second(Grouped):
    """(u, u_W, u_b) -> their pull-back to (a, x, W), where it is wanted."""

    filters_in, filters_out = (1, 5), (2,)

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor | None, ...]:
        return _second(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, _output: Any) -> None:
        *tensors, ctx.wanted, ctx.at = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        # Third derivatives are rare: torch derives them from the convolutions of the second.
        given = [i for i, t in enumerate(ctx.saved_tensors) if t is not None]

        def second(*point: Tensor) -> tuple[Tensor, ...]:
            inputs: Any = dict(zip(given, point, strict=True))
            u, u_weight, u_bias, a, x, weight = (inputs.get(i) for i in range(6))
            results = _second(u, u_weight, u_bias, a, x, weight, ctx.wanted, ctx.at)
            return tuple(t for t in results if t is not None)

        pull_back = torch.func.vjp(second, *(ctx.saved_tensors[i] for i in given))[1]
        gradients = dict(zip(given, pull_back(tuple(c for c in cotangents if c is not None)), strict=True))
        return *(gradients.get(i) for i in range(6)), None, None


def _second(
    u: Tensor | None, u_weight: Tensor | None, u_bias: Tensor | None,
    a: Tensor, x: Tensor, weight: Tensor, wanted: str, at: Geometry,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    g_a = g_x = g_weight = None
    if wanted[0] == "1":
        if u is not None and u_weight is not None:
            g_a = _convolution(_side_by_side(u, x, at.groups), torch.cat((weight, u_weight), 1), u_bias, at)
        elif u_weight is not None:
            g_a = _convolution(x, u_weight, u_bias, at)
        elif u is not None:
            g_a = _convolution(u, weight, u_bias, at)
        elif u_bias is not None:
            g_a = u_bias[:, None, None].expand_as(a).clone()
    if wanted[1] == "1" and u_weight is not None:
        g_x = _gradients(a, x, u_weight, "100", at)[0]
    if wanted[2] == "1" and u is not None:
        g_weight = _gradients(a, u, weight, "010", at)[1]
    return g_a, g_x, g_weight


def _side_by_side(u: Tensor, x: Tensor, groups: int) -> Tensor:
    """The channels of u, then those of x, group by group."""
    if groups == 1:
        return torch.cat((u, x), 1)
    both = torch.cat([t.permute(0, 2, 3, 1).unflatten(3, (groups, -1)) for t in (u, x)], 4)
    return both.flatten(3).permute(0, 3, 1, 2)


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None, at: Geometry) -> Tensor:
    if _native(x, weight, at) and (bias is None or native.fits(bias, weight)):
        return native.convolve([(x, weight)], bias, at.groups)
    return aten.convolution(x, weight, bias, at.stride, at.padding, [1, 1], False, [0, 0], at.groups)


def _gradients(a: Tensor, x: Tensor, weight: Tensor, wanted: str, at: Geometry) -> tuple[Tensor | None, ...]:
    mask = [flag == "1" for flag in wanted]
    if _native(x, weight, at):
        of_x, of_weight, of_bias = mask
        return (
            native.convolve([(a, weight)], None, at.groups, turned=True) if of_x else None,
            native.correlate([(x, a)], at.groups) if of_weight else None,
            a.sum((0, 2, 3)) if of_bias else None,
        )
    return aten.convolution_backward(
        a, x, weight, [len(weight)], at.stride, at.padding, [1, 1], False, [0, 0], at.groups, mask
    )


def _native(x: Tensor, weight: Tensor, at: Geometry) -> bool:
    return at.stride == at.padding == [1, 1] and native.takes(x, weight, at.groups)
