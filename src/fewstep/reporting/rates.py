"""Figures of the learned inner rates: by layer and inner step, and on their way there."""

import math
from collections.abc import Mapping, Sequence
from html import escape

from fewstep.reporting.figure import BLUE, GREY, ORANGE, Figure, Record, layout

LAYERS = (BLUE, ORANGE, "#1b9e77", "#cc79a7", GREY, "#c8a000", "#7b6fd0")
DIVERGING = [[0, "#b35806"], [0.25, "#f1a340"], [0.5, "#f7f7f7"], [0.75, "#67a9d8"], [1, "#1a5c9c"]]
STILL = 0.05  # a rate that moved less than this part of what the fastest one did is rounding, not learning
NUMBERED = 6  # a heatmap of up to so many inner steps has room for its numbers


def moved(validation: Sequence[Record], start: float | None) -> tuple[list[str], list[str]]:
    """Names of the rates that the outer loop moved, and of those it left where they were.

    A bias in front of a batch norm changes nothing, so its rate has gradient zero but for rounding.

    Arguments:
        validation: records with `rates`, {name: [one for each inner step]}. start: their initial value, if known.

    Example:
        >>> moved([{"rates": {"a": [0.2, 0.1], "b": [0.1, 0.1]}}], 0.1)
        (['a'], ['b'])
    """
    first = validation[0]["rates"]
    change = {
        name: max(
            abs(v - (s if start is None else start))
            for r in validation
            for v, s in zip(r["rates"][name], first[name], strict=True)
        )
        for name in first
    }
    if start is None and len(validation) == 1:
        return list(change), []
    least = STILL * max(change.values())
    return [n for n, c in change.items() if c > least], [n for n, c in change.items() if c <= least]


def rates(validation: Sequence[Record], start: float | None) -> list[Figure]:
    """Learned inner rates: by layer and step at the last validation, and their means over the epochs.

    Arguments:
        validation: records with `rates`. start: the value they all began with, if known.

    Example:
        >>> [f.name for f in rates([{"epoch": 0, "rates": {"a": [0.2, -0.1]}}], 0.1)]
        ['rates']
    """
    names = moved(validation, start)[0]
    if not names:
        return []
    now = validation[-1]["rates"]
    grid = [now[name] for name in names]
    steps = len(grid[0])
    limit = max(abs(v) for row in grid for v in row) or 1.0
    decimals = max(0, 2 - math.floor(math.log10(limit)))
    negative = [(i, j) for j, row in enumerate(grid) for i, v in enumerate(row) if v < 0]
    heatmap = {
        "type": "heatmap",
        "z": grid,
        "x": list(range(1, steps + 1)),
        "y": list(range(len(names))),
        "zmin": -limit,
        "zmax": limit,
        "colorscale": DIVERGING,
        "showscale": False,
        "xgap": 2,
        "ygap": 2,
        "text": [[f"{v:.{decimals}f}".replace("-", "−") for v in row] for row in grid],
        "texttemplate": "%{text}" if steps <= NUMBERED else "",
        "customdata": [[escape(name)] * steps for name in names],
        "hovertemplate": "%{customdata}<br>inner step %{x}: rate %{z:.5f}<extra></extra>",
    }
    boxes = [{"type": "rect", "x0": i + 0.54, "x1": i + 1.46, "y0": j - 0.44, "y1": j + 0.44,
              "line": {"color": "#b35806", "width": 2.5}} for i, j in negative]  # fmt: skip
    began = "" if start is None else f", all of which began at {start:g}"
    below = "outlined ones are negative, a step up the loss on the support set" if negative else "none is negative"
    figures = [Figure(
        "rates", f"Learned inner rates after epoch {validation[-1]['epoch'] + 1}",
        "How far each layer moves at each inner step: the outer loop learned one rate for every layer and step"
        f"{began}; blue is positive, orange negative, and {below}.",
        f"Heatmap of {len(names)} layers by {steps} inner steps; rates from {min(map(min, grid)):.4f} to "
        f"{max(map(max, grid)):.4f}, {len(negative)} of them negative.",
        [heatmap],
        layout(70 + 30 * len(names), {"title": "inner step", "dtick": max(1, round(steps / 10)), "fixedrange": True},
               {"autorange": "reversed", "tickvals": list(range(len(names))),
                "ticktext": [escape(_short(n)) for n in names], "showgrid": False, "fixedrange": True},
               shapes=boxes, hovermode="closest"),
    )]  # fmt: skip
    if len(validation) > 1:
        figures.append(_course(validation, names, start))
    return figures


def _course(validation: Sequence[Record], names: Sequence[str], start: float | None) -> Figure:
    epochs = [r["epoch"] + 1 for r in validation]
    data, ends = [], []
    for i, name in enumerate(names):
        means = [math.fsum(r["rates"][name]) / len(r["rates"][name]) for r in validation]
        ends.append(f"{name} {means[-1]:.4f}")
        known = start is not None
        data.append({"type": "scatter", "x": ([0] if known else []) + epochs, "y": ([start] if known else []) + means,
                     "name": escape(_short(name)), "mode": "lines",
                     "line": {"color": LAYERS[i % len(LAYERS)], "width": 2,
                              "dash": ("solid", "dash", "dot")[i // len(LAYERS) % 3]},
                     "hovertemplate": f"{escape(name)} %{{y:.4f}}<extra></extra>"})  # fmt: skip
    return Figure(
        "rates-course", "Mean rate of each layer over the epochs",
        "The same rates on their way: the mean over inner steps of each layer's rates, after every epoch.",
        f"Line chart of mean rates by epoch; at the end {', '.join(ends)}.", data,
        layout(360, {"title": "epoch"}, {}, showlegend=len(names) <= 14),
    )  # fmt: skip


def _short(name: str) -> str:
    return name if len(name) <= 26 else f"{name[:10]}…{name[-15:]}"


def with_rates(validation: Sequence[Record], shapes: Mapping[str, Sequence[int]]) -> list[Record]:
    """The validation records, if they hold learned rates that are one for each layer and step.

    Rates of another shape (one for each scalar of the model) are too many to draw, and give an empty list.

    Arguments:
        validation: records. shapes: of all meta-parameters, {name: shape}.

    Example:
        >>> with_rates([{"rates": {"a": [0.1, 0.1]}}], {"rates.a": [2]}) != []
        True
        >>> with_rates([{"rates": {"a": [0.1, 0.1]}}], {"rates.a": [2], "rates.b": [64, 3, 3, 3]})
        []
    """
    learned = {name[6:]: list(shape) for name, shape in shapes.items() if name.startswith("rates.")}
    if not learned or any(len(shape) != 1 for shape in learned.values()):
        return []
    if len({shape[0] for shape in learned.values()}) > 1:
        return []
    return [r for r in validation if set(r.get("rates") or {}) == set(learned)]
