"""`recompute`: the gradient of `loop`, with memory that does not grow with the inner steps."""

import itertools

import pytest
import torch
from problems import conv_learner, images, relative, vectors
from torch.profiler import ProfilerActivity, profile

import fewstep


@pytest.mark.parametrize("name", ["maml++", "sharp-maml++", "reptile"])
def test_gradients_go_through_the_statistics_of_the_support_set(name):
    """Every preset is compared with the loop under its own policy elsewhere; here queries depend on the support."""
    learner, batch = conv_learner(fewstep.preset(name, norm__statistics="support")), images(tasks=2)
    ours, loop = (learner.meta_gradient(batch, 0.9, s) for s in ("recompute", "loop"))
    torch.testing.assert_close(ours, loop, rtol=1e-9, atol=1e-11)


def test_dropout_drops_the_same_units_in_both_directions():
    """With one query pass, `loop` draws in the same order: equal to the bit of randomness."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Dropout(0.5), torch.nn.Linear(16, 3)).double()
    learner, gradients = fewstep.Learner(model, fewstep.preset("maml", steps=3)), []
    for strategy in ("loop", "recompute"):
        torch.manual_seed(3)
        gradients.append(learner.meta_gradient(vectors(tasks=2), strategy=strategy).gradients)
    assert relative(*gradients) < 1e-12


def peak_bytes(strategy, steps):
    """The most that torch's allocator had given out at a time during a meta-gradient."""
    learner, batch = conv_learner(fewstep.preset("maml", steps=steps), filters=8, size=32), images(size=32, tasks=1)
    learner.meta_gradient(batch)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        learner.meta_gradient(batch, strategy=strategy)
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(itertools.accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))


def test_memory_is_flat_in_the_inner_steps():
    few, many = (peak_bytes("recompute", steps) for steps in (2, 10))
    assert many < 1.3 * few, (few, many)
    assert peak_bytes("loop", 10) > 2.5 * many
