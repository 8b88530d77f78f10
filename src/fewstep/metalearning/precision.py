"""How exactly convolutions and matrix products are computed."""

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

import torch

Precision = Literal["float32", "tf32", "bf16"]


@contextlib.contextmanager
def products(precision: str, device: torch.device) -> Iterator[None]:
    """Let CUDA round the operands of float32 products to TF32, or not; forwards and backwards, so around both.

    Torch itself allows it in convolutions, and not in matrix products. Devices of other types have no such thing.
    """
    backends: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul) if device.type == "cuda" else ()
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value


def half(precision: str, device: torch.device) -> contextlib.AbstractContextManager:
    """Around a forward pass: bfloat16 in convolutions and matrix products under `bf16`, and so in their derivatives."""
    if precision != "bf16":
        return contextlib.nullcontext()
    # Fast weights change at every step, so that a cache of rounded weights would only hold memory.
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)
