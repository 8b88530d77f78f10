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

from benchmarks.workloads import Workload


def convolution_flops(w: Workload) -> int:
    """Operations of a workload's convolutions.

    Example:
        >>> from benchmarks.workloads import WORKLOADS
        >>> f"{convolution_flops(WORKLOADS['W2']):.3g}"
        '1.47e+11'
    """
    support, queries = w.ways * w.shots, w.ways * w.queries
    passes = w.steps if w.plus and not w.predict else 1
    total = 0
    for layer in range(4):
        side, inputs = w.size >> layer, w.filters if layer else w.channels
        unit = 2 * 9 * inputs * w.filters * side * side
        first = layer == 0
        gradient = 1 if first else 2
        inner = 1 + gradient + (2 if first else 6) * (w.second and not w.predict)
        outer = 1 + gradient * (not w.predict)
        total += unit * (w.steps * support * inner + passes * queries * outer)
    return w.tasks * total
