"""Torch's modes, as a call sets them for itself: what its caller is in the middle of changes nothing in it."""

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from fewstep.errors import BadInput

Precision = Literal["float32", "tf32", "bf16"]


@contextlib.contextmanager
def own_modes(like: Tensor, grad: bool, precision: str = "float32") -> Iterator[None]:
    """Out of the caller's `inference_mode`, `no_grad` and autocast; on CUDA with TF32 allowed or not.

    Torch has one switch a process for TF32; elsewhere than on CUDA nothing of the process is touched.

    Arguments:
        like: one of the tensors at hand. grad: whether derivatives are taken.

    Raises:
        BadInput: real tensors under FakeTensorMode.
    """
    device = like.device
    faking = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None
    if faking and type(like) in (Tensor, nn.Parameter):
        raise BadInput("the learner's tensors are real and FakeTensorMode is on: build the learner under the mode too")
    with contextlib.ExitStack() as inside:
        inside.enter_context(torch.inference_mode(False))
        inside.enter_context(torch.set_grad_enabled(grad))
        if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
            inside.enter_context(torch.autocast(device.type, enabled=False))  # precision is the learner's own choice
        if device.type == "cuda":
            inside.enter_context(tf32(precision == "tf32"))
        yield


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Let CUDA round the operands of float32 products to TF32, or not; forwards and backwards, so around both.

    Torch itself allows it in convolutions, and not in matrix products.
    """
    backends: tuple[Any, ...] = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = allowed
    try:
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value


def half(device: torch.device) -> contextlib.AbstractContextManager:
    """Around a forward pass: bfloat16 in convolutions and matrix products, and so in their derivatives."""
    # Fast weights change at every step, so that a cache of rounded weights would only hold memory.
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)


def usable(tree: Any) -> Any:
    """Tensors made under `inference_mode`, which no graph may hold, copied; all others as they are."""
    return tree_map(lambda t: t.clone() if isinstance(t, Tensor) and t.is_inference() else t, tree)
