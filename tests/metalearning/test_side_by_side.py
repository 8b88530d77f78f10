"""Tasks on several threads: the results of one thread, bit for bit, and one thread where threads would disturb."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from torch import nn

import fewstep
from fewstep.metalearning.side_by_side import at_once, side_by_side
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


def results(task, count, threads):
    found = []
    side_by_side(task, count, found.append, threads)
    return found


def same_bits(result, other):
    assert torch.equal(result.task_losses, other.task_losses)
    assert torch.equal(result.query_logits, other.query_logits)
    for name, gradient in other.gradients.items():
        assert torch.equal(result.gradients[name], gradient), name


@pytest.mark.parametrize("method", ["maml", "fomaml", "maml++", "sharp-maml-both"])
@pytest.mark.parametrize(("tasks", "filters"), [(2, 4), (3, 16)])
def test_threads_change_no_bit(threads, method, tasks, filters):
    y = torch.arange(3).expand(tasks, 3)
    batch = fewstep.TaskBatch(torch.randn(tasks, 3, 1, 16, 16), y, torch.randn(tasks, 3, 1, 16, 16), y)
    learner = fewstep.Learner(Conv4(ways=3, filters=filters, image_size=16), fewstep.preset(method), strategy="loop")
    found = []
    for count in (1, 2, 3):
        threads(count)
        found.append(learner.meta_gradient(batch, 1.0))
    for other in found[1:]:
        same_bits(other, found[0])


class Attending(Noting):
    def forward(self, x):
        x = nn.functional.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None])[:, 0]
        return super().forward(x)


@pytest.mark.parametrize("make", [lambda: Noting(nn.Dropout(0.5)), lambda: Noting(nn.RReLU()), Attending])
def test_what_draws_or_attends_goes_on_several_threads_too(threads, make):
    """With the bits of one thread, whatever ends first."""
    learner, batch, found = fewstep.Learner(make(), fewstep.preset("maml", steps=2)), vectors(), []
    for count in (1, 2, 3):
        threads(count)
        torch.manual_seed(1)
        Noting.names = set()
        found.append(learner.meta_gradient(batch, strategy="loop"))
        assert any(name.startswith("fewstep") for name in Noting.names) == (count > 1)
    for other in found[1:]:
        same_bits(other, found[0])


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

    def task(index):
        together.wait()  # passes only where two tasks are under way at once
        seen.append(torch.get_num_threads())
        return index

    assert results(task, 4, 2) == [0, 1, 2, 3]
    assert seen == [1, 1, 1, 1]
    assert torch.get_num_threads() == 2
    assert not any(name.startswith("Main") for name in noted(learner, vectors()))


def test_one_thread_is_the_callers_with_all_that_torch_has(threads):
    threads(2)
    where = results(lambda _: (threading.current_thread(), torch.get_num_threads()), 3, 1)
    assert where == [(threading.current_thread(), 2)] * 3


def test_results_are_taken_in_order_one_at_a_time(threads):
    threads(3)
    taking, found = threading.Lock(), []

    def task(index):
        time.sleep(0.02 * (3 - index % 3))  # those that begin later end first
        return index

    def take(index):
        assert taking.acquire(blocking=False)
        found.append(index)
        time.sleep(0.005)
        taking.release()

    side_by_side(task, 9, take, 3)
    assert found == list(range(9))


@pytest.mark.parametrize("enabled", [True, False])
def test_tasks_on_threads_take_gradients_where_the_caller_does(threads, enabled):
    """Torch's own setting is each thread's, and on at its start."""
    threads(2)

    def task(_):
        return threading.current_thread().name.startswith("fewstep"), torch.is_grad_enabled()

    for _ in range(2):
        with torch.set_grad_enabled(enabled):
            assert results(task, 4, 2) == [(True, enabled)] * 4


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


@pytest.mark.parametrize("where", ["task", "take"])
def test_an_error_comes_out_nothing_goes_on_after_it_and_the_next_call_works(threads, where):
    threads(2)
    taken, under_way = [], []

    def task(index):
        under_way.append(index)
        if where == "task" and index == 2:
            raise ValueError("task 2")
        time.sleep(0.01)
        under_way.remove(index)
        return index

    def take(index):
        if where == "take" and index == 2:
            raise ValueError("task 2")
        taken.append(index)

    with pytest.raises(ValueError, match="task 2"):
        side_by_side(task, 20, take, 2)
    before = list(taken)
    assert before == list(range(2))[: len(before)]  # in order, and nothing after the error
    assert under_way == ([2] if where == "task" else [])
    time.sleep(0.05)
    assert taken == before
    assert results(lambda i: i, 3, 2) == [0, 1, 2]
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("end", ["result", "error"])
def test_the_callers_thread_count_never_changes(threads, end):
    """Neither its own, nor that of a thread that starts in the middle, then or for the rest of its life."""
    threads(2)
    begun, go_on, seen = threading.Event(), threading.Event(), []

    def other():
        begun.wait(60)
        seen.append(torch.get_num_threads())
        go_on.set()
        caller_done.wait(60)
        seen.append(torch.get_num_threads())

    caller_done, main = threading.Event(), []

    def starter():
        begun.wait(60)
        late = threading.Thread(target=other)  # starts while tasks are under way
        late.start()
        late.join(60)

    def task(index):
        begun.set()
        go_on.wait(60)
        main.append(torch.get_num_threads())
        return 1 // (end != "error" or index < 2)

    watcher = threading.Thread(target=starter)
    watcher.start()
    try:
        side_by_side(task, 4, lambda _: None, 2)
    except ZeroDivisionError:
        assert end == "error"
    seen.append(torch.get_num_threads())
    caller_done.set()
    watcher.join(60)
    assert seen[0] == 2
    assert seen == [2, 2, 2]
    assert set(main) == {1}


def test_a_thread_that_starts_while_a_learner_works_has_all_threads(threads):
    """Even before any pool was made for so many threads."""
    threads(4)
    batch, seen, stop = vectors(12), [], threading.Event()
    learner = fewstep.Learner(nn.Linear(4, 3), fewstep.preset("maml"), strategy="loop")

    def starter():
        while not stop.is_set():
            thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
            thread.start()
            thread.join()

    watcher = threading.Thread(target=starter)
    watcher.start()
    for _ in range(10):
        learner.meta_gradient(batch)
    stop.set()
    watcher.join()
    assert torch.get_num_threads() == 4
    assert set(seen[len(seen) // 2 :]) == {4}
    late = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    late.start()
    late.join()
    assert seen[-1] == 4


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


def test_how_many_are_under_way_at_once(threads):
    threads(3)
    assert at_once(8, CPU) == 3
    assert at_once(2, CPU) == 2
    assert at_once(8, torch.device("meta")) == 1
    assert at_once(8, CPU, values=2**30) == 1
    with torch.utils.flop_counter.FlopCounterMode(display=False):
        assert at_once(8, CPU) == 1


INTERRUPTED = """
import threading, time, torch
from fewstep.metalearning.side_by_side import side_by_side
torch.set_num_threads(2)
done, begun = [], threading.Event()
def task(index):
    begun.set()
    time.sleep(0.2)
    done.append(index)
