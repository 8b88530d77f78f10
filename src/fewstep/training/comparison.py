"""Comparison of methods on the same tasks: means, intervals over tasks, spread over seeds, paired differences."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fewstep.errors import BadInput
from fewstep.training.interval import mean_and_interval, plain

PerTask = Sequence[float]


@dataclass(frozen=True)
class Entry:
    """What is compared: one method's measurements.

    Arguments:
        name: what tables call it.
        per_task: by seed, the value of each task; task i is the same one for every seed and entry.
        training_seconds, evaluation_seconds: wall time of a run, mean over seeds.
        peak_memory: bytes of the largest training process; None where not recorded, as for training_seconds.

    Example:
        >>> Entry("maml", {0: (0.5, 1.0)}).name
        'maml'
    """

    name: str
    per_task: Mapping[int, PerTask]
    training_seconds: float | None = None
    evaluation_seconds: float = 0.0
    peak_memory: int | None = None


@dataclass(frozen=True)
class Row:
    """An entry's line in the table.

    Arguments:
        value: mean over seeds and tasks.
        interval95: half-width of its 95 % interval over tasks, of the means over seeds.
        spread: unbiased standard deviation over seeds of the means over tasks; None with one seed.
        difference: mean of the task-by-task differences to the first entry; None in the first row.
        difference_interval95: half-width of its own 95 % interval over tasks.
        paired_seeds: seeds whose runs were paired for the difference; none where the two have no seed in common, and
            the means over seeds were compared.
        best: whether no entry is better.
    """

    name: str
    seeds: tuple[int, ...]
    metric: str
    value: float
    interval95: float
    spread: float | None
    difference: float | None
    difference_interval95: float | None
    paired_seeds: tuple[int, ...]
    training_seconds: float | None
    evaluation_seconds: float
    peak_memory: int | None
    best: bool = False

    def to_json(self) -> dict[str, Any]:
        record: dict[str, Any] = plain(asdict(self))
        return record


def compare(entries: Sequence[Entry], metric: str = "accuracy") -> list[Row]:
    """The table, a row for each entry; differences are to the first.

        value = mean_t m_t,   m_t = mean_s v_{s,t},   interval95 = t · std_t(m_t) / √T,   t of Student for T − 1
        spread = std_s(mean_t v_{s,t})
        difference = mean_t d_t,  d_t = mean_s (v_{s,t} − first_{s,t}) over the seeds that both have

    Arguments:
        entries: each with at least one seed, all with the same tasks.
        metric: `accuracy`, or `loss`, of which less is better.

    Raises:
        BadInput: nothing to compare, numbers of tasks that differ.

    Example:
        >>> rows = compare([Entry("a", {0: (0.5, 0.7)}), Entry("b", {0: (0.6, 0.8)})])
        >>> round(rows[1].difference, 3), round(rows[1].difference_interval95, 3), rows[1].best
        (0.1, 0.0, True)
    """
    if not entries or not all(entry.per_task for entry in entries):
        raise BadInput("there is nothing to compare: an entry has no measurement")
    counts = {len(values) for entry in entries for values in entry.per_task.values()}
    if len(counts) > 1:
        raise BadInput(f"measurements of {' and '.join(map(str, sorted(counts)))} tasks cannot be compared")
    sign = -1 if metric == "loss" else 1
    best = max(sign * mean_and_interval(_over_seeds(entry.per_task))[0] for entry in entries)
    return [_row(entry, None if entry is entries[0] else entries[0], metric, sign * best) for entry in entries]


def _row(entry: Entry, first: Entry | None, metric: str, best: float) -> Row:
    value, interval = mean_and_interval(_over_seeds(entry.per_task))
    paired = sorted(set(entry.per_task) & set(first.per_task)) if first else []
    difference = mean_and_interval(_differences(entry.per_task, first.per_task, paired)) if first else (None, None)
    return Row(
        name=entry.name,
        seeds=tuple(sorted(entry.per_task)),
        metric=metric,
        value=value,
        interval95=interval,
        spread=_spread([mean_and_interval(values)[0] for values in entry.per_task.values()]),
        difference=difference[0],
        difference_interval95=difference[1],
        paired_seeds=tuple(paired),
        training_seconds=entry.training_seconds,
        evaluation_seconds=entry.evaluation_seconds,
        peak_memory=entry.peak_memory,
        best=value == best,
    )


def _over_seeds(per_task: Mapping[int, PerTask]) -> list[float]:
    """The mean over seeds of each task; NaN, which means leave out, where it diverged under one of them."""
    return [math.fsum(values) / len(values) for values in zip(*per_task.values(), strict=True)]


def _differences(ours: Mapping[int, PerTask], theirs: Mapping[int, PerTask], paired: Sequence[int]) -> list[float]:
    """The difference on each task: over paired seeds, or without any of the means over seeds."""
    if paired:
        ours, theirs = ({seed: values[seed] for seed in paired} for values in (ours, theirs))
    return [a - b for a, b in zip(_over_seeds(ours), _over_seeds(theirs), strict=True)]


def _spread(means: Sequence[float]) -> float | None:
    if len(means) < 2:
        return None
    centre = math.fsum(means) / len(means)
    return math.sqrt(math.fsum((m - centre) ** 2 for m in means) / (len(means) - 1))
