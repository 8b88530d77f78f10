"""What the options bf16 and compile change beside the default: seconds, accuracy, and the seconds until the first step.

    python -m benchmarks.options speed W4 sinusoid --json results/options.json --table docs/performance.md
    python -m benchmarks.options accuracy --data-dir DATA --json results/options.json --table docs/performance.md

Speed: a step of the workload by each option in turn, round by round, in one process. The compiler's first step is that
of a fresh process, once with an empty cache on disk and once with what that one left there. Accuracy: trainings of a
small budget, three seeds a data set, judged on validation tasks; the difference is that of equal seeds. Both add to the
record that is there; trainings that are finished are not repeated.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any
from unittest.mock import patch

from benchmarks.__main__ import known, machine
from benchmarks.summary import ratio
from benchmarks.table import rows, write
from benchmarks.workloads import WORKLOADS

BEGIN, END = "<!-- options: begin -->", "<!-- options: end -->"
OPTIONS: dict[str, dict[str, Any]] = {"default": {}, "bf16": {"precision": "bf16"}, "compile": {"compiled": True}}
# Exact results that are summed in another order: how far trainings go apart by rounding alone.
TRAININGS = {**OPTIONS, "recompute": {"strategy": "recompute"}}
DATA = ("strokes", "omniglot")
BUDGET = {"epochs": 2, "iterations": 60, "meta_batch": 4, "validation_tasks": 100}
SINUSOID = "sinusoid"  # beside the workloads: tiny tasks of a small MLP, as `fewstep train maml` has them
TRAINED = [*(name for name, w in WORKLOADS.items() if not w.predict), SINUSOID]
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # Student's t of 95 % for 2, 3, … 10 values


def step(workload: str, option: str, threads: int) -> Any:
    """A step of a workload by an option."""
    import fewstep
    from benchmarks.implementations.ours import learner
    from benchmarks.network import start, tasks
    from fewstep.cli.machine import prepare
    from fewstep.training.experiment import Experiment

    prepare(threads)
    if workload == SINUSOID:
        made, drawn = Experiment("maml", data=SINUSOID).build()
        batch = drawn.train(range(made.method.recipe.tasks))
    else:
        w = WORKLOADS[workload]
        made, batch = learner(w, start(w), "auto"), fewstep.TaskBatch(*tasks(w))
    for name, value in OPTIONS[option].items():
        setattr(made, name, value)
    return lambda: made.meta_gradient(batch)


def first(workload: str, threads: int) -> float:
    """Seconds of the first compiled step in this process, a first one without the compiler not counted."""
    step(workload, "default", threads)()
    compiled = step(workload, "compile", threads)
    started = time.perf_counter()
    compiled()
    return time.perf_counter() - started


def first_steps(workload: str, threads: int) -> list[float]:
    """The same of two processes, one after the other, that share a cache."""
    command = [sys.executable, "-m", "benchmarks.options", "first", workload, "--threads", str(threads)]
    return [float(subprocess.check_output(command, text=True)) for _ in range(2)]


def speed(workload: str, rounds: int, threads: int) -> dict[str, Any]:
    """Seconds of every option, and until the compiler's first step."""
    with tempfile.TemporaryDirectory() as cache, patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=cache):
        found = dict(zip(("empty", "kept"), first_steps(workload, threads), strict=True))
        steps = {option: step(workload, option, threads) for option in OPTIONS}
        seconds: dict[str, list[float]] = {option: [] for option in OPTIONS}
        for one in steps.values():
            one()
        for _ in range(rounds):
            for option, one in steps.items():
                started = time.perf_counter()
                one()
                seconds[option].append(time.perf_counter() - started)
    return {"seconds": seconds, "first": found}


def accuracy(data: str, seed: int, option: str, directory: Path, data_dir: str | None) -> float:
    """Accuracy on the validation tasks after a small training, the last epoch's, not the best one's."""
    from fewstep.training.experiment import Experiment
    from fewstep.training.trainer import train

    experiment = Experiment("maml", data=data, data_dir=data_dir, seed=seed, filters=16, queries=5)
    learner, tasks = experiment.build()
    for name, value in TRAININGS[option].items():
        setattr(learner, name, value)
    config = {"experiment": experiment.to_json()}
    run = train(learner, tasks, directory / f"{data}-{option}-s{seed}", **BUDGET, config=config)  # type: ignore[arg-type]
    last = [r for r in run.metrics() if r["kind"] == "validation"][-1]
    return float(last["value"])


