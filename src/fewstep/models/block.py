"""The block of Conv4: convolution, batch norm, max-pooling, activation."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook

from fewstep.models import fused, native
from fewstep.models.batch_norm import normalise
from fewstep.models.convolution import Conv2d
from fewstep.models.max_pool import max_pool

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class PooledBatchNorm(nn.BatchNorm2d):
    """Batch norm, then max-pooling 2×2, in a third of the passes over the maps that the two take apart.

        y = max over 2×2 of γ x̂ + β

    An affine map keeps or turns the order of numbers, so the pixels that stay are known before anything is normalised,
    and only they are. Parameters and buffers are those of `torch.nn.BatchNorm2d`.

    Shapes: (N, C, H, W) -> (N, C, H // 2, W // 2).

    Example:
        >>> import torch
        >>> PooledBatchNorm(3, track_running_stats=False)(torch.randn(4, 3, 9, 8)).shape
        torch.Size([4, 3, 4, 4])
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.track_running_stats:  # torch keeps them; the twin of a `Learner` does without
            return max_pool(super().forward(x))
        return normalise(x, self.weight, self.bias, self.eps, pool=True)[0]

    @property
    def fuses(self) -> bool:
        """Whether `forward` may be a part of `fused.blocks`."""
        return type(self) is PooledBatchNorm and not self.track_running_stats

    @property
    def given(self) -> tuple[Tensor, Tensor] | None:
        """Mean and variance to normalise by; the batch's own where None."""
        return None

    def tell(self, mean: Tensor, var: Tensor) -> None:
        """Hear by which statistics it has normalised where it was a part of `fused.blocks`."""


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
    """x through one block after another: as one function where kernels take them all and nobody looks between.

    Example:
        >>> import torch
        >>> through([Block(1, 8, True, 0.1), Block(8, 8, True, 0.1)], torch.randn(5, 1, 8, 8)).shape
        torch.Size([5, 8, 2, 2])
    """
    layers: list[Any] = list(blocks)
    if not _fuse(layers) or not native.takes_blocks(x, [block.conv.weight for block in layers]):
        for block in layers:
            x = block(x)
        return x
    filters, shifts, weights, biases = (
        [getattr(getattr(block, layer), name) for block in layers]
        for layer in ("conv", "norm")
        for name in ("weight", "bias")
    )
    norms = [block.norm for block in layers]
    given = [norm.given for norm in norms] if norms[0].given else None
    x, *moments = fused.blocks(x, filters, shifts, weights, biases, norms[0].eps, layers[0].negative_slope, given)
    if not given:
        for norm, mean, var in zip(norms, *moments, strict=True):
            norm.tell(mean, var)
    return x


def _fuse(blocks: list[Any]) -> bool:
    """Whether the blocks are what they were built as, alike, and no hook waits in them."""
    return all(type(block) is Block and _plain(block, block.conv, block.norm) for block in blocks) and (
        len({(block.norm.eps, block.negative_slope, block.norm.given is None) for block in blocks}) == 1
        and not _has_any_global_hook()
    )


def _plain(block: nn.Module, conv: Any, norm: Any) -> bool:
    return (
        type(conv) is Conv2d
        and (conv.kernel_size, conv.stride, conv.padding) == ((3, 3), (1, 1), (1, 1))
        and getattr(norm, "fuses", False)
        and not any(getattr(layer, hooks) for layer in (block, conv, norm) for hooks in HOOKS)
        and not any("forward" in vars(layer) for layer in (block, conv, norm))
    )
