"""What a training shows: one progress bar on a terminal, plain lines elsewhere."""

import os
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

# What is printed is text, names of folders included: no markup in it, and no emoji.
console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
errors = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)


def program() -> str:
    """How this command was called, so that a printed command can be pasted."""
    called = sys.argv[0]
    if called.endswith(".py"):
        return "python -m fewstep.cli.main"
    on_path = shutil.which("fewstep")
    return "fewstep" if on_path and os.path.realpath(on_path) == os.path.realpath(called) else shlex.quote(called)


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
            spread = "–" if interval is None else f"{interval:{'.2%' if record['metric'] == 'accuracy' else '.4f'}}"
            lost = f", {record['diverged']} diverged" if record.get("diverged") else ""
            best = " (best so far)" if record["best_epoch"] == record["epoch"] else ""
            console.print(
                f"epoch {record['epoch'] + 1}: validation {value} ± {spread} on {record['count']} tasks{lost}{best}"
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


class ContestProgress:
    """Which of several trainings is under way, how it goes, and the time left for all; on standard error.

    Arguments:
        steps: outer steps done and in all, of each training that is to be done.
    """

    def __init__(self, steps: Sequence[tuple[int, int]]) -> None:
        self._steps, self._number, self._label = steps, 0, ""
        self._started = time.perf_counter()
        self._left = sum(total - done for done, total in steps)
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(None), TextColumn("{task.fields[left]}"),
            console=errors, transient=True, disable=not (sys.stderr.isatty() and steps),
        )  # fmt: skip
        self._task = self._progress.add_task("", total=self._left, left="")

    def __enter__(self) -> "ContestProgress":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def begin(self, label: str) -> None:
        """The next training begins."""
        self._number += 1
        self._label = f"[{self._number}/{len(self._steps)}] {label}"
        self._say("training", always=True)

    def __call__(self, record: dict[str, Any]) -> None:
        """The latest record of its metrics."""
        done, total = self._steps[self._number - 1]
        now = sum(t - d for d, t in self._steps[: self._number - 1]) + max(record["step"] - done, 0)
        seconds = (time.perf_counter() - self._started) / max(now, 1) * (self._left - now)
        measured = f" · validation {record['value']:.4f}" if record["kind"] == "validation" else ""
        said = f"epoch {record['epoch'] + 1}, step {record['step']}/{total}{measured}"
        self._say(said, now, f"{seconds / 60:.1f} min left", always=bool(measured))

    def _say(self, said: str, done: int | None = None, left: str = "", always: bool = False) -> None:
        line = f"{self._label}: {said}"
        self._progress.update(self._task, description=escape(line), completed=done, left=left)
        if self._progress.disable and always:
            errors.print(" · ".join(filter(None, (line, left))))
