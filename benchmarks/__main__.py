"""fewstep beside other ways to the same meta-gradient, in one run, interleaved; results are checked to be equal first.

python -m benchmarks                                                everything (hours; the machine must be quiet)
python -m benchmarks --only W1 W4 --implementations fewstep loop    some of it
python -m benchmarks table results/performance.json                 the tables of a recorded run
"""

import argparse
import difflib
import json
import os
import platform
import shlex
import sys
from collections.abc import Collection, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks import table, text
from benchmarks.implementations import IMPLEMENTATIONS, OURS
from benchmarks.processes import Gone, Process
from benchmarks.rounds import UNTOUCHED, Options, measure
from benchmarks.workloads import WORKLOADS

SHARES = "shares"
LIBRARIES = ("torch", "fewstep", "higher", "torchopt", "learn2learn")


def say(line: str) -> None:
    """What happens at the moment; results go to standard output."""
    print(line, file=sys.stderr, flush=True)


def known(parser: argparse.ArgumentParser, kind: str, names: Iterable[str], there_are: Sequence[str]) -> None:
    """End with one sentence where a name does not exist."""
    for name in names:
        if name not in there_are:
            near = difflib.get_close_matches(name, there_are, 1, 0.4)
            hint = f"did you mean {near[0]!r}? " if near else ""
            parser.error(f"unknown {kind} {name!r}; {hint}There are {', '.join(there_are)}")


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--only", nargs="+", metavar="W", default=[*WORKLOADS, SHARES], help=f"{', '.join(WORKLOADS)}, {SHARES}")
    add("--implementations", nargs="+", metavar="I", default=list(IMPLEMENTATIONS), help=", ".join(IMPLEMENTATIONS))
    add("--repeats", type=int, default=7, help="rounds of timings, at most (default 7)")
    add("--at-most", type=float, default=900, metavar="S", help="no new round after these seconds of a setting, once "
        "there are three (default 900)")  # fmt: skip
    add("--threads", type=int, default=2, help="of every process (default 2)")
    add("--scale", type=float, default=1.0, help="smaller shapes, to see whether everything runs (default 1)")
    add("--json", type=Path, metavar="PATH", help="write everything that was measured")
    add("--table", type=Path, metavar="PATH", help="write the tables as Markdown, between the marks of a document")
    options = parser.parse_args(arguments)
    known(parser, "workload", options.only, [*WORKLOADS, SHARES])
    known(parser, "implementation", options.implementations, list(IMPLEMENTATIONS))
    if options.repeats < 1 or options.threads < 1:
        parser.error("repeats and threads must be at least 1")
    if not 0 < options.scale <= 1:
        parser.error(f"scale is {options.scale:g}; it must lie above 0 and not above 1")
    for path in (options.json, options.table):
        if path is not None and not path.parent.is_dir():
            parser.error(f"cannot write {path}: there is no folder {path.parent}")
    return options


def machine() -> dict[str, Any]:
    """Where the figures come from."""
    libraries = {}
    for name in LIBRARIES:
        try:
            libraries[name] = version(name)
        except PackageNotFoundError:
            continue
    return {"processor": processor(), "cores": len(affinity()), "system": f"{platform.system()} {platform.machine()}",
            "python": platform.python_version(), "libraries": libraries}  # fmt: skip


def affinity() -> Collection[int]:
    """The cores that processes started here may use."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown processor"


def run(options: argparse.Namespace) -> int:
    """Measure, print, record after every workload; 1 where fewstep itself failed."""
    kept = {"repeats": options.repeats, "threads": options.threads, "scale": options.scale}
    results: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
        "machine": machine(), "options": kept, "workloads": {}, "shares": [],
    }  # fmt: skip
    how = Options(options.implementations, options.repeats, options.threads, options.scale, options.at_most)
    with Process("peak", threads=options.threads) as peak:
        for name in (name for name in WORKLOADS if name in options.only):
            say("convolution peak")  # again before every workload: the machine may have been busy
            found = peak.ask("peak", seconds=options.scale)
            results["peak"] = max((found, results.get("peak", found)), key=lambda found: found["both"])
            results["workloads"][name] = measure(name, how, say)
            print(text.workload(name, results["workloads"][name], results["peak"]["both"]), flush=True)
            record(options, results)
    if SHARES in options.only:
        say("shares of a real training")
        with Process("shares", "--scale", str(options.scale), threads=options.threads) as process:
            results["shares"] = process.answer()
        print(text.shares(results["shares"]), flush=True)
        record(options, results)
    return int(any(name in (*OURS, UNTOUCHED) for found in results["workloads"].values() for name in found["left_out"]))


def record(options: argparse.Namespace, results: dict[str, Any]) -> None:
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    if options.table:
        table.write(options.table, table.markdown(results))


def print_table(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks table", description="The tables of a recorded run.")
    parser.add_argument("results", type=Path, help="what --json wrote")
    parser.add_argument("--into", type=Path, metavar="PATH", help="put them between the marks of a document")
    options = parser.parse_args(arguments)
    try:
        shown = table.markdown(json.loads(options.results.read_text()))
    except OSError as error:
        parser.error(f"cannot read {options.results}: {error.strerror}")
    except (ValueError, KeyError, TypeError) as error:
        parser.error(f"{options.results} is not what --json wrote ({error!r})")
    if options.into:
        table.write(options.into, shown)
    else:
        print(shown, end="")
    return 0


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["table"]:
        return print_table(arguments[1:])
    options = parsed(arguments)
    try:
        return run(options)
    except Gone as reason:
        say(f"benchmarks: a process could not go on: {reason}")
        return 1
    except KeyboardInterrupt:
        say("benchmarks: interrupted; what --json wrote holds the workloads before")
        return 130


if __name__ == "__main__":
    sys.exit(main())
