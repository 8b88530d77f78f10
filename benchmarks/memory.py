"""Memory: flat in the inner steps, foreseen before a training, no more of it for evaluating on more tasks.

python -m benchmarks.memory --json results/memory.json --plots docs/performance --table docs/memory.md
python -m benchmarks.memory --parts steps                                       a part of that quarter of an hour

Every figure comes from fresh processes: the most one held, beyond what it held before its model was built.
"""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median_low
from typing import Any

import torch

import fewstep
from benchmarks import command
from benchmarks.command import Record
from benchmarks.held import held
from benchmarks.implementations.ours import learner, problem
from benchmarks.network import distance, start, tasks
from benchmarks.processes import ask
from benchmarks.tables import rows, where
from benchmarks.workloads import WORKLOADS, Workload
from fewstep.metalearning.memory import memory_needed
from fewstep.models import Conv4

MARKS = "measured"
COLOURS = {"loop": "#dd7711", "recompute": "#2a86c8"}
PARTS = ("steps", "needs", "evaluation")
STEPS = (1, 5, 20, 50)
STRATEGIES = ("loop", "vectorized", "recompute")
SENSIBLE = {**dict.fromkeys(("W1", "W2", "W3", "W4"), STRATEGIES), **dict.fromkeys(("W5", "W6"), STRATEGIES[::2])}
TASKS = (10, 100, 1000)


def difference(steps: int, dtype: str) -> float:
    """The largest relative difference of a tensor of the gradient between recompute and loop, of one task of W1."""
    w, kind = replace(WORKLOADS["W1"], tasks=1, steps=steps), getattr(torch, dtype)
    made, batch = learner(w, start(w), "loop").to(kind), fewstep.TaskBatch(*tasks(w).to("cpu", kind))
    loop, again = (made.meta_gradient(batch, strategy=s).gradients for s in ("loop", "recompute"))
    return distance(again, loop)


def evaluation(count: int) -> Record:
    """What evaluating on some strokes takes: 5-way 1-shot, Conv4-8, MAML++ with 5 steps."""
    drawn = fewstep.strokes().tasks(5)
    made = fewstep.Learner(Conv4(5, filters=8), fewstep.preset("maml++"))
    fewstep.evaluate(made, drawn, count=8)
    return held(lambda: fewstep.evaluate(made, drawn, count=count))


def foreseen(workload: Record, strategy: str) -> Record:
    """The memory that a meta-gradient is expected to need, and the seconds it takes to say so."""
    w = Workload(**workload)
    made, batch = problem(w.scaled(0.05), strategy)
    made.meta_gradient(batch)  # loads what a library loads when first used
    made, batch = problem(w, strategy)
    started = time.perf_counter()
    need = memory_needed(made, batch)
    return {"used": need.bytes, "strategy": need.strategy, "seconds": time.perf_counter() - started}


def several(repeats: int, question: Callable[[], Record]) -> Record:
    """The median of fresh processes, and all of them: where a heap begins is drawn anew for each."""
    answers = [question() for _ in range(repeats)]
    each = [answer["used"] for answer in answers]
    known = {name: answers[-1][name] for name in ("strategy", "auto", "seconds") if name in answers[-1]}
    return {"bytes": median_low(each), "each": each, **known}


def estimate(repeats: int, w: Workload, strategy: str) -> Record:
    """What ours expects to need."""
    return several(repeats, lambda: ask("memory", "foreseen", workload=asdict(w), strategy=strategy))


def truth(repeats: int, w: Workload, strategy: str, passes: int = 2) -> Record:
    """What building a learner and some meta-gradients take."""
    contender = {"implementation": "fewstep", "workload": asdict(w), "strategy": strategy}
    return several(repeats, lambda: ask("contender.Contender", "memory", made_with=contender, passes=passes))


