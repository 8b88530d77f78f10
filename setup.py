"""Compiles the kernels for the processors torch distinguishes. Without a C++ compiler fewstep runs on torch alone."""

import platform
import sys
import zlib
from pathlib import Path

from setuptools import Extension, setup

FOLDER = Path("src/fewstep/models/kernels")
SOURCES = sorted([*FOLDER.glob("*.h"), *FOLDER.glob("*.cpp")])
BUILT_FROM = zlib.crc32(b"".join(source.read_bytes() for source in SOURCES))  # native.py refuses what is stale
FLAGS = ["-O3", "-std=gnu++17", "-Wno-psabi"]
PROCESSORS = {"avx2": ["-mavx2", "-mfma"], "avx512": ["-mavx512f", "-mavx2", "-mfma"]}
THREADS = ["-fopenmp"] if sys.platform == "linux" else []  # elsewhere torch brings a library of another make


def kernels(processor: str, flags: list[str]) -> Extension:
    return Extension(
        f"fewstep.models._kernels_{processor}",
        [str(FOLDER / "kernels.cpp")],
        define_macros=[("BUILT_FROM", str(BUILT_FROM))],
        extra_compile_args=[*FLAGS, *flags, *THREADS],
        extra_link_args=THREADS,
        optional=True,
    )


processors = PROCESSORS if platform.machine().lower() in ("x86_64", "amd64") else {"default": []}
if sys.platform == "win32":  # its compiler has no vectors
    processors = {}
setup(
    ext_modules=[kernels(processor, flags) for processor, flags in processors.items()],
    options={"build_ext": {"force": True}},  # by content, not by age: see BUILT_FROM
)
