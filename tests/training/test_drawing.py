"""Meta-batches drawn ahead: on a thread, in order, and with nothing different for it."""

import threading

import pytest
import torch
from problems import mlp_learner, vectors

import fewstep
from fewstep.training.drawing import Ahead

LENGTH = {"epochs": 2, "iterations": 3, "meta_batch": 2, "validation_tasks": 4}


def tasks(train):
    """Vectors, every task of its own number; `train` is told the numbers of training tasks."""

    def function(numbers):
        return fewstep.TaskBatch.concatenate([vectors(tasks=1, seed=n) for n in numbers])

    def training(numbers):
        train(numbers)
        return function(numbers)

    return fewstep.Tasks(training, function, function)


def left():
    return [thread for thread in threading.enumerate() if thread.name.startswith("fewstep-tasks")]


def test_the_next_is_drawn_while_the_present_one_is_computed(tmp_path, monkeypatch):
    drawn, computed, made = [], [], mlp_learner(fewstep.preset("maml", steps=1))
    meta_gradient, next_one = made.meta_gradient, threading.Event()

    def draw(numbers):
        drawn.append((numbers[0] // 2, threading.current_thread() is threading.main_thread()))
        if drawn[-1][1] is False:
            next_one.set()

    def compute(batch, progress):
        step = round(progress * 6)
        if step % 3 < 2:
            assert next_one.wait(30), "the next meta-batch was not begun"
            next_one.clear()
        computed.append((step, [n for n, _ in drawn]))
        return meta_gradient(batch, progress)

    monkeypatch.setattr(made, "meta_gradient", compute)
    fewstep.train(made, tasks(draw), tmp_path, **LENGTH)
    # The first of an epoch is not drawn ahead: it would be beside the validation.
    assert drawn == [(0, True), (1, False), (2, False), (3, True), (4, False), (5, False)]
    assert computed == [(step, list(range(min(step + 2, 3 + step // 3 * 3)))) for step in range(6)]
    assert not left()


def test_an_error_comes_at_its_own_step_and_leaves_nothing_running(tmp_path):
    steps = []

    def draw(numbers):
        if 8 in numbers:  # outer step 4
            raise OSError("the disk is gone")

    def watch(kind, record):
        if kind == "step":
            steps.append(record["step"])

    with pytest.raises(OSError, match="the disk is gone"):
        fewstep.train(mlp_learner(fewstep.preset("maml", steps=1)), tasks(draw), tmp_path, watch=watch, **LENGTH)
    assert steps == [1, 2, 3, 4]
    assert not left()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_whatever_ends_a_training_nothing_is_left_running(tmp_path, error):
    def stop(*_):
        raise error

    made = mlp_learner(fewstep.preset("maml", steps=1))
    with pytest.raises(error):
        fewstep.train(made, tasks(lambda _: None), tmp_path, watch=stop, **LENGTH)
    assert not left()


def test_what_draws_from_the_generator_of_the_process_is_not_drawn_ahead(tmp_path):
    threads, states = [], []

    def seeded(numbers):
        threads.append(threading.current_thread())
        torch.manual_seed(numbers[0])

    def trained(folder):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 3)).double()
        made = fewstep.Learner(model, fewstep.preset("maml", steps=1))
        fewstep.train(made, tasks(seeded), tmp_path / folder, **LENGTH)
        return made.state_dict()

    states = [trained(folder) for folder in ("a", "b")]
    assert set(threads) == {threading.main_thread()}
    assert all(torch.equal(states[0][n], states[1][n]) for n in states[0])


def test_no_two_are_drawn_at_once():
    busy, clashes = threading.Lock(), []

    def draw(step):
        if not busy.acquire(blocking=False):
            return clashes.append(step)
        threading.Event().wait(0.02)
        busy.release()
        return step

    with Ahead(draw, epoch=10) as batches:
        assert [batches(step) for step in (0, 1, 1, 5, 6, 0)] == [0, 1, 1, 5, 6, 0]
    assert not clashes
    assert not left()


def test_a_training_that_gets_too_few_tasks_ends(tmp_path):
    one = fewstep.Tasks(*[lambda _: vectors(tasks=1)] * 3)
    with pytest.raises(fewstep.BadInput, match="the train function gave 1 task for 2 numbers"):
        fewstep.train(mlp_learner(fewstep.preset("maml", steps=1)), one, tmp_path, **LENGTH)
