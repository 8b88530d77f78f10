"""Attention in a form that can be differentiated twice and mapped over tasks."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def math_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """`torch.nn.functional.scaled_dot_product_attention` by torch's own formula, whatever kernels are allowed."""
    return torch.ops.aten._scaled_dot_product_attention_math(
        query, key, value, attn_mask, dropout_p, is_causal, None, scale=scale, enable_gqa=enable_gqa
    )[0]


class ExactAttention(TorchFunctionMode):
    """Inside it attention goes by its plain formula: fused kernels have neither a second derivative nor a vmap rule.

        softmax(q kᵀ · scale + mask) v

    It holds for its thread alone. Torch's fast path of encoder layers steps back by itself where a mode is active.

    Example:
        >>> q = torch.randn(2, 3, 4, requires_grad=True)
        >>> with ExactAttention() as mode:
        ...     y = F.scaled_dot_product_attention(q, q, q)
        >>> torch.allclose(y, F.scaled_dot_product_attention(q, q, q), atol=1e-6), mode.seen
        (True, True)
    """

    seen = False

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            self.seen = True
            return math_attention(*args, **kwargs)
        if func is F.multi_head_attention_forward:  # with its weights asked for it has a plain formula of its own
            self.seen = True
            wanted, kwargs["need_weights"] = kwargs.get("need_weights", True), True
            output, weights = func(*args, **kwargs)
            return output, weights if wanted else None
        return func(*args, **kwargs)


def say_once() -> None:
    """Tell the user what attention costs here."""
    logging.getLogger("fewstep").warning(
        "attention runs by torch's math kernel: the fused ones have no second derivative"
    )
