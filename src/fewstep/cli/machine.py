"""What a command may set for its own process; a library must not."""

import ctypes
import re
import sys

import torch

from fewstep.errors import BadInput, unknown


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


def device(name: str) -> torch.device:
    """The device of a name: cpu, cuda, cuda:N, or auto for cuda where there is one.

    Raises:
        BadInput: another name, a device that this machine does not have.

    Example:
        >>> device("cpu")
        device(type='cpu')
    """
    count = torch.cuda.device_count()
    if name == "auto":
        return torch.device("cuda" if count else "cpu")
    if name == "cpu":
        return torch.device(name)
    if not re.fullmatch(r"cuda(:\d+)?", name):
        raise unknown("device", name, ["auto", "cpu", "cuda", "cuda:0"])
    if not count:
        built = "this torch is built without CUDA" if torch.version.cuda is None else "torch finds no CUDA device"
        raise BadInput(f"device is {name}, but {built}; take cpu or auto, `fewstep doctor` lists the devices")
    if int(name.partition(":")[2] or 0) >= count:
        raise BadInput(f"device is {name}, but the last of this machine is cuda:{count - 1}")
    return torch.device(name)
