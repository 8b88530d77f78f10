"""One implementation on one workload, in a process of its own: what it answers to `rounds.py` and `memory.py`."""

import importlib
import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from benchmarks.held import give_back, held
from benchmarks.implementations import IMPLEMENTATIONS, OURS, WITHOUT_PLUS
from benchmarks.kernels import split
from benchmarks.network import distance, start, tasks
from benchmarks.workloads import Workload


class Contender:
    """`step` is a step on the real shapes.

    Arguments:
        implementation: its name. workload: fields of a `Workload`.
        device: cpu, cuda or cuda:N.
        precision: float32 forbids TF32, tf32 allows it; bf16 is known to ours alone.
        options: more of `fewstep.Learner`'s, for ours alone.

    Raises:
        ImportError: its library is missing.
        NotImplementedError: its users do not write this workload.
    """

    def __init__(
        self, implementation: str, workload: dict[str, Any], device: str = "cpu", precision: str = "float32",
        **options: Any,
    ):  # fmt: skip
        self.module = importlib.import_module(IMPLEMENTATIONS[implementation])
        self.workload, self.device, self.options = Workload(**workload), torch.device(device), options
        if implementation in WITHOUT_PLUS and self.workload.plus:
            raise NotImplementedError("not written by its users without contortions")
        if implementation in OURS:
            self.options = {"strategy": OURS[implementation], "precision": precision, **options}
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        self.step: Callable[[], dict] = dict
        self.result: dict[str, torch.Tensor] = {}

    def build(self, w: Workload, dtype: str = "float32", seed: int = 0) -> Callable[[], dict]:
        """A step on a workload, everything on the device; a small problem goes the way of the real one."""
        kind, options = getattr(torch, dtype), dict(self.options)
        if w is not self.workload and options.get("strategy") == "auto":
            options["strategy"] = self.module.chosen(self.workload)
        torch.set_default_dtype(kind)  # of the modules that are built now
        try:
            return self.module.build(w, start(w).to(self.device, kind), tasks(w, seed).to(self.device, kind), **options)
        finally:
            torch.set_default_dtype(torch.float32)

    def memory(self, passes: int = 3) -> dict[str, Any]:
        """Build, take some steps: the peak beyond what was held before; seconds of the first and of the last step.

        A step on a tiny problem comes before it, so that code which a library loads when first used does not count.
        """
        self.build(self.workload.scaled(0.05))()
        seconds = []

        def work() -> None:
            self.step = self.build(self.workload)
            for _ in range(passes):
                seconds.append(self.time(1)["seconds"])

        found = held(work) if self.device.type == "cpu" else self._held_by_device(work)
        about = {"first": seconds[0], "seconds": seconds[-1]}
        if self.options:
            auto, strategy = self.module.chosen(self.workload), self.options["strategy"]
            about |= {"auto": auto, "strategy": auto if strategy == "auto" else strategy}
        return {**found, **about}

    def _held_by_device(self, work: Callable[[], None]) -> dict[str, int]:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        work()
        peak = torch.cuda.max_memory_allocated(self.device)
        return {"before": before, "peak": peak, "used": peak - before}

    def time(self, count: int, release: bool = False) -> dict[str, float]:
        """Seconds of a step, the mean of `count`. `release`: hold no memory between questions, and warm up anew."""
        if release:
            self.step()
        self._wait()
        started = time.perf_counter()
        for _ in range(count):
            self.result = self.step()
        self._wait()
        seconds = (time.perf_counter() - started) / count
        if release:
            give_back()
        return {"seconds": seconds}

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def kernels(self) -> dict[str, Any]:
        """Where the time of one more step goes."""
        return split(self.step, self.device)

    def save(self, path: str, of: str, seed: int) -> dict[str, Any]:
        """Write a result."""
        save_file({name: t.contiguous() for name, t in self.outcome(of, seed).items()}, path)
        give_back()
        return {}

    def compare(self, path: str, of: str, seed: int) -> dict[str, float]:
        """How far a result is from a written one, and in what direction."""
        found, expected = self.outcome(of, seed), load_file(path)
        give_back()
        return {"distance": min(distance(found, expected), FAR), "cosine": cosine(found, expected)}

    def outcome(self, of: str, seed: int) -> dict[str, torch.Tensor]:
        """The result on the real shapes in float32, or that of a small problem which can be compared sharply."""
        w = self.workload
        small = w.scaled(0.1) if of == "float32" else replace(w, tasks=min(w.tasks, 4), size=min(w.size, 28))
        result = self.result if of == "timed" else self.build(small, of, seed)()
        return {name: t.detach().cpu() for name, t in result.items()}


FAR = 1e9  # stands for a distance that is not finite, which JSON cannot write


def cosine(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Of two results, all tensors in a row; 0 where one is not finite."""
    a, b = (torch.cat([each[name].flatten().double() for name in sorted(expected)]) for each in (found, expected))
    value = float(torch.nn.functional.cosine_similarity(a, b, dim=0))
    return value if math.isfinite(value) else 0.0
