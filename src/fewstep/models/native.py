"""The compiled kernels of `kernels/`, for tensors on a CPU. Elsewhere, and without a compiler, torch serves.

They read and write maps (N, C, H, W) with the channels last in memory. A call lets other Python threads run.

Convolutions 3×3 go by Winograd's sums of neighbouring pixels. In the normal range they round no worse than torch's; at
its edge they differ: a pixel that is inf or NaN makes the pixels beside those that it touches NaN as well, and numbers
above a quarter of the largest one overflow. A batch norm after the convolution ends in NaN for the whole channel either
way, so nothing looks for such pixels beforehand.
"""

import ctypes
import functools
import importlib.util
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode
from torch.utils._python_dispatch import _get_current_dispatch_mode, _get_current_dispatch_mode_stack

SOURCES = Path(__file__).parent / "kernels"
TYPES = {torch.float32: "f32", torch.float64: "f64"}


def processor() -> str:
    """The kind of processor, as torch sees it: "avx2", "avx512", "default", or another."""
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
    "blocks": "pppddi" + "p" * 5 + "i" * 7,
    "blocks_first": "p" * 9 + "d" + "p" * 5 + "i" * 7,
    "blocks_second": "p" * 13 + "d" + "p" * 7 + "i" * 7,
    "gradients": "p" * 6 + "dd" + "p" * 7 + "i" * 8,
}
KINDS = {"p": ctypes.c_void_p, "i": ctypes.c_int64, "d": ctypes.c_double}


@functools.cache
def _function(name: str, dtype: torch.dtype) -> Callable[..., None]:
    function = getattr(_library(), f"{name}_{TYPES[dtype]}")
    function.argtypes, function.restype = [KINDS[letter] for letter in SIGNATURES[name]], None
    return function


def _call(name: str, dtype: torch.dtype, *arguments: Any) -> None:
    _function(name, dtype)(*[a.data_ptr() if isinstance(a, Tensor) else a for a in arguments])


def unwatched() -> bool:
    """Whether no compiler, autocast or dispatch mode is active, which would have to see torch's operators.

    A dispatch mode whose class says `transparent = True` does not count.
    """
    return (
        not torch.compiler.is_compiling()  # it drops the derivatives of functions: pytorch issue 193279
        and not torch.is_autocast_enabled("cpu")
        and no_mode()
    )


def no_mode() -> bool:
    """Whether no dispatch mode is active, but for transparent ones."""
    if _get_current_dispatch_mode() is None:
        return True
    return all(getattr(type(mode), "transparent", False) for mode in _get_current_dispatch_mode_stack())


def takes(x: Tensor, filters: Tensor, groups: int = 1) -> bool:
    """Whether kernels can be called for a convolution of maps with filters 3×3; if not, torch can, or says why not."""
    return unwatched() and _fit(x, filters, groups)


