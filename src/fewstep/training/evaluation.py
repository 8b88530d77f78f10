"""Evaluation on fixed tasks: accuracy with its interval over tasks, after every number of inner steps."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from fewstep.errors import BadInput
from fewstep.metalearning.inner_loop import Meta
from fewstep.metalearning.learner import Learner, check_policy
from fewstep.tasks.batch import TaskBatch
from fewstep.tasks.source import TaskFunction, Tasks
from fewstep.training.drawing import drawn
from fewstep.training.interval import mean_and_interval, plain

CHUNK = 8  # tasks drawn, and under `vectorized` adapted, at a time


@dataclass(frozen=True)
class Score:
    """A measurement over tasks.

    Arguments:
        metric: `accuracy` (fraction of queries) or, for real targets, `loss`.
        value: its mean over tasks after the last inner step.
        interval95: half-width of the 95 % interval over tasks, t · std / √count by Student's t; infinite for one task.
        per_task: the value of each task, in the order of task indices.
        by_step: its mean after 0, 1, … inner steps; entry 0 is the model without adaptation.
        chance: accuracy of a guess, mean over tasks of 1 / (classes in the support set); None for real targets.
        statistics: what batch norms normalised queries by; `batch` is transductive.
        per_query: mean where each query is normalised by the support set, alone; None where that is `value` itself.
        per_query_interval95: its half-width.
        count, steps, members, seconds: tasks, inner steps, models whose logits were averaged, wall time.
        diverged: tasks whose adaptation gave outputs that are not finite. Each counts by the accuracy of a guess; with
            real targets it is NaN in `per_task` and left out of means.

    Example:
        >>> score = Score("loss", 0.5, 0.1, (0.4, 0.6), (2.0, 0.5), None, "batch", None, None, 2, 1, 1, 0.1)
        >>> str(score)
        'loss 0.5000 ± 0.1000'
    """

    metric: str
    value: float
    interval95: float
    per_task: tuple[float, ...]
    by_step: tuple[float, ...]
    chance: float | None
    statistics: str
    per_query: float | None
    per_query_interval95: float | None
    count: int
    steps: int
    members: int
    seconds: float
    diverged: int = 0

    @property
    def accuracy(self) -> float:
        """Mean accuracy.

        Raises:
            BadInput: a score of real targets.
        """
        if self.metric != "accuracy":
            raise BadInput("these tasks have real targets: read score.value, their mean loss")
        return self.value

    @property
    def goodness(self) -> float:
        """Higher is better, whatever the metric."""
        return self.value if self.metric == "accuracy" else -self.value

    def __str__(self) -> str:
        shown = "{:.2%} ± {:.2%}" if self.metric == "accuracy" else "loss {:.4f} ± {:.4f}"
        diverged = f" ({self.diverged} of {self.count} tasks diverged)" if self.diverged else ""
        return shown.format(self.value, self.interval95) + diverged

    def to_json(self) -> dict[str, Any]:
        """All of it; what is not finite becomes None."""
        record: dict[str, Any] = plain(asdict(self))
        return record


def evaluate(
    learner: Learner,
    tasks: Tasks | TaskFunction,
    count: int = 600,
    *,
    split: str = "test",
    first: int = 0,
    steps: int | None = None,
    statistics: str | None = None,
    members: Sequence[Meta] | None = None,
    every_step: bool = True,
    per_query: bool = True,
    watch: Callable[[int], None] | None = None,
) -> Score:
    """Adapt to each of `count` fixed tasks and judge the queries; the learner stays as it is, bit for bit.

        value = mean over tasks,   interval95 = t · std over tasks / √count,   t of Student for count − 1

    Arguments:
        learner: what to evaluate. tasks: a `Tasks`, or one of its functions.
        count: tasks first … first + count − 1 of the split, the same for every learner and every call.
        split: `train`, `validation` or `test`. first: the number of the first task.
        steps: inner steps; the method's where None.
        statistics: `batch`, `running` or `support`; the method's norm policy where None.
        members: average the logits of these models (see `Learner.frozen`) instead of using the learner's own.
        every_step: judge after every inner step, not only the last.
        watch: called with the number of tasks done.
        per_query: also judge with queries normalised by the support set, where `statistics` is not that already.

    Raises:
        BadInput: no tasks, another number of them than asked for, an unknown split or policy, support or query labels
            the model has no output for, data that are not finite, or that adapting to every single task diverged.

    Source: the protocol of Finn, Abbeel, Levine, arXiv 1703.03400: 600 tasks, interval over tasks.

    Example:
        >>> import fewstep
        >>> learner = fewstep.Learner(fewstep.models.MLP(1, 1), fewstep.preset("maml", setting="sinusoid"),
        ...                           loss=torch.nn.functional.mse_loss)
        >>> score = evaluate(learner, fewstep.sinusoid(), count=4)
        >>> score.metric, len(score.per_task), len(score.by_step)
        ('loss', 4, 2)
    """
    started = time.perf_counter()
    if count < 1:
        raise BadInput(f"count is {count}; evaluate on at least one task")
    protocol = _Protocol.of(learner, tasks, split, steps, statistics, members, every_step, per_query)
    numbers = range(first, first + count)
    return protocol.score(numbers, protocol.measure(numbers, watch), started)


class _Judged(NamedTuple):
    """What was found of each task: (tasks, passes), (tasks,), (tasks,); in float64, as ranks add it up.

    A pass is the queries answered once: after each inner step, or only the last; then, where asked for, each alone.
    """

    values: Tensor
    diverged: Tensor
    chance: Tensor


@dataclass(frozen=True)
class _Protocol:
    """How each task is adapted to and judged, see `evaluate`; `alone`: with a pass of queries each alone."""

    learner: Learner
    function: TaskFunction
    name: str
    metas: Sequence[Meta]
    statistics: str
    steps: int
    every_step: bool
    alone: bool

    @staticmethod
    def of(
        learner: Learner,
        tasks: Tasks | TaskFunction,
        split: str,
        steps: int | None = None,
        statistics: str | None = None,
        members: Sequence[Meta] | None = None,
        every_step: bool = False,
        per_query: bool = False,
    ) -> "_Protocol":
        """With the learner's own choices for what is None."""
        function, name = (tasks.split(split), split) if isinstance(tasks, Tasks) else (tasks, "task")
        statistics = statistics or learner.method.norm.statistics
        check_policy(statistics)
        alone = per_query and statistics == "batch" and learner.has_batch_norm
        metas = list(members or [learner.frozen()])
        return _Protocol(learner, function, name, metas, statistics, learner.steps(steps), every_step, alone)

    def measure(self, numbers: range, watch: Callable[[int], None] | None = None) -> _Judged:
        """Each of the tasks, some at a time."""
        learner = self.learner
        found: tuple[list[Any], ...] = ([], [], [])  # numbers, so that no tensor stays behind
        chunk = min(CHUNK, learner.micro_batch or CHUNK)
        for start in range(0, len(numbers), chunk):
            batch = drawn(self.function, numbers[start : start + chunk], self.name)
            each = [
                learner.query_outputs(batch, self.steps, self.statistics, meta, self.every_step, self.alone)
                for meta in self.metas
            ]
            judged = _judge(learner, torch.stack(each).mean(0) if len(each) > 1 else each[0], batch)
            for every, some in zip(found, judged, strict=True):
                every.extend(some.tolist())
            if watch:
                watch(start + len(batch))
        return _Judged(*(torch.tensor(every, dtype=torch.float64) for every in found))

    def score(self, numbers: range, judged: _Judged, started: float) -> Score:
        """The measurement.

        Raises:
            BadInput: every task diverged.
        """
        if judged.diverged.all():
            raise BadInput(
                f"adapting to tasks {numbers[0]} to {numbers[-1]} diverged: outputs are not finite. "
                "Use a lower inner rate, fewer inner steps, or another checkpoint"
            )
        adapted, alone = (judged.values[:, :-1], judged.values[:, -1]) if self.alone else (judged.values, None)
        per_task, real = adapted[:, -1].tolist(), bool(judged.chance.isnan().any())
        value, interval = mean_and_interval(per_task)
        per_query = (None, None) if alone is None else mean_and_interval(alone.tolist())
        return Score(
            metric="loss" if real else "accuracy",
            value=value,
            interval95=interval,
            per_task=tuple(per_task),
            by_step=_by_step(adapted),
            chance=None if real else judged.chance.mean().item(),
            statistics=self.statistics,
            per_query=per_query[0],
            per_query_interval95=per_query[1],
            count=len(numbers),
            steps=self.steps,
            members=len(self.metas),
            seconds=time.perf_counter() - started,
            diverged=int(judged.diverged.sum()),
        )


