"""The four-block convolutional network of the few-shot literature."""

from typing import Literal

import torch
from torch import Tensor, nn

from fewstep.errors import BadInput, unknown
from fewstep.models.block import Block, through
from fewstep.models.images import channels_last, image_shape


class Conv4(nn.Module):
    """Four blocks of convolution, batch norm, LeakyReLU and max-pooling, then a linear head.

        h₀ = x,  hᵢ₊₁ = pool(LeakyReLU(norm(Wᵢ ∗ hᵢ + bᵢ))),  logits = V flatten(h₄) + c

    Arguments:
        ways: classes of a task.
        channels: channels of an image.
        filters: channels of every hidden map.
        image_size: height and width in pixels, one number if equal.
        downsample: "max_pool" 2×2 in every block, or "stride" 2 in every convolution and the mean of the last map.
        init: "xavier" draws convolutions and head from Xavier's uniform, with zero biases; "default" as torch.
        blocks: number of blocks.
        negative_slope: slope of the activation below zero; 0 is ReLU, 0.01 what the code released with MAML++ uses.

    Raises:
        BadInput: images too small to halve once a block, or others than the network was built for.

    Source: Vinyals et al., Matching Networks, NeurIPS 2016; Antoniou et al., How to train your MAML, ICLR 2019.

    Shapes: (N, channels, height, width) -> (N, ways).

    Example:
        >>> Conv4(ways=5, channels=3, filters=48, image_size=84)(torch.zeros(25, 3, 84, 84)).shape
        torch.Size([25, 5])
    """

    def __init__(
        self,
        ways: int = 5,
        channels: int = 1,
        filters: int = 64,
        image_size: int | tuple[int, int] = 28,
        downsample: Literal["max_pool", "stride"] = "max_pool",
        init: Literal["xavier", "default"] = "xavier",
        blocks: int = 4,
        negative_slope: float = 0.01,
    ) -> None:
        super().__init__()
        if downsample not in ("max_pool", "stride"):
            raise unknown("downsample", downsample, ("max_pool", "stride"))
        if init not in ("xavier", "default"):
            raise unknown("init", init, ("xavier", "default"))
        if min(ways, channels, filters, blocks) < 1:
            raise BadInput(
                f"Conv4 needs one or more of each: {ways} ways, {channels} channels, {filters} filters, {blocks} blocks"
            )
        if negative_slope < 0:
            raise BadInput(f"negative_slope is {negative_slope}; it must not be below 0")
        pool = downsample == "max_pool"
        # Every block must find something to halve: pooling rounds down and must leave a pixel, strides round up.
        smallest = 2**blocks if pool else 2 ** (blocks - 1) + 1
        self.image_shape = image_shape(channels, image_size, smallest, f"{blocks} blocks with {downsample}")
        self.blocks = nn.ModuleList(
            Block(channels if i == 0 else filters, filters, pool, negative_slope) for i in range(blocks)
        )
        _, height, width = self.image_shape
        self.head = nn.Linear(filters * (height >> blocks) * (width >> blocks) if pool else filters, ways)
        self.pool = pool
        if init == "xavier":
            for name, parameter in self.named_parameters():
                if parameter.dim() > 1:
                    nn.init.xavier_uniform_(parameter)
                elif name.endswith("bias"):
                    nn.init.zeros_(parameter)
        # Pooling and norm are several times faster on a CPU with the channels last in memory; the layout of the
        # weights decides that of the maps.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        x = through(self.blocks, channels_last(x, self.image_shape, "Conv4"))
        return self.head(x.flatten(1) if self.pool else x.mean((2, 3)))
