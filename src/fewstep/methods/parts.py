"""The remaining parts of a method: what is adapted, how norms behave, how the outer loop steps, how long a run is."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from fewstep.errors import BadInput, unknown
from fewstep.methods.records import Part
from fewstep.methods.schedules import Constant, RateSchedule

Statistics = Literal["batch", "running", "support", "frozen"]
Affine = Literal["shared", "per_step"]
Optimiser = Literal["adam", "sgd"]


class Adapted(Part, Protocol):
    """Chooses, from a model's parameter names, those that the inner loop updates."""

    def __call__(self, names: Sequence[str], norms: Collection[str]) -> list[str]: ...


@dataclass(frozen=True)
class All(Adapted):
    """The inner loop updates every parameter.

    Example:
        >>> All()(["conv.weight", "norm.weight"], norms={"norm.weight"})
        ['conv.weight', 'norm.weight']
    """

    def __call__(self, names: Sequence[str], norms: Collection[str]) -> list[str]:  # noqa: ARG002
        return list(names)


@dataclass(frozen=True)
class AllButNorm(Adapted):
    """The inner loop updates every parameter but the weights and biases of normalisation layers.

    What MAML's and MAML++'s released codes do; layers are recognised by their type, not by their name.

    Example:
        >>> AllButNorm()(["conv.weight", "norm.weight"], norms={"norm.weight"})
        ['conv.weight']
    """

    def __call__(self, names: Sequence[str], norms: Collection[str]) -> list[str]:
        return [name for name in names if name not in norms]


def _of_head(name: str, names: Sequence[str]) -> bool:
    """Whether a parameter belongs to the module that holds the model's last one."""
    return name.rpartition(".")[0] == names[-1].rpartition(".")[0]


@dataclass(frozen=True)
class Head(Adapted):
    """The inner loop updates the head alone: the module that holds the model's last parameter (ANIL, arXiv 1909.09157).

    Example:
        >>> Head()(["conv.weight", "head.weight", "head.bias"], norms=set())
        ['head.weight', 'head.bias']
    """

    def __call__(self, names: Sequence[str], norms: Collection[str]) -> list[str]:  # noqa: ARG002
        return [name for name in names if _of_head(name, names)]


@dataclass(frozen=True)
class Body(Adapted):
    """The inner loop updates all but the head and the norms (BOIL, arXiv 2008.08882).

    Example:
        >>> Body()(["conv.weight", "norm.weight", "head.weight"], norms={"norm.weight"})
        ['conv.weight']
    """

    def __call__(self, names: Sequence[str], norms: Collection[str]) -> list[str]:
        return [name for name in names if name not in norms and not _of_head(name, names)]


@dataclass(frozen=True)
class Matching(Adapted):
    """The inner loop updates the parameters whose name matches a pattern of the shell's kind.

    Arguments:
        patterns: `*` stands for any characters, as in `encoder.layers.3.*`.

    Example:
        >>> Matching(("*.bias",))(["conv.weight", "conv.bias"], norms=set())
        ['conv.bias']
    """

    patterns: tuple[str, ...]

    def __call__(self, names: Sequence[str], norms: Collection[str]) -> list[str]:  # noqa: ARG002
        return [name for name in names if any(fnmatchcase(name, pattern) for pattern in self.patterns)]


@dataclass(frozen=True)
class Norm(Part):
    """How normalisation layers behave in the inner loop.

    Arguments:
        affine: norm weights; with biases `shared` by all inner steps, or learned `per_step` (BNWB of MAML++).
        statistics: judged by, what batch norm normalises by when evaluating.
            `batch`: every forward pass by its own batch, so an answer depends on the other queries (transductive);
            `running`: running statistics, kept for every inner step (BNRS of MAML++);
            `support`: queries by the statistics of the support set, so an image gets one answer alone or in a crowd;
            `frozen`: the model's own running statistics, as a pretrained body has them.
            Training normalises by `support` and `frozen` under those policies, by the batch under the two others. A
            layer that is in evaluation mode keeps its own running statistics under every policy.
        momentum: weight of the newest outer step in the running statistics.

    Raises:
        BadInput: an unknown choice, a momentum outside 0 to 1.

    Source: Antoniou, Edwards, Storkey, arXiv 1810.09502.

    Example:
        >>> Norm(affine="per_step").statistics
        'batch'
    """

    affine: Affine = "shared"
    statistics: Statistics = "batch"
    momentum: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.momentum <= 1:
            raise BadInput(f"norm.momentum is {self.momentum}; it must lie between 0 and 1")
        for name, value, known in (("affine", self.affine, Affine), ("statistics", self.statistics, Statistics)):
            if value not in get_args(known):
                raise unknown(f"norm.{name}", value, get_args(known))


@dataclass(frozen=True)
class Outer(Part):
    """The outer step: an optimiser on the meta-gradient.

    Arguments:
        rate: outer rate, a schedule.
        betas: Adam's decay rates of the first and second moment.
        optimiser: `adam`, or `sgd`: meta ← meta − rate · gradient.
        clamp: clamp outer gradients to ± this. Every entry of those of the model's and norms' tensors; learned rates
            are left alone (the released MAML and MAML++ do this with 10 on mini-ImageNet).

    Raises:
        BadInput: a clamp that is not positive, an unknown optimiser.

    Example:
        >>> Outer(clamp=10.0).clamped({"model.w": torch.tensor(20.0), "rates.w": torch.tensor(20.0)})
        {'model.w': tensor(10.), 'rates.w': tensor(20.)}
    """

    rate: RateSchedule = field(default_factory=Constant)
    betas: tuple[float, float] = (0.9, 0.999)
    clamp: float | None = None
    optimiser: Optimiser = "adam"

    def __post_init__(self) -> None:
        if self.optimiser not in get_args(Optimiser):
            raise unknown("outer.optimiser", self.optimiser, get_args(Optimiser))
        if self.clamp is not None and not self.clamp > 0:
            raise BadInput(f"outer.clamp is {self.clamp}; it must be positive, or none")

    def optimizer(self, meta_parameters: dict[str, Tensor]) -> torch.optim.Optimizer:
        if self.optimiser == "sgd":
            return torch.optim.SGD(meta_parameters.values(), lr=self.rate(0.0))
        return torch.optim.Adam(meta_parameters.values(), lr=self.rate(0.0), betas=self.betas)

    def clamped(self, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.clamp is None:
            return gradients
        bound = self.clamp
        return {n: g if n.startswith("rates.") else g.clamp(-bound, bound) for n, g in gradients.items()}


@dataclass(frozen=True)
class Recipe(Part):
    """How long the published run is: what a training uses where the user says nothing.

    Arguments:
        epochs, iterations: outer steps are epochs × iterations; every epoch ends with a validation.
        tasks: tasks in a meta-batch.
        ensemble: how many of the best validation epochs the published number averages the logits of.

    Example:
        >>> Recipe(epochs=2, tasks=4)
        Recipe(epochs=2, iterations=500, tasks=4, ensemble=1)
    """

    epochs: int = 100
    iterations: int = 500
    tasks: int = 8
    ensemble: int = 1
