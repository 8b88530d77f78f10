"""Sharpness: the ball, its limits, and the two places it is used."""

import pytest
import torch
from problems import conv_learner, images, mlp_learner, relative, vectors

import fewstep
from fewstep.methods import Sharpness

STRATEGIES = ["loop", "vectorized"]


def norm(tensors):
    return torch.cat([t.flatten() for t in tensors.values()]).norm()


def random_like(sizes=((3, 4), (5,))):
    return {str(i): torch.randn(size, dtype=torch.float64) for i, size in enumerate(sizes)}


def test_one_global_norm():
    weights, gradients = random_like(), random_like()
    epsilon = Sharpness().perturbation(weights, gradients, 0.3)
    assert norm(epsilon).item() == pytest.approx(0.3, abs=1e-12)
    ratio = [epsilon[n].norm() / gradients[n].norm() for n in weights]
    assert ratio[0].item() == pytest.approx(ratio[1].item())  # one factor for all tensors, not one each


def test_adaptive_is_the_published_formula():
    weights, gradients = random_like(), random_like()
    epsilon = Sharpness(adaptive=True).perturbation(weights, gradients, 0.3)
    scaled = norm({n: weights[n].abs() * gradients[n] for n in weights})
    for n in weights:
        assert torch.allclose(epsilon[n], 0.3 * weights[n] ** 2 * gradients[n] / scaled)


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_zero_gradient_gives_zero_and_no_nan_in_its_derivative(adaptive):
    gradient = torch.zeros(3, requires_grad=True)
    epsilon = Sharpness(adaptive=adaptive).perturbation({"w": torch.ones(3)}, {"w": gradient}, 0.5)["w"]
    assert torch.equal(epsilon, torch.zeros(3))
    (derivative,) = torch.autograd.grad(epsilon.sum(), gradient)
    assert derivative.isfinite().all()


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", ["sharp-maml-low", "sharp-maml-up", "sharp-maml-both"])
def test_radius_zero_is_maml_bit_for_bit(name, strategy):
    flat = conv_learner(fewstep.preset(name, sharpness__inner=0.0, sharpness__outer=0.0))
    maml = conv_learner(fewstep.preset("maml"))
    maml.load_state_dict(flat.state_dict())
    a, b = (learner.meta_gradient(images(), strategy=strategy) for learner in (flat, maml))
    assert torch.equal(a.query_logits, b.query_logits)
    assert all(torch.equal(a.gradients[n], b.gradients[n]) for n in a.gradients)


def test_the_inner_step_is_steps_11_and_12():
    learner, batch = mlp_learner(fewstep.preset("sharp-maml-low", steps=1, sharpness__inner=0.3)), vectors(tasks=1)
    x, y = batch.support_x[0], batch.support_y[0]
    theta = {n: p.detach().clone().requires_grad_() for n, p in learner.model.named_parameters()}

    def gradient(weights):
        loss = torch.nn.functional.cross_entropy(torch.func.functional_call(learner.model, weights, x), y)
        return dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))

    g = gradient(theta)
    worst = gradient({n: (theta[n] + 0.3 * g[n] / norm(g)).detach().requires_grad_() for n in theta})
    sharp = learner.adapt(x, y, sharp=True).parameters
    assert all(torch.allclose(sharp[n], theta[n] - 0.1 * worst[n]) for n in theta)
    plain = learner.adapt(x, y).parameters  # meta-test adapts with plain steps unless asked
    assert all(torch.allclose(plain[n], theta[n] - 0.1 * g[n]) for n in theta)


def test_detaching_epsilon_changes_the_gradient_but_not_the_loss():
    results = []
    for detached in (False, True):
        torch.manual_seed(0)
        method = fewstep.preset("sharp-maml-low", sharpness__inner=0.5, sharpness__detached=detached)
        results.append(mlp_learner(method).meta_gradient(vectors()))
    assert torch.equal(results[0].loss, results[1].loss)
    assert relative(results[0].gradients, results[1].gradients) > 1e-4


def test_sam_is_sam_on_an_ordinary_network():
    learner, batch = mlp_learner(fewstep.preset("sam", sharpness__outer=0.3)), vectors(tasks=1)
    model, x, y = learner.model, batch.query_x[0], batch.query_y[0]
    names, parameters = zip(*model.named_parameters(), strict=True)
    loss = lambda: torch.nn.functional.cross_entropy(model(x), y)  # noqa: E731
    g = torch.autograd.grad(loss(), parameters)
    length = torch.cat([t.flatten() for t in g]).norm()
    with torch.no_grad():
        for p, t in zip(parameters, g, strict=True):
            p.add_(0.3 * t / length)
    expected = dict(zip((f"model.{n}" for n in names), torch.autograd.grad(loss(), parameters), strict=True))
    with torch.no_grad():
        for p, t in zip(parameters, g, strict=True):
            p.sub_(0.3 * t / length)
    assert relative(learner.meta_gradient(batch).gradients, expected) < 1e-9


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("loop", ["inner", "outer"])
def test_both_passes_of_a_perturbation_drop_the_same_units(loop, strategy):
    """With dropout the second pass must see the mask of the first: at a vanishing radius it is the same pass."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 32), torch.nn.Dropout(0.5), torch.nn.Linear(32, 3)).double()
    gradients = []
    for radius in (1e-12, 1e-9):
        learner = fewstep.Learner(model, fewstep.preset("maml", steps=1, **{f"sharpness__{loop}": radius}))
        torch.manual_seed(5)
        gradients.append(learner.meta_gradient(vectors(), strategy=strategy).gradients)
    torch.manual_seed(5)
    plain = fewstep.Learner(model, fewstep.preset("maml", steps=1)).meta_gradient(vectors(), strategy=strategy)
    for sharp in gradients:
        assert relative(sharp, plain.gradients) < 1e-5


def test_negative_radius():
    with pytest.raises(fewstep.BadInput, match="must not be negative"):
        fewstep.preset("sam", sharpness__outer=-0.1)
