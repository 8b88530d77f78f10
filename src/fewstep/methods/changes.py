"""Changes of a method as text, FIELD=VALUE: what `--set` takes and a run directory records."""

import json
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from fewstep.errors import BadInput, unknown
from fewstep.methods.method import FAMILIES, PARTS, Method, part_from_json, to_json

SPELLED = {"True": True, "False": False, "None": None}  # as every other option spells them, beside JSON's own


def changed(method: Method, change: str) -> Method:
    """The method with one field changed.

    Arguments:
        change: `FIELD=VALUE`. The field may be dotted; the value is a number, a word, the name of a part for the part
            at its defaults, or JSON.

    Raises:
        BadInput: an unknown field or part, a value that the field cannot take.

    Example:
        >>> changed(Method(), "norm.affine=per_step").norm.affine
        'per_step'
        >>> changed(changed(Method(), "order=FirstOrder"), 'rule={"part": "Sgd", "rate": 0.2}').rule
        Sgd(rate=0.2)
    """
    path, equals, text = change.partition("=")
    if not equals:
        raise BadInput(f"--set {change}: write FIELD=VALUE, as in norm.affine=per_step")
    value, kind, now = _value(text), Method, method
    for name in path.split("."):
        names = [f.name for f in fields(now)] if is_dataclass(now) else []
        if name not in names:
            raise unknown(f"field of {type(now).__name__}", name, names)
        kind, now = get_type_hints(type(now))[name], getattr(now, name)
    if not _fits(value, kind):
        known = f"; known: {', '.join(part.__name__ for part in FAMILIES[kind])}" if kind in FAMILIES else ""
        raise BadInput(f"--set {change}: {path} cannot be {text}; without it, it is {_text(now)}{known}")
    return method.replace(**{path.replace(".", "__"): value})


def as_change(path: str, value: Any) -> str:
    """The text by which `changed` puts a value at a path, as `differences` names it.

    Example:
        >>> as_change("outer__clamp", None), as_change("order", PARTS["SecondOrder"]())
        ('outer.clamp=None', 'order=SecondOrder')
    """
    return f"{path.replace('__', '.')}={_text(value)}"


def _value(text: str) -> Any:
    if text in SPELLED:
        return SPELLED[text]
    try:
        return part_from_json(json.loads(text))
    except ValueError as error:
        if isinstance(error, BadInput):
            raise
        return part_from_json({"part": text}) if text in PARTS else text


def _text(value: Any) -> str:
    """The shortest text of a value."""
    short = type(value).__name__ if is_dataclass(value) else str(value)
    try:
        if _value(short) == value:
            return short
    except BadInput:
        pass  # a part that has no defaults
    return json.dumps(to_json(value))


def _fits(value: Any, kind: Any) -> bool:
    """Whether a field of this type may hold the value."""
    if kind in FAMILIES:
        return isinstance(value, FAMILIES[kind])
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return value in inner
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is tuple:
        kinds = inner[:1] * len(value) if isinstance(value, tuple) and inner[1:] == (...,) else inner
        return isinstance(value, tuple) and len(value) == len(kinds) and all(map(_fits, value, kinds))
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
