"""The figures of scaling: a log-log panel for every axis, with the power law through its points."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from benchmarks.exponents import Fit, bytes_used, fit, seconds
from benchmarks.points import AXES, CONV4, RESNET12
from fewstep.errors import BadInput
from fewstep.reporting.figure import BLUE, ORANGE

COLUMNS = 4
INK, SOFT, GRID = "#1d2126", "#8a8f98", "#e6e9ed"
LOOKS = {CONV4: (BLUE, "circle"), RESNET12: (ORANGE, "square")}
MEASURES: dict[str, tuple[str, Callable[[Mapping[str, Any]], list]]] = {
    "seconds": ("seconds of an outer step", seconds),
    "memory": ("peak memory, MB", lambda record: [used / 1e6 for used in bytes_used(record)]),
}


def draw(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write the figures.

    Raises:
        BadInput: kaleido or the browser that it draws with is missing.
    """
    paths = []
    for what in MEASURES:
        paths.append(folder / f"scaling-{what}.svg")
        try:
            figure(results, what).write_image(paths[-1])
        except (ValueError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise BadInput(f"figures need `pip install kaleido` and a Chrome ({reason})") from error
    return paths


def figure(results: Mapping[str, Any], what: str) -> go.Figure:
    """A panel for every axis, all on one vertical scale so that slopes compare.

    Arguments:
        what: seconds or memory.
    """
    title, values = MEASURES[what]
    axes = [axis for axis in AXES if any(record["axis"] == axis for record in results["series"])]
    columns, rows = min(COLUMNS, len(axes)), -(-len(axes) // COLUMNS)
    made = make_subplots(rows, columns, shared_yaxes="all", horizontal_spacing=0.025, vertical_spacing=0.2)
    for number, axis in enumerate(axes):
        place = {"row": number // COLUMNS + 1, "col": number % COLUMNS + 1}
        records = [record for record in results["series"] if record["axis"] == axis]
        for line, record in enumerate(records):
            for trace in _traces(record, values(record), counted=what == "seconds"):
                made.add_trace(trace, **place)
            if found := fit(record["x"], values(record)):
                made.add_annotation(_exponent(found, record["model"], line), **place)
        made.update_xaxes(title={"text": axis, "standoff": 6}, **_ticks(axis, records), **place)
    known: set[str] = set()
    for trace in made.data:  # one entry of the legend for each name
        trace.showlegend = trace.name not in known
        known.add(trace.name)
    shown = [y for record in results["series"] for y in values(record) if y > 0]
    limits = [math.log10(min(shown)) - 0.15, math.log10(max(shown)) + 0.55]  # room for the exponents on top
    made.update_xaxes(type="log", showgrid=False, linecolor=SOFT, ticks="outside", tickcolor=SOFT)
    made.update_yaxes(type="log", gridcolor=GRID, linecolor=SOFT, dtick=1, exponentformat="none", range=limits)
    made.update_yaxes(title={"text": title, "standoff": 8}, col=1)
    legend = {"x": 1, "xanchor": "right", "y": 0.02, "yanchor": "bottom", "font": {"size": 14}}
    if len(axes) == rows * columns:  # no cell is free
        legend = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}
    made.update_layout(
        width=280 * columns + 40, height=300 * rows, paper_bgcolor="white", plot_bgcolor="white", legend=legend,
        font={"family": "system-ui, sans-serif", "size": 13, "color": INK}, margin={"l": 70, "r": 16, "t": 24, "b": 56},
    )  # fmt: skip
    return made


def _traces(record: Mapping[str, Any], y: list[float], counted: bool) -> list[go.Scatter]:
    """The slope of the convolutions' operations, the power law through the points, and the points."""
    colour, symbol = LOOKS[record["model"]]
    x, traces = record["x"], []
    if found := fit(x, y):
        operations = fit(x, [point["flops"] for point in record["counts"]])
        if counted and operations:
            through = Fit(operations.exponent, 0.0, found.at(x[-1]) / x[-1] ** operations.exponent)
            traces.append(_line(x, through, SOFT, "dot", "convolutions alone"))
        traces.append(_line(x, found, colour, "solid", f"{record['model']}, fitted"))
    shown = [(a, b) for a, b in zip(x, y, strict=True) if b > 0]
    marker = {"color": colour, "symbol": symbol, "size": 9, "line": {"color": "white", "width": 1}}
    traces.append(go.Scatter(
        x=[a for a, _ in shown], y=[b for _, b in shown], mode="markers", name=record["model"], marker=marker
    ))  # fmt: skip
    return traces


def _line(x: list[float], law: Fit, colour: str, dash: str, name: str) -> go.Scatter:
    ends = [x[0], x[-1]]
    look = {"color": colour, "width": 1.6, "dash": dash}
    return go.Scatter(x=ends, y=[law.at(end) for end in ends], mode="lines", line=look, name=name)


def _exponent(found: Fit, model: str, line: int) -> dict[str, Any]:
    """The exponent, in a corner of the panel."""
    return {
        "text": f"x<sup>{found.exponent:.2f}</sup>".replace("-", "−"), "showarrow": False, "xref": "x domain",
        "yref": "y domain", "x": 0.04 + 0.28 * line, "y": 1.0, "xanchor": "left", "yanchor": "top",
        "font": {"color": LOOKS[model][0], "size": 17},
    }  # fmt: skip


def _ticks(axis: str, records: list[Mapping[str, Any]]) -> dict[str, Any]:
    """A tick at every value; pixels as the square of the side."""
    values = sorted({x for record in records for x in record["x"]})
    return {"tickvals": values, "ticktext": [f"{math.isqrt(v)}²" if axis == "pixels" else str(v) for v in values]}
