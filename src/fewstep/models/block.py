"""The block of Conv4: convolution, batch norm, max-pooling, activation."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook

from fewstep.models import fused, native
from fewstep.models.batch_norm import normalise
from fewstep.models.convolution import Conv2d
from fewstep.models.max_pool import max_pool


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
    filters = [block.conv.weight for block in layers] if alike(layers) else []
    if not filters or not native.takes_blocks(x, filters):
        for block in layers:
            x = block(x)
        return x
    shifts, norms = [block.conv.bias for block in layers], [block.norm for block in layers]
    weights, biases = [norm.weight for norm in norms], [norm.bias for norm in norms]
    given = [norm.given for norm in norms] if norms[0].given else None
    settings = norms[0].eps, layers[0].negative_slope
    x, means, variances = fused.blocks(x, filters, shifts, weights, biases, *settings, given)
    if not given:
        for norm, mean, var in zip(norms, means.unbind(), variances.unbind(), strict=True):
            norm.tell(mean, var)
    return x


def alike(blocks: Sequence[Any]) -> bool:
    """Whether blocks are what they were built as, with the same settings, and no hook waits in them."""
    if not blocks or _has_any_global_hook() or not all(type(block) is Block for block in blocks):
        return False
    norms = [block.norm for block in blocks]
    if not all(map(_plain, blocks, (block.conv for block in blocks), norms)):
        return False
    eps, slope, own = norms[0].eps, blocks[0].negative_slope, norms[0].given is None
    return all(
        block.negative_slope == slope and norm.eps == eps and (norm.given is None) == own
        for block, norm in zip(blocks, norms, strict=True)
    )


def _plain(block: nn.Module, conv: Any, norm: Any) -> bool:
    return (
        type(conv) is Conv2d
        and conv.kernel_size == (3, 3)
        and conv.stride == conv.padding == (1, 1)
        and getattr(norm, "fuses", False)
        and untouched(block)
        and untouched(conv)
        and untouched(norm)
    )


def untouched(layer: nn.Module) -> bool:
    """Whether a call of the layer is one of the `forward` of its class: without hooks, without one of its own."""
    own = layer.__dict__
    return not (
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or "forward" in own
    )
