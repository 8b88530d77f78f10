"""Attention in a form that can be differentiated twice and mapped over tasks."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

# The second hides the first from a watch.
ATTENTION = (torch.nn.functional.scaled_dot_product_attention, torch.nn.functional.multi_head_attention_forward)


@contextlib.contextmanager
def math_attention() -> Iterator[None]:
    """Attention by its plain formula: the fused kernels have neither a second derivative nor a vmap rule."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


class AttentionWatch(TorchFunctionMode):
    """Notices whether attention is called inside it."""

    seen = False

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in ATTENTION and not self.seen:
            self.seen = True
            logging.getLogger("fewstep").warning(
                "attention runs by torch's math kernel: the fused ones have no second derivative"
            )
        return func(*args, **(kwargs or {}))
