"""A process that runs one implementation on one workload, a step whenever it is asked for one.

    python -m benchmarks.worker IMPLEMENTATION WORKLOAD --allocator theirs|ours

Answers are JSON lines on standard output, questions JSON lines on standard input (see `ANSWERS`); between two questions
the process waits in a read and takes no time from the others. `--allocator ours` is what fewstep's commands set for
themselves; `theirs` leaves the process as Python started it.
"""

import argparse
import contextlib
import ctypes
import importlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.implementations import IMPLEMENTATIONS, OURS
from benchmarks.workloads import WORKLOADS, Workload

MEMORY_STEPS = 3


def status(entry: str) -> int:
    """An entry of Linux's account of this process, in bytes; the largest resident size so far on other systems."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{entry}:"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_peak() -> None:
    """Let the largest resident size be that from now on: what loading a library took for a moment does not count."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def give_back() -> None:
    """Return freed memory to the system, where the C library knows how."""
    if sys.platform == "linux":
        getattr(ctypes.CDLL(None), "malloc_trim", int)(0)


@dataclass
class Worker:
    """One implementation on one workload; `step` is a step on the real shapes."""

    name: str
    workload: Workload
    module: Any
    step: Callable[[], dict] = dict
    result: dict = field(default_factory=dict)

    def build(self, w: Workload, dtype: str = "float32", seed: int = 0) -> Callable[[], dict]:
        """A step on a workload, in a precision."""
        import torch

        from benchmarks.network import start, tasks

        begin, batch = start(w).to(getattr(torch, dtype)), tasks(w, seed).to(getattr(torch, dtype))
        torch.set_default_dtype(getattr(torch, dtype))  # of the modules that are built now
        try:
            if self.name not in OURS:
                return self.module.build(w, begin, batch)
            strategy = OURS[self.name]
            if w is not self.workload:  # a small problem goes the way of the real one
                strategy = self.module.chosen(self.workload, strategy)
            return self.module.build(w, begin, batch, strategy)
        finally:
            torch.set_default_dtype(torch.float32)

    # --- answers -----------------------------------------------------------------------------------------------------

    def memory(self) -> dict[str, Any]:
        """Build, take three steps: the peak beyond what the process held before, and the seconds of the last step.

        A step on a tiny problem comes before it, so that code which a library loads when first used does not count.
        """
        self.build(self.workload.scaled(0.05))()
        give_back()
        before = status("VmRSS")
        forget_peak()
        self.step = self.build(self.workload)
        for _ in range(MEMORY_STEPS):
            started = time.perf_counter()
            self.result = self.step()
            seconds = time.perf_counter() - started
        peak = status("VmHWM")
        give_back()
        about = {"strategy": self.module.chosen(self.workload, OURS[self.name])} if self.name in OURS else {}
        return {"before": before, "peak": peak, "used": peak - before, "seconds": seconds, **about}

    def time(self, count: int, release: bool) -> dict[str, Any]:
        """Seconds of a step, the mean of `count`. `release`: hold no memory between questions, and warm up anew."""
        if release:
            self.step()
        started = time.perf_counter()
        for _ in range(count):
            self.step()
        seconds = (time.perf_counter() - started) / count
        if release:
            give_back()
        return {"seconds": seconds}

    def outcome(self, of: str, seed: int = 0) -> dict:
        """The result on the real shapes in float32, or that of a small problem which can be compared sharply."""
        if of == "timed":
            return self.result
        w = self.workload
        w = w.scaled(0.1) if of == "float32" else replace(w, tasks=min(w.tasks, 4), size=min(w.size, 28))
        return self.build(w, of, seed)()

    def save(self, path: str, of: str, seed: int = 0) -> dict[str, Any]:
        """Write a result."""
        from safetensors.torch import save_file

        save_file({name: t.detach().contiguous() for name, t in self.outcome(of, seed).items()}, path)
        give_back()
        return {}

    def compare(self, path: str, of: str, seed: int = 0) -> dict[str, Any]:
        """How far a result is from a written one."""
        from safetensors.torch import load_file

        from benchmarks.network import distance

        answer = {"distance": distance(self.outcome(of, seed), load_file(path))}
        give_back()
        return answer


ANSWERS = ("memory", "time", "save", "compare")


def prepare(allocator: str, threads: int) -> None:
    """Threads, and the allocator that was asked for."""
    if allocator == "ours":
        from fewstep.cli.machine import prepare

        prepare(threads)
    import torch

    torch.set_num_threads(threads)


def serve(questions: Any, say: Callable[[dict], None], worker: Worker) -> None:
    """Answer until the questions end."""
    for line in questions:
        question = json.loads(line)
        do = question.pop("do")
        if do not in ANSWERS:
            raise ValueError(f"unknown question {do!r}")
        say(getattr(worker, do)(**question))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.worker", description=__doc__.splitlines()[0])
    parser.add_argument("implementation", choices=IMPLEMENTATIONS)
    parser.add_argument("workload", choices=WORKLOADS)
    parser.add_argument("--allocator", choices=("theirs", "ours"), required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scale", type=float, default=1.0)
    options = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints must not look like an answer

    def say(answer: dict) -> None:
        answers.write(json.dumps(answer) + "\n")

    w = WORKLOADS[options.workload]
    prepare(options.allocator, options.threads)
    try:
        module = importlib.import_module(IMPLEMENTATIONS[options.implementation])
    except ImportError as error:
        say({"unavailable": f"cannot be imported: {error}"})
        return
    if not module.supports(w):
        say({"unavailable": "not written by its users without contortions"})
        return
    say({"ready": True})
    scaled = w if options.scale == 1 else w.scaled(options.scale)
    serve(sys.stdin, say, Worker(options.implementation, scaled, module))


if __name__ == "__main__":
    main()
