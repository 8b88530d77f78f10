"""The meta-gradient as one graph that torch compiles: `loop`'s of a task, or `vectorized`'s of all.

Nothing of Python is left between the operations, and small ones are fused; on CUDA the whole is recorded once and
replayed as a CUDA graph. Every new shape, derivative order, set of query passes or number of threads is compiled at its
first step, which takes minutes; torch keeps what it compiled in a folder (TORCHINDUCTOR_CACHE_DIR), where the next
process finds it.

Our own derivatives, and so the kernels on a CPU, give way to torch's: its compiler drops those of functions.
"""

import copy
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from fewstep.metalearning.functional import NOTHING, Functional
from fewstep.metalearning.meta_gradient import Mean, Parameters, Plan, Result, Transformed, Work
from fewstep.methods.schedules import Order


class CannotCompile(RuntimeError):
    """What torch's compiler cannot take, and why."""


def inductor(graph: torch.fx.GraphModule, inputs: list) -> Any:
    """Torch's compiler, with CUDA graphs."""
    from torch._inductor.compile_fx import compile_fx  # takes seconds, and only this needs it

    on_cuda = any(getattr(t, "is_cuda", False) for t in inputs)
    return compile_fx(graph, inputs, config_patches={"triton.cudagraphs": on_cuda})


def _backend(graph: torch.fx.GraphModule, inputs: list) -> Any:
    graphs = [module.graph for module in graph.modules() if isinstance(module, torch.fx.GraphModule)]
    if any(str(node.target) == "autograd_function_apply" for each in graphs for node in each.nodes):
        raise CannotCompile("a torch.autograd.Function in it would lose its own derivative: pytorch issue 193279")
    return inductor(graph, inputs)


def _result(
    of: Transformed, order: Order, weights: Sequence[Tensor | None], learned: Parameters, together: bool, parts: tuple
) -> Result:
    of = replace(of, plan=Plan(order, weights))
    return (of.of_all if together else of)(learned, {}, *parts)


# The compiler holds on to the twin that it has seen, so a compiled function has a `Functional` of its own; and it keeps
# what it made with the code that it read, so every learner has its copy of that, which goes when the learner goes.
_made: WeakKeyDictionary[Functional, tuple[Functional, Callable[..., Result]]] = WeakKeyDictionary()


def _made_for(forward: Functional) -> tuple[Functional, Callable[..., Result]]:
    if forward not in _made:
        own = FunctionType(_result.__code__.replace(), _result.__globals__)
        _made[forward] = copy.copy(forward), torch.compile(own, fullgraph=True, dynamic=False, backend=_backend)
    return _made[forward]


def compiled(work: Work, together: bool) -> Result:
    """Task by task, or all `together`, in compiled code.

    Raises:
        CannotCompile: a model that the compiler cannot take, that has attention, that draws random numbers or moves its
            buffers; more variants of one learner than torch keeps, which are eight.
    """
    batch, setting = work.batch, work.inner.setting
    if work.inner.forward.known(setting) != NOTHING or work.inner.forward.itself:
        raise CannotCompile(
            "a model that has attention or draws random numbers, as dropout does, or whose passes move tensors or "
            "attributes, cannot be compiled"
        )
    # Code is compiled for the strides too, and those of one channel come in several forms.
    learned = {n: t.detach().clone(memory_format=torch.contiguous_format) for n, t in work.learned.items()}
    forward, function = _made_for(work.inner.forward)
    with forward.body() as body:
        body.set_modes(setting.training)  # what is done once shall not be in the graph
    of = Transformed(work.inner._replace(forward=forward), work.plan, work.fixed, ())
    like = next(iter(learned.values()))
    weights = [None if w is None else like.new_tensor(w) for w in work.plan.step_weights]

    def result(parts: tuple) -> Result:
        if batch.support_y.device.type != "cuda":
            return function(of, work.plan.order, weights, learned, together, parts)
        torch.compiler.cudagraph_mark_step_begin()
        found = function(of, work.plan.order, weights, learned, together, parts)
        return tree_map(torch.clone, found)  # the next replay writes where this one did

    try:
        if together:
            return result((batch.support_x, batch.support_y, batch.query_x, batch.query_y))
        mean = Mean()
        for index in range(len(batch)):
            mean.add(result(work.task(index)[:4]))
        return mean.result()
    except Exception as error:
        if isinstance(error, torch._dynamo.exc.FailOnRecompileLimitHit):
            raise CannotCompile(
                f"the learner is compiled for {torch._dynamo.config.recompile_limit} sets of shapes, orders and query "
                "passes by now, and torch keeps no more: take tasks of equal shapes, or train it uncompiled"
            ) from error
        if not isinstance(error, torch._dynamo.exc.TorchDynamoException):
            raise
        cause = getattr(error, "inner_exception", error)
        reason = textwrap.shorten(str(cause), 300) or type(cause).__name__
        raise CannotCompile(
            f"torch cannot compile this model with this method ({reason}); train it uncompiled"
        ) from error
