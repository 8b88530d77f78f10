"""`fewstep compare`: presets and runs on the same tasks."""

from dataclasses import dataclass, replace
from pathlib import Path

from fewstep.cli.contest import Contest
from fewstep.cli.entries import DataSets, Training, planned, taken
from fewstep.cli.options import Budget, Measuring, TrainingVerb, as_arguments
from fewstep.errors import BadInput, unknown
from fewstep.methods.presets import PRESETS
from fewstep.training.choices import Choices, Images


@dataclass(frozen=True)
class Compare(Measuring, TrainingVerb):
    """Presets and runs, measured on the same test tasks: a table with paired differences.

    Presets are trained, with any option of `fewstep train` (--help-all), each run in its process.

    Example: fewstep compare maml maml++ runs/x --epochs 3 --iterations 50 --seeds 0 1 2

    Arguments:
        entries: Presets, to be trained, and run directories.
    """

    entries: tuple[str, ...]

    def run(self) -> int:
        if not self.entries:
            raise BadInput("name presets or run directories to compare, as in `fewstep compare maml maml++`")
        for name in self.entries:
            if name not in PRESETS and not Path(name).is_dir():
                raise unknown("preset or run directory", name, PRESETS)
            if self.entries.count(name) > 1:
                raise BadInput(f"{name} is given twice")
        budget, measuring = self.of(Budget), self.of(Measuring)
        length = Budget(epochs=self.epochs, iterations=self.iterations, tasks=self.tasks)
        given = as_arguments(replace(self.of(Choices), data_dir=None), self.of(Images), length)
        if given and not set(self.entries) & set(PRESETS):
            raise BadInput(f"{given[0]} is an option of training, but no preset is given to train")
        directory, data = self.directory or Path("runs/compare"), DataSets()
        groups = taken([name for name in self.entries if name not in PRESETS], self.data_dir)
        named = {str(t.run.directory): name for name, group in groups.items() for t in group}
        entries: dict[str, list[Training]] = {}
        for name in self.entries:  # in the order given, for the first is what differences are taken to
            if name in PRESETS:
                entries[name] = planned(name, self.experiment(name), directory, self.seeds, budget, data)
            else:
                group = named[str(Path(name))]
                entries[f"./{group}" if group in PRESETS else group] = groups[group]
        return Contest(entries, measuring, budget, directory, data).hold()
