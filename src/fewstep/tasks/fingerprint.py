"""Whether two sources make the same tasks."""

import hashlib

from torch.utils._pytree import tree_leaves

from fewstep.tasks.source import TaskFunction

_CHUNK = 50  # tasks in memory at a time


def fingerprint(function: TaskFunction, count: int) -> str:
    """SHA-256 of the values of tasks 0 … count−1; equal for equal tasks, whatever made them.

    Example:
        >>> from fewstep.tasks import sinusoid
        >>> one, other, longer = (sinusoid(**options).test for options in ({}, {"seed": 1}, {"shots": 11}))
        >>> fingerprint(one, 4) == fingerprint(other, 4), fingerprint(one, 4) == fingerprint(longer, 4)
        (True, False)
    """
    digest = hashlib.sha256()
    for start in range(0, count, _CHUNK):
        batch = function(range(start, min(start + _CHUNK, count)))
        for leaf in tree_leaves([batch.support_x, batch.support_y, batch.query_x, batch.query_y]):
            digest.update(f"{leaf.dtype} {tuple(leaf.shape)}".encode())
            digest.update(leaf.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
