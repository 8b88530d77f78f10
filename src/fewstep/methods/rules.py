"""Inner rules: how one inner step turns fast weights and their gradients into new fast weights.

A rule is a pair of pure functions on dictionaries of tensors, keyed by parameter name:

    rates(fast, steps)                      the meta-parameters it learns, at their initial values (may be none)
    update(fast, gradients, rates, step)    the fast weights after inner step `step`

Steps beyond those trained for reuse the last row of a rate that has one row a step.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fewstep.errors import BadInput
from fewstep.methods.records import Part

Weights = Mapping[str, Tensor]


def row(rows: Tensor, step: int) -> Tensor:
    """Row `step` of a per-step tensor (steps, …); the last row for every later step."""
    return rows[min(step, len(rows) - 1)]


def _check_rate(part: object, *rates: float) -> None:
    if not all(map(math.isfinite, rates)):
        raise BadInput(f"{type(part).__name__}: a rate must be a finite number")


class Rule(Part, Protocol):
    """An inner rule: the rates that it learns, and one step with them.

    Example:
        >>> rule: Rule = PerLayerPerStep(0.5)
        >>> weights, gradients = {"w": torch.tensor(1.0)}, {"w": torch.tensor(0.2)}
        >>> rule.update(weights, gradients, rule.rates(weights, steps=1), step=0)
        {'w': tensor(0.9000)}
    """

    def rates(self, fast: Weights, steps: int) -> dict[str, Tensor]:
        """The meta-parameters that it learns, at their initial values; may be none."""
        ...

    def update(self, fast: Weights, gradients: Weights, rates: Weights, step: int) -> dict[str, Tensor]:
        """The fast weights after inner step `step`."""
        ...


@dataclass(frozen=True)
class Sgd(Rule):
    """Gradient descent with one fixed rate (MAML, arXiv 1703.03400).

        θ ← θ − α ∇L

    Arguments:
        rate: inner learning rate, or where learned ones start. It is α for a loss that is a mean over the support set;
            codes that sum over ways need α / ways.

    Example:
        >>> Sgd(0.5).update({"w": torch.tensor(1.0)}, {"w": torch.tensor(0.2)}, {}, 0)
        {'w': tensor(0.9000)}
    """

    rate: float = 0.1

    def __post_init__(self) -> None:
        _check_rate(self, self.rate)

    def rates(self, fast: Weights, steps: int) -> dict[str, Tensor]:  # noqa: ARG002 - learns none
        return {}

    def update(self, fast: Weights, gradients: Weights, rates: Weights, step: int) -> dict[str, Tensor]:  # noqa: ARG002
        return {name: torch.sub(weight, gradients[name], alpha=self.rate) for name, weight in fast.items()}


@dataclass(frozen=True)
class PerParameter(Rule):
    """A learned rate for every scalar of the adapted parameters (Meta-SGD, arXiv 1707.09835).

        θ ← θ − α ∘ ∇L

    The rates may become negative; nothing clamps or decays them.

    Arguments:
        low, high: every rate starts uniformly between them.

    Example:
        >>> PerParameter(0.1, 0.1).rates({"w": torch.zeros(2)}, steps=1)
        {'w': tensor([0.1000, 0.1000])}
    """

    low: float = 0.005
    high: float = 0.1

    def __post_init__(self) -> None:
        _check_rate(self, self.low, self.high)

    def rates(self, fast: Weights, steps: int) -> dict[str, Tensor]:  # noqa: ARG002 - the same at every step
        return {name: torch.empty_like(weight).uniform_(self.low, self.high) for name, weight in fast.items()}

    def update(self, fast: Weights, gradients: Weights, rates: Weights, step: int) -> dict[str, Tensor]:  # noqa: ARG002
        return {name: torch.addcmul(weight, rates[name], gradients[name], value=-1) for name, weight in fast.items()}


@dataclass(frozen=True)
class PerLayerPerStep(Rule):
    """A learned rate for every parameter tensor and inner step (LSLR of MAML++, arXiv 1810.09502).

        θ_l ← θ_l − α_{l,i} ∇_l L        at inner step i, for tensor l

    The rates may become negative; nothing clamps or decays them.

    Arguments:
        rate: the initial value of every α_{l,i}.

    Example:
        >>> PerLayerPerStep(0.1).rates({"w": torch.zeros(3, 3)}, steps=2)
        {'w': tensor([0.1000, 0.1000])}
    """

    rate: float = 0.1

    def __post_init__(self) -> None:
        _check_rate(self, self.rate)

    def rates(self, fast: Weights, steps: int) -> dict[str, Tensor]:
        return {name: weight.new_full((max(steps, 1),), self.rate) for name, weight in fast.items()}

    def update(self, fast: Weights, gradients: Weights, rates: Weights, step: int) -> dict[str, Tensor]:
        return {
            name: torch.addcmul(weight, row(rates[name], step), gradients[name], value=-1)
            for name, weight in fast.items()
        }
