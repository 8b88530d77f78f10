"""How an outer step scales with processes: one meta-batch shared out (strong), or a whole one for each (weak).

    torchrun --nproc-per-node 1 -m benchmarks.efficiency W1 --json results/efficiency.json      the yardstick, first
    torchrun --nproc-per-node 8 -m benchmarks.efficiency W1 --json results/efficiency.json

    strong efficiency = seconds(1) / (N · seconds(N)),    weak efficiency = seconds(1) / seconds(N)

The same on processors (gloo), on GPUs (NCCL, one for each process), and on several machines with torchrun's options for
them. With B tasks, strong efficiency is at most B / (N · ⌈B / N⌉): no task is divided.
"""

import argparse
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

import fewstep
from benchmarks.__main__ import machine
from benchmarks.flops import convolution_flops
from benchmarks.implementations.ours import learner
from benchmarks.network import start, tasks
from benchmarks.workloads import WORKLOADS, Workload
from fewstep.cli.machine import prepare
from fewstep.metalearning.ranks import Ranks
from fewstep.training.torchrun import leads

WARM_UP = 3
SAME = ("workload", "scale", "device", "threads")  # what a yardstick must agree in


@dataclass(frozen=True)
class Counting(Ranks):
    """Ranks that note the bytes of every sum, and add up nothing: what would be sent, without anybody to send it to."""

    bytes: list[int] = field(default_factory=list)

    def sum(self, own: torch.Tensor) -> torch.Tensor:
        self.bytes.append(own.numel() * own.element_size())
        return own


def outer_step(w: Workload, ranks: Ranks) -> Callable[[], None]:
    """Meta-gradient and update on a workload, as a training does them."""
    made = learner(w, start(w), "auto").to(ranks.device)
    made.ranks, batch = ranks, fewstep.TaskBatch(*tasks(w)).to(ranks.device)
    parameters = made.meta_parameters()
    optimizer = made.method.outer.optimizer(dict(parameters))

    def step() -> None:
        result = made.meta_gradient(batch)
        for name, parameter in parameters.items():
            parameter.grad = result.gradients[name]
        optimizer.step()
        made.update_running(result.statistics)

    return step


def reduced_bytes(w: Workload) -> int:
    """Bytes that an outer step of a workload sums over ranks.

    Example:
        >>> tiny = WORKLOADS["W2"].scaled(0.01)
        >>> reduced_bytes(tiny) // 4 > sum(p.numel() for p in start(tiny).weights.values())
        True
    """
    ranks = Counting(size=2)
    outer_step(w, ranks)()
    return sum(ranks.bytes)


def timed(step: Callable[[], object], ranks: Ranks, repeats: int) -> list[float]:
    """Seconds of each repeat, from when all begin until the last has ended."""
    seconds = []
    for _ in range(WARM_UP + repeats):
        ranks.any(False)
        started = time.perf_counter()
        step()
        if ranks.device.type == "cuda":
            torch.cuda.synchronize()
        ranks.any(False)
        seconds.append(time.perf_counter() - started)
    return seconds[WARM_UP:]


def measured(name: str, options: argparse.Namespace, ranks: Ranks) -> list[dict[str, Any]]:
    """A record of strong and one of weak scaling; for one process they are one measurement."""
    w = WORKLOADS[name] if options.scale == 1 else WORKLOADS[name].scaled(options.scale)
    cuda = ranks.device.type == "cuda"
    about = {
        "workload": name, "scale": options.scale, "threads": torch.get_num_threads(), "processes": ranks.size,
        "device": torch.cuda.get_device_name(ranks.device) if cuda else "cpu", "machine": machine(),
        "command": shlex.join(["python", "-m", "benchmarks.efficiency", *sys.argv[1:]]),
    }  # fmt: skip
    records: list[dict[str, Any]] = []
    for kind in ("strong", "weak"):
        all_tasks = w.tasks * (ranks.size if kind == "weak" else 1)
        shared = replace(w, tasks=all_tasks)
        if ranks.size == 1 and records:
            seconds, alone = records[0]["seconds"], records[0]["all_reduce"]
        else:
            seconds = timed(outer_step(shared, ranks), ranks, options.repeats)
            size = reduced_bytes(shared)
            flat = torch.zeros(size // 4, device=ranks.device)
            alone = {"bytes": size, "seconds": timed(lambda flat=flat: ranks.sum(flat), ranks, options.repeats)}
        records.append({**about, "kind": kind, "tasks": all_tasks, "flops": convolution_flops(shared),
                        "seconds": seconds, "all_reduce": alone})  # fmt: skip
    return records


def efficiency(record: dict[str, Any], records: list[dict[str, Any]]) -> float | None:
    """Against the recorded run of one process; None where there is none."""
    for one in records:
        if one["processes"] == 1 and one["kind"] == record["kind"] and all(one[k] == record[k] for k in SAME):
            gain = statistics.median(one["seconds"]) / statistics.median(record["seconds"])
            return gain / (record["processes"] if record["kind"] == "strong" else 1)
    return None


def line(record: dict[str, Any], records: list[dict[str, Any]]) -> str:
    """One measurement in words."""
    seconds, alone = record["seconds"], record["all_reduce"]
    found = efficiency(record, records)
    against = "no run of one process is recorded" if found is None else f"efficiency {found:.1%}"
    if record["kind"] == "strong":
        n, b = record["processes"], record["tasks"]
        against += f" (at most {b / (n * -(-b // n)):.1%})"
    return (
        f"{record['workload']} {record['kind']:6} {record['processes']} × {record['device']}, {record['tasks']} tasks: "
        f"{statistics.median(seconds):.4g} s an outer step ({min(seconds):.4g}–{max(seconds):.4g}); {against}; "
        f"all-reduce of {alone['bytes']:,} bytes alone {statistics.median(alone['seconds']):.3g} s"
    )


def recorded(path: Path | None) -> list[dict[str, Any]]:
    return json.loads(path.read_text())["runs"] if path and path.is_file() else []


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="torchrun … -m benchmarks.efficiency", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    there_are = [name for name, w in WORKLOADS.items() if not w.predict]
    parser.add_argument("workload", choices=there_are)
    parser.add_argument("--repeats", type=int, default=10, help="outer steps that are timed (default 10)")
    parser.add_argument("--threads", type=int, default=1, help="of every process (default 1)")
    parser.add_argument("--scale", type=float, default=1.0, help="smaller shapes, to see whether it runs (default 1)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="measurements; this one is added")
    options = parser.parse_args(arguments)
    if options.repeats < 1 or options.threads < 1 or not 0 < options.scale <= 1:
        parser.error("repeats and threads must be at least 1; scale must lie above 0 and not above 1")
    return options


def main(arguments: list[str] | None = None) -> int:
    if not leads():  # what is wrong with the arguments is said once
        sys.stderr = open("/dev/null", "w")  # noqa: SIM115
    options = parsed(arguments)
    sys.stderr = sys.__stderr__
    prepare(options.threads)
    with fewstep.torchrun() as ranks:
        found = measured(options.workload, options, ranks)
        if not ranks.first:
            return 0
        kinds = {(r["kind"], r["processes"], *(r[k] for k in SAME)) for r in found}
        kept = [r for r in recorded(options.json) if (r["kind"], r["processes"], *(r[k] for k in SAME)) not in kinds]
        for record in found:
            print(line(record, kept + found))
        if options.json:
            options.json.write_text(json.dumps({"runs": kept + found}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
