"""From recorded seconds and bytes to ratios, each within one setting of one run; higher is ours faster."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.implementations import OURS
from benchmarks.rounds import AS_RUN, EQUAL, UNTOUCHED

OWN = "fewstep"
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Ratio:
    """How many times another takes what ours takes: of the medians, and the least and most of a round."""

    other: str
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f}–{self.high:.2f})"


def ratio(found: Record, other: str, own: str = OWN) -> Ratio:
    """Seconds of another over ours.

    Example:
        >>> str(ratio({"fewstep": {"seconds": [1.0, 1.0, 2.0]}, "loop": {"seconds": [2.0, 3.0, 3.0]}}, "loop"))
        '3.00 (1.50–3.00)'
    """
    ours, theirs = found[own]["seconds"], found[other]["seconds"]
    rounds = [b / a for a, b in zip(ours, theirs, strict=False)]
    return Ratio(other, median(theirs) / median(ours), min(rounds), max(rounds))


def others(found: Record) -> list[str]:
    """Whoever is not fewstep, and was timed."""
    return [name for name in found if name not in OURS and name != UNTOUCHED and found[name]["seconds"]]


def fastest(found: Record, own: str = OWN) -> Ratio | None:
    """Ours against the fastest other; None without one."""
    if not others(found) or own not in found:
        return None
    return min((ratio(found, other, own) for other in others(found)), key=lambda r: r.value)


@dataclass(frozen=True)
class Summary:
    """A workload in figures; None where nothing was measured.

    as_run, equal, untouched: against the fastest other: everyone as its users run it; everyone with our allocator
    settings; nobody with them. memory: ours over the smallest other, with its name. share: of the convolution peak.
    """

    seconds: float | None
    as_run: Ratio | None
    equal: Ratio | None
    untouched: Ratio | None
    memory: tuple[float, str] | None
    share: float | None
    rate: float | None
    met: dict[str, bool]


def summary(record: Record, peak: float | None) -> Summary:
    """The figures of one workload."""
    run, same = (record["settings"].get(setting, {}) for setting in (AS_RUN, EQUAL))
    seconds = median(run[OWN]["seconds"]) if OWN in run and run[OWN]["seconds"] else None
    as_run = fastest(run)
    memory = None
    if as_run:
        used = {name: run[name]["memory"]["used"] for name in (OWN, *others(run))}
        smallest = min(others(run), key=lambda name: used[name])
        if used[smallest] > 0:  # tiny shapes may fit into what the process held before
            memory = used[OWN] / used[smallest], smallest
    target, met = record["target"], {}
    if as_run:
        met["faster"] = as_run.value >= target["faster"]
    if memory:
        met["memory"] = memory[0] <= target["memory"]
    rate = record["flops"] / seconds if seconds else None
    share = rate / peak if rate and peak else None
    return Summary(seconds, as_run, fastest(same), fastest(run, UNTOUCHED), memory, share, rate, met)


def epoch_shares(record: Record) -> dict[str, float]:
    """Shares of a published epoch, with its validation and checkpoint, from the seconds of its parts.

    Example:
        >>> parts = {"sampling": 0.1, "meta_gradient": 0.9}
        >>> epoch = {"steps": 10, "validation_tasks": 4}
        >>> epoch_shares({"step": parts, "checkpoint": 2.0, "validation_task": 2.0, "epoch": epoch})["validation"]
        0.4
    """
    steps, tasks = record["epoch"]["steps"], record["epoch"]["validation_tasks"]
    seconds = {part: value * steps for part, value in record["step"].items()}
    seconds |= {"checkpoint": record["checkpoint"], "validation": record["validation_task"] * tasks}
    return {part: value / sum(seconds.values()) for part, value in seconds.items()}


def step_shares(record: Record) -> dict[str, float]:
    """Shares of an outer step; a checkpoint's as if every step had its part of the one that ends an epoch."""
    whole = sum(record["step"].values())
    parts = {part: value / whole for part, value in record["step"].items()}
    return parts | {"checkpoint": record["checkpoint"] / record["epoch"]["steps"] / whole}
