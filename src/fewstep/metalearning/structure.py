"""How a model is built, and what a pass changes of it beside tensors: as values that can be compared."""

import copy
import itertools
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from fewstep.errors import BadInput
from fewstep.models.norm import ValueNorm

TORCHS_OWN = frozenset(vars(nn.Module()))  # attributes that every module has
HOOKS = tuple(name for name in sorted(TORCHS_OWN) if name.endswith("hooks"))
PLAIN = (int, float, complex, str, bytes, bool, type(None))
FUNCTIONS = (FunctionType, MethodType, BuiltinFunctionType)
DEPTH = 3  # how deep containers and objects in attributes are looked into
ABSENT: Any = object()


class Attribute(NamedTuple):
    """An attribute of a layer, by the layer's place among `modules()`, and what it was."""

    layer: int
    name: str
    value: Any


def mark(value: Any, depth: int = 0) -> Any:
    """What tells a value from another, and from itself after a change inside it."""
    if isinstance(value, PLAIN):
        return type(value), value
    if isinstance(value, Tensor):
        return id(value), value._version if not value.is_inference() else 0
    if depth < DEPTH and not isinstance(value, nn.Module | type):
        if isinstance(value, dict):
            return id(value), tuple((mark(k, DEPTH), mark(v, depth + 1)) for k, v in value.items())
        if isinstance(value, list | tuple):
            return id(value), tuple(mark(v, depth + 1) for v in value)
        if isinstance(value, set | frozenset):
            return id(value), frozenset(map(id, value))
        if hasattr(value, "__dict__") and not isinstance(value, FUNCTIONS):
            return id(value), type(value), mark(vars(value), depth + 1)
    return id(value), type(value)


def attributes(layers: Iterable[nn.Module]) -> dict[tuple[int, str], Any]:
    """The marks of all attributes that are not torch's own, by place of the layer and name."""
    return {
        (place, name): mark(value)
        for place, layer in enumerate(layers)
        for name, value in layer.__dict__.items()
        if name not in TORCHS_OWN and not isinstance(value, ValueNorm)
    }


@dataclass(frozen=True)
class Structure:
    """What a copy of a model rests on: layers and hooks, tensors but for their values, attributes.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1))
        >>> before = Structure.of(model)
        >>> model[1].p = 0.9
        >>> before.differs(Structure.of(model))
        True
    """

    layers: tuple
    tensors: tuple
    attributes: dict[tuple[int, str], Any]

    @staticmethod
    def of(model: nn.Module) -> "Structure":
        layers = tuple(
            (name, id(layer), type(layer), *(tuple(map(id, own[hooks].values())) for hooks in HOOKS if own.get(hooks)))
            for name, layer in model.named_modules(remove_duplicate=False)
            for own in (layer.__dict__,)
        )
        parameters = (
            (name, id(p), p.shape, p.dtype, p.device, p.requires_grad)
            for name, p in model.named_parameters(remove_duplicate=False)
        )
        buffers = ((name, b.shape, b.dtype, b.device) for name, b in model.named_buffers(remove_duplicate=False))
        return Structure(layers, (*parameters, *buffers), attributes(model.modules()))

    def differs(self, other: "Structure", but: Collection[tuple[int, str]] = ()) -> bool:
        """Whether two moments differ, but for some attributes."""
        if self.layers != other.layers or self.tensors != other.tensors:
            return True
        own, others = self.attributes, other.attributes
        return own != others and any(own.get(at) != others.get(at) for at in {**own, **others} if at not in but)


class Attributes:
    """The attributes of layers at one moment: which of them have changed since, and how to put them back."""

    def __init__(self, layers: Sequence[nn.Module]):
        self.layers, self.marks = layers, attributes(layers)
        self.values = {at: _kept(layers[at[0]].__dict__[at[1]]) for at in self.marks}

    def changed(self) -> tuple[Attribute, ...]:
        """Those that differ now, with what they were."""
        now = attributes(self.layers)
        names = [at for at in {**self.marks, **now} if self.marks.get(at, ABSENT) != now.get(at, ABSENT)]
        return tuple(Attribute(*at, self.values.get(at, ABSENT)) for at in names)


