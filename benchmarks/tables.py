"""Records as Markdown: what all tables are made of, and which table shows what."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

Record = dict[str, Any]

SHOWN_BY = {
    "workloads": "performance_page", "series": "scaling_page", "accuracy": "options", "speed": "options",
    "runs": "efficiency", "presets": "cost", "steps": "memory", "needs": "memory", "evaluation": "memory",
}  # fmt: skip
"""The module that shows a record, by a part that it has: `parts` gives its Markdown, `MARKS` where that goes."""


def rows(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *body])


def spread(values: Sequence[float], form: str = "{:.3f}") -> str:
    """Median, least and most.

    Example:
        >>> spread([1, 2, 4]), spread([])
        ('2.000 (1.000–4.000)', '–')
    """
    if not values:
        return "–"
    middle, least, most = (form.format(value) for value in (median(values), min(values), max(values)))
    return f"{middle} ({least}–{most})"


@dataclass(frozen=True)
class Ratio:
    """How many times another takes what ours takes: of the medians, and the least and most of a round."""

    other: str
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f}–{self.high:.2f})"


def ratio(ours: Sequence[float], theirs: Sequence[float], other: str = "") -> Ratio:
    """Seconds of another over ours.

    Example:
        >>> str(ratio([1.0, 1.0, 2.0], [2.0, 3.0, 3.0]))
        '3.00 (1.50–3.00)'
    """
    each = [b / a for a, b in zip(ours, theirs, strict=False)]
    return Ratio(other, median(theirs) / median(ours), min(each), max(each))


def where(machine: Record) -> str:
    """Python and the libraries of a machine."""
    libraries = ", ".join(f"{name} {version}" for name, version in machine["libraries"].items())
    return f"Python {machine['python']}, {libraries}"


def page(results: Record) -> Any:
    """The module that shows a record."""
    return import_module("benchmarks." + next(module for part, module in SHOWN_BY.items() if part in results))


def markdown(results: Record) -> str:
    """All tables of a record."""
    return "\n\n".join(page(results).parts(results)) + "\n"


def show(results: Record, table: Path | None = None, plots: Path | None = None) -> None:
    """Print the tables of a record, or put them between the marks of a document; draw its figures.

    A document without the marks becomes the tables alone.
    """
    text, module = markdown(results), page(results)
    if plots:
        module.draw(results, plots)
    if table is None:
        print(text, end="", flush=True)
        return
    old = table.read_text() if table.is_file() else ""
    begin, end = f"<!-- {module.MARKS}: begin -->", f"<!-- {module.MARKS}: end -->"
    if begin in old and end in old:
        before, _, rest = old.partition(begin)
        text = f"{before}{begin}\n\n{text}\n{end}{rest.partition(end)[2]}"
    table.write_text(text)
