"""Sharpness: take gradients at the worst point of a small ball around the weights."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.errors import BadInput
from fewstep.methods.records import Part


@dataclass(frozen=True)
class Sharpness(Part):
    """Radii of the perturbations at the inner and at the outer loop; zero is none.

        ε = ρ g / ‖g‖,   or adaptive  ε = ρ |w|² g / ‖ |w| g ‖,   with one norm over all tensors together

    The inner one is taken over the adapted tensors anew at every inner step, whose gradient is then that at θ + ε,
    applied to θ. The outer one is taken over the model's and norms' meta-parameters from a full pass over the
    meta-batch; a second pass there, over the same tasks, gives the gradient that reaches the optimiser.

    Arguments:
        inner: sharpness radius ρ at the inner loop; 0 is none.
        outer: sharpness radius ρ at the outer loop; 0 is none.
        adaptive: True: radii scale with the weights (ASAM).
        detached: True: the inner perturbation is a constant. Sharp-MAML's code differentiates through it.

    Raises:
        BadInput: a negative radius.

    Source:
        Foret et al., arXiv 2010.01412 (SAM); Kwon et al., arXiv 2102.11600 (ASAM); Abbas et al., arXiv 2206.03996
        (Sharp-MAML, steps (11) to (15)).

    Example:
        >>> Sharpness(inner=0.5).perturbation({"w": torch.ones(2)}, {"w": torch.tensor([3.0, 4.0])}, 0.5)
        {'w': tensor([0.3000, 0.4000])}
    """

    inner: float = 0.0
    outer: float = 0.0
    adaptive: bool = False
    detached: bool = False

    def __post_init__(self) -> None:
        if not (self.inner >= 0 and self.outer >= 0):
            raise BadInput(f"sharpness radii are {self.inner} and {self.outer}; they must not be negative")

    def perturbation(
        self, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor], radius: float
    ) -> dict[str, Tensor]:
        """ε for these weights; zero where the gradient is zero."""
        scaled = {n: weights[n].abs() * g if self.adaptive else g for n, g in gradients.items()}
        square = torch.stack([s.square().sum() for s in scaled.values()]).sum()
        # At a zero gradient the norm has no derivative; ε is zero there with any norm.
        factor = radius / torch.where(square > 0, square, torch.ones_like(square)).sqrt()
        return {n: factor * (weights[n].abs() * s if self.adaptive else s) for n, s in scaled.items()}
