"""How the cost of an outer step grows with tasks, steps, ways, shots, pixels, filters and depth, one at a time.

python -m benchmarks.scaling --json results/scaling.json --plots docs/performance --table docs/performance.md
python -m benchmarks.scaling show results/scaling.json --plots docs/performance --table docs/performance.md

Seconds are this process's own on the processor: with one thread they are those of a machine that does nothing else, and
another program's share of the machine does not count. Every round visits all points in another order, so that a drift
of the machine reaches them all alike; the first round warms up and is dropped. Peak memory is a fresh process's.
"""

import argparse
import json
import random
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import scaling_figure, scaling_table, table
from benchmarks.__main__ import machine, say
from benchmarks.points import AXES, SCALES, Point, Series, series
from benchmarks.processes import Process
from benchmarks.worker import prepare
from fewstep.errors import BadInput
from fewstep.training.checkpoint import write_atomically

LEAST_ROUNDS = 3
A_TURN = 0.1  # seconds on the processor: short steps are repeated for so long


def turn(step: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of a step, the mean of a turn: on the processor, and on the clock."""
    own, clock, count = time.process_time(), time.perf_counter(), 0
    while True:
        step()
        count += 1
        taken = time.process_time() - own
        if taken >= A_TURN:
            return taken / count, (time.perf_counter() - clock) / count


def timed(points: list[Point], rounds: int, at_most: float) -> dict[Point, list[tuple[float, float]]]:
    """Turns of every point, one a round."""
    steps = {point: point.step() for point in points}
    found: dict[Point, list[tuple[float, float]]] = {point: [] for point in points}
    say("warming up")
    for step in steps.values():
        step()
    stop = time.monotonic() + at_most
    for number in range(rounds):
        if number >= LEAST_ROUNDS and time.monotonic() > stop:
            break
        say(f"round {number + 1}")
        order = list(points)
        random.Random(number).shuffle(order)
        for point in order:
            found[point].append(turn(steps[point]))
    return found


def peak(point: Point, threads: int) -> dict[str, int]:
    """Memory of a point, by a fresh process."""
    with Process("points", threads=threads) as process:
        return process.ask("memory", point=asdict(point))


def measure(chosen: list[Series], rounds: int, at_most: float) -> list[dict[str, Any]]:
    """Everything about the series, as JSON."""
    points = list(dict.fromkeys(point for each in chosen for point in each.points))
    turns = timed(points, rounds, at_most)
    memory = {}
    for number, point in enumerate(points, 1):
        say(f"memory {number} of {len(points)}")
        memory[point] = peak(point, threads=1)
    return [
        {
            "axis": each.axis,
            "model": each.model,
            "x": list(each.x),
            "seconds": [[own for own, _ in turns[point]] for point in each.points],
            "clock": [[clock for _, clock in turns[point]] for point in each.points],
            "memory": [memory[point] for point in each.points],
            "counts": [point.counts() for point in each.points],
        }
        for each in chosen
    ]


def show(results: dict[str, Any], options: argparse.Namespace) -> None:
    """Table and plots, to where they were asked for."""
    if options.plots:
        for path in scaling_figure.draw(results, options.plots):
            say(f"{path}")
    if options.table:
        table.write(options.table, scaling_table.markdown(results), scaling_table.BEGIN, scaling_table.END)
    else:
        print(scaling_table.markdown(results), end="")


def parsed(arguments: list[str]) -> argparse.Namespace:
    again = arguments[:1] == ["show"]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    if again:
        add("show", help="do not measure")
        add("results", type=Path, help="what --json wrote")
    else:
        add("--axes", nargs="+", choices=AXES, default=list(AXES), help="some of them (default all)")
        add("--scale", choices=SCALES, default="full", help="tiny, to see whether everything runs (default full)")
        add("--rounds", type=int, default=7, help="timed rounds, at most (default 7)")
        add("--at-most", type=float, default=600, metavar="S", help="no new round after these seconds, once there are "
            "three (default 600)")  # fmt: skip
        add("--json", type=Path, metavar="PATH", help="write everything that was measured")
    add("--plots", type=Path, metavar="FOLDER", help="write the figures; needs kaleido and a Chrome")
    add("--table", type=Path, metavar="PATH", help="write the section between the marks of a document")
    options = parser.parse_args(arguments)
    if not again and options.rounds < 1:
        parser.error("rounds must be at least 1")
    if not again and options.json and not options.json.parent.is_dir():
        parser.error(f"cannot write {options.json}: there is no folder {options.json.parent}")
    if options.table and (not options.table.is_file() or scaling_table.BEGIN not in options.table.read_text()):
        parser.error(f"{options.table} is not a document with {scaling_table.BEGIN} in it")
    if options.plots and not options.plots.is_dir():
        parser.error(f"cannot draw into {options.plots}: there is no such folder")
    if again:
        try:
            options.results = json.loads(options.results.read_text())
        except (OSError, ValueError) as error:
            parser.error(f"cannot read {options.results}: {error}")
    return options


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parsed(arguments)
    try:
        if "results" in options:
            show(options.results, options)
            return 0
        prepare("ours", 1)
        chosen = [each for each in series(options.scale) if each.axis in options.axes]
        conv4, resnet12, *_ = SCALES[options.scale]
        results = {
            "command": shlex.join(["python", "-m", "benchmarks.scaling", *arguments]),
            "machine": machine(),
            "scale": options.scale,
            "base": {base.model: asdict(base) for base in (conv4, resnet12)},
            "series": measure(chosen, options.rounds, options.at_most),
        }
        if options.json:
            write_atomically(options.json, (json.dumps(results, indent=1) + "\n").encode())
        show(results, options)
    except BadInput as error:
        say(f"benchmarks: {error}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
