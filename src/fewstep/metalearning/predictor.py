"""`Predictor`: an adapted task."""

from typing import Any

import torch
from torch import Tensor

from fewstep.metalearning.functional import Functional, Statistics
from fewstep.metalearning.inner_loop import Parameters
from fewstep.metalearning.precision import products


class Predictor:
    """An adapted task: maps queries to outputs.

    By default an output depends on its own query and the support set alone, never on the other queries.

    Arguments:
        forward, parameters: the model and its adapted parameters.
        given: statistics that normalise the queries; their own batch where None.

    Example:
        >>> import fewstep
        >>> learner = fewstep.Learner(torch.nn.Linear(2, 3), fewstep.preset("maml"))
        >>> predictor = learner.adapt(torch.randn(3, 2), torch.arange(3))
        >>> predictor(torch.randn(7, 2)).shape
        torch.Size([7, 3])
    """

    def __init__(self, forward: Functional, parameters: Parameters, given: Statistics | None):
        self.parameters = parameters
        self._forward, self._given = forward, given

    @torch.no_grad()
    def __call__(self, query_x: Any) -> Tensor:
        """Outputs (Q, …) for queries (Q, …)."""
        self._forward.train_like(None)
        with products(self._forward.precision, next(iter(self.parameters.values())).device):
            return self._forward(self.parameters, query_x, self._given)[0]
