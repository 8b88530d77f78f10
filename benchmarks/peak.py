"""What this machine's convolutions reach: the yardstick for a workload's share of the possible."""

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from benchmarks.timing import turn

CHANNELS, SIDE, BATCHES = 64, 14, (64, 128, 256)


def fastest(call: Callable[[], object], seconds: float) -> float:
    """Seconds of the fastest of the calls that are made in some seconds."""
    call()
    stop, least = time.perf_counter() + seconds, turn(call)
    while time.perf_counter() < stop:
        least = min(least, turn(call))
    return least


def peak(batch: int, seconds: float) -> dict[str, float]:
    """Operations a second of a convolution 64 → 64, 3×3, on 14×14, channels last, float32."""
    x = torch.randn(batch, CHANNELS, SIDE, SIDE).to(memory_format=torch.channels_last)
    weight = torch.randn(CHANNELS, CHANNELS, 3, 3).to(memory_format=torch.channels_last)
    gradient = torch.randn_like(x)
    unit = 2 * 9 * CHANNELS * CHANNELS * SIDE * SIDE * batch
    arguments = (gradient, x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, False])
    forward = unit / fastest(lambda: F.conv2d(x, weight, padding=1), seconds)
    back = 2 * unit / fastest(lambda: torch.ops.aten.convolution_backward(*arguments), seconds)
    return {"batch": batch, "forward": forward, "backward": back, "both": 3 / (1 / forward + 2 / back)}


def best(seconds: float) -> dict[str, float]:
    """The batch that reaches most; `seconds` for each batch and direction."""
    return max((peak(batch, seconds) for batch in BATCHES), key=lambda found: found["both"])
