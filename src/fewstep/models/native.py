"""The compiled kernels of `kernels/`, for tensors on a CPU. Elsewhere, and without a compiler, torch serves.

They read and write maps (N, C, H, W) with the channels last in memory. A call lets other Python threads run.
"""

import ctypes
import functools
import importlib.util
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import _get_current_dispatch_mode

SOURCES = Path(__file__).parent / "kernels"
TYPES = {torch.float32: "f32", torch.float64: "f64"}


def processor() -> str:
    """The kind of processor, as torch sees it: "avx2", "avx512", "default", or another.

    Example:
        >>> processor() == torch.backends.cpu.get_cpu_capability().lower()
        True
    """
    return torch.backends.cpu.get_cpu_capability().lower()


def sources() -> list[Path]:
    """What the kernels are compiled from."""
    return sorted([*SOURCES.glob("*.h"), *SOURCES.glob("*.cpp")])


def there() -> bool:
    """Whether the kernels were compiled for this processor, from the sources that lie here."""
    return _library() is not None


@functools.cache
def _library() -> ctypes.CDLL | None:
    built = (importlib.util.find_spec(f"fewstep.models._kernels_{kind}") for kind in (processor(), "default"))
    found = next((spec for spec in built if spec is not None), None)
    if found is None or found.origin is None:
        return None
    try:
        library = ctypes.CDLL(found.origin)
        library.built_from.restype = ctypes.c_int64
        fresh = library.built_from() == zlib.crc32(b"".join(file.read_bytes() for file in sources()))
    except (OSError, AttributeError):  # a library that it needs is missing; kernels from before they had a checksum
        return None
    return library if fresh else None


SIGNATURES = {  # a letter for each argument: pointer, integer, number
    "convolve": "ippppi" + "i" * 6,
    "correlate": "ippp" + "i" * 6,
    "block": "pppppdd" + "p" * 7 + "i" * 6,
    "block_first": "p" * 10 + "d" + "p" * 5 + "i" * 6,
    "block_second": "p" * 17 + "d" + "p" * 5 + "i" * 6,
}
KINDS = {"p": ctypes.c_void_p, "i": ctypes.c_int64, "d": ctypes.c_double}


@functools.cache
def _function(name: str, dtype: torch.dtype) -> Callable[..., None]:
    function = getattr(_library(), f"{name}_{TYPES[dtype]}")
    function.argtypes, function.restype = [KINDS[letter] for letter in SIGNATURES[name]], None
    return function


def _call(name: str, dtype: torch.dtype, *arguments: Any) -> None:
    _function(name, dtype)(*[a.data_ptr() if isinstance(a, Tensor) else a for a in arguments])


