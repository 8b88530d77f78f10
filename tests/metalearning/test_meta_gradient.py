"""The meta-gradient against a second implementation, closed forms and identities.

Against other libraries: tests/test_independent_libraries.py; finite differences: tests/test_every_preset.py.
"""

import oracle
import pytest
import torch
import torch.nn.functional as F
from problems import conv_learner, directional, images, lively, relative, vectors
from torch import nn

import fewstep
from fewstep.methods import Annealed, FirstOrder, PerLayerPerStep, SecondOrder, Sgd, Uniform, differences

STRATEGIES = ["loop", "vectorized"]
PROGRESS = 0.05  # multi-step loss is annealing, and maml++ is in its first-order part
LATE = 0.9


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("name", ["maml++", "maml++-released"])
@pytest.mark.parametrize("progress", [PROGRESS, LATE])
def test_maml_plus_plus_equals_the_second_implementation(name, steps, strategy, progress):
    learner, batch = conv_learner(lively(name, steps=steps)), images()
    method, parts = learner.method, {"model": {}, "rates": {}, "norm": {}}
    for n, p in learner.meta_parameters().items():
        part, _, rest = n.partition(".")
        parts[part][rest] = p.detach()
    loss, logits, gradients = oracle.meta_gradient(  # told nothing but values
        oracle.conv4_forward,
        parts["model"],
        parts["norm"],
        parts["rates"],
        (batch.support_x, batch.support_y, batch.query_x, batch.query_y),
        second_order=method.order(progress) == "second",
        step_weights=list(method.step_weights(progress, steps)),
        loss=F.cross_entropy,
    )
    result = learner.meta_gradient(batch, progress, strategy)
    assert torch.allclose(result.loss, loss, rtol=1e-10)
    assert torch.allclose(result.query_logits, logits, rtol=1e-8, atol=1e-10)
    assert relative(result.gradients, gradients) < 1e-9


