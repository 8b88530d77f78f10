"""One figure of a run's page, as plotly's own record: the reader's browser draws it."""

from dataclasses import dataclass
from typing import Any

Record = dict[str, Any]

BLUE, ORANGE, GREY = "#2a86c8", "#dd7711", "#8a8f98"  # told apart in every kind of colour vision, on white and on black
GRID = "rgba(128,128,128,.22)"


@dataclass(frozen=True)
class Figure:
    """One figure: what plotly draws, and the words around it.

    Arguments:
        name: its id in the page. title, caption: its heading and the sentence below it, plain text.
        alt: what it shows, for somebody who cannot see it.
        data: plotly's traces. layout: plotly's layout, which fixes the height.
        half: may stand beside another one where there is room.

    Example:
        >>> Figure("empty", "Nothing", "A caption.", "Nothing to see.", [], layout(300, {}, {})).layout["height"]
        300
    """

    name: str
    title: str
    caption: str
    alt: str
    data: list[Record]
    layout: Record
    half: bool = False


def number(value: float | None, metric: str) -> str:
    """A value of a metric: accuracies as percentages, losses as they are, a dash for what there is not.

    Example:
        >>> number(0.98765, "accuracy"), number(0.5, "loss")
        ('98.77%', '0.5000')
    """
    if value is None:
        return "–"
    return f"{value:.2%}" if metric == "accuracy" else f"{value:.4f}"


def layout(height: int, x: Record, y: Record, **more: Any) -> Record:
    """A plotly layout in the manner of the page: transparent, a faint grid, the legend on top.

    Arguments:
        height: pixels. x, y: options of the axes; `title` is a string. more: options of the layout.

    Example:
        >>> layout(300, {"title": "outer step"}, {})["xaxis"]["title"]["text"]
        'outer step'
    """
    common = {"gridcolor": GRID, "zeroline": False, "automargin": True, "ticks": "", "ticklabelstandoff": 4}
    titles = [{"text": axis.get("title", ""), "standoff": 8, "font": {"size": 12}} for axis in (x, y)]
    return {
        "height": height,
        "margin": {"l": 0, "r": 8, "t": 12, "b": 8},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 12},
        "hovermode": "x unified",
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "hoverlabel": {"font": {"family": "system-ui, sans-serif"}},
        "xaxis": {**common, "showgrid": False, **x, "title": titles[0]},
        "yaxis": {**common, **y, "title": titles[1]},
        **more,
    }
