"""What `benchmarks.memory` measured as Markdown tables and a figure."""

import math
from pathlib import Path
from typing import Any

from benchmarks.table import rows

BLUE, ORANGE, GREY = "#2a86c8", "#dd7711", "#8a8f98"
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 560, 300, 62, 16, 110, 44


def megabytes(count: float) -> str:
    return f"{count / 1e6:.0f}"


def _spread(found: dict[str, Any]) -> str:
    each = found["each"]
    return megabytes(found["bytes"]) + (f" ({megabytes(min(each))}–{megabytes(max(each))})" if len(each) > 1 else "")


def _steps(found: list[dict[str, Any]]) -> str:
    body = [
        [str(e["steps"]), _spread(e["loop"]), _spread(e["recompute"]),
         *(f"{e['difference'][dtype]:.0e}" for dtype in ("float64", "float32"))]
        for e in found
    ]  # fmt: skip
    head = ["inner steps", "`loop`, MB", "`recompute`, MB", "difference, float64", "difference, float32"]
    return rows(head, *body)


def _needs(found: list[dict[str, Any]]) -> str:
    body = []
    for e in sorted(found, key=lambda e: e["workload"]):
        ratio = e["estimate"]["bytes"] / e["truth"]["bytes"]
        body.append([
            e["workload"], f"`{e['strategy']}`" + (", by `auto`" if e["auto"] else ""), _spread(e["estimate"]),
            _spread(e["truth"]), f"{ratio:.2f}", "yes" if 0.75 <= ratio <= 1.25 else "no",
        ])  # fmt: skip
    head = ["", "strategy", "estimate, MB", "truth, MB", "estimate / truth", "within 25 %"]
    return rows(head, *body)


def _evaluation(found: list[dict[str, Any]]) -> str:
    return rows(["tasks", "peak, MB"], *([str(e["tasks"]), f"{e['bytes'] / 1e6:.1f}"] for e in found))


def markdown(results: dict[str, Any]) -> str:
    """All tables of a record."""
    machine = results["machine"]
    libraries = ", ".join(f"{name} {version}" for name, version in machine["libraries"].items())
    parts = [f"{machine['processor']}, one thread, float32; Python {machine['python']}, {libraries}."]
    if "steps" in results:
        parts += ["## By inner steps: one task of W1, one meta-gradient", _steps(results["steps"]),
                  "![Peak memory against inner steps, of `loop` and `recompute`](performance/memory.svg)"]  # fmt: skip
    if "needs" in results:
        parts += ["## Estimate and truth", _needs(results["needs"])]
    if "evaluation" in results:
        parts += ["## Evaluation: 5-way 1-shot strokes, Conv4-8, MAML++ in 5 steps", _evaluation(results["evaluation"])]
    return "\n\n".join(parts) + "\n"


def svg(found: list[dict[str, Any]]) -> str:
    """Peak memory against inner steps, a line a strategy."""
    right = max(e["steps"] for e in found)
    top = _round_up(max(e["loop"]["bytes"] for e in found) / 1e6)

    def at(steps: float, size: float) -> tuple[float, float]:
        x = LEFT + steps / right * (WIDTH - LEFT - RIGHT)
        return x, HEIGHT - BOTTOM - size / top * (HEIGHT - TOP - BOTTOM)

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="system-ui, sans-serif" '
        f'font-size="12" fill="{GREY}" role="img">',
        "<title>Peak memory of the meta-gradient of one task against inner steps</title>",
    ]
    for part in range(5):
        x, y = at(0, top * part / 4)
        lines.append(f'<path d="M{x:.1f} {y:.1f}H{WIDTH - RIGHT}" stroke="{GREY}" stroke-opacity=".25"/>')
        lines.append(f'<text x="{x - 8:.1f}" y="{y + 4:.1f}" text-anchor="end">{top * part / 4:g}</text>')
    for e in found:
        x, y = at(e["steps"], 0)
        lines.append(f'<text x="{x:.1f}" y="{y + 18:.1f}" text-anchor="middle">{e["steps"]}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    lines.append(f'<text x="{middle:.1f}" y="{HEIGHT - 6}" text-anchor="middle">inner steps</text>')
    turned = f'transform="rotate(-90 14 {HEIGHT / 2:.0f})"'
    lines.append(f'<text x="14" y="{HEIGHT / 2:.0f}" text-anchor="middle" {turned}>peak memory, MB</text>')
    for strategy, colour in (("loop", ORANGE), ("recompute", BLUE)):
        points = [at(e["steps"], e[strategy]["bytes"] / 1e6) for e in found]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        lines.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        lines += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in points]
        x, y = points[-1]
        lines.append(f'<text x="{x + 10:.1f}" y="{y + 4:.1f}" fill="{colour}">{strategy}</text>')
    return "\n".join([*lines, "</svg>"]) + "\n"


def _round_up(value: float) -> float:
    """To one of 1, 2, 4, 6, 8, 10 times a power of ten: quarters of it are short numbers."""
    power = 10 ** math.floor(math.log10(value))
    return next(power * step for step in (1, 2, 4, 6, 8, 10) if power * step >= value)


def draw(found: list[dict[str, Any]], path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(svg(found))
