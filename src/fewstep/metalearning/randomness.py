"""Randomness that repeats: passes that must agree drop the same units."""

from collections.abc import Callable

import torch


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
    state = torch.get_rng_state()
    on_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def rewind() -> None:
        torch.set_rng_state(state)
        if on_device is not None:
            torch.cuda.set_rng_state(on_device, device)

    return rewind
