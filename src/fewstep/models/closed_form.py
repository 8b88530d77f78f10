"""Models whose mean cross-entropy has gradients in closed form, without a graph."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from fewstep.models import native
from fewstep.models.block import alike
from fewstep.models.conv4 import Conv4
from fewstep.models.images import channels_last
from fewstep.models.norm import unhooked

Formula = Callable[[Mapping[str, Tensor]], Any]


def cross_entropy_gradients(model: nn.Module, x: Tensor, labels: Tensor) -> Formula | None:
    """The mean cross-entropy of examples and its gradients, as a function of the model's parameters by name.

    Arguments:
        model: what it is decides; `Conv4` with max-pooling has a formula.
        x: (N, channels, height, width).
        labels: (N,).

    Returns:
        The function. It gives the loss, the gradient of every parameter by name, and mean and variance by name of
        the norm; or None, where the loss is NaN (a label may have no output) or a tensor is not one for the kernels.
        None in its place where another `forward` may be meant: with hooks, other layers or parameters, statistics to
        normalise by.

    Raises:
        BadInput: other images than the network was built for.

    Example:
        >>> import torch
        >>> model, x, labels = Conv4(ways=5), torch.randn(5, 1, 28, 28), torch.arange(5)
        >>> found = cross_entropy_gradients(model, x, labels)(dict(model.named_parameters()))
        >>> found[1]["head.bias"].shape if native.there() else torch.Size([found or 5])
        torch.Size([5])
    """
    return _of_conv4(model, x, labels) if type(model) is Conv4 and model.pool else None


def _of_conv4(model: Conv4, x: Tensor, labels: Tensor) -> Formula | None:
    blocks: Any = model.blocks
    norms = alike(blocks)
    if norms is None or norms.given or type(model.head) is not nn.Linear or not unhooked(model, model.head):
        return None
    places, ends = range(len(blocks)), ("norm.weight", "norm.bias", "conv.bias", "conv.weight")
    weights, biases, shifts, filters = ([f"blocks.{i}.{end}" for i in places] for end in ends)
    names = [*weights, *biases, *shifts, *filters, "head.weight", "head.bias"]
    layers: list[Any] = [block.norm for block in blocks] + [block.conv for block in blocks] + [model.head]
    if any(layer._parameters.keys() != {"weight", "bias"} for layer in layers):  # a tensor may be none of them
        return None
    there = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    if there - set(names):
        return None
    images, eps, slope = channels_last(x, model.image_shape, "Conv4"), blocks[0].norm.eps, blocks[0].negative_slope

    def gradients(parameters: Mapping[str, Tensor]) -> tuple[Any, ...] | None:
        if there - parameters.keys() or not native.unseen():
            return None
        of: Any = parameters.get
        own, weight, bias = list(map(of, filters)), of("head.weight"), of("head.bias")
        if not native.fit_classifier(images, labels, own, weight, bias):
            return None
        kinds = [list(map(of, kind)) for kind in (weights, biases, shifts)]
        vectors = native.rows(own[0], *kinds, missing=(1, 0, 0))
        loss, moments, d_vectors, *d_head, d_filters = native.gradients(
            images, labels, vectors, own, weight, bias, eps, slope
        )
        if math.isnan(loss.item()):
            return None
        found, rows = (*d_vectors.unbind(), *d_filters, *d_head), moments.unbind()
        seen = zip(rows[: len(blocks)], rows[len(blocks) : 2 * len(blocks)], strict=True)  # means, then variances
        return loss, dict(zip(names, found, strict=True)), {f"blocks.{i}.norm": each for i, each in enumerate(seen)}

    return gradients

