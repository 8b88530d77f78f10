"""What a meta-gradient needs of the machine's memory, measured on one or two tasks before the training begins.

What counts is what the process holds, and that is up to several times its tensors: the C library's heap is full of
holes between them. So nothing is modelled: two tasks are taken as the training will take them, and the peak is read.
"""

import copy
import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from fewstep.metalearning.learner import Learner
from fewstep.metalearning.peak import give_back, measure_of
from fewstep.metalearning.ranks import Ranks
from fewstep.methods import Method
from fewstep.tasks.batch import TaskBatch

MEASURED = 2  # tasks
SETTLING = 0.5  # seconds in which small tasks are taken again and again: a heap grows a while before it stays
LARGER = 1.1  # measured: what the heap of a whole meta-batch is to that of two tasks
MOMENTS = 200  # of the training, at which schedules are looked at


@dataclass(frozen=True)
class Need:
    """The memory that training takes, in bytes beyond what the process held before the learner was built.

    Arguments:
        strategy: the one measured: `loop`, `vectorized` or `recompute`.
        fixed: learner, gradient, the optimiser's moments, a meta-batch.
        each: a task's graph. at_once: tasks whose graphs are held at once.

    Example:
        >>> need = Need("vectorized", fixed=10, each=100, at_once=8)
        >>> need.bytes, need.fitting(450), need.fitting(50)
        (810, 4, 0)
    """

    strategy: str
    fixed: int
    each: int
    at_once: int

    @property
    def bytes(self) -> int:
        return self.fixed + self.each * self.at_once

    def fitting(self, available: int) -> int:
        """How many of these tasks can be held at once in `available` bytes."""
        return min(max(available - self.fixed, 0) // max(self.each, 1), self.at_once)


def memory_needed(
    learner: Learner, batch: TaskBatch, strategy: str | None = None, available: int | None = None
) -> Need:
    """What training takes on meta-batches like this one; changes nothing, and lasts as long as two or three tasks.

        bytes = fixed + each · (tasks at once)

    Held at once are under `vectorized` all tasks or a micro-batch, under `loop` one a thread where they
    are not large, otherwise one.

    Measured at the moment of the training that takes most: second order, most query passes.

    Arguments:
        learner: what to train. batch: a meta-batch. strategy: overrides the learner's.
        available: bytes; a graph that may not fit into them is extrapolated from fewer inner steps. No limit if None.

    Raises:
        BadInput: what `Learner.meta_gradient` cannot take.

    Example:
        >>> import fewstep, torch
        >>> learner = fewstep.Learner(torch.nn.Linear(2, 3), fewstep.preset("maml"))
        >>> x, y = torch.randn(4, 3, 2), torch.arange(3).expand(4, 3)
        >>> memory_needed(learner, fewstep.TaskBatch(x, y, x, y), "loop").at_once
        1
    """
    tried = copy.copy(learner)  # of the same tensors
    tried.ranks = Ranks()  # processes that train as one need not measure as one
    tried.strategy, tried.compiled = strategy or learner.strategy, False  # compiling would take minutes
    try:
        with torch.random.fork_rng(devices=[]):
            peak = _peak(tried, batch, available)
    finally:
        give_back()
    chosen = tried.chosen_strategy(batch)  # by now it is known whether vmap can take the model
    at_once = min(learner.micro_batch or len(batch), len(batch))
    if chosen != "vectorized":
        at_once = tried.threads(batch) if chosen == "loop" and not learner.compiled else 1
    if batch.support_y.device.type == "cpu" and len(batch) > MEASURED:
        peak = int(peak * LARGER)
    fixed = _size(learner.state_dict().values()) + 3 * _size(learner.meta_parameters().values())
    return Need(chosen, fixed + _size(tree_leaves(list(vars(batch).values()))), peak // min(at_once, MEASURED), at_once)


def _peak(tried: Learner, batch: TaskBatch, available: int | None) -> int:
    """The peak of a task, or of two where they are held at once, at all inner steps."""
    method, steps, few = tried.method, tried.method.steps, batch[:MEASURED]
    progress = heaviest(method)

    def take(count: int) -> None:
        tried.method = method.replace(steps=count)
        tried.meta_gradient(few, progress)

    def peak(count: int) -> int:
        return measure(lambda: take(count))

    take(min(steps, 1))  # what libraries load when first used is no task's
    measure = measure_of(tried.device)
    if available is not None and steps > 1 and tried.chosen_strategy(batch) != "recompute":
        none, one = peak(0), peak(1)
        count, found = 1, one
        while found * steps > available * count:  # a graph grows at most in proportion to its steps
            if found * 2 > available:
                each = (found - one) // (count - 1) if count > 1 else found - none
                return found + each * (steps - count)
            count = min(2 * count, steps)
            found = peak(count)
    started = time.perf_counter()
    for _ in range(len(batch)):
        found = peak(steps)
        if time.perf_counter() - started > SETTLING:
            break
    return found


def heaviest(method: Method) -> float:
    """The progress at which a method's meta-gradient takes most: second order, then most query passes.

    Example:
        >>> import fewstep
        >>> heaviest(fewstep.preset("maml")), heaviest(fewstep.preset("maml++")) > 0.3
        (0.0, True)
    """

    def weight(progress: float) -> tuple[bool, int]:
        passes = sum(weight > 0 for weight in method.step_weights(progress, method.steps))
        return method.order(progress) == "second", passes

    return max((i / MOMENTS for i in range(MOMENTS + 1)), key=weight)


def _size(tensors: Iterable[object]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))
