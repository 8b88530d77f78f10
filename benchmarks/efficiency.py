"""How an outer step scales with processes: one meta-batch shared out (strong), or a whole one for each (weak).

    torchrun --nproc-per-node 1 -m benchmarks.efficiency W1 --json results/efficiency.json      the yardstick, first
    torchrun --nproc-per-node 8 -m benchmarks.efficiency W1 --json results/efficiency.json

    strong efficiency = seconds(1) / (N · seconds(N)),    weak efficiency = seconds(1) / seconds(N)

The same on processors (gloo), on GPUs (NCCL, one for each process), and on several machines with torchrun's options for
them. With B tasks, strong efficiency is at most B / (N · ⌈B / N⌉): no task is divided.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

import fewstep
from benchmarks import command, tables
from benchmarks.command import Record
from benchmarks.flops import counts
from benchmarks.implementations.ours import problem
from benchmarks.processes import prepare
from benchmarks.timing import turn
from benchmarks.workloads import WORKLOADS, Workload

MARKS = "efficiency"
WARM_UP = 3
SAME = ("workload", "scale", "device", "threads")  # what a yardstick must agree in


def outer_step(w: Workload, ranks: Any) -> Callable[[], fewstep.MetaGradient]:
    """Meta-gradient and update on a workload, as a training does them."""
    made, batch = problem(w, "auto")
    made, batch = made.to(ranks.device), batch.to(ranks.device)
    made.ranks = ranks
    parameters = made.meta_parameters()
    optimizer = made.method.outer.optimizer(dict(parameters))

    def step() -> fewstep.MetaGradient:
        result = made.meta_gradient(batch)
        for name, parameter in parameters.items():
            parameter.grad = result.gradients[name]
        optimizer.step()
        made.update_buffers(result)
        return result

    return step


def reduced_numbers(result: fewstep.MetaGradient) -> int:
    """How many numbers an outer step sums over ranks: all that must agree."""
    shared = (result.gradients, result.statistics, result.query_logits, result.task_losses)
    return sum(t.numel() for t in tree_leaves(shared))


def timed(step: Callable[[], object], ranks: Any, repeats: int) -> list[float]:
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


def measured(options: argparse.Namespace, ranks: Any) -> list[Record]:
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
            step = outer_step(shared, ranks)
            seconds = timed(step, ranks, options.rounds)
            flat = torch.zeros(reduced_numbers(step()), device=ranks.device)
            sums = timed(lambda flat=flat: ranks.sum(flat), ranks, options.rounds)
            alone = {"bytes": flat.numel() * flat.element_size(), "seconds": sums}
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
    options = parser.parse_args(arguments)
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
