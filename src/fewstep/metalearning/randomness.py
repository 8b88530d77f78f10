"""Randomness that repeats: passes that must agree drop the same units."""

from collections.abc import Callable

import torch
from torch import Tensor


def generators(device: torch.device) -> list[Tensor]:
    """The states of the generators that a module on the device draws from: the CPU's, then the device's own."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def rewinder(device: torch.device) -> Callable[[], None]:
    """A function that sets the generators that a module draws from back to where they are now.

    Example:
        >>> rewind = rewinder(torch.device("cpu"))
        >>> first = torch.rand(2)
        >>> rewind()
        >>> torch.equal(torch.rand(2), first)
        True
    """
    if torch.compiler.is_compiling():  # only what draws nothing is compiled
        return lambda: None
    state, *on_device = generators(device)

    def rewind() -> None:
        torch.set_rng_state(state)
        for other in on_device:
            torch.cuda.set_rng_state(other, device)

    return rewind
