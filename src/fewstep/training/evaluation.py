"""Evaluation on fixed tasks: accuracy with its interval over tasks, after every number of inner steps."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from fewstep.errors import BadInput
from fewstep.metalearning.inner_loop import Meta
from fewstep.metalearning.learner import Learner
from fewstep.tasks.source import TaskFunction, Tasks

CHUNK = 8  # tasks drawn, and under `vectorized` adapted, at a time


@dataclass(frozen=True)
class Score:
    """A measurement over tasks.

    Arguments:
        metric: `accuracy` (fraction of queries) or, for real targets, `loss`.
        value: its mean over tasks after the last inner step.
        interval95: half-width of the 95 % interval over tasks, 1.96 · std / √count.
        per_task: the value of each task, in the order of task indices.
        by_step: its mean after 0, 1, … inner steps; entry 0 is the model without adaptation.
        chance: accuracy of a guess, 1 / ways; None for real targets.
        statistics: what batch norms normalised queries by; `batch` is transductive.
        per_query: mean where each query is normalised by the support set, alone; None where that is `value` itself.
        per_query_interval95: its half-width.
        count, steps, members, seconds: tasks, inner steps, models whose logits were averaged, wall time.

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

    @property
    def accuracy(self) -> float:
        """Mean accuracy; raises BadInput for a score of real targets."""
        if self.metric != "accuracy":
            raise BadInput("these tasks have real targets: read score.value, their mean loss")
        return self.value

    @property
    def goodness(self) -> float:
        """Higher is better, whatever the metric."""
        return self.value if self.metric == "accuracy" else -self.value

    def __str__(self) -> str:
        if self.metric == "accuracy":
            return f"{self.value:.2%} ± {self.interval95:.2%}"
        return f"loss {self.value:.4f} ± {self.interval95:.4f}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def mean_and_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half-width of its 95 % interval, 1.96 · std / √n with the unbiased std.

    Example:
        >>> mean_and_interval([0.0, 1.0, 0.0, 1.0])[0]
        0.5
    """
    n = len(values)
    mean = math.fsum(values) / n
    variance = math.fsum((v - mean) ** 2 for v in values) / (n - 1) if n > 1 else 0.0
    return mean, 1.96 * math.sqrt(variance / n)


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

        value = mean over tasks,   interval95 = 1.96 · std over tasks / √count

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
        BadInput: no tasks, an unknown split or policy, labels the model has no output for, values that are not finite.

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
    statistics = statistics or learner.method.norm.statistics
    steps = learner.steps(steps)
    function = tasks.split(split) if isinstance(tasks, Tasks) else tasks
    alone = per_query and statistics == "batch" and learner.has_batch_norm
    metas = list(members or [learner.frozen()])
    values: list[list[float]] = []
    chance = None
    chunk = min(CHUNK, learner.micro_batch or CHUNK)
    for start in range(first, first + count, chunk):
        batch = function(range(start, min(start + chunk, first + count)))
        learner.check(tree_map(lambda t: t[0], batch.support_x), batch.support_y)
        batch = batch.to(learner.device)
        outputs = [learner.query_outputs(batch, steps, statistics, meta, every_step, alone) for meta in metas]
        output = torch.stack(outputs).mean(0) if len(outputs) > 1 else outputs[0]
        if not output.isfinite().all():
            batch.check_finite()
            raise BadInput(
                f"adapting to tasks {start} to {start + len(batch) - 1} diverged: outputs are not finite. "
                "Use a lower inner rate, fewer inner steps, or another checkpoint"
            )
        values.extend(_judge(learner, output, batch.query_y).tolist())
        if watch:
            watch(start - first + len(batch))
        if not batch.query_y.is_floating_point():
            chance = 1 / (int(batch.support_y.max()) + 1)
    if alone:
        single, single_interval = mean_and_interval([v.pop() for v in values])
    last = [v[-1] for v in values]
    mean, interval = mean_and_interval(last)
    return Score(
        metric="loss" if chance is None else "accuracy",
        value=mean,
        interval95=interval,
        per_task=tuple(last),
        by_step=tuple(math.fsum(v[i] for v in values) / count for i in range(len(values[0]))),
        chance=chance,
        statistics=statistics,
        per_query=single if alone else None,
        per_query_interval95=single_interval if alone else None,
        count=count,
        steps=steps,
        members=len(metas),
        seconds=time.perf_counter() - started,
    )


def validate(learner: Learner, tasks: Tasks, count: int) -> Score:
    """The score on validation tasks after the last inner step, each of the learner's ranks having done its part."""
    ranks = learner.ranks
    part = ranks.part(count) or range(1)  # a rank without tasks does one that does not count
    score = ranks.together(lambda: evaluate(
        learner, tasks, len(part), split="validation", first=part.start, every_step=False, per_query=False
    ))  # fmt: skip
    values = torch.zeros(count, dtype=torch.float64)
    if ranks.part(count):
        values[part.start : part.stop] = torch.tensor(score.per_task, dtype=torch.float64)
    per_task = ranks.sum(values).tolist()
    value, interval = mean_and_interval(per_task)
    return replace(score, value=value, interval95=interval, per_task=tuple(per_task), by_step=(value,), count=count)


def _judge(learner: Learner, outputs: Tensor, targets: Tensor) -> Tensor:
    """Accuracy, or loss for real targets, of each task and pass: (B, passes)."""
    if not targets.is_floating_point():
        return (outputs.argmax(3) == targets[:, None]).double().flatten(2).mean(-1)
    losses = [[learner.loss(passed, target) for passed in task] for task, target in zip(outputs, targets, strict=True)]
    return torch.stack([torch.stack(row) for row in losses]).double()
