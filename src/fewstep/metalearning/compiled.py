"""The meta-gradient as one graph that torch compiles: `loop`'s of a task, or `vectorized`'s of all.

Nothing of Python is left between the operations, and small ones are fused; on CUDA the whole is recorded once and
replayed as a CUDA graph. Every new shape, derivative order or set of query passes is compiled at its first step, which
takes minutes; torch keeps what it compiled in a folder (TORCHINDUCTOR_CACHE_DIR), where the next process finds it.

Our own derivatives, and so the kernels on a CPU, give way to torch's: its compiler drops those of functions.
"""

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from fewstep.errors import BadInput
from fewstep.metalearning.functional import Functional
from fewstep.metalearning.inner_loop import InnerLoop, Parameters
from fewstep.metalearning.meta_gradient import Plan, Result, Whole, averaged, of_a_task, of_all_tasks, parts_of
from fewstep.methods.schedules import Order
from fewstep.tasks.batch import TaskBatch

VARIANTS = 64  # shapes, orders and sets of query passes of a learner; torch would go on uncompiled after eight


class _OwnDerivative(Exception):
    """The model has a function with a derivative of its own, which torch's compiler would drop."""


def inductor(graph: torch.fx.GraphModule, inputs: list) -> Callable[..., Any]:
    """Torch's compiler, with CUDA graphs."""
    from torch._inductor import compile_fx  # takes seconds, and only this needs it

    on_cuda = any(getattr(t, "is_cuda", False) for t in inputs)
    compiled: Any = compile_fx.compile_fx(graph, inputs, config_patches={"triton.cudagraphs": on_cuda})
    return compiled


def _backend(graph: torch.fx.GraphModule, inputs: list) -> Callable[..., Any]:
    graphs = [module.graph for module in graph.modules() if isinstance(module, torch.fx.GraphModule)]
    if any(str(node.target) == "autograd_function_apply" for each in graphs for node in each.nodes):
        raise _OwnDerivative("a torch.autograd.Function in it would lose its own derivative: pytorch issue 193279")
    return inductor(graph, inputs)


def _result(
    inner: InnerLoop, order: Order, weights: Sequence[Tensor | None], whole: Whole, learned: Parameters,
    together: bool, parts: tuple,
) -> Result:  # fmt: skip
    of = of_all_tasks if together else of_a_task
    return of(inner, Plan(order, weights), whole)(learned, *parts)


# The compiler holds on to the twin that it has seen, so a compiled function has a `Functional` of its own.
_made: WeakKeyDictionary[Functional, tuple[Functional, Callable[..., Result]]] = WeakKeyDictionary()


def _made_for(forward: Functional) -> tuple[Functional, Callable[..., Result]]:
    if forward not in _made:
        settings: Any = {"fullgraph": True, "dynamic": False, "recompile_limit": VARIANTS, "isolate_recompiles": True}
        _made[forward] = forward.apart(), torch.compile(_result, backend=_backend, **settings)
    own, function = _made[forward]
    own.follow(forward)
    return own, function


def compiled(
    inner: InnerLoop, plan: Plan, learned: Parameters, whole: Whole, batch: TaskBatch, together: bool
) -> Result:
    """Task by task, or all `together`, in compiled code.

    Raises:
        BadInput: a model that the compiler cannot take, that has attention, or that draws random numbers.
    """
    device = batch.support_y.device
    # Code is compiled for the strides too, and those of one channel come in several forms.
    learned = {name: t.detach().clone(memory_format=torch.contiguous_format) for name, t in learned.items()}
    forward, function = _made_for(inner.forward)
    inner = inner._replace(forward=forward)
    if not forward.ready:  # what is done once shall not be in the graph
        forward(whole(learned).model, tree_map(lambda t: t[0], batch.support_x))
    if not forward.shareable:
        raise BadInput("compiled takes no model that has attention or draws random numbers, as dropout does")
    weights = [None if w is None else torch.tensor(w, dtype=torch.float64, device=device) for w in plan.step_weights]

    def result(parts: tuple) -> Result:
        if device.type != "cuda":
            return function(inner, plan.order, weights, whole, learned, together, parts)
        torch.compiler.cudagraph_mark_step_begin()
        found = function(inner, plan.order, weights, whole, learned, together, parts)
        return tree_map(torch.clone, found)  # the next replay writes where this one did

    try:
        if together:
            return result(parts_of(batch))
        return averaged(result(tree_map(lambda t, i=i: t[i], parts_of(batch))) for i in range(len(batch)))
    except RuntimeError as error:
        if not isinstance(error, torch._dynamo.exc.TorchDynamoException):
            raise
        reason = str(getattr(error, "inner_exception", error)).strip().splitlines()[0]
        raise BadInput(f"torch cannot compile this model with this method ({reason}); train it uncompiled") from error
