"""The tables of `python -m benchmarks`; ratios hold within one setting of one run."""

import math
from collections.abc import Callable, Iterator
from statistics import median

from benchmarks.implementations import OURS
from benchmarks.tables import Ratio, Record, ratio, rows, spread, where

MARKS = "measured"
AS_RUN, EQUAL = "as run", "our allocator"
OWN, UNTOUCHED = "fewstep", "fewstep, allocator untouched"


def others(found: Record) -> list[str]:
    """Whoever is not fewstep, and was timed."""
    return [name for name in found if name not in OURS and name != UNTOUCHED and found[name]["seconds"]]


def fastest(found: Record, own: str = OWN) -> Ratio | None:
    """Ours against the fastest other; None without one."""
    if own not in found or not others(found):
        return None
    ratios = [ratio(found[own]["seconds"], found[other]["seconds"], other) for other in others(found)]
    return min(ratios, key=lambda r: r.value)


def smallest(found: Record) -> tuple[float, str] | None:
    """Our memory over that of the smallest other, and its name; None without one.

    Tiny shapes may fit into what a process held before, and then say nothing.
    """
    used = {name: found[name]["memory"]["used"] for name in others(found)}
    if OWN not in found or not used or min(used.values()) <= 0:
        return None
    other = min(used, key=lambda name: used[name])
    return found[OWN]["memory"]["used"] / used[other], other


# --- tables ----------------------------------------------------------------------------------------------------------


def _against(found: Ratio | None) -> str:
    return "–" if found is None else f"**{found.value:.2f}** ({found.low:.2f}–{found.high:.2f}), {found.other}"


def _verdict(name: str, record: Record, peak: float) -> list[str]:
    """A workload against the fastest and the smallest other, and whether its targets are met."""
    run, same = (record["settings"].get(setting, {}) for setting in (AS_RUN, EQUAL))
    seconds = median(run[OWN]["seconds"]) if OWN in run and run[OWN]["seconds"] else math.nan
    as_run, memory, target = fastest(run), smallest(run), record["target"]
    word = {True: "met", False: "not met"}
    return [
        name, f"{seconds:.3f}", _against(as_run), f"{target['faster']:g}",
        word[as_run.value >= target["faster"]] if as_run else "–", _against(fastest(same)),
        _against(fastest(run, UNTOUCHED)), f"{memory[0]:.2f}, {memory[1]}" if memory else "–",
        f"{target['memory']:g}", word[memory[0] <= target["memory"]] if memory else "–",
        f"{record['flops'] / seconds / peak:.0%}",
        run[OWN]["memory"].get("strategy", "–") if OWN in run else "–",
    ]  # fmt: skip


def _by_implementation(results: Record, setting: str, cell: Callable[[Record], str]) -> str:
    """A row a workload, a column an implementation."""
    found = {name: record["settings"].get(setting, {}) for name, record in results["workloads"].items()}
    names = list(dict.fromkeys(name for each in found.values() for name in each))
    body = [[workload, *(cell(each[n]) if n in each else "–" for n in names)] for workload, each in found.items()]
    return rows(["", *names], body)


def _seconds(found: Record) -> str:
    return spread(found["seconds"])


def _megabytes(found: Record) -> str:
    return f"{found['memory']['used'] / 1e6:.0f} + {found['memory']['before'] / 1e6:.0f}"


def _distances(found: Record) -> str:
    return ", ".join(f"{found['distance'].get(of, math.nan):.0e}" for of in ("float64", "float32", "timed"))


def _kernels(found: Record) -> str:
    kernels = found.get("kernels", {"kinds": {}})
    shares = {name: seconds / kernels["busy"] for name, seconds in kernels["kinds"].items()}
    return ", ".join(f"{name} {share:.0%}" for name, share in shares.items() if share >= 0.01)


def tables(device: str | None) -> dict[str, tuple[str, Callable[[Record], str]]]:
    """{title: (setting, cell)} of the tables by implementation."""
    run = device or AS_RUN
    common = {
        "Peak memory beyond what the process held before + what it held before, MB": (run, _megabytes),
        "How far from the plain loop's result: float64 smaller, float32 tiny, float32 as timed": (run, _distances),
    }
    if device:
        return {
            "Seconds of a step: median (least–most)": (run, lambda found: spread(found["seconds"], "{:.5f}")), **common,
            "Cosine to the plain loop's result, as timed": (run, lambda found: f"{found['cosine']:.4f}"),
            "Seconds of the first step": (run, lambda found: f"{found['memory']['first']:.1f}"),
            "Where the time goes, by kernel": (run, _kernels),
        }  # fmt: skip
    return {
        "Seconds of a step, each as its users run it: median (least–most)": (AS_RUN, _seconds),
        "Seconds of a step, all with our allocator settings": (EQUAL, _seconds),
        **common,
    }


def _left_out(results: Record) -> list[str]:
    reasons: dict[tuple[str, str], list[str]] = {}
    for workload, record in results["workloads"].items():
        for name, reason in record["left_out"].items():
            reasons.setdefault((name, reason), []).append(workload)
    return [f"- {name} on {', '.join(where)}: {reason}" for (name, reason), where in reasons.items()]


def _training(record: Record) -> list[str]:
    """Shares of an outer step, a checkpoint spread over its epoch, and of validation in a published epoch."""
    steps, checkpoint = record["epoch"]["steps"], record["checkpoint"]
    step = sum(record["step"].values())
    validation = record["validation_task"] * record["epoch"]["validation_tasks"]
    shares = [seconds / step for seconds in (*record["step"].values(), checkpoint / steps)]
    of_epoch = validation / (step * steps + checkpoint + validation)
    return [record["what"], f"{step:.3f}", *(f"{share:.2%}" for share in shares), f"{of_epoch:.1%}"]


def parts(results: Record) -> Iterator[str]:
    """Everything about a run."""
    machine, options, device = results["machine"], results["options"], results["options"].get("device")
    scaled = "" if options["scale"] == 1 else f" Shapes scaled by {options['scale']:g}: no measure of speed."
    yield (
        f"{machine['processor']}, {machine['cores']} cores, {options['threads']} threads, {device or 'float32'}; "
        f"{where(machine)}. Made by `{results['command']}`.{scaled}"
    )
    if results["workloads"] and not device:
        peak = results["peak"]
        forward, backward, both = (f"{peak[name] / 1e9:.0f}" for name in ("forward", "backward", "both"))
        yield f"Convolution peak {both} GFLOP/s (forward {forward}, backward {backward})."
        yield "## Against the fastest and the smallest other"
        head = ["", "seconds", "faster, as run", "target", "", "with our allocator for all", "with it for nobody",
                "memory", "target", "", "of the peak", "auto took"]  # fmt: skip
        yield rows(head, [_verdict(name, record, peak["both"]) for name, record in results["workloads"].items()])
    for title, (setting, cell) in tables(device).items() if results["workloads"] else ():
        yield f"## {title}"
        yield _by_implementation(results, setting, cell)
    if left_out := _left_out(results):
        yield "## Left out"
        yield "\n".join(left_out)
    if results["shares"]:
        yield "## Of a real training"
        head = ["training", "seconds of a step", "sampling", "transfer", "meta-gradient", "rest",
                "checkpoint, spread over its epoch", "validation, of an epoch"]  # fmt: skip
        yield rows(head, map(_training, results["shares"]))
