"""What every preset keeps, whatever its parts: a new one joins by being listed, and none is excepted."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from problems import conv_learner, directional, exact, images, lively, mlp_learner, sibling, vectors, with_rates
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fewstep
from fewstep.methods import Constant, FirstOrder

pytestmark = pytest.mark.parametrize("name", fewstep.preset_names())

STRATEGIES = ("loop", "vectorized", "recompute")
EARLY, LATE = 0.05, 0.9  # with multi-step loss and first order, and with neither, where a schedule has them
POLICIES = ("batch", "running", "support")


def task_function(batch):
    """The tasks of a meta-batch as what `evaluate` and `Tasks` take."""
    return lambda numbers: batch[numbers[0] : numbers[-1] + 1]


def small(method, ways=3):
    """Three tasks and a network with batch norm, taken task by task, which is quicker here."""
    learner = conv_learner(method, ways, filters=2, size=8, strategy="loop", blocks=2)
    return learner, images(tasks=3, ways=ways, shots=1, size=8)


def parts(batch):
    return batch.support_x, batch.support_y, batch.query_x, batch.query_y


def predictions(learner, batch):
    """The first task's outputs, with batch norms normalised in every way."""
    x, y, query, _ = (part[0] for part in parts(batch))
    return torch.stack([learner.adapt(x, y, statistics=policy)(query) for policy in POLICIES])


@pytest.mark.parametrize("norm", [True, False], ids=["batch norm", "no norm"])
def test_the_meta_gradient_equals_finite_differences(name, norm):
    """In second order; taken at θ + ε where the outer loop is perturbed, so that is where the differences are."""
    method = exact(lively(name))
    if norm:
        learner, batch = small(method)
    else:
        learner, batch = mlp_learner(method), vectors()
    gradients = learner.meta_gradient(batch, EARLY).gradients
    there = sibling(learner, sharpness__outer=0.0)
    weights = {n: p for n, p in there.meta_parameters().items() if not n.startswith("rates.")}
    ascent = there.meta_gradient(batch, EARLY).gradients
    radius = learner.method.sharpness.outer
    epsilon = learner.method.sharpness.perturbation(weights, {n: ascent[n] for n in weights}, radius)
    with torch.no_grad():
        for n, weight in weights.items():
            weight.add_(epsilon[n])
    there = sibling(there, order=FirstOrder())  # no loss depends on the order, and first is cheaper
    assert gradients.keys() == there.meta_parameters().keys()
    scale = float(torch.stack([g.square().sum() for g in gradients.values()]).sum().sqrt())
    for part in ("model", "rates", "norm"):
        names = [n for n in gradients if n.startswith(part)]
        if names:
            expected, direction = directional(there, batch, EARLY, names)
            slope = sum(float((gradients[n] * direction[n]).sum()) for n in names)
            assert abs(slope - expected) < 1e-7 * scale, part


@pytest.mark.parametrize("progress", [EARLY, LATE])
def test_all_strategies_agree(name, progress):
    learner, batch = small(lively(name))
    results, scores = [], []
    for strategy in STRATEGIES:
        learner.strategy = strategy
        results.append(learner.meta_gradient(batch, progress))  # loss, outputs, gradients, statistics
        score = fewstep.evaluate(learner, task_function(batch), count=3)
        scores.append((score.per_task, score.by_step, score.per_query))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-8, atol=1e-10)
    assert len(set(scores)) == 1


class Restless(nn.Module):
    """All that could leave a trace: running statistics, dropout, and a buffer written to, which vmap cannot take."""

    def __init__(self, counting):
        super().__init__()
        self.counting = counting
        self.body, self.norm, self.head = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, x):
        if self.counting:
            self.calls += 1
        return self.head(self.dropout(torch.tanh(self.norm(self.body(x)))))


def everything(learner):
    """Every bit of a learner."""
    tensors = dict(itertools.chain(learner.named_parameters(), learner.named_buffers()))
    return {n: t.detach().clone() for n, t in tensors.items()}, [m.training for m in learner.modules()]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_nothing_changes_a_bit_of_the_learner(name, strategy):
    model, batch = Restless(counting=strategy != "vectorized").double(), vectors()
    learner = fewstep.Learner(model, lively(name), strategy=strategy)
    assert {"model.norm.running_mean", "model.norm.num_batches_tracked", "model.calls"} <= everything(learner)[0].keys()
    before, random = everything(learner), torch.get_rng_state()
    predictions(learner, batch)
    fewstep.evaluate(learner, task_function(batch), count=3)
    assert torch.equal(random, torch.get_rng_state())
    learner.meta_gradient(batch, LATE)  # this one may draw numbers: dropout drops
    after = everything(learner)
    assert all(torch.equal(before[0][n], after[0][n]) for n in before[0] | after[0])
    assert before[1] == after[1]
    assert all(p.grad is None for p in learner.parameters())


