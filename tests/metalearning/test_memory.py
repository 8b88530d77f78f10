"""The memory that training will need, told before it begins."""

import copy

import pytest
import torch
from problems import conv_learner, images, relative

import fewstep
from fewstep.metalearning import memory
from fewstep.metalearning.memory import Need, heaviest, memory_needed
from fewstep.metalearning.peak import _given_out, measure_of

PRESET = fewstep.preset("maml", steps=3)


def need(tasks, strategy, method=PRESET, micro_batch=None, available=None):
    """Of tasks whose maps are large enough to show."""
    learner = conv_learner(method, filters=16, size=28)
    learner.micro_batch = micro_batch
    return memory_needed(learner, images(tasks=tasks, size=28), strategy, available)


def test_vectorized_holds_every_task_and_loop_one():
    two, eight = (need(tasks, "vectorized") for tasks in (2, 8))
    assert (two.at_once, eight.at_once) == (2, 8)
    assert 2.5 < eight.bytes / two.bytes < 6
    two, eight = (need(tasks, "loop") for tasks in (2, 8))
    assert (two.at_once, eight.at_once) == (1, 1)
    assert 0.6 < eight.bytes / two.bytes < 1.6


def test_a_micro_batch_is_held_at_once():
    whole, some = need(8, "vectorized"), need(8, "vectorized", micro_batch=3)
    assert (whole.at_once, some.at_once) == (8, 3)
    assert some.bytes < 0.6 * whole.bytes


def test_recompute_needs_less_where_steps_are_many_and_what_would_not_fit_is_extrapolated():
    many = fewstep.preset("maml", steps=40)  # from fewer, holes in the heap weigh more than a step
    full = need(1, "loop", many).bytes
    assert need(1, "recompute", many).bytes < 0.7 * full
    assert 0.75 < need(1, "loop", many, available=full // 2).bytes / full < 1.4


def test_second_order_with_every_query_loss_is_what_counts():
    """MAML++ begins in first order, and its query losses after every step end before second order comes."""
    assert heaviest(fewstep.preset("fomaml")) == 0
    assert heaviest(fewstep.preset("maml++")) >= 1 / 3
    kept = fewstep.preset("maml++", order=fewstep.preset("maml").order)
    assert heaviest(kept) == 0
    assert (
        need(1, "loop", fewstep.preset("maml++", steps=6)).bytes
        > 1.5 * need(1, "loop", fewstep.preset("fomaml", steps=6)).bytes
    )


class Counted(torch.nn.Module):
    calls = 0

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 400), torch.nn.Linear(400, 3))

    def forward(self, x):
        Counted.calls += 1
        return self.layers(x)


def test_fewer_steps_are_taken_than_would_not_fit():
    learner = fewstep.Learner(Counted().double(), fewstep.preset("maml", steps=40))
    batch = images(tasks=1)
    learner.meta_gradient(batch)  # what is found out once
    taken = []
    for available in (None, 0):
        Counted.calls = 0
        memory_needed(learner, batch, "loop", available)
        taken.append(Counted.calls)
    assert taken[0] >= 2 + 41  # a step with its query pass before anything is measured, then all of them
    assert taken[1] == 2 + 1 + 2  # no step, then one: from these the others are known


@pytest.mark.parametrize("available", [0, 900, 2000, 10**9])
def test_a_planted_line_is_found_however_few_of_its_steps_fit(monkeypatch, available):
    """What every graph begins with counts once, not once a step."""

    def measure(work):
        Counted.calls = 0
        work()
        return 300 + 100 * (Counted.calls - 1)  # a pass a step, and one of the queries

    monkeypatch.setattr(memory, "measure_of", lambda _: measure)
    learner = fewstep.Learner(Counted().double(), fewstep.preset("maml", steps=40))
    batch = images(tasks=1)
    learner.meta_gradient(batch)  # what is found out once
    assert memory_needed(learner, batch, "loop", available).each == 300 + 100 * 40


@pytest.mark.parametrize("strategy", ["auto", "loop", "vectorized", "recompute"])
def test_nothing_is_changed(strategy):
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(256, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(), torch.nn.Linear(8, 3)
    ).double()
    learner = fewstep.Learner(model, fewstep.preset("maml++", steps=2), strategy=strategy)
    learner.model[2].eval()
    batch, state, random = images(tasks=3), copy.deepcopy(learner.state_dict()), torch.get_rng_state()
    method, modes = learner.method, [m.training for m in learner.modules()]
    memory_needed(learner, batch)
    assert torch.equal(torch.get_rng_state(), random)
    for name, tensor in learner.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert (learner.method, learner.strategy, learner.micro_batch) == (method, strategy, None)
    assert [m.training for m in learner.modules()] == modes
    assert all(p.grad is None for p in learner.parameters())


def test_a_model_that_vmap_cannot_take_is_measured_by_loop():
    class Asks(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x if x.sum().item() > 0 else -x)

    learner = fewstep.Learner(Asks(4, 3), fewstep.preset("maml"))
    x, y = torch.randn(4, 3, 4), torch.arange(3).expand(4, 3)
    found = memory_needed(learner, fewstep.TaskBatch(x, y, x, y))
    assert (found.strategy, found.at_once) == ("loop", 1)


@pytest.mark.parametrize("kind", ["resident", "given out"])
def test_a_peak_is_seen_though_it_is_over(kind):
    def work():
        big = torch.ones(10_000_000)
        del big
        torch.ones(10)

    measure = measure_of(torch.device("cpu")) if kind == "resident" else _given_out
    assert 39e6 < measure(work) < 50e6


def test_how_many_fit():
    need = Need("vectorized", fixed=10, each=100, at_once=8)
    assert [need.fitting(free) for free in (0, 109, 110, 420, 10_000)] == [0, 0, 1, 4, 8]


def test_twenty_steps_have_the_gradient_of_loop():
    learner, batch = conv_learner(fewstep.preset("maml++", steps=20)), images(tasks=1)
    for progress in (0.05, 0.9):
        ours, loop = (learner.meta_gradient(batch, progress, s).gradients for s in ("recompute", "loop"))
        assert relative(ours, loop) < 1e-10
