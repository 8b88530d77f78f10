"""Max-pooling 2×2 that is quick to differentiate twice."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from fewstep.models.folding import fold, unfold

aten = torch.ops.aten
SIZE = [2, 2]


def max_pool(x: Tensor) -> Tensor:
    """The largest of every 2×2 pixels; equal to `torch.nn.functional.max_pool2d(x, 2)` in all derivatives.

        y[n, c, i, j] = max(x[n, c, 2i:2i+2, 2j:2j+2])

    Which pixel is the largest is all the derivatives need, so the map is not kept. The second derivative of torch's own
    also adds a map of zeros, and in the other memory layout, which slows whatever receives the sum.

    Args:
        x: maps (N, C, H, W) with H and W of at least two; a last odd row or column is dropped.

    Returns:
        (N, C, H // 2, W // 2).

    Example:
        >>> max_pool(torch.arange(4.0).view(1, 1, 2, 2))
        tensor([[[[3.]]]])
    """
    return _MaxPool.apply(x)[0]


class _MaxPool(Function):
    """x -> y, and the position of each maximum as a constant."""

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        return aten.max_pool2d_with_indices(x, SIZE, SIZE)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])
        ctx.size = inputs[0].shape[2:]

    @staticmethod
    def backward(ctx: Any, a: Tensor, _: Any) -> Tensor:
        return _Put.apply(a, *ctx.saved_tensors, ctx.size)

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor) -> Any:
        return unfold(_MaxPool.apply(fold(x, in_dims[0], info.batch_size)), info.batch_size)


class _Put(Function):
    """Values to their positions in a map of zeros."""

    @staticmethod
    def forward(a: Tensor, positions: Tensor, size: torch.Size) -> Tensor:
        layout = _layout(positions)
        # Torch asks for the map that was pooled, and looks only at its shape and layout.
        shape = torch.empty((*a.shape[:2], *size), dtype=a.dtype, device=a.device, memory_format=layout)
        a = a.contiguous(memory_format=layout)
        return aten.max_pool2d_with_indices_backward(a, shape, SIZE, SIZE, [0, 0], [1, 1], False, positions)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, torch.Size], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.size = inputs[2]

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor, None, None]:
        return _Take.apply(u, *ctx.saved_tensors), None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, a: Tensor, positions: Tensor, size: torch.Size) -> Any:
        a, positions = (fold(t, d, info.batch_size) for t, d in zip((a, positions), in_dims, strict=False))
        (out,), (dim,) = unfold([_Put.apply(a, positions, size)], info.batch_size)
        return out, dim


class _Take(Function):
    """Values of a map at the positions: what `_Put` is the transpose of."""

    @staticmethod
    def forward(u: Tensor, positions: Tensor) -> Tensor:
        u = u.contiguous(memory_format=_layout(positions))
        return u.flatten(2).gather(2, positions.flatten(2)).view_as(positions)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.size = inputs[0].shape[2:]

    @staticmethod
    def backward(ctx: Any, a: Tensor) -> tuple[Tensor, None]:
        return _Put.apply(a, *ctx.saved_tensors, ctx.size), None

    @staticmethod
    def vmap(info: Any, in_dims: Any, u: Tensor, positions: Tensor) -> Any:
        u, positions = (fold(t, d, info.batch_size) for t, d in zip((u, positions), in_dims, strict=True))
        (out,), (dim,) = unfold([_Take.apply(u, positions)], info.batch_size)
        return out, dim


def _layout(x: Tensor) -> torch.memory_format:
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format
