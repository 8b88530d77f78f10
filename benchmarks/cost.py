"""What an outer step of each preset costs beside one of `maml`: interleaved rounds in one process, ratio by ratio.

python -m benchmarks.cost --json results/cost.json
"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from statistics import median

import torch

import fewstep
from benchmarks import command, tables
from benchmarks.command import Record
from benchmarks.network import tasks as drawn
from benchmarks.timing import compare
from benchmarks.workloads import WORKLOADS
from fewstep.models import Conv4

MARKS = "cost"
BASE = "maml"
LATE = 0.9  # of the training: derivative order and step weights as in most of it


def measure(rounds: int, filters: int, tasks: int) -> dict[str, list[float]]:
    """Ratios to `maml` by preset, one a round, of 5-way 1-shot tasks of noise with one query a class.

    Every preset has the same network and, where it has inner steps at all, its own number of them.
    """
    batch = fewstep.TaskBatch(*drawn(replace(WORKLOADS["W4"], tasks=tasks)))
    presets = {name: fewstep.preset(name) for name in fewstep.preset_names()}
    learners = {name: fewstep.Learner(Conv4(5, filters=filters), method) for name, method in presets.items()}
    seconds = compare({name: partial(each.meta_gradient, batch, LATE) for name, each in learners.items()}, rounds)
    return {name: [a / b for a, b in zip(each, seconds[BASE], strict=True)] for name, each in seconds.items()}


def parts(results: Record) -> Iterator[str]:
    """The table of a record."""
    yield f"Seconds of an outer step over those of `{BASE}`: {results['what']}."
    body = [[f"`{n}`", f"{e['ratio']:.2f} ({e['low']:.2f}–{e['high']:.2f})"] for n, e in results["presets"].items()]
    yield tables.rows(["preset", f"times `{BASE}`"], body)


def main(arguments: list[str] | None = None) -> int:
    parser = command.parser("cost", __doc__, rounds=7, threads=1, json=None, table=None)
    parser.add_argument("--filters", type=command.at_least_one, default=64)
    parser.add_argument("--tasks", type=command.at_least_one, default=8)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    ratios = measure(options.rounds, options.filters, options.tasks)
    results = {
        **command.started("cost"),
        "what": f"median and range of {options.rounds} interleaved rounds, Omniglot shapes 5-way 1-shot, "
        f"Conv4-{options.filters}, {options.tasks} tasks, {options.threads} thread{'s' * (options.threads > 1)}",
        "presets": {
            name: {"ratio": median(each), "low": min(each), "high": max(each), "rounds": each}
            for name, each in ratios.items()
        },
    }
    return command.finished(results, options)


if __name__ == "__main__":
    sys.exit(main())
