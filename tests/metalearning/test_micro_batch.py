"""Micro-batches: the meta-gradient of the whole meta-batch, some tasks at a time."""

import pytest
import torch
from problems import conv_learner, images

import fewstep
from fewstep.metalearning.execution import STRATEGIES
from fewstep.metalearning.meta_gradient import vectorized


@pytest.mark.parametrize("size", [2, 5])
@pytest.mark.parametrize("strategy", ["loop", "vectorized", "recompute"])
@pytest.mark.parametrize("name", ["sharp-maml++"])
def test_equals_the_whole_meta_batch(name, strategy, size):
    learner, batch = conv_learner(fewstep.preset(name, steps=2)), images(tasks=5)
    whole = learner.meta_gradient(batch, 0.05, strategy)
    learner.micro_batch = size
    torch.testing.assert_close(learner.meta_gradient(batch, 0.05, strategy), whole, rtol=1e-9, atol=1e-12)


def test_no_more_tasks_are_taken_at_once(monkeypatch):
    learner, seen = conv_learner(fewstep.preset("maml"), strategy="vectorized"), []
    learner.micro_batch = 2
    learner.meta_gradient(images(tasks=5))  # what is found out once
    monkeypatch.setitem(STRATEGIES, "vectorized", lambda work: seen.append(len(work.batch)) or vectorized(work))
    learner.meta_gradient(images(tasks=5))
    assert seen == [2, 2, 1]
    drawn = []
    fewstep.evaluate(learner, lambda numbers: drawn.append(len(numbers)) or images(tasks=len(numbers)), count=5)
    assert drawn == [2, 2, 1]


def test_an_empty_micro_batch():
    with pytest.raises(fewstep.BadInput, match="micro_batch is 0; take at least one task at a time"):
        fewstep.Learner(torch.nn.Linear(2, 2), fewstep.preset("maml"), micro_batch=0)
    learner = fewstep.Learner(torch.nn.Linear(2, 2), fewstep.preset("maml"), micro_batch=3)
    with pytest.raises(fewstep.BadInput, match="micro_batch is -1"):
        learner.micro_batch = -1
    assert learner.micro_batch == 3
