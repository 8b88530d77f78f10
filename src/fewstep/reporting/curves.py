"""Figures of a training's course: accuracy, loss and outer rate over outer steps."""

import math
from collections.abc import Sequence
from itertools import pairwise

from fewstep.reporting.figure import BLUE, GREY, ORANGE, Figure, Record, layout, number


def _curve(records: Sequence[Record], key: str, hover: str, colour: str) -> Record:
    """A line over outer steps; a dot while it is a single point."""
    points = [(r["step"], r[key]) for r in records if r.get(key) is not None]
    return {
        "type": "scatter",
        "x": [x for x, _ in points],
        "y": [y for _, y in points],
        "name": "training",
        "mode": "lines" if len(points) > 1 else "markers",
        "line": {"width": 1.3, "color": colour},
        "marker": {"color": colour},
        "hovertemplate": f"{hover}<extra></extra>",
    }


def _validation(records: Sequence[Record]) -> list[Record]:
    """The validation curve with its 95 % band, and the best epoch ringed."""
    if not records:
        return []
    metric = records[-1]["metric"]
    x, y = ([r[key] for r in records] for key in ("step", "value"))
    spread = [r["interval95"] or 0.0 for r in records]  # one task has no interval
    ceiling = 1.0 if metric == "accuracy" else math.inf
    shown = ".2%" if metric == "accuracy" else ".4f"
    band: Record = {
        "type": "scatter",
        "x": x + x[::-1],
        "y": [min(v + s, ceiling) for v, s in zip(y, spread, strict=True)]
        + [max(v - s, 0.0) for v, s in zip(y, spread, strict=True)][::-1],
        "fill": "toself",
        "fillcolor": "rgba(42,134,200,.18)",
        "line": {"width": 0},
        "mode": "lines",
        "hoverinfo": "skip",
        "showlegend": False,
    }
    line: Record = {
        "type": "scatter",
        "x": x,
        "y": y,
        "name": "validation",
        "mode": "lines+markers" if len(x) <= 60 else "lines",
        "line": {"width": 2, "color": BLUE},
        "marker": {"size": 5, "color": BLUE},
        "customdata": [[r["epoch"] + 1, s] for r, s in zip(records, spread, strict=True)],
        "hovertemplate": f"validation %{{y:{shown}}} ± %{{customdata[1]:{shown}}}, epoch %{{customdata[0]}}"
        "<extra></extra>",
    }
    if len(x) == 1:
        line["error_y"] = {"type": "data", "array": spread, "color": BLUE}
    best = best_validation(records)
    ring = {
        "type": "scatter",
        "x": [best["step"]],
        "y": [best["value"]],
        "name": f"best epoch ({best['epoch'] + 1})",
        "mode": "markers",
        "marker": {"size": 13, "symbol": "circle-open", "color": BLUE, "line": {"width": 2.5}},
        "hoverinfo": "skip",
    }
    return [band, line, ring]


def best_validation(records: Sequence[Record]) -> Record:
    """The validation record of the best epoch, as the last record names it.

    Example:
        >>> best_validation([{"epoch": 0, "best_epoch": 0}, {"epoch": 1, "best_epoch": 0}])["epoch"]
        0
    """
    return next((r for r in records if r["epoch"] == records[-1]["best_epoch"]), records[-1])


def _order_switch(validation: Sequence[Record]) -> list[Record]:
    """A line where training went from first-order to second-order meta-gradients."""
    for before, after in pairwise(validation):
        if (before.get("order"), after.get("order")) == ("first", "second"):
            x = before["step"]
            return [{"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper", "showlegend": True,
                     "name": "second order from here",
                     "line": {"color": GREY, "width": 1.5, "dash": "dot"}}]  # fmt: skip
    return []


def curves(train: Sequence[Record], validation: Sequence[Record]) -> list[Figure]:
    """Accuracy (where there is one), loss and outer rate over outer steps.

    Arguments:
        train, validation: the records of each kind, in order; either may be empty.

    Example:
        >>> [f.name for f in curves([{"step": 1, "loss": 0.5, "accuracy": None, "outer_rate": 0.1}], [])]
        ['loss', 'outer-rate']
    """
    sorts = any(r.get("accuracy") is not None for r in train) or any(r["metric"] == "accuracy" for r in validation)
    figures = [_accuracy(train, validation)] if sorts else []
    if train or validation:
        figures.append(_loss(train, [] if sorts else validation, _order_switch(validation), half=sorts))
    stepped = [r for r in train if (r.get("outer_rate") or 0) > 0]
    return [*figures, _outer_rate(stepped, half=sorts)] if stepped else figures


def _told(validation: Sequence[Record]) -> str:
    """The validation curve in words."""
    if not validation:
        return ""
    best, metric = best_validation(validation), validation[-1]["metric"]
    return (f" Validation {metric} {number(best['value'], metric)} ± {number(best['interval95'], metric)} at the best "
            f"epoch, {best['epoch'] + 1}; {number(validation[-1]['value'], metric)} at the last.")  # fmt: skip


def _accuracy(train: Sequence[Record], validation: Sequence[Record]) -> Figure:
    return Figure(
        "accuracy", "Query accuracy",
        "The share of a task's query images that are sorted right after adapting to its few support images; training "
        "and validation tasks have no class in common, and the band is the 95 % interval over tasks.",
        f"Line chart of query accuracy over outer steps, in training and validation.{_told(validation)}",
        [_curve(train, "accuracy", "training %{y:.2%}", ORANGE), *_validation(validation)],
        layout(340, {"title": "outer step"}, {"tickformat": ".4~p"}, shapes=_order_switch(validation)),
    )  # fmt: skip


def _loss(train: Sequence[Record], validation: Sequence[Record], marks: list[Record], half: bool) -> Figure:
    """Training loss; where loss is what validation measures too, both."""
    caption = ("What the outer loop minimises: the loss on query examples after adapting to the support examples, "
               "averaged over the latest outer steps.")  # fmt: skip
    if validation:
        caption = ("The loss on query examples after adapting to a task's few support examples, in training and "
                   "validation; lower is better, and the band is the 95 % interval over tasks.")  # fmt: skip
    ends = f" Training loss from {train[0]['loss']:.4f} to {train[-1]['loss']:.4f}." if train else ""
    return Figure(
        "loss", "Loss" if validation else "Training loss", caption,
        f"Line chart of the loss over outer steps.{ends}{_told(validation)}",
        [_curve(train, "loss", "training %{y:.4f}", ORANGE), *_validation(validation)],
        layout(270 if half else 340, {"title": "outer step"}, {}, shapes=[] if half else marks,
               showlegend=bool(validation)), half,
    )  # fmt: skip


def _outer_rate(train: Sequence[Record], half: bool) -> Figure:
    rates = [r["outer_rate"] for r in train]
    low, high = math.floor(math.log10(min(rates)) + 1e-9), math.ceil(math.log10(max(rates)) - 1e-9)
    if low >= high:  # a constant rate
        low, high = low - 1, high + 1
    return Figure(
        "outer-rate", "Outer rate",
        "How large a step the outer loop takes when it improves the meta-parameters; the scale is logarithmic.",
        f"Line chart of the outer rate, from {rates[0]:.2e} to {rates[-1]:.2e}.",
        [_curve(train, "outer_rate", "outer rate %{y:.2e}", GREY)],
        layout(270 if half else 220, {"title": "outer step"},
               {"type": "log", "dtick": 1, "exponentformat": "power", "range": [low - 0.08, high + 0.08]},
               showlegend=False), half,
    )  # fmt: skip
