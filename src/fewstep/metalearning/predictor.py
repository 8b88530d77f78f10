"""`Predictor`: an adapted task."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fewstep.metalearning.functional import Functional, Setting
from fewstep.metalearning.inner_loop import MomentsByNorm, Parameters
from fewstep.metalearning.modes import own_modes, usable
from fewstep.metalearning.randomness import Keys


@dataclass(frozen=True)
class Predictor:
    """An adapted task: maps queries to outputs, the same ones whatever becomes of its learner.

    By default an output depends on its own query and the support set alone, never on the other queries.

    Arguments:
        forward, setting: the model as a function, and how its passes are taken.
        parameters: all parameters and buffers, adapted.
        given: moments that normalise the queries; their own batch's where None.
        keys, number: of the random numbers of its passes, where the model draws any in evaluation.

    Example:
        >>> import fewstep, torch
        >>> learner = fewstep.Learner(torch.nn.Linear(2, 3), fewstep.preset("maml"))
        >>> predictor = learner.adapt(torch.randn(3, 2), torch.arange(3))
        >>> predictor(torch.randn(7, 2)).shape
        torch.Size([7, 3])
    """

    forward: Functional
    setting: Setting
    parameters: Parameters
    given: MomentsByNorm | None = None
    keys: Keys = ()
    number: int = 0

    def __call__(self, query_x: Any) -> Tensor:
        """Outputs (Q, …) for queries (Q, …)."""
        with own_modes(next(iter(self.parameters.values())), False, self.setting.precision):
            return self.forward(
                self.parameters, usable(query_x), self.setting, self.given, self.keys, self.number
            ).output
