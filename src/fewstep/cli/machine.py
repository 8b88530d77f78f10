"""What a command may set for its own process; a library must not."""

import ctypes
import sys

import torch

from fewstep.errors import BadInput


def prepare(threads: int | None = None) -> None:
    """Set threads, and keep freed memory in the process.

    glibc hands every large temporary back to the system and faults it in anew at the next step: half of the time of
    84×84 workloads.
    """
    if threads is not None:
        if threads < 1:
            raise BadInput(f"threads is {threads}; it must be at least 1")
        torch.set_num_threads(threads)
    if sys.platform == "linux":
        try:
            libc = ctypes.CDLL("libc.so.6")
        except OSError:
            return  # another C library: nothing to tune
        m_trim_threshold, m_mmap_threshold, m_arena_max = -1, -3, -8
        libc.mallopt(m_arena_max, 1)  # threads that take tasks side by side reuse one another's memory
        libc.mallopt(m_mmap_threshold, 1 << 30)
        libc.mallopt(m_trim_threshold, 1 << 30)
