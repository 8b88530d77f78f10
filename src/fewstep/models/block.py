"""The block of Conv4: convolution, batch norm, max-pooling, activation."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook

from fewstep.models import fused, native
from fewstep.models.convolution import Conv2d
from fewstep.models.norm import PooledBatchNorm, ValueNorm, value_norm


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
    told: list[Any] = [value_norm(norm) for norm in norms]
    given = [norm.given for norm in told] if told[0].given else None
    settings = norms[0].eps, layers[0].negative_slope
    x, means, variances = fused.blocks(x, filters, shifts, weights, biases, *settings, given)
    if not given:
        for norm, mean, var in zip(told, means.unbind(), variances.unbind(), strict=True):
            norm.tell(mean, var)
    return x


def alike(blocks: Sequence[Any]) -> bool:
    """Whether blocks are what they were built as, with the same settings, and no hook waits in them."""
    if not blocks or _has_any_global_hook() or not all(type(block) is Block for block in blocks):
        return False
    told = [value_norm(block.norm) for block in blocks]
    if not all(map(_plain, blocks, told)):
        return False
    eps, slope, own = blocks[0].norm.eps, blocks[0].negative_slope, told[0].given is None  # type: ignore[union-attr]
    return all(
        block.negative_slope == slope and block.norm.eps == eps and (norm.given is None) == own  # type: ignore[union-attr]
        for block, norm in zip(blocks, told, strict=True)
    )


def _plain(block: Any, norm: ValueNorm | None) -> bool:
    return (
        type(block.conv) is Conv2d
        and block.conv.kernel_size == (3, 3)
        and block.conv.stride == block.conv.padding == (1, 1)
        and norm is not None
        and norm.fuses
        and untouched(block)
        and untouched(block.conv)
        and untouched(block.norm)
    )


def untouched(layer: nn.Module) -> bool:
    """Whether a call of the layer is one of the `forward` of its class: without hooks, without one of its own."""
    own = layer.__dict__
    return not (
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or not isinstance(own.get("forward"), ValueNorm | None)
    )
