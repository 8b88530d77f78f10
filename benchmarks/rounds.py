"""One workload: peak memory of each implementation, equal results, then seconds, in turn, round by round.

Two settings, each with its own fresh processes; ratios hold within one of them:

    as run           every implementation as its users run it: fewstep's commands raise the allocator's thresholds,
                     nobody else does; beside them fewstep as a library in a process that leaves the allocator alone
    our allocator    all with the thresholds raised
"""

import contextlib
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.flops import convolution_flops
from benchmarks.implementations import OURS, REFERENCE
from benchmarks.processes import Gone, Process
from benchmarks.workloads import WORKLOADS

AS_RUN, EQUAL = "as run", "our allocator"
UNTOUCHED = "fewstep, allocator untouched"

# How far a result may be from the plain loop's, in the worst tensor: of a smaller problem in double precision, of a
# tiny one in single precision, and of what is timed. In single precision rounding moves a maximum of the pooling to
# another pixel now and then, and inner steps make much of it: on the real shapes two exact programs differ by a tenth
# of the gradient and more, so that only what is beyond all bounds is refused; on tiny ones they hardly ever do, so that
# one of three draws must agree.
TOLERANCE = {"float64": 1e-8, "float32": 1e-4, "timed": 10.0}
CHECKS = (("float64", 0), ("float32", 0), ("float32", 1), ("float32", 2), ("timed", 0))
LEAST_ROUNDS = 3
PAUSE = 0.03  # seconds in which the threads of the one before fall asleep
A_TURN = 0.3  # seconds of a turn, at least: short steps are repeated
Say = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """How to measure; see `python -m benchmarks --help`."""

    implementations: Sequence[str]
    repeats: int
    threads: int
    scale: float
    at_most: float


def contenders(setting: str, implementations: Sequence[str]) -> dict[str, tuple[str, str]]:
    """{label: (implementation, allocator)} of a setting.

    Example:
        >>> contenders(AS_RUN, ["fewstep-loop", "loop"])
        {'fewstep-loop': ('fewstep-loop', 'ours'), 'loop': ('loop', 'theirs')}
        >>> contenders(EQUAL, ["fewstep", "fewstep-loop", "loop"])
        {'fewstep': ('fewstep', 'ours'), 'loop': ('loop', 'ours')}
    """
    if setting == EQUAL:
        return {name: (name, "ours") for name in implementations if name not in OURS or OURS[name] == "auto"}
    found = {name: (name, "ours" if name in OURS else "theirs") for name in implementations}
    return found | ({UNTOUCHED: ("fewstep", "theirs")} if "fewstep" in implementations else {})


class Workers:
    """The live workers of one setting on one workload, by label, and what was found about each."""

    def __init__(self, workload: str, setting: str, options: Options, stack: contextlib.ExitStack, say: Say):
        self.workload, self.options, self.stack, self.say = workload, options, stack, say
        self.found: dict[str, dict[str, Any]] = {}
        self.left_out: dict[str, str] = {}
        chosen = contenders(setting, options.implementations)
        self.live = {label: self.start(*which) for label, which in chosen.items()}
        for label in list(self.live):
            self._ask(label)

    def start(self, implementation: str, allocator: str) -> Process:
        arguments = (implementation, self.workload, "--allocator", allocator, "--scale", str(self.options.scale))
        return self.stack.enter_context(Process("worker", *arguments, threads=self.options.threads))

    def _ask(self, label: str, do: str = "", **arguments: Any) -> dict[str, Any]:
        """An answer of a worker, its greeting where nothing is asked; one that gives none is left out from here on."""
        try:
            return self.live[label].ask(do, **arguments) if do else self.live[label].answer()
        except Gone as reason:
            self.leave_out(label, str(reason))
            return {}

    def leave_out(self, label: str, reason: str) -> None:
        self.say(f"  {label} is left out: {reason}")
        self.live.pop(label).close()
        self.found.pop(label, None)
        self.left_out[label] = reason

    def measure_memory(self) -> None:
        """Peak memory of each in its fresh process, one after the other."""
        for label in list(self.live):
            self.say(f"  memory: {label}")
            if answer := self._ask(label, "memory"):
                self.found[label] = {"memory": answer, "distance": {}, "seconds": []}

    def check_results(self) -> None:
        """Leave out whoever computes something else than the plain loop does."""
        reference = self.live.get(REFERENCE)
        if reference is None:  # not asked for, but what a result is compared with
            reference = self.start(REFERENCE, "theirs")
            reference.answer()
            reference.ask("memory")
        with tempfile.TemporaryDirectory() as folder:
            for of, seed in CHECKS:
                path = str(Path(folder) / f"{of}-{seed}")
                reference.ask("save", path=path, of=of, seed=seed)
                for label in list(self.live):
                    self._compare(label, path, of, seed)
        if reference not in self.live.values():
            reference.close()
        for label, found in list(self.found.items()):
            far = [f"{value:.1e} ({of})" for of, value in found["distance"].items() if value > TOLERANCE[of]]
            if far:
                self.leave_out(label, f"its result differs from the plain loop's by {', '.join(far)}")

    def _compare(self, label: str, path: str, of: str, seed: int) -> None:
        """Note how far a result is; of several draws the nearest counts."""
        known = self.found[label]["distance"]
        if known.get(of, math.inf) <= TOLERANCE[of]:
            return
        if answer := self._ask(label, "compare", path=path, of=of, seed=seed):
            known[of] = min(known.get(of, math.inf), answer["distance"])

    def time_rounds(self) -> None:
        """A turn of each, A B C A B C …; whoever holds memory that the others need gives it back after its turn."""
        held = sum(found["memory"]["used"] for found in self.found.values())
        release = held > 0.6 * available_bytes()
        turn = A_TURN * self.options.scale
        counts = {n: max(1, min(50, math.ceil(turn / f["memory"]["seconds"]))) for n, f in self.found.items()}
        stop = time.monotonic() + self.options.at_most
        for number in range(self.options.repeats):
            if number >= LEAST_ROUNDS and time.monotonic() > stop:
                break
            self.say(f"  round {number + 1}")
            for label in list(self.live):
                time.sleep(PAUSE)
                if answer := self._ask(label, "time", count=counts[label], release=release):
                    self.found[label]["seconds"].append(answer["seconds"])


def available_bytes() -> float:
    """Memory that processes may take; without limit where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return math.inf


def measure(name: str, options: Options, say: Say) -> dict[str, Any]:
    """Everything about a workload, as JSON."""
    w = WORKLOADS[name]
    shapes = w if options.scale == 1 else w.scaled(options.scale)
    record: dict[str, Any] = {
        "what": w.what, "shapes": shapes.shapes, "flops": convolution_flops(shapes),
        "target": {"faster": w.faster, "memory": w.memory}, "settings": {}, "left_out": {},
    }  # fmt: skip
    for setting in (AS_RUN, EQUAL):
        say(f"{name}, {setting}")
        allowed = [n for n in options.implementations if n not in record["left_out"]]
        with contextlib.ExitStack() as stack:
            workers = Workers(name, setting, replace(options, implementations=allowed), stack, say)
            workers.measure_memory()
            if setting == AS_RUN:
                workers.check_results()
            workers.time_rounds()
            record["settings"][setting] = workers.found
            record["left_out"] |= workers.left_out
    return record
