"""`Learner`: a model and a method, with everything the outer loop learns."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, get_args

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from fewstep.errors import BadInput, unknown
from fewstep.metalearning.compiled import CannotCompile
from fewstep.metalearning.functional import Functional, Moments, Statistics, norm_parameters
from fewstep.metalearning.inner_loop import InnerLoop, Loss, Meta, Parameters
from fewstep.metalearning.meta_gradient import Plan, Result
from fewstep.metalearning.precision import Precision, products
from fewstep.metalearning.predictor import Predictor
from fewstep.metalearning.randomness import rewinder
from fewstep.metalearning.ranks import Ranks
from fewstep.metalearning.side_by_side import at_once
from fewstep.metalearning.strategies import COMPILED, STRATEGIES, Strategy
from fewstep.metalearning.tree import Tree, tensors_of
from fewstep.methods import Method
from fewstep.methods.parts import Statistics as StatisticsPolicy
from fewstep.tasks.batch import TaskBatch

T = TypeVar("T")

# Support values a task on a CPU below which all tasks at once are faster: tiny tasks are bound by call overhead. Larger
# ones are as fast one by one, and leave the cache and twenty times the memory if all are held at once.
VECTORIZED_BELOW = 1024


class MetaGradient(NamedTuple):
    """What `Learner.meta_gradient` returns.

    Arguments:
        loss: mean meta-loss over tasks, scalar.
        query_logits: (B, Q, …) after the last inner step.
        gradients: {name: tensor} for every name of `Learner.meta_parameters`.
        task_losses: (B,), the meta-loss of each task.
        statistics: batch-norm moments of the support passes, (steps, channels), for `Learner.update_running`.

    Example:
        >>> MetaGradient(torch.tensor(0.5), torch.zeros(1, 2, 3), {}, torch.tensor([0.5]), {}).query_logits.shape
        torch.Size([1, 2, 3])
    """

    loss: Tensor
    query_logits: Tensor
    gradients: Parameters
    task_losses: Tensor
    statistics: Statistics


class Learner(nn.Module):
    """A model, a method and a loss: the meta-gradient of a meta-batch, and adaptation to one task.

        ∇_meta (1/B) Σ_b Σ_i w_i L(query_b; θ_{i+1}^b),    θ_{i+1} = rule(θ_i, ∇L(support_b; θ_i))

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
        BadInput: nothing to adapt, an unknown strategy or precision, an empty micro-batch, labels that the
            model has no output for.

    Source: Finn, Abbeel, Levine, arXiv 1703.03400.

    Example:
        >>> import fewstep, torch.nn.functional as F
        >>> learner = Learner(nn.Linear(2, 3), fewstep.preset("maml"), loss=F.cross_entropy)
        >>> x, y = torch.randn(4, 3, 2), torch.arange(3).expand(4, 3)
        >>> result = learner.meta_gradient(fewstep.TaskBatch(x, y, x, y))
        >>> result.query_logits.shape, list(result.gradients)
        (torch.Size([4, 3, 3]), ['model.weight', 'model.bias'])
    """

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        loss: Loss = nn.functional.cross_entropy,
        strategy: str = "auto",
        micro_batch: int | None = None,
        precision: str = "float32",
        compiled: bool = False,
    ):
        super().__init__()
        self.micro_batch = micro_batch
        if strategy != "auto" and strategy not in STRATEGIES:
            raise unknown("strategy", strategy, ["auto", *STRATEGIES])
        self.model, self.method, self.loss, self.strategy = model, method, loss, strategy
        self.ranks = Ranks()  # the processes that share each meta-batch: this one alone, or see `fewstep.torchrun`
        self._forward = Functional(model)
        self.precision = precision
        self.compiled = compiled
        self._widths: dict[Any, int] = {}  # of the output, by shape of the input
        self._loops_only = False  # vmap was tried and cannot take the model
        trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        norms = [name for name in norm_parameters(model) if name in trainable]
        self.adapted = tuple(method.adapted(list(trainable), set(norms)))
        if not self.adapted and method.steps:
            raise BadInput(f"{method.name} adapts {method.adapted}, but the model has no trainable parameter like that")
        rows = max(method.steps, 1)
        with torch.no_grad():
            self.rates = Tree(method.rule.rates({n: trainable[n] for n in self.adapted}, method.steps))
            per_step = [n for n in norms if n not in self.adapted] if method.norm.affine == "per_step" else []
            if method.norm.affine == "per_step" and norms and not per_step:
                raise BadInput(f"norm.affine is per_step, but {method.adapted} lets the inner loop adapt norm weights")
            self.norm = Tree({n: trainable[n].detach().expand(rows, *trainable[n].shape).clone() for n in per_step})
            self.running = Tree(self._initial_moments(rows), buffers=True)

    def _initial_moments(self, rows: int) -> Parameters:
        """Running statistics of every inner step: those the model has, or zeros and ones."""
        anchor, moments = next(iter(self.model.parameters())), {}
        for name, channels in self._forward.batch_norms.items():
            norm = self.model.get_submodule(name)
            for part, empty in (("mean", 0.0), ("var", 1.0)):
                own = getattr(norm, f"running_{part}")
                start = anchor.new_full((channels,), empty) if own is None else own.detach()
                moments[f"{name}.{part}"] = start.expand(rows, channels).clone()
        return moments

    @property
    def micro_batch(self) -> int | None:
        """Tasks of a meta-batch taken at a time; all where None."""
        return self._micro_batch

    @micro_batch.setter
    def micro_batch(self, size: int | None) -> None:
        if size is not None and size < 1:
            raise BadInput(f"micro_batch is {size}; take at least one task at a time")
        self._micro_batch = size

    @property
    def precision(self) -> str:
        """How convolutions and matrix products are computed."""
        return self._forward.precision

    @precision.setter
    def precision(self, precision: str) -> None:
        if precision not in get_args(Precision):
            raise unknown("precision", precision, get_args(Precision))
        self._forward.precision = precision

    # --- meta-parameters ---------------------------------------------------------------------------------------------

    def meta_parameters(self) -> dict[str, nn.Parameter]:
        """Every tensor the outer loop learns, as `model.<name>`, `rates.<name>` or `norm.<name>`.

        A norm weight that is learned for each step appears as `norm.<name>`, not as `model.<name>`.
        """
        rates, norm = tensors_of(self.rates), tensors_of(self.norm)
        model = {name: p for name, p in self.model.named_parameters() if name not in norm}
        parts = ("model", model), ("rates", rates), ("norm", norm)
        return {f"{part}.{name}": p for part, of in parts for name, p in of.items() if p.requires_grad}

    def _whole(self, learned: Parameters) -> Meta:
        """The learned tensors, completed by all that is fixed."""
        by_part: dict[str, Parameters] = {"model": {}, "rates": {}, "norm": {}}
        for name, tensor in learned.items():
            part, _, rest = name.partition(".")
            by_part[part][rest] = tensor
        # A module may write to its buffers; it gets copies.
        fixed = {n: p.detach() for n, p in self.model.named_parameters() if n not in by_part["model"]}
        fixed |= {n: b.clone() for n, b in self.model.named_buffers()}
        moments = tensors_of(self.running)
        running = {n: Moments(moments[f"{n}.mean"], moments[f"{n}.var"]) for n in self._forward.batch_norms}
        return Meta(fixed | by_part["model"], by_part["rates"], by_part["norm"], running)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def threads(self, batch: TaskBatch) -> int:
        """How many tasks of a meta-batch the strategy `loop` has under way at once."""
        return at_once(min(self.micro_batch or len(batch), len(batch)), self._forward, self.device, batch.values)

    @property
    def has_batch_norm(self) -> bool:
        return bool(self._forward.batch_norms)

    @torch.no_grad()
    def frozen(self) -> Meta:
        """A copy of everything a task starts from, without a graph: what adaptation and evaluation use."""
        model, rates, norm, running = self._whole(dict(self.meta_parameters()))
        model, rates, norm = ({n: t.clone() for n, t in part.items()} for part in (model, rates, norm))
        return Meta(model, rates, norm, {n: Moments(m.mean.clone(), m.var.clone()) for n, m in running.items()})

    def inner_loop(self, statistics: str, sharp: bool = False) -> InnerLoop:
        """The inner loop under a statistics policy; `sharp` perturbs its steps where the method does so.

        Raises:
            BadInput: an unknown policy.
        """
        if statistics not in get_args(StatisticsPolicy):
            raise unknown("statistics", statistics, get_args(StatisticsPolicy))
        return InnerLoop(self._forward, self.loss, self.method, self.adapted, statistics, sharp)

    def steps(self, steps: int | None) -> int:
        """The inner steps asked for; the method's where None."""
        steps = self.method.steps if steps is None else steps
        if steps < 0:
            raise BadInput(f"steps is {steps}; take zero or more inner steps")
        return steps

    # --- training ----------------------------------------------------------------------------------------------------

    @torch.enable_grad()
    def meta_gradient(self, batch: TaskBatch, progress: float = 0.0, strategy: str | None = None) -> MetaGradient:
        """Meta-loss, query output and meta-gradient of a meta-batch; changes nothing.

        Arguments:
            batch: B tasks. progress: fraction of the training done, for the method's schedules.
            strategy: overrides the learner's.

        Raises:
            BadInput: labels the model has no output for; a model that vmap cannot take under `vectorized`; a layer
                without a second derivative under second order; what cannot be compiled, where that was asked for.
        """
        if self.compiled and (strategy or self.strategy) not in ("auto", *COMPILED):
            raise BadInput(f"strategy {strategy or self.strategy} cannot be compiled; take {' or '.join(COMPILED)}")
        self.check(tree_map(lambda t: t[0], batch.support_x), batch.support_y)
        weights = self.method.step_weights(progress, self.method.steps)
        plan = Plan(self.method.order(progress), [weight or None for weight in weights])
        policy = "support" if self.method.norm.statistics == "support" else "batch"
        self._forward.train_like(self.model)
        inner, sharpness = self.inner_loop(policy, sharp=True), self.method.sharpness

        def at(point: Parameters, strategy: str) -> Result:
            function = (COMPILED if self.compiled else STRATEGIES)[strategy]
            return self.ranks.pooled(lambda part: self._in_pieces(function, inner, plan, point, part), batch)

        def run(strategy: str) -> Result:
            rewind = rewinder(self.device)
            try:
                result = at(learned, strategy)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                self._explain(error, plan, batch)
                raise
            if not sharpness.outer:
                return result
            weights = {n: p.detach() for n, p in learned.items() if not n.startswith("rates.")}
            epsilon = sharpness.perturbation(weights, {n: result[0][n] for n in weights}, sharpness.outer)
            perturbed = learned | {n: weight + epsilon[n] for n, weight in weights.items()}
            rewind()  # dropout and the like drop the same in both passes
            return at(perturbed, strategy)

        learned: Parameters = dict(self.meta_parameters())
        try:
            gradients, outcome = self.by_strategy(batch, strategy, run)
        except CannotCompile as error:
            raise BadInput(str(error)) from error
        statistics = {n: Moments(m.mean.mean(0), m.var.mean(0)) for n, m in outcome.statistics.items()}
        return MetaGradient(outcome.loss.mean(), outcome.query_logits, gradients, outcome.loss, statistics)

    def _in_pieces(
        self, strategy: Strategy, inner: InnerLoop, plan: Plan, learned: Parameters, batch: TaskBatch
    ) -> Result:
        """The result of a strategy on the meta-batch, taken micro-batch by micro-batch."""
        size = self.micro_batch or len(batch)
        gradients: Parameters = {}
        outcomes = []
        for start in range(0, len(batch), size):
            piece = batch[start : start + size]
            means, outcome = strategy(inner, plan, learned, self._whole, piece)
            share = len(piece) / len(batch)
            gradients = {n: g * share + gradients[n] if gradients else g * share for n, g in means.items()}
            outcomes.append(outcome)
        if len(outcomes) == 1:
            return means, outcome
        return gradients, tree_map(lambda *each: torch.cat(each), *outcomes)

    def _explain(self, error: RuntimeError, plan: Plan, batch: TaskBatch) -> None:
        """Raise BadInput where an error comes from a layer without a second derivative."""
        first = tree_map(lambda t: t[0], batch.support_x)
        if plan.order == "second" and (layer := self._forward.not_twice_differentiable(self.frozen().model, first)):
            raise BadInput(
                f"second order needs second derivatives, which torch lacks for {layer}: take first order (`fomaml`, "
                "--order first), adapt only layers after it (`anil`, Matching), or exchange the layer"
            ) from error

    @torch.no_grad()
    def update_running(self, statistics: Statistics) -> None:
        """Move the running statistics of every inner step towards those of a meta-batch.

        running ← (1 − momentum) running + momentum · seen
        """
        buffers = tensors_of(self.running)
        for name, moments in statistics.items():
            for part in ("mean", "var"):
                seen = getattr(moments, part)
                buffers[f"{name}.{part}"][: len(seen)].lerp_(seen, self.method.norm.momentum)

    def chosen_strategy(self, batch: TaskBatch, strategy: str | None = None) -> str:
        """The strategy for a meta-batch: the one asked for, or under `auto` the faster one by measured size."""
        strategy = strategy or self.strategy
        if strategy not in ("auto", *STRATEGIES):
            raise unknown("strategy", strategy, ["auto", *STRATEGIES])
        if strategy != "auto":
            return strategy
        if self._loops_only:
            return "loop"
        if batch.support_y.device.type != "cpu":
            return "vectorized"
        leaves = batch.support_x if isinstance(batch.support_x, tuple) else (batch.support_x,)
        return "vectorized" if sum(leaf[0].numel() for leaf in leaves) < VECTORIZED_BELOW else "loop"

    def by_strategy(self, batch: TaskBatch, strategy: str | None, run: Callable[[str], T]) -> T:
        """`run` with the strategy for a meta-batch; `auto` goes on by `loop` where vmap cannot take the model.

        Raises:
            BadInput: a model that vmap cannot take, where `vectorized` was asked for.
            CannotCompile: from `run`.
        """
        chosen, forced = self.chosen_strategy(batch, strategy), (strategy or self.strategy) != "auto"
        with products(self.precision, self.device):
            try:
                return run(chosen)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                if chosen != "vectorized" or (forced and isinstance(error, CannotCompile)):
                    raise
                if forced:
                    reason = str(error).splitlines()[0]
                    raise BadInput(f"this model cannot run vectorized ({reason}); use strategy loop") from error
                result = run("loop")
                self._loops_only = True  # only now: an error of another kind would have come again
                return result

    @torch.no_grad()
    def check(self, support_x: Any, support_y: Tensor) -> None:
        """Raise BadInput where labels (of any shape) do not fit the model's output for one task's inputs.

        Looks at labels on the CPU only: elsewhere looking would wait for the device.
        """
        if support_y.is_floating_point() or support_y.device.type != "cpu" or not support_y.numel():
            return
        lowest, highest = map(int, support_y.aminmax())
        if lowest < 0:
            raise BadInput(f"a label is {lowest}; labels count from 0")
        shape = tuple(leaf.shape for leaf in (support_x if isinstance(support_x, tuple) else (support_x,)))
        if shape not in self._widths:
            self._forward.train_like(None)
            task = tree_map(lambda t: t.to(self.device), support_x)
            self._widths[shape] = self._forward(self.frozen().model, task)[0].shape[1]
        if highest >= self._widths[shape]:
            raise BadInput(
                f"tasks have labels up to {highest}, but the model has {self._widths[shape]} outputs: "
                f"build the model for {highest + 1} ways, or draw tasks of {self._widths[shape]} ways"
            )

    # --- adaptation --------------------------------------------------------------------------------------------------

    @torch.no_grad()
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
            statistics: what normalises batch norms; where None `running` if that is the method's policy, otherwise
                `support`, so that a prediction never depends on the other queries. `batch` is transductive.
            sharp: perturb the inner steps as in training, where the method does so; plain steps otherwise.

        Raises:
            BadInput: labels the model has no output for; an unknown statistics policy.
        """
        if statistics is None:
            statistics = "running" if self.method.norm.statistics == "running" else "support"
        self.check(support_x, support_y)
        self._forward.train_like(None)
        inner, meta = self.inner_loop(statistics, sharp), self.frozen()
        steps, gradient = self.steps(steps), inner.closed_form(support_x, support_y)
        with products(self.precision, self.device):
            *_, final = inner.adapt(meta, support_x, support_y, steps, gradient)
            return Predictor(self._forward, final.parameters, inner.query_statistics(meta, final, support_x))
