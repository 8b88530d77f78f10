"""`--config file.toml`: options from a file, laid under those of the command line."""

import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from fewstep.errors import BadInput, unknown
from fewstep.methods.records import check

LARGEST = 1_000_000  # bytes of a file


def laid(arguments: list[str], verb: type) -> dict[str, Any]:
    """The options of a verb that stand in the file after `--config`; none where there is no such argument.

    Raises:
        BadInput: no such file, no TOML, a key that is no option (names the nearest), a value that it cannot take.

    Example:
        >>> laid(["maml"], object)
        {}
    """
    words: list[str] = []
    for argument in arguments:
        words += argument.split("=", 1) if argument.startswith("--config=") else [argument]
    path = dict(pairwise(words)).get("--config")
    if path is None:
        return {}
    known, values = get_type_hints(verb), {}
    for key, value in _read(path).items():
        name = key.replace("-", "_")
        if name not in known or name == "config":
            raise unknown(f"key in {path}:", key, [k.replace("_", "-") for k in known if k != "config"])
        values[name] = _as(known[name], value)
        if isinstance(value, dict) or (isinstance(value, list) and not isinstance(values[name], tuple)):
            raise BadInput(f"{path}: {key} is a table or list; options are single values")
        try:
            check(verb, {name: values[name]})
        except BadInput as error:
            raise BadInput(f"{path}: --{name.replace('_', '-')}: {error}") from error
    return values


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise ValueError(f"it is larger than {LARGEST} bytes")
        return tomllib.loads(content.decode())
    except OSError as error:
        raise BadInput(f"--config {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise BadInput(f"--config {path} is not TOML: {error}") from error


def _as(kind: Any, value: Any) -> Any:
    """A value of TOML as a field of this type holds it, where TOML has no such values."""
    if get_origin(kind) is tuple:
        return tuple(value) if isinstance(value, list) else (value,)
    if Path in (kind, *get_args(kind)) and isinstance(value, str):
        return Path(value)
    if float in (kind, *get_args(kind)) and type(value) is int:
        return float(str(value))  # as the command line reads it: infinity where float(value) would overflow
    return value
