"""`fewstep evaluate`: measure a run on the fixed test tasks."""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fewstep.cli.console import EvaluationProgress, console, fraction, program
from fewstep.cli.machine import device, prepare
from fewstep.errors import BadInput
from fewstep.methods.parts import Statistics
from fewstep.reporting.comparison import NORMALISED
from fewstep.reporting.page import write_page
from fewstep.training.evaluation import Score, evaluate
from fewstep.training.experiment import load_run
from fewstep.training.run import Run


@dataclass(frozen=True)
class Evaluate:
    """Measure a run on fixed tasks of unseen classes: 600 of them, the same for every run.

    Example: fewstep evaluate runs/x --count 600 --format json

    Arguments:
        directory: Run directory.
        count: Tasks (600).
        split: Whose classes: train, validation or test (test).
        steps: Inner steps; those it was trained with if not given.
        statistics: What normalises queries: batch, running or support;
            the method's if not given.
        ensemble: Best validation epochs to average the logits of;
            else the method's.
        data_dir: Where the data lie; else $FEWSTEP_DATA, ./data.
        config: TOML file of these options; the command line wins.
        device: cpu, cuda, cuda:N; auto is cuda where there is one.
        threads: Processor threads.
        format: text, or json to print JSON alone.
    """

    directory: Path
    count: int = 600
    split: Literal["train", "validation", "test"] = "test"
    steps: int | None = None
    statistics: Statistics | None = None
    ensemble: int | None = None
    data_dir: str | None = None
    config: Path | None = None
    device: str = "auto"
    threads: int | None = None
    format: Literal["text", "json"] = "text"

    def run(self) -> int:
        prepare(self.threads)
        where = device(self.device)
        run = Run(self.directory)
        learner, tasks = load_run(self.directory, self.data_dir)
        learner.to(where)
        options: dict[str, Any] = {"split": self.split, "steps": self.steps, "statistics": self.statistics}
        wanted = learner.method.recipe.ensemble if self.ensemble is None else self.ensemble
        if wanted < 1:
            raise BadInput(f"ensemble is {wanted}; average the logits of at least one epoch")
        size = min(wanted, len(run.best()))
        with EvaluationProgress(self.count * (1 + (size > 1))) as watch:
            single = evaluate(learner, tasks, self.count, **options, watch=watch)
            many = None
            if size > 1:
                options |= {"members": run.ensemble(learner, size), "every_step": False, "per_query": False}
                many = evaluate(learner, tasks, self.count, **options, watch=watch)
        record = {
            "run": str(self.directory),
            "split": self.split,
            "epoch": run.best()[0][0],
            "single": single.to_json(),
            "ensemble": many.to_json() if many else None,
            "interval": "95 % over tasks, t · std / √count, Student's t",
        }
        # Shown before it is written: a measurement takes minutes, and the folder may be read-only.
        if self.format == "json":
            print(json.dumps(record))
        else:
            _print(single, many, self.split, learner.has_batch_norm)
        run.write_score(record)
        page = write_page(run)
        if self.format == "text":
            console.print(f"run  {run.directory}\npage {page}")
            console.print(f"next {program()} presets {shlex.quote(learner.method.name)}   (what was trained)")
            console.print(f"     {program()} train maml++ --help   (your own settings and data)")
        return 0


def _print(single: Score, many: Score | None, split: str, normed: bool) -> None:
    kind = f"; queries normalised by {NORMALISED[single.statistics]}" if normed else ""
    console.print(f"{single.count} {split} tasks, {single.steps} inner steps{kind}")
    console.print(f"  {single.metric} after adaptation   {single}   (best validation epoch, {single.seconds:.0f} s)")
    if many:
        console.print(f"  ensemble of the best {many.members}     {many}")
    if single.per_query is not None:
        spread = f"{single.per_query:.2%} ± {single.per_query_interval95:.2%}"
        console.print(f"  each query alone          {spread}   (normalised by the support set)")
    before = fraction(single.by_step[0]) if single.chance else f"{single.by_step[0]:.4f}"
    console.print(f"  without adaptation        {before}")
    if single.chance:
        console.print(f"  chance                    {single.chance:.1%}")
    steps = ", ".join(fraction(v) if single.chance else f"{v:.3f}" for v in single.by_step)
    console.print(f"  after 0, 1, … steps       {steps}")
