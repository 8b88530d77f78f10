"""How the cost of an outer step grows with tasks, steps, ways, shots, pixels, filters and depth, one at a time.

python -m benchmarks.scaling --json results/scaling.json --plots docs/performance --table docs/performance.md

Second-order MAML on random images, task by task. Seconds are this process's own on the processor: with one thread they
are those of a machine that does nothing else, and another program's share of the machine does not count. Every round
visits all points in another order; one step of each comes before and is not timed. Peak memory is a fresh process's.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace

from benchmarks import command
from benchmarks.command import Record, say
from benchmarks.flops import counts
from benchmarks.implementations.ours import build
from benchmarks.network import start, tasks
from benchmarks.processes import ask, prepare
from benchmarks.timing import in_turn, turn
from benchmarks.workloads import RESNET12, Workload

STRATEGY = "loop"  # one everywhere, so that no axis changes it
A_TURN = 0.1  # seconds on the processor: short steps are repeated for so long

AXES: dict[str, tuple[str, Callable[[Workload], int]]] = {
    "tasks": ("tasks", lambda p: p.tasks),
    "inner steps": ("steps", lambda p: p.steps),
    "ways": ("ways", lambda p: p.ways),
    "shots": ("shots", lambda p: p.shots),
    "pixels": ("size", lambda p: p.size**2),
    "filters": ("filters", lambda p: p.filters),
    "convolutions": ("blocks", lambda p: p.blocks * (3 if p.model == RESNET12 else 1)),
}
"""The field that moves along each axis, and what is counted there."""

BASE = Workload("a point of scaling", ways=5, tasks=1, shots=4, steps=2, filters=32)
TINY = replace(BASE, ways=2, shots=1, steps=1, size=16, filters=8, blocks=3)
BASES = {"full": (BASE, replace(BASE, model=RESNET12, filters=16)), "tiny": (TINY, replace(TINY, model=RESNET12))}
VALUES = {
    "tasks": (1, 2, 4, 8, 16, 32), "steps": (1, 2, 4, 8, 16), "ways": (2, 5, 10, 20, 32), "shots": (1, 2, 4, 8, 16),
    "size": (16, 28, 42, 56, 84), "filters": (8, 16, 32, 64, 128), "blocks": (1, 2, 3, 4),
}  # fmt: skip


def series(scale: str) -> list[tuple[str, list[Workload]]]:
    """The points along each axis: of Conv4 along all, of ResNet-12 along width and depth; three of each where tiny.

    Example:
        >>> [(axis, points[0].model, [p.filters for p in points]) for axis, points in series("full")][6]
        ('filters', 'ResNet-12', [8, 16, 32, 64])
    """
    conv4, resnet12 = BASES[scale]
    found = []
    for axis, (field, _) in AXES.items():
        values = VALUES[field][: 3 if scale == "tiny" else None]
        found.append((axis, [replace(conv4, **{field: value}) for value in values]))
        if field in ("filters", "blocks"):
            found.append((axis, [replace(resnet12, **{field: value}) for value in values if value <= 64]))
    return found


def timed(points: list[Workload], rounds: int, at_most: float) -> dict[Workload, list[float]]:
    """Seconds of every point, one a round."""
    steps = {point: build(point, start(point), tasks(point), STRATEGY) for point in points}
    found: dict[Workload, list[float]] = {point: [] for point in points}
    say("warming up")
    for step in steps.values():
        step()
    for point in in_turn(points, rounds, at_most, shuffled=True):
        found[point].append(turn(steps[point], A_TURN, time.process_time))
    return found


def memory(point: Workload) -> Record:
    """Peak bytes of a point in a fresh process."""
    contender = {"implementation": f"fewstep-{STRATEGY}", "workload": asdict(point)}
    return ask("contender.Contender", "memory", made_with=contender, passes=2)


def measure(chosen: list[tuple[str, list[Workload]]], rounds: int, at_most: float) -> list[Record]:
    """Everything about the series, as JSON."""
    points = list(dict.fromkeys(point for _, those in chosen for point in those))
    seconds, bytes_held = timed(points, rounds, at_most), {}
    for number, point in enumerate(points, 1):
        say(f"memory {number} of {len(points)}")
        bytes_held[point] = memory(point)
    return [
        {
            "axis": axis,
            "model": those[0].model,
            "x": [AXES[axis][1](point) for point in those],
            "seconds": [seconds[point] for point in those],
            "memory": [bytes_held[point] for point in those],
            "counts": [counts(point) for point in those],
        }
        for axis, those in chosen
    ]


def main(arguments: list[str] | None = None) -> int:
    parser = command.parser("scaling", __doc__, rounds=7, at_most=600, json=None, table=None, plots=None)
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES), help="some of them (default all)")
    parser.add_argument("--scale", choices=BASES, default="full", help="tiny, to see whether everything runs")
    options = parser.parse_args(arguments)
    prepare("ours", 1)
    chosen = [(axis, points) for axis, points in series(options.scale) if axis in options.axes]
    results = {
        **command.started("scaling"),
        "scale": options.scale,
        "base": {base.model: asdict(base) for base in BASES[options.scale]},
        "series": measure(chosen, options.rounds, options.at_most),
    }
    return command.finished(results, options)


if __name__ == "__main__":
    sys.exit(main())
