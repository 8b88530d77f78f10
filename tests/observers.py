"""Dispatch modes that watch what torch is asked for, below autograd and vmap."""

from collections import Counter

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode


class Calls(TorchDispatchMode):
    """Counts calls by operation, and hands each one with its outputs to `look`."""

    def __init__(self, look=lambda *_: None):
        super().__init__()
        self.count, self.look = Counter(), look

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.count[name] += 1
        outputs = result if isinstance(result, (tuple, list)) else (result,)
        self.look(name, args, [t for t in outputs if isinstance(t, torch.Tensor)])
        return result


class Live(TorchDispatchMode):
    """The storages that were made inside it and live still, and the most bytes they held at once."""

    def __init__(self):
        super().__init__()
        self.made, self.peak = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        taken = {t.untyped_storage()._cdata for t in args if isinstance(t, torch.Tensor)}  # a view makes no storage
        for t in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(t, torch.Tensor) and (storage := t.untyped_storage())._cdata not in taken:
                self.made[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.peak = max(self.peak, sum(size for _, size in self.living()))
        return result

    def living(self):
        self.made = {key: kept for key, kept in self.made.items() if not kept[0].expired()}
        return list(self.made.values())


# What makes the host wait for an accelerator; some ask for a number, some for a shape that depends on numbers.
WAITING = {"_local_scalar_dense", "item", "equal", "is_nonzero", "nonzero", "masked_select", "unique2", "_unique2"}
