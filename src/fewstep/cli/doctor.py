"""`fewstep doctor`: what this machine has, what is missing, and how to get it."""

import json
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

import torch

from fewstep.cli.console import console
from fewstep.errors import BadInput
from fewstep.models import native
from fewstep.tasks.omniglot import check
from fewstep.training.run import environment

KERNELS = "on Linux and macOS, install a C++ compiler, then fewstep again"
OPTIONAL = {"pytest": "pip install 'fewstep[dev]'   (to run the tests)"}


@dataclass(frozen=True)
class Doctor:
    """Versions, devices, threads, data found; what is missing and how to get it.

    Example: fewstep doctor --data-dir data
    """

    data_dir: str | None = None
    """Where to look for data; else $FEWSTEP_DATA, ./data."""
    format: Literal["text", "json"] = "text"
    """json prints JSON alone."""

    def run(self) -> int:
        found: dict[str, Any] = {k: v for k, v in environment("cpu").items() if k != "command"}
        devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        found["devices"] = ["cpu", *devices]
        found["kernels"] = native.processor() if native.there() else None
        missing = {}
        if not native.there():
            missing["kernels"] = (
                f"not compiled for {native.processor()}, or from other sources: tasks take longer; {KERNELS}"
            )
        try:
            data = check(self.data_dir)
            found["omniglot"] = f"{data['place']} ({data['form']}, {data['images']} images)"
        except BadInput as error:
            found["omniglot"] = None
            missing["omniglot"] = str(error)
        for package, remedy in OPTIONAL.items():
            try:
                version(package)
            except PackageNotFoundError:
                missing[package] = remedy
        if self.format == "json":
            print(json.dumps({"found": found, "missing": missing}))
            return 0
        for name, value in found.items():
            if value is not None:
                shown = ", ".join(value) if isinstance(value, list) else value
                console.print(f"{name:12} {shown}")
        console.print("\nMissing:" if missing else "\nNothing is missing.")
        for name, remedy in missing.items():
            console.print(f"{name:12} {remedy}")
        return 0
