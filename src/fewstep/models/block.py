"""The block of Conv4: convolution, batch norm, max-pooling, activation."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

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
    if not _fuse(layers, x):
        for block in layers:
            x = block(x)
        return x
    norms = [block.norm for block in layers]
    given = [norm.given for norm in norms] if norms[0].given else None
    x, means, variances = fused.blocks(x, *_settings(layers), given)
    if not given:
        _tell(norms, means.unbind(), variances.unbind())
    return x


def gradients(
    blocks: Iterable[nn.Module], x: Tensor, above: Callable[[Tensor], Tensor | None]
) -> dict[str, Tensor] | None:
    """The gradients of a function of `through(blocks, x)` by the blocks' names of parameters, without a graph.

    Args:
        above: from the blocks' output to the function's gradient there; None gives up.

    Returns:
        None where they do not go as one function, normalise by statistics that they were given, `above` gave up, or
        under `torch.func`.

    Example:
        >>> import torch
        >>> found = gradients([Block(1, 8, True, 0.1)], torch.randn(5, 1, 8, 8), torch.ones_like)
        >>> "0.conv.weight" in found if native.there() else found is None
        True
    """
    layers: list[Any] = list(blocks)
    if native.transformed() or not _fuse(layers, x) or layers[0].norm.given:
        return None
    found = fused.gradients(x, *_settings(layers), above)
    if found is None:
        return None
    means, variances, weights, biases, shifts, filters = found
    _tell([block.norm for block in layers], means, variances)
    parts = {"conv.weight": filters, "conv.bias": shifts, "norm.weight": weights, "norm.bias": biases}
    return {f"{i}.{name}": gradient for name, each in parts.items() for i, gradient in enumerate(each)}


class _Settings(NamedTuple):
    """What `fused` wants to know of blocks."""

    filters: list[Tensor]
    shifts: list[Tensor | None]
    weights: list[Tensor | None]
    biases: list[Tensor | None]
    eps: float
    slope: float


def _settings(blocks: list[Any]) -> _Settings:
    convs, norms = [block.conv for block in blocks], [block.norm for block in blocks]
    vectors = [conv.bias for conv in convs], [norm.weight for norm in norms], [norm.bias for norm in norms]
    return _Settings([conv.weight for conv in convs], *vectors, norms[0].eps, blocks[0].negative_slope)


def _tell(norms: Sequence[Any], means: Sequence[Tensor], variances: Sequence[Tensor]) -> None:
    for norm, mean, var in zip(norms, means, variances, strict=True):
        norm.tell(mean, var)


def _fuse(blocks: list[Any], x: Tensor) -> bool:
    """Whether the blocks are what they were built as, alike, no hook waits in them, and kernels take them all."""
    return all(type(block) is Block and _plain(block, block.conv, block.norm) for block in blocks) and (
        len({(block.norm.eps, block.negative_slope, block.norm.given is None) for block in blocks}) == 1
        and not _has_any_global_hook()
        and native.takes_blocks(x, [block.conv.weight for block in blocks])
    )


def _plain(block: nn.Module, conv: Any, norm: Any) -> bool:
    return (
        type(conv) is Conv2d
        and (conv.kernel_size, conv.stride, conv.padding) == ((3, 3), (1, 1), (1, 1))
        and getattr(norm, "fuses", False)
        and all(map(untouched, (block, conv, norm)))
    )


def untouched(layer: nn.Module) -> bool:
    """Whether a call of the layer is one of the `forward` of its class: without hooks, without one of its own."""
    own = vars(layer)
    return not any(own[hooks] for hooks in HOOKS) and "forward" not in own
