"""`fewstep train`: meta-train a preset."""

import shlex
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from fewstep.cli.choices import Preset
from fewstep.cli.console import TrainingProgress, console, program
from fewstep.cli.machine import prepare
from fewstep.reporting.page import write_page
from fewstep.training.experiment import Experiment
from fewstep.training.interrupt import Interrupted
from fewstep.training.run import Run
from fewstep.training.trainer import train


def _own(metavar: str) -> object:
    """An option whose None means the preset's or the data set's own value: one line of help, without "None"."""
    return arg(metavar=metavar, help_behavior_hint="")


N, X, NAME, PATH = _own("N"), _own("X"), _own("NAME"), _own("PATH")


@dataclass(frozen=True)
class Train:
    """Meta-train a preset; the same command resumes it.

    Example: fewstep train maml++ --data omniglot --data-dir data --ways 5 --directory runs/x
    """

    preset: Annotated[Positional[Preset], _own("PRESET")]
    """maml, maml++, …: `fewstep presets` lists them."""
    directory: Annotated[Path | None, PATH] = None
    """Run directory; else runs/PRESET-DATA-WAYSxSHOTS."""
    config: Annotated[Path | None, PATH] = None
    """TOML file of options; the command line wins."""
    seed: Annotated[int, N] = 0
    """Of initial weights and training tasks (0)."""
    epochs: Annotated[int | None, N] = None
    """Each ends with a validation; else the preset's."""
    iterations: Annotated[int | None, N] = None
    """Outer steps in an epoch; else the preset's."""
    tasks: Annotated[int | None, N] = None
    """Tasks in a meta-batch; else the preset's."""
    validation_tasks: Annotated[int, N] = 600
    """Tasks of each validation (600)."""
    threads: Annotated[int | None, N] = None
    """Processor threads."""
    strategy: Annotated[Literal["auto", "loop", "vectorized", "recompute"], NAME] = "auto"
    """auto, loop, vectorized or recompute: equal results."""
    data: Annotated[str, NAME] = "strokes"
    """omniglot, sinusoid or strokes (strokes)."""
    data_dir: Annotated[str | None, PATH] = None
    """Where omniglot lies; else $FEWSTEP_DATA, ./data."""
    split: Annotated[Literal["random", "lake", "vinyals"] | None, NAME] = None
    """Omniglot: random, lake or vinyals."""
    rotations: Annotated[Literal["off", "task", "classes"] | None, NAME] = None
    """Quarter turns in training: off, task, classes."""
    invert: Annotated[bool | None, _own("BOOL")] = None
    """Omniglot: True if ink is 1, not 0."""
    resize: Annotated[Literal["lanczos", "nearest"] | None, NAME] = None
    """Omniglot: lanczos or nearest."""
    image_size: Annotated[int, N] = 28
    """Pixels a side (28)."""
    ways: Annotated[int, N] = 5
    """Classes in a task (5)."""
    shots: Annotated[int | None, N] = None
    """Support images a class (1)."""
    queries: Annotated[int | None, N] = None
    """Query images a class (1)."""
    evaluation_queries: Annotated[int | None, N] = None
    """The same for validation and test tasks."""
    filters: Annotated[int, N] = 64
    """Channels of Conv4 (64)."""
    downsample: Annotated[Literal["max_pool", "stride"], NAME] = "max_pool"
    """Conv4 halves by max_pool or stride."""
    steps: Annotated[int | None, N] = None
    """Inner steps."""
    inner_rate: Annotated[float | None, X] = None
    """Inner learning rate, or where learned ones start."""
    rule: Annotated[Literal["sgd", "per-layer-per-step"] | None, NAME] = None
    """sgd or per-layer-per-step (LSLR)."""
    order: Annotated[Literal["first", "second", "annealed"] | None, NAME] = None
    """Derivative order: first, second, annealed (DA)."""
    step_weights: Annotated[Literal["last", "uniform", "annealed"] | None, NAME] = None
    """Query losses: last, uniform, annealed (MSL)."""
    affine: Annotated[Literal["shared", "per_step"] | None, NAME] = None
    """Norm weights: shared or per_step (BNWB)."""
    statistics: Annotated[Literal["batch", "running", "support"] | None, NAME] = None
    """Evaluate by batch, running (BNRS) or support."""
    schedule: Annotated[Literal["constant", "cosine"] | None, NAME] = None
    """Outer rate: constant or cosine (CA)."""
    clamp: Annotated[float | None, X] = None
    """Clamp outer gradients to ± this."""

    def run(self) -> int:
        prepare(self.threads)
        experiment = Experiment(**{f.name: getattr(self, f.name) for f in fields(Experiment)})
        name = f"{self.preset}-{self.data}-{self.ways}x{self.shots or 1}"
        run = Run(self.directory or Path("runs") / name)
        learner, tasks = experiment.build()
        learner.strategy = self.strategy
        if run.exists and run.finished:
            console.print(f"{run.directory} is finished: nothing to train")
        elif run.last.is_file():
            console.print(f"{run.directory}: resuming after outer step {run.state()['step']}")
        else:
            console.print(f"{run.directory}: {self.preset} on {self.data}, seed {self.seed}")
        try:
            with TrainingProgress() as progress:
                train(
                    learner,
                    tasks,
                    run.directory,
                    epochs=self.epochs,
                    iterations=self.iterations,
                    meta_batch=self.tasks,
                    validation_tasks=self.validation_tasks,
                    config={"experiment": experiment.to_json()},
                    watch=progress,
                )
        except Interrupted as stopped:
            console.print(f"{stopped}. Resume with:\n  {program()} {shlex.join(sys.argv[1:])}")
            return 130
        page = write_page(run)
        console.print(f"run  {run.directory}\npage {page}\nnext {program()} evaluate {run.directory}")
        return 0
