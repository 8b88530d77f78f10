"""`Learner`: a model and a method, with everything the outer loop learns."""

from dataclasses import replace
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils._pytree import tree_map

from fewstep.errors import BadInput, unknown
from fewstep.metalearning.answers import Answers
from fewstep.metalearning.execution import Execution
from fewstep.metalearning.facts import facts, real
from fewstep.metalearning.functional import lock_of
from fewstep.metalearning.inner_loop import ClosedForm, InnerLoop, Loss, Meta, MomentsByNorm, Parameters, Task
from fewstep.metalearning.learned import Learned, MetaGradient
from fewstep.metalearning.meta_gradient import Fixed, Plan, Work, threads
from fewstep.metalearning.modes import own_modes, usable
from fewstep.metalearning.predictor import Predictor
from fewstep.metalearning.proof import proven
from fewstep.metalearning.randomness import Keys, keys_of
from fewstep.methods import Method
from fewstep.methods.parts import Statistics as StatisticsPolicy
from fewstep.models.norm import Moments
from fewstep.tasks.batch import TaskBatch


class _Executed:
    """A choice of how a learner is executed, as an attribute of it."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, learner: "Learner", owner: type | None = None) -> Any:
        return self if learner is None else getattr(learner.execution, self.name)

    def __set__(self, learner: "Learner", value: Any) -> None:
        learner.execution = replace(learner.execution, **{self.name: value})


class Learner(Learned):
    """A model, a method and a loss: the meta-gradient of a meta-batch, and adaptation to one task.

        ∇_meta (1/B) Σ_b Σ_i w_i L(query_b; θ_{i+1}^b),    θ_{i+1} = rule(θ_i, ∇L(support_b; θ_i))

    Which layers are in training mode is the model's affair: `learner.eval()` changes none of them, adapting and
    evaluating take all layers in evaluation mode by themselves, and a batch norm that the user has put into evaluation
    mode keeps its own running statistics throughout.

    Arguments:
        model: any `nn.Module`; its parameters are shared, so training the learner trains the model (but for norm
            weights that the method learns for each step).
        method: a `Method`, see `fewstep.preset`.
        loss: (output, target) → scalar mean, such as `F.cross_entropy` or `F.mse_loss`.
        strategy: `loop` (task by task), `vectorized` (all tasks at once), `recompute` (task by task, with memory flat
            in the inner steps) or `auto` (the faster of the first two, by measured size). Results are equal.
        micro_batch: tasks of a meta-batch taken at a time, to bound the memory of `vectorized`; all where None.
        precision: of convolutions and matrix products: `float32`, `tf32` (CUDA rounds their operands), or `bf16`: in
            bfloat16; norms, losses, updates and gradients stay as they are.
        compiled: have torch compile the meta-gradient, under `loop` a task's, under `vectorized` that of all. It takes
            minutes at the first step; see `fewstep.metalearning.compiled`.

    Raises:
        BadInput: nothing to adapt, an unknown strategy or precision, an empty micro-batch, a layer that has no weights
            yet or was compiled.

    Source: Finn, Abbeel, Levine, arXiv 1703.03400.

    Example:
        >>> import fewstep, torch.nn.functional as F
        >>> learner = Learner(nn.Linear(2, 3), fewstep.preset("maml"), loss=F.cross_entropy)
        >>> x, y = torch.randn(4, 3, 2), torch.arange(3).expand(4, 3)
        >>> result = learner.meta_gradient(fewstep.TaskBatch(x, y, x, y))
        >>> result.query_logits.shape, list(result.gradients)
        (torch.Size([4, 3, 3]), ['model.weight', 'model.bias'])
    """

    strategy = _Executed()
    micro_batch = _Executed()
    precision = _Executed()
    compiled = _Executed()
    ranks = _Executed()  # the processes that share each meta-batch: this one alone, or see `fewstep.torchrun`

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        loss: Loss = cross_entropy,
        strategy: str = "auto",
        micro_batch: int | None = None,
        precision: str = "float32",
        compiled: bool = False,
    ):
        if isinstance(loss, nn.Module) and any(p.requires_grad for p in loss.parameters()):
            raise BadInput(
                "the loss has parameters, and nothing learns them: freeze them (loss.requires_grad_(False)), or make "
                "them a part of the model"
            )
        super().__init__(model, method)
        self.execution, self.loss = Execution(strategy, micro_batch, precision, compiled), loss

    # --- the model as a function -------------------------------------------------------------------------------------

    def inner_loop(
        self, x: Any, meta: Meta, statistics: str, training: bool = False, sharp: bool = False
    ) -> InnerLoop:
        """The inner loop under a statistics policy, of a model that is known on inputs like those of one task.

        Raises:
            BadInput: an unknown policy; a model that is no function; one that was changed where the learner cannot
                follow.
        """
        check_policy(statistics)
        with lock_of(self.model):  # a pass of another learner or predictor may have the model lent
            self.check_unchanged(statistics)
            setting = self._forward.setting(training, self.precision, statistics)
            if all(leaf.numel() for leaf in (x if isinstance(x, tuple) else (x,))):  # nothing can be tried on nothing
                if not self._forward.proven:
                    self._forward = proven(self._forward, meta.model, x)
                facts(self._forward, setting, meta.model, x)
            return InnerLoop(self._forward, setting, self.loss, self.method, self.adapted, statistics, sharp)

    def _keys(self, inner: InnerLoop, count: int) -> Keys:
        """Keys of the random numbers of tasks, from torch's global generator; none for a model that draws none."""
        if not inner.forward.known(inner.setting).draws:
            return ()
        return keys_of(int(torch.randint(2**62, ())), range(count))

    def steps(self, steps: int | None) -> int:
        """The inner steps asked for; the method's where None."""
        steps = self.method.steps if steps is None else steps
        if steps < 0:
            raise BadInput(f"steps is {steps}; take zero or more inner steps")
        return steps

    def _check_labels(self, inner: InnerLoop, meta: Meta, x: Any, *labels: Tensor) -> None:
        """Raise BadInput where labels do not fit the model's output for inputs like those of one task.

        What a whole number means is known of cross-entropy alone. Labels are looked at on the CPU only: elsewhere
        looking would wait for the device.
        """
        here = (y for y in labels if y.numel() and y.device.type == "cpu" and real({"": y}))
        whole = [y for y in here if not y.is_floating_point()]
        if not self._entropy or not whole:
            return
        lowest, highest = min(int(y.min()) for y in whole), max(int(y.max()) for y in whole)
        if lowest < 0:
            raise BadInput(f"a label is {lowest}; labels count from 0")
        ways = self._ways(inner, meta, x)
        if highest >= ways:
            raise BadInput(
                f"tasks have labels up to {highest}, but the model has {ways} outputs: "
                f"build the model for {highest + 1} ways, or draw tasks of {ways} ways"
            )

    @property
    def _entropy(self) -> bool:
        return self.loss is cross_entropy or isinstance(self.loss, nn.CrossEntropyLoss)

    def _labels(self, y: Tensor) -> Tensor:
        """Class numbers in the type that cross-entropy takes; targets of other losses as they are."""
        whole = not (y.is_floating_point() or y.is_complex() or y.dtype == torch.bool)
        return y.long() if self._entropy and whole else y

    @torch.no_grad()
    def _ways(self, inner: InnerLoop, meta: Meta, x: Any) -> int:
        """Outputs of the model; looked up once a shape."""
        shapes = tuple(leaf.shape[1:] for leaf in (x if isinstance(x, tuple) else (x,)))
        widths = inner.forward.widths
        if shapes not in widths:
            setting = inner.forward.setting(training=False)
            facts(inner.forward, setting, meta.model, x)
            output = inner.forward(meta.model, x, setting, keys=(0,)).output
            if not isinstance(output, Tensor) or output.dim() < 2:
                what = tuple(output.shape) if isinstance(output, Tensor) else f"a {type(output).__name__}"
                raise BadInput(
                    f"cross-entropy needs the model's output as (examples, ways), and it is {what}: return the logits, "
                    "or take a loss of your own"
                )
            widths[shapes] = output.shape[1]
        return widths[shapes]

    # --- training ----------------------------------------------------------------------------------------------------

    def meta_gradient(self, batch: TaskBatch, progress: float = 0.0, strategy: str | None = None) -> MetaGradient:
        """Meta-loss, query output and meta-gradient of a meta-batch; changes nothing.

        Arguments:
            batch: B tasks, on any device. progress: fraction of the training done, for the method's schedules.
            strategy: overrides the learner's.

        Raises:
            BadInput: labels the model has no output for; a model that is no function of its parameters, or that vmap
                cannot take under `vectorized`; a layer without a second derivative under second order; what cannot be
                compiled, where that was asked for.
        """
        execution = self.execution if strategy is None else replace(self.execution, strategy=strategy)
        with own_modes(next(self.model.parameters()), True, self.precision):
            gradients, outcome = execution.result(self.work(batch, progress))
        moments = {n: Moments(m.mean.mean(0), m.var.mean(0)) for n, m in outcome.moments.items()}
        moved = {n: (t if t.is_floating_point() else t.double()).mean(0) for n, t in outcome.moved.items()}
        return MetaGradient(outcome.loss.mean(), outcome.query_logits, gradients, outcome.loss, moments, moved)

    def work(self, batch: TaskBatch, progress: float = 0.0) -> Work:
        """The meta-gradient of a meta-batch, before it is taken."""
        method, given, batch = self.method, batch, batch.usable().to(self.device)
        first = tree_map(lambda t: t[0], batch.support_x)
        weights = method.step_weights(progress, method.steps)
        plan = Plan(method.order(progress), [weight or None for weight in weights])
        policy = "batch" if method.norm.statistics == "running" else method.norm.statistics
        learned, fixed = self.learned_and_fixed()
        meta = fixed.with_learned(learned)
        inner = self.inner_loop(first, meta, policy, training=True, sharp=True)
        self._check_labels(inner, meta, first, given.support_y, given.query_y)
        sy, qy = self._labels(batch.support_y), self._labels(batch.query_y)
        if sy is not batch.support_y or qy is not batch.query_y:
            batch = replace(batch, support_y=sy, query_y=qy)
        return Work(inner, plan, learned, fixed, batch, self._keys(inner, len(batch)))

    def chosen_strategy(self, batch: TaskBatch, strategy: str | None = None) -> str:
        """The strategy for a meta-batch: the one asked for, or under `auto` the faster one by measured size."""
        execution = self.execution if strategy is None else replace(self.execution, strategy=strategy)
        return execution.chosen(self._forward, batch)

    def threads(self, batch: TaskBatch) -> int:
        """How many tasks of a meta-batch the strategy `loop` has under way at once."""
        return threads(self._forward, batch[: self.micro_batch or len(batch)])

    # --- adaptation --------------------------------------------------------------------------------------------------

    def adapt(
        self,
        support_x: Any,
        support_y: Tensor,
        steps: int | None = None,
        statistics: str | None = None,
        sharp: bool = False,
    ) -> Predictor:
        """Adapt to one task; the learner stays as it is, bit for bit.

        Arguments:
            support_x, support_y: (S, …) and (S,) or (S, …): one task's support set, without a task axis.
            steps: inner steps; the method's where None. Later steps reuse the last row of per-step parts.
            statistics: what normalises batch norms; where None `running` or `frozen` if that is the method's policy,
                otherwise `support`, so that a prediction never depends on the other queries. `batch` is transductive.
            sharp: perturb the inner steps as in training, where the method does so; plain steps otherwise.

        Raises:
            BadInput: labels the model has no output for; an unknown statistics policy; a support set that is not
                finite, or an adaptation that diverges.
        """
        if statistics is None:
            own = self.method.norm.statistics
            statistics = own if own in ("running", "frozen") else "support"
        with own_modes(next(self.model.parameters()), False, self.precision):
            support_x, support_y, meta = usable(support_x), usable(support_y), self.frozen()
            inner = self.inner_loop(support_x, meta, statistics, sharp=sharp)
            self._check_labels(inner, meta, support_x, support_y)
            task = Task(support_x, self._labels(support_y), None, None, self._keys(inner, 1))  # type: ignore[arg-type]
            *_, last = inner.adapt(meta, task, self.steps(steps), ClosedForm())
            given = inner.query_statistics(meta, last, task)
            check_finite(support_x, inner.fast(last), given)
        return Predictor(inner.forward, inner.setting, last.parameters, given, task.keys, 2 * last.step + 1)

    def query_outputs(
        self,
        batch: TaskBatch,
        steps: int | None = None,
        statistics: str | None = None,
        start: Meta | None = None,
        every_step: bool = False,
        alone: bool = False,
    ) -> Tensor:
        """Outputs for the queries of tasks that are each adapted to their support set: (B, passes, Q, …).

        Arguments:
            steps, statistics: the method's where None.
            start: what tasks start from, see `frozen`; the learner as it is where None.
            every_step: a pass after 0, 1, … steps instead of one after the last.
            alone: one pass more, with queries normalised by the support set.
        """
        statistics = statistics or self.method.norm.statistics
        with own_modes(next(self.model.parameters()), False, self.precision):
            given, batch, meta = batch, batch.usable().to(self.device), start or self.frozen()
            meta = usable(meta) if next(iter(meta.model.values())).is_inference() else meta
            first = tree_map(lambda t: t[0], batch.support_x)
            inner = self.inner_loop(first, meta, statistics)
            self._check_labels(inner, meta, first, given.support_y, given.query_y)
            fixed, keys = Fixed(meta.model, meta.running), self._keys(inner, len(batch))
            batch = replace(batch, support_y=self._labels(batch.support_y))
            work = Work(inner, Plan("first", ()), {}, fixed, batch, keys)
            return self.execution.by_strategy(work, Answers(meta, self.steps(steps), every_step, alone))


def check_policy(statistics: str) -> None:
    """Raise BadInput for a statistics policy that there is not."""
    if statistics not in get_args(StatisticsPolicy):
        raise unknown("statistics", statistics, get_args(StatisticsPolicy))


def check_finite(support_x: Any, fast: Parameters, given: MomentsByNorm | None) -> None:
    """Raise BadInput where an adaptation led to no numbers, for one reason or the other."""
    moments = [t for m in (given or {}).values() for t in m]
    weights = [t.sum() for t in (*fast.values(), *moments)]
    if not weights or torch.stack(weights).isfinite().all():
        return
    if not all(t.isfinite().all() for t in (support_x if isinstance(support_x, tuple) else (support_x,))):
        raise BadInput("the support set holds values that are not finite (NaN or infinity); clean the data")
    raise BadInput(
        "adapting diverged: weights are not finite. Use a lower inner rate, fewer inner steps, or another start"
    )