def difference(values: list[float], default: list[float]) -> tuple[float, float]:
    """Mean and half-width of its 95 % interval over seeds, by Student's t.

    Example:
        >>> difference([0.5, 0.6, 0.7], [0.4, 0.5, 0.6])[0]
        0.1
    """
    each = [a - b for a, b in zip(values, default, strict=True)]
    return round(mean(each), 6), T95[len(each) - 2] * stdev(each) / math.sqrt(len(each))


def markdown(results: dict[str, Any]) -> str:
    """Both tables."""
    parts = []
    if speeds := results.get("speed"):
        body = []
        for name, found in speeds.items():
            timed = {option: {"seconds": each} for option, each in found["seconds"].items()}
            ratios = [str(ratio(timed, "default", option)) for option in OPTIONS if option != "default"]
            waits = [f"{found['first'][cache]:.0f}" for cache in ("empty", "kept")]
            body.append([name, f"{median(found['seconds']['default']):.3f}", *ratios, *waits])
        head = ["", "seconds, default", "`--precision bf16`, times as fast", "`--compile`, times as fast",
                "seconds of its first step", "with what a process before it compiled"]  # fmt: skip
        parts.append(rows(head, *body))
    if trained := results.get("accuracy"):
        body = []
        for data, by_option in trained.items():
            for option, values in by_option.items():
                listed = ", ".join(f"{100 * v:.1f}" for v in values.values())
                mid, half = difference(list(values.values()), [by_option["default"][seed] for seed in values])
                shown = "–" if option == "default" else f"{100 * mid:+.1f} ± {100 * half:.1f}"
                body.append([data, option, listed, shown])
        head = ["data", "option", "accuracy in %, seeds 0, 1, …", "less the default's, points"]
        parts.append(rows(head, *body))
    parts.append(f"{results['machine']['processor']}, {results['machine']['cores']} cores.")
    return "\n\n".join(parts) + "\n"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.options", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("what", choices=("speed", "accuracy", "first", "show"))
    add("workloads", nargs="*", metavar="W", help=f"of {', '.join(TRAINED)}")
    add("--rounds", type=int, default=7, help="of timings (default 7)")
    add("--threads", type=int, default=2, help="of the process (default 2)")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="of trainings (default 0 1 2)")
    add("--options", nargs="+", default=list(TRAININGS), choices=TRAININGS, metavar="O", help=", ".join(TRAININGS))
    add("--data-dir", metavar="PATH", help="where omniglot lies")
    add("--directory", type=Path, default=Path("runs/options"), metavar="PATH", help="of the trainings")
    add("--json", type=Path, metavar="PATH", help="the record")
    add("--table", type=Path, metavar="PATH", help="put the tables between the marks of a document")
    options = parser.parse_args(arguments)
    known(parser, "workload that trains", options.workloads, TRAINED)
    if bool(options.workloads) != (options.what in ("speed", "first")):
        parser.error("name workloads for speed, and for nothing else")
    if options.what == "first":
        print(first(options.workloads[0], options.threads))
        return
    there = options.json is not None and options.json.is_file()
    results: dict[str, Any] = json.loads(options.json.read_text()) if there else {}
    if options.what != "show":
        results["machine"] = machine()

    def keep() -> None:
        if options.json:
            options.json.write_text(json.dumps(results, indent=1) + "\n")
        shown = markdown(results)
        if options.table:
            write(options.table, shown, BEGIN, END)
        print(shown)

    for name in options.workloads if options.what == "speed" else ():
        results.setdefault("speed", {})[name] = speed(name, options.rounds, options.threads)
        keep()
    if options.what == "accuracy":
        import torch

        torch.set_num_threads(options.threads)
        for data in DATA:
            for option in options.options:
                values = results.setdefault("accuracy", {}).setdefault(data, {}).setdefault(option, {})
                for seed in options.seeds:
                    values[str(seed)] = accuracy(data, seed, option, options.directory, options.data_dir)
                keep()
    if options.what == "show":
        keep()


if __name__ == "__main__":
    main()
