"""Tasks side by side as channels: what lets one call of a channelwise function serve every task under vmap."""

from collections.abc import Sequence

from torch import Tensor


def fold(tensor: Tensor, dim: int | None, tasks: int) -> Tensor:
    """Put the task dimension into the channels: (N, C, *) with T tasks -> (N, T·C, *), and (C,) -> (T·C,).

    Args:
        tensor: a batch of maps or a vector of channels, with a task dimension.
        dim: where the task dimension is; None if all tasks share the tensor.
        tasks: T.

    A grouped convolution returns its maps as (N, T, C, *), so nothing is copied between the layers of a network.

    Example:
        >>> fold(torch.zeros(8, 5, 64, 28, 28), 0, 8).shape
        torch.Size([5, 512, 28, 28])
    """
    tensor = tensor.expand(tasks, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return tensor.flatten() if tensor.dim() == 2 else tensor.movedim(0, 1).flatten(1, 2)


def unfold(tensors: Sequence[Tensor], tasks: int) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """Undo `fold`: (N, T·C, *) -> (N, T, C, *) and (T·C,) -> (T, C), and where each has its task dimension.

    Example:
        >>> (maps,), dims = unfold([torch.zeros(5, 512, 28, 28)], 8)
        >>> maps.shape, dims
        (torch.Size([5, 8, 64, 28, 28]), (1,))
    """
    dims = tuple(min(tensor.dim(), 2) - 1 for tensor in tensors)
    return tuple(t.unflatten(d, (tasks, -1)) for t, d in zip(tensors, dims, strict=True)), dims