def _fit(x: Tensor, filters: Tensor, groups: int = 1) -> bool:
    return (
        x.device.type == filters.device.type == "cpu"
        and x.dtype == filters.dtype
        and x.dtype in TYPES
        and type(x) is Tensor
        and type(filters) in (Tensor, nn.Parameter)
        and x.dim() == 4
        and x.numel() > 0
        and filters.shape[1:] == (x.shape[1] // groups, 3, 3)
        and len(filters) // groups % lanes(x.dtype) == 0
        and there()
    )


def takes_blocks(x: Tensor, filters: Sequence[Tensor]) -> bool:
    """Whether kernels can be called for blocks one after another: each halves the maps, and has as many filters."""
    return unwatched() and _fit_blocks(x, filters)


def _fit_blocks(x: Tensor, filters: Sequence[Tensor]) -> bool:
    first, *others = filters
    wide = len(first)
    return (
        _fit(x, first)
        and min(x.shape[2:]) >> len(filters) > 0
        and all(w.shape == (wide, wide, 3, 3) and type(w) in (Tensor, nn.Parameter) for w in others)
        and all(w.dtype == first.dtype and w.device == first.device for w in others)
    )


def fits(vector: Tensor, filters: Tensor) -> bool:
    """Whether there is a number of the vector for every filter: kernels do not ask again."""
    return vector.shape == filters.shape[:1] and vector.dtype == filters.dtype and vector.device == filters.device


def rows(filters: Tensor, *kinds: Sequence[Tensor | None], missing: Sequence[float]) -> Tensor:
    """Vectors (F,) of several kinds, one a block, as the rows that `blocks` takes; of `missing` where one is None.

    Raises:
        ValueError: a vector of another length, type or device than the filters.
    """
    each = []
    for kind, number in zip(kinds, missing, strict=True):
        for vector in kind:
            if vector is not None and not fits(vector, filters):
                raise ValueError(
                    f"the convolution gives {len(filters)} channels of {filters.dtype} on {filters.device}; its bias "
                    f"or the norm after it has {tuple(vector.shape)} of {vector.dtype} on {vector.device}"
                )
            each.append(filters.new_full((len(filters),), number) if vector is None else vector)
    return torch.stack(each)


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
        >>> convolve([(x, weight)])[0, 0] if takes(x, weight) else torch.conv2d(x, weight, padding=1)[0, 0]
        tensor([[32., 48., 32.],
                [48., 72., 48.],
                [32., 48., 32.]])
    """
    maps, filters = ([_last(t) for t in each] for each in zip(*pairs, strict=True))
    n, _, height, width = maps[0].shape
    inside, outside = filters[0].shape[1], len(filters[0]) // groups
    if turned:
        inside, outside = outside, inside
    y = _maps(maps[0], n, height, width, outside * groups)
    bias = _dense(bias)[0]
    sizes = n, height, width, inside, outside, groups
    _call("convolve", y.dtype, len(pairs), _pointers(maps), _pointers(filters), bias, y, turned, *sizes)
    return y


def correlate(pairs: Sequence[tuple[Tensor, Tensor]], groups: int = 1) -> Tensor:
    """Σ a ⋆ x over pairs of maps x and gradients a: the gradient of filters 3×3."""
    maps, gradients = ([_last(t) for t in each] for each in zip(*pairs, strict=True))
    (n, channels, height, width), outside = maps[0].shape, gradients[0].shape[1]
    filters = _maps(maps[0], outside, 3, 3, channels // groups)
    sizes = n, height, width, channels // groups, outside // groups, groups
    _call("correlate", filters.dtype, len(pairs), _pointers(maps), _pointers(gradients), filters, *sizes)
    return filters


class Sizes(NamedTuple):
    """Of blocks one after another; channels and filters are those of a group."""

    depth: int
    images: int
    height: int
    width: int
    channels: int
    filters: int
    groups: int

    @property
    def wide(self) -> int:
        """Channels of all groups."""
        return self.groups * self.filters

    def largest(self, dtype: torch.dtype) -> int:
        """Pixels of the largest maps that are made at once: those of images with few channels are made by strips."""
        return self.pixels(1 if self.channels < lanes(dtype) else 0)

    def all(self, dtype: torch.dtype) -> int:
        """Pixels that a gradient in one call needs room for: maps and gradients of maps, and a byte for each corner."""
        maps = [self.pixels(block) for block in range(self.depth + 1)]
        pooled = sum(maps) - maps[0]
        return sum(maps) - maps[-1] + 2 * pooled + self.largest(dtype) + -(-pooled // dtype.itemsize)

    def pixels(self, block: int) -> int:
        """Pixels of the maps that go into a block."""
        return self.images * (self.height >> block) * (self.width >> block)


def sizes_of(x: Tensor, filters: Sequence[Tensor], groups: int) -> Sizes:
    """The sizes of blocks with these filters that are given x."""
    n, _, height, width = x.shape
    return Sizes(len(filters), n, height, width, filters[0].shape[1], len(filters[0]) // groups, groups)


def blocks(
    x: Tensor, vectors: Tensor, given: Tensor | None, filters: Sequence[Tensor], eps: float, slope: float, groups: int,
    keep: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """y = h_B of blocks h_i = LeakyReLU(max-pool(norm(z_i))), z_i = W_i ∗ h_{i−1}, h_0 = x.

    Arguments:
        x: maps. filters: W_i, all with C filters.
        vectors: (3 B, C): γ of every block, then β, then what the convolutions add, which the norms take away.
        given: (2 B, C): μ and σ² to normalise by; those of the convolutions where None.
        keep: what derivatives need: z and corners.

    Returns:
        y; h_1 … h_{B−1}, a row of C numbers a pixel; moments (4 B, C): μ of every block's convolution, then σ², then
        1/√(σ² + ε), then μ without what the convolution adds; z likewise; and which pixel of four pooling keeps. The
        last two are empty where nothing is to be kept.
    """
    x, vectors, *filters = _dense(x, vectors, *filters)
    s = sizes_of(x, filters, groups)
    y = _maps(x, s.images, s.height >> s.depth, s.width >> s.depth, s.wide)
    inner = _rows(x, sum(map(s.pixels, range(1, s.depth))), s)
    moments = _rows(x, 4 * s.depth, s)
    if given is not None:
        moments[: 2 * s.depth] = given
    z = _rows(x, sum(map(s.pixels, range(s.depth))) if keep else s.largest(x.dtype), s)
    corner = _rows(x, sum(map(s.pixels, range(1, s.depth + 1))), s, torch.uint8) if keep else None
    results = inner, y, moments, z, corner
    _call("blocks", x.dtype, x, vectors, _pointers(filters), eps, slope, given is not None, *results, *s)
    if corner is None:
        z, corner = z[:0], _rows(x, 0, s, torch.uint8)
    return y, inner, moments, z, corner


def blocks_first(
    a: Tensor, a_inner: Tensor | None, x: Tensor, vectors: Tensor, inner: Tensor, moments: Tensor, z: Tensor,
    corner: Tensor, filters: Sequence[Tensor], slope: float, groups: int, of_x: bool,
) -> tuple[Any, ...]:  # fmt: skip
    """dx, the gradient of `vectors`, the whole gradient of `inner`, dW_i, for gradients a of y and a_inner of `inner`.

    Arguments:
        a_inner: None for none.
        x … filters: what `blocks` was given and gave.
        of_x: whether to compute dx.
    """
    a, a_inner, x, vectors, inner, moments, z, corner, *filters = _dense(
        a, a_inner, x, vectors, inner, moments, z, corner, *filters
    )
    s = sizes_of(x, filters, groups)
    dx = torch.empty_like(x) if of_x else None
    d_vectors, d_inner, d_filters = torch.empty_like(vectors), torch.empty_like(inner), _like(filters)
    given = a, a_inner, x, vectors, inner, moments, z, corner, _pointers(filters)
    room = _rows(x, s.pixels(0) if of_x else s.largest(x.dtype), s)
    _call("blocks_first", x.dtype, *given, slope, dx, d_vectors, d_inner, _pointers(d_filters), room, *s)
    return dx, d_vectors, d_inner, *d_filters


def blocks_second(
    u_x: Tensor | None, u_vectors: Tensor | None, u_filters: Sequence[Tensor | None], a: Tensor, x: Tensor,
    vectors: Tensor, inner: Tensor, moments: Tensor, z: Tensor, corner: Tensor, filters: Sequence[Tensor],
    d_vectors: Tensor, d_inner: Tensor, slope: float, groups: int, of_x: bool,
) -> tuple[Any, ...]:  # fmt: skip
    """The pull-back of (u_x, u_vectors, u_W_i) through `blocks_first`: to a, a_inner, x, vectors, inner and W_i.

    Arguments:
        u_x, u_vectors, u_filters: zero where None.
        a … filters: what `blocks_first` was given. d_vectors, d_inner: what it gave.
        of_x: whether to compute what goes to x.
    """
    u_x, u_vectors, *u_filters = _dense(u_x, u_vectors, *u_filters)
    a, x, vectors, inner, moments, z, corner, d_vectors, d_inner, *filters = _dense(
        a, x, vectors, inner, moments, z, corner, d_vectors, d_inner, *filters
    )
    s = sizes_of(x, filters, groups)
    g_a, g_a_inner, g_inner = torch.empty_like(a), torch.empty_like(inner), torch.empty_like(inner)
    g_x, g_vectors, g_filters = torch.empty_like(x) if of_x else None, torch.empty_like(vectors), _like(filters)
    cotangents = u_x, u_vectors, _pointers(u_filters)
    given = a, x, vectors, inner, moments, z, corner, _pointers(filters), d_vectors, d_inner
    results = g_a, g_a_inner, g_x, g_vectors, g_inner, _pointers(g_filters)
    room = _rows(x, s.pixels(0) * (1 if u_x is None and not of_x else 2), s)
    _call("blocks_second", x.dtype, *cotangents, *given, slope, *results, room, *s)
    return g_a, g_a_inner, g_x, g_vectors, g_inner, *g_filters


def unseen() -> bool:
    """Whether, besides `unwatched`, no function mode is active and no transform of `torch.func`.

    Under a transform tensors may have no memory that a kernel could read.
    """
    return unwatched() and _get_current_function_mode() is None and torch._C._functorch.peek_interpreter_stack() is None


def fit_classifier(x: Tensor, labels: Tensor, filters: Sequence[Any], weight: Any, bias: Any) -> bool:
    """Whether `gradients` can be called for blocks one after another, and a linear map V, c of what they give."""
    if any(t is None for t in (*filters, weight, bias)) or not _fit_blocks(x, filters):
        return False
    maps = sizes_of(x, filters, 1)
    return (
        type(labels) is Tensor
        and labels.dtype == torch.int64
        and labels.device == x.device
        and labels.shape == x.shape[:1]
        and weight.shape[1:] == (maps.wide * maps.pixels(maps.depth) // maps.images,)
        and all(type(t) in (Tensor, nn.Parameter) and t.device == x.device for t in (weight, bias))
        and fits(bias, weight)
        and weight.dtype == x.dtype
    )


def gradients(
    x: Tensor, labels: Tensor, vectors: Tensor, filters: Sequence[Tensor], weight: Tensor, bias: Tensor, eps: float,
    slope: float,
) -> tuple[Any, ...]:  # fmt: skip
    """The mean cross-entropy L of V flatten(h_B) + c, moments and dL for `vectors`, V, c and W_i, without a graph.

    L is no number where a label has no output; the gradients are then memory as it was.
    """
    x, vectors, weight, bias, *filters = _dense(x, vectors, weight, bias, *filters)
    s = sizes_of(x, filters, 1)
    loss, moments, d_vectors = x.new_empty(()), _rows(x, 4 * s.depth, s), torch.empty_like(vectors)
    d_weight, d_bias, d_filters = torch.empty_like(weight), torch.empty_like(bias), _like(filters)
    given = x, *_dense(labels), vectors, _pointers(filters), weight, bias
    results = loss, moments, d_vectors, _pointers(d_filters), d_weight, d_bias
    _call("gradients", x.dtype, *given, eps, slope, *results, _rows(x, s.all(x.dtype), s), len(weight), *s)
    return loss, moments, d_vectors, d_weight, d_bias, d_filters


def _dense(*tensors: Tensor | None) -> Any:
    """Maps with the channels last, vectors without gaps."""
    return [t if t is None else _last(t) if t.dim() == 4 else t.resolve_neg().contiguous() for t in tensors]


def _last(t: Tensor) -> Tensor:
    return t.resolve_neg().contiguous(memory_format=torch.channels_last)  # the memory of a negative view holds −t


def _maps(like: Tensor, n: int, height: int, width: int, channels: int) -> Tensor:
    """New maps (n, channels, height, width) with the channels last."""
    return torch.empty(
        (n, channels, height, width), dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )


def _rows(like: Tensor, rows: int, s: Sizes, dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty((rows, s.wide), dtype=dtype or like.dtype, device=like.device)


def _like(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [torch.empty_like(t) for t in tensors]


def _pointers(tensors: Sequence[Tensor | None]) -> ctypes.Array:
    return _array(len(tensors))(*[None if t is None else t.data_ptr() for t in tensors])


@functools.cache
def _array(length: int) -> type[ctypes.Array]:
    """The type of so many pointers: ctypes makes it anew at every use, and leaves a cycle behind."""
    return ctypes.c_void_p * length
