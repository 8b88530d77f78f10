"""Seconds of an outer step beside a plain autograd loop, in one run, interleaved; and the share of sampling.

    python -m benchmarks                      all workloads, five rounds
    python -m benchmarks W1 W4 --rounds 9     some of them

Equal meta-gradients (within 1e-4 of their norm) are checked before anything is timed. Ratios hold within a run only.
"""

import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from tyro.conf import Positional

import fewstep
from benchmarks.plain import built_in, meta_gradient
from fewstep.cli.machine import prepare
from fewstep.methods import Uniform
from fewstep.models import Conv4

FULL = {"step_weights": Uniform(), "order": fewstep.methods.SecondOrder()}  # MAML++ at its most expensive


@dataclass(frozen=True)
class Workload:
    """Shapes and method of one timing."""

    what: str
    method: fewstep.Method
    ways: int
    tasks: int
    shots: int = 1
    queries: int = 1
    size: int = 28
    channels: int = 1
    filters: int = 64


def mini(shots: int) -> Workload:
    return Workload(f"mini-ImageNet 5-way {shots}-shot, MAML++ full", fewstep.preset("maml++", **FULL), 5, 2, shots, 15,
                    84, 3, 48)  # fmt: skip


WORKLOADS = {
    "W1": Workload("Omniglot 20-way 1-shot, MAML++ full", fewstep.preset("maml++", **FULL), 20, 8),
    "W2": Workload("Omniglot 20-way 1-shot, MAML", fewstep.preset("maml"), 20, 8),
    "W3": Workload("Omniglot 20-way 1-shot, FOMAML", fewstep.preset("fomaml"), 20, 8),
    "W4": Workload("Omniglot 5-way 1-shot, MAML, 1 step", fewstep.preset("maml", steps=1), 5, 32),
    "W4b": Workload("the same with 15 queries", fewstep.preset("maml", steps=1), 5, 32, queries=15),
    "W5": mini(1),
    "W6": mini(5),
}


@dataclass(frozen=True)
class Options:
    """Time outer steps beside a plain autograd loop."""

    workloads: Positional[tuple[str, ...]] = ("W1", "W2", "W3", "W4")
    """W1 to W6."""
    rounds: int = 5
    """Timings of each, interleaved."""
    threads: int = 2
    """Processor threads."""
    output: Path | None = None
    """Write the figures as JSON."""


def timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    flat = [torch.cat([x[name].flatten() for name in sorted(a)]) for x in (a, b)]
    return float((flat[0] - flat[1]).norm() / flat[1].norm())


def measure(name: str, w: Workload, rounds: int) -> dict[str, object]:
    torch.manual_seed(0)
    learner = fewstep.Learner(Conv4(w.ways, w.channels, w.filters, w.size), w.method)
    model = built_in(w.ways, w.channels, w.filters, w.size)

    def half(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(w.tasks, w.ways * count, w.channels, w.size, w.size)
        return x, torch.arange(w.ways).repeat(w.tasks, count)

    batch = fewstep.TaskBatch(*half(w.shots), *half(w.queries))
    expected = meta_gradient(model, learner, batch, 0.0)
    systems: dict[str, Callable[[], object]] = {"plain loop": lambda: meta_gradient(model, learner, batch, 0.0)}
    for strategy in ("loop", "vectorized"):
        off = distance(learner.meta_gradient(batch, 0.0, strategy).gradients, expected)
        assert off < 1e-4, f"{name}: {strategy} is off by {off:.1e}"
        systems[strategy] = lambda strategy=strategy: learner.meta_gradient(batch, 0.0, strategy)
    times: dict[str, list[float]] = {system: [] for system in systems}
    for _ in range(rounds):
        for system, call in systems.items():
            times[system].append(timed(call))
    medians = {system: statistics.median(seconds) for system, seconds in times.items()}
    print(f"{name:4} {w.what}")
    for system, seconds in times.items():
        spread = f"{min(seconds):.3f} to {max(seconds):.3f}"
        ratio = medians["plain loop"] / medians[system]
        print(f"     {system:12} {medians[system]:7.3f} s   ({spread})   {ratio:.2f}× the plain loop's speed")
    return {"workload": name, "seconds": times, "chosen": learner.chosen_strategy(batch)}


def sampling(rounds: int) -> list[dict[str, object]]:
    """Seconds to draw a meta-batch, as a share of an outer step on it."""
    data = fewstep.strokes(classes=(200, 20, 20))
    rows: list[dict[str, object]] = []
    print("sampling a meta-batch of 8 tasks, 28×28, with rotations, as a share of an outer step of maml (Conv4-64)")
    for ways in (5, 20):
        tasks = data.tasks(ways=ways)
        learner = fewstep.Learner(Conv4(ways), fewstep.preset("maml"))
        draw, step = [], []
        for i in range(rounds):
            batch = tasks.train(range(8 * i, 8 * i + 8))
            draw += [timed(lambda i=i, tasks=tasks: tasks.train(range(8 * i, 8 * i + 8))) for _ in range(5)]
            step.append(timed(lambda batch=batch, learner=learner: learner.meta_gradient(batch)))
        a, b = statistics.median(draw), statistics.median(step)
        print(f"     {ways:2}-way       {a * 1e3:7.2f} ms of {b:.3f} s: {a / b:.2%}")
        rows.append({"ways": ways, "draw": a, "step": b, "share": a / b})
    return rows


def main() -> None:
    options = tyro.cli(Options, prog="python -m benchmarks")
    prepare(options.threads)
    print(f"torch {torch.__version__}, {platform.machine()}, {options.threads} threads, float32\n")
    for name in options.workloads:
        if name not in WORKLOADS:
            raise SystemExit(f"unknown workload {name!r}; there are {', '.join(WORKLOADS)}")
    rows = [measure(name, WORKLOADS[name], options.rounds) for name in options.workloads]
    shares = sampling(options.rounds)
    if options.output:
        options.output.write_text(json.dumps({"torch": torch.__version__, "rows": rows, "sampling": shares}, indent=1))


if __name__ == "__main__":
    main()
