"""Strategies of the meta-gradient, by name; their results are equal."""

from collections.abc import Callable
from functools import partial

from fewstep.metalearning.compiled import compiled
from fewstep.metalearning.inner_loop import InnerLoop, Parameters
from fewstep.metalearning.meta_gradient import Plan, Result, Whole, loop, vectorized
from fewstep.metalearning.recompute import recompute
from fewstep.tasks.batch import TaskBatch

Strategy = Callable[[InnerLoop, Plan, Parameters, Whole, TaskBatch], Result]

STRATEGIES: dict[str, Strategy] = {"loop": loop, "vectorized": vectorized, "recompute": recompute}
COMPILED: dict[str, Strategy] = {
    "loop": partial(compiled, together=False),
    "vectorized": partial(compiled, together=True),
}
