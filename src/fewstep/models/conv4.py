"""The four-block convolutional network of the few-shot literature."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from fewstep.errors import BadInput, unknown
from fewstep.models import native
from fewstep.models.block import Block, gradients, through, untouched


class Conv4(nn.Module):
    """Four blocks of convolution, batch norm, LeakyReLU and max-pooling, then a linear head.

        h₀ = x,  hᵢ₊₁ = pool(LeakyReLU(norm(Wᵢ ∗ hᵢ + bᵢ))),  logits = V flatten(h₄) + c

    Args:
        ways: classes of a task.
        channels: channels of an image.
        filters: channels of every hidden map.
        image_size: height and width in pixels, one number if equal.
        downsample: "max_pool" 2×2 in every block, or "stride" 2 in every convolution and the mean of the last map.
        init: "xavier" draws convolutions and head from Xavier's uniform, with zero biases; "default" as torch.
        blocks: number of blocks.
        negative_slope: slope of the activation below zero; 0 is ReLU, 0.01 what the code released with MAML++ uses.

    Shapes: (N, channels, height, width) -> (N, ways).

    Raises:
        BadInput: images too small to halve once a block, or others than the network was built for.

    Source: Vinyals et al., Matching Networks, NeurIPS 2016; Antoniou et al., How to train your MAML, ICLR 2019.

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
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        pool = downsample == "max_pool"
        # Every block must find something to halve: pooling rounds down and must leave a pixel, strides round up.
        smallest = 2**blocks if pool else 2 ** (blocks - 1) + 1
        if min(height, width) < smallest:
            raise BadInput(
                f"images of {height}×{width} pixels are too small for {blocks} blocks with {downsample}: "
                f"the smallest is {smallest}×{smallest}"
            )
        self.image_shape = (channels, height, width)
        self.blocks = nn.ModuleList(
            Block(channels if i == 0 else filters, filters, pool, negative_slope) for i in range(blocks)
        )
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
        x = through(self.blocks, self._images(x))
        return self.head(x.flatten(1) if self.pool else x.mean((2, 3)))

    def cross_entropy_gradients(self, x: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]] | None:
        """The mean cross-entropy and its gradients by name of the parameters, in closed form: there is no graph.

        Args:
            x: (N, channels, height, width). labels: (N,).

        Returns:
            None where `forward` and torch must be asked: without kernels, with hooks or other layers, where a label has
            no output.

        Example:
            >>> from fewstep.models import native
            >>> model = Conv4(ways=5)
            >>> found = model.cross_entropy_gradients(torch.randn(5, 1, 28, 28), torch.arange(5))
            >>> set(found[1]) == {name for name, _ in model.named_parameters()} if native.there() else found is None
            True
        """
        head: Any = self.head
        if not (type(self) is Conv4 and type(head) is nn.Linear and untouched(self) and untouched(head) and self.pool):
            return None
        loss = d_weight = d_bias = x

        def above(h: Tensor) -> Tensor | None:
            nonlocal loss, d_weight, d_bias
            if not native.takes_head(h, labels, head.weight, head.bias):
                return None
            loss, d_h, d_weight, d_bias = native.head(h, labels, head.weight, head.bias)
            return None if loss.isnan() else d_h

        found = gradients(self.blocks, self._images(x), above)
        if found is None:
            return None
        own = {f"blocks.{name}": gradient for name, gradient in found.items()}
        return loss, own | {"head.weight": d_weight, "head.bias": d_bias}

    def _images(self, x: Tensor) -> Tensor:
        """Images as the blocks take them.

        Raises:
            BadInput: others than the network was built for.
        """
        if x.shape[1:] != self.image_shape:
            built, given = ("×".join(map(str, shape)) for shape in (self.image_shape, x.shape[1:]))
            raise BadInput(f"this Conv4 was built for images of {built}; it was given {given}")
        if x.shape[1] == 1:
            # With one channel both layouts are one, and only the strides can tell torch which is meant.
            x = x.reshape(x.shape[0], *x.shape[2:], 1).movedim(-1, 1)
        return x
