"""fewstep beside `higher` and a plain loop on one device, in one process, interleaved; results are checked first.

    python -m benchmarks.gpu --device cuda --json results/gpu.json
    python -m benchmarks.gpu --device cpu --scale 0.1 --repeats 2 --only W1        whether everything runs

Seconds are between two events on the device's stream, of whole steps; the time by kernel is of one step more. Every
implementation runs under the same precision: `float32` forbids TF32 to all, `tf32` allows it to all.
"""

import argparse
import importlib
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.implementations import IMPLEMENTATIONS
from benchmarks.kernels import split
from benchmarks.network import Batch, Start, distance, start, tasks
from benchmarks.workloads import WORKLOADS, Workload
from fewstep.cli.machine import device as named_device
from fewstep.cli.machine import prepare
from fewstep.errors import BadInput
from fewstep.metalearning.precision import products
from fewstep.training.checkpoint import write_atomically
from fewstep.training.run import environment

OTHERS = ("loop", "higher")
TOLERANCE = 1e-8  # of a small problem in float64
WARM_UP = 3


class Contender(NamedTuple):
    """An implementation and how it is asked to compute; `strategy` and `compiled` are for ours alone."""

    implementation: str
    precision: str = "float32"
    strategy: str | None = None
    compiled: bool = False

    @property
    def label(self) -> str:
        parts = self.implementation, self.strategy, self.precision, "compiled" if self.compiled else None
        return " ".join(filter(None, parts))


def contenders(precisions: list[str], compiled: bool) -> list[Contender]:
    """Ours in each precision, compiled too where asked for, then the others in those that they know."""
    ways = (False, True) if compiled else (False,)
    ours = [Contender("fewstep", precision, "vectorized", way) for precision in precisions for way in ways]
    theirs = [Contender(name, p) for p in precisions if p != "bf16" for name in OTHERS]
    return ours + theirs


def build(c: Contender, w: Workload, device: torch.device, dtype: torch.dtype = torch.float32) -> Callable[[], dict]:
    """A step of a contender on a workload, everything on the device."""
    module = importlib.import_module(IMPLEMENTATIONS[c.implementation])
    begin = Start(*({name: t.to(device, dtype) for name, t in part.items()} for part in start(w)))
    batch = Batch(*(t.to(device) for t in tasks(w).to(dtype)))
    if not c.strategy:
        return module.build(w, begin, batch)
    return module.build(w, begin, batch, c.strategy, precision=c.precision, compiled=c.compiled)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(step: Callable[[], Any], device: torch.device) -> float:
    """Of one step, on the device's own clock where it has one."""
    if device.type != "cuda":
        started = time.perf_counter()
        step()
        return time.perf_counter() - started
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    step()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def checked(c: Contender, w: Workload, device: torch.device) -> float | None:
    """How far a float64 result of a small problem is from the plain loop's; None in half precision, which has none."""
    if c.precision == "bf16":
        return None
    small = w.scaled(0.1)
    found, expected = (build(each, small, device, torch.float64)() for each in (c, Contender("loop")))
    return distance(found, expected)


