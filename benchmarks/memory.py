"""Memory: flat in the inner steps, foreseen before a training, no more of it for evaluating on more tasks.

python -m benchmarks.memory --json results/memory.json --table docs/memory.md     a quarter of an hour or more
python -m benchmarks.memory --parts steps                                         a part of it

Every figure comes from a fresh process: the most it held, beyond what it held before its model was built.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.workloads import WORKLOADS

PARTS = ("steps", "needs", "evaluation")
STEPS = (1, 5, 20, 50)
REPEATS = 3  # fresh processes for a figure: where a heap begins is drawn anew for each
STRATEGIES = ("loop", "vectorized", "recompute")
SENSIBLE = {**dict.fromkeys(("W1", "W2", "W3", "W4"), STRATEGIES), **dict.fromkeys(("W5", "W6"), STRATEGIES[::2])}
TASKS = (10, 100, 1000)


# --- in a fresh process ----------------------------------------------------------------------------------------------


def _problem(workload: str, strategy: str, changes: dict[str, Any], dtype: str = "float32") -> tuple[Any, Any]:
    import torch

    import fewstep
    from benchmarks.implementations import ours
    from benchmarks.network import start, tasks

    kind = getattr(torch, dtype)
    w = replace(WORKLOADS[workload], **changes)
    learner = ours.learner(w, start(w), strategy).to(kind)
    return learner, fewstep.TaskBatch(*tasks(w).to(kind))


def _warm(workload: str, strategy: str) -> None:
    """Load what a library loads when first used."""
    w = WORKLOADS[workload].scaled(0.05)
    shapes = {"ways": w.ways, "tasks": w.tasks, "size": w.size, "filters": w.filters, "steps": w.steps}
    learner, batch = _problem(workload, strategy, shapes)
    learner.meta_gradient(batch)


def _held(work: Callable[[], None]) -> int:
    from benchmarks.worker import forget_peak, give_back, status

    give_back()
    before = status("VmRSS")
    forget_peak()
    work()
    return status("VmHWM") - before


def truth(workload: str, strategy: str, passes: int = 2, **changes: Any) -> dict[str, Any]:
    """What building a learner and some meta-gradients take."""
    _warm(workload, strategy)
    chosen = []

    def work() -> None:
        learner, batch = _problem(workload, strategy, changes)
        chosen.extend((learner.chosen_strategy(batch), learner.chosen_strategy(batch, "auto")))
        for _ in range(passes):
            result = learner.meta_gradient(batch)
        del result

    return {"bytes": _held(work), "strategy": chosen[0], "auto": chosen[1]}


def foreseen(workload: str, strategy: str, **changes: Any) -> dict[str, Any]:
    """The estimate, and the seconds it takes."""
    import time

    from fewstep.metalearning.memory import memory_needed

    _warm(workload, strategy)
    learner, batch = _problem(workload, strategy, changes)
    started = time.perf_counter()
    need = memory_needed(learner, batch)
    return {"bytes": need.bytes, "strategy": need.strategy, "seconds": time.perf_counter() - started}


def difference(workload: str, dtype: str, **changes: Any) -> dict[str, Any]:
    """The largest relative difference of a tensor of the gradient between recompute and loop."""
    from benchmarks.network import distance

    learner, batch = _problem(workload, "loop", changes, dtype)
    loop, ours = (learner.meta_gradient(batch, strategy=s).gradients for s in ("loop", "recompute"))
    return {"distance": distance(ours, loop)}


def evaluation(count: int) -> dict[str, Any]:
    """What evaluating on some strokes takes: 5-way 1-shot, Conv4-8, MAML++ with 5 steps."""
    import fewstep
    from fewstep.models import Conv4

    tasks = fewstep.strokes().tasks(5)
    learner = fewstep.Learner(Conv4(5, filters=8), fewstep.preset("maml++"))
    fewstep.evaluate(learner, tasks, count=8)
    return {"bytes": _held(lambda: fewstep.evaluate(learner, tasks, count=count))}


QUESTIONS = {"truth": truth, "foreseen": foreseen, "difference": difference, "evaluation": evaluation}


def child(question: str) -> None:
    from fewstep.cli.machine import prepare

    prepare(1)
    asked = json.loads(question)
    print(json.dumps(QUESTIONS[asked.pop("do")](**asked)))


# --- asking ----------------------------------------------------------------------------------------------------------


def ask(do: str, **arguments: Any) -> dict[str, Any]:
    """The answer of a fresh process."""
    question = json.dumps({"do": do, **arguments})
    print(question, file=sys.stderr, flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.memory", "child", question]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment).stdout)


def several(do: str, repeats: int, **arguments: Any) -> dict[str, Any]:
    """The median of fresh processes, and all of them."""
    answers = [ask(do, **arguments) for _ in range(repeats)]
    each = [answer["bytes"] for answer in answers]
    return {**answers[-1], "bytes": statistics.median_low(each), "each": each}


def by_steps(repeats: int) -> Iterator[dict[str, Any]]:
    """One task of W1 at more and more inner steps."""
    for steps in STEPS:
        shapes: dict[str, Any] = {"workload": "W1", "tasks": 1, "steps": steps}
        peaks = {s: several("truth", repeats, strategy=s, passes=1, **shapes) for s in ("loop", "recompute")}
        off = {dtype: ask("difference", dtype=dtype, **shapes)["distance"] for dtype in ("float32", "float64")}
        yield {"steps": steps, **peaks, "difference": off}


def needs(repeats: int, only: list[str], strategies: list[str]) -> Iterator[dict[str, Any]]:
    """Estimate and truth of the workloads, by strategy."""
    for name in only:
        for strategy in (s for s in SENSIBLE[name] if s in strategies):
            estimate, true = (several(do, repeats, workload=name, strategy=strategy) for do in ("foreseen", "truth"))
            auto = true.pop("auto") == strategy
            yield {"workload": name, "strategy": strategy, "auto": auto, "estimate": estimate, "truth": true}


def evaluations(repeats: int) -> Iterator[dict[str, Any]]:
    for count in TASKS:
        yield {"tasks": count, **several("evaluation", repeats, count=count)}


def merged(found: list[dict[str, Any]], entry: dict[str, Any]) -> list[dict[str, Any]]:
    """The entries with a new one in the place of the one that it repeats, in order."""

    def key(e: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(e.get(name) for name in ("steps", "workload", "strategy", "tasks") if name in e)

    return sorted([e for e in found if key(e) != key(entry)] + [entry], key=key)


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["child"]:
        return child(arguments[1])
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.memory", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS), help="none: only the page")
    parser.add_argument("--only", nargs="+", choices=SENSIBLE, default=list(SENSIBLE), help="workloads of `needs`")
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES), help="of `needs`")
    parser.add_argument("--repeats", type=int, default=REPEATS, help=f"processes for a figure (default {REPEATS})")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write what was measured; parts not asked for stay")
    parser.add_argument("--table", type=Path, metavar="PATH", help="write the tables between the marks of a document")
    asked = parser.parse_args(arguments)

    from benchmarks.__main__ import machine
    from benchmarks.memory_page import draw, markdown
    from benchmarks.table import write

    old = json.loads(asked.json.read_text()) if asked.json and asked.json.is_file() else {}
    results = {**old, "machine": machine()} if asked.parts else old
    parts: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
        "steps": lambda: by_steps(asked.repeats),
        "needs": lambda: needs(asked.repeats, asked.only, asked.strategies),
        "evaluation": lambda: evaluations(asked.repeats),
    }
    for part in asked.parts:
        for entry in parts[part]():
            results[part] = merged(results.get(part, []), entry)
            if asked.json:
                asked.json.write_text(json.dumps(results, indent=1) + "\n")
    print(markdown(results))
    if asked.table:
        write(asked.table, markdown(results))
        if "steps" in results:
            draw(results["steps"], asked.table.parent / "performance" / "memory.svg")
    return None


if __name__ == "__main__":
    main()
