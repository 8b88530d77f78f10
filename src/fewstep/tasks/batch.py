"""A meta-batch: several tasks of equal shape, stacked along a leading task axis."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from fewstep.errors import BadInput

Inputs = torch.Tensor | tuple[torch.Tensor, ...]
"""One tensor, or a tuple of tensors for a module of several inputs."""


@dataclass(frozen=True, eq=False)
class TaskBatch:
    """B tasks, each with S labelled examples to adapt to and Q labelled examples to be judged on.

        task b = (S_b, Q_b);   the inner loop sees only S_b, the outer loss only Q_b

    Arguments:
        support_x: (B, S, ...), or a tuple of such tensors for a module of several inputs.
        support_y: (B, S) class numbers, or (B, S, out) real targets.
        query_x: (B, Q, ...), or a tuple of such tensors.
        query_y: (B, Q) or (B, Q, out).

    Raises:
        BadInput: leading sizes that disagree, naming the field and the shapes; no tasks, an empty support or query set.

    Source: Vinyals et al. 2016 (arXiv 1606.04080), the task protocol; Finn et al. 2017 (arXiv 1703.03400).

    Example:
        >>> import torch
        >>> batch = TaskBatch(torch.zeros(4, 5, 1), torch.zeros(4, 5, 1), torch.zeros(4, 3, 1), torch.zeros(4, 3, 1))
        >>> len(batch), len(batch[0]), tuple(batch[1:3].query_x.shape)
        (4, 1, (2, 3, 1))
    """

    support_x: Inputs
    support_y: torch.Tensor
    query_x: Inputs
    query_y: torch.Tensor

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            may_be_tuple = field.name.endswith("_x")
            if isinstance(value, list) and may_be_tuple:
                object.__setattr__(self, field.name, tuple(value))
                value = tuple(value)
            if not _all_tensors(value, may_be_tuple):
                wanted = "a tensor or a tuple of tensors" if may_be_tuple else "a tensor"
                raise BadInput(f"{field.name} of a TaskBatch must be {wanted}, not {type(value).__name__}")
        for half in ("support", "query"):
            expected = self.support_y.shape[:1] + getattr(self, f"{half}_y").shape[1:2]
            for name in (f"{half}_y", f"{half}_x"):
                for leaf in _leaves(getattr(self, name)):
                    if leaf.ndim < 2 or leaf.shape[:2] != expected:
                        raise BadInput(_disagreement(self, name, leaf))
        (tasks, support), query = self.support_y.shape[:2], self.query_y.shape[1]
        for size, empty in ((tasks, "no tasks"), (support, "an empty support set"), (query, "an empty query set")):
            if not size:
                raise BadInput(f"a TaskBatch has {empty}; it needs at least one task of at least one example each")

    def __len__(self) -> int:
        return self.support_y.shape[0]

    def __getitem__(self, which: int | slice) -> "TaskBatch":
        """Some of the tasks, at least one; one task keeps its leading axis, so it is a batch of one."""
        if isinstance(which, int):
            position = which + len(self) if which < 0 else which
            if not 0 <= position < len(self):
                raise IndexError(f"task {which} of a meta-batch of {len(self)}")
            which = slice(position, position + 1)
        return self._map(lambda leaf: leaf[which])

    def to(self, target: torch.device | torch.dtype | str) -> "TaskBatch":
        """The same tasks on another device, or in another floating type (whole numbers keep theirs)."""
        if isinstance(target, torch.dtype):
            return self._map(lambda leaf: leaf.to(target) if leaf.is_floating_point() else leaf)
        if torch.device(target).type == "cuda":  # only from pinned memory can a copy go on while the host does
            return self._map(lambda leaf: (leaf if leaf.is_cuda else leaf.pin_memory()).to(target, non_blocking=True))
        there = {leaf.device for f in fields(self) for leaf in _leaves(getattr(self, f.name))}
        return self if there == {torch.device(target)} else self._map(lambda leaf: leaf.to(target))

    def usable(self) -> "TaskBatch":
        """The same tasks in tensors that a graph may hold: those made under `inference_mode` copied."""
        made_there = any(leaf.is_inference() for f in fields(self) for leaf in _leaves(getattr(self, f.name)))
        return self._map(torch.clone) if made_there else self

    @property
    def values(self) -> int:
        """Numbers in the inputs of one task."""
        return sum(leaf[0].numel() for inputs in (self.support_x, self.query_x) for leaf in _leaves(inputs))

    def check_finite(self) -> None:
        """Look for values that are not finite.

        Raises:
            BadInput: a NaN or an infinity; names its field and task.
        """
        for field in fields(self):
            for leaf in _leaves(getattr(self, field.name)):
                bad = ~torch.isfinite(leaf.flatten(1)).all(dim=1) if leaf.numel() else torch.zeros(0, dtype=torch.bool)
                if bad.any():
                    raise BadInput(
                        f"{field.name} of task {int(bad.nonzero()[0])} in the meta-batch holds values that "
                        "are not finite (NaN or infinity); clean the data"
                    )

    @staticmethod
    def concatenate(batches: Sequence["TaskBatch"]) -> "TaskBatch":
        """One meta-batch of all tasks, in order.

        Raises:
            BadInput: none, or meta-batches that disagree in a shape beside the number of tasks.
        """
        if not batches:
            raise BadInput("no meta-batches to concatenate; give at least one")
        joined: dict[str, Any] = {}
        for field in fields(TaskBatch):
            parts = [_leaves(getattr(batch, field.name)) for batch in batches]
            shapes = {tuple(leaf.shape[1:] for leaf in leaves) for leaves in parts}
            if len(shapes) > 1:
                raise BadInput(
                    f"{field.name} differs in shape between the meta-batches to concatenate: "
                    f"{sorted(shapes)} after the task axis"
                )
            leaves = tuple(torch.cat(group) for group in zip(*parts, strict=True))
            joined[field.name] = leaves if isinstance(getattr(batches[0], field.name), tuple) else leaves[0]
        return TaskBatch(**joined)

    def _map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> "TaskBatch":
        mapped: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            mapped[field.name] = tuple(map(function, value)) if isinstance(value, tuple) else function(value)
        return TaskBatch(**mapped)


def _leaves(value: Inputs) -> tuple[torch.Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


def _all_tensors(value: object, may_be_tuple: bool) -> bool:
    if isinstance(value, tuple):
        return may_be_tuple and len(value) > 0 and all(isinstance(leaf, torch.Tensor) for leaf in value)
    return isinstance(value, torch.Tensor)


def _disagreement(batch: TaskBatch, name: str, leaf: torch.Tensor) -> str:
    shapes = "; ".join(
        f"{field.name} {' '.join(str(tuple(t.shape)) for t in _leaves(getattr(batch, field.name)))}"
        for field in fields(batch)
    )
    return (
        f"{name} of a TaskBatch has shape {tuple(leaf.shape)}, which does not agree with the others. Support "
        f"fields start with (tasks, support size), query fields with (tasks, query size). Got: {shapes}"
    )
