"""Records that methods are made of: which parts there are, what fields may hold, their JSON and what they are for.

A new part is one frozen dataclass that subclasses its family: `--set`, JSON and help find it by that.
"""

import inspect
import re
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import UnionType
from typing import Any, ClassVar, Literal, Protocol, TypeVar, Union, get_args, get_origin, get_type_hints

from fewstep.errors import BadInput, unknown

PARTS: dict[str, type["Part"]] = {}  # by the name of the class; families are in it too
WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
T = TypeVar("T")


class Part(Protocol):
    """What a `Method` is made of: a family is a protocol that subclasses it, a part a frozen dataclass of a family.

    Arguments:
        word: what an option calls the part; if not given, the name of its class in lower case with dashes.

    Raises:
        BadInput: another module has a part of this name, which the JSON of methods means by it.
    """

    word: ClassVar[str] = ""

    def __init_subclass__(cls, word: str = "", **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.word = word or re.sub(r"(?<=.)(?=[A-Z])", "-", cls.__name__).lower()
        if (there := PARTS.get(cls.__name__, cls)).__module__ != cls.__module__:
            raise BadInput(f"{there.__module__} has a part {cls.__name__}; give this one another name")
        PARTS[cls.__name__] = cls


def parts_of(family: Any) -> dict[str, type[Part]]:
    """The parts of a family by their words; none where the type is no family.

    Example:
        >>> from fewstep.methods.rules import Rule
        >>> list(parts_of(Rule))[:3]
        ['sgd', 'per-parameter', 'per-layer-per-step']
    """
    return {p.word: p for p in PARTS.values() if is_dataclass(p) and family in p.__mro__[1:] and family is not Part}


def required(kind: Any) -> list[str]:
    """The fields of a record that have no default."""
    return [f.name for f in fields(kind) if f.default is f.default_factory is MISSING]


def fits(value: Any, kind: Any) -> bool:
    """Whether a field of this type may hold the value; a whole number is a float too, but no bool is a number.

    Example:
        >>> fits(3, float | None), fits(True, int), fits(("a",), tuple[str, ...])
        (True, False, True)
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return value in inner
    if origin in (Union, UnionType):
        return any(fits(value, one) for one in inner)
    if origin is tuple:
        kinds = inner[:1] * len(value) if isinstance(value, tuple) and inner[1:] == (...,) else inner
        return isinstance(value, tuple) and len(value) == len(kinds) and all(map(fits, value, kinds))
    if kind is float:
        return fits(value, int) or isinstance(value, float)
    return kind in type(value).__mro__ and (kind is bool or not isinstance(value, bool))


def choices(kind: Any) -> list[str]:
    """The strings that a field of this type may hold, where they are given."""
    return [c for one in (kind, *get_args(kind)) if get_origin(one) is Literal for c in get_args(one)]


def check(kind: type, values: Mapping[str, Any]) -> None:
    """Check values against the fields of a record.

    Raises:
        BadInput: an unknown field, a value that its field cannot hold; names the nearest.
    """
    hints = get_type_hints(kind)
    for name, value in values.items():
        if name not in (names := [f.name for f in fields(kind)]):  # type: ignore[arg-type]
            raise unknown(f"field of {kind.__name__}", name, names)
        if not fits(value, hints[name]):
            if isinstance(value, str) and choices(hints[name]):
                raise unknown(name.replace("_", " "), value, choices(hints[name]))
            kinds = [WORDS[one] for one in (hints[name], *get_args(hints[name])) if one in WORDS]
            raise BadInput(f"{name} is {value!r}; it must be {kinds[0] if kinds else hints[name]}")


def to_json(value: Any) -> Any:
    """A method or a part as JSON values; `built` gives the equal record back.

    Example:
        >>> from fewstep.methods import Sgd
        >>> to_json(Sgd(0.1))
        {'part': 'Sgd', 'rate': 0.1}
    """
    if is_dataclass(value) and not isinstance(value, type):
        named = {"part": type(value).__name__} if Part in type(value).__mro__ else {}
        return named | {f.name: to_json(getattr(value, f.name)) for f in fields(value)}
    return list(value) if isinstance(value, tuple) else value


def built(kind: type[T], record: Mapping[str, Any]) -> T:
    """The record of a kind that `to_json` wrote.

    Raises:
        BadInput: an unknown field or part, one that lacks, a value that its field cannot hold.
    """
    values = {name: from_json(value) for name, value in record.items()}
    check(kind, values)
    if absent := set(required(kind)) - set(values):
        raise BadInput(f"{dict(record)} is no {kind.__name__}: it lacks {', '.join(sorted(absent))}")
    return kind(**values)


def from_json(value: Any) -> Any:
    """A part, or a plain value, that `to_json` wrote.

    Raises:
        BadInput: an unknown field or part, one that lacks, a value that its field cannot hold.
    """
    if not isinstance(value, dict):
        return tuple(value) if isinstance(value, list) else value
    known = {name: kind for name, kind in PARTS.items() if is_dataclass(kind)}
    if (name := str(value.get("part"))) not in known:
        raise unknown("part", name, known)
    return built(known[name], {field: inside for field, inside in value.items() if field != "part"})


def arguments(kind: type) -> dict[str, str]:
    """What the docstrings of a record and of its bases say of its fields under `Arguments:`.

    Example:
        >>> from fewstep.methods import Cosine
        >>> arguments(Cosine)["levels"]
        'epochs of the published run, see the module.'
    """
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        block = inspect.cleandoc(base.__doc__ or "").partition("Arguments:\n")[2].partition("\n\n")[0]
        for names, text in re.findall(r"^    (\w[\w, ]*): (.*(?:\n     .*)*)", block, flags=re.MULTILINE):
            found.update(dict.fromkeys(names.split(", "), " ".join(text.split())))
    return found
