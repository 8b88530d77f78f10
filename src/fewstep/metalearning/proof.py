"""The proof that a copy of a model is the model, taken at the first batch.

A copy of a module is not the module where weights are reached past their names, and a pass that changes the module is
no function of its arguments. Nothing of this can be read off the code, so it is tried, on weights other than the
model's own: the model itself with them in place is the truth, and a body must give the same output and gradient.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from fewstep.errors import BadInput
from fewstep.metalearning.attention import ExactAttention
from fewstep.metalearning.facts import KEYS, device_of, facts, floating, leaves_of, real, say, trainable
from fewstep.metalearning.functional import Functional, Tensors, lock_of, slots
from fewstep.metalearning.randomness import TaskRandomness
from fewstep.metalearning.structure import Attributes, reset

CLOSE = {torch.float64: (1e-7, 1e-6), torch.complex128: (1e-7, 1e-6)}  # output, gradient
LESS = (5e-2, 2e-1)  # in other types


def functional(model: nn.Module) -> Functional:
    """The model as a function, of copies of it where it can be copied.

    Raises:
        BadInput: what is no model for a learner; names the layer.
    """
    try:
        return Functional(model)
    except BadInput:
        raise
    except Exception as error:  # of deepcopy, on a user's object
        return _itself(model, f"it cannot be copied ({_first_line(error)})")


def proven(forward: Functional, tensors: Tensors, x: Any) -> Functional:
    """The function, or one that runs in the model itself, once it is known to give what the model gives.

    Arguments:
        tensors: the model's parameters and buffers, by name. x: the inputs of one task.

    Raises:
        BadInput: neither gives that; names the layer or weight.
    """
    if not real(tensors):
        return forward
    try:
        prove(forward, tensors, x)
    except _Differs as copied:
        if not forward.itself:
            return _proven_otherwise(forward.model, tensors, x, copied)
        raise BadInput(_refusal(copied)) from copied
    return forward


def _proven_otherwise(model: nn.Module, tensors: Tensors, x: Any, why: "_Differs") -> Functional:
    """A function in copies that last as long as their graph, as activation checkpointing needs; or in the model itself.

    Raises:
        BadInput: neither is the model.
    """
    with contextlib.suppress(_Differs):
        prove(forward := Functional(model, lasting=True), tensors, x)
        return forward
    forward = _itself(model, str(why))
    try:
        prove(forward, tensors, x)
    except _Differs as itself:
        raise BadInput(_refusal(itself)) from itself
    return forward


def _itself(model: nn.Module, why: str) -> Functional:
    forward = Functional(model, itself=True)
    say(f"passes run in the model itself, one task at a time, for a copy is not the model: {why}")
    return forward


def _refusal(reason: Exception) -> str:
    return (
        f"the model is no function of its parameters by name: {reason}. Reach weights as attributes of registered "
        "modules (self.layer.weight), not by copies, views or other references made beforehand"
    )


class _Differs(Exception):
    """A body and the model give different things."""


# --- the proof -------------------------------------------------------------------------------------------------------


def prove(forward: Functional, tensors: Tensors, x: Any) -> None:
    """Compare a body with the model on other weights, in the model's modes; marks the function as proven.

    In float64 where the model can be taken there, so that rounding is not mistaken for a difference.

    Raises:
        _Differs: they differ.
        Exception: what the model itself raises on such data.
    """
    if forward.norms and not isinstance(x, tuple) and len(x) == 1:
        x = torch.cat([x, x])  # a batch norm may be in training mode here, and not where it is meant to be used
    elsewhere = _other(tensors, dict(forward.model.named_parameters()))
    names = trainable(forward.model)
    try:
        facts(forward, forward.setting(), tensors, x)
    except BadInput:
        raise
    except Exception as error:  # of a body alone, or of the model too
        _native_truth(forward.model, elsewhere, names, x)
        raise _Differs(_first_line(error)) from error
    exactly, exact_x = double((elsewhere, x))
    try:
        truth = _truth(forward.model, exactly, names, exact_x)
    except Exception:  # something in the model is made for its own type alone
        exactly, exact_x = elsewhere, x
        truth = _native_truth(forward.model, elsewhere, names, x)
    _compare(forward, exactly, exact_x, names, *truth)


def _native_truth(model: nn.Module, tensors: Tensors, names: list[str], x: Any) -> Any:
    """`_truth`; BadInput where inputs are of another type than weights and the model cannot take them."""
    try:
        return _truth(model, tensors, names, x)
    except RuntimeError as error:
        if why := _other_types(tensors, x):
            raise BadInput(f"the model cannot take such inputs ({_first_line(error)}): {why}") from error
        raise


def _compare(
    forward: Functional, tensors: Tensors, x: Any, names: list[str], right: Any, slopes: list[Tensor | None]
) -> None:
    """Compare output and gradients of a body with the true ones.

    Raises:
        _Differs: they differ.
    """
    if not all(g.isfinite().all() for g in slopes if g is not None) or not any(
        leaf.isfinite().any() for leaf in floating(right)
    ):
        return  # nothing can be seen on such data
    if names and all(g is None for g in slopes):
        raise BadInput("the model's output depends on none of its weights: does forward use them, and not no_grad?")
    leaves, again = leaves_of(tensors, names), TaskRandomness(KEYS, 1, device_of(tensors))
    try:
        with torch.enable_grad():
            output = forward(leaves, x, forward.setting(), keys=KEYS).output
            with again:
                gradients = _slopes(output, [leaves[name] for name in names])
    except BadInput:
        raise
    except Exception as error:
        raise _Differs(_first_line(error)) from error
    if again.drawn:
        raise BadInput(
            "the model draws random numbers once more while it is differentiated, others than in its pass (activation "
            "checkpointing around dropout): take either out"
        )
    output_close, gradient_close = CLOSE.get(_dtype(right), LESS)
    if not _close(floating(output), floating(right), output_close):
        raise _Differs(_unheard(forward, tensors, x) or "its output is another one")
    top = max((float(g.abs().max()) for g in slopes if g is not None and g.numel()), default=0.0)
    for name, own, true in zip(names, gradients, slopes, strict=True):
        if own is None and true is not None and true.any():
            raise _Differs(f"the weight {name} is reached by another way than its name")
        compared = true is not None and true.numel() and own is not None
        if compared and not (own - true).abs().max() <= gradient_close * max(top, 1e-30):  # type: ignore[operator]
            raise _Differs(f"the gradient of {name} is another one")
    forward.proven = True


def double(tree: Any) -> Any:
    """Floating tensors in float64, complex ones in complex128, others as they are."""

    def exact(t: Any) -> Any:
        if not isinstance(t, Tensor):
            return t
        return t.double() if t.is_floating_point() else t.to(torch.complex128) if t.is_complex() else t

    return tree_map(exact, tree)


def _other_types(tensors: Tensors, x: Any) -> str | None:
    """How inputs and weights differ in type, if they do."""
    types = {t.dtype for t in tree_leaves(x) if isinstance(t, Tensor)}
    own = next(t.dtype for t in tensors.values() if t.is_floating_point() or t.is_complex())
    if types <= {own}:
        return None
    named = ", ".join(sorted(str(t).removeprefix("torch.") for t in types))
    right = str(own).removeprefix("torch.")
    return f"they are {named}, its weights {right}; give it inputs as {right}: batch.to(torch.{right}), x.to(…)"


def _unheard(forward: Functional, tensors: Tensors, x: Any) -> str | None:
    """Which weight the model hears of and the body does not."""
    for name, _ in forward.model.named_parameters():
        one = {**tensors, name: tensors[name] * 1.5 + 0.1}
        right = floating(_truth(forward.model, one, [], x)[0])
        found, again, before = (
            floating(forward(t, x, forward.setting(), keys=KEYS).output) for t in (one, one, tensors)
        )
        unwritten = not _close(found, again, 0.0)  # torch reads memory where a tensor has none: one was not put in
        if unwritten or (_close(found, before, 0.0) and not _close(found, right, 1e-3)):
            kind = type(forward.model.get_submodule(name.rpartition(".")[0])).__name__
            return f"{name} (of {kind}) is reached by another way than its name"
    return None


def _truth(model: nn.Module, tensors: Tensors, names: list[str], x: Any) -> tuple[Any, list[Tensor | None]]:
    """Output and gradients of the model itself with these tensors as its data; everything is as before afterwards."""
    inputs = tree_map(torch.clone, x if isinstance(x, tuple) else (x,))
    parameters = dict(model.named_parameters())
    with _in_place(model, tensors), torch.enable_grad():
        with TaskRandomness(KEYS, 0, device_of(tensors)), ExactAttention():
            output = model(*inputs)
        return output, _slopes(output, [parameters[name] for name in names]) if names else []


@contextlib.contextmanager
def _in_place(model: nn.Module, tensors: Tensors) -> Iterator[None]:
    """The tensors as the model's own data, wherever it keeps references to its parameters and buffers."""
    with lock_of(model):
        places, before, layers = slots(model), Attributes(list(model.modules())), list(model.modules())
        data = [(slot, slot.empty.data) for slot in places]
        try:
            for slot, _ in data:
                slot.empty.data = tensors[slot.name].detach().clone()
            yield
        finally:
            for slot, own in data:
                slot.empty.data = own
                slot.place[slot.key] = slot.empty
            reset(layers, before.changed())


