"""One workload: peak memory of each contender, equal results, then seconds, in turn, round by round.

Every contender has a process of its own (`contender.py`), and every setting fresh ones; ratios hold within a setting.
"""

import contextlib
import math
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.command import Record, say
from benchmarks.flops import counts
from benchmarks.held import entry
from benchmarks.implementations import REFERENCE
from benchmarks.processes import Gone, Process
from benchmarks.timing import in_turn
from benchmarks.workloads import WORKLOADS, Workload

# How far a result may be from the plain loop's, in the worst tensor: of a smaller problem in double precision, of a
# tiny one in single precision, and of what is timed. In single precision rounding moves a maximum of the pooling to
# another pixel now and then, and inner steps make much of it: on the real shapes two exact programs differ by a tenth
# of the gradient and more, so that only what is beyond all bounds is refused; on tiny ones they hardly ever do, so that
# one of three draws must agree. On a GPU single precision is not that exact, and bf16 nowhere: not refused.
TOLERANCE = {"float64": 1e-8, "float32": 1e-4, "timed": 10.0}
CHECKS = (("float64", 0), ("float32", 0), ("float32", 1), ("float32", 2), ("timed", 0))
PAUSE = 0.03  # seconds in which the threads of the one before fall asleep
A_TURN = 0.3  # seconds of a turn, at least: short steps are repeated


@dataclass(frozen=True)
class Options:
    """How to measure; see `python -m benchmarks --help`."""

    rounds: int
    at_most: float = math.inf
    threads: int = 2
    scale: float = 1.0
    device: str = "cpu"


class Setting:
    """The live processes of one setting on one workload, by label, and what was found about each."""

    def __init__(self, w: Workload, contenders: dict[str, Record], options: Options, stack: contextlib.ExitStack):
        self.workload, self.options, self.contenders = asdict(w), options, contenders
        self.found: dict[str, Record] = {}
        self.left_out: dict[str, str] = {}
        self.live = {label: stack.enter_context(self.process(**each)) for label, each in contenders.items()}

    def process(self, **contender: Any) -> Process:
        return Process("contender.Contender", self.options.threads, workload=self.workload, device=self.options.device,
                       **contender)  # fmt: skip

    def ask(self, label: str, do: str, **arguments: Any) -> Record:
        """An answer; an empty one of a process that gives none, and is left out from here on."""
        try:
            return self.live[label].ask(do, **arguments)
        except Gone as reason:
            self.leave_out(label, str(reason))
            return {}

    def leave_out(self, label: str, reason: str) -> None:
        say(f"  {label} is left out: {reason}")
        self.live.pop(label).__exit__()
        self.found.pop(label, None)
        self.left_out[label] = reason

    def measure_memory(self) -> None:
        """Peak memory of each in its fresh process, one after the other."""
        for label in list(self.live):
            say(f"  memory: {label}")
            if answer := self.ask(label, "memory"):
                self.found[label] = {"memory": answer, "distance": {}, "seconds": []}

    def check_results(self) -> None:
        """Leave out whoever computes something else than the plain loop does."""
        with tempfile.TemporaryDirectory() as folder, self.process(implementation=REFERENCE) as right:
            right.ask("memory", passes=1)
            for of, seed in CHECKS:
                question = {"path": str(Path(folder) / f"{of}-{seed}"), "of": of, "seed": seed}
                right.ask("save", **question)
                for label in [label for label in self.live if self._says_something(label, of)]:
                    known = self.found[label]["distance"]
                    if known.get(of, math.inf) > TOLERANCE[of] and (answer := self.ask(label, "compare", **question)):
                        known[of] = min(known.get(of, math.inf), answer["distance"])
                        self.found[label]["cosine"] = answer["cosine"]
        for label, found in list(self.found.items()):
            far = [f"{value:.1e} ({of})" for of, value in found["distance"].items() if value > TOLERANCE[of]]
            if far and self._says_something(label, "float64"):
                self.leave_out(label, f"its result differs from the plain loop's by {', '.join(far)}")

    def _says_something(self, label: str, of: str) -> bool:
        """Whether a comparison of this kind is one between exact programs; that of what is timed is always made."""
        exact = self.contenders[label].get("precision") != "bf16" and (of == "float64" or self.options.device == "cpu")
        return exact or of == "timed"

    def time_rounds(self) -> None:
        """A turn of each; whoever holds memory that the others need gives it back after its turn."""
        held = sum(found["memory"]["used"] for found in self.found.values())
        release = self.options.device == "cpu" and held > 0.6 * (entry("MemAvailable", "/proc/meminfo") or math.inf)
        least = A_TURN * self.options.scale
        counts = {n: max(1, min(50, math.ceil(least / f["memory"]["seconds"]))) for n, f in self.found.items()}
        for label in in_turn(list(self.live), self.options.rounds, self.options.at_most):
            if label in self.live:
                time.sleep(PAUSE)
                if answer := self.ask(label, "time", count=counts[label], release=release):
                    self.found[label]["seconds"].append(answer["seconds"])


def measure(name: str, settings: dict[str, dict[str, Record]], options: Options) -> Record:
    """Everything about a workload: by setting and label memory, seconds of every round, and in the first distances.

    Arguments:
        settings: {setting: {label: allocator and arguments of a `Contender`}}.
    """
    w = WORKLOADS[name] if options.scale == 1 else WORKLOADS[name].scaled(options.scale)
    record: Record = {
        "what": w.what, "shapes": w.shapes, "flops": counts(w)["flops"],
        "target": {"faster": w.faster, "memory": w.memory}, "settings": {}, "left_out": {},
    }  # fmt: skip
    for title, contenders in settings.items():
        say(f"{name}, {title}")
        allowed = {label: each for label, each in contenders.items() if label not in record["left_out"]}
        with contextlib.ExitStack() as stack:
            setting = Setting(w, allowed, options, stack)
            setting.measure_memory()
            if not record["settings"]:
                setting.check_results()
            setting.time_rounds()
            for label in list(setting.found) if options.device != "cpu" else ():
                setting.found[label]["kernels"] = setting.ask(label, "kernels")
            record["settings"][title] = setting.found
            record["left_out"] |= setting.left_out
    return record
