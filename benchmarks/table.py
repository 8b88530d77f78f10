"""A run's results as Markdown, written between two marks of a document."""

import math
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.implementations import OURS
from benchmarks.rounds import AS_RUN, EQUAL
from benchmarks.summary import Ratio, Summary, epoch_shares, ratio, step_shares, summary

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def rows(*cells: list[str]) -> str:
    """A Markdown table; the first row is its head."""
    head, *body = cells
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *body])


def _or_dash(value: Any, form: str = "{}") -> str:
    return "–" if value is None else form.format(value)


def _met(found: Summary, what: str) -> str:
    return "–" if what not in found.met else "met" if found.met[what] else "not met"


def _against(found: Ratio | None) -> str:
    return "–" if found is None else f"**{found.value:.2f}** ({found.low:.2f}–{found.high:.2f}), {found.other}"


def _ratios(results: dict[str, Any]) -> str:
    body = []
    for name, record in results["workloads"].items():
        found = summary(record, results["peak"]["both"])
        target = record["target"]
        memory = None if found.memory is None else f"{found.memory[0]:.2f}, {found.memory[1]}"
        body.append([
            name, _or_dash(found.seconds, "{:.3f}"), _against(found.as_run), f"{target['faster']:g}",
            _met(found, "faster"), _against(found.equal), _against(found.untouched), _or_dash(memory),
            f"{target['memory']:g}", _met(found, "memory"), _or_dash(found.share, "{:.0%}"),
        ])  # fmt: skip
    head = ["", "seconds", "faster, as run", "target", "", "with our allocator for all", "with it for nobody",
            "memory", "target", "", "of the peak"]  # fmt: skip
    return rows(head, *body)


def _by_implementation(results: dict[str, Any], setting: str, cell: Callable[[dict[str, Any]], str]) -> str:
    """A row a workload, a column an implementation."""
    found = {name: record["settings"].get(setting, {}) for name, record in results["workloads"].items()}
    names = list(dict.fromkeys(name for each in found.values() for name in each))
    body = [[workload, *(cell(each[n]) if n in each else "–" for n in names)] for workload, each in found.items()]
    return rows(["", *names], *body)


def _spread(found: dict[str, Any]) -> str:
    seconds = found["seconds"]
    return f"{median(seconds):.3f} ({min(seconds):.3f}–{max(seconds):.3f})" if seconds else "–"


def _megabytes(found: dict[str, Any]) -> str:
    return f"{found['memory']['used'] / 1e6:.0f} + {found['memory']['before'] / 1e6:.0f}"


def _distances(found: dict[str, Any]) -> str:
    return ", ".join(f"{found['distance'].get(of, math.nan):.0e}" for of in ("float64", "float32", "timed"))


def _strategies(results: dict[str, Any]) -> str:
    forced = [name for name, strategy in OURS.items() if strategy != "auto"]
    body = []
    for workload, record in results["workloads"].items():
        found = record["settings"].get(AS_RUN, {})
        chosen = found.get("fewstep", {}).get("memory", {}).get("strategy", "–")
        cells = [str(ratio(found, n)) if n in found and "fewstep" in found else "–" for n in forced]
        body.append([workload, chosen, *cells])
    return rows(["", "auto took", *(f"{name}, times auto's seconds" for name in forced)], *body)


def _left_out(results: dict[str, Any]) -> list[str]:
    reasons: dict[tuple[str, str], list[str]] = {}
    for workload, record in results["workloads"].items():
        for name, reason in record["left_out"].items():
            reasons.setdefault((name, reason), []).append(workload)
    return [f"- {name} on {', '.join(where)}: {reason}" for (name, reason), where in reasons.items()]


def _shares(results: dict[str, Any]) -> str:
    body = []
    for record in results["shares"]:
        step, epoch = step_shares(record), epoch_shares(record)
        parts = [f"{step[p]:.2%}" for p in ("sampling", "transfer", "meta_gradient", "rest", "checkpoint")]
        body.append([record["what"], f"{sum(record['step'].values()):.3f}", *parts, f"{epoch['validation']:.1%}"])
    head = ["training", "seconds of a step", "sampling", "transfer", "meta-gradient", "rest",
            "checkpoint, spread over its epoch", "validation, of an epoch"]  # fmt: skip
    return rows(head, *body)


def markdown(results: dict[str, Any]) -> str:
    """All tables of a run."""
    machine, peak, options = results["machine"], results.get("peak", {}), results["options"]
    scaled = "" if options["scale"] == 1 else f" Shapes scaled by {options['scale']:g}: no measure of speed."
    others = ", ".join(f"{name} {version}" for name, version in machine["libraries"].items())
    parts = [
        f"{machine['processor']}, {machine['cores']} cores, {options['threads']} threads, float32; Python "
        f"{machine['python']}, {others}. Made by `{results['command']}`.{scaled}"
    ]
    if results["workloads"]:
        parts += [
            f"Convolution peak {peak['both'] / 1e9:.0f} GFLOP/s (forward {peak['forward'] / 1e9:.0f}, backward "
            f"{peak['backward'] / 1e9:.0f}).",
            "## Against the fastest and the smallest other",
            _ratios(results),
            "## Seconds of a step, each as its users run it: median (least–most)",
            _by_implementation(results, AS_RUN, _spread),
            "## Seconds of a step, all with our allocator settings",
            _by_implementation(results, EQUAL, _spread),
            "## Peak memory beyond what the process held before + what it held before, MB",
            _by_implementation(results, AS_RUN, _megabytes),
            "## How far from the plain loop's result: float64 smaller, float32 tiny, float32 as timed",
            _by_implementation(results, AS_RUN, _distances),
            "## Our strategies, forced",
            _strategies(results),
        ]
    if left_out := _left_out(results):
        parts += ["## Left out", "\n".join(left_out)]
    if results["shares"]:
        parts += ["## Of a real training", _shares(results)]
    return "\n\n".join(parts) + "\n"


def write(path: Path, text: str, begin: str = BEGIN, end: str = END) -> None:
    """Put the text between the marks of a document, or write it as the whole file where there are none."""
    old = path.read_text() if path.is_file() else ""
    if begin in old and end in old:
        before, _, rest = old.partition(begin)
        text = f"{before}{begin}\n\n{text}\n{end}{rest.partition(end)[2]}"
    path.write_text(text)
