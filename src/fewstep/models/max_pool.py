"""Max-pooling 2×2 that is quick to differentiate twice."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fewstep.models.functions import Channelwise, layout, pick, place

aten = torch.ops.aten
SIZE = [2, 2]


def max_pool(x: Tensor) -> Tensor:
    """The largest of every 2×2 pixels; equal to `torch.nn.functional.max_pool2d(x, 2)` in all derivatives.

        y[n, c, i, j] = max(x[n, c, 2i:2i+2, 2j:2j+2])

    Which pixel is the largest is all the derivatives need, so the map is not kept. The second derivative of torch's own
    also adds a map of zeros, and in the other memory layout, which slows whatever receives the sum.

    Arguments:
        x: maps (N, C, H, W) with H and W of at least two; a last odd row or column is dropped.

    Returns:
        (N, C, H // 2, W // 2).

    Example:
        >>> max_pool(torch.arange(4.0).view(1, 1, 2, 2))
        tensor([[[[3.]]]])
    """
    if torch.compiler.is_compiling():
        # The compiler of torch drops a function's own derivatives: pytorch issue 193279.
        return F.max_pool2d(x.contiguous(), 2)  # under vmap torch has a second derivative for this layout alone
    return _MaxPool.apply(x)[0]


class _MaxPool(Channelwise):
    """x -> y, and the position of each maximum as a constant."""

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        return aten.max_pool2d_with_indices(x, SIZE, SIZE)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])
        ctx.map = inputs[0].shape[2:], layout(inputs[0])

    @staticmethod
    def backward(ctx: Any, a: Tensor, _: Any) -> Tensor:
        return _Move.apply(a, *ctx.saved_tensors, *ctx.map, True)


class _Move(Channelwise):
    """Values to their positions in a map of zeros; or values of a map at the positions, the transpose of that."""

    @staticmethod
    def forward(values: Tensor, positions: Tensor, size: torch.Size, lies: torch.memory_format, there: bool) -> Tensor:
        if not there:
            return pick(values.contiguous(memory_format=lies), positions)
        shape = *values.shape[:2], *size
        maps = torch.empty(shape, dtype=values.dtype, device=values.device, memory_format=lies)
        return place(maps.zero_(), values, positions)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, _output: Any) -> None:
        _, positions, *ctx.map, ctx.there = inputs
        ctx.save_for_backward(positions)

    @staticmethod
    def backward(ctx: Any, a: Tensor) -> tuple[Tensor | None, ...]:
        return _Move.apply(a, *ctx.saved_tensors, *ctx.map, not ctx.there), None, None, None, None
