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

from typing import NamedTuple

from benchmarks.workloads import RESNET12, Workload


class Layer(NamedTuple):
    """A convolution: `area` of its kernel, `pixels` of its map; `first` if it sees the images themselves."""

    area: int
    inputs: int
    outputs: int
    pixels: int
    first: bool = False


def layers(w: Workload) -> list[Layer]:
    """The convolutions of Conv4, or of ResNet-12: three and a shortcut in every block."""
    found, inputs = [], w.channels
    for block in range(w.blocks):
        width, pixels, first = w.widths[block], (w.size >> block) ** 2, not block
        found.append(Layer(9, inputs, width, pixels, first))
        if w.model == RESNET12:
            found += [Layer(9, width, width, pixels)] * 2 + [Layer(1, inputs, width, pixels, first)]
        inputs = width
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


def counts(w: Workload) -> dict[str, int]:
    """What a step asks for: operations of convolutions, values of their maps, and calls, all passes counted.

    Example:
        >>> from benchmarks.workloads import WORKLOADS
        >>> f"{counts(WORKLOADS['W2'])['flops']:.3g}"
        '1.47e+11'
    """
    query_passes = w.steps if w.plus and not w.predict else 1
    found = {"flops": 0, "values": 0, "calls": 0}
    for layer in layers(w):
        inner, outer = passes(layer, w.second, w.predict)
        images = w.tasks * w.ways * (w.steps * w.shots * inner + query_passes * w.queries * outer)
        found["flops"] += 2 * layer.area * layer.inputs * layer.outputs * layer.pixels * images
        found["values"] += layer.outputs * layer.pixels * images
        found["calls"] += w.tasks * (w.steps * inner + query_passes * outer)
    return found
