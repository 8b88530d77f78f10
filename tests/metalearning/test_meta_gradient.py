"""The meta-gradient against finite differences, an independent implementation, closed forms and identities."""

import oracle
import pytest
import torch
import torch.nn.functional as F
from problems import conv_learner, exact, images, mlp_learner, relative, vectors
from torch import nn

import fewstep
from fewstep.methods import Annealed, FirstOrder, PerLayerPerStep, SecondOrder, Sgd, Uniform, differences

PRESETS = fewstep.preset_names()
STRATEGIES = ["loop", "vectorized"]
PROGRESS = 0.05  # multi-step loss is annealing, and maml++ is in its first-order part
LATE = 0.9


ORACLE = ["maml", "fomaml", "maml++", "maml++-released"]  # those that the second implementation covers


def method_of(name, **changes):
    """A preset with rates and radii large enough that second derivatives matter."""
    method = fewstep.preset(name)
    rates = ("rule__low", "rule__high") if name == "meta-sgd" else ("rule__rate",)
    method = method.replace(**dict.fromkeys(rates, 0.4))
    if method.sharpness.inner:
        method = method.replace(sharpness__inner=0.2)
    return method.replace(**changes)


def by_oracle(learner, batch, progress, forward):
    """The same quantity by the second implementation, told nothing but values."""
    method = learner.method
    parts = {"model": {}, "rates": {}, "norm": {}}
    for name, p in learner.meta_parameters().items():
        part, _, rest = name.partition(".")
        parts[part][rest] = p.detach()
    shared = {n: parts["model"].pop(n) for n in list(parts["model"]) if n not in learner.adapted}
    loss, logits, gradients = oracle.meta_gradient(
        forward,
        parts["model"],
        parts["norm"] or shared,
        parts["rates"] or method.rule.rate,
        (batch.support_x, batch.support_y, batch.query_x, batch.query_y),
        steps=method.steps,
        second_order=method.order(progress) == "second",
        step_weights=list(method.step_weights(progress, method.steps)),
        loss=F.cross_entropy,
        per_step_norm=bool(parts["norm"]),
    )
    return loss, logits, gradients


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("name", ORACLE)
@pytest.mark.parametrize("progress", [PROGRESS, LATE])
def test_equals_the_independent_implementation_with_batch_norm(name, steps, strategy, progress):
    learner, batch = conv_learner(method_of(name, steps=steps)), images()
    result = learner.meta_gradient(batch, progress, strategy)
    loss, logits, gradients = by_oracle(learner, batch, progress, oracle.conv4_forward)
    assert torch.allclose(result.loss, loss, rtol=1e-10)
    assert torch.allclose(result.query_logits, logits, rtol=1e-8, atol=1e-10)
    assert relative(result.gradients, gradients) < 1e-9


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", ORACLE)
def test_equals_the_independent_implementation_without_norm(name, strategy):
    def forward(p, x, _):
        return torch.tanh(x @ p["layers.0.weight"].T + p["layers.0.bias"]) @ p["head.weight"].T + p["head.bias"]

    learner, batch = mlp_learner(method_of(name, steps=2)), vectors()
    result = learner.meta_gradient(batch, LATE, strategy)
    assert relative(result.gradients, by_oracle(learner, batch, LATE, forward)[2]) < 1e-10


@pytest.mark.parametrize("progress", [PROGRESS, LATE])
@pytest.mark.parametrize("name", PRESETS)
def test_both_strategies_agree(name, progress):
    learner, batch = conv_learner(method_of(name)), images(tasks=3)
    loop, vectorized = (learner.meta_gradient(batch, progress, s) for s in STRATEGIES)
    assert torch.allclose(loop.loss, vectorized.loss, rtol=1e-10)
    assert torch.allclose(loop.query_logits, vectorized.query_logits, rtol=1e-8, atol=1e-9)
    assert relative(loop.gradients, vectorized.gradients) < 1e-9


def directional(learner, batch, progress, name, h=1e-6):
    """Central difference of the meta-loss along a random direction of one meta-parameter, and that direction."""
    parameter = learner.meta_parameters()[name]
    direction = torch.randn_like(parameter)
    losses = []
    with torch.no_grad():
        for sign in (1, -2, 1):  # forth, back past the start, and home
            parameter.add_(direction, alpha=sign * h)
            losses.append(learner.meta_gradient(batch, progress).loss.item())
    return (losses[0] - losses[1]) / (2 * h), direction


@pytest.mark.parametrize("norm", [True, False], ids=["batch norm", "no norm"])
@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("name", PRESETS)
def test_equals_finite_differences(name, steps, norm):
    """Of every preset with nothing detached; first order, and the outer perturbation, are other tests'."""
    method = exact(method_of(name, steps=steps))
    if norm:
        learner, batch = conv_learner(method, filters=2, size=8, blocks=2), images(shots=1, size=8)
    else:
        learner, batch = mlp_learner(method), vectors()
    result = learner.meta_gradient(batch, PROGRESS)
    scale = max(float(g.norm()) for g in result.gradients.values())
    for name, gradient in result.gradients.items():
        expected, direction = directional(learner, batch, PROGRESS, name)
        assert abs(float((gradient * direction).sum()) - expected) < 2e-6 * scale * max(1.0, float(direction.norm())), (
            name
        )


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_first_order_is_the_query_gradient_at_the_adapted_weights(steps):
    """The definition of first-order MAML, by finite differences in the adapted weights."""
    learner, batch = conv_learner(method_of("fomaml", steps=steps)), images(tasks=1)
    gradients = learner.meta_gradient(batch).gradients
    predictor = learner.adapt(batch.support_x[0], batch.support_y[0], statistics="batch")
    for name in learner.adapted:
        weight = predictor.parameters[name]
        direction, losses = torch.randn_like(weight), []
        for sign in (1, -2, 1):
            weight.add_(direction, alpha=sign * 1e-6)
            losses.append(F.cross_entropy(predictor(batch.query_x[0]), batch.query_y[0]).item())
        expected = (losses[0] - losses[1]) / 2e-6
        assert abs(float((gradients[f"model.{name}"] * direction).sum()) - expected) < 1e-6 * max(1, abs(expected))


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
    learners = [conv_learner(method_of(name)) for name in ("maml", "fomaml")]
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
        expected, direction = directional(learner, batch, 0.0, name)
        assert float((loop[name] * direction).sum()) == pytest.approx(expected, rel=1e-5, abs=1e-8)
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


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_permuting_tasks_permutes_results(strategy):
    learner, batch = conv_learner(fewstep.preset("maml++")), images(tasks=3)
    order = torch.tensor([2, 0, 1])
    parts = (batch.support_x, batch.support_y, batch.query_x, batch.query_y)
    a = learner.meta_gradient(batch, LATE, strategy)
    b = learner.meta_gradient(fewstep.TaskBatch(*(t[order] for t in parts)), LATE, strategy)
    assert torch.allclose(a.query_logits[order], b.query_logits, rtol=1e-10)
    assert torch.allclose(a.task_losses[order], b.task_losses, rtol=1e-10)
    assert relative(a.gradients, b.gradients) < 1e-10
