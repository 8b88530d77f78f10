"""fewstep: learn to learn from a few examples in a few steps."""

from fewstep import methods, models
from fewstep.errors import BadInput
from fewstep.metalearning.learner import Learner, MetaGradient
from fewstep.metalearning.predictor import Predictor
from fewstep.methods import Method, Norm, preset, preset_names
from fewstep.tasks import TaskBatch, Tasks, omniglot, sinusoid, strokes
from fewstep.training.evaluation import Score, evaluate
from fewstep.training.interrupt import Interrupted
from fewstep.training.run import Run
from fewstep.training.torchrun import torchrun
from fewstep.training.trainer import train

__all__ = [
    "BadInput",
    "Interrupted",
    "Learner",
    "MetaGradient",
    "Method",
    "Norm",
    "Predictor",
    "Run",
    "Score",
    "TaskBatch",
    "Tasks",
    "evaluate",
    "methods",
    "models",
    "omniglot",
    "preset",
    "preset_names",
    "sinusoid",
    "strokes",
    "torchrun",
    "train",
]
