"""A run directory as one self-contained HTML page: what was trained, how it went, what it is worth."""

import json
import math
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from fewstep.errors import BadInput
from fewstep.reporting.adaptation import adaptation
from fewstep.reporting.curves import curves
from fewstep.reporting.figure import Figure, Record
from fewstep.reporting.headline import Account, facts, headline, scores
from fewstep.reporting.rates import moved, rates, with_rates
from fewstep.reporting.style import SCRIPT, STYLE
from fewstep.training.checkpoint import write_atomically
from fewstep.training.run import Run

# The browser itself is told to fetch nothing, so the page is whole without a network and stays so.
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


def write_page(run: Run) -> Path:
    """Write `report.html` into a run's directory, from what lies there; the run may be unfinished or not evaluated.

    Arguments:
        run: the run directory.

    Raises:
        BadInput: no run directory, a file in it that cannot be read, or a page that cannot be written.

    Example:
        >>> write_page(Run(Path("runs/none")))
        Traceback (most recent call last):
        fewstep.errors.BadInput: runs/none is not a run directory: it has no config.json
    """
    config, score, metrics = run.config, _score(run), run.metrics()
    account = Account(
        run.directory,
        config,
        _read(run, "environment.json"),
        [r for r in metrics if r.get("kind") == "train"],
        [r for r in metrics if r.get("kind") == "validation"],
        score,
    )
    path = run.directory / "report.html"
    write_atomically(path, page(account).encode())
    return path


def _score(run: Run) -> Record:
    """What was evaluated last, by the command or, as a bare `Score`, from Python; empty where nothing was."""
    record = _read(run, "score.json")
    score = {"single": record} if record and "single" not in record else record
    several = [score["single"], *([score["ensemble"]] if score.get("ensemble") else [])] if score else []
    if not all(map(_is_score, several)) or not isinstance(score.get("epoch", 0), int | None):
        raise BadInput(f"{run.directory}/score.json holds no score; evaluate the run again, or remove it")
    return score


def _is_score(record: Any) -> bool:
    """Whether a record has what the page shows of a `Score`."""
    if not isinstance(record, dict) or not {"metric", "statistics"} <= {k for k, v in record.items() if type(v) is str}:
        return False
    lists: list[Any] = [record.get("by_step"), record.get("per_task")]
    if not all(isinstance(values, list) and values for values in lists):
        return False
    by_step, per_task = lists
    needed = ["value", "count", "steps", "members"]
    may_lack = ("interval95", "chance", "per_query", "per_query_interval95")
    needed += [name for name in may_lack if record.get(name) is not None]
    finite = [value for value in per_task if value is not None]  # None: a task whose loss diverged
    numbers = [*map(record.get, needed), *by_step, *(finite or [None])]
    return all(isinstance(number, int | float) for number in numbers)


def _read(run: Run, name: str) -> Record:
    path = run.directory / name
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} cannot be read ({error}); remove it, or make it again") from error
    if not isinstance(record, dict):
        raise BadInput(f"{path} is not a record; remove it, or make it again")
    return record


def page(run: Account) -> str:
    """The whole page as HTML."""
    from plotly.offline import get_plotlyjs

    sections: list[str] = []
    figures: list[Figure] = []
    for title, remark, group in _sections(run):
        sections.append(f"<h2>{title}</h2>{remark}<div class=figures>{''.join(map(_figure, group))}</div>")
        figures += group
    drawn = {f.name: {"data": f.data, "layout": f.layout} for f in figures}
    # `<` may end a script wherever it stands, so none is left in one
    script = f"const figures = {json.dumps(drawn).replace('<', chr(92) + 'u003c')};{SCRIPT}"
    title = f"{run.title} · fewstep"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<header>
{headline(run)}
{scores(run)}
{facts(run)}
</header>
{"".join(sections)}
<h2>Configuration</h2>
{_details(run)}
<footer>Written by fewstep{escape(_version(run))} from this run's directory. Point at a figure to read its values; drag
to enlarge a part, double-click to see it whole.</footer>
</main>
<script>{get_plotlyjs()}</script>
<script>{script}</script>
</body>
</html>
"""


def _sections(run: Account) -> Iterator[tuple[str, str, Sequence[Figure]]]:
    course = curves(run.train, run.validation)
    if course:
        yield "Training", "", course
    if run.score:
        split = escape(run.split)
        single, many = run.score["single"], run.score.get("ensemble")
        yield f"Adapting to {split} tasks", "", adaptation(single, many, run.split, run.method.get("steps"))
    rated = with_rates(run.validation, run.config.get("parameters") or {})
    if rated:
        start = (run.method.get("rule") or {}).get("rate")
        start = start if isinstance(start, int | float) else None
        still = ", ".join(f"<code>{escape(name)}</code>" for name in moved(rated, start)[1])
        remark = (
            f'<p class="soft">Left out, since but for rounding they stayed where they began: {still}. A bias in front '
            "of a batch norm has no effect, so the gradient of its rate is zero.</p>"
        )
        yield "Inner rates", remark if still else "", rates(rated, start)


def _figure(figure: Figure) -> str:
    return (
        f'<figure class="{"half" if figure.half else "whole"}"><h3>{escape(figure.title)}</h3>'
        f'<div class="plot" id="{figure.name}" role="img" aria-label="{escape(figure.alt)}" '
        f'style="height:{figure.layout["height"]}px"></div><figcaption>{escape(figure.caption)}</figcaption></figure>'
    )


def _details(run: Account) -> str:
    shapes = run.config.get("parameters") or {}
    chosen = {name: value for name, value in run.config.items() if name != "parameters"}
    scalars = sum(math.prod(shape) for shape in shapes.values())
    listed = {name: " × ".join(map(str, shape)) or "1" for name, shape in shapes.items()}
    return (
        "<details><summary>Resolved configuration, meta-parameters and environment</summary>"
        + "".join(_table(name, value if isinstance(value, dict) else {name: value}) for name, value in chosen.items())
        + (_table(f"meta-parameters: {scalars:,} numbers", listed) if listed else "")
        + (_table("environment", run.environment) if run.environment else "")
        + "</details>"
    )


def _table(name: str, record: Record) -> str:
    rows = "".join(f"<tr><td>{escape(key)}</td><td>{escape(str(value))}</td></tr>" for key, value in _flat(record))
    return f"<table><caption>{escape(name)}</caption>{rows}</table>"


def _flat(record: Record, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in record.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, "–" if value is None else value


def _version(run: Account) -> str:
    return f" {run.environment['fewstep']}" if run.environment.get("fewstep") else ""
