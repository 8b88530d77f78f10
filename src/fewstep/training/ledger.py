"""What outer steps gave, kept on the device until somebody reads it: reading waits for the device."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from fewstep.errors import BadInput
from fewstep.metalearning.learner import Learner, MetaGradient
from fewstep.tasks.batch import TaskBatch


def waits(device: torch.device) -> bool:
    """Whether results exist once a call returns, so that looking at them costs nothing."""
    return device.type == "cpu"


@dataclass
class Sums:
    """Running sums of a training record: over outer steps since the last one."""

    steps: int = 0
    loss: float = 0.0
    accuracy: float = 0.0
    seconds: float = 0.0


class Ledger:
    """Losses, accuracies and finiteness of outer steps.

    On a CPU every step is read before it is applied. Elsewhere steps are read some at a time; where one of them was not
    finite, the learner goes back to what it was when the ledger was last read, and nothing later is kept.

    Arguments:
        learner: what is trained. iterations: outer steps in an epoch.
        drawn: the meta-batch of an outer step, drawn anew to look for the reason.
        sums: those of the training record in the making.
    """

    def __init__(self, learner: Learner, iterations: int, drawn: Callable[[int], TaskBatch], sums: Sums | None = None):
        self.learner, self.iterations, self.drawn = learner, iterations, drawn
        self.sums = sums or Sums()
        self.at_once = waits(learner.device)
        self._rows: list[tuple[int, Tensor]] = []  # step; loss, accuracy, then 1.0 for each tensor that is finite
        self._names: list[str] = []
        self._good = self._state()

    def _state(self) -> dict[str, Tensor]:
        return {} if self.at_once else {n: t.clone() for n, t in self.learner.state_dict().items()}

    @torch.no_grad()
    def note(self, step: int, result: MetaGradient, targets: Tensor) -> None:
        """Enter an outer step, before it is applied.

        Raises:
            BadInput: on a CPU, where it is not finite.
        """
        tensors = {"the meta-loss": result.loss, **{f"the gradient of {n}": g for n, g in result.gradients.items()}}
        self._names = list(tensors)
        finite = torch.stack([t.isfinite().all() for t in tensors.values()])
        row = torch.stack([result.loss.double(), accuracy(result.query_logits, targets)])
        self._rows.append((step, torch.cat([row, finite.double()])))
        if self.at_once:
            self.read()

    def read(self) -> None:
        """Add what was entered to the sums.

        Raises:
            BadInput: a step that is not finite.
        """
        rows, self._rows, sums = self._rows, [], self.sums
        for (step, _), row in zip(rows, torch.stack([r for _, r in rows]).tolist() if rows else [], strict=True):
            loss, correct, *finite = row
            if not all(finite):
                self._stop(step, self._names[finite.index(0.0)])
            sums.steps += 1
            sums.loss += loss
            sums.accuracy += correct
        self._good = self._state()

    def close(self, tasks: int) -> dict[str, Any]:
        """What a record says of the steps since the last one, of so many tasks each; the next sums begin."""
        sums, self.sums = self.sums, Sums()
        return {
            "loss": sums.loss / sums.steps,
            "accuracy": None if math.isnan(sums.accuracy) else sums.accuracy / sums.steps,  # None: of real targets
            "tasks_per_second": sums.steps * tasks / max(sums.seconds, 1e-9),
        }

    @torch.no_grad()
    def _stop(self, step: int, name: str) -> NoReturn:
        """Undo what came after the last good step, and say where the trouble began."""
        for key, tensor in self.learner.state_dict().items():
            if key in self._good:
                tensor.copy_(self._good[key])
        self.drawn(step).check_finite()
        raise BadInput(
            f"{name} is not finite in epoch {step // self.iterations}, outer step {step}: the training diverged. "
            "Nothing of this step was applied and the last checkpoint is kept. Use a lower inner rate than "
            f"{self.learner.method.rule}, or a lower outer rate"
        )


def accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """The fraction of right answers; NaN for real targets."""
    if targets.is_floating_point():
        return logits.new_full((), float("nan"), dtype=torch.float64)
    return (logits.argmax(2) == targets).double().mean()
