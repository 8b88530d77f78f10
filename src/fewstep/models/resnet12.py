"""The residual network of twelve convolutions of the few-shot literature."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.errors import BadInput
from fewstep.models.convolution import Conv2d
from fewstep.models.images import channels_last, image_shape
from fewstep.models.max_pool import max_pool


class Block(nn.Module):
    """Three convolutions 3×3 with batch norm beside a shortcut 1×1 with batch norm; their sum, activated and halved."""

    def __init__(self, channels: int, width: int, negative_slope: float) -> None:
        super().__init__()
        inputs = (channels, width, width)
        self.convs = nn.ModuleList(Conv2d(i, width, 3, padding=1, bias=False) for i in inputs)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width, track_running_stats=False) for _ in inputs)
        self.shortcut = Conv2d(channels, width, 1, bias=False)
        self.shortcut_norm = nn.BatchNorm2d(width, track_running_stats=False)
        self.negative_slope = negative_slope

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            h = norm(conv(F.leaky_relu(h, self.negative_slope) if i else h))
        # The activation never decreases, so it commutes with the maximum; afterwards it has a quarter of the work.
        return F.leaky_relu(max_pool(h + self.shortcut_norm(self.shortcut(x))), self.negative_slope)


class ResNet12(nn.Module):
    """Four residual blocks of three convolutions each, the mean of the last map, then a linear head.

        h₀ = x,  hᵢ₊₁ = pool(LeakyReLU(Fᵢ(hᵢ) + norm(Sᵢ ∗ hᵢ))),  logits = V mean(h₄) + c
        F(h) = norm(W₃ ∗ LeakyReLU(norm(W₂ ∗ LeakyReLU(norm(W₁ ∗ h)))))

    Convolutions have no bias, for a batch norm follows each. Nothing is dropped at random: DropBlock, which MetaOptNet
    trains with, is left out.

    Arguments:
        ways: classes of a task.
        channels: channels of an image.
        image_size: height and width in pixels, one number if equal.
        widths: channels of each block; the default is TADAM's, (64, 160, 320, 640) MetaOptNet's. Fewer or more widths
            make a network of fewer or more blocks.
        negative_slope: slope of the activation below zero; 0.1 as in MetaOptNet, 0 is ReLU.

    Raises:
        BadInput: images too small to halve once a block, or others than the network was built for.

    Source: Oreshkin et al., TADAM, NeurIPS 2018; Lee et al., MetaOptNet, CVPR 2019 (which flattens the last map).

    Shapes: (N, channels, height, width) -> (N, ways).

    Example:
        >>> ResNet12(ways=5, image_size=32, widths=(4, 8, 16, 32))(torch.zeros(25, 3, 32, 32)).shape
        torch.Size([25, 5])
    """

    def __init__(
        self,
        ways: int = 5,
        channels: int = 3,
        image_size: int | tuple[int, int] = 84,
        widths: Sequence[int] = (64, 128, 256, 512),
        negative_slope: float = 0.1,
    ) -> None:
        super().__init__()
        widths = tuple(widths)
        if not widths or min(ways, channels, *widths) < 1:
            raise BadInput(
                f"ResNet12 needs one or more of each: {ways} ways, {channels} channels, blocks of widths {widths}"
            )
        if negative_slope < 0:
            raise BadInput(f"negative_slope is {negative_slope}; it must not be below 0")
        self.image_shape = image_shape(channels, image_size, 2 ** len(widths), f"{len(widths)} residual blocks")
        self.blocks = nn.ModuleList(
            Block(inputs, width, negative_slope) for inputs, width in zip((channels, *widths), widths, strict=False)
        )
        self.head = nn.Linear(widths[-1], ways)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, negative_slope, "fan_out")
        # As in Conv4: norm and pooling are several times faster on a CPU with the channels last in memory.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        # The weight of a shortcut has one pixel, and so does not say which layout is meant: the images do.
        x = channels_last(x, self.image_shape, "ResNet12")
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))
