"""What is compared: trainings to be done or runs that are there, and whether they share their test tasks."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fewstep.cli.options import Budget, as_arguments
from fewstep.errors import BadInput
from fewstep.methods import to_json
from fewstep.tasks import ImageDataset, Tasks
from fewstep.tasks.fingerprint import fingerprint
from fewstep.training.choices import Images
from fewstep.training.experiment import Experiment
from fewstep.training.run import Run, differing
from fewstep.training.trainer import check_length


@dataclass(frozen=True)
class Training:
    """One training of an entry.

    Arguments:
        run: its directory. experiment, budget: what it is asked for.
        taken: whether the run is taken as it is, finished or not.
    """

    run: Run
    experiment: Experiment
    budget: Budget
    taken: bool = False

    @property
    def seed(self) -> int:
        return self.experiment.seed

    @property
    def arguments(self) -> list[str]:
        """Those of `fewstep train` that make this run."""
        words = as_arguments(self.experiment, self.budget)
        return [self.experiment.preset, *words, "--directory", str(self.run.directory)]

    @property
    def length(self) -> dict[str, int]:
        """What the run's configuration calls `training`."""
        sizes = self.budget
        return {"epochs": sizes.epochs or 0, "iterations": sizes.iterations or 0, "meta_batch": sizes.tasks or 0,
                "validation_tasks": sizes.validation_tasks}  # fmt: skip

    @property
    def steps(self) -> tuple[int, int]:
        """Outer steps done, and in all."""
        done = self.run.state()["step"] if self.run.last.is_file() else 0
        return done, self.length["epochs"] * self.length["iterations"]


Entries = Mapping[str, Sequence[Training]]  # by name: trainings that differ in the seed alone


class DataSets:
    """Data sets by what was asked for, so that each is read or drawn once."""

    def __init__(self) -> None:
        self._made: dict[Any, ImageDataset | None] = {}

    def __call__(self, experiment: Experiment) -> ImageDataset | None:
        key = tuple(getattr(experiment, name) for name in ("data", "data_dir", *vars(Images())))
        if key not in self._made:
            self._made[key] = experiment.dataset()
        return self._made[key]


def planned(
    name: str, experiment: Experiment, directory: Path, seeds: Sequence[int], budget: Budget, data: DataSets
) -> list[Training]:
    """The trainings of an experiment, one for each seed.

    Raises:
        BadInput: an experiment that cannot be built, a directory where something else was trained.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise BadInput(f"seeds are {' '.join(map(str, seeds)) or 'none'}; give at least one, and each once")
    trainings = []
    for seed in seeds:
        seeded = replace(experiment, seed=seed)
        method = seeded.build(data(seeded))[0].method
        training = Training(Run(directory / f"{name}-s{seed}"), seeded, budget.filled(method.recipe))
        check_length(**training.length)
        if training.run.begun:
            asked = {"experiment": seeded.to_json(), "method": to_json(method), "training": training.length}
            training.run.require(training.run.config | json.loads(json.dumps(asked)))
        else:
            seeded.refuse_unused()
        trainings.append(training)
    return trainings


def taken(directories: Sequence[str], data_dir: str | None) -> dict[str, list[Training]]:
    """Runs that are there, by name; those that differ in the seed alone are one entry.

    Raises:
        BadInput: no run directory, nothing validated in it yet, the same training twice.
    """
    groups: dict[str, list[Training]] = {}
    for directory in directories:
        run = Run(Path(directory))
        record = run.config.get("experiment")
        if record is None:
            raise BadInput(f"{directory} was trained from Python: compare what `fewstep train` made")
        experiment = replace(Experiment.from_json(record), data_dir=data_dir)
        if not run.last.is_file() or not run.best():
            raise BadInput(f"{directory} has no validated epoch yet; run its training command again")
        length = run.config.get("training") or {}
        budget = Budget(**{"tasks" if name == "meta_batch" else name: size for name, size in length.items()})
        group = groups.setdefault(json.dumps([replace(experiment, seed=0).to_json(), length]), [])
        for other in group:
            if other.seed == experiment.seed:
                raise BadInput(f"{other.run.directory} and {directory} are the same training; give one of them")
        group.append(Training(run, experiment, budget, taken=True))
    named: dict[str, list[Training]] = {}
    for group in groups.values():
        names = [str(training.run.directory) for training in group]
        stems = {re.sub(r"-s\d+$", "-s*", name) for name in names}
        short = stems.pop() if len(names) > 1 and len(stems) == 1 else ""
        named[short if short and short not in named else ", ".join(names)] = group
    return named


def same_tasks(entries: Entries, count: int, data: DataSets) -> tuple[Tasks, str]:
    """The test tasks that all are measured on, and their fingerprint.

    Raises:
        BadInput: test tasks that differ; names in what.
    """
    found: dict[str, tuple[str, Tasks, str]] = {}
    for name, trainings in entries.items():
        for training in trainings:
            tasks = training.experiment.build(data(training.experiment))[1]
            described = json.dumps(_judged(tasks))
            if described not in found:
                found[described] = (name, tasks, fingerprint(tasks.test, count))
    (first, tasks, mark), *others = found.values()
    for name, other, its in others:
        if its != mark:
            reasons = [f"{path} is {new}, not {old}" for path, new, old in differing(_judged(other), _judged(tasks))]
            raise BadInput(
                f"{name} has other test tasks than {first}: {', '.join(reasons)}; only runs with the same test tasks "
                "can be compared"
            )
    return tasks, mark


def _judged(tasks: Tasks) -> dict[str, Any]:
    """The description of tasks, without what changes training tasks alone."""
    described = json.loads(json.dumps(tasks.description))
    return {name: value for name, value in described.items() if name not in ("seed", "queries", "rotate")}
