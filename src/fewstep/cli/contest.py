"""What `compare` and `ablate` share: train what is missing, measure all on the same tasks, show and write the table."""

import json
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from fewstep.cli.child import train_apart
from fewstep.cli.console import ContestProgress, EvaluationProgress, console, errors, program
from fewstep.cli.entries import DataSets, Entries, same_tasks
from fewstep.cli.machine import device, prepare
from fewstep.cli.options import Budget, Measuring
from fewstep.errors import BadInput
from fewstep.reporting.comparison import as_csv, cells, headline, remarks, titles
from fewstep.tasks import Tasks
from fewstep.training.checkpoint import write_atomically
from fewstep.training.comparison import Entry, Row, compare
from fewstep.training.evaluation import Score, evaluate
from fewstep.training.interrupt import Interrupted, stopping
from fewstep.training.run import environment


@dataclass
class Contest:
    """A comparison under way.

    Arguments:
        entries: what is compared, the one that differences are taken to first.
        measuring, budget: what was asked for. directory: where it goes. data: the data sets read so far.
        notes: what a reader of the table must know.
    """

    entries: Entries
    measuring: Measuring
    budget: Budget
    directory: Path
    data: DataSets
    notes: list[str] = field(default_factory=list)
    statistics: dict[str, str] = field(default_factory=dict)  # by entry, where the model has batch norms

    def hold(self) -> int:
        """Train, measure, show and write; the exit status.

        Raises:
            BadInput: entries of different test tasks, nothing that could be measured.
        """
        prepare(self.budget.threads)
        where = device(self.budget.device)  # before any training: a mistake must not cost one
        if self.measuring.count < 1:
            raise BadInput(f"count is {self.measuring.count}; measure on at least one task")
        tasks, mark = same_tasks(self.entries, self.measuring.count, self.data)
        try:
            self._train()
            scores = self._measure(tasks, where)
        except KeyboardInterrupt as stopped:
            errors.print(f"{stopped or 'stopped'}; what is trained stays. Go on with:")
            errors.print(f"  {program()} {shlex.join(sys.argv[1:])}")
            return 130
        rows = self._rows(scores)
        self.notes += remarks(rows, self.statistics)
        record = self._record(rows, scores, {"description": tasks.description, "fingerprint": mark}, where)
        # Shown before it is written: measurements take long, and the folder may be read-only.
        if self.measuring.format == "json":
            print(json.dumps(record))
        else:
            self._show(rows)
        write_atomically(self.directory / "comparison.csv", as_csv(rows).encode())
        write_atomically(self.directory / "comparison.json", (json.dumps(record, indent=1) + "\n").encode())
        if self.measuring.format == "text":
            console.print(f"rows  {self.directory / 'comparison.csv'}")
            console.print(f"all   {self.directory / 'comparison.json'}")
        return 0

    def _train(self) -> None:
        """Train what is not finished; what fails is noted and left out."""
        trainings = [(name, t) for name, several in self.entries.items() for t in several if not t.taken]
        missing = [(name, t) for name, t in trainings if not (t.run.begun and t.run.finished)]
        with ContestProgress([t.steps for _, t in missing]) as progress:
            for name, training in missing:
                progress.begin(f"{name}, seed {training.seed}")
                log = self.directory / f"{training.run.directory.name}.log"
                failure = train_apart(training.arguments, training.run, log, progress)
                if failure:
                    self.notes.append(f"{name}, seed {training.seed}, failed and is left out ({log}): {failure}")
                    errors.print(self.notes[-1])

    def _measure(self, tasks: Tasks, where: torch.device) -> dict[str, dict[int, Score]]:
        """Every run at its best validation epoch, by name and seed."""
        ready = [(name, t) for name, several in self.entries.items() for t in several if t.taken or t.run.finished]
        scores: dict[str, dict[int, Score]] = {}
        count = self.measuring.count
        with stopping() as stop, EvaluationProgress(count * len(ready)) as progress:

            def watch(done: int) -> None:
                progress(done)
                if stop.asked:
                    raise Interrupted("stopped while measuring")

            for name, training in ready:
                learner, _ = training.experiment.build(self.data(training.experiment))
                learner.to(where)
                self.budget.tell(learner)
                training.run.load(learner)
                try:
                    with suppress(BadInput):  # should that one task diverge
                        evaluate(learner, tasks, 1)  # warm-up: what is done once a process is not timed
                    score = evaluate(learner, tasks, count, every_step=False, per_query=False, watch=watch)
                except BadInput as error:
                    self.notes.append(f"{name}, seed {training.seed}, is left out: {error}")
                    continue
                scores.setdefault(name, {})[training.seed] = score
                if learner.has_batch_norm:
                    self.statistics[name] = score.statistics
                if not training.run.finished:
                    done, total = training.steps
                    self.notes.append(f"{name}, seed {training.seed}, is not finished: outer step {done} of {total}")
        if not scores:
            raise BadInput("nothing could be measured. " + " ".join(self.notes))
        return scores

    def _rows(self, scores: dict[str, dict[int, Score]]) -> list[Row]:
        entries = []
        for name, measured in scores.items():
            runs = [t.run for t in self.entries[name] if t.seed in measured]
            seconds = [run.seconds() for run in runs]
            memory = [run.peak_memory() for run in runs]
            entries.append(Entry(
                name,
                {seed: score.per_task for seed, score in measured.items()},
                None if None in seconds else sum(filter(None, seconds)) / len(seconds),
                sum(score.seconds for score in measured.values()) / len(measured),
                None if None in memory else max(filter(None, memory)),
            ))  # fmt: skip
        one = next(iter(next(iter(scores.values())).values()))
        return compare(entries, one.metric)

    def _record(
        self, rows: Sequence[Row], scores: dict[str, dict[int, Score]], tasks: dict[str, Any], where: torch.device
    ) -> dict[str, Any]:
        """All that is needed to compute the table again."""
        return {
            "headline": headline(rows),
            "notes": self.notes,
            "interval": "95 % over tasks, t · std / √count, Student's t; differences are taken task by task",
            "count": self.measuring.count,
            "tasks": tasks,
            "entries": [
                {**row.to_json(), "runs": [
                    {
                        "directory": str(t.run.directory),
                        "command": shlex.join(["fewstep", "train", *t.arguments]),
                        "epoch": t.run.best()[0][0],
                        "config": t.run.config,
                        "environment": t.run.environment,
                        "training_seconds": t.run.seconds(),
                        "peak_memory": t.run.peak_memory(),
                        "seed": t.seed,
                        "score": scores[row.name][t.seed].to_json(),
                    }
                    for t in self.entries[row.name] if t.seed in scores[row.name]
                ]}
                for row in rows
            ],
            "environment": environment(str(where)),
        }  # fmt: skip

    def _show(self, rows: Sequence[Row]) -> None:
        table = Table(box=None, pad_edge=False, header_style="bold", title_justify="left")
        for number, title in enumerate(titles(rows[0])):
            table.add_column(title, justify="right" if number else "left")
        for row in rows:
            table.add_row(*cells(row), style="bold" if row.best else None)
        console.print(headline(rows))
        console.print()
        needed = Measurement.get(console, console.options.update(max_width=1000), table).maximum
        # A narrow terminal breaks the lines; a cut number would be worse.
        Console(width=max(needed, console.width), highlight=False, markup=False, emoji=False).print(table, crop=False)
        console.print(
            f"\n{self.measuring.count} test tasks, the same for all; ± is half of a 95 % interval over tasks; "
            "over seeds: standard deviation\ntraining and evaluation of one run; memory: the most one training held; "
            "* best",
        )  # fmt: skip
        for note in self.notes:
            console.print(note)
