"""fewstep beside other ways to the same meta-gradient, in one run, interleaved; results are checked to be equal first.

python -m benchmarks                                                everything (hours; the machine must be quiet)
python -m benchmarks --only W1 W4 --implementations fewstep loop    some of it
python -m benchmarks --device cuda --precisions float32 bf16        on an accelerator
python -m benchmarks table results/performance.json                 the tables of any record of this folder

Two settings, each with its own fresh processes; ratios hold within one of them:

    as run           every implementation as its users run it: fewstep's commands raise the allocator's thresholds,
                     nobody else does; beside them fewstep as a library in a process that leaves the allocator alone
    our allocator    all with the thresholds raised

On an accelerator there is one, by precision instead: `float32` forbids TF32 to all, `tf32` allows it to all. Seconds
are of whole steps, the device waited for before and after; the time by kernel is of one step more.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import command, tables
from benchmarks.command import Record, say
from benchmarks.implementations import IMPLEMENTATIONS, OURS
from benchmarks.performance_page import AS_RUN, EQUAL, UNTOUCHED
from benchmarks.processes import Gone, Process, ask
from benchmarks.rounds import Options, measure
from benchmarks.workloads import WORKLOADS

SHARES = "shares"
PRECISIONS = ("float32", "tf32", "bf16")


def settings(names: Sequence[str]) -> dict[str, dict[str, Record]]:
    """{setting: {label: contender}} on processors.

    Example:
        >>> found = settings(["fewstep", "fewstep-loop", "loop"])
        >>> list(found[AS_RUN]), list(found[EQUAL])
        (['fewstep', 'fewstep-loop', 'loop', 'fewstep, allocator untouched'], ['fewstep', 'loop'])
        >>> found[AS_RUN]["loop"]
        {'implementation': 'loop', 'allocator': 'theirs'}
    """
    as_run = {name: {"implementation": name, "allocator": "ours" if name in OURS else "theirs"} for name in names}
    if "fewstep" in names:
        as_run[UNTOUCHED] = {"implementation": "fewstep", "allocator": "theirs"}
    equal = {name: {"implementation": name} for name in names if OURS.get(name, "auto") == "auto"}
    return {AS_RUN: as_run, EQUAL: equal}


def by_precision(names: Sequence[str], precisions: Sequence[str], compiled: bool) -> dict[str, Record]:
    """{label: contender} of an accelerator: ours in each precision, and compiled if asked for; others where they can.

    Example:
        >>> list(by_precision(["fewstep-vectorized", "loop"], ["tf32", "bf16"], compiled=True))
        ['fewstep-vectorized tf32', 'fewstep-vectorized tf32 compiled', 'loop tf32', 'fewstep-vectorized bf16', \
'fewstep-vectorized bf16 compiled']
    """
    found: dict[str, Record] = {}
    for precision in precisions:
        for name in names:
            contender = {"implementation": name, "precision": precision}
            if name in OURS or precision != "bf16":
                found[f"{name} {precision}"] = contender
            if name in OURS and compiled:
                found[f"{name} {precision} compiled"] = {**contender, "compiled": True}
    return found


def run(options: argparse.Namespace) -> int:
    """Measure, print, record after every workload; 1 where fewstep itself failed."""
    on_processors = options.device == "cpu"
    kept = {name: getattr(options, name) for name in ("threads", "scale")}
    kept |= {"repeats": options.rounds} | ({} if on_processors else {"device": options.device})
    results: Record = {**command.started(""), "options": kept, "workloads": {}, "shares": []}
    how = Options(options.rounds, options.at_most, options.threads, options.scale, options.device)
    with Process("peak", options.threads) as peak:
        for name in (name for name in WORKLOADS if name in options.only):
            those = settings(options.implementations)
            if on_processors:
                say("convolution peak")  # again before every workload: the machine may have been busy
                found = peak.ask("best", seconds=options.scale)
                results["peak"] = max((found, results.get("peak", found)), key=lambda found: found["both"])
            else:
                compiled = options.compile and not WORKLOADS[name].predict
                those = {options.device: by_precision(options.implementations, options.precisions, compiled)}
            results["workloads"][name] = measure(name, those, how)
            keep(options, results, {"workloads": {name: results["workloads"][name]}})
    if SHARES in options.only and on_processors:
        say("shares of a real training")
        results["shares"] = ask("shares", "all_shares", options.threads, scale=options.scale)
        keep(options, results, {"workloads": {}})
    return int(any(name in (*OURS, UNTOUCHED) for found in results["workloads"].values() for name in found["left_out"]))


def keep(options: argparse.Namespace, results: Record, new: Record) -> None:
    """Print what is new; record and show all."""
    tables.show({**results, **new})
    command.record(options.json, results)
    if options.table:
        tables.show(results, options.table)


def show(arguments: list[str]) -> int:
    """The tables and figures of a record, whichever command here wrote it."""
    parser = command.parser("", "The tables of a record.", table=None, plots=None)
    parser.prog += " table"
    parser.add_argument("results", type=Path, help="what --json of a command here wrote")
    options = parser.parse_args(arguments)
    try:
        tables.show(json.loads(options.results.read_text()), options.table, options.plots)
    except OSError as error:
        parser.error(f"cannot read {options.results}: {error.strerror}")
    except (ValueError, KeyError, TypeError, StopIteration) as error:
        parser.error(f"{options.results} is not what --json wrote ({error!r})")
    return 0


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["table"]:
        return show(arguments[1:])
    parser = command.parser("", __doc__, rounds=7, at_most=900, threads=2, scale=1.0, json=None, table=None)
    add, parts, those = parser.add_argument, [*WORKLOADS, SHARES], list(IMPLEMENTATIONS)
    add("--only", nargs="+", choices=parts, default=parts, help="workloads, and the shares of a real training")
    add("--implementations", nargs="+", choices=those, default=those, help="who is measured")
    add("--device", default="cpu", help="or an accelerator: cuda, cuda:1 (default cpu)")
    add("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS, help="on an accelerator")
    add("--compile", action="store_true", help="there: ours compiled by torch too, with CUDA graphs")
    options = parser.parse_args(arguments)
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
