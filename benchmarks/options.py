"""What the options bf16 and compile change beside the default: seconds, accuracy, and the seconds until the first step.

    python -m benchmarks.options speed W4 sinusoid --json results/options.json --table docs/performance.md
    python -m benchmarks.options accuracy --data-dir DATA --json results/options.json --table docs/performance.md

Speed: a step of the workload by each option in turn, round by round, in one process. The compiler's first step is that
of a fresh process, once with an empty cache on disk and once with what that one left there. Accuracy: trainings of a
small budget, three seeds a data set, judged on validation tasks; the difference is that of equal seeds. Both add to the
record that is there; trainings that are finished are not repeated.
"""

import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any
from unittest.mock import patch

import torch
from scipy.stats import t

import fewstep
from benchmarks import command, tables
from benchmarks.command import Record
from benchmarks.implementations.ours import problem
from benchmarks.processes import ask, prepare
from benchmarks.timing import compare, turn
from benchmarks.workloads import WORKLOADS
from fewstep.models import MLP, Conv4

MARKS = "options"
OPTIONS: dict[str, Record] = {"default": {}, "bf16": {"precision": "bf16"}, "compile": {"compiled": True}}
# Exact results that are summed in another order: how far trainings go apart by rounding alone.
TRAININGS = {**OPTIONS, "recompute": {"strategy": "recompute"}}
DATA = ("strokes", "omniglot")
BUDGET = {"epochs": 2, "iterations": 60, "meta_batch": 4, "validation_tasks": 100}
SINUSOID = "sinusoid"  # beside the workloads: tiny tasks of a small MLP, as `fewstep train maml` has them
TRAINED = [*(name for name, w in WORKLOADS.items() if not w.predict), SINUSOID]


def step(workload: str, option: str) -> Callable[[], Any]:
    """A step of a workload by an option."""
    if workload == SINUSOID:
        torch.manual_seed(0)
        method = fewstep.preset("maml", setting=SINUSOID)
        model, loss = MLP(1, 1, init="truncated_normal"), torch.nn.functional.mse_loss
        made = fewstep.Learner(model, method, loss=loss, **OPTIONS[option])
        batch = fewstep.sinusoid().train(range(method.recipe.tasks))
    else:
        made, batch = problem(WORKLOADS[workload], "auto", **OPTIONS[option])
    return lambda: made.meta_gradient(batch)


def first(workload: str) -> float:
    """Seconds of the first compiled step in this process, a first one without the compiler not counted."""
    step(workload, "default")()
    return turn(step(workload, "compile"))


def speed(workload: str, rounds: int, threads: int) -> Record:
    """Seconds of every option, and of the compiler's first step in two processes that share a cache."""
    with tempfile.TemporaryDirectory() as cache, patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=cache):
        waits = {which: ask("options", "first", threads, workload=workload) for which in ("empty", "kept")}
        seconds = compare({option: step(workload, option) for option in OPTIONS}, rounds)
    return {"seconds": seconds, "first": waits}


def accuracy(data: str, seed: int, option: str, directory: Path, data_dir: str | None) -> float:
    """Accuracy on the validation tasks after a small training, the last epoch's, not the best one's."""
    torch.manual_seed(seed)
    images = fewstep.strokes() if data == "strokes" else fewstep.omniglot(data_dir)
    method = fewstep.preset("maml", setting=images.setting)
    made = fewstep.Learner(Conv4(5, images.channels, 16, images.image_size), method, **TRAININGS[option])
    drawn, place = images.tasks(5, 1, 5, seed), directory / f"{data}-{option}-s{seed}"
    config = {"data": data, "seed": seed, "option": option}
    run = fewstep.train(made, drawn, place, **BUDGET, config=config)  # type: ignore[arg-type]
    return float([r for r in run.metrics() if r["kind"] == "validation"][-1]["value"])


def difference(values: list[float], default: list[float]) -> tuple[float, float]:
    """Mean and half-width of its 95 % interval over seeds, by Student's t.

    Example:
        >>> difference([0.5, 0.6, 0.7], [0.4, 0.5, 0.6])[0]
        0.1
    """
    each = [a - b for a, b in zip(values, default, strict=True)]
    return round(mean(each), 6), t.ppf(0.975, len(each) - 1) * stdev(each) / math.sqrt(len(each))


def parts(results: Record) -> Iterator[str]:
    """Both tables of a record."""
    if speeds := results.get("speed"):
        head = ["", "seconds, default", "`--precision bf16`, times as fast", "`--compile`, times as fast",
                "seconds of its first step", "with what a process before it compiled"]  # fmt: skip
        yield tables.rows(head, [_speeds(name, **found) for name, found in speeds.items()])
    if trained := results.get("accuracy"):
        head = ["data", "option", "accuracy in %, seeds 0, 1, …", "less the default's, points"]
        yield tables.rows(head, [
            [data, option, ", ".join(f"{100 * v:.1f}" for v in values.values()),
             _less(values, by_option["default"]) if option != "default" else "–"]
            for data, by_option in trained.items() for option, values in by_option.items()
        ])  # fmt: skip
    yield f"{results['machine']['processor']}, {results['machine']['cores']} cores."


def _speeds(name: str, seconds: dict[str, list[float]], first: dict[str, float]) -> list[str]:
    ratios = [str(tables.ratio(each, seconds["default"])) for option, each in seconds.items() if option != "default"]
    return [name, f"{median(seconds['default']):.3f}", *ratios, *(f"{first[cache]:.0f}" for cache in ("empty", "kept"))]


def _less(values: dict[str, float], default: dict[str, float]) -> str:
    middle, half = difference(list(values.values()), [default[seed] for seed in values])
    return f"{100 * middle:+.1f} ± {100 * half:.1f}"


def main(arguments: list[str] | None = None) -> int:
    parser = command.parser("options", __doc__, rounds=7, threads=2, json=None, table=None)
    add = parser.add_argument
    add("what", choices=("speed", "accuracy"))
    add("workloads", nargs="*", metavar="W", help=f"of speed: {', '.join(TRAINED)}")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="of trainings (default 0 1 2)")
    add("--options", nargs="+", default=list(TRAININGS), choices=TRAININGS, metavar="O", help=", ".join(TRAININGS))
    add("--data-dir", metavar="PATH", help="where omniglot lies")
    add("--directory", type=Path, default=Path("runs/options"), metavar="PATH", help="of the trainings")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.workloads if name not in TRAINED]:
        parser.error(f"{unknown[0]!r} is not a workload that trains; there are {', '.join(TRAINED)}")
    if bool(options.workloads) != (options.what == "speed"):
        parser.error("name workloads for speed, and for nothing else")
    results = {**command.recorded(options.json), **command.started("options")}
    prepare("ours", options.threads)
    for name in options.workloads:
        results.setdefault("speed", {})[name] = speed(name, options.rounds, options.threads)
        command.finished(results, options)
    for data in DATA if options.what == "accuracy" else ():
        for option in options.options:
            values = results.setdefault("accuracy", {}).setdefault(data, {}).setdefault(option, {})
            for seed in options.seeds:
                values[str(seed)] = accuracy(data, seed, option, options.directory, options.data_dir)
            command.finished(results, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
