"""Where the time of a step goes, kernel by kernel, from torch's profiler."""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

# The first that is found in a kernel's name says what it is for; elementwise last, its names are the most general.
KINDS = {
    "convolution": r"conv|wgrad|dgrad|fprop|implicit|winograd|xmma|cudnn.*gemm|nchwToNhwc|nhwcToNchw",
    "normalisation": r"batch_?norm|bn_|layer_norm",
    "pooling": r"max_?pool|gather|scatter",
    "matrix product": r"gemm|gemv|cublas|cutlass|addmm|bmm|::mm|dot_kernel",
    "copy": r"memcpy|memset|copy|clone|contiguous|cat|fill|zero",
    "reduction": r"reduce|sum|norm|max|softmax|nll",
    "fused by the compiler": r"triton|cpp_fused|graph_\d",
    "elementwise": r"elementwise|vectorized|add|mul|sub|div|relu|neg|where|foreach|multi_tensor",
}


def kind(name: str) -> str:
    """What a kernel, or on a CPU an operation, is for.

    Example:
        >>> kind("cudnn_infer_volta_scudnn_winograd"), kind("aten::native_batch_norm_backward"), kind("aten::view")
        ('convolution', 'normalisation', 'other')
    """
    return next((title for title, pattern in KINDS.items() if re.search(pattern, name, re.IGNORECASE)), "other")


def split(step: Callable[[], Any], device: torch.device, top: int = 15) -> dict[str, Any]:
    """Seconds of one step by kind and by kernel, and how many kernels were launched.

    On a CPU operations stand for kernels. Device seconds exclude the gaps between kernels: `busy` is their sum.
    """
    on_device = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_device else [])]
    with profile(activities=activities) as found:
        step()
        if on_device:
            torch.cuda.synchronize(device)
    kernels = [
        {"name": e.key, "seconds": (e.self_device_time_total if on_device else e.self_cpu_time_total) / 1e6,
         "count": e.count}
        for e in found.key_averages()
        if not on_device or e.device_type == torch.autograd.DeviceType.CUDA  # else the host's side of a launch
    ]  # fmt: skip
    kernels.sort(key=lambda kernel: -kernel["seconds"])
    kinds: dict[str, float] = {}
    for kernel in kernels:
        kinds[kind(kernel["name"])] = kinds.get(kind(kernel["name"]), 0.0) + kernel["seconds"]
    launches = sum(kernel["count"] for kernel in kernels)
    return {"busy": sum(kinds.values()), "launches": launches, "kinds": kinds, "longest": kernels[:top]}
