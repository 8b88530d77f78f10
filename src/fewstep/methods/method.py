"""`Method`: orthogonal choices, and the difference of two methods."""

import dataclasses
from dataclasses import dataclass, field, fields
from typing import Any

from fewstep.errors import BadInput, unknown
from fewstep.methods import meta_losses, parts, rules, schedules
from fewstep.methods.records import built, check
from fewstep.methods.sharpness import Sharpness


@dataclass(frozen=True)
class Method:
    """A gradient-based meta-learning algorithm, as a record of its parts.

        θ_{i+1} = rule(θ_i, ∇L_support(θ_i))  on the adapted parameters, i = 0 … steps−1
        meta-loss = mean over tasks of Σ_i w_i(p) meta_loss(θ_{i+1}),   outer step on its gradient of order `order(p)`

    Arguments:
        name: what results and reports call it; nothing depends on it.
        steps: inner steps. N while training; evaluation uses as many unless told otherwise.
        rule: inner update, and the rates it learns.
        adapted: in the inner loop, which parameters it updates.
        order: derivative order, of the meta-gradient by progress.
        step_weights: query losses, their weights after each inner step by progress.
        meta_loss: what the outer loop makes smaller: the query loss, or the distance to the adapted weights.
        norm: per-step or shared affine weights; which statistics.
        sharpness: radii of perturbations at the inner and outer loop.
        outer: optimiser, its schedule, gradient clamp.
        recipe: length of the published run.

    Raises:
        BadInput: steps that are no whole number from 0 up.

    Example:
        >>> import fewstep
        >>> fewstep.preset("maml", steps=3).steps
        3
    """

    name: str = "maml"
    steps: int = 5
    rule: rules.Rule = field(default_factory=rules.Sgd)
    adapted: parts.Adapted = field(default_factory=parts.AllButNorm)
    order: schedules.OrderSchedule = field(default_factory=schedules.SecondOrder)
    step_weights: schedules.StepWeights = field(default_factory=schedules.LastStep)
    meta_loss: meta_losses.MetaLoss = field(default_factory=meta_losses.QueryLoss)
    norm: parts.Norm = field(default_factory=parts.Norm)
    sharpness: Sharpness = field(default_factory=Sharpness)
    outer: parts.Outer = field(default_factory=parts.Outer)
    recipe: parts.Recipe = field(default_factory=parts.Recipe)

    def __post_init__(self) -> None:
        check(Method, {"steps": self.steps})
        if self.steps < 0:
            raise BadInput(f"steps is {self.steps}; a method takes zero or more inner steps")

    def replace(self, **changes: Any) -> "Method":
        """The method with other parts; names may be dotted with `__`, as in `norm__affine="per_step"`.

        Example:
            >>> Method().replace(steps=1, norm__affine="per_step").norm.affine
            'per_step'
        """
        result = self
        for path, value in changes.items():
            result = _with(result, path.split("__"), value)
        return result


def _with(record: Any, path: list[str], value: Any) -> Any:
    head, *rest = path
    names = [f.name for f in fields(record)]
    if head not in names:
        raise unknown(f"field of {type(record).__name__}", head, names)
    return dataclasses.replace(record, **{head: _with(getattr(record, head), rest, value) if rest else value})


def differences(method: Method, base: Method) -> dict[str, tuple[Any, Any]]:
    """The choices in which two methods differ: {field: (in method, in base)}; norm, sharpness, outer field by field.

    Name and recipe are not choices of the algorithm and are left out.

    Example:
        >>> list(differences(Method(steps=1, norm=parts.Norm(affine="per_step")), Method()))
        ['steps', 'norm__affine']
    """
    found: dict[str, tuple[Any, Any]] = {}
    for f in fields(Method):
        ours, theirs = getattr(method, f.name), getattr(base, f.name)
        if f.name in ("norm", "sharpness", "outer"):
            pairs = {f"{f.name}__{g.name}": (getattr(ours, g.name), getattr(theirs, g.name)) for g in fields(ours)}
            found.update({path: pair for path, pair in pairs.items() if pair[0] != pair[1]})
        elif f.name not in ("name", "recipe") and ours != theirs:
            found[f.name] = (ours, theirs)
    return found


def from_json(record: dict[str, Any]) -> Method:
    """The method that `to_json` wrote.

    Raises:
        BadInput: unknown fields or parts, values that a field cannot hold; names the nearest.

    Example:
        >>> from_json({"steps": 3}).steps
        3
    """
    return built(Method, record)
