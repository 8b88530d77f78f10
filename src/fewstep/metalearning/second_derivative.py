"""Which layer of a model cannot be differentiated twice."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map


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
