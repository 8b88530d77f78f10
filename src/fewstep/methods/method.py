"""`Method`: orthogonal choices, and the difference of two methods."""

import dataclasses
from dataclasses import dataclass, field, fields
from typing import Any

from fewstep.errors import BadInput, unknown
from fewstep.methods import meta_losses, parts, rules, schedules
from fewstep.methods.sharpness import Sharpness

FAMILIES: dict[Any, tuple[type, ...]] = {
    rules.Rule: (rules.Sgd, rules.PerParameter, rules.PerLayerPerStep),
    parts.Adapted: (parts.All, parts.AllButNorm, parts.Head, parts.Body, parts.Matching),
    schedules.OrderSchedule: (schedules.SecondOrder, schedules.FirstOrder, schedules.FirstThenSecond),
    schedules.StepWeights: (schedules.LastStep, schedules.Uniform, schedules.Annealed),
    schedules.RateSchedule: (schedules.Constant, schedules.Cosine, schedules.Linear),
    meta_losses.MetaLoss: (meta_losses.QueryLoss, meta_losses.Distance),
}
"""From what a part must do to the parts that do it."""

PARTS: dict[str, type] = {
    kind.__name__: kind
    for family in (*FAMILIES.values(), (parts.Norm, Sharpness, parts.Outer, parts.Recipe))
    for kind in family
}


@dataclass(frozen=True)
class Method:
    """A gradient-based meta-learning algorithm, as a record of its parts.

        θ_{i+1} = rule(θ_i, ∇L_support(θ_i))  on the adapted parameters, i = 0 … steps−1
        meta-loss = mean over tasks of Σ_i w_i(p) meta_loss(θ_{i+1}),   outer step on its gradient of order `order(p)`

    Arguments:
        name: what results and reports call it; nothing depends on it.
        steps: inner steps N while training; evaluation uses as many unless told otherwise.
        rule: the inner update and the rates it learns.
        adapted: which parameters the inner loop updates.
        order: derivative order of the meta-gradient, by progress.
        step_weights: weights of the meta-losses after each inner step, by progress.
        meta_loss: what the outer loop makes smaller: the query loss, or the distance to the adapted weights.
        norm: per-step or shared affine weights; which statistics.
        sharpness: radii of perturbations at the inner and outer loop.
        outer: optimiser, its schedule, gradient clamp.
        recipe: length of the published run.

    Raises:
        BadInput: negative steps.

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


def to_json(value: Any) -> Any:
    """A method or a part as JSON values; `from_json` gives the equal record back."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        record = {f.name: to_json(getattr(value, f.name)) for f in fields(value)}
        return record if isinstance(value, Method) else {"part": type(value).__name__, **record}
    return list(value) if isinstance(value, tuple) else value


def from_json(record: dict[str, Any]) -> Method:
    """The method that `to_json` wrote.

    Raises:
        BadInput: an unknown part or field.

    Example:
        >>> from_json(to_json(Method())) == Method()
        True
    """
    return _build(Method, record)


def part_from_json(value: Any) -> Any:
    """A part, or a plain value, that `to_json` wrote.

    Raises:
        BadInput: an unknown part or field, values that the part cannot take.

    Example:
        >>> part_from_json({"part": "Sgd", "rate": 0.5})
        Sgd(rate=0.5)
    """
    if isinstance(value, dict):
        if value.get("part") not in PARTS:
            raise unknown("part", str(value.get("part")), PARTS)
        return _build(PARTS[value["part"]], value)
    return tuple(value) if isinstance(value, list) else value


def _build(kind: type, record: dict[str, Any]) -> Any:
    names = [f.name for f in fields(kind)]
    values = {}
    for name, value in record.items():
        if name == "part":
            continue
        if name not in names:
            raise unknown(f"field of {kind.__name__}", name, names)
        values[name] = part_from_json(value)
    try:
        return kind(**values)
    except TypeError as error:
        raise BadInput(f"{record} is no {kind.__name__}: {error}") from error
