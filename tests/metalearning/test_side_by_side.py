"""Tasks on several threads: the results of one thread, bit for bit, and one thread where threads would disturb."""

import threading

import pytest
import torch
from torch import nn

import fewstep
from fewstep.metalearning.functional import Functional
from fewstep.metalearning.side_by_side import side_by_side
from fewstep.models import Conv4

CPU = torch.device("cpu")


@pytest.fixture
def threads():
    """A setter of the number of threads, undone afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


class Noting(nn.Module):
    """A linear model that notes which threads call it."""

    names: set = set()  # noqa: RUF012 - shared by copies, on purpose

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 3), *layers)

    def forward(self, x):
        Noting.names.add(threading.current_thread().name)
        return self.layers(x)


def noted(learner, batch):
    learner.meta_gradient(batch, strategy="loop")  # the first call finds out what the model is like
    Noting.names = set()
    learner.meta_gradient(batch, strategy="loop")
    return Noting.names


def vectors(tasks=5):
    y = torch.arange(3).expand(tasks, 3)
    return fewstep.TaskBatch(torch.randn(tasks, 3, 4), y, torch.randn(tasks, 3, 4), y)


@pytest.mark.parametrize("method", ["maml", "fomaml", "maml++", "sharp-maml-both"])
@pytest.mark.parametrize(("tasks", "filters"), [(2, 4), (3, 16)])
def test_threads_change_no_bit(threads, method, tasks, filters):
    y = torch.arange(3).expand(tasks, 3)
    batch = fewstep.TaskBatch(torch.randn(tasks, 3, 1, 16, 16), y, torch.randn(tasks, 3, 1, 16, 16), y)
    learner = fewstep.Learner(Conv4(ways=3, filters=filters, image_size=16), fewstep.preset(method), strategy="loop")
    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append(learner.meta_gradient(batch, 1.0))
    for other in results[1:]:
        assert torch.equal(other.task_losses, results[0].task_losses)
        assert torch.equal(other.query_logits, results[0].query_logits)
        for name, gradient in results[0].gradients.items():
            assert torch.equal(other.gradients[name], gradient), name


def test_evaluation_on_threads_changes_no_bit(threads):
    learner = fewstep.Learner(Conv4(filters=4), fewstep.preset("maml++"), strategy="loop")
    scores = []
    for count in (1, 2):
        threads(count)
        scores.append(fewstep.evaluate(learner, fewstep.strokes().tasks(ways=5, shots=1, queries=1), count=10))
    assert scores[0].per_task == scores[1].per_task
    assert scores[0].by_step == scores[1].by_step


def test_tasks_go_on_several_threads(threads):
    threads(2)
    learner = fewstep.Learner(Noting(), fewstep.preset("maml"))
    together, seen = threading.Barrier(2, timeout=60), []
    learner.meta_gradient(vectors(), strategy="loop")  # finds out

    def task(index):
        together.wait()  # passes only where two tasks are under way at once
        seen.append(torch.get_num_threads())
        return index

    assert list(side_by_side(task, 4, learner._forward, CPU)) == [0, 1, 2, 3]
    assert seen == [1, 1, 1, 1]
    assert torch.get_num_threads() == 2
    assert not any(name.startswith("Main") for name in noted(learner, vectors()))


@pytest.mark.parametrize("enabled", [True, False])
def test_tasks_on_threads_take_gradients_where_the_caller_does(threads, enabled):
    """Torch's own setting is each thread's, and on at its start."""
    threads(2)
    learner = fewstep.Learner(Noting(), fewstep.preset("maml"))
    learner.meta_gradient(vectors(), strategy="loop")  # finds out

    def task(_):
        return threading.current_thread().name.startswith("fewstep"), torch.is_grad_enabled()

    for _ in range(2):
        with torch.set_grad_enabled(enabled):
            assert list(side_by_side(task, 4, learner._forward, CPU)) == [(True, enabled)] * 4


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.RReLU()])
def test_a_model_that_draws_random_numbers_goes_on_one_thread(threads, layer):
    threads(2)
    learner = fewstep.Learner(Noting(layer), fewstep.preset("maml"))
    assert noted(learner, vectors()) == {threading.current_thread().name}
    learner.model.eval()
    assert threading.current_thread().name not in noted(learner, vectors())  # it draws no more


def test_attention_goes_on_one_thread(threads):
    threads(2)

    class Attending(Noting):
        def forward(self, x):
            x = nn.functional.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None])[:, 0]
            return super().forward(x)

    learner = fewstep.Learner(Attending(), fewstep.preset("maml"))
    assert noted(learner, vectors()) == {threading.current_thread().name}


def test_a_watching_mode_sees_every_operation(threads):
    from torch.utils.flop_counter import FlopCounterMode

    threads(2)
    learner = fewstep.Learner(nn.Linear(4, 3), fewstep.preset("maml"))
    learner.meta_gradient(vectors(), strategy="loop")
    counts = []
    for tasks in (1, 4):
        with FlopCounterMode(display=False) as counter:
            learner.meta_gradient(vectors(tasks), strategy="loop")
        counts.append(counter.get_total_flops())
    assert counts[1] == 4 * counts[0] > 0


def test_an_error_in_a_task_comes_out_and_the_next_call_works(threads):
    threads(2)
    forward = Functional(nn.Linear(2, 2))
    forward({n: torch.zeros(p.shape) for n, p in forward.twin.named_parameters()}, torch.zeros(1, 2))

    def task(index):
        if index == 2:
            raise ValueError("task 2")
        return index

    results = side_by_side(task, 4, forward, CPU)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="task 2"):
        next(results)
    assert list(side_by_side(lambda i: i, 3, forward, CPU)) == [0, 1, 2]


@pytest.mark.parametrize("end", ["last result", "error", "closed"])
def test_the_caller_has_one_thread_while_tasks_go_and_its_own_afterwards(threads, end):
    threads(2)
    forward = Functional(nn.Linear(2, 2))
    forward({n: torch.zeros(p.shape) for n, p in forward.twin.named_parameters()}, torch.zeros(1, 2))
    results = side_by_side(lambda index: 1 // (end != "error" or index < 2), 4, forward, CPU)
    assert next(results) == 1
    assert torch.get_num_threads() == 1
    if end == "error":
        with pytest.raises(ZeroDivisionError):
            list(results)
    elif end == "closed":
        results.close()
    else:
        list(results)
    assert torch.get_num_threads() == 2


def test_large_tasks_go_one_after_the_other(threads, monkeypatch):
    """With all threads inside, and the graph of one alone."""
    threads(2)
    learner, batch = fewstep.Learner(Noting(), fewstep.preset("maml")), vectors()
    assert batch.values == 2 * 3 * 4
    assert not any(name.startswith("Main") for name in noted(learner, batch))
    assert learner.threads(batch) == 2
    monkeypatch.setattr("fewstep.metalearning.side_by_side.LARGE", batch.values)
    assert noted(learner, batch) == {"MainThread"}
    assert learner.threads(batch) == 1
