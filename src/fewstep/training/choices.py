"""What a training may be asked for: each option once, with its type and its line of help.

`Experiment` is made of these records, and so are the command-line verbs that train.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import UseAppendAction, arg


def own(metavar: str) -> object:
    """An option whose None means the preset's or the data set's own value: one line of help, without "None"."""
    return arg(metavar=metavar, help_behavior_hint="")


N, X, NAME, PATH, BOOL = own("N"), own("X"), own("NAME"), own("PATH"), own("BOOL")


@dataclass(frozen=True, kw_only=True)
class Images:
    """How images are read and halved; None means the data set's own way.

    Example:
        >>> Images(image_size=20).split is None
        True
    """

    split: Annotated[Literal["random", "lake", "vinyals"] | None, NAME] = None
    """Omniglot: random, lake or vinyals."""
    rotations: Annotated[Literal["off", "task", "classes"] | None, NAME] = None
    """Quarter turns in training: off, task, classes."""
    invert: Annotated[bool | None, BOOL] = None
    """Omniglot: True if ink is 1, not 0."""
    resize: Annotated[Literal["lanczos", "nearest"] | None, NAME] = None
    """Omniglot: lanczos or nearest."""
    image_size: Annotated[int, N] = 28
    """Pixels a side (28)."""
    downsample: Annotated[Literal["max_pool", "stride"], NAME] = "max_pool"
    """Conv4 halves by max_pool or stride."""


@dataclass(frozen=True, kw_only=True)
class Choices:
    """Data, tasks, model, and parts of the method; None means the preset's or the data set's own.

    Example:
        >>> Choices(data="sinusoid").order is None
        True
    """

    data: Annotated[str, NAME] = "strokes"
    """omniglot, sinusoid or strokes (strokes)."""
    data_dir: Annotated[str | None, PATH] = None
    """Where omniglot lies; else $FEWSTEP_DATA, ./data."""
    ways: Annotated[int, N] = 5
    """Classes in a task (5)."""
    shots: Annotated[int | None, N] = None
    """Support images a class (1)."""
    queries: Annotated[int | None, N] = None
    """Query images a class (1)."""
    evaluation_queries: Annotated[int | None, N] = None
    """The same for validation and test tasks."""
    model: Annotated[Literal["conv4", "resnet12"], NAME] = "conv4"
    """Of images: conv4 or resnet12 (conv4)."""
    filters: Annotated[int, N] = 64
    """Channels; resnet12 doubles them each block (64)."""
    precision: Annotated[Literal["float32", "tf32", "bf16"] | None, NAME] = None
    """Of convolutions: float32, tf32, bf16 (float32)."""
    steps: Annotated[int | None, N] = None
    """Inner steps."""
    inner_rate: Annotated[float | None, X] = None
    """Inner learning rate, or where learned ones start."""
    rule: Annotated[Literal["sgd", "per-layer-per-step"] | None, NAME] = None
    """sgd or per-layer-per-step (LSLR)."""
    adapted: Annotated[Literal["all", "all-but-norm", "head", "body"] | None, NAME] = None
    """In the inner loop: all, all-but-norm, head, body."""
    order: Annotated[Literal["first", "second", "annealed"] | None, NAME] = None
    """Derivative order: first, second, annealed (DA)."""
    step_weights: Annotated[Literal["last", "uniform", "annealed"] | None, NAME] = None
    """Query losses: last, uniform, annealed (MSL)."""
    affine: Annotated[Literal["shared", "per_step"] | None, NAME] = None
    """Norm weights: shared or per_step (BNWB)."""
    statistics: Annotated[Literal["batch", "running", "support"] | None, NAME] = None
    """Evaluate by batch, running (BNRS) or support."""
    inner_radius: Annotated[float | None, X] = None
    """Sharpness radius at the inner loop; 0 is none."""
    outer_radius: Annotated[float | None, X] = None
    """Sharpness radius at the outer loop; 0 is none."""
    adaptive: Annotated[bool | None, BOOL] = None
    """True: radii scale with the weights (ASAM)."""
    detached: Annotated[bool | None, BOOL] = None
    """True: the inner perturbation is a constant."""
    outer_rate: Annotated[float | None, X] = None
    """Outer learning rate, where its schedule starts."""
    schedule: Annotated[Literal["constant", "cosine"] | None, NAME] = None
    """Outer rate: constant or cosine (CA)."""
    clamp: Annotated[float | None, X] = None
    """Clamp outer gradients to ± this."""
    set: Annotated[UseAppendAction[tuple[str, ...]], own("FIELD=VALUE")] = ()
    """Any field of the method: norm.momentum=0.2"""
