"""A run directory: what a training was asked for, where it ran, what it measured, and its checkpoints.

config.json          the resolved configuration; another one is refused
environment.json     versions, machine, threads
metrics.jsonl        one JSON record a line: `train` several times an epoch, `validation` once
checkpoints/         last.safetensors, and one file for each of the best validation epochs
score.json           what `fewstep evaluate` measured last
.lock                there while it is trained, with the process that does so
"""

import json
import math
import os
import platform
import shlex
import sys
from dataclasses import dataclass
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch

from fewstep.errors import BadInput
from fewstep.metalearning.inner_loop import Meta
from fewstep.metalearning.learner import Learner
from fewstep.training.alone import LOCK
from fewstep.training.checkpoint import load_checkpoint, restore_module, without_prefix, write_atomically

NOT_COMPARED = ("loss", "model")  # where a run of before they were recorded lacks them


def environment(device: str, processes: int = 1) -> dict[str, Any]:
    """Versions and machine, as recorded with every run."""
    packages = ("fewstep", "torch", "numpy", "pillow", "safetensors", "tyro", "rich", "plotly")
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "machine": f"{platform.system()} {platform.machine()}",
        "processor": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": f"{device} ({torch.cuda.get_device_name(device)})" if device.startswith("cuda") else device,
        "processes": processes,
        "command": shlex.join(sys.argv),
    }