def reset(layers: Sequence[nn.Module], to: Iterable[Attribute]) -> None:
    """Put attributes back to what they were."""
    for attribute in to:
        own = layers[attribute.layer].__dict__
        if attribute.value is ABSENT:
            own.pop(attribute.name, None)
        else:
            own[attribute.name] = _kept(attribute.value)


def forget(layers: Sequence[nn.Module], what: Iterable[Attribute]) -> None:
    """Take attributes away."""
    for attribute in what:
        layers[attribute.layer].__dict__.pop(attribute.name, None)


def _kept(value: Any, depth: int = 0) -> Any:
    """The value, with containers and objects that a pass may change inside copied."""
    if depth < DEPTH and not isinstance(value, Tensor | nn.Module | type):
        if type(value) is dict:
            return {k: _kept(v, depth + 1) for k, v in value.items()}
        if type(value) in (list, tuple):
            return type(value)(_kept(v, depth + 1) for v in value)
        if (hasattr(value, "__dict__") and not callable(value)) or isinstance(value, dict | list | set):
            try:
                copied = copy.copy(value)
                vars(copied).update(_kept(vars(value), depth + 1)) if hasattr(value, "__dict__") else None
            except Exception:  # a user's object that cannot be copied stays the same one
                return value
            return copied
    return value


def check_layers(model: nn.Module) -> None:
    """Raise BadInput where a layer's weights are not made yet, or cannot be learned, or where it was compiled."""
    for name, p in model.named_parameters():
        if not nn.parameter.is_lazy(p) and p.is_inference():
            raise BadInput(f"{name} was made under torch.inference_mode and cannot learn: make the model outside of it")
    for name, layer in model.named_modules():
        if any(nn.parameter.is_lazy(t) for t in itertools.chain(layer._parameters.values(), layer._buffers.values())):
            kind = type(layer).__name__
            raise BadInput(f"{name or 'the model'} ({kind}) has no weights yet: call the model once first")
        if "_orig_mod" in layer._modules:  # as torch.compile wraps it
            raise BadInput(
                f"{name or 'the model'} is compiled: give the learner the module that was compiled "
                f"({name + '.' if name else 'model.'}_orig_mod), and compile the meta-gradient (`compiled=True`)"
            )


def without_data(model: nn.Module) -> nn.Module:
    """A copy of the model whose tensors have no data.

    Raises:
        Exception: what copying a user's object raises.
    """
    # Told beforehand what to put for every tensor, deepcopy copies no data and keeps tied weights tied.
    memo: dict[int, Any] = {id(t): _on_meta(t) for t in itertools.chain(model.parameters(), model.buffers())}
    _detached_copies(model, memo)
    return copy.deepcopy(model, memo)


def copy_of(blank: nn.Module) -> nn.Module:
    """Another copy without data."""
    with unset_fake_temporarily():
        return copy.deepcopy(blank)


def _on_meta(tensor: Tensor) -> Tensor:
    with unset_fake_temporarily():  # a deep copy of a fake tensor leaves its memory damaged
        empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty


def _detached_copies(model: nn.Module, memo: dict[int, Any]) -> None:
    """Enter copies of tensors that deepcopy refuses, those that carry a graph, into its memo."""
    for value in itertools.chain.from_iterable(layer.__dict__.values() for layer in model.modules()):
        for tensor in _tensors(value):
            if tensor.grad_fn is not None:
                memo.setdefault(id(tensor), tensor.detach().clone())


def _tensors(value: Any, depth: int = 0) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value
        return
    if depth == DEPTH or isinstance(value, nn.Module | type) or callable(value):
        return
    inside = vars(value) if hasattr(value, "__dict__") else value
    if isinstance(inside, dict | list | tuple | set):
        for inner in inside.values() if isinstance(inside, dict) else inside:
            yield from _tensors(inner, depth + 1)
