"""Tasks side by side: a thread for each, instead of every thread inside every operation.

Most few-shot tasks are too small to share out one operation well; whole tasks share out evenly, and what is not
computation (Python, waiting for memory) is done by several threads too.
"""

import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from torch.overrides import _get_current_function_mode
from torch.utils._python_dispatch import _get_current_dispatch_mode

T = TypeVar("T")


# Values a task from which its operations are large enough to share out. Two at once are then a tenth faster than one
# after the other, for twice the memory.
LARGE = 2**19


def side_by_side(task: Callable[[int], T], count: int, take: Callable[[T], object], threads: int) -> None:
    """take(task(0)), …, take(task(count − 1)), in this order, with so many tasks under way at a time.

    Results of tasks side by side are those of torch with one thread, bit for bit; a single thread is the caller's, with
    all that torch has inside its operations. The caller only waits, and no setting of its changes.

    Arguments:
        task: from a number to a result; what it calls must be a function of its arguments.
        take: called by one thread at a time.
        threads: see `at_once`.

    Example:
        >>> found = []
        >>> side_by_side(lambda n: n * n, 4, found.append, threads=2)
        >>> found
        [0, 1, 4, 9]
    """
    if threads < 2:
        for index in range(count):
            take(task(index))
        return
    work = _InOrder(task, take, torch.is_grad_enabled())
    futures: list[Future] = [_pool(torch.get_num_threads()).submit(work, index) for index in range(count)]
    try:
        for future in futures:
            future.result()
    finally:
        if not futures[-1].done() or futures[-1].exception():
            work.stop()
            for future in futures:
                future.cancel() or future.exception()  # nothing of this call goes on after it


def at_once(count: int, device: torch.device, values: int = 0) -> int:
    """How many of `count` tasks are under way at once.

    One where a task is large, where the device is no CPU, and under a mode of the calling thread, which would not see
    the others.

    Arguments:
        values: numbers that a task is given, if it holds a graph for them.
    """
    moded = _get_current_dispatch_mode() is not None or _get_current_function_mode() is not None
    return 1 if device.type != "cpu" or moded or values >= LARGE else min(torch.get_num_threads(), count)


@dataclass
class _InOrder(Generic[T]):
    """Does a task, and gives its result away when all before it have been."""

    task: Callable[[int], T]
    take: Callable[[T], object]
    with_gradients: bool
    next: int = 0
    stopped: bool = False
    turn: threading.Condition = field(default_factory=threading.Condition)

    def __call__(self, index: int) -> None:
        if self.stopped:
            return
        try:
            with torch.set_grad_enabled(self.with_gradients):
                result = self.task(index)
                with self.turn:  # those before are under way: the pool begins tasks in order
                    self.turn.wait_for(lambda: self.next == index or self.stopped)
                    if not self.stopped:
                        self.take(result)
                        self.next += 1
                        self.turn.notify_all()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        with self.turn:
            self.stopped = True
            self.turn.notify_all()


_making = threading.Lock()


def _pool(threads: int) -> ThreadPoolExecutor:
    with _making:
        return _made(threads)


@functools.lru_cache(maxsize=4)
def _made(threads: int) -> ThreadPoolExecutor:
    pool = ThreadPoolExecutor(threads, "fewstep")
    ready = threading.Barrier(threads + 1)

    def prepare() -> None:
        torch.get_num_threads()  # lets torch set up the thread, which would undo what is set before
        torch.set_num_threads(1)
        ready.wait()

    for _ in range(threads):
        pool.submit(prepare)
    ready.wait()
    torch.set_num_threads(threads)  # what one thread sets is the start of all that begin later
    return pool


def _in_child() -> None:
    """A forked process has no threads: neither ours, nor those of OpenMP, for which torch would wait for ever."""
    _made.cache_clear()
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
