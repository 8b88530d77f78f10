"""`fewstep train`: meta-train a preset."""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep.cli.choices import Preset
from fewstep.cli.console import TrainingProgress, console, program
from fewstep.cli.machine import device, prepare
from fewstep.cli.memory import memory_line
from fewstep.cli.options import Budget, TrainingVerb
from fewstep.errors import BadInput
from fewstep.metalearning.ranks import Ranks
from fewstep.reporting.page import write_page
from fewstep.training.interrupt import Interrupted
from fewstep.training.run import Run
from fewstep.training.torchrun import launched, torchrun
from fewstep.training.trainer import train


@dataclass(frozen=True)
class Train(TrainingVerb):
    """Meta-train a preset; the same command resumes it. Images, strategies: --help-all.

    Example: fewstep train maml++ --data omniglot --data-dir data --ways 5 --directory runs/x

    Arguments:
        preset: maml, maml++, …: see `fewstep presets`.
        directory: Run directory; else runs/PRESET-DATA-WAYSxSHOTS.
        config: TOML file of options; the command line wins.
        seed: Of initial weights and training tasks (0).
    """

    preset: Preset
    directory: Path | None = None
    config: Path | None = None
    seed: int = 0

    def run(self) -> int:
        with torchrun() as ranks:
            return self._train(ranks)

    def _train(self, ranks: Ranks) -> int:
        budget = self.of(Budget)
        prepare(budget.threads)
        where = device(budget.device)
        experiment = self.experiment(self.preset, self.seed)
        learner, tasks = ranks.together(experiment.build)
        run = Run(self.directory or Path("runs") / run_name(self.preset, tasks.description))
        if not run.exists:
            experiment.refuse_unused()
        if not run.exists and not str(run.directory).isprintable():
            raise BadInput(f"--directory {str(run.directory)!r} holds characters that cannot be printed; take another")
        learner.to(where if ranks.size == 1 else ranks.device)
        learner.ranks = ranks
        budget.tell(learner)
        if run.exists and run.finished:
            console.print(f"{run.directory} is finished: nothing to train")
        elif run.last.is_file():
            console.print(f"{run.directory}: resuming after outer step {run.state()['step']}")
        else:
            console.print(f"{run.directory}: {self.preset} on {experiment.data}, seed {self.seed}")
        meta_batch = budget.filled(learner.method.recipe).tasks
        if meta_batch and meta_batch > 0 and not (run.exists and run.finished):
            console.print(memory_line(learner, tasks.train(range(meta_batch)).to(learner.device)))
        try:
            with TrainingProgress() as progress:
                train(
                    learner,
                    tasks,
                    run.directory,
                    epochs=budget.epochs,
                    iterations=budget.iterations,
                    meta_batch=budget.tasks,
                    validation_tasks=budget.validation_tasks,
                    config={"experiment": experiment.to_json()},
                    watch=progress,
                )
        except Interrupted as stopped:
            again = f":\n  {program()} {shlex.join(sys.argv[1:])}" if not launched() else " the same torchrun command"
            console.print(f"{stopped}. Resume with{again}")
            return 130
        if not ranks.first:
            return 0
        page = write_page(run)
        console.print(f"run  {run.directory}\npage {page}\nnext {program()} evaluate {shlex.quote(str(run.directory))}")
        return 0


def run_name(preset: str, tasks: dict[str, Any]) -> str:
    """What a run is called that was given no directory.

    Example:
        >>> run_name("maml", {"name": "strokes", "ways": 5, "shots": 1}), run_name("maml", {"name": "sine", "shots": 5})
        ('maml-strokes-5x1', 'maml-sine-5-shot')
    """
    ways, shots = tasks.get("ways"), tasks["shots"]
    return f"{preset}-{tasks['name']}-" + (f"{ways}x{shots}" if ways else f"{shots}-shot")