def entries(part: str, repeats: int, only: list[str], strategies: list[str]) -> Iterator[Record]:
    """What a part of the record consists of.

    Arguments:
        part: `steps`, one task of W1 at more and more inner steps, one meta-gradient; `needs`, estimate and truth of
            workloads by strategy; `evaluation`, on more and more tasks.
        only, strategies: of `needs`.
    """
    if part == "steps":
        for steps in STEPS:
            w = replace(WORKLOADS["W1"], tasks=1, steps=steps)
            peaks = {strategy: truth(repeats, w, strategy, passes=1) for strategy in COLOURS}
            off = {dtype: ask("memory", "difference", steps=steps, dtype=dtype) for dtype in ("float32", "float64")}
            yield {"steps": steps, **peaks, "difference": off}
    elif part == "needs":
        for name in only:
            for strategy in (s for s in SENSIBLE[name] if s in strategies):
                foreseen, taken = (asked(repeats, WORKLOADS[name], strategy) for asked in (estimate, truth))
                auto = taken.pop("auto") == strategy
                yield {"workload": name, "strategy": strategy, "auto": auto, "estimate": foreseen, "truth": taken}
    else:
        for count in TASKS:
            yield {"tasks": count, **several(repeats, lambda count=count: ask("memory", "evaluation", count=count))}


def key(entry: Record) -> tuple[Any, ...]:
    """What an entry is of: a new one takes the place of an old one."""
    return tuple(entry[name] for name in ("steps", "workload", "strategy", "tasks") if name in entry)


# --- tables and figure -----------------------------------------------------------------------------------------------


def _megabytes(found: Record) -> str:
    median, *ends = (f"{count / 1e6:.0f}" for count in (found["bytes"], min(found["each"]), max(found["each"])))
    return f"{median} ({'–'.join(ends)})" if len(found["each"]) > 1 else median


def _steps(e: Record) -> list[str]:
    off = [f"{e['difference'][dtype]:.0e}" for dtype in ("float64", "float32")]
    return [str(e["steps"]), _megabytes(e["loop"]), _megabytes(e["recompute"]), *off]


def _needs(e: Record) -> list[str]:
    ratio = e["estimate"]["bytes"] / e["truth"]["bytes"]
    strategy = f"`{e['strategy']}`" + (", by `auto`" if e["auto"] else "")
    within = "yes" if 0.75 <= ratio <= 1.25 else "no"
    return [e["workload"], strategy, _megabytes(e["estimate"]), _megabytes(e["truth"]), f"{ratio:.2f}", within]


def parts(results: Record) -> Iterator[str]:
    """All tables of a record."""
    yield f"{results['machine']['processor']}, one thread, float32; {where(results['machine'])}."
    if "steps" in results:
        yield "## By inner steps: one task of W1, one meta-gradient"
        head = ["inner steps", "`loop`, MB", "`recompute`, MB", "difference, float64", "difference, float32"]
        yield rows(head, map(_steps, results["steps"]))
        yield "![Peak memory against inner steps, of `loop` and `recompute`](performance/memory.svg)"
    if "needs" in results:
        yield "## Estimate and truth"
        head = ["", "strategy", "estimate, MB", "truth, MB", "estimate / truth", "within 25 %"]
        yield rows(head, map(_needs, results["needs"]))
    if "evaluation" in results:
        yield "## Evaluation: 5-way 1-shot strokes, Conv4-8, MAML++ in 5 steps"
        yield rows(["tasks", "peak, MB"], [[str(e["tasks"]), f"{e['bytes'] / 1e6:.1f}"] for e in results["evaluation"]])


def draw(results: Record, folder: Path) -> None:
    """Peak memory against inner steps, a line a strategy; nothing where they were not measured."""
    if "steps" not in results:
        return
    from benchmarks.figures import new, save  # matplotlib is needed for figures alone

    figure, ((panel,),) = new(1, 1, 560, 300)
    steps = [e["steps"] for e in results["steps"]]
    for strategy, colour in COLOURS.items():
        megabytes = [e[strategy]["bytes"] / 1e6 for e in results["steps"]]
        panel.plot(steps, megabytes, "o-", color=colour, label=strategy)
    panel.set(xlabel="inner steps", ylabel="peak memory, MB", xticks=steps, ylim=(0, None))
    panel.legend()
    save(figure, folder / "memory.svg")


def main(arguments: list[str] | None = None) -> int:
    parser = command.parser("memory", __doc__, rounds=3, json=None, table=None, plots=None)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--only", nargs="+", choices=SENSIBLE, default=list(SENSIBLE), help="workloads of `needs`")
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES), help="of `needs`")
    options = parser.parse_args(arguments)
    results = {**command.recorded(options.json), **command.started("memory")}
    for part in options.parts:
        for entry in entries(part, options.rounds, options.only, options.strategies):
            kept = [old for old in results.get(part, []) if key(old) != key(entry)]
            results[part] = sorted([*kept, entry], key=key)
            command.record(options.json, results)
    return command.finished(results, options)


if __name__ == "__main__":
    sys.exit(main())
