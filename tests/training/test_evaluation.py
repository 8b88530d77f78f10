"""Evaluation: fixed tasks, honest intervals, both strategies, every statistics policy."""

import math

import pytest
import torch
import torch.nn.functional as F
from problems import conv_learner, images, mlp_learner, vectors

import fewstep
from fewstep.models import MLP


def image_tasks(numbers):
    return fewstep.TaskBatch.concatenate([images(tasks=1, queries=3, seed=n) for n in numbers])


@pytest.mark.parametrize("statistics", ["batch", "running", "support"])
def test_both_strategies_match_the_predictor(statistics):
    learner = conv_learner(fewstep.preset("maml++", steps=2, norm__statistics=statistics))
    scores = []
    for strategy in ("loop", "vectorized"):
        learner.strategy = strategy
        scores.append(fewstep.evaluate(learner, image_tasks, count=10))
    assert scores[0].per_task == scores[1].per_task
    assert scores[0].by_step == scores[1].by_step
    batch = image_tasks([3])
    predictor = learner.adapt(batch.support_x[0], batch.support_y[0], statistics=statistics)
    correct = (predictor(batch.query_x[0]).argmax(-1) == batch.query_y[0]).double().mean().item()
    assert scores[0].per_task[3] == pytest.approx(correct)
    assert scores[0].statistics == statistics


def test_mean_and_interval_over_tasks():
    score = fewstep.evaluate(mlp_learner(fewstep.preset("maml")), lambda n: vectors(tasks=len(n), seed=n[0]), count=20)
    mean = sum(score.per_task) / 20
    std = math.sqrt(sum((v - mean) ** 2 for v in score.per_task) / 19)
    assert score.accuracy == pytest.approx(mean)
    assert score.interval95 == pytest.approx(1.96 * std / math.sqrt(20))
    assert len(score.per_task) == score.count == 20
    assert score.chance == pytest.approx(1 / 3)
    assert len(score.by_step) == 6
    assert score.by_step[-1] == pytest.approx(mean)


def test_entry_zero_is_the_model_without_adaptation():
    learner = mlp_learner(fewstep.preset("maml"))
    batch = vectors(tasks=4)
    score = fewstep.evaluate(learner, lambda n: batch[n[0] : n[-1] + 1], count=4)
    plain = (learner.model(batch.query_x.flatten(0, 1)).argmax(-1) == batch.query_y.flatten()).double().mean().item()
    assert score.by_step[0] == pytest.approx(plain)


def test_each_query_alone_is_the_predictors_own_accuracy():
    learner = conv_learner(fewstep.preset("maml"))
    score = fewstep.evaluate(learner, image_tasks, count=6)
    values = []
    for n in range(6):
        batch = image_tasks([n])
        logits = torch.cat([learner.adapt(batch.support_x[0], batch.support_y[0])(x[None]) for x in batch.query_x[0]])
        values.append((logits.argmax(-1) == batch.query_y[0]).double().mean().item())
    assert score.per_query == pytest.approx(sum(values) / 6)


def test_the_ensemble_averages_logits_not_probabilities():
    """A confident member outweighs a hesitant one, which an average of probabilities would not let it."""
    learner, other = (mlp_learner(fewstep.preset("maml", steps=0)) for _ in range(2))
    with torch.no_grad():
        for model, scale in ((learner.model, 20.0), (other.model, 3.0)):
            model.head.weight.mul_(scale)
            model.head.bias.mul_(scale)
    batch = vectors(tasks=8, queries=20)
    score = fewstep.evaluate(learner, lambda _: batch, count=8, members=[learner.frozen(), other.frozen()])
    by = {"logits": [], "probabilities": []}
    for x, y, qx, qy in zip(batch.support_x, batch.support_y, batch.query_x, batch.query_y, strict=True):
        logits = [m.adapt(x, y)(qx) for m in (learner, other)]
        for name, values in (("logits", logits), ("probabilities", [t.softmax(-1) for t in logits])):
            by[name].append((sum(values).argmax(-1) == qy).double().mean().item())
    assert score.per_task == pytest.approx(by["logits"])
    assert by["logits"] != by["probabilities"]


def test_the_same_tasks_for_every_run_seed():
    data = fewstep.strokes(classes=(20, 10, 10), drawers=4)
    a, b = (data.tasks(ways=3, seed=seed).test(range(4)) for seed in (0, 1))
    assert torch.equal(a.support_x, b.support_x)
    assert torch.equal(a.query_y, b.query_y)


def test_regression_scores_the_loss():
    learner = fewstep.Learner(MLP(1, 1), fewstep.preset("maml", setting="sinusoid"), F.mse_loss)
    score = fewstep.evaluate(learner, fewstep.sinusoid(), count=5)
    assert score.metric == "loss"
    assert score.chance is None
    with pytest.raises(fewstep.BadInput, match=r"read score.value"):
        _ = score.accuracy
    batch = fewstep.sinusoid().test([2])
    expected = F.mse_loss(learner.adapt(batch.support_x[0], batch.support_y[0])(batch.query_x[0]), batch.query_y[0])
    assert score.per_task[2] == pytest.approx(expected.item(), rel=1e-5)


def test_bad_input():
    learner = mlp_learner(fewstep.preset("maml"))
    with pytest.raises(fewstep.BadInput, match=r"at least one task"):
        fewstep.evaluate(learner, lambda n: vectors(), count=0)  # noqa: ARG005
    with pytest.raises(fewstep.BadInput, match=r"did you mean 'support'"):
        fewstep.evaluate(learner, lambda n: vectors(), count=1, statistics="suport")  # noqa: ARG005
    with pytest.raises(fewstep.BadInput, match=r"labels up to 4, but the model has 3 outputs"):
        fewstep.evaluate(learner, lambda n: vectors(ways=5), count=1)  # noqa: ARG005
    poisoned = vectors()
    poisoned.support_x[1, 0] = float("inf")
    with pytest.raises(fewstep.BadInput, match=r"support_x of task 1"):
        fewstep.evaluate(learner, lambda n: poisoned, count=3)  # noqa: ARG005


def test_divergence_is_named():
    learner = fewstep.Learner(MLP(1, 1), fewstep.preset("maml", steps=40, rule__rate=1e6), F.mse_loss)
    with pytest.raises(fewstep.BadInput, match=r"adapting to tasks 0 to 4 diverged"):
        fewstep.evaluate(learner, fewstep.sinusoid(), count=5)
