"""Figures as SVG files, by matplotlib: the same bytes for the same record."""

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

INK, SOFT, GRID = "#1d2126", "#8a8f98", "#e6e9ed"
DOTS = 72  # of an inch
STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "fewstep", "font.family": "sans-serif", "font.size": 9,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": SOFT, "axes.grid": True,
    "axes.grid.axis": "y", "axes.axisbelow": True, "grid.color": GRID, "text.color": INK, "axes.labelcolor": INK,
    "xtick.color": INK, "ytick.color": INK, "legend.frameon": False, "lines.linewidth": 1.6, "lines.markersize": 6,
}  # fmt: skip


def new(rows: int, columns: int, width: float, height: float, **sharing: Any) -> tuple[Figure, Any]:
    """A figure of so many dots, and its panels by row and column."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width / DOTS, height / DOTS), layout="constrained")
        return figure, figure.subplots(rows, columns, squeeze=False, **sharing)


def save(figure: Figure, path: Path) -> None:
    with matplotlib.rc_context(STYLE):
        figure.savefig(path, metadata={"Date": None})
