"""Strokes need learning to learn: what looks at pixels alone is clearly worse than MAML++ on unseen characters."""

import pytest
import torch
import torch.nn.functional as F

import fewstep
from fewstep.models import Conv4
from fewstep.training.evaluation import mean_and_interval

pytestmark = pytest.mark.slow
COUNT = 300


def by_linear_probe(support, labels, query):
    """Logistic regression on pixels, fitted to the support set."""
    weight = torch.zeros(support[0].numel(), 5, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight], max_iter=50)

    def loss():
        optimiser.zero_grad()
        value = F.cross_entropy(support.flatten(1) @ weight, labels) + 1e-3 * weight.square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    return (query.flatten(1) @ weight).argmax(1)


def by_nearest_neighbour(support, labels, query):
    return labels[torch.cdist(query.flatten(1), support.flatten(1)).argmin(1)]


def accuracy(batch, predict):
    parts = zip(batch.support_x, batch.support_y, batch.query_x, batch.query_y, strict=True)
    right = [(predict(sx, sy, qx) == qy).double().mean().item() for sx, sy, qx, qy in parts]
    return mean_and_interval(right)


def test_pixels_alone_are_clearly_worse_than_maml_plus_plus(tmp_path):
    torch.manual_seed(0)
    tasks = fewstep.strokes().tasks(ways=5, shots=1, queries=1)
    batch = tasks.test(range(COUNT))
    probe, neighbour = accuracy(batch, by_linear_probe), accuracy(batch, by_nearest_neighbour)
    learner = fewstep.Learner(Conv4(5, filters=32), fewstep.preset("maml++"))
    untrained = fewstep.evaluate(learner, tasks, COUNT)
    fewstep.train(learner, tasks, tmp_path, epochs=5, iterations=50, meta_batch=4, validation_tasks=100)
    ours = fewstep.evaluate(learner, tasks, COUNT)
    print(f"MAML++ {ours}, linear probe {probe}, nearest neighbour {neighbour}, untrained {untrained.by_step[0]:.1%}")
    assert abs(untrained.by_step[0] - 0.2) < 0.03
    assert ours.accuracy - ours.interval95 > max(probe[0], neighbour[0]) + 0.1
