"""Write docs/methods.md from what runs: presets, their parts, and measured JSON.

python docs/build.py
"""

import inspect
import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from fewstep.methods import PRESETS, Method, differences, preset

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "methods.md"
COST = ROOT / "results" / "cost.json"
COMPARISONS = {  # what `fewstep compare` wrote, and what was compared on
    "strokes, 5-way 1-shot": ROOT / "results" / "strokes-5w1s-every-preset.json",
    "Omniglot, 5-way 1-shot": ROOT / "results" / "omniglot-5w1s-three-presets.json",
}

HEAD = """# Methods

<!-- Written by `python docs/build.py`; a test compares it with the presets. -->

A method is a record of parts; a preset is a short function that returns one. What differs from `maml` is all there is
to a preset: every section shows it as code, which the tests run. `fewstep presets NAME` prints the same on a terminal,
and any part can be exchanged: `fewstep.preset("maml", norm__affine="per_step")`.

θ is the initialisation, θ_i the fast weights after i inner steps, α the inner rate, β the outer rate, p the fraction of
the training done, γ_i and β_i the norm weights of step i.
"""


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


def code(name: str) -> str:
    """The preset as `maml` with other parts."""
    changed = differences(preset(name), preset("maml"))
    parts = sorted({type(value).__name__ for value, _ in changed.values() if hasattr(value, "__dataclass_fields__")})
    lines = ["import fewstep", *([f"from fewstep.methods import {', '.join(parts)}"] if parts else []), ""]
    arguments = "".join(f"    {path}={value!r},\n" for path, (value, _) in changed.items())
    lines += [f'method = fewstep.preset(\n    "maml",\n{arguments})' if changed else 'method = fewstep.preset("maml")']
    return "\n".join(lines)


def measured(name: str) -> list[str]:
    """Cost and accuracy of a preset, where they have been measured."""
    lines, cost = [], read(COST)
    if entry := cost.get("presets", {}).get(name):
        ratio = f"**{entry['ratio']:.2f}** times `maml`'s ({entry['low']:.2f} to {entry['high']:.2f})"
        lines.append(f"Measured: an outer step takes {ratio}; {cost['what']}.")
    for tasks, path in COMPARISONS.items():
        found = read(path)
        for entry in (e for e in found.get("entries", []) if e["name"] == name):
            lines += ["", f"Measured on {tasks}: {accuracy(entry, found)}; [all rows](../results/README.md)."]
    return lines


def accuracy(entry: dict[str, Any], found: dict[str, Any]) -> str:
    """A row of a comparison in words: value, interval, spread over seeds, difference to the first row."""
    length = entry["runs"][0]["config"]["training"]
    said = f"**{entry['value']:.1%}** ± {entry['interval95']:.1%} over {found['count']} test tasks after "
    said += f"{length['epochs'] * length['iterations']} outer steps of {length['meta_batch']} tasks, mean of "
    said += f"{len(entry['seeds'])} seeds with a standard deviation of {entry['spread']:.1%}"
    if entry["difference"] is not None:
        points = f"{100 * entry['difference']:+.1f} ± {100 * entry['difference_interval95']:.1f} points"
        said += f", {points} to `{found['entries'][0]['name']}`"
    return said


def text(docstring: str) -> list[str]:
    """A docstring as Markdown: equations and tables stay indented blocks, lists lose their indentation."""
    lines: list[str] = []
    listed = False
    for line in inspect.cleandoc(docstring).splitlines():
        before, listed = listed, line.startswith("    - ") or (listed and line.startswith("     "))
        if lines and (lines[-1].endswith(":") or (before and not listed and line)):
            lines.append("")
        lines.append(line[4:] if listed else line)
    return lines


def section(name: str) -> str:
    return "\n".join(
        [f"## {name}", "", *text(PRESETS[name].__doc__ or ""), "", "```python", code(name), "```", *measured(name), ""]
    )


def parts_table() -> str:
    """A row a preset, a column a choice; a choice that is `maml`'s is left blank."""
    anchors, changed = anchor_of_each(), {name: differences(preset(name), preset("maml")) for name in PRESETS}
    columns = [
        f.name for f in fields(Method) if any(f.name == p.partition("__")[0] for c in changed.values() for p in c)
    ]
    rows = ["| preset | " + " | ".join(columns) + " |", "| --- " * (len(columns) + 1) + "|"]
    for name, paths in changed.items():
        cells = [", ".join(cell(path, value) for path, (value, _) in paths.items() if path.partition("__")[0] == column)
                 for column in columns]  # fmt: skip
        rows.append(f"| [`{name}`](#{anchors[name]}) | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def cell(path: str, value: Any) -> str:
    """`inner=0.0005`, or the bare name of a part: the section has its numbers."""
    inside = path.partition("__")[2]
    shown = type(value).__name__ if hasattr(value, "__dataclass_fields__") else str(value)
    return f"{inside}={shown}" if inside else shown


def anchor_of_each() -> dict[str, str]:
    """The anchors that GitHub gives the headings: letters, digits and dashes, numbered where they repeat."""
    slugs = ["methods", *(re.sub(r"[^a-z0-9-]", "", name) for name in PRESETS)]
    numbered = [f"{s}-{slugs[:i].count(s)}" if s in slugs[:i] else s for i, s in enumerate(slugs)]
    return dict(zip(PRESETS, numbered[1:], strict=True))


def page() -> str:
    return "\n".join([HEAD, parts_table(), "", *(section(name) for name in PRESETS)]).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
