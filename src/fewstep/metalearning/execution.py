"""How a meta-gradient is executed: strategy, micro-batches, precision, compiler, processes. Results are equal."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar, get_args

import torch
from torch.utils._pytree import tree_leaves, tree_map

from fewstep.errors import BadInput, unknown
from fewstep.metalearning.compiled import CannotCompile, compiled
from fewstep.metalearning.facts import real
from fewstep.metalearning.functional import Functional
from fewstep.metalearning.meta_gradient import Parameters, Result, Work, loop, vectorized
from fewstep.metalearning.modes import Precision
from fewstep.metalearning.ranks import Ranks
from fewstep.metalearning.recompute import recompute
from fewstep.metalearning.second_derivative import no_second_derivative
from fewstep.tasks.batch import TaskBatch

T = TypeVar("T")
Strategy = Callable[[Work], Result]

STRATEGIES: dict[str, Strategy] = {"loop": loop, "vectorized": vectorized, "recompute": recompute}
COMPILED: dict[str, Strategy] = {
    "loop": partial(compiled, together=False),
    "vectorized": partial(compiled, together=True),
}

# Support values a task on a CPU below which all tasks at once are faster: tiny tasks are bound by call overhead. Larger
# ones are as fast one by one, and leave the cache and twenty times the memory if all are held at once.
VECTORIZED_BELOW = 1024


@dataclass(frozen=True)
class Execution:
    """Choices that change seconds and memory, and no result beyond rounding.

    Arguments:
        strategy: `loop`, `vectorized`, `recompute`, or `auto`: the faster of the first two, by measured size.
        micro_batch: tasks of a meta-batch taken at a time; all where None.
        precision: `float32`, `tf32` or `bf16`, of convolutions and matrix products.
        compiled: have torch compile the meta-gradient.
        ranks: the processes that share each meta-batch.

    Raises:
        BadInput: an unknown strategy or precision, an empty micro-batch.

    Example:
        >>> Execution(strategy="loop").micro_batch is None
        True
    """

    strategy: str = "auto"
    micro_batch: int | None = None
    precision: str = "float32"
    compiled: bool = False
    ranks: Ranks = field(default_factory=Ranks)

    def __post_init__(self) -> None:
        if self.strategy not in ("auto", *STRATEGIES):
            raise unknown("strategy", self.strategy, ["auto", *STRATEGIES])
        if self.precision not in get_args(Precision):
            raise unknown("precision", self.precision, get_args(Precision))
        if self.micro_batch is not None and self.micro_batch < 1:
            raise BadInput(f"micro_batch is {self.micro_batch}; take at least one task at a time")

    def result(self, work: Work) -> Result:
        """Mean gradient and outcomes of a meta-batch, and with an outer sharpness those at the point it leads to.

        Raises:
            BadInput: a model that vmap cannot take under `vectorized`; a layer or loss without a second derivative
                under second order; what cannot be compiled, where that was asked for.
        """
        if self.compiled and self.strategy not in ("auto", *COMPILED):
            raise BadInput(f"strategy {self.strategy} cannot be compiled; take {' or '.join(COMPILED)}")
        sharpness = work.inner.method.sharpness
        try:
            result = self.by_strategy(work, self._pooled)
            if not sharpness.outer:
                return result
            weights = {n: p.detach() for n, p in work.learned.items() if not n.startswith("rates.")}
            ascent = sharpness.perturbation(weights, {n: result[0][n] for n in weights}, sharpness.outer)
            point = work.learned | {n: weight + ascent[n] for n, weight in weights.items()}
            # The same keys: dropout and the like drop the same in both passes.
            return self.by_strategy(work._replace(learned=point), self._pooled)
        except CannotCompile as error:
            raise BadInput(str(error)) from error

    def chosen(self, forward: Functional, batch: TaskBatch) -> str:
        """The strategy asked for, or under `auto` the faster one by measured size."""
        if self.strategy != "auto":
            return self.strategy
        if forward.one_by_one or forward.itself:
            return "loop"
        if batch.support_y.device.type != "cpu":
            return "vectorized"
        leaves = batch.support_x if isinstance(batch.support_x, tuple) else (batch.support_x,)
        return "vectorized" if sum(leaf[0].numel() for leaf in leaves) < VECTORIZED_BELOW else "loop"

    def by_strategy(self, work: Work, run: Callable[[Work, str], T]) -> T:
        """`run` with the strategy for a meta-batch; `auto` goes on by `loop` where vmap cannot take the model.

        Raises:
            BadInput: a model that vmap cannot take, where `vectorized` was asked for; no second derivative.
            CannotCompile: from `run`.
        """
        forward = work.inner.forward
        chosen = self.chosen(forward, work.batch)
        if chosen == "vectorized" and forward.itself:
            raise BadInput("this model cannot run vectorized (a copy of it is not the model); use strategy loop")
        if chosen == "vectorized" and forward.known(work.inner.setting).uncounted:
            if self.strategy != "auto":
                raise BadInput("this model cannot run vectorized (a pass writes to .data); use strategy loop")
            chosen = "loop"
        try:
            if chosen == "vectorized" and not forward.mapped and not self.compiled:
                self._check_vmap(work, run)
            return run(work, chosen)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, NotImplementedError) as error:
            if chosen != "vectorized" or self.strategy != "auto":
                self._explain(work, chosen, error)
                raise
        try:
            result = run(work, "loop")
        except (RuntimeError, NotImplementedError) as error:
            self._explain(work, "loop", error)
            raise
        forward.one_by_one = True  # only now: an error of another kind would have come again
        return result

    def _explain(self, work: Work, chosen: str, error: Exception) -> None:
        """Raise BadInput where an error comes from what torch cannot do with the model."""
        if isinstance(error, torch.OutOfMemoryError):
            return
        if why := no_second_derivative(work):
            raise BadInput(why) from error
        if chosen == "vectorized" and not isinstance(error, CannotCompile):
            reason = str(error).splitlines()[0]
            raise BadInput(f"this model cannot run vectorized ({reason}); use strategy loop") from error

    def _check_vmap(self, work: Work, run: Callable[[Work, str], Any]) -> None:
        """Raise RuntimeError where vmap gives other numbers than a loop, on one inner step of two tasks in float64."""
        if not real(work.fixed.model | work.learned):
            return
        few, take = work.in_short(2), _plainly if work.learned else run
        try:
            mapped, looped = (tree_leaves(take(few.double(), strategy)) for strategy in ("vectorized", "loop"))
        except RuntimeError:  # something in the model is made for its own type alone
            mapped, looped = (tree_leaves(take(few, strategy)) for strategy in ("vectorized", "loop"))
        close = 1e-6 if looped[0].dtype == torch.float64 else 0.1
        top = close * max(float(t.abs().max()) for t in looped if t.numel())
        for a, b in zip(mapped, looped, strict=True):
            if not torch.allclose(a, b, close, top, equal_nan=True):
                raise RuntimeError("vmap gives other numbers than a loop")
        work.inner.forward.mapped = True

    def _pooled(self, work: Work, strategy: str) -> Result:
        return self.ranks.pooled(partial(self._in_pieces, (COMPILED if self.compiled else STRATEGIES)[strategy]), work)

    def _in_pieces(self, strategy: Strategy, work: Work) -> Result:
        """The result of a strategy on the meta-batch, taken micro-batch by micro-batch."""
        size, count = self.micro_batch or len(work.batch), len(work.batch)
        if size >= count:
            return strategy(work)
        gradients: Parameters = {}
        outcomes = []
        for start in range(0, count, size):
            piece = work.part(range(start, min(start + size, count)))
            means, outcome = strategy(piece)
            share = len(piece.batch) / count
            gradients = {n: g * share + gradients[n] if gradients else g * share for n, g in means.items()}
            outcomes.append(outcome)
        return gradients, tree_map(lambda *each: torch.cat(each), *outcomes)


def _plainly(work: Work, strategy: str) -> Result:
    return STRATEGIES[strategy](work)
