"""Compiles the kernels for the processors torch distinguishes. Without a C++ compiler fewstep runs on torch alone."""

import platform
import sys
import zlib
from pathlib import Path

from setuptools import Extension, setup

SOURCES = sorted(map(str, Path("src/fewstep/models/kernels").glob("*.[ch]*")))
BUILT_FROM = zlib.crc32(b"".join(Path(source).read_bytes() for source in SOURCES))  # native.py refuses what is stale
FLAGS = ["-O3", "-std=gnu++17", "-Wno-psabi"]
PROCESSORS = {"avx2": ["-mavx2", "-mfma"], "avx512": ["-mavx512f", "-mavx2", "-mfma"]}
THREADS = ["-fopenmp"] if sys.platform == "linux" else []  # elsewhere torch brings a library of another make


def kernels(processor: str, flags: list[str]) -> Extension:
    return Extension(
        f"fewstep.models._kernels_{processor}",
        [source for source in SOURCES if source.endswith(".cpp")],
        depends=SOURCES,
        define_macros=[("BUILT_FROM", str(BUILT_FROM))],
        extra_compile_args=[*FLAGS, *flags, *THREADS],
        extra_link_args=THREADS,
        optional=True,
    )


intel = platform.machine().lower() in ("x86_64", "amd64")
setup(
    ext_modules=[]
    if sys.platform == "win32"
    else [kernels(*p) for p in PROCESSORS.items()]
    if intel
    else [kernels("default", [])]
)
