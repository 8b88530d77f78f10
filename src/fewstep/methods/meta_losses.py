"""Meta-losses: what of an adapted task the outer loop makes smaller."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fewstep.methods.records import Part


class MetaLoss(Part, Protocol):
    """The loss of one task after an inner step, from its query loss, and the weights before and after adapting."""

    def __call__(self, query_loss: Tensor, start: Mapping[str, Tensor], adapted: Mapping[str, Tensor]) -> Tensor: ...


@dataclass(frozen=True)
class QueryLoss(MetaLoss):
    """The loss on the queries (MAML, arXiv 1703.03400).

    Example:
        >>> QueryLoss()(torch.tensor(0.5), {}, {})
        tensor(0.5000)
    """

    def __call__(self, query_loss: Tensor, start: Mapping[str, Tensor], adapted: Mapping[str, Tensor]) -> Tensor:  # noqa: ARG002
        return query_loss


@dataclass(frozen=True)
class Distance(MetaLoss):
    """How far adapting moves the weights (Reptile, arXiv 1803.02999); labels of queries are not looked at.

        ½ ‖θ − θ_N‖²  over the adapted parameters, whose gradient with θ_N a constant is θ − θ_N

    Arguments:
        detached: take θ_N as a constant, as Reptile does; otherwise differentiate through it.

    Example:
        >>> Distance()(torch.tensor(0.5), {"w": torch.tensor(3.0)}, {"w": torch.tensor(1.0)})
        tensor(2.)
    """

    detached: bool = True

    def __call__(self, query_loss: Tensor, start: Mapping[str, Tensor], adapted: Mapping[str, Tensor]) -> Tensor:  # noqa: ARG002
        moved = (start[name] - (end.detach() if self.detached else end) for name, end in adapted.items())
        return torch.stack([difference.square().sum() for difference in moved]).sum() / 2
