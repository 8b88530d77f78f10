"""What a training shows: one progress bar on a terminal, plain lines elsewhere."""

import os
import shutil
import sys
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

console = Console(highlight=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, soft_wrap=True)


def program() -> str:
    """How this command was called, so that a printed command can be pasted."""
    called = sys.argv[0]
    if called.endswith(".py"):
        return "python -m fewstep.cli.main"
    on_path = shutil.which("fewstep")
    return "fewstep" if on_path and os.path.realpath(on_path) == os.path.realpath(called) else called


def fraction(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


class TrainingProgress:
    """A `watch` for `fewstep.train`: epoch, loss, query accuracy, tasks per second, outer rate, time left."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        if sys.stdout.isatty():
            text = "epoch {task.fields[epoch]} · {task.fields[loss]}{task.fields[speed]} · rate {task.fields[rate]}"
            self._bar = Progress(
                BarColumn(None),
                MofNCompleteColumn(),
                TextColumn(text),
                TimeRemainingColumn(),
                TextColumn("left"),
                console=console,
            )
            self._task = self._bar.add_task("", total=None, epoch="–", loss="starting", speed="", rate="–")
        self._started = time.perf_counter()
        self._first: int | None = None  # outer steps done before this process

    def __enter__(self) -> "TrainingProgress":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()

    def __call__(self, kind: str, record: dict[str, Any]) -> None:
        if kind == "step":
            self._step(record)
        elif kind == "validation":
            value = f"{record['value']:.2%}" if record["metric"] == "accuracy" else f"loss {record['value']:.4f}"
            interval = record["interval95"]
            spread = f"{interval:.2%}" if record["metric"] == "accuracy" else f"{interval:.4f}"
            best = " (best so far)" if record["best_epoch"] == record["epoch"] else ""
            console.print(
                f"epoch {record['epoch'] + 1}: validation {value} ± {spread} on {record['count']} tasks{best}"
            )
        elif self._bar:
            self._bar.update(self._task, loss=_numbers(record), speed=f"{record['tasks_per_second']:.0f} tasks/s")
        else:
            left = (self._total - record["step"]) * self._seconds_a_step
            console.print(
                f"step {record['step']}/{self._total}: {_numbers(record)}{record['tasks_per_second']:.0f} tasks/s · "
                f"outer rate {record['outer_rate']:.2e} · {left / 60:.1f} min left"
            )

    def _step(self, record: dict[str, Any]) -> None:
        self._total = record["total"]
        if self._first is None:
            self._first = record["step"] - 1
        self._seconds_a_step = (time.perf_counter() - self._started) / (record["step"] - self._first)
        if self._bar:
            self._bar.update(
                self._task,
                completed=record["step"],
                total=record["total"],
                epoch=f"{record['epoch'] + 1}/{record['epochs']}",
                rate=f"{record['rate']:.1e}",
            )


def _numbers(record: dict[str, Any]) -> str:
    accuracy = "" if record["accuracy"] is None else f"query accuracy {fraction(record['accuracy'])} · "
    return f"loss {record['loss']:.4f} · {accuracy}"


class EvaluationProgress:
    """A `watch` for `fewstep.evaluate`: a bar of tasks done, on a terminal only."""

    def __init__(self, total: int) -> None:
        self._progress = Progress(
            TextColumn("evaluating"), BarColumn(None), MofNCompleteColumn(), TimeRemainingColumn(),
            console=errors, transient=True, disable=not sys.stderr.isatty(),
        )  # fmt: skip
        self._task = self._progress.add_task("", total=total)
        self._last = 0

    def __enter__(self) -> "EvaluationProgress":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, done: int) -> None:
        """`done` counts from one again at the next evaluation."""
        self._progress.advance(self._task, done - self._last if done > self._last else done)
        self._last = done
