"""Convolution whose second derivative is as few convolutions as there are."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

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
        return _Convolve.apply(x, self.weight, self.bias, stride, padding)


# With cotangents a of y, and then (u, u_W, u_b) of the first gradient:
#
#     dx = Wᵀ a,  dW = a ⋆ x,  db = Σ a
#     ∂/∂a = W ∗ u + u_W ∗ x + u_b,  ∂/∂x = u_Wᵀ a,  ∂/∂W = a ⋆ u
#
# ∂/∂a is a single convolution of u and x side by side. Higher derivatives are torch's, of these very expressions.


class _Convolve(Function):
    """(x, W, b) -> y."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int]) -> Tensor:
        return _convolution(x, weight, bias, stride, padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, _output: Any) -> None:
        x, weight, _, ctx.stride, ctx.padding = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, a: Tensor) -> Any:
        return *_First.apply(a, *ctx.saved_tensors, ctx.needs_input_grad[:3], ctx.stride, ctx.padding), None, None


class _First(Function):
    """(a, x, W) -> dx, dW, db, those that are wanted."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        a: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool, bool], stride: list[int], padding: list[int]
    ) -> tuple[Tensor | None, ...]:
        return _gradients(a, x, weight, stride, padding, wanted)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, _output: Any) -> None:
        *tensors, _, ctx.stride, ctx.padding = inputs
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, u: Tensor | None, u_weight: Tensor | None, u_bias: Tensor | None) -> Any:
        a, x, weight = ctx.saved_tensors
        wants_a, wants_x, wants_weight = ctx.needs_input_grad[:3]
        g_a = g_x = g_weight = None
        if wants_a:
            sides = [(t, w) for t, w in ((u, weight), (x, u_weight)) if t is not None and w is not None]
            if sides:
                maps, weights = (each[0] if len(each) == 1 else torch.cat(each, 1) for each in zip(*sides, strict=True))
                g_a = _convolution(maps, weights, u_bias, ctx.stride, ctx.padding)
            elif u_bias is not None:
                g_a = u_bias[:, None, None].expand_as(a)
        if wants_x and u_weight is not None:
            g_x = _gradients(a, x, u_weight, ctx.stride, ctx.padding, (True, False, False))[0]
        if wants_weight and u is not None:
            g_weight = _gradients(a, u, weight, ctx.stride, ctx.padding, (False, True, False))[1]
        return g_a, g_x, g_weight, None, None, None


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int]) -> Tensor:
    return aten.convolution(x, weight, bias, stride, padding, [1, 1], False, [0, 0], 1)


def _gradients(
    a: Tensor, x: Tensor, weight: Tensor, stride: list[int], padding: list[int], wanted: tuple[bool, bool, bool]
) -> tuple[Tensor | None, ...]:
    return aten.convolution_backward(a, x, weight, [weight.shape[0]], stride, padding, [1, 1], False, [0, 0], 1, wanted)
