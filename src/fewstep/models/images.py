"""What Conv4 and ResNet12 ask of images."""

from torch import Tensor

from fewstep.errors import BadInput


def image_shape(channels: int, size: int | tuple[int, int], smallest: int, network: str) -> tuple[int, int, int]:
    """Channels, height and width of images of a size, which is one number where height and width are equal.

    Raises:
        BadInput: sides below the smallest that the network can halve.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < smallest:
        raise BadInput(
            f"images of {height}×{width} pixels are too small for {network}: the smallest is {smallest}×{smallest}"
        )
    return channels, height, width


def channels_last(x: Tensor, shape: tuple[int, int, int], network: str) -> Tensor:
    """Images (N, *shape), the channels last in memory: norms and pooling are then several times faster on a CPU.

    Raises:
        BadInput: images of another shape.

    Example:
        >>> import torch
        >>> channels_last(torch.zeros(5, 3, 8, 8), (3, 8, 8), "Conv4").stride()
        (192, 1, 24, 3)
    """
    if x.shape[1:] != shape:
        built, given = ("×".join(map(str, each)) for each in (shape, x.shape[1:]))
        raise BadInput(f"this {network} was built for images of {built}; it was given {given}")
    # With one channel both layouts are one, and only a new shape gives the strides that tell torch which is meant.
    last = x.movedim(1, -1).contiguous() if x.shape[1] > 1 else x.reshape(x.shape[0], *x.shape[2:], 1)
    return last.movedim(-1, 1)
