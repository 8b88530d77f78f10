"""fewstep: a `Learner` as users build it, by the strategy that it chooses or by a forced one."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import fewstep
from benchmarks.network import Batch, Start, start, tasks
from benchmarks.workloads import RESNET12, Workload
from fewstep.methods import PerLayerPerStep, SecondOrder, Uniform
from fewstep.models import Conv4, ResNet12


def learner(w: Workload, begin: Start, strategy: str, **options: Any) -> fewstep.Learner:
    """The method of a workload, with the weights that every implementation starts from; `options` as `Learner`'s.

    ResNet-12, which no other implementation has, starts where it was drawn.
    """
    if w.plus:  # at its most expensive: second order and every query loss, as in its first epochs
        parts = {"rule": PerLayerPerStep(w.rate), "order": SecondOrder(), "step_weights": Uniform()}
        method = fewstep.preset("maml++", steps=w.steps, **parts)
    else:
        method = fewstep.preset("maml" if w.second else "fomaml", steps=w.steps, rule__rate=w.rate)
    if w.model == RESNET12:
        torch.manual_seed(0)
        return fewstep.Learner(ResNet12(w.ways, w.channels, w.size, w.widths), method, strategy=strategy, **options)
    model = Conv4(w.ways, w.channels, w.filters, w.size, blocks=w.blocks).to(begin.weights["head.bias"])
    made = fewstep.Learner(model, method, strategy=strategy, **options)
    with torch.no_grad():
        for name, p in made.meta_parameters().items():
            part, _, rest = name.partition(".")
            p.copy_(begin.rates[rest] if part == "rates" else begin.weights[rest])
    return made


def problem(w: Workload, strategy: str, **options: Any) -> tuple[fewstep.Learner, fewstep.TaskBatch]:
    """A learner and a meta-batch."""
    return learner(w, start(w), strategy, **options), fewstep.TaskBatch(*tasks(w))


def build(
    w: Workload, begin: Start, batch: Batch, strategy: str = "auto", **options: Any
) -> Callable[[], dict[str, Tensor]]:
    made, tasks = learner(w, begin, strategy, **options), fewstep.TaskBatch(*batch)

    def meta_gradient() -> dict[str, Tensor]:
        found = made.meta_gradient(tasks).gradients
        return {name if name.startswith("rates.") else name.partition(".")[2]: g for name, g in found.items()}

    def predict() -> dict[str, Tensor]:
        predictor = made.adapt(batch.support_x[0], batch.support_y[0], statistics="batch")
        return {"logits": predictor(batch.query_x[0])}

    return predict if w.predict else meta_gradient


def chosen(w: Workload) -> str:
    """The strategy that `auto` takes."""
    made, batch = problem(w, "auto")
    return made.chosen_strategy(batch)
