"""What this machine's convolutions reach: the yardstick for a workload's share of the possible.

echo '{"do": "peak", "seconds": 1}' | python -m benchmarks.peak --threads 2
"""

import argparse
import json
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

CHANNELS, SIDE, BATCHES = 64, 14, (64, 128, 256)


def best(call: Callable[[], object], flops: int, seconds: float) -> float:
    """Operations a second of the fastest call within some seconds."""
    call()
    fastest, stop = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < stop:
        started = time.perf_counter()
        call()
        fastest = min(fastest, time.perf_counter() - started)
    return flops / fastest


def peak(batch: int, seconds: float) -> dict[str, float]:
    """Operations a second of a convolution 64 → 64, 3×3, on 14×14, channels last, float32."""
    x = torch.randn(batch, CHANNELS, SIDE, SIDE).to(memory_format=torch.channels_last)
    weight = torch.randn(CHANNELS, CHANNELS, 3, 3).to(memory_format=torch.channels_last)
    gradient = torch.randn_like(x)
    unit = 2 * 9 * CHANNELS * CHANNELS * SIDE * SIDE * batch

    def backward() -> object:
        arguments = (gradient, x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, False])
        return torch.ops.aten.convolution_backward(*arguments)

    forward = best(lambda: F.conv2d(x, weight, padding=1), unit, seconds)
    back = best(backward, 2 * unit, seconds)
    return {"batch": batch, "forward": forward, "backward": back, "both": 3 / (1 / forward + 2 / back)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peak", description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    torch.set_num_threads(parser.parse_args().threads)
    for line in sys.stdin:
        seconds = json.loads(line)["seconds"]  # for each batch and direction
        answer = max((peak(batch, seconds) for batch in BATCHES), key=lambda found: found["both"])
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
