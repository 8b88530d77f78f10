"""The points at which scaling is measured: a base, and one number at a time moved away from it.

    python -m benchmarks.points --threads 1      a fresh process that answers how much memory one point takes

The question is a point as a JSON line on standard input, the answer a JSON line on standard output.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

import fewstep
from benchmarks.flops import Layer, conv4_layers, passes, resnet12_layers
from benchmarks.worker import forget_peak, give_back, prepare, status
from fewstep.models import Conv4, ResNet12

CONV4, RESNET12 = "Conv4", "ResNet-12"
CHANNELS = 1
MEMORY_STEPS = 2


@dataclass(frozen=True)
class Point:
    """One outer step of second-order MAML on random images, task by task; shots and queries are per class.

    `filters` are those of Conv4 or of ResNet-12's first block; every next one has twice as many.

    Example:
        >>> Point(tasks=2, steps=4, filters=64).counts()["flops"]
        28124651520
    """

    tasks: int = 1
    steps: int = 2
    ways: int = 5
    shots: int = 4
    queries: int = 1
    size: int = 28
    model: str = CONV4
    filters: int = 32
    blocks: int = 4

    @property
    def widths(self) -> list[int]:
        return [self.filters << block for block in range(self.blocks)]

    @property
    def convolutions(self) -> int:
        return self.blocks * (3 if self.model == RESNET12 else 1)

    def layers(self) -> list[Layer]:
        if self.model == RESNET12:
            return resnet12_layers(self.size, CHANNELS, self.widths)
        return conv4_layers(self.size, CHANNELS, self.filters, self.blocks)

    def counts(self) -> dict[str, int]:
        """What a step asks for: operations of convolutions, values of their maps, and calls, all passes counted."""
        support, queries = self.ways * self.shots, self.ways * self.queries
        found = {"flops": 0, "values": 0, "calls": 0}
        for layer in self.layers():
            inner, outer = passes(layer)
            images = self.tasks * (self.steps * support * inner + queries * outer)
            found["flops"] += layer.unit * images
            found["values"] += layer.outputs * layer.pixels * images
            found["calls"] += self.tasks * (self.steps * inner + outer)
        return found

    def step(self) -> Callable[[], Any]:
        """A function that takes the outer step's meta-gradient."""
        torch.manual_seed(0)
        if self.model == RESNET12:
            model: torch.nn.Module = ResNet12(self.ways, CHANNELS, self.size, self.widths)
        else:
            model = Conv4(self.ways, CHANNELS, self.filters, self.size, blocks=self.blocks)
        # A low rate keeps the inner loop on noise from diverging; one strategy everywhere, so that no axis changes it.
        method = fewstep.preset("maml", steps=self.steps, rule__rate=0.01)
        learner = fewstep.Learner(model, method, strategy="loop")
        halves = [half for each in (self.shots, self.queries) for half in self._half(each)]
        batch = fewstep.TaskBatch(*halves)
        return lambda: learner.meta_gradient(batch)

    def _half(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(self.tasks, self.ways * count, CHANNELS, self.size, self.size)
        return x, torch.arange(self.ways).repeat(self.tasks, count)


@dataclass(frozen=True)
class Series:
    """Points of one model along one axis: `x` is what the axis counts at each."""

    axis: str
    model: str
    x: tuple[int, ...]
    points: tuple[Point, ...]


AXES: dict[str, Callable[[Point], int]] = {
    "tasks": lambda p: p.tasks,
    "inner steps": lambda p: p.steps,
    "ways": lambda p: p.ways,
    "shots": lambda p: p.shots,
    "pixels": lambda p: p.size**2,
    "filters": lambda p: p.filters,
    "convolutions": lambda p: p.convolutions,
}
"""What is counted along each axis."""

_FULL = {
    "tasks": (1, 2, 4, 8, 16, 32), "steps": (1, 2, 4, 8, 16), "ways": (2, 5, 10, 20, 32), "shots": (1, 2, 4, 8, 16),
    "size": (16, 28, 42, 56, 84), "filters": (8, 16, 32, 64, 128), "blocks": (1, 2, 3, 4),
}  # fmt: skip
_TINY = {
    "tasks": (1, 2, 4), "steps": (1, 2, 3), "ways": (2, 3, 4), "shots": (1, 2, 3),
    "size": (16, 24, 32), "filters": (2, 4, 8), "blocks": (2, 3, 4),
}  # fmt: skip
SCALES = {
    "full": (Point(), Point(model=RESNET12, filters=16), _FULL, (8, 16, 32, 64)),
    "tiny": (Point(1, 1, 2, 1, 1, 16, filters=4), Point(1, 1, 2, 1, 1, 16, RESNET12, 2), _TINY, (2, 4, 8)),
}
"""Base of either model, values of every field, and widths of ResNet-12's first block."""


def series(scale: str) -> list[Series]:
    """What is measured at a scale.

    Example:
        >>> [(s.axis, s.model, s.x) for s in series("tiny")][-2:]
        [('convolutions', 'Conv4', (2, 3, 4)), ('convolutions', 'ResNet-12', (6, 9, 12))]
    """
    conv4, resnet12, values, widths = SCALES[scale]
    found = []
    for axis, field in zip(AXES, values, strict=True):
        found.append(_along(axis, conv4, field, values[field]))
        if field in ("filters", "blocks"):
            found.append(_along(axis, resnet12, field, widths if field == "filters" else values[field]))
    return found


def _along(axis: str, base: Point, field: str, values: tuple[int, ...]) -> Series:
    points = tuple(replace(base, **{field: value}) for value in values)
    return Series(axis, base.model, tuple(AXES[axis](point) for point in points), points)


def memory(point: Point) -> dict[str, int]:
    """Peak bytes of a point, beyond what the process held before it was built.

    A tiny step comes first, so that code which a library loads when first used does not count.
    """
    replace(point, tasks=1, steps=1, ways=2, shots=1, size=16, filters=2).step()()
    give_back()
    before = status("VmRSS")
    forget_peak()
    step = point.step()
    for _ in range(MEMORY_STEPS):
        step()
    peak = status("VmHWM")
    return {"before": before, "peak": peak, "used": peak - before}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.points", description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    prepare("ours", parser.parse_args().threads)
    for line in sys.stdin:
        print(json.dumps(memory(Point(**json.loads(line)["point"]))), flush=True)


if __name__ == "__main__":
    main()
