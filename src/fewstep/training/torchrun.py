"""The processes that `torchrun` starts, as one training: gloo between processors, NCCL between GPUs."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.distributed as dist

from fewstep.errors import BadInput
from fewstep.metalearning.ranks import Ranks

VARIABLES = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}


def launched() -> bool:
    """Whether torchrun, or something that sets its variables, started this process."""
    return os.environ.keys() >= VARIABLES


def leads() -> bool:
    """Whether this process is the one that writes and prints."""
    return not launched() or os.environ["RANK"] == "0"


@contextmanager
def torchrun() -> Iterator[Ranks]:
    """The processes of `torchrun`, to give to `Learner.ranks`; this process alone where nothing started several.

    Each has the GPU of its number on its machine, where there are GPUs.

    Raises:
        BadInput: more processes on a machine than it has GPUs.

    Example:
        >>> import fewstep
        >>> with torchrun() as ranks:
        ...     learner = fewstep.Learner(torch.nn.Linear(2, 3), fewstep.preset("maml")).to(ranks.device)
        ...     learner.ranks = ranks
        >>> ranks.size
        1
    """
    if not launched():
        yield Ranks()
        return
    # What is no gradient is agreed on by the processors, so that no GPU has to be waited for.
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        ranks = Ranks(dist.get_rank(), dist.get_world_size())
        yield replace(ranks, device=ranks.together(_device))
    finally:
        dist.destroy_process_group()


def _device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    number, there_are = int(os.environ.get("LOCAL_RANK", os.environ["RANK"])), torch.cuda.device_count()
    if number >= there_are:
        raise BadInput(
            f"there is no GPU {number}: this machine has {there_are}. Start as many processes on it, or hide its GPUs "
            "by CUDA_VISIBLE_DEVICES= to compute on the processor"
        )
    torch.cuda.set_device(number)
    return torch.device("cuda", number)