def peak_memory() -> int | None:
    """The most memory this process has held at once, in bytes (resident); None where the system does not tell.

    On Linux not `getrusage`: what a process starts with there is the peak of the one that started it.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        if sys.platform == "win32":
            return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@dataclass(frozen=True)
class Run:
    """A training's directory, read or written.

    Arguments:
        directory: the folder.

    Raises:
        BadInput: a file in it that cannot be read, a configuration that is not the one it was made with.

    Example:
        >>> Run(Path("runs/none")).exists
        False
    """

    directory: Path

    @property
    def exists(self) -> bool:
        return (self.directory / "config.json").is_file()

    @property
    def last(self) -> Path:
        return self.directory / "checkpoints" / "last.safetensors"

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration."""
        path = self.directory / "config.json"
        if not path.is_file():
            raise BadInput(f"{self.directory} is not a run directory: it has no config.json")
        try:
            config = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise BadInput(f"{path} cannot be read ({error}); the run must be trained anew") from error
        if not isinstance(config, dict):
            raise BadInput(f"{path} is not a run's configuration; the run must be trained anew")
        return config

    @property
    def environment(self) -> dict[str, Any]:
        """Where it was made; empty where that was not recorded, or cannot be read."""
        try:
            return dict(json.loads((self.directory / "environment.json").read_text()))
        except (OSError, ValueError, TypeError):
            return {}

    def open(self, config: dict[str, Any], device: str, processes: int = 1) -> None:
        """Start the run, or go on with it if its configuration is this one."""
        config = json.loads(json.dumps(config))
        if self.begun:
            self.require(config)
            return
        if not self.exists and self.directory.is_dir() and {p.name for p in self.directory.iterdir()} - {LOCK}:
            raise BadInput(f"{self.directory} is not empty and not a run directory; choose another --directory")
        self._write("config.json", config)
        self._write("environment.json", environment(device, processes))

    @property
    def begun(self) -> bool:
        """Whether something would be lost by starting anew."""
        return self.exists and (self.last.is_file() or bool(self.metrics()))

    def require(self, config: dict[str, Any]) -> None:
        """Raise BadInput unless the run was made with this configuration."""
        there = self.config
        now = {key: value for key, value in config.items() if key in there or key not in NOT_COMPARED}
        other = [f"{path} is {old} there, {new} now" for path, new, old in differing(now, there)]
        if other:
            more = f"; and {len(other) - 4} more" if len(other) > 4 else ""
            raise BadInput(
                f"{self.directory} was made with another configuration ({'; '.join(other[:4])}{more}); "
                "choose another --directory, or give the options it was made with"
            )

    def _write(self, name: str, value: Any) -> None:
        write_atomically(self.directory / name, (json.dumps(value, indent=2) + "\n").encode())

    def write_score(self, score: Any) -> None:
        self._write("score.json", score)

    # --- metrics -----------------------------------------------------------------------------------------------------

    def metrics(self) -> list[dict[str, Any]]:
        """All records, in order; a last line cut off by a crash is left out."""
        path = self.directory / "metrics.jsonl"
        lines = path.read_bytes().splitlines() if path.is_file() else []
        records = []
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
                if not isinstance(record, dict) or not {"kind", "step", "epoch"} <= record.keys():
                    raise ValueError("not a record")
            except ValueError as error:
                if number == len(lines):
                    break
                raise BadInput(f"{path}: line {number} is damaged ({error}); remove it to go on") from error
            records.append(record)
        return records

    def append(self, record: dict[str, Any]) -> None:
        try:
            with open(self.directory / "metrics.jsonl", "a") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise BadInput(f"cannot write {self.directory}/metrics.jsonl: {error.strerror}") from error

    def rewind(self, step: int, validated: bool = True) -> None:
        """Drop the records after an outer step, and its validation unless that stays: what a crash lost is redone."""
        path = self.directory / "metrics.jsonl"

        def stays(record: dict[str, Any]) -> bool:
            return record["step"] < step or (record["step"] == step and (validated or record["kind"] != "validation"))

        kept = "".join(json.dumps(r) + "\n" for r in filter(stays, self.metrics())).encode()
        if path.is_file() and path.read_bytes() != kept:
            write_atomically(path, kept)

    # --- models ------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """The record of the last checkpoint: `step`, `total`, `best` and others."""
        record = load_checkpoint(self.last)[1]
        if not {"step", "total", "best", "sums", "seconds"} <= record.keys():
            raise BadInput(f"{self.last} is not a run's last checkpoint; the run must be trained anew")
        return record

    def seconds(self) -> float | None:
        """What the training took, validations included, over all processes; None before the first record."""
        return max((r["seconds"] for r in self.metrics() if "seconds" in r), default=None)

    def peak_memory(self) -> int | None:
        """The most bytes that a process of this training has held at once; None where none was recorded."""
        return max((r["peak_memory"] for r in self.metrics() if r.get("peak_memory")), default=None)

    @property
    def finished(self) -> bool:
        """Whether its last step is done, and its last epoch validated."""
        state = self.state() if self.last.is_file() else {"step": 0, "total": 1}
        return bool(state["step"] == state["total"] and state.get("validated", True))

    def best(self) -> list[tuple[int, float]]:
        """(epoch, validation value as recorded) of the kept epochs, best first; NaN where the record is gone."""
        values = {r["epoch"]: r["value"] for r in self.metrics() if r["kind"] == "validation"}
        return [(epoch, float(values.get(epoch, math.nan))) for epoch in self._best_epochs()]

    def _best_epochs(self) -> list[int]:
        return [int(epoch) for epoch, _ in self.state()["best"]] if self.last.is_file() else []

    def epoch_path(self, epoch: int) -> Path:
        return self.directory / "checkpoints" / f"epoch-{epoch:04d}.safetensors"

    def load(self, learner: Learner, epoch: int | None = None) -> Learner:
        """Put a kept epoch into the learner; the best validation epoch where None.

        Raises:
            BadInput: the run has no validated epoch yet, or the learner is another model.
        """
        if epoch is None:
            best = self._best_epochs()
            if not best:
                raise BadInput(f"{self.directory} has no validated epoch yet; run its training command again")
            epoch = best[0]
        path = self.epoch_path(epoch)
        restore_module(learner, without_prefix("learner.", load_checkpoint(path)[0]), path)
        return learner

    def ensemble(self, learner: Learner, size: int) -> list[Meta]:
        """The `size` best validation epochs, as members for `evaluate`; leaves the best one in the learner."""
        return [self.load(learner, epoch).frozen() for epoch in reversed(self._best_epochs()[:size])][::-1]


def differing(new: Any, old: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """What two JSON records differ in: (dotted path, in the new one, in the old one); of texts the first such line.

    Example:
        >>> differing({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "c": 2})
        [('a.b', 1, 3)]
    """
    if isinstance(new, dict) and isinstance(old, dict):
        return [d for key in {**new, **old} for d in differing(new.get(key), old.get(key), f"{path}.{key}".strip("."))]
    if isinstance(new, str) and isinstance(old, str):
        lines = zip_longest(new.splitlines(), old.splitlines(), fillvalue="")
        return [(path, a.strip(), b.strip()) for a, b in lines if a != b][:1]
    return [] if new == old else [(path, new, old)]
