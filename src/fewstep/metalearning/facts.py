"""What a pass of a model does beside its output, found out by watching one: what it moves, draws and leaves behind."""

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_leaves, tree_map

from fewstep.errors import BadInput
from fewstep.metalearning.attention import ExactAttention, say_once
from fewstep.metalearning.functional import Body, Facts, Functional, Setting, Tensors
from fewstep.metalearning.randomness import TaskRandomness, others
from fewstep.metalearning.structure import Attribute, Attributes, forget, reset
from fewstep.models.norm import FreeNorms, Statistics

KEYS = (20240229,)  # of the random numbers of passes that are tried
say = logging.getLogger("fewstep").warning


def facts(forward: Functional, setting: Setting, tensors: Tensors, x: Any) -> Facts:
    """What a pass does beside its output, in these modes; found out once.

    Raises:
        BadInput: its output depends on attributes that an earlier pass changed, or on numbers drawn from Python's or
            NumPy's generators.
    """
    if setting.training in forward.facts:
        return forward.facts[setting.training]
    with forward.body() as body:
        found = _facts(body, setting, tensors, trainable(forward.model), x)
    if found.attends and not any(known.attends for known in forward.facts.values()):
        say_once()
    if real(tensors):
        forward.facts[setting.training] = found
    return found


def _facts(body: Body, setting: Setting, tensors: Tensors, names: list[str], x: Any) -> Facts:
    def watched() -> _Watched:
        return _watched(body, setting, tensors, names, x)

    before, states = Attributes(body.layers), others()
    seen, drawn_elsewhere = watched(), others() != states
    keeps = before.changed()
    try:
        if not real(tensors):
            keeps = ()
        # Torch's own layers leave nothing but what they make anew.
        if own := tuple(k for k in keeps if not type(body.layers[k.layer]).__module__.startswith("torch.nn.modules")):
            _no_memory(body, own, watched, seen.output)
        reset(body.layers, keeps)
        states = others()
        if drawn_elsewhere and watched() and others() != states:  # once more, so that it was not another thread
            raise BadInput(
                "the model draws from Python's or NumPy's random numbers, which no task can have for itself: draw from "
                "torch (torch.rand)"
            )
    finally:
        reset(body.layers, before.changed())
    return Facts(seen.draws, seen.attends, seen.moves, seen.through, keeps, seen.norms, seen.uncounted)


class _Watched(NamedTuple):
    output: Any
    draws: bool
    attends: bool
    moves: frozenset[str]
    through: bool
    norms: frozenset[str]
    uncounted: bool


def _watched(body: Body, setting: Setting, tensors: Tensors, names: list[str], x: Any) -> _Watched:
    """A pass of which all is seen."""
    copies = leaves_of(tensors, names, writable=True)
    everything = Facts(moves=frozenset(copies))
    versions = {name: t._version for name, t in copies.items()}
    parameters = {name for name, _ in body.module.named_parameters()}
    attention, randomness, norms = ExactAttention(), TaskRandomness(KEYS, 0, device_of(copies)), FreeNorms.watch(copies)
    with torch.enable_grad(), randomness, attention, norms:
        inputs = tree_map(torch.clone, x if isinstance(x, tuple) else (x,))
        written = [t._version for t in inputs]
        output, after = body.run(copies, inputs, setting, everything, Statistics(frozen=setting.frozen))
    if [t._version for t in inputs] != written:
        raise BadInput("the model writes to its input, which later passes are given too: let forward work on a copy")
    moved = {n: t for n, t in after.items() if t is not copies[n] or t._version != versions[n]}
    counted = set(moved)
    if real(tensors):  # torch counts no version for what its batch norm writes, nor for `.data`
        moved |= {n: t for n, t in after.items() if not torch.equal(t.detach(), tensors[n].detach())}
    through = any(t.requires_grad for n, t in moved.items() if n not in parameters)
    uncounted, met = not norms.met and bool(set(moved) - counted), frozenset(norms.met)
    return _Watched(output, randomness.drawn, attention.seen, frozenset(moved), through, met, uncounted)


def _no_memory(body: Body, keeps: tuple[Attribute, ...], watched: Callable[[], _Watched], first: Any) -> None:
    """Nothing of what a pass leaves in attributes may be read by the next one.

    Raises:
        BadInput: it is.
    """
    what = f"{type(body.layers[keeps[0].layer]).__name__}.{keeps[0].name}"
    if not _same(watched().output, first):
        raise BadInput(
            f"the model remembers: a pass changes {what}, and the output of the next pass with it, so that it is no "
            "function of parameters and input: make it a buffer (register_buffer), or set it anew in every pass"
        )
    forget(body.layers, keeps)
    try:
        unread = _same(watched().output, first)
    except Exception:  # it was missed
        unread = False
    if not unread:
        say(f"a pass changes {what} and reads it: here every pass begins with its value of now")


def _same(output: Any, other: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(floating(output), floating(other), strict=True))


def trainable(model: nn.Module) -> list[str]:
    """Names of the parameters that ask for gradients."""
    return [name for name, p in model.named_parameters() if p.requires_grad]


def leaves_of(tensors: Tensors, names: list[str], writable: bool = False) -> Tensors:
    """Copies of the tensors, those named with gradients; `writable`: not leaves, so that a pass may write to them."""
    wanted = set(names)
    leaves = {n: t.detach().clone().requires_grad_(n in wanted) for n, t in tensors.items()}
    return {n: t.clone() for n, t in leaves.items()} if writable else leaves


def floating(output: Any) -> list[Tensor]:
    leaves = (leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
    return [leaf for leaf in leaves if leaf.is_floating_point() or leaf.is_complex()]


def real(tensors: Tensors) -> bool:
    """Whether there is data to compare: not on the meta device, not under FakeTensorMode."""
    return not any(t.is_meta or isinstance(t, FakeTensor) for t in tensors.values())


def device_of(tensors: Tensors) -> torch.device:
    return next(iter(tensors.values())).device
