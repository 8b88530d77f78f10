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
    assert score.interval95 == pytest.approx(2.0930240544 * std / math.sqrt(20))  # Student's t of 19 degrees
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
        fewstep.evaluate(learner, lambda n: vectors(len(n), ways=5), count=1)
    poisoned = vectors()
    poisoned.support_x[1, 0] = float("inf")
    with pytest.raises(fewstep.BadInput, match=r"support_x of task 1"):
        fewstep.evaluate(learner, lambda n: poisoned, count=3)  # noqa: ARG005


def test_query_labels_without_an_output_are_refused():
    learner = mlp_learner(fewstep.preset("maml"))
    for shift, message in ((1, r"labels up to 3, but the model has 3 outputs"), (-1, r"a label is -1; labels count")):
        batch = vectors()
        batch.query_y.add_(shift)
        with pytest.raises(fewstep.BadInput, match=message):
            fewstep.evaluate(learner, lambda _, batch=batch: batch, count=3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (vectors(tasks=1), r"the test function gave 1 task for 5 numbers; it must give a task for each"),
        (vectors(tasks=6), r"the test function gave 6 tasks for 5 numbers"),
        ((torch.zeros(5),) * 4, r"the test function gave a tuple; it must give a TaskBatch"),
    ],
)
def test_another_number_of_tasks_than_asked_for_is_refused(given, message):
    tasks = fewstep.Tasks(*[lambda _: given] * 3)
    with pytest.raises(fewstep.BadInput, match=message):
        fewstep.evaluate(mlp_learner(fewstep.preset("maml")), tasks, count=5)


def test_chance_is_that_of_all_tasks():
    """Tasks of three classes, but for the last eight: of two."""

    def tasks(numbers):
        batch = vectors(len(numbers), seed=numbers[0])
        if numbers[0] >= 8:
            batch.support_y.clamp_(max=1)
        return batch

    score = fewstep.evaluate(mlp_learner(fewstep.preset("maml")), tasks, count=16)
    assert score.chance == pytest.approx((1 / 3 + 1 / 2) / 2)


def test_divergence_of_every_task_is_named():
    learner = fewstep.Learner(MLP(1, 1), fewstep.preset("maml", steps=40, rule__rate=1e6), F.mse_loss)
    with pytest.raises(fewstep.BadInput, match=r"adapting to tasks 0 to 4 diverged"):
        fewstep.evaluate(learner, fewstep.sinusoid(), count=5)


def explosive(numbers, bad):
    """Vectors, but support examples so large in some tasks that adapting to them gives NaN, not infinite data."""
    batch = fewstep.TaskBatch.concatenate([vectors(tasks=1, seed=n) for n in numbers])
    for place, number in enumerate(numbers):
        if number in bad:
            batch.support_x[place] *= 1e200
            batch.query_y[place] = 0  # what the largest of three NaNs would be taken for
    return batch


@pytest.mark.parametrize("strategy", ["loop", "vectorized"])
def test_a_task_that_diverges_counts_as_a_guess(strategy):
    torch.manual_seed(3)
    model = torch.nn.Linear(4, 3).double()
    learner = fewstep.Learner(model, fewstep.preset("maml", steps=2), F.cross_entropy, strategy)
    good, score = (
        fewstep.evaluate(learner, lambda n, bad=bad: explosive(n, bad), count=12) for bad in ((), (2, 9))
    )  # fmt: skip
    expected = [1 / 3 if n in (2, 9) else value for n, value in enumerate(good.per_task)]
    assert good.diverged == 0
    assert score.diverged == 2
    assert score.per_task == pytest.approx(expected)
    assert score.value == pytest.approx(sum(expected) / 12)
    start = fewstep.evaluate(learner, lambda n: explosive(n, (2, 9)), count=12, steps=0)
    assert (score.by_step[0], start.diverged) == (start.value, 0)  # before a step nothing has diverged
    assert str(score).endswith(" (2 of 12 tasks diverged)")
    assert "diverged" not in str(good)


def test_a_loss_that_diverges_is_left_out():
    def tasks(numbers):
        x = torch.linspace(-1, 1, 4, dtype=torch.float64).view(1, 4, 1).repeat(len(numbers), 1, 1)
        scale = torch.tensor([1e200 if n == 1 else 1.0 for n in numbers], dtype=x.dtype).view(-1, 1, 1)
        return fewstep.TaskBatch(x * scale, x, x, 2 * x)

    learner = fewstep.Learner(torch.nn.Linear(1, 1).double(), fewstep.preset("maml", steps=2), F.mse_loss)
    score = fewstep.evaluate(learner, tasks, count=4)
    assert math.isnan(score.per_task[1])
    rest = [value for number, value in enumerate(score.per_task) if number != 1]
    assert score.value == pytest.approx(sum(rest) / 3)
    assert score.diverged == 1
    without = [fewstep.evaluate(learner, tasks, first=n, count=1).by_step for n in (0, 2, 3)]
    assert score.by_step == pytest.approx([sum(step) / 3 for step in zip(*without, strict=True)])  # always of the same
    assert score.to_json()["per_task"][1] is None
    alone = fewstep.evaluate(learner, tasks, count=1)
    assert alone.interval95 == math.inf
    assert alone.to_json()["interval95"] is None
