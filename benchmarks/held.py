"""The memory of this process, as the system accounts for it. Imports no library: others' processes are measured too."""

import contextlib
import ctypes
import resource
import sys
from collections.abc import Callable
from pathlib import Path


def entry(name: str, path: str = "/proc/self/status") -> int | None:
    """An entry of one of Linux's accounts, in bytes; None on other systems."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)


def give_back() -> None:
    """Return freed memory to the system, where the C library knows how."""
    if sys.platform == "linux":
        getattr(ctypes.CDLL(None), "malloc_trim", int)(0)


def held(work: Callable[[], object]) -> dict[str, int]:
    """Bytes that the process held before some work, the most it held during it, and the difference.

    Freed memory goes back to the system first, and what loading a library took for a moment is forgotten. Where the
    system is not Linux, the largest size since the process began stands for both.
    """
    give_back()
    before = entry("VmRSS") or largest()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    work()
    peak = entry("VmHWM") or largest()
    return {"before": before, "peak": peak, "used": peak - before}


def largest() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
