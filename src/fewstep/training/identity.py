"""What makes a training another one beside its method and tasks: its model and its loss."""

import inspect
import re
from typing import Any

from fewstep.metalearning.learner import Learner


def identity(learner: Learner) -> dict[str, Any]:
    """The model and the loss as a run's configuration holds them: by class or name, and as they print themselves.

    Example:
        >>> import fewstep, torch
        >>> identity(fewstep.Learner(torch.nn.Linear(2, 3), fewstep.preset("maml")))  # doctest: +NORMALIZE_WHITESPACE
        {'loss': 'torch.nn.functional.cross_entropy',
         'model': 'torch.nn.modules.linear.Linear: Linear(in_features=2, out_features=3, bias=True)'}
    """
    return {"loss": named(learner.loss), "model": f"{_path(type(learner.model))}: {_printed(learner.model)}"}


def named(function: Any) -> str:
    """A function by its module and name; anything else that can be called as it prints itself."""
    return _path(function) if inspect.isroutine(function) else f"{_path(type(function))}: {_printed(function)}"


def _path(what: Any) -> str:
    return f"{what.__module__}.{what.__qualname__}"


def _printed(what: Any) -> str:
    """Without addresses in memory, which are others in every process."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(what))
