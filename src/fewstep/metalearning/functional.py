"""A model as a pure function: (tensors, input, setting) → (output, moments, moved tensors).

    forward(parameters and buffers, x, setting, …) → Seen(output, moments, moved)

A pass has in its hand all that it depends on. It runs in a `Body`, a copy of the model that it has for itself: its
tensors are put in before it and taken out after it. So nothing in the user's model changes, passes of several threads
do not meet, and any `nn.Module` qualifies. Where a copy is not the model (weights reached by a closure, a list, a
hook), which `proof` finds out at the first batch, the model itself is the body: it is lent to one pass at a time, and
given back as it was.
"""

import contextlib
import copy
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from fewstep.errors import BadInput
from fewstep.metalearning.attention import ExactAttention
from fewstep.metalearning.modes import half
from fewstep.metalearning.randomness import Keys, TaskRandomness
from fewstep.metalearning.structure import Attribute, Structure, check_layers, copy_of, reset, without_data
from fewstep.models import cross_entropy_gradients
from fewstep.models.norm import FreeNorms, Moments, Statistics, ValueNorm, exchange, float32

Tensors = dict[str, Tensor]
ModeOfLayers = tuple[bool, ...]  # which are in training mode, in the order of `modules()`


@dataclass(frozen=True)
class Setting:
    """How passes are taken.

    Arguments:
        training: which layers are in training mode, in the order of `modules()`.
        precision: `float32`, `tf32` or `bf16`, of convolutions and matrix products.
        frozen: batch norms that normalise by their own running statistics.
        own: norms that the model calls as functions do so in evaluation.
    """

    training: ModeOfLayers
    precision: str = "float32"
    frozen: frozenset[str] = frozenset()
    own: bool = False


class Seen(NamedTuple):
    """What a pass gives: its output, the moments of each batch norm's batch, and the tensors that it moved, by name."""

    output: Any
    moments: dict[str, Moments]
    moved: Tensors


@dataclass(frozen=True)
class Facts:
    """What is known of a model's passes in some modes of its layers, see `fewstep.metalearning.facts`.

    Arguments:
        draws: it draws random numbers. attends: it has attention.
        moves: parameters and buffers that a pass changes. through: whether gradients flow through what it changes.
        keeps: attributes that a pass changes, with what they were.
        norms: running means of batch and instance norms that the model calls as functions, in training.
        uncounted: it writes past torch's version counter (`.data`), which no wrapper of vmap survives.
    """

    draws: bool = False
    attends: bool = False
    moves: frozenset[str] = frozenset()
    through: bool = False
    keeps: tuple[Attribute, ...] = ()
    norms: frozenset[str] = frozenset()
    uncounted: bool = False


class Slot(NamedTuple):
    """A place of a parameter or buffer, and the name the tensor goes by: tied ones go by their first."""

    place: dict[str, Tensor | None]
    key: str
    name: str
    empty: Tensor


def slots(module: nn.Module) -> list[Slot]:
    """Every place of a parameter or buffer. `torch.func.functional_call` works them out anew at every call."""
    first: dict[int, str] = {}
    found = []
    for prefix, layer in module.named_modules(remove_duplicate=False):
        for place in (layer._parameters, layer._buffers):
            for key, tensor in place.items():
                if tensor is not None:
                    name = first.setdefault(id(tensor), f"{prefix}.{key}" if prefix else key)
                    found.append(Slot(place, key, name, tensor))
    return found


class Body:
    """A module in which one pass at a time may have its own tensors.

    Arguments:
        module: a copy of the model without data, or the model itself.
        lent: it is the model itself: norms, modes and references are put back after every pass.
        lasting: it serves one pass, whose tensors stay in it, for backward may run layers again.
    """

    def __init__(self, module: nn.Module, lent: bool = False, lasting: bool = False):
        self.module, self.lent, self.lasting = module, lent, lasting
        self.slots, self.layers = slots(module), list(module.modules())
        self.norms: list[ValueNorm] = [] if lent else list(exchange(module).values())
        self.training: ModeOfLayers = ()

    def run(self, tensors: Tensors, inputs: tuple, setting: Setting, facts: Facts, now: Statistics) -> tuple:
        """The module's output, and the tensors that it moved."""
        before = [slot.place[slot.key] for slot in self.slots]
        empty = [(layer._buffers, key) for layer in self.layers for key, t in layer._buffers.items() if t is None]
        with self._borrowed(tensors) if self.lent else contextlib.nullcontext():
            if self.training != setting.training:
                self.set_modes(setting.training)
            for norm in self.norms:
                norm.statistics = now
            try:
                for slot in self.slots:
                    slot.place[slot.key] = tensors.get(slot.name, slot.empty)
                output = self.module(*inputs)
                moved = {s.name: s.place[s.key] for s in self.slots if s.name in facts.moves} if facts.moves else {}
            finally:
                if not self.lasting:  # keep no task's tensor alive
                    for slot, tensor in zip(self.slots, before, strict=True):
                        slot.place[slot.key] = tensor
                    for norm in self.norms:
                        norm.statistics = Statistics()
                if facts.keeps:
                    reset(self.layers, facts.keeps)
            filled = [key for buffers, key in empty if buffers[key] is not None]
            for buffers, key in empty:
                buffers[key] = None
            if filled:
                raise BadInput(f"a pass fills the buffer {filled[0]}, which was None: register it as a tensor")
        return output, moved

    def set_modes(self, modes: ModeOfLayers) -> None:
        self.training = modes
        for layer, training in zip(self.layers, modes, strict=True):
            layer.training = training

    @contextlib.contextmanager
    def _borrowed(self, tensors: Tensors) -> Iterator[None]:
        """The user's own model gets norms and modes for this pass; references that it keeps lead to our tensors."""
        modes, outer = tuple(layer.training for layer in self.layers), self.norms
        exchanged = exchange(self.module)
        self.norms, self.training = [*outer, *exchanged.values()], modes
        try:
            with Substituted({id(slot.empty): tensors[slot.name] for slot in self.slots if slot.name in tensors}):
                yield
        finally:
            self.set_modes(modes)
            for norm in exchanged.values():
                del norm.norm.__dict__["forward"]
            self.norms = outer


