"""What an outer step of each preset costs beside one of `maml`: interleaved rounds in one process, ratio by ratio.

python -m benchmarks.cost --json results/cost.json
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch

import fewstep
from fewstep.models import Conv4
from fewstep.training.checkpoint import write_atomically
from fewstep.training.run import environment

BASE = "maml"
LATE = 0.9  # of the training: derivative order and step weights as in most of it


def learners(filters: int) -> dict[str, fewstep.Learner]:
    """Every preset with the same network and, where it has inner steps at all, its own number of them."""
    return {name: fewstep.Learner(Conv4(5, filters=filters), fewstep.preset(name)) for name in fewstep.preset_names()}


def batch(tasks: int) -> fewstep.TaskBatch:
    """5-way 1-shot tasks of 28×28 noise with one query a class."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, tasks, 5, 1, 28, 28, generator=generator)
    y = torch.arange(5).expand(tasks, 5)
    return fewstep.TaskBatch(x[0], y, x[1], y)


def measure(rounds: int, filters: int, tasks: int) -> dict[str, list[float]]:
    """Ratios to `maml` by preset, one a round; the first round warms up and is dropped."""
    made, images = learners(filters), batch(tasks)
    ratios: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(rounds + 1):
        seconds = {}
        for name, learner in made.items():
            started = time.perf_counter()
            learner.meta_gradient(images, LATE)
            seconds[name] = time.perf_counter() - started
        for name, taken in seconds.items():
            ratios[name].append(taken / seconds[BASE])
    return {name: each[1:] for name, each in ratios.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--filters", type=int, default=64)
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    ratios = measure(asked.rounds, asked.filters, asked.tasks)
    record = {
        "command": " ".join(["python -m benchmarks.cost", *sys.argv[1:]]),
        "what": f"median and range of {asked.rounds} interleaved rounds, Omniglot shapes 5-way 1-shot, "
        f"Conv4-{asked.filters}, {asked.tasks} tasks, {asked.threads} thread{'s' * (asked.threads > 1)}",
        "environment": {name: value for name, value in environment("cpu").items() if name != "command"},
        "presets": {
            name: {"ratio": statistics.median(each), "low": min(each), "high": max(each), "rounds": each}
            for name, each in ratios.items()
        },
    }
    for name, entry in record["presets"].items():
        print(f"{name:18} {entry['ratio']:5.2f} of {BASE}  ({entry['low']:.2f} to {entry['high']:.2f})")
    if asked.json:
        write_atomically(asked.json, (json.dumps(record, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
