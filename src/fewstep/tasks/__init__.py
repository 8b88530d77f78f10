"""Tasks: what is sampled, from which data, and how it reaches the learner."""

from fewstep.tasks.batch import TaskBatch
from fewstep.tasks.class_data import ClassData
from fewstep.tasks.datasets import DATASETS
from fewstep.tasks.image_dataset import ImageDataset
from fewstep.tasks.omniglot import omniglot
from fewstep.tasks.sampler import ClassSampler, PixelValues
from fewstep.tasks.sinusoid import sinusoid
from fewstep.tasks.source import TaskDataset, TaskFunction, Tasks
from fewstep.tasks.strokes import strokes

__all__ = [
    "DATASETS",
    "ClassData",
    "ClassSampler",
    "ImageDataset",
    "PixelValues",
    "TaskBatch",
    "TaskDataset",
    "TaskFunction",
    "Tasks",
    "omniglot",
    "sinusoid",
    "strokes",
]
