"""The top of a run's page: what was trained, how far it is, and its figures of merit."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from fewstep.reporting.curves import best_validation
from fewstep.reporting.figure import Record, number

NORMALISED = {
    "batch": "by their own batch (transductive: the answer to one query depends on which others arrive with it)",
    "running": "by running statistics of each inner step",
    "support": "by the support set, so an answer depends on no other query",
}


@dataclass(frozen=True)
class Account:
    """What a run directory tells.

    Arguments:
        directory: the run's. config, environment: its files.
        train, validation: its metrics by kind, in order.
        score: score.json; empty where nothing was evaluated.
    """

    directory: Path
    config: Record
    environment: Record
    train: Sequence[Record]
    validation: Sequence[Record]
    score: Record

    @property
    def method(self) -> Record:
        return self.config.get("method") or {}

    @property
    def tasks(self) -> Record:
        return self.config.get("tasks") or {}

    @property
    def training(self) -> Record:
        return self.config.get("training") or {}

    @property
    def title(self) -> str:
        return f"{self.method.get('name', 'a method')} on {self.tasks.get('name', 'own tasks')}"

    @property
    def split(self) -> str:
        return str(self.score.get("split", "test"))

    @property
    def last(self) -> Record:
        """The latest record of either kind; empty before the first."""
        return max([*self.validation[-1:], *self.train[-1:]], key=lambda r: r["step"], default={})

    @property
    def state(self) -> str:
        """Finished, or how far."""
        step, total = self.last.get("step", 0), self.training.get("epochs", 0) * self.training.get("iterations", 0)
        if total and self.validation and self.validation[-1]["step"] >= total:
            return f"finished after {total:,} outer steps"
        return f"outer step {step:,} of {total:,}" if total else f"outer step {step:,}"


def headline(run: Account) -> str:
    """Title, tasks, state, and a sentence for whoever meets all this for the first time."""
    ways, shots = run.tasks.get("ways"), run.tasks.get("shots")
    sizes = ", ".join([f"{ways}-way {shots}-shot"] if ways and shots else _count(shots, "support point"))
    steps = ", ".join(_count(run.method.get("steps"), "inner step"))
    line = " · ".join([*filter(None, (sizes, steps)), f'<span class="state">{escape(run.state)}</span>'])
    if ways and shots:
        what = (f"A task: {ways} classes, {_count(shots, 'labelled image')[0]} of each to learn from (the support "
                "set), and further images to sort (the query set).")  # fmt: skip
    else:
        what = "A task: a few examples to learn from (the support set), and more to be judged by (the query set)."
    taken = "a gradient step" if steps == "1 inner step" else "gradient steps"
    what += (" Trained on many such tasks, the model adapts to one it has never seen in "
             f"{steps or 'a few inner steps'}: {taken} on that task's support set.")  # fmt: skip
    return f'<h1>{escape(run.title)}</h1>\n<p>{line}</p>\n<p class="soft">{escape(what)}</p>'


def _count(value: Any, what: str) -> list[str]:
    return [] if value is None else [f"{value} {what}{'' if value == 1 else 's'}"]


def scores(run: Account) -> str:
    """The row of figures: the score, or while there is none how validation and training stand."""
    cells: list[tuple[str, str, str]] = []
    single, many = run.score.get("single"), run.score.get("ensemble")
    if single:
        metric = single["metric"]
        epoch = run.score.get("epoch")
        where = "" if epoch is None else f", best validation epoch ({epoch + 1})"
        cells.append((number(single["value"], metric), number(single.get("interval95"), metric),
                      f"{run.split} {metric}{where}"))  # fmt: skip
        if many:
            cells.append((number(many["value"], metric), number(many.get("interval95"), metric),
                          f"ensemble of the {many['members']} best epochs"))  # fmt: skip
        if single.get("per_query") is not None:
            cells.append((number(single["per_query"], metric), number(single.get("per_query_interval95"), metric),
                          "each query alone"))  # fmt: skip
        if len(single["by_step"]) > 1:
            cells.append((number(single["by_step"][0], metric), "", "without adaptation"))
        if single.get("chance"):
            cells.append((number(single["chance"], metric), "", "chance"))
    else:
        if run.validation:
            best = best_validation(run.validation)
            metric = best["metric"]
            cells.append((number(best["value"], metric), number(best["interval95"], metric),
                          f"validation {metric}, best epoch ({best['epoch'] + 1})"))  # fmt: skip
        if run.train:
            latest = run.train[-1]
            if latest.get("accuracy") is not None:
                cells.append((number(latest["accuracy"], "accuracy"), "", "training query accuracy, latest"))
            cells.append((number(latest["loss"], "loss"), "", "training loss, latest"))
    if not cells:
        return "<p>Nothing has been measured yet: the first figures come with the first outer steps.</p>"
    row = "".join(
        f"<div{' class=first' if i == 0 else ''}><dt>{escape(label)}</dt>"
        f"<dd>{value}{f' <small>± {spread}</small>' if spread else ''}</dd></div>"
        for i, (value, spread, label) in enumerate(cells)
    )
    note = "" if single else (f"<p>Not evaluated yet: <code>fewstep evaluate {escape(str(run.directory))}</code> "
                              "measures it on classes seen neither in training nor in validation.</p>")  # fmt: skip
    return f'<dl class="scores">{row}</dl>{note}'


def facts(run: Account) -> str:
    """How it was measured, what it took, and the command."""
    rows: list[tuple[str, str]] = []
    single = run.score.get("single")
    if single:
        steps = ", ".join(_count(single["steps"], "inner step"))
        rows.append(("measured on", f"{single['count']:,} {run.split} tasks, {steps}; ± is half of the 95 % interval "
                     "over tasks"))  # fmt: skip
        if _normed(run, single):
            rows.append(("queries normalised", NORMALISED.get(single["statistics"], str(single["statistics"]))))
        if single.get("per_query") is not None:
            rows.append(("each query alone", "normalised by the support set, as a deployed predictor does it"))
    if "seconds" in run.last:
        speed = statistics.median([r["tasks_per_second"] for r in run.train if "tasks_per_second" in r] or [0.0])
        pace = f", {speed:,.{int(speed < 10)}f} tasks a second" if speed else ""
        rows.append(("training", _duration(run.last["seconds"]) + pace))
    if run.training:
        rows.append(("length", "{epochs} epochs of {iterations} outer steps, {meta_batch} tasks in a meta-batch, "
                     "{validation_tasks} validation tasks".format_map(_Known(run.training))))  # fmt: skip
    machine = [run.environment.get("device"), run.environment.get("processor")]
    threads = _count(run.environment.get("threads"), "thread")
    if any(machine):
        rows.append(("machine", ", ".join([*(str(m) for m in machine if m), *threads])))
    body = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in rows)
    if run.environment.get("command"):
        body += f"<dt>command</dt><dd><code>{_command(str(run.environment['command']))}</code></dd>"
    return f'<dl class="facts">{body}</dl>'


def _command(line: str) -> str:
    """A command as it is typed: the program without its folder, and no option broken at its hyphens."""
    program, *options = line.split(" ")
    words = [escape(word) for word in (program.rpartition("/")[2], *options)]
    return " ".join(f"<span>{word}</span>" if len(word) < 32 else word for word in words)


class _Known(dict[str, Any]):
    def __missing__(self, key: str) -> str:
        return "?"


def _normed(run: Account, single: Record) -> bool:
    """Whether the model has norm layers, as far as the files tell."""
    names = run.config.get("parameters") or {}
    return single.get("per_query") is not None or any(".norm" in name or ".bn" in name for name in names)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
