"""A comparison in words: the sentence above the table, its cells, and the same numbers as CSV."""

import csv
import io
from collections.abc import Mapping, Sequence

from fewstep.training.comparison import Row

NONE = "–"
NORMALISED = {
    "batch": "their own batch: transductive",
    "running": "running statistics of each step",
    "support": "the support set",
}


def headline(rows: Sequence[Row]) -> str:
    """One sentence: which row is best, and whether its difference to the first is outside its interval.

    Example:
        >>> from fewstep.training.comparison import Entry, compare
        >>> headline(compare([Entry("a", {0: (0.5, 0.7)}), Entry("b", {0: (0.6, 0.8)})]))[:82]
        'b is best: 70.00 % against 60.00 % of a, a difference of +10.00 ± 0.00 points, out'
    """
    first, best = rows[0], next(row for row in rows if row.best)
    if len(rows) == 1:
        return f"{first.name} has {_with_unit(first)}; there is nothing to compare it with."
    if best is first:
        other = min(rows[1:], key=lambda row: abs(row.difference or 0))
        begin = f"{first.name} is best: {_with_unit(first)}; nearest to it is {other.name} with {_with_unit(other)}"
    else:
        other = best
        begin = f"{best.name} is best: {_with_unit(best)} against {_with_unit(first)} of {first.name}"
    outside = abs(other.difference or 0) > (other.difference_interval95 or 0)
    verdict = (
        "outside its interval over tasks" if outside else "within its interval: these tasks cannot tell them apart"
    )
    points = " points" if first.metric == "accuracy" else ""
    return f"{begin}, a difference of {_difference(other)}{points}, {verdict}."


def titles(first: Row) -> list[str]:
    """The table's column titles."""
    return ["", "seeds", f"{first.metric}{' %' if first.metric == 'accuracy' else ''}", "over seeds",
            f"minus {first.name}", "training", "evaluation", "memory"]  # fmt: skip


def cells(row: Row) -> list[str]:
    """A row of the table, ± being half of a 95 % interval over tasks; the best is starred.

    Example:
        >>> from fewstep.training.comparison import Entry, compare
        >>> cells(compare([Entry("maml", {0: (0.5, 0.5)}, 61.2, 3.0)])[0])
        ['maml *', '0', '50.00 ± 0.00', '–', '–', '61 s', '3 s', '–']
    """
    return [
        f"{row.name} *" if row.best else row.name,
        " ".join(map(str, row.seeds)),
        f"{_shown(row.value, row.metric)} ± {_shown(row.interval95, row.metric)}",
        NONE if row.spread is None else _shown(row.spread, row.metric),
        _difference(row),
        NONE if row.training_seconds is None else f"{row.training_seconds:,.0f} s",
        f"{row.evaluation_seconds:,.0f} s",
        NONE if row.peak_memory is None else f"{row.peak_memory / 1e6:,.0f} MB",
    ]


def remarks(rows: Sequence[Row], statistics: Mapping[str, str]) -> list[str]:
    """What the table does not show: differences over some seeds alone, and what normalised queries.

    Arguments:
        statistics: by entry, for models with batch norms.

    Example:
        >>> from fewstep.training.comparison import Entry, compare
        >>> remarks(compare([Entry("a", {0: (0.5, 0.7)}), Entry("b", {1: (0.6, 0.8)})]), {})[:1]
        ['b has no seed in common with a: the means over seeds were compared']
    """
    first, *others = rows
    said = []
    for row in others:
        if not row.paired_seeds:
            said.append(f"{row.name} has no seed in common with {first.name}: the means over seeds were compared")
        elif not row.paired_seeds == row.seeds == first.seeds:
            seeds = " ".join(map(str, row.paired_seeds))
            said.append(f"{row.name} is compared with {first.name} over the seeds that both have: {seeds}")
    if all(row.spread is None for row in rows):
        said.append("one training each: how much another seed would change is not known")
    by_kind: dict[str, list[str]] = {}
    for name, kind in statistics.items():
        by_kind.setdefault(NORMALISED[kind], []).append(name)
    for kind, names in by_kind.items():
        which = f" ({', '.join(names)})" if len(by_kind) > 1 else ""
        said.append(f"queries normalised by {kind}{which}")
    return said


def as_csv(rows: Sequence[Row]) -> str:
    """The rows as CSV, in full precision: seeds separated by blanks, nothing where there is no value.

    Example:
        >>> from fewstep.training.comparison import Entry, compare
        >>> as_csv(compare([Entry("maml", {0: (0.75, 0.75)})])).splitlines()[1][:26]
        'maml,0,accuracy,0.75,0.0,,'
    """
    text = io.StringIO()
    records = [row.to_json() for row in rows]
    writer = csv.DictWriter(text, records[0], lineterminator="\n")
    writer.writeheader()
    for record in records:
        lists = {name: " ".join(map(str, record[name])) for name in ("seeds", "paired_seeds")}
        writer.writerow(record | lists)
    return text.getvalue()


def _shown(value: float, metric: str, sign: str = "") -> str:
    """A value in its metric's own unit: percent with two decimals, or a loss with four."""
    return f"{100 * value:{sign}.2f}" if metric == "accuracy" else f"{value:{sign}.4f}"


def _with_unit(row: Row) -> str:
    return f"{_shown(row.value, row.metric)} %" if row.metric == "accuracy" else f"loss {_shown(row.value, row.metric)}"


def _difference(row: Row) -> str:
    if row.difference is None or row.difference_interval95 is None:
        return NONE
    return f"{_shown(row.difference, row.metric, '+')} ± {_shown(row.difference_interval95, row.metric)}"
