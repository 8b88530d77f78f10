"""`fewstep ablate`: each part of a method off, and each alone."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from fewstep.cli.choices import Preset
from fewstep.cli.contest import Contest
from fewstep.cli.entries import DataSets, Training, planned
from fewstep.cli.options import Budget, Measuring, TrainingVerb
from fewstep.errors import BadInput
from fewstep.methods import ablation, as_change


@dataclass(frozen=True)
class Ablate(Measuring, TrainingVerb):
    """A preset, it without each of its parts, maml with each alone, and maml: a table.

    Its parts are what differs from maml. Any option of `fewstep train` holds (--help-all).

    Example: fewstep ablate maml++ --epochs 3 --iterations 50 --directory runs/ablation

    Arguments:
        preset: Which one to take apart.
        base: What takes the place of its parts (maml).
    """

    preset: Preset
    base: Preset = "maml"

    def run(self) -> int:
        directory, data = self.directory or Path(f"runs/ablate-{self.preset}"), DataSets()
        ours, theirs = self.experiment(self.preset), self.experiment(self.base)
        method, base = (experiment.build(data(experiment))[0].method for experiment in (ours, theirs))
        variants, equal = ablation(method.replace(name=self.preset), base.replace(name=self.base))
        budget = self.of(Budget).filled(method.recipe)
        entries: dict[str, list[Training]] = {}
        notes = [f"{name} is {other}: one row" for name, other in equal.items()]
        for variant in variants:
            experiment = theirs if variant.of_base else ours
            if variant.path:
                changes = (as_change(variant.path, variant.value), f"name={variant.name}")
                experiment = replace(experiment, set=(*self.set, *changes))
            try:
                experiment.build(data(experiment))
            except BadInput as error:  # parts that do not go together
                notes.append(f"{variant.name} is left out: {error}")
                continue
            folder = re.sub(r"[^\w.+-]+", "-", re.sub(r" \(.*\)", "", variant.name))
            entries[variant.name] = planned(folder, experiment, directory, self.seeds, budget, data)
        return Contest(entries, self.of(Measuring), budget, directory, data, notes).hold()