class Quadratic(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.theta = nn.Parameter(torch.randn(size, dtype=torch.float64))

    def forward(self, x):
        return x @ self.theta


def half_squares(output, target):
    return 0.5 * ((output - target) ** 2).sum()


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("steps", [1, 3])
def test_closed_form_on_a_quadratic(strategy, steps):
    """L_S = ½ θᵀAθ, L_Q = ½ |θ' − c|²: θ' = (I − αA)ᴺ θ and the meta-gradient is (I − αA)ᴺ (θ' − c)."""
    n, alpha = 4, 0.05
    root, c = torch.randn(n, n, dtype=torch.float64), torch.randn(n, dtype=torch.float64)
    model = Quadratic(n)
    zero, eye = torch.zeros(1, n, dtype=torch.float64), torch.eye(n, dtype=torch.float64)
    batch = fewstep.TaskBatch(root[None], zero, eye[None], c[None])
    shrink = torch.matrix_power(eye - alpha * root.T @ root, steps)
    adapted = shrink @ model.theta.detach()
    for order, expected in ((SecondOrder(), shrink @ (adapted - c)), (FirstOrder(), adapted - c)):
        method = fewstep.preset("maml", steps=steps, rule=Sgd(alpha), order=order)
        learner = fewstep.Learner(model, method, half_squares, strategy)
        assert torch.allclose(learner.meta_gradient(batch).gradients["model.theta"], expected, rtol=1e-12)


def test_first_order_equals_second_on_a_loss_linear_in_the_weights():
    def linear(output, target):
        return (output * target).mean()

    batch = vectors()
    batch = fewstep.TaskBatch(
        batch.support_x, torch.randn(3, 6, 2).double(), batch.query_x, torch.randn(3, 12, 2).double()
    )
    model = nn.Linear(4, 2).double()
    results = [
        fewstep.Learner(model, fewstep.preset(name, steps=3), linear).meta_gradient(batch).gradients
        for name in ("maml", "fomaml")
    ]
    assert relative(*results) < 1e-12


def test_first_order_differs_from_second_otherwise():
    learners = [conv_learner(lively(name)) for name in ("maml", "fomaml")]
    learners[1].load_state_dict(learners[0].state_dict())
    assert relative(*(learner.meta_gradient(images()).gradients for learner in learners)) > 1e-2


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_zero_steps_is_the_ordinary_gradient(strategy):
    learner, batch = conv_learner(fewstep.preset("maml", steps=0)), images()
    result = learner.meta_gradient(batch, strategy=strategy)
    loss = torch.stack(
        [F.cross_entropy(learner.model(x), y) for x, y in zip(batch.query_x, batch.query_y, strict=True)]
    )
    names, parameters = zip(*learner.model.named_parameters(), strict=True)
    ordinary = torch.autograd.grad(loss.mean(), parameters)
    assert torch.allclose(result.loss, loss.mean())
    assert relative(result.gradients, {f"model.{n}": g for n, g in zip(names, ordinary, strict=True)}) < 1e-10


def same_start(methods, size=16):
    """Learners of several methods that start from the same network, their learned parts at their initial values."""
    learners = [conv_learner(m, size=size) for m in methods]
    for learner in learners[1:]:
        learner.model.load_state_dict(learners[0].model.state_dict())
    for learner in learners:
        fresh = learner.method.rule.rates({n: learner.model.get_parameter(n) for n in learner.adapted}, 5)
        for name, rates in learner.rates.named_parameters():
            rates.data.copy_(fresh[name])
        for name, rows in learner.norm.named_parameters():
            rows.data.copy_(learner.model.get_parameter(name).detach().expand_as(rows))
        learner.load_state_dict(learner.state_dict())  # with the rows, so has the model's weight a right to change
    return learners


def model_gradients(learner, batch, progress=LATE):
    """Gradients by the tensor they belong to: rows of a per-step norm weight are added up, rates are left out."""
    gradients = learner.meta_gradient(batch, progress).gradients
    rows = {n.replace("norm.", "model.", 1): g.sum(0) for n, g in gradients.items() if n.startswith("norm.")}
    return rows | {n: g for n, g in gradients.items() if n.startswith("model.")}


def test_maml_plus_plus_with_every_part_off_is_maml():
    maml, plus = fewstep.preset("maml"), fewstep.preset("maml++")
    off = plus.replace(**{field: pair[1] for field, pair in differences(plus, maml).items()})
    a, b = same_start([maml, off])
    assert relative(a.meta_gradient(images(), LATE).gradients, b.meta_gradient(images(), LATE).gradients) == 0.0
    assert off.outer == maml.outer


def test_the_learned_parts_of_maml_plus_plus_at_their_start_are_maml():
    """Late in the training, with constant rates and equal rows, MAML++ itself is MAML; early it is not."""
    a, b = same_start([fewstep.preset("maml"), fewstep.preset("maml++")])
    batch = images()
    assert relative(model_gradients(a, batch, LATE), model_gradients(b, batch, LATE)) < 1e-10
    assert relative(model_gradients(a, batch, PROGRESS), model_gradients(b, batch, PROGRESS)) > 1e-3


@pytest.mark.parametrize("change", [{"rule": PerLayerPerStep(0.1)}, {"norm__affine": "per_step"}], ids=str)
def test_learned_parts_at_their_start_are_maml(change):
    """Constant rates are sgd; equal rows are a shared norm weight, whose gradient is the sum over rows."""
    a, b = same_start([fewstep.preset("maml"), fewstep.preset("maml", **change)])
    batch = images()
    assert relative(model_gradients(a, batch), model_gradients(b, batch)) < 1e-10


@pytest.mark.parametrize("weights", [Uniform(), Annealed(0.5)], ids=str)
def test_step_weights_mix_the_losses_of_shorter_runs(weights):
    """Σ w_i L(θ_{i+1}): each term is the loss of a run of i+1 steps."""
    learner, batch = conv_learner(fewstep.preset("maml", steps=3, step_weights=weights)), images()
    total = 0.0
    for steps, weight in zip((1, 2, 3), weights(PROGRESS, 3), strict=True):
        shorter = conv_learner(fewstep.preset("maml", steps=steps))
        shorter.load_state_dict(
            {k: v for k, v in learner.state_dict().items() if not k.startswith("running.")}, strict=False
        )
        total += weight * shorter.meta_gradient(batch).loss.item()
    assert learner.meta_gradient(batch, PROGRESS).loss.item() == pytest.approx(total, rel=1e-12)


def mean_of_a_vmapped_loss(model, batch, rate, steps):
    """The meta-gradient as one would first write it: `vmap` inside, the gradient of the mean outside."""
    names = list(dict(model.named_parameters()))

    def loss(weights, x, y):
        return F.cross_entropy(torch.func.functional_call(model, weights, x), y)

    def task(weights, sx, sy, qx, qy):
        for _ in range(steps):
            g = torch.func.grad(loss)(weights, sx, sy)
            weights = {n: weights[n] - rate * g[n] for n in names}
        return loss(weights, qx, qy)

    parts = (batch.support_x, batch.support_y, batch.query_x, batch.query_y)
    mean = lambda w: torch.func.vmap(task, in_dims=(None, 0, 0, 0, 0))(w, *parts).mean()  # noqa: E731
    g = torch.func.grad(mean)({n: p.detach() for n, p in model.named_parameters()})
    return {f"model.{n}": t for n, t in g.items()}


def test_adapted_norm_weights_where_the_gradient_of_a_vmapped_mean_is_wrong():
    """Built-in norm weights in the inner loop: ours equals finite differences, the obvious way silently does not."""
    norm = nn.BatchNorm1d(6, track_running_stats=False)
    model = nn.Sequential(nn.Linear(4, 6), norm, nn.Tanh(), nn.Linear(6, 3)).double()
    method = fewstep.preset("maml", steps=3, rule=Sgd(0.5), adapted=fewstep.methods.All())
    learner, batch = fewstep.Learner(model, method), vectors(shots=3)
    loop, vectorized = (learner.meta_gradient(batch, strategy=s).gradients for s in STRATEGIES)
    assert relative(loop, vectorized) < 1e-10
    for name in ("model.0.weight", "model.1.weight"):
        slope, direction = directional(learner, batch, 0.0, [name])
        assert float((loop[name] * direction[name]).sum()) == pytest.approx(slope, rel=1e-5, abs=1e-8)
    if torch.__version__.startswith("2.13"):
        assert relative(mean_of_a_vmapped_loss(model, batch, 0.5, 3), loop) > 1e-4


def test_one_iteration_of_the_released_flavour_equals_the_second_implementation():
    """Three outer steps at epochs 0, 4 and 12 of 100: rates, rows, step weights, cosine and Adam together."""
    method = fewstep.preset("maml++-released", steps=3)
    learner, state = conv_learner(method), ({}, {}, 0)
    parameters = learner.meta_parameters()
    meta = {name: p.detach().clone() for name, p in parameters.items()}
    optimizer = method.outer.optimizer(dict(parameters))
    for seed, epoch in enumerate((0, 4, 12)):
        batch = images(seed=seed)
        progress = (epoch + 0.5) / 100
        gradients = method.outer.clamped(learner.meta_gradient(batch, progress).gradients)
        for name, p in parameters.items():
            p.grad = gradients[name]
        optimizer.param_groups[0]["lr"] = method.outer.rate(progress)
        optimizer.step()
        meta, state = oracle.released_iteration(
            oracle.conv4_forward,
            meta,
            state,
            (batch.support_x, batch.support_y, batch.query_x, batch.query_y),
            epoch=epoch,
            total_epochs=100,
            steps=3,
            loss_epochs=10,
        )
    # A convolution's bias before a batch norm has no gradient but rounding, which Adam magnifies: left out.
    moved = {n: p.detach() for n, p in parameters.items() if not n.endswith("conv.bias")}
    assert relative(moved, {n: meta[n] for n in moved}) < 1e-9


@pytest.mark.parametrize("clamp", [None, 0.01])
def test_the_trainers_own_step_is_the_released_one(tmp_path, clamp):
    """Two outer steps by `train`, clamped and not, against the second implementation."""
    method = fewstep.preset("maml++-released", steps=2, outer__clamp=clamp)
    learner, state = conv_learner(method), ({}, {}, 0)
    meta = {name: p.detach().clone() for name, p in learner.meta_parameters().items()}
    one = fewstep.Tasks(*[lambda numbers: images(tasks=len(numbers), seed=numbers[0])] * 3)
    run = fewstep.train(learner, one, tmp_path, epochs=1, iterations=2, meta_batch=2, validation_tasks=2)
    for epoch, first in ((0, 0), (50, 2)):  # two steps: the beginning and the middle of a hundred epochs
        b = images(tasks=2, seed=first)
        tensors = (b.support_x, b.support_y, b.query_x, b.query_y)
        meta, state = oracle.released_iteration(
            oracle.conv4_forward,
            meta,
            state,
            tensors,
            epoch=epoch,
            total_epochs=100,
            steps=2,
            loss_epochs=10,
            clamp=clamp,
        )
    assert run.finished
    moved = {n: p.detach() for n, p in learner.meta_parameters().items() if not n.endswith("conv.bias")}
    assert relative(moved, {n: meta[n] for n in moved}) < 1e-9
