"""What autograd functions over maps share: tasks as channels under vmap, and one memory layout."""

import functools
import inspect
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from fewstep.models import native


class _Positional(inspect.Signature):
    """The signature of a function that is called with positional arguments alone: there is nothing to bind."""

    def bind(self, *args: Any, **_: Any) -> Any:
        return _Bound(args)


class _Bound:
    def __init__(self, args: tuple):
        self.args, self.kwargs = args, {}  # type: ignore[var-annotated]

    def apply_defaults(self) -> None: ...


class Quick(Function):
    """An autograd function called with positional arguments.

    Torch binds arguments to the signature of `forward` at every call, which takes longer than a small map does.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.forward.__signature__ = _Positional()  # type: ignore[attr-defined]


class Channelwise(Quick):
    """An autograd function of maps (N, C, *) and vectors (C,) that treats every channel alone.

    Under vmap, tasks are then only more channels: one call serves them all, each with its own statistics. A grouped
    convolution returns its maps as (N, T, C, *), so nothing is copied between the layers of a network.
    """

    @classmethod
    def vmap(cls, info: Any, in_dims: Any, *inputs: Any) -> Any:
        tasks = info.batch_size
        outputs = cls.apply(
            *(fold(i, d, tasks) if isinstance(i, Tensor) else i for i, d in zip(inputs, in_dims, strict=True))
        )
        if isinstance(outputs, Tensor):
            return unfold(outputs, tasks)
        tensors, dims = zip(*(unfold(output, tasks) for output in outputs), strict=True)
        return tensors, dims


def fold(tensor: Tensor, dim: int | None, tasks: int) -> Tensor:
    """Put dimension `dim` of T tasks into the channels: (N, C, *) -> (N, T·C, *), and (C,) -> (T·C,); None: shared.

    Example:
        >>> fold(torch.zeros(8, 5, 64, 28, 28), 0, 8).shape
        torch.Size([5, 512, 28, 28])
    """
    tensor = tensor.expand(tasks, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return tensor.flatten() if tensor.dim() == 2 else tensor.movedim(0, 1).flatten(1, 2)


def unfold(tensor: Tensor, tasks: int) -> tuple[Tensor, int]:
    """Undo `fold`, and say where the task dimension is: (N, T·C, *) -> (N, T, C, *), 1 and (T·C,) -> (T, C), 0.

    Example:
        >>> unfold(torch.zeros(5, 512, 28, 28), 8)[0].shape
        torch.Size([5, 8, 64, 28, 28])
    """
    dim = min(tensor.dim(), 2) - 1
    return tensor.unflatten(dim, (tasks, -1)), dim


def layout(x: Tensor) -> torch.memory_format:
    """Channels last if that is how the maps x (N, C, H, W) lie in memory, else contiguous."""
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def pick(x: Tensor, at: Tensor) -> Tensor:
    """The values of maps (N, C, H, W) at positions of each plane, (N, C, h, w), as they lie in memory.

    Example:
        >>> pick(torch.arange(8.0).view(1, 2, 2, 2), torch.tensor([3, 0]).view(1, 2, 1, 1)).flatten()
        tensor([3., 4.])
    """
    x = x.contiguous(memory_format=layout(x))
    index = _index(at, x)
    return _flat(x).index_select(0, _flat(index)).as_strided(index.shape, index.stride())


def place(x: Tensor, values: Tensor, at: Tensor) -> Tensor:
    """Add values to the maps x at positions of each plane, in place: the transpose of `pick`.

    Example:
        >>> place(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 1, 1), torch.tensor([3]).view(1, 1, 1, 1)).flatten()
        tensor([0., 0., 0., 1.])
    """
    values = values.contiguous(memory_format=layout(x))
    _flat(x).scatter_add_(0, _flat(_index(at, x)), _flat(values))
    return x


def _flat(x: Tensor) -> Tensor:
    return x.as_strided((x.numel(),), (1,))


def _index(at: Tensor, x: Tensor) -> Tensor:
    """Where the positions are in the memory of x: one index into a flat tensor is several times faster than four."""
    # A tensor that a mode has made is not for others, nor one of others for the mode.
    planes = _planes if native.no_mode() else _planes.__wrapped__
    first = planes(x.shape[:2], x.stride()[:2], x.device)
    return torch.add(first, at, alpha=x.stride(3)).contiguous(memory_format=layout(x))


@functools.lru_cache(maxsize=64)
def _planes(shape: torch.Size, stride: tuple[int, int], device: torch.device) -> Tensor:
    """Where each plane begins, (N, C, 1, 1)."""
    images, channels = (torch.arange(n, device=device) * s for n, s in zip(shape, stride, strict=True))
    return (images[:, None] + channels)[:, :, None, None]
