"""`Experiment`: everything a training is asked for, as one record that a run directory keeps and a page can show."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from fewstep.errors import BadInput, unknown
from fewstep.metalearning.learner import Learner
from fewstep.methods import Method, Setting, changed, preset
from fewstep.methods.changes import put
from fewstep.methods.records import built, check, to_json
from fewstep.models import MLP, Conv4, ResNet12
from fewstep.tasks import ImageDataset, Tasks, omniglot, sinusoid, strokes
from fewstep.training.choices import SHORT, Choices, Images
from fewstep.training.run import Run


@dataclass(frozen=True)
class Experiment(Choices, Images):
    """One training: a preset, a seed, and what `Choices` and `Images` say of data, tasks, model and method.

    Raises:
        BadInput: unknown names, values out of range, options that the data set does not have.

    Example:
        >>> Experiment("maml", data="sinusoid").method().steps
        1
    """

    preset: str
    seed: int = 0

    def __post_init__(self) -> None:
        check(Experiment, vars(self))
        for name, least in (("ways", 2), ("shots", 1), ("queries", 1), ("evaluation_queries", 1), ("filters", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise BadInput(f"{name} is {value}; it must be at least {least}")
        if self.model == "resnet12" and self.data == "sinusoid":
            raise BadInput("--model is an option of images; sinusoid has none, and trains a small MLP")
        if self.model == "resnet12" and self.downsample == "stride":
            raise BadInput("--downsample stride is an option of conv4; resnet12 halves by max_pool")
        if not 0 <= self.seed < 2**63:
            raise BadInput(f"seed is {self.seed}; it must be a whole number from 0 to 2^63 − 1")
        self.method()  # raises where a choice of the method is none

    @staticmethod
    def from_json(record: Any) -> "Experiment":
        """The experiment that `to_json` wrote."""
        if not isinstance(record, dict) or "preset" not in record:
            raise BadInput("the run's experiment is damaged: it names no preset; the run must be trained anew")
        absent = {"set": record.get("set") or [], "model": record.get("model") or "conv4"}
        return built(Experiment, record | absent)

    def to_json(self) -> dict[str, Any]:
        """The experiment without its place on this machine: a run may be read where its data lie elsewhere."""
        absent = {
            "set": list(self.set) or None,
            "model": None if self.model == "conv4" else self.model,
            "precision": None if self.precision == "float32" else self.precision,
        }  # None: as in a run from before the field existed
        return {**to_json(self), "data_dir": None, **absent}

    def method(self, setting: Setting | None = None) -> Method:
        """The preset for the setting, with each part that was asked for exchanged."""
        setting = setting or ("sinusoid" if self.data == "sinusoid" else "omniglot")
        method = preset(self.preset, setting=setting, shots=self.shots or 1)
        for name in SHORT:
            if (value := getattr(self, name)) is not None:
                method = self._with(method, name, value)
        for change in self.set:
            method = changed(method, change)
        return method

    @staticmethod
    def _with(method: Method, option: str, value: Any) -> Method:
        """The method with a short option; an error names it as the command line does."""
        path, text = SHORT[option], str(value)
        try:
            if option == "outer_rate":
                path, value = "outer.rate", method.outer.rate.starting(value)
            return put(method, path, value, text)
        except BadInput as error:
            raise BadInput(f"--{option.replace('_', '-')} {text}: {error}") from error

    def dataset(self) -> ImageDataset | None:
        """The images; None where tasks are not made of images."""
        options: dict[str, Any] = {"rotations": self.rotations, "image_size": self.image_size}
        archive = {"split": self.split, "invert": self.invert, "resize": self.resize}
        if self.data == "omniglot":
            options |= archive | {"data_dir": self.data_dir}
            return omniglot(**{name: value for name, value in options.items() if value is not None})
        foreign = archive | ({"rotations": self.rotations} if self.data == "sinusoid" else {})
        for name, value in foreign.items():
            if value is not None:
                raise BadInput(f"--{name} is an option of omniglot, not of {self.data}")
        if self.data == "strokes":
            return strokes(**{name: value for name, value in options.items() if value is not None})
        if self.data == "sinusoid":
            return None
        raise unknown("data set", self.data, ["omniglot", "strokes", "sinusoid"])

    def refuse_unused(self) -> None:
        """Check a new training for options that change nothing; older runs may have recorded some.

        Raises:
            BadInput: an option that the data do not have.
        """
        for f in fields(self) if self.data == "sinusoid" else ():
            if f.name in ("ways", "filters", "image_size", "downsample") and getattr(self, f.name) != f.default:
                raise BadInput(f"--{f.name.replace('_', '-')} is an option of images; sinusoid has none")

    def build(self, data: ImageDataset | None = None) -> tuple[Learner, Tasks]:
        """A learner at its initial weights, drawn from the seed, and its tasks, from `dataset()` where not given."""
        data, precision = data or self.dataset(), self.precision or "float32"
        torch.manual_seed(self.seed)
        if data is None:
            tasks = sinusoid(self.shots or 10, self.queries or 10, self.seed, self.evaluation_queries)
            model = MLP(1, 1, init="truncated_normal")
            return Learner(model, self.method(), loss=F.mse_loss, precision=precision), tasks
        tasks = data.tasks(
            self.ways, self.shots or 1, self.queries or 1, self.seed, evaluation_queries=self.evaluation_queries
        )
        method = self.method(data.setting)  # type: ignore[arg-type]
        return Learner(self.network(data), method, precision=precision), tasks

    def network(self, data: ImageDataset) -> nn.Module:
        """The model for the images, at its initial weights."""
        if self.model == "resnet12":
            widths = [self.filters << block for block in range(4)]
            return ResNet12(self.ways, data.channels, data.image_size, widths)
        return Conv4(self.ways, data.channels, self.filters, data.image_size, self.downsample)


def load_run(directory: str | Path, data_dir: str | None = None) -> tuple[Learner, Tasks]:
    """The learner of a run at its best validation epoch, and the run's tasks.

    Raises:
        BadInput: not a run directory, nothing validated yet, data missing.
    """
    run = Run(Path(directory))
    record = run.config.get("experiment")
    if record is None:
        raise BadInput(f"{directory} was trained from Python: rebuild its learner there, then use Run.load")
    experiment = replace(Experiment.from_json(record), data_dir=data_dir)
    learner, tasks = experiment.build()
    return run.load(learner), tasks
