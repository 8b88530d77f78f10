"""Figures of a score: the value after each inner step, and its spread over tasks."""

from collections import Counter
from itertools import pairwise

from fewstep.reporting.figure import BLUE, GREY, ORANGE, Figure, Record, layout, number


def adaptation(score: Record, ensemble: Record | None, split: str, trained: int | None) -> list[Figure]:
    """The score after 0, 1, … inner steps, and its spread over tasks.

    Arguments:
        score, ensemble: as `Score.to_json` gives them; the ensemble may be missing.
        split: whose tasks they were. trained: inner steps in training, if known.

    Example:
        >>> score = {"metric": "loss", "value": 0.5, "interval95": 0.1, "by_step": [2.0, 0.5], "per_task": [0.4, 0.6]}
        >>> [f.name for f in adaptation(score, None, "test", 1)]
        ['by-step', 'per-task']
    """
    metric, values = score["metric"], score["by_step"]
    fraction = metric == "accuracy"
    shown, ticks = (".2%", ".4~p") if fraction else (".4f", "")
    figures = []
    if len(values) > 1:
        last = len(values) - 1
        line = {"type": "scatter", "x": list(range(last + 1)), "y": values, "mode": "lines+markers",
                "name": "best epoch", "line": {"color": BLUE, "width": 2}, "marker": {"size": 8, "color": BLUE},
                "error_y": {"type": "data", "array": [0.0] * last + [score["interval95"] or 0.0], "color": BLUE},
                "hovertemplate": f"%{{y:{shown}}}<extra></extra>"}  # fmt: skip
        data, shapes = [line], []
        if ensemble:
            data.append({"type": "scatter", "x": [last], "y": [ensemble["value"]], "mode": "markers",
                         "name": f"ensemble of {ensemble['members']}", "marker": {"size": 11, "symbol": "diamond-open",
                         "color": ORANGE, "line": {"width": 2}},
                         "hovertemplate": f"ensemble %{{y:{shown}}}<extra></extra>"})  # fmt: skip
        if score.get("chance"):
            shapes.append(_rule("chance", y=score["chance"]))
        if trained and 0 < trained < last:
            shapes.append(_rule("as many as in training", x=trained))
        steps = ", ".join(number(v, metric) for v in values)
        figures.append(Figure(
            "by-step", f"{metric.capitalize()} after each inner step",
            "Adapting to a new task: at 0 the model has not looked at the support set, then each inner step is one "
            f"gradient step on it; mean over {len(score['per_task'])} {split} tasks.",
            f"Line chart of {metric} after 0 to {last} inner steps: {steps}.", data,
            layout(300, {"title": "inner steps", "dtick": max(1, round(last / 10)), "range": [-0.25, last + 0.25]},
                   {"tickformat": ticks, "rangemode": "tozero"}, shapes=shapes), half=True,
        ))  # fmt: skip
    if len(score["per_task"]) > 1:
        figures.append(_per_task(score, split, shown))
    return figures


def _rule(name: str, x: float | None = None, y: float | None = None) -> Record:
    ends = {"x0": 0, "x1": 1, "xref": "paper", "y0": y, "y1": y} if x is None else \
           {"x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper"}  # fmt: skip
    return {"type": "line", **ends, "name": name, "showlegend": True,
            "line": {"color": GREY, "width": 1.5, "dash": "dash"}}  # fmt: skip


def _per_task(score: Record, split: str, shown: str) -> Figure:
    """How many tasks had which value: of each one that occurs, or of equal bins where those are many."""
    metric, values = score["metric"], [value for value in score["per_task"] if value is not None]
    counts = Counter(round(v, 9) for v in values)
    low, high = min(values), max(values)
    if metric == "accuracy" and len(counts) <= 40:
        places = sorted(counts)
        width = min((b - a for a, b in pairwise(places)), default=0.05)
    else:
        bins = 30
        width = (high - low) / bins or 1.0
        counts = Counter(low + (min(int((v - low) / width), bins - 1) + 0.5) * width for v in values)
        places = sorted(counts)
    bars = {"type": "bar", "x": places, "y": [counts[p] for p in places], "width": width * 0.86, "marker":
            {"color": BLUE}, "hovertemplate": f"%{{y}} tasks at %{{x:{shown}}}<extra></extra>"}  # fmt: skip
    return Figure(
        "per-task", f"{metric.capitalize()} of each task",
        f"Some tasks are easier than others: how many of them ended at which {metric}; their mean is the headline.",
        f"Histogram of {metric} over {len(values)} {split} tasks, from {number(low, metric)} to "
        f"{number(high, metric)}.",
        [bars],
        layout(300, {"title": f"{metric} after the last inner step",
                     "tickformat": ".4~p" if metric == "accuracy" else ""},
               {"title": "tasks"}, showlegend=False, hovermode="closest"), half=True,
    )  # fmt: skip
