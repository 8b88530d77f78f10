"""What `benchmarks.scaling` measured: exponents, the three counts that explain the seconds, table and figures."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.stats import linregress

from benchmarks.command import Record
from benchmarks.tables import rows

MARKS = "scaling"
COUNTS = ("calls", "values", "flops")
COLUMNS = 4
LOOKS = {"Conv4": ("#2a86c8", "o"), "ResNet-12": ("#dd7711", "s")}
MEASURES = {"seconds": "seconds of an outer step", "memory": "peak memory, MB"}


def fit(x: Sequence[float], y: Sequence[float]) -> Any:
    """The power law through the points above zero, y = e^intercept · x^slope; None with fewer than three of them.

    Example:
        >>> print(f"{fit([1, 2, 4], [3, 12, 48]).slope:.2f}")
        2.00
    """
    pairs = [(a, b) for a, b in zip(x, y, strict=True) if b > 0]
    return linregress(*np.log(pairs).T) if len(pairs) > 2 else None


def values(record: Record, what: str) -> list[float]:
    """Median seconds, or megabytes, or operations of convolutions of every point of a series."""
    if what == "seconds":
        return [median(rounds) for rounds in record["seconds"]]
    if what == "memory":
        return [found["used"] / 1e6 for found in record["memory"]]
    return [point["flops"] for point in record["counts"]]


def prices(records: Sequence[Record]) -> tuple[NDArray[np.float64], list[list[float]]]:
    """Seconds of a call, of a value and of an operation, by least squares of the relative error over all points.

        seconds ≈ a · calls + b · values + c · operations,   a, b, c ≥ 0

    Returns:
        a, b and c, and the seconds that they predict for the points of every series.
    """
    counts = [np.array([[point[name] for name in COUNTS] for point in record["counts"]], float) for record in records]
    taken = np.concatenate([values(record, "seconds") for record in records])
    relative = np.concatenate(counts) / taken[:, None]
    unit = relative.mean(0)
    found = nnls(relative / unit, np.ones(len(taken)))[0] / unit
    return found, [list(each @ found) for each in counts]


def _axis(record: Record, predicted: list[float]) -> list[str]:
    """A row of the table."""
    x, taken = record["x"], values(record, "seconds")
    columns = (taken, predicted, values(record, "flops"), values(record, "memory"))
    seconds, model, convolutions, memory = (fit(x, each) for each in columns)
    last = math.log(taken[-1] / taken[-2]) / math.log(x[-1] / x[-2])  # where what is fixed weighs least
    return [
        record["axis"], record["model"], f"{x[0]}–{x[-1]}", f"{taken[0]:.3g}–{taken[-1]:.3g}",
        f"**{seconds.slope:.2f} ± {seconds.stderr:.2f}**", f"{last:.2f}", f"{model.slope:.2f}",
        f"{convolutions.slope:.2f}", f"{memory.slope:.2f} ± {memory.stderr:.2f}" if memory else "–",
    ]  # fmt: skip


def _base(base: Record) -> str:
    width = "first block of " if base["model"] == "ResNet-12" else ""
    return (
        f"{base['model']}: {base['tasks']} task, {base['steps']} inner steps, {base['ways']} ways, {base['shots']} "
        f"shots, {base['queries']} query, {base['size']}×{base['size']} pixels, {width}{base['filters']} filters"
    )


def parts(results: Record) -> Iterator[str]:
    """The section of a record."""
    records, machine = results["series"], results["machine"]
    scale = "" if results["scale"] == "full" else " Tiny shapes: no measure of anything."
    yield (
        f"{machine['processor']}, one thread, on a machine shared with other programs: seconds are the process's own "
        f"on the processor, medians of {len(records[0]['seconds'][0])} rounds that visit all points in another order "
        f"each. Python {machine['python']}, torch {machine['libraries']['torch']}. Made by `{results['command']}`."
        f"{scale}"
    )
    yield "Base, from which one number at a time is moved. " + "; ".join(map(_base, results["base"].values())) + "."
    (call, value, operation), predicted = prices(records)
    head = ["along", "of", "from–to", "seconds", "exponent", "between the last two", "by three counts",
            "by convolutions alone", "exponent of memory"]  # fmt: skip
    yield rows(head, [_axis(*each) for each in zip(records, predicted, strict=True)])
    yield (
        f"The three counts have the same prices at all points: {call * 1e6:.0f} µs a call, {value * 1e9:.2f} ns a "
        f"value, {operation * 1e12:.1f} ps an operation."
    )


def draw(results: Record, folder: Path) -> None:
    """A figure of seconds and one of memory."""
    from benchmarks.figures import save  # matplotlib is needed for figures alone

    for what in MEASURES:
        save(figure(results["series"], what), folder / f"scaling-{what}.svg")


def figure(records: list[Record], what: str) -> Any:
    """A log-log panel for every axis, all on one vertical scale so that slopes compare, with the power laws."""
    from benchmarks.figures import new

    axes = list(dict.fromkeys(record["axis"] for record in records))
    down, across = -(-len(axes) // COLUMNS), min(COLUMNS, len(axes))
    made, panels = new(down, across, 250 * across + 40, 250 * down, sharey=True)
    for panel, axis in zip(panels.flat, axes, strict=False):
        those = [record for record in records if record["axis"] == axis]
        panel.set(xscale="log", yscale="log", xlabel=axis)
        for number, record in enumerate(those):
            _curve(panel, record, what, number)
        ticks = sorted({x for record in those for x in record["x"]})
        panel.set_xticks(ticks, [f"{math.isqrt(x)}²" if axis == "pixels" else str(x) for x in ticks])
        panel.set_xticks([], minor=True)
    for panel in panels.flat[len(axes) :]:
        panel.axis("off")
    for panel in panels[:, 0]:
        panel.set_ylabel(MEASURES[what])
    lines = {line.get_label(): line for panel in panels.flat for line in panel.lines}
    made.legend(handles=list(lines.values()), loc="outside upper left", ncols=len(lines))
    return made


def _curve(panel: Any, record: Record, what: str, number: int) -> None:
    """The points of a series, the power law through them, and the slope of the convolutions' operations."""
    colour, symbol = LOOKS[record["model"]]
    x, y = np.array(record["x"], float), np.array(values(record, what))
    panel.plot(x[y > 0], y[y > 0], symbol, color=colour, label=record["model"])
    if law := fit(x, y):
        ends = x[[0, -1]]
        through = np.exp(law.intercept) * ends**law.slope
        panel.plot(ends, through, color=colour, label=f"{record['model']}, fitted")
        text = f"exponent {law.slope:.2f}".replace("-", "−")
        panel.annotate(text, (0.04, 0.94 - 0.08 * number), xycoords="axes fraction", color=colour)
        if what == "seconds":  # ends where the fitted line does
            slope = fit(x, values(record, "flops")).slope
            panel.plot(ends, through[-1] * (ends / ends[-1]) ** slope, ":", color="#8a8f98", label="convolutions alone")