print("ready", flush=True)
try:
    side_by_side(task, 1000, lambda _: None, 2)
except KeyboardInterrupt:
    count = len(done)
    time.sleep(0.5)
    assert len(done) == count, "tasks go on"
    found = []
    side_by_side(lambda i: i, 3, found.append, 2)
    assert found == [0, 1, 2] and torch.get_num_threads() == 2
    print("interrupted", flush=True)
"""


def test_ctrl_c_ends_the_tasks_and_the_next_call_works():
    process = subprocess.Popen([sys.executable, "-c", INTERRUPTED], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60)[0] == "interrupted\n"
    finally:
        process.kill()
    assert process.returncode == 0


FORKED = """
import os, sys, torch, fewstep
torch.set_num_threads(2)
learner = fewstep.Learner(torch.nn.Linear(4, 3), fewstep.preset("maml"), strategy="loop")
y = torch.arange(3).expand(4, 3)
batch = fewstep.TaskBatch(torch.randn(4, 3, 4), y, torch.randn(4, 3, 4), y)
loss, wide = learner.meta_gradient(batch).loss, torch.randn(600, 600)
wide @ wide  # OpenMP has its threads
child = os.fork()
if not child:
    learner.adapt(batch.support_x[0], y[0])(batch.query_x[0])
    wide @ wide
    same = torch.equal(learner.meta_gradient(batch).loss, loss)
    os._exit(0 if same else 3)
status = os.waitpid(child, 0)[1]
assert torch.equal(learner.meta_gradient(batch).loss, loss)
sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_adapts_and_ends():
    """Its parent's threads are not there."""
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", FORKED], start_new_session=True)
    try:
        assert process.wait(timeout=60) == 0
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # the child too, which waits for ever
        raise
