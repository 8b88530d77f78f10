"""What all commands share: their options, where their figures come from, and the JSON record they write."""

import argparse
import json
import os
import platform
import shlex
import sys
from collections.abc import Callable
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from benchmarks import tables

LIBRARIES = ("torch", "fewstep", "higher", "torchopt", "learn2learn")
Record = tables.Record


def at_least_one(word: str) -> int:
    if int(word) < 1:
        raise argparse.ArgumentTypeError(f"is {word}; it must be at least 1")
    return int(word)


def fraction(word: str) -> float:
    if not 0 < float(word) <= 1:
        raise argparse.ArgumentTypeError(f"is {word}; it must lie above 0 and not above 1")
    return float(word)


def writable(word: str) -> Path:
    if not Path(word).parent.is_dir():
        raise argparse.ArgumentTypeError(f"cannot write {word}: there is no folder {Path(word).parent}")
    return Path(word)


SHARED: dict[str, tuple[Callable[[str], Any], str]] = {
    "rounds": (at_least_one, "timed rounds, at most"),
    "at_most": (float, "no new round after these seconds, once there are three"),
    "threads": (at_least_one, "of every process"),
    "scale": (fraction, "smaller shapes, to see whether everything runs"),
    "json": (writable, "write everything that was measured"),
    "table": (writable, "write the tables between the marks of a document"),
    "plots": (writable, "draw the figures into this folder; needs matplotlib"),
}
"""Options of several commands: what a value becomes, and help."""


def parser(name: str, about: str | None, **shared: Any) -> argparse.ArgumentParser:
    """The parser of a command.

    Arguments:
        name: of its module, empty for the package itself. about: the docstring of the module.
        shared: which of the shared options it has, with their defaults.
    """
    made = argparse.ArgumentParser(
        prog=f"python -m benchmarks{name and '.'}{name}", description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    for option, default in shared.items():
        kind, text = SHARED[option]
        words = [f"--{option.replace('_', '-')}", *(["--repeats"] if option == "rounds" else [])]
        made.add_argument(*words, type=kind, default=default, help=f"{text} (default {default})")
    return made


def say(line: str) -> None:
    """What happens at the moment; results go to standard output."""
    print(line, file=sys.stderr, flush=True)


def started(name: str) -> Record:
    """The beginning of a record: the command, and the machine it runs on."""
    command = ["python", "-m", f"benchmarks{name and '.'}{name}", *sys.argv[1:]]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    there = {each.name: each.version for each in distributions()}
    machine = {
        "processor": processor(), "cores": cores, "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(), "libraries": {name: there[name] for name in LIBRARIES if name in there},
    }  # fmt: skip
    return {"command": shlex.join(command), "machine": machine}


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown processor"


def recorded(path: Path | None) -> Record:
    """What was measured before, for a command that adds to it."""
    return json.loads(path.read_text()) if path and path.is_file() else {}


def record(path: Path | None, results: Record) -> None:
    """Write a record, whole or not at all; nothing where no path was given."""
    if path:
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text(json.dumps(results, indent=1) + "\n")
        temporary.replace(path)


def finished(results: Record, options: argparse.Namespace) -> int:
    """Record, and show what was measured where it was asked for; the exit status."""
    record(options.json, results)
    tables.show(results, options.table, getattr(options, "plots", None))
    return 0
