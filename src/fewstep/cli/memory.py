"""What a training needs of the machine's memory, what the machine has, and what to do where that is less."""

from pathlib import Path
from typing import NamedTuple

import torch

from fewstep.errors import BadInput
from fewstep.metalearning.execution import COMPILED
from fewstep.metalearning.learner import Learner
from fewstep.metalearning.memory import Need, memory_needed
from fewstep.tasks.batch import TaskBatch

CGROUP = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")


class Memory(NamedTuple):
    """What a machine has, in bytes."""

    free: int
    total: int


def memory_line(learner: Learner, batch: TaskBatch, has: Memory | None = None) -> str:
    """A line on the memory that training needs, with advice where the machine has less free.

    Arguments:
        learner, batch: what is trained, and a meta-batch. has: what the machine has; looked up where None.

    Raises:
        BadInput: more than the machine has in all.
    """
    has = has or machine_memory(learner.device)
    need = memory_needed(learner, batch, available=has.free if has else None)
    line = f"needs about {gigabytes(need.bytes)} of memory"
    if has is None or need.bytes <= has.free:
        return line
    what = advice(learner, batch, need, has.free)
    if need.bytes > has.total:
        raise BadInput(f"training {line}, and this machine has {gigabytes(has.total)}: {what}")
    return f"{line}, and {gigabytes(has.free)} are free: {what}"


def advice(learner: Learner, batch: TaskBatch, need: Need, free: int) -> str:
    """Options of the command line with which a training fits."""
    if fitting := need.fitting(free):
        return f"use --micro-batch {fitting} (about {gigabytes(need.fixed + need.each * fitting)}, equal results)"
    for strategy in ("loop", "recompute"):
        if need.strategy in (strategy, "recompute") or (learner.compiled and strategy not in COMPILED):
            continue
        less = memory_needed(learner, batch, strategy, free)
        if less.bytes <= free:
            return f"use --strategy {strategy} (about {gigabytes(less.bytes)}, equal results)"
    return "no strategy fits; use fewer ways, shots or queries, smaller images or fewer filters"


def gigabytes(count: int) -> str:
    """A number of bytes in GiB, or in MiB where it is less than one GiB.

    Example:
        >>> gigabytes(3_300_000_000), gigabytes(200_000_000)
        ('3.1 GiB', '191 MiB')
    """
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{max(count / 2**20, 1):.0f} MiB"


def machine_memory(device: torch.device) -> Memory | None:
    """What the machine has where the learner is, within the limits of its control group; None if it does not tell."""
    if device.type == "cuda":
        return Memory(*torch.cuda.mem_get_info(device))
    try:
        lines = (line.split() for line in MEMINFO.read_text().splitlines())
        entries = {words[0]: int(words[1]) * 1024 for words in lines}
        found = Memory(entries["MemAvailable:"], entries["MemTotal:"])
    except (OSError, KeyError, ValueError):
        return None
    for group in _control_groups():
        limit, used = _number(group / "memory.max"), _number(group / "memory.current")
        if limit is not None and used is not None:
            found = Memory(min(found.free, max(limit - used + _file_cache(group), 0)), min(found.total, limit))
    return found


def _control_groups() -> list[Path]:
    """This process's control group and those above it (version 2)."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    own = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    return [path for path in (CGROUP / own, *(CGROUP / own).parents) if path.is_relative_to(CGROUP)]


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # "max" is no limit
        return None


def _file_cache(group: Path) -> int:
    """Bytes of files that the system would drop before it refuses memory."""
    try:
        lines = (line.split() for line in (group / "memory.stat").read_text().splitlines())
        return next(int(value) for name, value in lines if name == "inactive_file")
    except (OSError, StopIteration, ValueError):
        return 0
