"""Which layer of a model cannot be differentiated twice."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from fewstep.metalearning.inner_loop import at_step
from fewstep.metalearning.meta_gradient import Work


def _differentiable(values: Any) -> list[Tensor]:
    return [v for v in tree_leaves(values) if isinstance(v, Tensor) and v.requires_grad]


def _leaf(value: Any) -> Any:
    floating = isinstance(value, Tensor) and value.is_floating_point()
    return value.detach().requires_grad_() if floating else value


def _squares(tensors: Iterable[Tensor]) -> Tensor:
    return torch.stack([t.square().sum() for t in tensors]).sum()


@torch.enable_grad()
def why_not_twice(module: nn.Module, *args: Any, **kwargs: Any) -> str | None:
    """What torch says where it cannot differentiate a module's forward pass twice; None where it can.

    Example:
        >>> why_not_twice(nn.Linear(2, 2), torch.ones(1, 2)) is None
        True
    """
    args, kwargs = tree_map(_leaf, (args, kwargs))
    sources = [*_differentiable((args, kwargs)), *(p for p in module.parameters() if p.requires_grad)]
    outputs = _differentiable(module.forward(*args, **kwargs))
    if not sources or not outputs:
        return None
    try:
        gradients = torch.autograd.grad(_squares(outputs), sources, create_graph=True, allow_unused=True)
        if again := _differentiable(gradients):
            torch.autograd.grad(_squares(again), sources, allow_unused=True)
    except RuntimeError as error:
        return str(error).splitlines()[0].rstrip(".")
    return None


def no_second_derivative(work: Work) -> str | None:
    """Where an error of a second-order meta-gradient comes from, if from a derivative that torch lacks."""
    if work.plan.order != "second":
        return None
    inner, task = work.inner, work.task(0)
    leaves = {n: t.detach().requires_grad_(t.is_floating_point()) for n, t in _tensors(work).items()}
    try:
        with inner.forward.body() as body, SecondDerivativeProbe(body.module) as probe:
            output = inner.forward.within(body, leaves, task.support_x, inner.setting, keys=task.keys).output
    except RuntimeError:  # an error of another kind, and the same again
        return None
    if probe.found:
        name, kind, why = probe.found
        where = f"layer {name} ({kind}): {why}" if name else f"{kind}: {why}"
    elif reason := why_not_twice(_Loss(inner.loss, task.support_y), output):
        where = f"the loss: {reason}"
    else:
        return None
    return (
        f"second order needs second derivatives, which torch lacks for {where}: take first order (`fomaml`, "
        "--order first), adapt only layers after it (`anil`, Matching), or exchange it"
    )


def _tensors(work: Work) -> dict[str, Tensor]:
    return at_step(work.fixed.with_learned(work.learned), 0)


class _Loss(nn.Module):
    def __init__(self, loss: Any, target: Tensor):
        super().__init__()
        self.loss, self.target = [loss], target  # in a list: its parameters are not looked at

    def forward(self, output: Any) -> Tensor:
        return self.loss[0](output, self.target)


class SecondDerivativeProbe:
    """Inside it, a call of the model finds its innermost layer that cannot be differentiated twice.

    found: (name, type, reason), or None.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.found: tuple[str, str, str] | None = None
        self._probing = False

    def __enter__(self) -> "SecondDerivativeProbe":
        self._hooks = [
            module.register_forward_hook(
                lambda module, args, kwargs, _, name=name: self._probe(name, module, args, kwargs), with_kwargs=True
            )
            for name, module in self.model.named_modules()
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _probe(self, name: str, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if self._probing or self.found:  # inner layers are called, and so probed, before what holds them
            return
        self._probing = True
        try:
            reason = why_not_twice(module, *args, **kwargs)
        finally:
            self._probing = False
        if reason:
            self.found = (name, type(module).__name__, reason)
