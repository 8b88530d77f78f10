"""Tasks side by side: a thread for each, instead of every thread inside every operation.

Most few-shot tasks are too small to share out one operation well; whole tasks share out evenly, and what is not
computation (Python, waiting for memory) is done by several threads too.
"""

import functools
import os
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch.overrides import _get_current_function_mode
from torch.utils._python_dispatch import _get_current_dispatch_mode

from fewstep.metalearning.functional import Functional

T = TypeVar("T")


# Values a task from which its operations are large enough to share out. Two at once are then a tenth faster than one
# after the other, for twice the memory.
LARGE = 2**19


def side_by_side(
    task: Callable[[int], T], count: int, forward: Functional, device: torch.device, values: int = 0
) -> Generator[T, None, None]:
    """task(0) … task(count − 1) in order, as many at a time as torch has threads.

    Results of tasks side by side are those of torch with one thread, bit for bit. A single task goes with all threads
    inside its operations; so does every large one, every one on another device than the CPU, of a model that draws
    random numbers or has attention (both rest on settings of the whole process), or under a mode of the calling thread,
    which would not see the others. Until the last result is taken, or the generator closed, the caller has one thread.

    Arguments:
        task: what to do; it calls `forward`, and nothing else that threads may not share.
        values: numbers that a task is given, if it holds a graph for them.
    """
    start = 0
    if forward.shareable is None and count:  # found out by its first call
        yield task(0)
        start = 1
    if at_once(count - start, forward, device, values) < 2:
        yield from map(task, range(start, count))
        return
    with_gradients = torch.is_grad_enabled()

    def work(index: int) -> T:
        with torch.set_grad_enabled(with_gradients):
            return task(index)

    threads = torch.get_num_threads()
    results = _pool(threads).map(work, range(start, count))
    torch.set_num_threads(1)  # the caller's other threads would spin on the cores of the tasks
    try:
        yield from results
    finally:
        torch.set_num_threads(threads)


def at_once(count: int, forward: Functional, device: torch.device, values: int = 0) -> int:
    """How many of `count` tasks are under way at once, see `side_by_side`."""
    watched = _get_current_dispatch_mode() is not None or _get_current_function_mode() is not None
    alone = device.type != "cpu" or watched or values >= LARGE or not forward.shareable
    return 1 if alone else min(torch.get_num_threads(), count)


@functools.lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    pool = ThreadPoolExecutor(threads, "fewstep")
    ready = threading.Barrier(threads + 1)

    def prepare() -> None:
        torch.get_num_threads()  # lets torch set up the thread, which would undo what is set before
        torch.set_num_threads(1)
        ready.wait()

    for _ in range(threads):
        pool.submit(prepare)
    ready.wait()
    torch.set_num_threads(threads)  # a thread's own setting is also that of all which start later
    return pool


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a forked process has no threads