def test_permuting_classes_permutes_the_outputs(name):
    """Class k becomes class order[k] of before: in the labels, and in the rows of the head and of its rates."""
    learner, batch = small(lively(name), ways=4)
    order = torch.tensor([2, 0, 3, 1])
    head = {f"{part}.head.{leaf}" for part in ("model", "rates") for leaf in ("weight", "bias")}

    def by_class(tensor, n):  # a rate of a whole tensor has no classes
        return tensor[order] if n in head and len(tensor) == 4 else tensor

    renamed = sibling(learner)
    with torch.no_grad():
        for n, p in renamed.meta_parameters().items():
            p.copy_(by_class(p, n))
    sx, sy, qx, qy = parts(batch)
    other = fewstep.TaskBatch(sx, order.argsort()[sy], qx, order.argsort()[qy])
    a, b = learner.meta_gradient(batch, EARLY), renamed.meta_gradient(other, EARLY)
    close = {"rtol": 1e-8, "atol": 1e-10}
    torch.testing.assert_close(b.task_losses, a.task_losses, **close)
    torch.testing.assert_close(b.query_logits, a.query_logits[..., order], **close)
    torch.testing.assert_close(b.gradients, {n: by_class(g, n) for n, g in a.gradients.items()}, **close)
    torch.testing.assert_close(predictions(renamed, other), predictions(learner, batch)[..., order], **close)


def test_permuting_tasks_permutes_the_results(name):
    learner, batch = small(lively(name))
    order = torch.tensor([2, 0, 1])
    other = fewstep.TaskBatch(*(part[order] for part in parts(batch)))
    a, b = (learner.meta_gradient(each, LATE) for each in (batch, other))
    close = {"rtol": 1e-8, "atol": 1e-10}
    torch.testing.assert_close(b.task_losses, a.task_losses[order], **close)
    torch.testing.assert_close(b.query_logits, a.query_logits[order], **close)
    torch.testing.assert_close((b.loss, b.gradients, b.statistics), (a.loss, a.gradients, a.statistics), **close)
    scores = [fewstep.evaluate(learner, task_function(each), count=3).per_task for each in (batch, other)]
    assert scores[1] == tuple(scores[0][i] for i in order)


def test_a_saved_run_predicts_the_same_bit_for_bit(name, tmp_path):
    (learner, batch), trained = small(lively(name)), []
    other = small(lively(name))[0]  # of other weights
    tasks = fewstep.Tasks(*[task_function(batch)] * 3)

    def watch(kind, _):
        if kind == "validation":  # what training made, before anything comes from a file
            trained.append(predictions(learner, batch))

    fewstep.train(learner, tasks, tmp_path, epochs=1, iterations=1, meta_batch=2, validation_tasks=2, watch=watch)
    assert not torch.equal(predictions(other, batch), trained[0])
    fewstep.Run(tmp_path).load(other)
    assert torch.equal(predictions(other, batch), trained[0])


class Held(TorchDispatchMode):
    """Counts the bytes of tensors made under it that something still holds: Python, or a graph alone."""

    def __init__(self):
        super().__init__()
        self.made = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.device.type != "meta":
                storage = tensor.untyped_storage()
                self.made[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return result

    def bytes(self):
        self.made = {key: made for key, made in self.made.items() if not made[0].expired()}
        return sum(size for _, size in self.made.values())


@pytest.mark.parametrize("strategy", ["loop", "vectorized"])
def test_evaluation_holds_no_more_after_many_tasks_than_after_few(name, strategy):
    model, batch, held = Restless(counting=False).double(), vectors(tasks=8), []
    learner = fewstep.Learner(model, lively(name, at_most=1), strategy=strategy)
    with Held() as tensors:
        fewstep.evaluate(learner, lambda _: batch, count=200, watch=lambda _: held.append(tensors.bytes()))
    assert len(held) == 25
    assert max(held) == held[0] > 0


def test_training_improves(name, tmp_path):
    """Waves so alike that a network without inner steps learns something, too: what they have in common."""
    waves = fewstep.sinusoid(amplitude=(1.0, 3.0), phase=(0.0, 1.0), inputs=(-3.0, 3.0))
    method = with_rates(fewstep.preset(name, setting="sinusoid"), 0.01)
    rate = Constant({"adam": 0.01, "sgd": 1.0}[method.outer.optimiser])
    method = method.replace(steps=min(method.steps, 2), outer__rate=rate)
    learner = fewstep.Learner(fewstep.models.MLP(1, 1, (40,), "tanh"), method, F.mse_loss)
    before = fewstep.evaluate(learner, waves, count=30, split="validation")
    fewstep.train(learner, waves, tmp_path, epochs=1, iterations=40, meta_batch=4, validation_tasks=30)
    after = fewstep.evaluate(learner, waves, count=30, split="validation")
    assert after.value < 0.6 * before.value
    assert after.by_step[-1] <= after.by_step[0]  # and adapting does no harm
