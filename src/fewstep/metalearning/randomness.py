"""Random numbers of a pass as a function of keys: no generator is shared, so none is moved or rewound under others.

    numbers of a pass = generator seeded by bits(key of the task, number of the pass)

A module draws from torch's global generator, and takes no other. So its random operators are caught below autograd and
vmap, and given a generator made for this pass: the same pass of a task draws the same numbers whatever runs beside it,
in whatever order, strategy or process.
"""

import functools
import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fewstep.errors import BadInput
from fewstep.tasks.randomness import bits

Keys = tuple[int, ...]  # one for each task of the pass; empty where the model draws nothing


def keys_of(seed: int, tasks: Iterable[int]) -> Keys:
    """A key for each task.

    Example:
        >>> len(set(keys_of(7, range(4)))), keys_of(7, [2]) == keys_of(7, range(4))[2:3]
        (4, True)
    """
    return tuple(int(bits(seed, task)) for task in tasks)


class TaskRandomness(TorchDispatchMode):
    """Inside it, random operators draw from generators of the keys; of several tasks at once, each from its own.

    Arguments:
        keys: of the tasks, which vmap has put into the first dimension where there are several.
        number: of the pass within the task.
        device: where the model draws.

    Raises:
        BadInput: an operator that brings a generator of its own, or takes none.

    Example:
        >>> def drawn(key):
        ...     with TaskRandomness((key,), 0, torch.device("cpu")):
        ...         return torch.rand(3)
        >>> torch.equal(drawn(1), drawn(1)), torch.equal(drawn(1), drawn(2))
        (True, False)
    """

    transparent = True  # changes no operator but random ones, so kernels may be called inside it

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch asks, and would import its compiler at the first operator, which takes seconds."""
        return False

    def __init__(self, keys: Keys, number: int, device: torch.device):
        super().__init__()
        self.keys, self.number, self.device = keys, number, device
        self.drawn = False

    @functools.cached_property
    def generators(self) -> list[torch.Generator]:
        """One for each key, made at the first draw."""
        return [torch.Generator(self.device).manual_seed(int(bits(key, self.number))) for key in self.keys]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        if kwargs.get("generator") is not None:
            raise BadInput(
                f"the model draws ({func}) from a generator of its own, whose state no task can have for itself: let "
                "it draw without `generator=`, and set torch.manual_seed"
            )
        self.drawn = True
        if self.device.type == "meta":
            return func(*args, **kwargs)
        seeded = _seeded(func)
        if len(self.generators) == 1:
            return seeded(*args, **kwargs, generator=self.generators[0])
        return self._task_by_task(seeded, args, kwargs)

    def _task_by_task(self, seeded: Callable, args: tuple, kwargs: dict[str, Any]) -> Tensor:
        """The draw of tasks that vmap took together, each as that task alone would draw it."""
        count = len(self.generators)

        def part(value: Any, task: int) -> Any:
            if isinstance(value, Tensor):
                return value[task] if value.dim() and len(value) == count else value
            size = isinstance(value, list | tuple | torch.Size) and len(value) and value[0] == count
            return value[1:] if size else value

        drawn = [
            seeded(*[part(a, task) for a in args], **kwargs, generator=generator)
            for task, generator in enumerate(self.generators)
        ]
        in_place = isinstance(args[0], Tensor) and drawn[0].data_ptr() == args[0].data_ptr()
        return args[0] if in_place else torch.stack(drawn)


@functools.cache
def _seeded(func: Any) -> Callable:
    """The overload of a random operator that takes a generator.

    Raises:
        BadInput: there is none.
    """
    wanted = [a.name for a in func._schema.arguments if a.name != "generator"]
    for name in (func._overloadname, *func.overloadpacket.overloads()):
        overload = getattr(func.overloadpacket, name)
        names = [a.name for a in overload._schema.arguments]
        if "generator" in names and [n for n in names if n != "generator"] == wanted:
            return overload
    if func is torch.ops.aten.native_dropout.default:
        return _dropout
    raise BadInput(f"the model draws by {func}, which takes no generator: exchange the layer that does")


def _dropout(x: Tensor, p: float, train: bool | None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    if train is False or p == 0:
        return x.clone(), torch.ones_like(x, dtype=torch.bool)
    mask = torch.empty_like(x).bernoulli_(1 - p, generator=generator)
    return x * mask / (1 - p) if p < 1 else torch.zeros_like(x), mask.bool()


def others() -> tuple[Any, ...]:
    """The states of the generators that no key can stand for: Python's and NumPy's."""
    kind, numbers, *rest = np.random.get_state()
    return random.getstate(), (kind, np.asarray(numbers).tobytes(), *rest)
