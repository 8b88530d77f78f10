"""The most memory that work takes while it runs."""

import contextlib
import ctypes
import itertools
import sys
from collections.abc import Callable
from pathlib import Path

import torch

Measure = Callable[[Callable[[], object]], int]


def measure_of(device: torch.device) -> Measure:
    """A function that runs some work and gives the most bytes held since it was made, beyond those held then.

    On a CPU what the process holds, where Linux tells: freed memory goes back to the system first, so that using it
    again counts, and the system's record of the process's peak begins anew. Elsewhere what torch's allocator gives out.

    Example:
        >>> measure_of(torch.device("cpu"))(lambda: torch.ones(10**7)) > 3e7
        True
    """
    if device.type == "cuda":
        return _on_cuda(device)
    return _resident() if device.type == "cpu" and _forget_peak() else _given_out


def give_back() -> None:
    """Return freed memory to the system, where the C library knows how."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def _on_cuda(device: torch.device) -> Measure:
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)

    def measure(work: Callable[[], object]) -> int:
        work()
        return torch.cuda.max_memory_allocated(device) - before

    return measure


def _resident() -> Measure:
    give_back()
    _forget_peak()
    before = _status("VmRSS") or 0

    def measure(work: Callable[[], object]) -> int:
        work()
        return max((_status("VmHWM") or 0) - before, 0)

    return measure


def _given_out(work: Callable[[], object]) -> int:
    with torch.autograd.profiler.profile(profile_memory=True) as profiler:
        work()
    events = [e for e in profiler.kineto_results.events() if e.name() == "[memory]"]
    ordered = sorted(events, key=lambda e: e.start_ns())
    return max(itertools.accumulate((e.nbytes() for e in ordered), initial=0))


def _forget_peak() -> bool:
    """Let Linux's record of the process's peak begin anew; False where there is none."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return _status("VmHWM") is not None


def _status(entry: str) -> int | None:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{entry}:")), None)