def cosine(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Of two results, all tensors in a row."""
    a, b = (torch.cat([each[name].flatten().double() for name in sorted(expected)]) for each in (found, expected))
    return float(torch.nn.functional.cosine_similarity(a, b, dim=0))


def measure(
    w: Workload, device: torch.device, those: list[Contender], repeats: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Everything about a workload: distances, first call, memory, seconds by round, time by kernel."""
    found: dict[str, dict[str, Any]] = {}
    left_out: dict[str, str] = {}
    steps: dict[str, Callable[[], dict]] = {}
    reference: dict[str, torch.Tensor] = {}
    for c in sorted(those, key=lambda c: c != Contender("loop")):  # first what the others are compared with
        say(f"  {c.label}")
        with products(c.precision, device):
            try:
                off = checked(c, w, device)
                if off is not None and not off < TOLERANCE:
                    raise BadInput(f"its float64 result differs from the plain loop's by {off:.1e}")
                step = build(c, w, device)
                synchronize(device)
                before = peak(device, forget=True)
                started = time.perf_counter()
                result = step()
                synchronize(device)
                first = time.perf_counter() - started
            except (ImportError, BadInput, RuntimeError) as error:
                left_out[c.label] = f"{type(error).__name__}: {error}".splitlines()[0]
                torch.cuda.empty_cache()
                continue
            used = peak(device) - before
            result = {name: t.detach() for name, t in result.items()}
            reference = reference or result
            for _ in range(WARM_UP - 1):
                step()
        steps[c.label] = step
        found[c.label] = {
            **c._asdict(), "distance": {"float64": off, "timed": finite(distance(result, reference))},
            "cosine": finite(cosine(result, reference)), "first": first, "memory": used, "seconds": [],
        }  # fmt: skip
    for number in range(repeats):
        say(f"  round {number + 1}")
        for label, step in steps.items():
            with products(found[label]["precision"], device):
                found[label]["seconds"].append(seconds(step, device))
    for label, step in steps.items():
        with products(found[label]["precision"], device):
            found[label]["kernels"] = split(step, device)
    return {"what": w.what, "shapes": w.shapes, "found": found, "left_out": left_out}


def finite(value: float) -> float | None:
    """As JSON has it."""
    return value if math.isfinite(value) else None


def peak(device: torch.device, forget: bool = False) -> int:
    """The most bytes the device has held at once; what it holds now where the peak is forgotten. 0 on a CPU."""
    if device.type != "cuda":
        return 0
    if forget:
        torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.max_memory_allocated(device)


def lines(record: dict[str, Any]) -> Iterator[str]:
    """A line for each contender: seconds, how many times ours takes that, memory, cosine, first call."""
    ours = record["found"].get(Contender("fewstep", strategy="vectorized").label)
    for label, each in record["found"].items():
        middle, spread = statistics.median(each["seconds"]), (min(each["seconds"]), max(each["seconds"]))
        ratio = statistics.median(a / b for a, b in zip(each["seconds"], ours["seconds"], strict=True)) if ours else 0
        yield (
            f"  {label:32} {middle * 1e3:9.2f} ms ({spread[0] * 1e3:.2f}–{spread[1] * 1e3:.2f})  {ratio:6.2f}×  "
            f"{each['memory'] / 1e6:8.0f} MB  cosine {each['cosine'] or 0:.4f}  first {each['first']:.1f} s"
        )
        shares = ((name, t / each["kernels"]["busy"]) for name, t in each["kernels"]["kinds"].items())
        yield "      " + ", ".join(f"{name} {share:.0%}" for name, share in shares if share >= 0.01)
    yield from (f"  left out: {label}: {reason}" for label, reason in record["left_out"].items())


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--device", default="auto")
    add("--only", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    add("--precisions", nargs="+", choices=("float32", "tf32", "bf16"), default=["float32", "tf32", "bf16"])
    add("--compile", action="store_true", help="ours compiled by torch too, with CUDA graphs (minutes a workload)")
    add("--repeats", type=int, default=7)
    add("--scale", type=float, default=1.0, help="smaller shapes, to see whether everything runs (default 1)")
    add("--threads", type=int, default=None)
    add("--json", type=Path, metavar="PATH", help="written after every workload")
    asked = parser.parse_args(arguments)
    prepare(asked.threads)
    device = named_device(asked.device)
    record: dict[str, Any] = {"environment": environment(str(device)), "repeats": asked.repeats, "scale": asked.scale,
                              "workloads": {}}  # fmt: skip
    for name in asked.only:
        w = WORKLOADS[name] if asked.scale == 1 else WORKLOADS[name].scaled(asked.scale)
        those = contenders(asked.precisions, asked.compile and not w.predict)
        record["workloads"][name] = measure(w, device, those, asked.repeats, lambda line: print(line, file=sys.stderr))
        print("\n".join([f"{name}  {w.what}", *lines(record["workloads"][name])]), flush=True)
        if asked.json:
            write_atomically(asked.json, (json.dumps(record, indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
