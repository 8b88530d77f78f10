"""Ablation: the methods that lie between two, one choice of difference at a time."""

from dataclasses import dataclass, field
from typing import Any

from fewstep.errors import BadInput
from fewstep.methods.method import Method, differences
from fewstep.methods.parts import Recipe

# What the literature calls a choice, so that rows can be found in its tables.
KNOWN_AS = {
    "Annealed": "MSL",
    "FirstThenSecond": "DA",
    "running": "BNRS",
    "per_step": "BNWB",
    "PerLayerPerStep": "LSLR",
    "Cosine": "CA",
}


@dataclass(frozen=True)
class Variant:
    """A row of an ablation: one of the two methods, with at most one field as in the other.

    Arguments:
        name: what tables call it.
        of_base: whether it starts from the base, not from the method.
        path, value: the field, as `differences` names it, and what is put there; no path for the method and the base.
        method: the whole.

    Example:
        >>> Variant("maml", True, Method()).path
        ''
    """

    name: str
    of_base: bool
    method: Method
    path: str = ""
    value: Any = field(default=None, compare=False)


def ablation(method: Method, base: Method) -> tuple[list[Variant], dict[str, str]]:
    """The method, the method without each choice, the base with each alone, the base; equal ones once.

    Returns:
        The variants, and {name left out: name of its equal}.

    Raises:
        BadInput: two methods that do not differ.

    Example:
        >>> import fewstep
        >>> [v.name for v in ablation(fewstep.preset("fomaml"), fewstep.preset("maml"))[0]]
        ['fomaml', 'maml']
    """
    found = differences(method, base)
    if not found:
        raise BadInput(f"{method.name} does not differ from {base.name}: there is nothing to ablate")
    called = {path: _called(path, ours) for path, (ours, _) in found.items()}
    ends = [Variant(method.name, False, method), Variant(base.name, True, base)]
    between = [
        Variant(f"{method.name} without {called[path]}", False, method.replace(**{path: theirs}), path, theirs)
        for path, (_, theirs) in found.items()
    ] + [
        Variant(f"{base.name} with {called[path]}", True, base.replace(**{path: ours}), path, ours)
        for path, (ours, _) in found.items()
    ]
    seen = {_choices(v.method): v.name for v in (*between[::-1], *ends)}
    kept = [v for v in (ends[0], *between, ends[1]) if seen[_choices(v.method)] == v.name]
    equal = {v.name: seen[_choices(v.method)] for v in between if v not in kept}
    return kept, equal


def _choices(method: Method) -> Method:
    """The method without what is no choice of the algorithm."""
    return method.replace(name="", recipe=Recipe())


def _called(path: str, value: Any) -> str:
    short = KNOWN_AS.get(value if isinstance(value, str) else type(value).__name__)
    return path.replace("__", ".") + (f" ({short})" if short else "")
