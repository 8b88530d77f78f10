"""`learn2learn`: its MAML wrapper, cloned for each task."""

import importlib.util
import sys
import types
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.network import Batch, Start, gradients
from benchmarks.workloads import Workload


def _bare(name: str) -> None:
    """Let modules of a package be imported without the package's own code.

    The compiled data tools of 0.2.0 do not build on Python 3.11, and its packages import them, gym and torchvision. The
    algorithm needs none of these: with the source distribution unpacked and on PYTHONPATH it can be measured.
    """
    spec = importlib.util.find_spec(name)
    if spec is None:
        raise ImportError(f"No module named {name!r}")
    module = types.ModuleType(name)
    module.__path__ = list(spec.submodule_search_locations or ())
    sys.modules[name] = module


try:
    from learn2learn.algorithms.maml import MAML, maml_update
except ImportError:
    _bare("learn2learn")
    _bare("learn2learn.algorithms")
    from learn2learn.algorithms.maml import MAML, maml_update


def build(w: Workload, start: Start, batch: Batch) -> Callable[[], dict[str, Tensor]]:
    network = start.network(w)
    maml = MAML(network, lr=w.rate, first_order=not w.second)

    def adapt(learner: MAML, loss: Tensor) -> None:
        """`learner.adapt(loss)` for all weights but the norms', which it would adapt as well."""
        adapted = learner.module.adapted()
        found = torch.autograd.grad(loss, list(adapted.values()), create_graph=w.second)
        by_name = dict(zip(adapted, found, strict=True))
        names = [name for name, _ in learner.module.named_parameters()]
        maml_update(learner.module, w.rate, [by_name.get(name) for name in names])

    def meta_gradient() -> dict[str, Tensor]:
        for sx, sy, qx, qy in zip(*batch, strict=True):
            learner = maml.clone()
            for _ in range(w.steps):
                adapt(learner, F.cross_entropy(learner(sx), sy))
            (F.cross_entropy(learner(qx), qy) / len(batch.query_x)).backward()
        return gradients(network, {})

    return meta_gradient
