"""`fewstep compare`: presets and runs on the same tasks."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from fewstep.cli.contest import Contest
from fewstep.cli.entries import DataSets, Training, planned, taken
from fewstep.cli.options import Budget, Measuring, TrainingVerb, as_arguments
from fewstep.errors import BadInput, unknown
from fewstep.methods.presets import PRESETS


@dataclass(frozen=True)
class Compare(TrainingVerb):
    """Presets and runs, measured on the same test tasks: a table with paired differences.

    Presets are trained, with any option of `fewstep train` (--help-all), each run in its process.

    Example: fewstep compare maml maml++ runs/x --epochs 3 --iterations 50 --seeds 0 1 2

    Arguments:
        entries: Presets, to be trained, and run directories.
    """

    entries: tuple[str, ...]
    measuring: Measuring = field(default_factory=Measuring)

    def run(self) -> int:
        if not self.entries:
            raise BadInput("name presets or run directories to compare, as in `fewstep compare maml maml++`")
        for name in self.entries:
            if name not in PRESETS and not Path(name).is_dir():
                raise unknown("preset or run directory", name, PRESETS)
            if self.entries.count(name) > 1:
                raise BadInput(f"{name} is given twice")
        length = Budget(epochs=self.budget.epochs, iterations=self.budget.iterations, tasks=self.budget.tasks)
        given = as_arguments(replace(self.choices, data_dir=None), self.images, length)
        if given and not set(self.entries) & set(PRESETS):
            raise BadInput(f"{given[0]} is an option of training, but no preset is given to train")
        directory, data = self.measuring.directory or Path("runs/compare"), DataSets()
        groups = taken([name for name in self.entries if name not in PRESETS], self.choices.data_dir)
        named = {str(t.run.directory): name for name, group in groups.items() for t in group}
        entries: dict[str, list[Training]] = {}
        for name in self.entries:  # in the order given, for the first is what differences are taken to
            if name in PRESETS:
                entries[name] = planned(name, self.experiment(name), directory, self.measuring.seeds, self.budget, data)
            else:
                group = named[str(Path(name))]
                entries[f"./{group}" if group in PRESETS else group] = groups[group]
        return Contest(entries, self.measuring, self.budget, directory, data).hold()
