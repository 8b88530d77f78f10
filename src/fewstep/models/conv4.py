"""The four-block convolutional network of the few-shot literature."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fewstep.errors import BadInput, unknown
from fewstep.models import fused, native
from fewstep.models.block import Block, alike, through, untouched
from fewstep.models.norm import value_norm


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

    def cross_entropy_gradients(self, x: Tensor, labels: Tensor) -> Callable[[Mapping[str, Tensor]], Any] | None:
        """The mean cross-entropy of images and its gradients in closed form, as a function of the parameters by name.

        Args:
            x: (N, channels, height, width). labels: (N,).

        Returns:
            The function. It gives the loss, the gradient of every parameter by name, and mean and variance by name of
            the norm; or None, where the loss is no number (a label may have no output) or a tensor is not one for the
            kernels. None in its place where another `forward` may be meant: with hooks, other layers or parameters,
            statistics to normalise by.

        Raises:
            BadInput: other images than the network was built for.

        Example:
            >>> model, x, labels = Conv4(ways=5), torch.randn(5, 1, 28, 28), torch.arange(5)
            >>> found = model.cross_entropy_gradients(x, labels)(dict(model.named_parameters()))
            >>> found[1]["head.bias"].shape if native.there() else torch.Size([found or 5])
            torch.Size([5])
        """
        blocks: Any = self.blocks
        built = type(self) is Conv4 and untouched(self) and type(self.head) is nn.Linear and untouched(self.head)
        if not (built and self.pool and alike(blocks)) or value_norm(blocks[0].norm).given:
            return None
        places, ends = range(len(blocks)), ("norm.weight", "norm.bias", "conv.bias", "conv.weight")
        weights, biases, shifts, filters = ([f"blocks.{i}.{end}" for i in places] for end in ends)
        names = [*weights, *biases, *shifts, *filters, "head.weight", "head.bias"]
        norms = [f"blocks.{i}.norm" for i in places]
        layers: list[Any] = [block.norm for block in blocks] + [block.conv for block in blocks] + [self.head]
        if any(layer._parameters.keys() != {"weight", "bias"} for layer in layers):  # a tensor may be none of them
            return None
        there = {name for name, _ in self.named_parameters(remove_duplicate=False)}
        if there - set(names):
            return None
        images, eps, slope = self._images(x), blocks[0].norm.eps, blocks[0].negative_slope

        def gradients(parameters: Mapping[str, Tensor]) -> tuple[Any, ...] | None:
            if there - parameters.keys() or not native.unseen():
                return None
            of = parameters.get
            weight: Any = of("head.weight")
            bias: Any = of("head.bias")
            own: Any = list(map(of, filters))
            if not native.fit_classifier(images, labels, own, weight, bias):
                return None
            vectors = fused.rows(own, *(list(map(of, each)) for each in (shifts, weights, biases)))
            loss, moments, d_vectors, *d_head, d_filters = native.gradients(
                images, labels, vectors, own, weight, bias, eps, slope
            )
            if math.isnan(loss.item()):
                return None
            found, rows = (*d_vectors.unbind(), *d_filters, *d_head), moments.unbind()
            seen = zip(rows, rows[len(norms) :], strict=False)  # means, then variances, then what kernels keep
            return loss, dict(zip(names, found, strict=True)), dict(zip(norms, seen, strict=False))

        return gradients

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