def _by_step(adapted: Tensor) -> tuple[float, ...]:
    """The mean after each inner step, over the tasks that did not diverge by the last."""
    kept = adapted[~adapted[:, -1].isnan()]
    return tuple(mean_and_interval(values)[0] for values in kept.T.tolist())


def validate(learner: Learner, tasks: Tasks, count: int) -> Score:
    """The score on validation tasks after the last inner step, each of the learner's ranks having done its part."""
    started, ranks = time.perf_counter(), learner.ranks
    part = ranks.part(count)
    protocol = _Protocol.of(learner, tasks, "validation")
    own = ranks.together(lambda: protocol.measure(part or range(1)))  # without tasks it does one that does not count

    def pooled(found: Tensor) -> Tensor:
        every = found.new_zeros(count, *found.shape[1:])
        every[part.start : part.stop] = found[: len(part)]
        return ranks.sum(every)

    return protocol.score(range(count), tree_map(pooled, own), started)


def _judge(learner: Learner, outputs: Tensor, batch: TaskBatch) -> _Judged:
    """Accuracy, or loss for real targets, of each task and pass; that of a guess, or NaN, where one is not finite.

    Raises:
        BadInput: the data are not finite.
    """
    targets, finite = batch.query_y.to(outputs.device), outputs.isfinite().flatten(2).all(2)
    if targets.is_floating_point():
        pairs = zip(outputs, targets, strict=True)
        values = torch.stack([torch.stack([learner.loss(o, target) for o in task]) for task, target in pairs]).double()
        finite &= values.isfinite()
        guess = torch.full((len(batch),), torch.nan, dtype=torch.float64)
    else:
        values = (outputs.argmax(3) == targets[:, None]).double().flatten(2).mean(-1)
        guess = torch.tensor([1 / labels.unique().numel() for labels in batch.support_y], dtype=torch.float64)
    if not finite.all():
        batch.check_finite()
    values, finite = values.cpu(), finite.cpu()
    return _Judged(torch.where(finite, values, guess[:, None]), (~finite).any(1).double(), guess)
