"""What a workload asks of convolutions, in floating-point operations, whoever computes it and however.

A pass of one image through a convolution of C to F channels, 3×3, on H×W pixels is 9 · C · F · H · W multiplications
and as many additions; call that a unit of the layer. Everything a gradient needs of a convolution is again a
convolution of as many operations:

    forward pass                                   1
    its gradient                                   2   by the input and by the weight
    the gradient of that gradient                  4   each of the two by each of its two arguments

A support image of an inner step costs 1 + 2, and in second order another 2 + 4 in the outer gradient: 9. A query image
costs 1 + 2. Nobody asks for the gradient of the images, so the first layer has 1 + 1 and in second order another 1 + 1;
its query has 1 + 1. Prediction has inner steps of first order and a forward pass over the queries.

    operations = tasks · Σ_layers unit · (steps · support · a + query passes · queries · b)
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from benchmarks.workloads import Workload


class Layer(NamedTuple):
    """A convolution: `area` of its kernel, `pixels` of its map; `first` if it sees the images themselves."""

    area: int
    inputs: int
    outputs: int
    pixels: int
    first: bool = False

    @property
    def unit(self) -> int:
        return 2 * self.area * self.inputs * self.outputs * self.pixels


def conv4_layers(size: int, channels: int, filters: int, blocks: int = 4) -> list[Layer]:
    """The convolutions of Conv4."""
    return [
        Layer(9, filters if block else channels, filters, (size >> block) ** 2, not block) for block in range(blocks)
    ]


def resnet12_layers(size: int, channels: int, widths: Sequence[int]) -> list[Layer]:
    """The convolutions of ResNet-12: three and a shortcut in every block."""
    found = []
    for block, (inputs, width) in enumerate(pairwise((channels, *widths))):
        pixels, first = (size >> block) ** 2, not block
        inner = Layer(9, width, width, pixels)
        found += [Layer(9, inputs, width, pixels, first), inner, inner, Layer(1, inputs, width, pixels, first)]
    return found


def passes(layer: Layer, second: bool = True, predict: bool = False) -> tuple[int, int]:
    """Units that a support image costs in an inner step, and a query image in a query pass.

    Example:
        >>> passes(Layer(9, 64, 64, 14 * 14))
        (9, 3)
    """
    gradient = 1 if layer.first else 2
    again = (2 if layer.first else 6) * (second and not predict)
    return 1 + gradient + again, 1 + gradient * (not predict)


def convolution_flops(w: Workload) -> int:
    """Operations of a workload's convolutions.

    Example:
        >>> from benchmarks.workloads import WORKLOADS
        >>> f"{convolution_flops(WORKLOADS['W2']):.3g}"
        '1.47e+11'
    """
    support, queries = w.ways * w.shots, w.ways * w.queries
    query_passes = w.steps if w.plus and not w.predict else 1
    total = 0
    for layer in conv4_layers(w.size, w.channels, w.filters):
        inner, outer = passes(layer, w.second, w.predict)
        total += layer.unit * (w.steps * support * inner + query_passes * queries * outer)
    return w.tasks * total
