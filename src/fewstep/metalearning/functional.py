"""A model as a pure function: (parameters, input, statistics) → (output, statistics seen).

The function runs on a twin of the model that has its structure but none of its data: every tensor lives on the meta
device, and every batch norm is exchanged for one whose statistics are values, passed in and given back. So nothing in
the user's model is ever mutated, and any `nn.Module` qualifies.
"""

import contextlib
import copy
import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map

from fewstep.errors import BadInput
from fewstep.metalearning.attention import AttentionWatch, math_attention
from fewstep.metalearning.precision import half
from fewstep.metalearning.randomness import generators
from fewstep.metalearning.second_derivative import SecondDerivativeProbe
from fewstep.models import norm as norms
from fewstep.models.norm import Moments, ValueNorm, exchange, float32

NORMS = (_BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm, nn.RMSNorm)


Statistics = dict[str, Moments]  # by the name of the batch norm


class _Slot(NamedTuple):
    """Where a twin looks for a tensor, and the name that the tensor goes by: tied ones go by their first."""

    tensors: dict[str, Tensor | None]
    key: str
    name: str
    empty: Tensor


def _slots(twin: nn.Module) -> Iterator[_Slot]:
    """Every place of a parameter or buffer. `torch.func.functional_call` works them out anew at every call."""
    first: dict[int, str] = {}
    for prefix, module in twin.named_modules(remove_duplicate=False):
        for tensors in (module._parameters, module._buffers):
            for key, tensor in tensors.items():
                if tensor is not None:
                    name = first.setdefault(id(tensor), f"{prefix}.{key}" if prefix else key)
                    yield _Slot(tensors, key, name, tensor)


@dataclass
class _Twin:
    """A copy of the twin for one call at a time: a call swaps its tensors. `training`: its modes, module by module."""

    module: nn.Module
    norms: list[ValueNorm]
    slots: list[_Slot]
    training: tuple[bool, ...] = ()


def _on_meta(tensor: Tensor) -> Tensor:
    empty = tensor.detach().to("meta")
    return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty


def norm_parameters(model: nn.Module) -> list[str]:
    """Names of the weights and biases of normalisation layers, recognised by type."""
    layers = {f"{name}." if name else "": m for name, m in model.named_modules() if isinstance(m, NORMS)}
    return [prefix + name for prefix, layer in layers.items() for name, _ in layer.named_parameters(recurse=False)]


