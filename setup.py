"""Compiles the kernels for the processors torch distinguishes. Without a C++ compiler fewstep runs on torch alone."""

import platform
import sys
from glob import glob

from setuptools import Extension, setup

SOURCES = "src/fewstep/models/kernels"
FLAGS = ["-O3", "-std=gnu++17", "-Wno-psabi"]
PROCESSORS = {"avx2": ["-mavx2", "-mfma"], "avx512": ["-mavx512f", "-mavx2", "-mfma"]}
THREADS = ["-fopenmp"] if sys.platform == "linux" else []  # elsewhere torch brings a library of another make


def kernels(processor: str, flags: list[str]) -> Extension:
    return Extension(
        f"fewstep.models._kernels_{processor}",
        [f"{SOURCES}/kernels.cpp"],
        depends=glob(f"{SOURCES}/*.h"),
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