class Substituted(TorchFunctionMode):
    """Inside it, torch's functions that are given a tensor of the model get that of the pass instead.

    So weights are found that a model reaches by a list, a partial or a closure, past its parameters by name.
    """

    def __init__(self, tensors: Mapping[int, Tensor]):
        super().__init__()
        self.tensors = tensors

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        args, kwargs = tree_map(lambda value: self.tensors.get(id(value), value), (args, dict(kwargs or {})))
        return func(*args, **kwargs)


_locks: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()  # type: ignore[type-arg]


def lock_of(model: nn.Module) -> Any:
    """The lock under which a model's own tensors are exchanged for a moment, and read."""
    return _locks.setdefault(model, threading.RLock())


@dataclass(eq=False)
class Functional:
    """`model` as a pure function of its parameters, as it is built at this moment.

    Arguments:
        model: any module; it is not changed.
        itself: passes run in the model itself, not in copies of it.
        lasting: every pass has a copy of its own, which lasts as long as its graph.

    Raises:
        BadInput: weights that are not made yet; a compiled module; a bare batch norm.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        >>> forward = Functional(model)
        >>> seen = forward(dict(model.named_parameters()), torch.randn(4, 2), forward.setting())
        >>> seen.output.shape, list(seen.moments)
        (torch.Size([4, 3]), ['1'])
    """

    model: nn.Module
    itself: bool = False
    lasting: bool = False
    facts: dict[ModeOfLayers, Facts] = field(default_factory=dict)
    proven: bool = False  # that a body answers as the model does
    repeats: bool = False  # an inner step came out the same when it was taken again
    mapped: bool = False  # vmap was tried, and gives what a loop gives
    one_by_one: bool = False  # vmap was tried, and cannot take the model
    widths: dict[Any, int] = field(default_factory=dict)  # of the output, by shape of the input

    def __post_init__(self) -> None:
        check_layers(self.model)
        if isinstance(self.model, nn.modules.batchnorm._BatchNorm):
            raise BadInput("the model is a bare batch norm; wrap it in a module that has something to adapt")
        self.norms = {
            name: layer.num_features
            for name, layer in self.model.named_modules()
            if isinstance(layer, nn.modules.batchnorm._BatchNorm)
        }
        self.structure = Structure.of(self.model)
        self._blank = None if self.itself else without_data(self.model)
        if self._blank is not None and {*map(id, self._blank.modules())} & {*map(id, self.model.modules())}:
            raise ValueError("a layer gives itself for its copy")
        self._idle: list[Body] = []  # as many as passes ever were under way at once
        self._formula_for: dict[tuple[str, ...], bool] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_idle": []}

    def __deepcopy__(self, memo: dict[int, Any]) -> "Functional":
        return Functional(copy.deepcopy(self.model, memo), self.itself, self.lasting)

    def known(self, setting: Setting) -> Facts:
        """What is known of passes in these modes; nothing of tensors without data."""
        return self.facts.get(setting.training, NOTHING)

    @property
    def free_norms(self) -> frozenset[str]:
        """See `Facts.norms`, of all modes."""
        return frozenset().union(*(facts.norms for facts in self.facts.values()))

    @property
    def normalises(self) -> bool:
        """Whether there is any batch norm."""
        return bool(self.norms or self.free_norms)

    @property
    def outdated(self) -> bool:
        """Whether the model is built otherwise by now."""
        moved = {(a.layer, a.name) for facts in self.facts.values() for a in facts.keeps}
        return self.structure.differs(Structure.of(self.model), moved)

    def setting(self, training: bool = True, precision: str = "float32", statistics: str = "batch") -> Setting:
        """How passes are taken: in the model's own modes or all of them in evaluation.

        Arguments:
            statistics: under `frozen` every batch norm keeps its running statistics; otherwise those in evaluation
                mode do. `running` of norms that are called as functions are those that they keep themselves.

        Raises:
            BadInput: a batch norm is to keep statistics that it does not have.
        """
        modes = tuple(layer.training and training for layer in self.model.modules())
        own = frozenset(name for name in self.norms if self._keeps_its_own(name, statistics == "frozen"))
        return Setting(modes, precision, own, statistics in ("frozen", "running"))

    def _keeps_its_own(self, name: str, frozen: bool) -> bool:
        layer: Any = self.model.get_submodule(name)
        if frozen and layer.running_mean is None:
            raise BadInput(
                f"norm.statistics is frozen, but {name} ({type(layer).__name__}) keeps no running statistics: "
                "take batch, running or support"
            )
        return layer.running_mean is not None and (frozen or not layer.training)

    @contextlib.contextmanager
    def body(self) -> Iterator[Body]:
        """A body that no other pass has."""
        if self._blank is None:
            with lock_of(self.model):
                yield Body(self.model, lent=True)
            return
        if self.lasting:
            yield Body(copy_of(self._blank), lasting=True)
            return
        try:
            body = self._idle.pop()  # in one step, so that no two threads get the same
        except IndexError:
            body = Body(copy_of(self._blank))
        try:
            yield body
        finally:
            self._idle.append(body)

    def __call__(
        self,
        tensors: Tensors,
        x: Tensor | tuple[Tensor, ...],
        setting: Setting,
        given: Mapping[str, Moments] | None = None,
        keys: Keys = (),
        number: int = 0,
        differentiable: bool = False,
    ) -> Seen:
        """The output for `x`.

        Arguments:
            tensors: every parameter and buffer of the model, by name.
            x: the input, or a tuple of the inputs.
            given: batch norms normalise by these moments; by their batch's own where None.
            keys, number: what random numbers are drawn from: keys of the tasks, number of the pass.
            differentiable: let gradients flow through the moments that come back.
        """
        with self.body() as body:
            return self.within(body, tensors, x, setting, given, keys, number, differentiable)

    def within(
        self,
        body: Body,
        tensors: Tensors,
        x: Tensor | tuple[Tensor, ...],
        setting: Setting,
        given: Mapping[str, Moments] | None = None,
        keys: Keys = (),
        number: int = 0,
        differentiable: bool = False,
    ) -> Seen:
        """The same in a body that one has."""
        facts = self.known(setting)
        now = Statistics(given, setting.frozen, differentiable, own=setting.own)
        inputs = x if isinstance(x, tuple) else (x,)
        if facts.moves:  # a pass writes to copies; buffers follow the task, so under vmap each task has its own
            tensors = tensors | {name: tensors[name].clone() for name in facts.moves}
        device = next(iter(tensors.values())).device
        with (
            TaskRandomness(keys, number, device) if facts.draws else PLAIN,
            ExactAttention() if facts.attends else PLAIN,
            half(device) if setting.precision == "bf16" else PLAIN,
            FreeNorms(tensors, now, self.free_norms) if self.free_norms else PLAIN,
        ):
            output, moved = body.run(tensors, inputs, setting, facts, now)
            if setting.precision == "bf16":
                output = tree_map(float32, output)
        return Seen(output, now.seen, moved)

    def cross_entropy_gradients(
        self, names: tuple[str, ...], x: Any, labels: Tensor, setting: Setting
    ) -> Callable[[Tensors], tuple[Tensors, Tensor, Seen] | None] | None:
        """From parameters to gradients of the mean cross-entropy by name, the loss and what was seen, by formula.

        None for a model that has none (see `fewstep.models.closed_form`), where tensors are tied, and where less than
        half of all numbers is wanted.
        """
        if self._blank is None or setting.precision == "bf16" or setting.frozen or isinstance(x, tuple):
            return None
        if names not in self._formula_for:
            places = slots(self._blank)
            sizes = {slot.name: slot.empty.numel() for slot in places}
            enough = len(sizes) == len(places) and 2 * sum(sizes[name] for name in names) >= sum(sizes.values())
            self._formula_for[names] = enough
        if not self._formula_for[names]:
            return None
        with self.body() as body:
            formula = cross_entropy_gradients(body.module, x, labels)
        return formula and Formula(formula, names)


@dataclass(frozen=True)
class Formula:
    """A model's formula for its gradients, as an inner step takes them."""

    found_by: Callable[[Mapping[str, Tensor]], Any]
    names: tuple[str, ...]

    def __call__(self, tensors: Tensors) -> tuple[Tensors, Tensor, Seen] | None:
        found = self.found_by(tensors)
        if found is None:
            return None
        loss, gradients, moments = found
        seen = Seen((), {name: Moments(*each) for name, each in moments.items()}, {})
        return {name: gradients[name] for name in self.names}, loss, seen


NOTHING = Facts()
PLAIN: Any = contextlib.nullcontext()