def takes(x: Tensor, filters: Tensor, groups: int = 1) -> bool:
    """Whether kernels can be called for a convolution of maps x with filters 3×3; if not, torch can, or says why not.

    Where a mode watches torch's operators, it shall see them.
    """
    return (
        not torch.compiler.is_compiling()  # it drops the derivatives of functions: pytorch issue 193279
        and x.device.type == filters.device.type == "cpu"
        and x.dtype == filters.dtype
        and x.dtype in TYPES
        and type(x) is Tensor
        and type(filters) in (Tensor, nn.Parameter)
        and x.dim() == 4
        and x.numel() > 0
        and filters.shape[1:] == (x.shape[1] // groups, 3, 3)
        and len(filters) // groups % lanes(x.dtype) == 0
        and there()
        and _get_current_dispatch_mode() is None
        and not torch.is_autocast_enabled("cpu")
    )


def fits(vector: Tensor, filters: Tensor) -> bool:
    """Whether there is a number of the vector for every filter: kernels do not ask again."""
    return vector.shape == filters.shape[:1] and (vector.dtype, vector.device) == (filters.dtype, filters.device)


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
        >>> convolve([(x, weight)])[0, 0] if takes(x, weight) else None
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
        return _few(list(zip(maps, filters, strict=True)), groups)
    y = _maps(maps[0], n, height, width, outside * groups)
    bias = None if bias is None else bias.contiguous()
    sizes = n, height, width, inside, outside, groups
    _call("convolve", y.dtype, len(pairs), _pointers(maps), _pointers(filters), bias, y, turned, *sizes)
    return y


def _few(pairs: Sequence[tuple[Tensor, Tensor]], groups: int) -> Tensor:
    """The gradient of images of one or three channels: seldom asked for."""
    return torch.stack([F.conv_transpose2d(a, w, padding=1, groups=groups) for a, w in pairs]).sum(0)


def correlate(pairs: Sequence[tuple[Tensor, Tensor]], groups: int = 1) -> Tensor:
    """Σ a ⋆ x over pairs of maps x and gradients a: the gradient of filters 3×3."""
    maps, gradients = ([_last(t) for t in each] for each in zip(*pairs, strict=True))
    (n, channels, height, width), outside = maps[0].shape, gradients[0].shape[1]
    filters = _maps(maps[0], outside, 3, 3, channels // groups)
    sizes = n, height, width, channels // groups, outside // groups, groups
    _call("correlate", filters.dtype, len(pairs), _pointers(maps), _pointers(gradients), filters, *sizes)
    return filters


def block(
    x: Tensor,
    filters: Tensor,
    shift: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    slope: float,
    groups: int,
) -> tuple[Tensor, ...]:
    """y = LeakyReLU(max-pool(norm(z))) of z = W ∗ x + b.

    Returns:
        y, μ, σ², 1/√(σ² + ε), z, the pixels of z that pooling keeps, and which of four each of them is.
    """
    given = x, filters, shift, weight, bias = _dense(x, filters, shift, weight, bias)
    n, _, height, width = x.shape
    z, y = _maps(x, n, height, width, len(filters)), _maps(x, n, height // 2, width // 2, len(filters))
    kept, corner = torch.empty_like(y), torch.empty_like(y, dtype=torch.uint8)
    mean, var, rstd = (torch.empty_like(weight) for _ in range(3))
    _call("block", x.dtype, *given, eps, slope, z, y, kept, corner, mean, var, rstd, *_sizes(x, filters, groups))
    return y, mean, var, rstd, z, kept, corner


def block_first(*given: Tensor, slope: float, groups: int, of_x: bool) -> tuple[Tensor | None, ...]:
    """dx, dW, dγ, dβ and dz for the gradient a of y.

    Args:
        given: a, x, W, γ, β, μ, 1/√(σ² + ε), z, and the two of pooling.
        of_x: whether to compute dx.
    """
    given = _, x, filters, weight, *_ = _dense(*given)
    sizes = _sizes(x, filters, groups)
    few = filters.shape[1] % lanes(x.dtype) != 0
    dx = torch.empty_like(x) if of_x and not few else None
    n, _, height, width = x.shape
    dz = _maps(x, n, height, width, len(filters))
    d_filters, d_weight, d_bias = torch.empty_like(filters), torch.empty_like(weight), torch.empty_like(weight)
    _call("block_first", x.dtype, *given, slope, dx, d_filters, d_weight, d_bias, dz, *sizes)
    return _few([(dz, filters)], groups) if of_x and few else dx, d_filters, d_weight, d_bias, dz


def block_second(*given: Tensor | None, slope: float, groups: int, of_x: bool) -> tuple[Tensor | None, ...]:
    """The pull-back of (u_x, u_W, u_γ, u_β) through `block_first`, to a, x, W and γ.

    Args:
        given: the cotangents, zero where None; what `block_first` was given; dγ, dβ and dz.
        of_x: whether to compute what goes to x.
    """
    given = _, u_filters, _, _, a, x, filters, weight, *_, dz = _dense(*given)
    sizes = _sizes(x, filters, groups)
    few = filters.shape[1] % lanes(x.dtype) != 0
    g_x = torch.empty_like(x) if of_x and not few else None
    g_a, g_filters, g_weight = torch.empty_like(a), torch.empty_like(filters), torch.empty_like(weight)
    n, _, height, width = x.shape
    room = _maps(x, 2 * n, height, width, len(filters))
    _call("block_second", x.dtype, *given, slope, g_a, g_x, g_filters, g_weight, room, *sizes)
    if of_x and few:
        both = [(room[n:], filters)] if u_filters is None else [(room[n:], filters), (dz, u_filters)]
        g_x = _few(both, groups)
    return g_a, g_x, g_filters, g_weight


def _sizes(x: Tensor, filters: Tensor, groups: int) -> tuple[int, ...]:
    """Images, height, width, channels and filters of a group, groups."""
    return len(x), *x.shape[2:], filters.shape[1], len(filters) // groups, groups


def _dense(*tensors: Tensor | None) -> Any:
    """Maps with the channels last, vectors without gaps."""
    return tuple(t if t is None else _last(t) if t.dim() == 4 else t.contiguous() for t in tensors)


def _last(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last)


def _maps(like: Tensor, n: int, height: int, width: int, channels: int) -> Tensor:
    """New maps (n, channels, height, width) with the channels last."""
    return torch.empty(
        (n, channels, height, width), dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )


def _pointers(tensors: Sequence[Tensor]) -> ctypes.Array:
    return (ctypes.c_void_p * len(tensors))(*(t.data_ptr() for t in tensors))
