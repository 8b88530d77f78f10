"""The data sets by name."""

from collections.abc import Callable
from typing import Any

from fewstep.tasks.omniglot import omniglot
from fewstep.tasks.sinusoid import sinusoid
from fewstep.tasks.strokes import strokes

DATASETS: dict[str, Callable[..., Any]] = {"omniglot": omniglot, "strokes": strokes, "sinusoid": sinusoid}
"""From a name to the function that makes the data set: an `ImageDataset`, or `Tasks` for regression."""

DESCRIPTIONS: dict[str, str] = {
    "omniglot": "1623 handwritten characters of 50 alphabets, 20 images each; to be downloaded (14 MB)",
    "strokes": "a procedural alphabet in the spirit of Omniglot; needs no download",
    "sinusoid": "regression of sine waves from a few points; needs no download",
}
"""One line on each data set, for listings."""