class Functional:
    """`model` as a pure function of its parameters.

    Arguments:
        model: any module; it is neither kept nor changed.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        >>> output, seen = Functional(model)(dict(model.named_parameters()), torch.randn(4, 2))
        >>> output.shape, list(seen)
        (torch.Size([4, 3]), ['1'])
    """

    def __init__(self, model: nn.Module):
        # Told beforehand what to put for every tensor, deepcopy copies no data and keeps tied weights tied.
        tensors = itertools.chain(model.parameters(), model.buffers())
        memo: dict[int, Any] = {id(t): _on_meta(t) for t in tensors}
        self.twin = copy.deepcopy(model, memo)
        self.batch_norms: dict[str, int] = {}
        self.precision = "float32"
        if isinstance(self.twin, _BatchNorm):
            raise BadInput("the model is a bare batch norm; wrap it in a module that has something to adapt")
        for name in exchange(self.twin):
            self.batch_norms[name] = self.twin.get_submodule(name).num_features  # type: ignore[assignment]
        self._training = (False,) * len(list(self.twin.modules()))
        self._attention: bool | None = None  # whether the model has any; found out at the first call
        self._draws: dict[tuple[bool, ...], bool] = {}  # whether it draws random numbers, by what is in training mode
        self._formula_for: dict[tuple[str, ...], bool] = {}  # whether to ask the model for gradients of these
        self._lock = threading.RLock()
        self._idle: list[_Twin] = []  # as many as calls ever were under way at once

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_idle")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.RLock(), _idle=[])

    def train_like(self, model: nn.Module | None) -> None:
        """Dropout and the like behave as in `model`, or as in evaluation where it is None."""
        modes = (False,) * len(self._training) if model is None else (module.training for module in model.modules())
        self._training = tuple(modes)

    def apart(self) -> "Functional":
        """The same function, with twins that no call of this one takes."""
        return copy.copy(self)

    def follow(self, other: "Functional") -> None:
        """Take over another's modes and precision."""
        self._training, self.precision = other._training, other.precision

    @property
    def ready(self) -> bool:
        """Whether a call does nothing that is done once."""
        known = self.shareable is not None and bool(self._idle)
        return known and self._idle[-1].training == self._training

    @property
    def shareable(self) -> bool | None:
        """Whether threads may call it at once without disturbing one another; None before the first call."""
        if self._attention is None or self._training not in self._draws:
            return None
        return not (self._attention or self._draws[self._training])

    @contextlib.contextmanager
    def _idle_twin(self) -> Iterator[_Twin]:
        """A twin that no other call has, in the modes of the moment; idle again afterwards."""
        try:
            twin = self._idle.pop()  # in one step, so that no two threads get the same
        except IndexError:
            module = copy.deepcopy(self.twin)
            told = [module.get_submodule(name).__dict__["forward"] for name in self.batch_norms]
            twin = _Twin(module, told, list(_slots(module)))
        try:
            if twin.training != self._training:
                twin.training = self._training
                for layer, training in zip(twin.module.modules(), twin.training, strict=True):
                    layer.training = training
            yield twin
        finally:
            self._idle.append(twin)

    def __call__(
        self,
        parameters: dict[str, Tensor],
        x: Tensor | tuple[Tensor, ...],
        given: Statistics | None = None,
        differentiable: bool = False,
    ) -> tuple[Tensor, Statistics]:
        """The output for `x`, and the statistics each batch norm normalised by.

        Arguments:
            parameters: every parameter and buffer of the model, by name.
            x: the input, or a tuple of the inputs.
            given: normalise by these statistics; by the batch's own where None.
            differentiable: let gradients flow through the statistics that come back.
        """
        with self._idle_twin() as twin:
            return self._call(twin, parameters, x, given, differentiable)

    def _call(
        self,
        twin: _Twin,
        parameters: dict[str, Tensor],
        x: Tensor | tuple[Tensor, ...],
        given: Statistics | None = None,
        differentiable: bool = False,
    ) -> tuple[Tensor, Statistics]:
        now = norms.Statistics(given, differentiable=differentiable)
        inputs = x if isinstance(x, tuple) else (x,)
        known = self._attention is False and twin.training in self._draws
        device = next(iter(parameters.values())).device
        with contextlib.nullcontext() if known else self._looking(twin.training, device):
            for norm in twin.norms:
                norm.statistics = now
            try:
                for slot in twin.slots:
                    slot.tensors[slot.key] = parameters.get(slot.name, slot.empty)
                with half(self.precision, device):
                    output = twin.module(*inputs)
                    output = float32(output) if isinstance(output, Tensor) else tree_map(float32, output)
            finally:
                for slot in twin.slots:
                    slot.tensors[slot.key] = slot.empty
                for norm in twin.norms:
                    norm.statistics = norms.Statistics()  # keep no task's tensor alive
        return output, now.seen

    @contextlib.contextmanager
    def _looking(self, training: tuple[bool, ...], device: torch.device) -> Iterator[None]:
        """Attention by its plain formula; and what is not known yet of the model is found out."""
        with contextlib.ExitStack() as inside:
            inside.enter_context(self._lock)  # the choice of kernels is the whole process's
            inside.enter_context(math_attention())
            watch = inside.enter_context(AttentionWatch()) if self._attention is None else None
            before = None if training in self._draws else generators(device)
            yield
            if before is not None:
                self._draws[training] = not all(map(torch.equal, before, generators(device)))
            if watch:
                self._attention = watch.seen

    def cross_entropy_gradients(
        self, names: tuple[str, ...], x: Any, labels: Tensor
    ) -> Callable[[dict[str, Tensor]], tuple[dict[str, Tensor], Tensor, Statistics] | None] | None:
        """From parameters to gradients of the mean cross-entropy by name, the loss and the statistics seen, by formula.

        A model that has a formula has a method `cross_entropy_gradients(x, labels)`, which gives it as a function of
        the parameters: to the loss, the gradient of every parameter, and mean and variance by name of the norm; or None
        where it does not hold. It is not asked where tensors are tied or less than half of all numbers is wanted.
        """
        if names not in self._formula_for:
            slots = list(_slots(self.twin))
            sizes = {slot.name: slot.empty.numel() for slot in slots}
            enough = len(sizes) == len(slots) and 2 * sum(sizes[name] for name in names) >= sum(sizes.values())
            self._formula_for[names] = enough and hasattr(self.twin, "cross_entropy_gradients")
        if not self._formula_for[names] or self.precision == "bf16" or isinstance(x, tuple):
            return None
        with self._idle_twin() as twin:
            model: Any = twin.module
            formula = model.cross_entropy_gradients(x, labels)
        if formula is None:
            return None

        def gradients(parameters: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor, Statistics] | None:
            found = formula(parameters)
            if found is None:
                return None
            loss, of_all, moments = found
            return {n: of_all[n] for n in names}, loss, {n: Moments(*each) for n, each in moments.items()}

        return gradients

    def not_twice_differentiable(self, parameters: dict[str, Tensor], x: Any) -> str | None:
        """The innermost layer that torch cannot differentiate twice, with the reason; None where there is none."""
        leaves = {n: p.detach().requires_grad_(p.is_floating_point()) for n, p in parameters.items()}
        with self._idle_twin() as twin, SecondDerivativeProbe(twin.module) as probe:
            self._call(twin, leaves, x)
        if not probe.found:
            return None
        name, kind, reason = probe.found
        return f"layer {name} ({kind}): {reason}" if name else f"{kind}: {reason}"
