"""How an outer step scales with processes: one meta-batch shared out (strong), or a whole one for each (weak).

    torchrun --nproc-per-node 1 -m benchmarks.efficiency W1 --json results/efficiency.json      the yardstick, first
    torchrun --nproc-per-node 8 -m benchmarks.efficiency W1 --json results/efficiency.json

    strong efficiency = seconds(1) / (N · seconds(N)),    weak efficiency = seconds(1) / seconds(N)

The same on processors (gloo), on GPUs (NCCL, one for each process), and on several machines with torchrun's options for
them. With B tasks, strong efficiency is at most B / (N · ⌈B / N⌉): no task is divided.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext, redirect_stderr
from dataclasses import dataclass, field, replace
from statistics import median

import torch

import fewstep
from benchmarks import command, tables
from benchmarks.command import Record
from benchmarks.flops import counts
from benchmarks.implementations.ours import problem
from benchmarks.processes import prepare
from benchmarks.timing import turn
from benchmarks.workloads import WORKLOADS, Workload
from fewstep.metalearning.ranks import Ranks
from fewstep.training.torchrun import leads

MARKS = "efficiency"
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
    made, batch = problem(w, "auto")
    made, batch = made.to(ranks.device), batch.to(ranks.device)
    made.ranks = ranks
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
        >>> reduced_bytes(WORKLOADS["W2"].scaled(0.01)) > 1000
        True
    """
    ranks = Counting(size=2)
    outer_step(w, ranks)()
    return sum(ranks.bytes)


def timed(step: Callable[[], object], ranks: Ranks, repeats: int) -> list[float]:
    """Seconds of each repeat, from when all begin until the last has ended."""

    def together() -> None:
        step()
        if ranks.device.type == "cuda":
            torch.cuda.synchronize()
        ranks.any(False)

    seconds = []
    for _ in range(WARM_UP + repeats):
        ranks.any(False)
        seconds.append(turn(together))
    return seconds[WARM_UP:]


def measured(options: argparse.Namespace, ranks: Ranks) -> list[Record]:
    """A record of strong and one of weak scaling; for one process they are one measurement."""
    w = WORKLOADS[options.workload] if options.scale == 1 else WORKLOADS[options.workload].scaled(options.scale)
    cuda = ranks.device.type == "cuda"
    about = {
        **command.started("efficiency"), "workload": options.workload, "scale": options.scale,
        "threads": torch.get_num_threads(), "processes": ranks.size,
        "device": torch.cuda.get_device_name(ranks.device) if cuda else "cpu",
    }  # fmt: skip
    records: list[Record] = []
    for kind in ("strong", "weak"):
        shared = replace(w, tasks=w.tasks * (ranks.size if kind == "weak" else 1))
        if ranks.size == 1 and records:
            seconds, alone = records[0]["seconds"], records[0]["all_reduce"]
        else:
            seconds = timed(outer_step(shared, ranks), ranks, options.rounds)
            size = reduced_bytes(shared)
            flat = torch.zeros(size // 4, device=ranks.device)
            alone = {"bytes": size, "seconds": timed(lambda flat=flat: ranks.sum(flat), ranks, options.rounds)}
        records.append({**about, "kind": kind, "tasks": shared.tasks, "flops": counts(shared)["flops"],
                        "seconds": seconds, "all_reduce": alone})  # fmt: skip
    return records


def efficiency(record: Record, records: list[Record]) -> float | None:
    """Against the recorded run of one process; None where there is none."""
    for one in records:
        if one["processes"] == 1 and one["kind"] == record["kind"] and all(one[k] == record[k] for k in SAME):
            gain = median(one["seconds"]) / median(record["seconds"])
            return gain / (record["processes"] if record["kind"] == "strong" else 1)
    return None


def _row(record: Record, records: list[Record]) -> list[str]:
    found, processes, count = efficiency(record, records), record["processes"], record["tasks"]
    against = "no run of one process is recorded" if found is None else f"{found:.1%}"
    if record["kind"] == "strong":
        against += f" (at most {count / (processes * -(-count // processes)):.1%})"
    alone = record["all_reduce"]
    return [
        record["workload"], record["kind"], f"{processes} × {record['device']}", str(count),
        tables.spread(record["seconds"], "{:.3g}"), against,
        f"{median(alone['seconds']) * 1e3:.3g} ms for {alone['bytes']:,} bytes",
    ]  # fmt: skip


def parts(results: Record) -> Iterator[str]:
    """The table of a record."""
    head = ["", "", "processes", "tasks", "seconds of an outer step", "efficiency", "all-reduce alone"]
    yield tables.rows(head, [_row(record, results["runs"]) for record in results["runs"]])


def main(arguments: list[str] | None = None) -> int:
    parser = command.parser("efficiency", __doc__, rounds=10, threads=1, scale=1.0, json=None, table=None)
    parser.add_argument("workload", choices=[name for name, w in WORKLOADS.items() if not w.predict])
    with open(os.devnull, "w") as nowhere, nullcontext() if leads() else redirect_stderr(nowhere):
        options = parser.parse_args(arguments)  # what is wrong with the arguments is said once
    prepare("ours", options.threads)
    with fewstep.torchrun() as ranks:
        found = measured(options, ranks)
        if not ranks.first:
            return 0
        old = [r for r in command.recorded(options.json).get("runs", []) if key(r) not in map(key, found)]
        return command.finished({"runs": old + found}, options)


def key(record: Record) -> tuple[object, ...]:
    """What a measurement is of: a new one takes the place of an old one."""
    return (record["kind"], record["processes"], *(record[name] for name in SAME))


if __name__ == "__main__":
    sys.exit(main())