# --- comparing -------------------------------------------------------------------------------------------------------


def _other(tensors: Tensors, parameters: Mapping[str, Tensor]) -> Tensors:
    """Other values for all floating tensors, near enough to mean something: buffers keep their sign."""
    generator = torch.Generator().manual_seed(KEYS[0])
    found = {}
    for name, t in tensors.items():
        if not (t.is_floating_point() or t.is_complex()) or not t.numel():
            found[name] = t.detach()
            continue
        noise = torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.device, t.dtype)
        size = t.detach().abs()
        if name in parameters:
            level = size.square().mean().sqrt()
            found[name] = t.detach() + 0.05 * noise * (size + torch.where(level > 0, level, 0.5))
        else:
            found[name] = t.detach() * (1 + 0.1 * noise.abs())
    return found


def _dtype(output: Any) -> torch.dtype:
    found = floating(output)
    return found[0].dtype if found else torch.float64


def _slopes(output: Any, sources: list[Tensor]) -> list[Tensor | None]:
    """Gradients of a fixed combination of all outputs."""
    total: Tensor | None = None
    for leaf in floating(output):
        if leaf.requires_grad:
            leaf = torch.where(leaf.detach().isfinite(), leaf, 0.0)  # a masked class is no number on purpose
            cotangent = torch.arange(1, leaf.numel() + 1, dtype=torch.float64).square().cos().view(leaf.shape)
            part = (leaf * cotangent.to(leaf.device, leaf.dtype)).sum()
            part = part.real if part.is_complex() else part
            total = part if total is None else total + part
    if total is None:
        return [None] * len(sources)
    found = torch.autograd.grad(total, sources, allow_unused=True)
    return [g if g is None else g.to_dense() if g.is_sparse else g for g in found]


def _close(found: list[Tensor], right: list[Tensor], tolerance: float) -> bool:
    return len(found) == len(right) and all(
        a.shape == b.shape
        and torch.equal(a.isfinite(), b.isfinite())
        and bool((_finite(a) - _finite(b)).abs().max() <= tolerance * _finite(b).abs().max().clamp(min=1e-30))
        for a, b in zip(found, right, strict=True)
        if b.numel()
    )


def _finite(t: Tensor) -> Tensor:
    return torch.where(t.isfinite(), t, 0.0)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
