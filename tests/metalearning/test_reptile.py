"""Reptile: the distance to the adapted weights as meta-loss."""

from dataclasses import replace

import pytest
import torch
from problems import conv_learner, images, relative

import fewstep
from fewstep.methods import Distance, FirstOrder, Linear, SecondOrder


@pytest.mark.parametrize("strategy", ["loop", "vectorized"])
@pytest.mark.parametrize("order", [FirstOrder(), SecondOrder()])
def test_gradient_is_the_way_from_the_adapted_weights_to_the_start(order, strategy):
    learner, batch = conv_learner(fewstep.preset("reptile", steps=3, order=order)), images(tasks=3)
    gradients = learner.meta_gradient(batch, strategy=strategy).gradients
    ends = [learner.adapt(x, y).parameters for x, y in zip(batch.support_x, batch.support_y, strict=True)]
    start = dict(learner.model.named_parameters())
    mean = {f"model.{n}": start[n] - torch.stack([end[n] for end in ends]).mean(0) for n in learner.adapted}
    assert relative(gradients, mean) < 1e-12


def test_query_labels_do_not_matter():
    learner, batch = conv_learner(fewstep.preset("reptile")), images()
    shuffled = replace(batch, query_y=batch.query_y.flip(1))
    gradients, others = (learner.meta_gradient(b).gradients for b in (batch, shuffled))
    assert all(torch.equal(gradients[name], others[name]) for name in gradients)


def test_one_step_is_joint_training(tmp_path):
    """θ ← θ + β (θ_1 − θ) = θ − β α ∇L_support(θ), through `train` and its rate that falls to zero."""
    torch.manual_seed(0)
    model = fewstep.models.MLP(1, 1)
    by_hand = [p.detach().clone().requires_grad_() for p in model.parameters()]
    tasks = fewstep.sinusoid(shots=5)
    method = fewstep.preset("reptile", setting="sinusoid", steps=1)
    learner = fewstep.Learner(model, method, loss=torch.nn.functional.mse_loss)
    for step in range(4):
        batch = tasks.train(range(2 * step, 2 * step + 2))
        x, y = batch.support_x.flatten(0, 1), batch.support_y.flatten(0, 1)
        outputs = torch.func.functional_call(model, dict(zip(dict(model.named_parameters()), by_hand, strict=True)), x)
        gradients = torch.autograd.grad(torch.nn.functional.mse_loss(outputs, y), by_hand)
        by_hand = [
            (p - (1 - step / 4) * 0.01 * g).detach().requires_grad_() for p, g in zip(by_hand, gradients, strict=True)
        ]
    fewstep.train(learner, tasks, tmp_path / "run", epochs=1, iterations=4, meta_batch=2, validation_tasks=1)
    for ours, expected in zip(model.parameters(), by_hand, strict=True):
        assert torch.allclose(ours, expected, atol=1e-6)


def test_its_parts():
    assert fewstep.preset("reptile").meta_loss == Distance(detached=True)
    assert [Linear(1.0, 0.0)(p) for p in (0.0, 0.5, 1.0)] == [1.0, 0.5, 0.0]
    with pytest.raises(fewstep.BadInput, match=r"unknown outer.optimiser 'sdg'; did you mean 'sgd'"):
        fewstep.preset("maml", outer__optimiser="sdg")
