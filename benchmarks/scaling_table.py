"""What scaling measured, as a section of Markdown."""

from collections.abc import Mapping
from typing import Any

from benchmarks.exponents import COUNTS, bytes_used, counts, fit, last_slope, prices, seconds
from benchmarks.table import rows

BEGIN, END = "<!-- scaling: begin -->", "<!-- scaling: end -->"

WHY = {
    "tasks": "One after the other, so seconds are in proportion. Memory hardly grows: the graph of a task is freed "
    "before the next one's is built.",
    "inner steps": "Every step costs the same. The query pass comes once, whatever the steps, and lowers the exponent "
    "a little. Second order keeps the graph of every step, so memory grows with them from what one step holds.",
    "ways": "Support and query images grow alike. The number of calls does not grow with images: with few of them "
    "calls take most of the time, with many the exponent nears 1.",
    "shots": "As ways, but the query images stay as they are.",
    "pixels": "Against the pixels, not the side. As with ways, small images leave most of the time to calls.",
    "filters": "Operations of a convolution grow with the square, its maps in proportion, calls not at all: the "
    "exponent lies below 2, and nears it only where operations take most of the time. The same in memory: maps in "
    "proportion, weights and what is kept of their size with the square.",
    "convolutions": "ResNet-12 doubles the channels where it quarters the pixels: every block has the same calls and "
    "about the same operations, but half the values of the block before, and its first one is cheaper, for the images "
    "have one channel. Conv4 keeps its channels, so that from the second block on each has a quarter of the work of "
    "the one before; only calls grow with depth. The largest maps, and so most of the memory, are those of the first "
    "block.",
}
"""What is counted along each axis, and so where its exponent comes from."""


def _axis(record: Mapping[str, Any], predicted: list[float]) -> list[str]:
    """A row of the table."""
    x, taken = record["x"], seconds(record)
    operations = [point["flops"] for point in record["counts"]]
    shown = [fit(x, values) for values in (taken, operations, predicted, bytes_used(record))]
    measured, convolutions, model, memory = ("–" if found is None else f"{found.exponent:.2f}" for found in shown)
    if shown[0]:
        measured = f"**{shown[0]}**"
    if shown[3]:
        memory = str(shown[3])
    return [
        record["axis"], record["model"], f"{x[0]}–{x[-1]}", f"{taken[0]:.3g}–{taken[-1]:.3g}", measured,
        f"{last_slope(x, taken):.2f}", model, convolutions, memory,
    ]  # fmt: skip


def _base(base: Mapping[str, Any]) -> str:
    width = "first block of " if base["model"] == "ResNet-12" else ""
    return (
        f"{base['model']}: {base['tasks']} task, {base['steps']} inner steps, {base['ways']} ways, {base['shots']} "
        f"shots, {base['queries']} query, {base['size']}×{base['size']} pixels, {width}{base['filters']} filters"
    )


def markdown(results: Mapping[str, Any]) -> str:
    """The section that `python -m benchmarks.scaling` writes."""
    records, machine = results["series"], results["machine"]
    rates = prices(records)
    predicted = iter(counts(records) @ rates)
    body = [_axis(record, [next(predicted) for _ in record["x"]]) for record in records]
    head = ["along", "of", "from–to", "seconds", "exponent", "between the last two", "by three counts",
            "by convolutions alone", "exponent of memory"]  # fmt: skip
    rounds = len(records[0]["seconds"][0])
    scale = "" if results["scale"] == "full" else " Tiny shapes: no measure of anything."
    a, b, c = rates
    price = f"{a * 1e6:.0f} µs a call, {b * 1e9:.2f} ns a value, {c * 1e12:.1f} ps an operation"
    parts = [
        f"{machine['processor']}, one thread, on a machine shared with other programs: seconds are the process's own "
        f"on the processor, medians of {rounds} rounds that visit all points in another order each. Python "
        f"{machine['python']}, torch {machine['libraries']['torch']}. Made by `{results['command']}`.{scale}",
        "Base, from which one number at a time is moved. " + "; ".join(map(_base, results["base"].values())) + ".",
        rows(head, *body),
        f"*By three counts*: seconds ≈ a · {COUNTS[0]} + b · {COUNTS[1]} of maps + c · operations of convolutions, "
        f"passes counted as in `benchmarks/flops.py`, and the same three prices for all points: {price}. One price for "
        "narrow and wide layers, large and small maps is a simplification; what it leaves is the difference between "
        "the two columns.",
        "\n".join(f"- **{axis}**: {WHY[axis]}" for axis in dict.fromkeys(record["axis"] for record in records)),
    ]
    return "\n\n".join(parts) + "\n"
