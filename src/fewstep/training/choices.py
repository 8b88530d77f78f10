"""What a training may be asked for: records of plain fields, whose docstrings are the help of the command line.

A field with a path is a short name of one of `Method`'s: its help, and what it means, are that field's own.
"""

from dataclasses import dataclass, field, fields
from typing import Literal

from fewstep.methods.parts import Affine, Statistics


@dataclass(frozen=True, kw_only=True)
class Images:
    """How images are read and halved; None means the data set's own way.

    Arguments:
        split: Omniglot: random, lake or vinyals.
        rotations: Quarter turns in training: off, task, classes.
        invert: Omniglot: True if ink is 1, not 0.
        resize: Omniglot: lanczos or nearest.
        image_size: Pixels a side (28).
        downsample: Conv4 halves by max_pool or stride.

    Example:
        >>> Images(image_size=20).split is None
        True
    """

    split: Literal["random", "lake", "vinyals"] | None = None
    rotations: Literal["off", "task", "classes"] | None = None
    invert: bool | None = None
    resize: Literal["lanczos", "nearest"] | None = None
    image_size: int = 28
    downsample: Literal["max_pool", "stride"] = "max_pool"


@dataclass(frozen=True, kw_only=True)
class Choices:
    """Data, tasks, model, and parts of the method; None means the preset's or the data set's own.

    Arguments:
        data: omniglot, sinusoid or strokes (strokes).
        data_dir: Where omniglot lies; else $FEWSTEP_DATA, ./data.
        ways: Classes in a task (5).
        shots: Support images a class (1).
        queries: Query images a class (1).
        evaluation_queries: The same for validation and test tasks.
        model: Of images: conv4 or resnet12 (conv4).
        filters: Channels; resnet12 doubles them each block (64).
        precision: Of convolutions: float32, tf32, bf16 (float32).
        set: Any field of the method: norm.momentum=0.2

    Example:
        >>> Choices(data="sinusoid").order is None
        True
    """

    data: str = "strokes"
    data_dir: str | None = None
    ways: int = 5
    shots: int | None = None
    queries: int | None = None
    evaluation_queries: int | None = None
    model: Literal["conv4", "resnet12"] = "conv4"
    filters: int = 64
    precision: Literal["float32", "tf32", "bf16"] | None = None
    steps: int | None = field(default=None, metadata={"path": "steps"})
    rule: str | None = field(default=None, metadata={"path": "rule"})
    inner_rate: float | None = field(default=None, metadata={"path": "rule.rate"})
    adapted: str | None = field(default=None, metadata={"path": "adapted"})
    order: str | None = field(default=None, metadata={"path": "order"})
    step_weights: str | None = field(default=None, metadata={"path": "step_weights"})
    affine: Affine | None = field(default=None, metadata={"path": "norm.affine"})
    statistics: Statistics | None = field(default=None, metadata={"path": "norm.statistics"})
    inner_radius: float | None = field(default=None, metadata={"path": "sharpness.inner"})
    outer_radius: float | None = field(default=None, metadata={"path": "sharpness.outer"})
    adaptive: bool | None = field(default=None, metadata={"path": "sharpness.adaptive"})
    detached: bool | None = field(default=None, metadata={"path": "sharpness.detached"})
    schedule: str | None = field(default=None, metadata={"path": "outer.rate"})
    outer_rate: float | None = field(default=None, metadata={"path": "outer.rate.rate"})
    clamp: float | None = field(default=None, metadata={"path": "outer.clamp"})
    set: tuple[str, ...] = ()


SHORT: dict[str, str] = {f.name: f.metadata["path"] for f in fields(Choices) if f.metadata}
"""From the short names of fields of a method to their paths, in the order in which they are applied."""
