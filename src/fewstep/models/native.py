"""The kernels of kernels.cpp, for tensors on a CPU; elsewhere, and where nothing was compiled, torch's operators serve.

They read and write maps (N, C, H, W) with the channels last in memory. A call lets other Python threads run.
"""

import ctypes
import functools
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import _get_current_dispatch_mode

TYPES = {torch.float32: "f32", torch.float64: "f64"}


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The kernels for this processor, as torch sees it; None where they were not compiled."""
    processor = torch.backends.cpu.get_cpu_capability().lower()
    found = importlib.util.find_spec(f"fewstep.models._kernels_{processor}")
    return None if found is None or found.origin is None else ctypes.CDLL(found.origin)


SIGNATURES = {  # a letter for each argument: pointer, integer, number
    "convolve": "ippppiiiiiii",
    "correlate": "ipppiiiiii",
    "pool_norm": "pppddppppppiiii",
    "pool_norm_first": "ppppppppdpppiiii",
    "pool_norm_second": "pppppppppppppdpppiiii",
}
KINDS = {"p": ctypes.c_void_p, "i": ctypes.c_int64, "d": ctypes.c_double}


@functools.cache
def _function(name: str, dtype: torch.dtype) -> Callable[..., None]:
    function = getattr(_library(), f"{name}_{TYPES[dtype]}")
    function.argtypes, function.restype = [KINDS[letter] for letter in SIGNATURES[name]], None
    return function


def _call(name: str, dtype: torch.dtype, *arguments: Any) -> None:
    _function(name, dtype)(*[a.data_ptr() if isinstance(a, Tensor) else a for a in arguments])


def takes(x: Tensor, filters: int) -> bool:
    """Whether kernels can be called for maps like x, to give so many channels.

    Where a mode watches torch's operators, it shall see them.
    """
    return (
        x.device.type == "cpu"
        and x.dtype in TYPES
        and type(x) is Tensor
        and filters % lanes(x.dtype) == 0
        and _library() is not None
        and _get_current_dispatch_mode() is None
        and not torch.is_autocast_enabled("cpu")
    )


@functools.cache
def lanes(dtype: torch.dtype) -> int:
    """Numbers in a vector register: channels come in multiples of it."""
    library = _library()
    return library.vector_bytes() // dtype.itemsize if library else 1


def convolve(
    pairs: Sequence[tuple[Tensor, Tensor]], bias: Tensor | None = None, groups: int = 1, turned: bool = False
) -> Tensor:
    """Σ W ∗ x + b over pairs of maps and filters 3×3, or where `turned` Σ Wᵀ a, the gradient of the maps.

    Example:
        >>> x, weight = torch.ones(1, 8, 3, 3), torch.ones(8, 8, 3, 3)
        >>> convolve([(x, weight)])[0, 0] if takes(x, 8) else None
        tensor([[32., 48., 32.],
                [48., 72., 48.],
                [32., 48., 32.]])
    """
    maps, filters = ([_last(t) for t in each] for each in zip(*pairs, strict=True))
    n, _, height, width = maps[0].shape
    inside, outside = filters[0].shape[1], len(filters[0]) // groups
    if turned:
        inside, outside = outside, inside
    if outside % lanes(maps[0].dtype):
        return _few(maps, filters, groups)
    y = _maps(maps[0], n, height, width, outside * groups)
    bias = None if bias is None else bias.contiguous()
    sizes = n, height, width, inside, outside, groups, turned
    _call("convolve", y.dtype, len(pairs), _pointers(maps), _pointers(filters), bias, y, *sizes)
    return y


def _few(gradients: Sequence[Tensor], filters: Sequence[Tensor], groups: int) -> Tensor:
    """The gradient of images of one or three channels: seldom asked for."""
    parts = [F.conv_transpose2d(a, w, padding=1, groups=groups) for a, w in zip(gradients, filters, strict=True)]
    return torch.stack(parts).sum(0)


def correlate(pairs: Sequence[tuple[Tensor, Tensor]], groups: int = 1) -> Tensor:
    """Σ a ⋆ x over pairs of maps x and gradients a: the gradient of filters 3×3."""
    maps, gradients = ([_last(t) for t in each] for each in zip(*pairs, strict=True))
    (n, channels, height, width), outside = maps[0].shape, gradients[0].shape[1]
    filters = _maps(maps[0], outside, 3, 3, channels // groups)
    sizes = n, height, width, channels // groups, outside // groups, groups
    _call("correlate", filters.dtype, len(pairs), _pointers(maps), _pointers(gradients), filters, *sizes)
    return filters


def pool_norm(z: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float) -> tuple[Tensor, ...]:
    """LeakyReLU(max-pool(norm(z))), the pixels of z that stay, which of four each is, μ, σ² and 1/√(σ² + ε)."""
    z, weight, bias = _last(z), weight.contiguous(), bias.contiguous()
    n, channels, height, width = z.shape
    y = _maps(z, n, height // 2, width // 2, channels)
    results = y, torch.empty_like(y), torch.empty_like(y, dtype=torch.uint8), *(_vector(z) for _ in range(3))
    _call("pool_norm", z.dtype, z, weight, bias, eps, slope, *results, n, height, width, channels)
    return results


def pool_norm_first(
    a: Tensor, z: Tensor, weight: Tensor, bias: Tensor, kept: Tensor, corner: Tensor, mean: Tensor, rstd: Tensor,
    slope: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """dz, dγ, dβ for the gradient a of what `pool_norm` gives."""
    a, z, weight, bias, kept, corner = (
        _last(a),
        _last(z),
        weight.contiguous(),
        bias.contiguous(),
        *map(_last, (kept, corner)),
    )
    n, channels, height, width = z.shape
    results = _maps(z, n, height, width, channels), _vector(z), _vector(z)
    given = a, z, weight, bias, kept, corner, mean, rstd
    _call("pool_norm_first", z.dtype, *given, slope, *results, n, height, width, channels)
    return results


def pool_norm_second(
    u: Tensor, u_weight: Tensor, u_bias: Tensor, a: Tensor, z: Tensor, weight: Tensor, bias: Tensor, kept: Tensor,
    corner: Tensor, mean: Tensor, rstd: Tensor, d_weight: Tensor, d_bias: Tensor, slope: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The pull-back of (u, u_γ, u_β) through `pool_norm_first`, to a, z and γ."""
    n, channels, height, width = z.shape
    results = _maps(a, n, height // 2, width // 2, channels), _maps(z, n, height, width, channels), _vector(z)
    given = [
        _last(t) if t.dim() == 4 else t.contiguous()
        for t in (u, u_weight, u_bias, a, z, weight, bias, kept, corner, mean, rstd, d_weight, d_bias)
    ]
    _call("pool_norm_second", z.dtype, *given, slope, *results, n, height, width, channels)
    return results


def _last(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last)


def _maps(like: Tensor, n: int, height: int, width: int, channels: int) -> Tensor:
    """New maps (n, channels, height, width) with the channels last."""
    return torch.empty((n, channels, height, width), dtype=like.dtype, memory_format=torch.channels_last)


def _vector(z: Tensor) -> Tensor:
    return torch.empty(z.shape[1], dtype=z.dtype)


def _pointers(tensors: Sequence[Tensor]) -> ctypes.Array:
    return (ctypes.c_void_p * len(tensors))(*(t.data_ptr() for t in tensors))
