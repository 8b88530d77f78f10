"""Changes of a method as text, FIELD=VALUE: what `--set` takes and a run directory records."""

import json
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

from fewstep.errors import BadInput, unknown
from fewstep.methods.method import Method
from fewstep.methods.records import PARTS, fits, from_json, parts_of, required, to_json

SPELLED = {"True": True, "False": False, "None": None}  # as every other option spells them, beside JSON's own
LEVELS = 150  # a schedule chosen by its word changes at the epochs of MAML++'s published run


def changed(method: Method, change: str) -> Method:
    """The method with one field changed.

    Arguments:
        change: `FIELD=VALUE`. The field may be dotted; the value is a number, a word, the name of a part for the part
            at its defaults, the word of a part for what the option of that word does, or JSON.

    Raises:
        BadInput: an unknown field or part, a value that the field cannot hold.

    Example:
        >>> changed(Method(), "norm.affine=per_step").norm.affine
        'per_step'
        >>> changed(changed(Method(), "order=FirstOrder"), 'rule={"part": "Sgd", "rate": 0.2}').rule
        Sgd(rate=0.2)
    """
    path, equals, text = change.partition("=")
    if not equals:
        raise BadInput(f"--set {change}: write FIELD=VALUE, as in norm.affine=per_step")
    try:
        return put(method, path, _value(text), text)
    except BadInput as error:
        raise BadInput(f"--set {change}: {error}") from error


def put(method: Method, path: str, value: Any, text: str) -> Method:
    """The method with a value, or the part of a word, at a dotted path; `text` is how the user wrote it.

    Raises:
        BadInput: as `changed` does.
    """
    kind: Any = Method
    now: Any = method
    for name in path.split("."):
        names = [f.name for f in fields(now)] if is_dataclass(now) else []
        if name not in names:
            raise unknown(f"field of {type(now).__name__}", name, names)
        kind, now = get_type_hints(type(now))[name], getattr(now, name)
    if isinstance(value, str) and (known := parts_of(kind)):
        if value not in known:
            raise unknown(name.replace("_", " "), value, known)
        value = in_place_of(now, known[value])
    if not fits(value, kind):
        parts = ", ".join(part.__name__ for part in parts_of(kind).values())
        raise BadInput(f"{path} cannot be {text}; without it, it is {_text(now)}" + (parts and f"; known: {parts}"))
    return method.replace(**{path.replace(".", "__"): value})


def in_place_of(now: Any, kind: type) -> Any:
    """A part of another kind, with the numbers of the one it takes the place of where it has the same fields.

    Example:
        >>> in_place_of(PARTS["Sgd"](0.4), PARTS["PerLayerPerStep"])
        PerLayerPerStep(rate=0.4)
    """
    if absent := required(kind):
        raise BadInput(f"{kind.__name__} needs {', '.join(absent)}; write it as JSON")
    names = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    published = {"levels": LEVELS} if "levels" in names else {}
    return kind(**published | {f.name: getattr(now, f.name) for f in fields(now) if f.name in names})


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
        return from_json(json.loads(text))
    except json.JSONDecodeError:
        return from_json({"part": text}) if is_dataclass(PARTS.get(text)) else text


def _text(value: Any) -> str:
    """The shortest text of a value."""
    short = type(value).__name__ if is_dataclass(value) else str(value)
    try:
        if _value(short) == value:
            return short
    except BadInput:
        pass  # a part that has no defaults
    return json.dumps(to_json(value))
