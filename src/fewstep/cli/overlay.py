"""`--config file.toml`: options from a file, laid under those of the command line."""

import tomllib
from pathlib import Path
from typing import Any

from fewstep.cli.options import SWITCHES, option_names
from fewstep.errors import BadInput, unknown

# By verb: the option that is given without a flag.
POSITIONAL = {"train": "preset", "evaluate": "directory", "compare": "entries", "ablate": "preset"}
SEVERAL = "--seeds"  # the flag that takes several values; `--set` takes one, and may be repeated


def with_config(arguments: list[str], verbs: dict[str, type]) -> list[str]:
    """The arguments with a config file's options put before them, so that later ones win.

    Raises:
        BadInput: a file that is missing or not TOML, a key that is no option of the verb (names the nearest).

    Example:
        >>> with_config(["presets", "maml"], {})
        ['presets', 'maml']
    """
    path = _value(arguments, "--config")
    if path is None or not arguments or arguments[0] not in verbs:
        return arguments
    verb, kind = arguments[0], verbs[arguments[0]]
    try:
        options = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"--config {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"--config {path} is not TOML: {error}") from error
    known = set(option_names(kind)) - {"config"}
    laid: list[str] = []
    positional: list[str] = []
    for key, value in options.items():
        name = key.replace("-", "_")
        if name not in known:
            raise unknown(f"key in {path}:", key, {k.replace("_", "-") for k in known})
        if name == POSITIONAL.get(verb):
            if not _positional_given(arguments[1:]):
                positional = [str(one) for one in (value if isinstance(value, list) else [value])]
        else:
            laid += _flag(name, value, path, key)
    # A flag of one value ends the laid ones, so that one of several takes nothing of what follows.
    return [verb, *positional, *laid, "--config", path, *arguments[1:]]


def _flag(name: str, value: Any, path: str, key: str) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, list) and flag == SEVERAL:
        return [flag, *map(str, value)]
    if isinstance(value, list) and name == "set":
        return [word for one in value for word in (flag, str(one))]
    if flag in SWITCHES:
        if not isinstance(value, bool):
            raise BadInput(f"{path}: {key} is {value!r}; it must be true or false")
        return [flag] if value else []
    if isinstance(value, dict | list):
        raise BadInput(f"{path}: {key} is a table or list; options are single values")
    return [flag, str(value)]


def _value(arguments: list[str], flag: str) -> str | None:
    for i, argument in enumerate(arguments):
        if argument == flag and i + 1 < len(arguments):
            return arguments[i + 1]
        if argument.startswith(f"{flag}="):
            return argument.split("=", 1)[1]
    return None


def _positional_given(arguments: list[str]) -> bool:
    """Whether an argument is no flag and no flag's value; all take one, but `SEVERAL` what follows, `SWITCHES` none."""
    flag = ""
    for argument in arguments:
        if argument.startswith("--"):
            flag = "" if "=" in argument or argument in SWITCHES else argument
        elif not flag:
            return True
        elif flag != SEVERAL:
            flag = ""
    return False
