"""`Experiment`: everything a training is asked for, as one record that a run directory keeps and a page can show."""

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from torch import nn
from torch.nn import functional as F

from fewstep.errors import BadInput, unknown
from fewstep.metalearning.learner import Learner
from fewstep.methods import (
    All,
    AllButNorm,
    Annealed,
    Body,
    Constant,
    Cosine,
    FirstOrder,
    FirstThenSecond,
    Head,
    LastStep,
    Method,
    PerLayerPerStep,
    SecondOrder,
    Setting,
    Sgd,
    Uniform,
    changed,
    preset,
)
from fewstep.models import MLP, Conv4, ResNet12
from fewstep.tasks import ImageDataset, Tasks, omniglot, sinusoid, strokes
from fewstep.training.choices import Choices, Images
from fewstep.training.run import Run

ORDERS = {"first": FirstOrder(), "second": SecondOrder(), "annealed": FirstThenSecond(until=50 / 150, levels=150)}
STEP_WEIGHTS = {"last": LastStep(), "uniform": Uniform(), "annealed": Annealed(over=15 / 150, levels=150)}
SCHEDULES = {"constant": Constant(1e-3), "cosine": Cosine(1e-3, 1e-5, levels=150)}
RULES = {"sgd": Sgd, "per-layer-per-step": PerLayerPerStep}
ADAPTED = {"all": All(), "all-but-norm": AllButNorm(), "head": Head(), "body": Body()}


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
        for name, kind in get_type_hints(Experiment).items():
            value = getattr(self, name)
            choices = [c for part in (kind, *get_args(kind)) if get_origin(part) is Literal for c in get_args(part)]
            if choices and value is not None and value not in choices:
                raise unknown(name.replace("_", " "), str(value), choices)
            whole = kind is int or int in get_args(kind)
            if whole and value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                raise BadInput(f"{name} is {value!r}; it must be a whole number")
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

    @staticmethod
    def from_json(record: Any) -> "Experiment":
        """The experiment that `to_json` wrote."""
        if not isinstance(record, dict) or "preset" not in record:
            raise BadInput("the run's experiment is damaged: it names no preset; the run must be trained anew")
        known = [f.name for f in fields(Experiment)]
        for name in record:
            if name not in known:
                raise unknown("key of an experiment", name, known)
        absent = {"set": tuple(record.get("set") or ()), "model": record.get("model") or "conv4"}
        return Experiment(**{**record, **absent})

    def to_json(self) -> dict[str, Any]:
        """The experiment without its place on this machine: a run may be read where its data lie elsewhere."""
        absent = {
            "set": list(self.set) or None,
            "model": None if self.model == "conv4" else self.model,
            "precision": None if self.precision == "float32" else self.precision,
        }  # None: as in a run from before the field existed
        return {**asdict(self), "data_dir": None, **absent}

    def method(self, setting: Setting | None = None) -> Method:
        """The preset for the setting, with each part that was asked for exchanged."""
        setting = setting or ("sinusoid" if self.data == "sinusoid" else "omniglot")
        method = preset(self.preset, setting=setting, shots=self.shots or 1)
        if self.rule and not isinstance(method.rule, RULES[self.rule]):
            method = method.replace(rule=RULES[self.rule](getattr(method.rule, "rate", 0.1)))
        if self.inner_rate is not None and not hasattr(method.rule, "rate"):
            raise BadInput(f"{self.preset} has a rate for every scalar: --inner-rate does not apply")
        changes: dict[str, Any] = {
            "steps": self.steps,
            "rule__rate": self.inner_rate,
            "adapted": ADAPTED[self.adapted] if self.adapted else None,
            "order": ORDERS[self.order] if self.order else None,
            "step_weights": STEP_WEIGHTS[self.step_weights] if self.step_weights else None,
            "norm__affine": self.affine,
            "norm__statistics": self.statistics,
            "sharpness__inner": self.inner_radius,
            "sharpness__outer": self.outer_radius,
            "sharpness__adaptive": self.adaptive,
            "sharpness__detached": self.detached,
            "outer__rate": SCHEDULES[self.schedule] if self.schedule else None,
            "outer__clamp": self.clamp,
        }
        # A choice that the preset has made already keeps the preset's own numbers.
        own = {"order": method.order, "step_weights": method.step_weights, "outer__rate": method.outer.rate}
        for name, part in own.items():
            if type(part) is type(changes[name]):
                changes[name] = None
        method = method.replace(**{name: value for name, value in changes.items() if value is not None})
        if self.outer_rate is not None:
            method = method.replace(outer__rate=method.outer.rate.starting(self.outer_rate))
        for change in self.set:
            method = changed(method, change)
        return method

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
    learner, tasks = replace(Experiment.from_json(record), data_dir=data_dir).build()
    return run.load(learner), tasks
