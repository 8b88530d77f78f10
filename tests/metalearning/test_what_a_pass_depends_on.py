"""A result depends on the learner and the batch: on no mode, thread, predictor or earlier call beside it."""

import copy
import threading

import pytest
import torch
import torch.nn.functional as F
from problems import conv_learner, images, relative, vectors
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

import fewstep
from fewstep.metalearning.ranks import Ranks
from fewstep.methods import All, Matching
from fewstep.models import Conv4

STRATEGIES = ["loop", "vectorized", "recompute"]


def net(*middle):
    return nn.Sequential(nn.Linear(4, 6), *middle, nn.Tanh(), nn.Linear(6, 3)).double()


def learner_of(model, strategy="loop", **changes):
    method = fewstep.preset("maml", **{"steps": 2, "rule__rate": 0.3, **changes})
    return fewstep.Learner(model, method, strategy=strategy)


def seeded(learner, batch=None, seed=3, **options):
    torch.manual_seed(seed)
    return learner.meta_gradient(batch or vectors(), **options)


def same_bits(result, other):
    assert torch.equal(result.task_losses, other.task_losses)
    assert torch.equal(result.query_logits, other.query_logits)
    assert result.gradients.keys() == other.gradients.keys()
    for name, gradient in other.gradients.items():
        assert torch.equal(result.gradients[name], gradient), name


def plain(model, batch, adapted, rate=0.3, steps=2):
    """Second-order MAML by `functional_call`, in the modes that the model's layers have; buffers stay."""
    model = copy.deepcopy(model)
    learn = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}
    total = 0.0
    for task in range(len(batch)):
        now = dict(learn)
        for _ in range(steps):
            loss = F.cross_entropy(functional_call(model, now, batch.support_x[task]), batch.support_y[task])
            slopes = torch.autograd.grad(loss, [now[n] for n in adapted], create_graph=True)
            now |= {n: now[n] - rate * g for n, g in zip(adapted, slopes, strict=True)}
        total = total + F.cross_entropy(functional_call(model, now, batch.query_x[task]), batch.query_y[task])
    found = torch.autograd.grad(total / len(batch), list(learn.values()))
    return (total / len(batch)).detach(), {f"model.{n}": g for n, g in zip(learn, found, strict=True)}


# --- predictors ------------------------------------------------------------------------------------------------------


def test_a_predictor_owns_its_setting():
    """Whatever becomes of its learner: precision, modes, policy, weights, structure."""
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3))
    learner, batch = fewstep.Learner(model, fewstep.preset("maml")), vectors(dtype=torch.float32)
    predictor = learner.adapt(batch.support_x[0], batch.support_y[0])
    before = predictor(batch.query_x[0])

    def heavier():
        with torch.no_grad():
            model[0].weight.mul_(3)

    for change in (
        lambda: setattr(learner, "precision", "bf16"),
        lambda: setattr(learner, "method", fewstep.preset("maml", norm__statistics="frozen")),
        model.eval,
        model.train,
        lambda: setattr(model[2], "p", 0.9),
        heavier,
        lambda: learner.meta_gradient(batch),
        lambda: model.append(nn.Tanh()),
        lambda: model[0].register_forward_hook(lambda *given: 2 * given[2]),
        lambda: model[1].running_mean.fill_(9.0),
    ):
        change()
        assert torch.equal(predictor(batch.query_x[0]), before)


def test_a_predictor_owns_frozen_weights_that_are_reached_past_their_name():
    """They have no gradient that could tell: only other weights show that a copy does not hear of them."""

    class ByLambda(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(4, 5).double().requires_grad_(False), nn.Linear(5, 3).double()
            self.run = lambda x: self.body(x)

        def forward(self, x):
            return self.head(torch.tanh(self.run(x)))

    model, batch = ByLambda(), vectors()
    predictor = learner_of(model).adapt(batch.support_x[0], batch.support_y[0])
    before = predictor(batch.query_x[0])
    with torch.no_grad():
        model.body.weight.mul_(3)
    assert torch.equal(predictor(batch.query_x[0]), before)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_predictor_asked_inside_the_loss_changes_nothing(strategy):
    learner, batch = learner_of(net(nn.BatchNorm1d(6), nn.Dropout(0.5)), strategy), vectors()
    predictor = learner.adapt(batch.support_x[0], batch.support_y[0])
    expected, answer = seeded(learner), predictor(batch.query_x[0])
    asked = []

    def loss(output, target):
        asked.append(predictor(batch.query_x[0]))
        return F.cross_entropy(output, target)

    learner.loss = loss
    same_bits(seeded(learner), expected)
    assert asked
    assert torch.equal(predictor(batch.query_x[0]), answer)
    if strategy == "loop":
        assert all(torch.equal(each, answer) for each in asked)


def test_a_predictor_serves_beside_a_training():
    learner, batch = learner_of(net(nn.BatchNorm1d(6), nn.Dropout(0.5))), vectors()
    predictor = learner.adapt(batch.support_x[0], batch.support_y[0])
    answer, expected = predictor(batch.query_x[0]), seeded(learner)
    stop, wrong = threading.Event(), []

    def serve():
        while not stop.is_set():
            if not torch.equal(predictor(batch.query_x[0]), answer):
                wrong.append(1)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        for _ in range(20):
            same_bits(seeded(learner), expected)
    finally:
        stop.set()
        thread.join()
    assert not wrong


def test_two_learners_on_two_threads_give_the_bits_that_they_give_alone():
    """Of two settings each: modes, precision, statistics; even where they share one model."""
    shared = net(nn.BatchNorm1d(6)).float()
    with torch.no_grad():
        shared[1].running_mean.fill_(0.5)
    batch = vectors(dtype=torch.float32)
    learners = [learner_of(shared), learner_of(shared, norm__statistics="frozen"), learner_of(shared)]
    learners[2].precision = "bf16"
    kept = nn.ParameterList([nn.Parameter(torch.randn(3, 4))])
    by_list = nn.Sequential(ByList(kept))
    learners += [learner_of(by_list), learner_of(by_list, steps=1)]
    expected, wrong = [each.meta_gradient(batch) for each in learners], []
    assert not torch.equal(expected[0].loss, expected[1].loss)
    assert not torch.equal(expected[0].loss, expected[2].loss)

    def work(index):
        try:
            for _ in range(10):
                same_bits(learners[index].meta_gradient(batch), expected[index])
        except BaseException as error:
            wrong.append((index, error))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(learners))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


class ByList(nn.Module):
    """Reaches its weight past its name, so that passes run in the model itself."""

    def __init__(self, weights):
        super().__init__()
        self.weights = weights
        self.kept = list(weights)

    def forward(self, x):
        return torch.tanh(x) @ self.kept[0].T


# --- a model that is changed after the learner was made --------------------------------------------------------------


def with_p(model):
    model[2].p = 0.9


def with_layer(model):
    model[3] = nn.ReLU()


def with_hook(model):
    model[0].register_forward_hook(lambda *given: given[2] * 2)


def with_hook_on_norm(model):
    model[1].register_forward_hook(lambda *given: given[2] * 2)


def with_attribute(model):
    model[1].eps = 0.5


def with_modes(model):
    model[2].eval()


def with_a_frozen_norm(model):
    model[1].running_mean.fill_(0.7)
    model[1].eval()


def with_forward(model):
    model[3].forward = torch.sin


def with_weights(model):
    model.load_state_dict({name: 1.5 * t for name, t in model.state_dict().items()})


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    "change",
    [with_p, with_layer, with_hook, with_hook_on_norm, with_attribute, with_modes, with_a_frozen_norm, with_forward,
     with_weights],
)  # fmt: skip
def test_a_change_of_the_model_is_followed(change, strategy):
    torch.manual_seed(0)
    model = net(nn.BatchNorm1d(6), nn.Dropout(0.5))
    learner = learner_of(model, strategy)
    before = seeded(learner)
    same_bits(seeded(learner), before)
    change(model)
    after = seeded(learner)
    assert not torch.equal(after.loss, before.loss)
    torch.manual_seed(0)
    fresh = net(nn.BatchNorm1d(6), nn.Dropout(0.5))
    change(fresh)
    same_bits(after, seeded(learner_of(fresh, strategy)))
    predicted = [
        each.adapt(vectors().support_x[0], vectors().support_y[0])(vectors().query_x[0])
        for each in (learner, learner_of(fresh))
    ]
    assert torch.equal(*predicted)


def test_what_the_learner_has_copied_and_was_changed_is_refused_by_name():
    """Norm weights of each step and running statistics start from the model's; loaded later they would be lost."""
    model = net(nn.BatchNorm1d(6))
    learner = fewstep.Learner(model, fewstep.preset("maml++", steps=2))
    trained = copy.deepcopy(model)
    with torch.no_grad():
        trained[1].weight.fill_(3.0)
    model.load_state_dict(trained.state_dict())
    with pytest.raises(fewstep.BadInput, match=r"1\.weight was changed after the learner was made"):
        learner.meta_gradient(vectors())
    early = fewstep.Learner(trained, fewstep.preset("maml++", steps=2))
    learner.load_state_dict(early.state_dict())
    same_bits(learner.meta_gradient(vectors()), early.meta_gradient(vectors()))


def test_running_statistics_that_were_loaded_later_are_refused_where_they_would_be_used():
    model = net(nn.BatchNorm1d(6))
    learner, batch = learner_of(model), vectors()
    with torch.no_grad():
        model[1].running_mean.fill_(7.0)
    learner.meta_gradient(batch)
    learner.adapt(batch.support_x[0], batch.support_y[0])
    with pytest.raises(fewstep.BadInput, match=r"1\.running_mean was changed after"):
        learner.adapt(batch.support_x[0], batch.support_y[0], statistics="running")


@pytest.mark.parametrize("released", [False, True])
def test_what_is_frozen_or_released_later_is_refused_by_name(released):
    model = net()
    model[0].weight.requires_grad_(not released)
    learner = learner_of(model)
    learner.meta_gradient(vectors())
    model[0].weight.requires_grad_(released)
    with pytest.raises(fewstep.BadInput, match=r"0\.weight (would be adapted now|cannot be adapted any more)"):
        learner.meta_gradient(vectors())
    model[0].weight.requires_grad_(not released)
    learner.meta_gradient(vectors())


# --- random numbers --------------------------------------------------------------------------------------------------


def noisy():
    return net(nn.Dropout(0.5), nn.RReLU())


def test_dropout_is_the_same_under_every_strategy_and_micro_batch():
    learner, batch = learner_of(net(nn.Dropout(0.5))), vectors(tasks=5)
    found = [seeded(learner, batch, strategy=strategy) for strategy in STRATEGIES]
    learner.micro_batch = 2
    found += [seeded(learner, batch, strategy=strategy) for strategy in STRATEGIES]
    for other in found[1:]:
        torch.testing.assert_close(other.task_losses, found[0].task_losses, rtol=1e-12, atol=0)
        torch.testing.assert_close(other.query_logits, found[0].query_logits, rtol=1e-11, atol=1e-13)
        assert relative(other.gradients, found[0].gradients) < 1e-12
    other = seeded(learner, batch, seed=4)
    assert not torch.equal(other.loss, found[0].loss)


def test_no_two_tasks_or_passes_draw_the_same():
    """Five times one task, with dropout on it."""
    drawn = []

    class Drawing(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3).double()

        def __deepcopy__(self, memo):
            body = copy.copy(self)
            body._modules = copy.deepcopy(self._modules, memo)
            return body

        def forward(self, x):
            mask = torch.rand(6)
            drawn.append(mask)
            return self.linear(x) * (1 + mask[0])

    one = vectors(tasks=1)
    batch = fewstep.TaskBatch.concatenate([one] * 5)
    learner = learner_of(Drawing())
    seeded(learner, batch)
    drawn.clear()
    result = seeded(learner, batch)
    assert len({tuple(mask.tolist()) for mask in drawn}) == 5 * 3  # tasks, two support passes and one of queries
    assert len(set(result.task_losses.tolist())) == 5
    assert drawn[0].is_contiguous()


class Share(Ranks):
    """One of several processes, whose sum is taken by the test."""

    def sum(self, own):
        return own


def test_dropout_is_the_same_on_every_number_of_ranks():
    batch, learner = vectors(tasks=5), learner_of(noisy())
    alone = seeded(learner, batch)
    parts = []
    for rank in range(2):
        learner.ranks = Share(rank, 2)
        parts.append(seeded(learner, batch))
    summed = {n: sum(part.gradients[n] for part in parts) for n in alone.gradients}
    assert relative(summed, alone.gradients) < 1e-12
    assert torch.equal(sum(part.task_losses for part in parts), alone.task_losses)


@pytest.mark.parametrize(("name", "passes"), [("sam", [(0, 1)]), ("sharp-maml-low", [(0, 1)]), ("sharp-maml-up", [])])
def test_dropout_drops_the_same_at_both_points_of_a_sharp_method(name, passes):
    masks = []

    class Watching(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3).double()

        def forward(self, x):
            kept = F.dropout(torch.ones(len(x), 16, dtype=x.dtype), 0.5, self.training)
            masks.append(kept)
            return self.linear(x) * kept.mean(1, keepdim=True)

    steps = min(fewstep.preset(name).steps, 1)
    learner = fewstep.Learner(Watching(), fewstep.preset(name, steps=steps), strategy="loop")
    seeded(learner, vectors(tasks=1))
    masks.clear()
    seeded(learner, vectors(tasks=1))
    for a, b in passes or [(0, 2), (1, 3)]:  # of the outer point: support and query pass anew
        assert torch.equal(masks[a], masks[b])
    assert len(masks) == {"sam": 2, "sharp-maml-low": 3, "sharp-maml-up": 4}[name]
    assert len({tuple(mask.flatten().tolist()) for mask in masks}) == len(masks) - len(passes or [0, 0])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_nobodys_generator_is_rewound(strategy):
    """A model that draws takes one number of the global generator; one that does not takes none."""
    batch = vectors()
    for model, taken in ((net(), 0), (net(nn.Dropout(0.5)), 1)):
        for method in ("maml", "sam", "sharp-maml-both"):
            learner = fewstep.Learner(model, fewstep.preset(method), strategy=strategy)
            seeded(learner)
            torch.manual_seed(8)
            for _ in range(taken):
                torch.randint(2**62, ())
            expected = torch.rand(3)
            seeded(learner, seed=8)
            assert torch.equal(torch.rand(3), expected)
    python, numpy_state = __import__("random").getstate(), __import__("numpy").random.get_state()[1].copy()
    learner.meta_gradient(batch)
    assert __import__("random").getstate() == python
    assert (__import__("numpy").random.get_state()[1] == numpy_state).all()


def test_others_draw_while_a_learner_works_and_never_twice_the_same():
    learner, stop = fewstep.Learner(net(), fewstep.preset("sharp-maml-low"), strategy="loop"), threading.Event()
    learner.meta_gradient(vectors())

    def work():
        while not stop.is_set():
            learner.meta_gradient(vectors())

    thread = threading.Thread(target=work)
    thread.start()
    try:
        drawn = [float(torch.rand((), dtype=torch.float64)) for _ in range(20000)]
    finally:
        stop.set()
        thread.join()
    assert len(set(drawn)) == len(drawn)


def test_where_vmap_gives_up_after_a_draw_the_loop_draws_the_same():
    """So a run that goes on is the run that never stopped."""

    class Asking(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = net(nn.Dropout(0.5))

        def forward(self, x):
            y = self.layers(x)
            return y if y.sum().item() < 1e9 else -y  # no value can be told under vmap

    torch.manual_seed(0)
    model = Asking()
    learner, fresh = learner_of(model, "auto"), learner_of(copy.deepcopy(model), "auto")
    seeded(learner, seed=1)
    same_bits(seeded(learner, seed=2), seeded(fresh, seed=2))


# --- what a caller is in the middle of -------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("model", ["net", "conv4"])
def test_no_mode_of_the_caller_changes_a_result(strategy, model):
    if model == "net":
        learner, make = learner_of(net(nn.BatchNorm1d(6), nn.Dropout(0.5)).float(), strategy), vectors
    else:
        method = fewstep.preset("maml", steps=2)
        learner, make = fewstep.Learner(Conv4(3, filters=4, image_size=16), method, strategy=strategy), images

    def results():
        batch = make(dtype=torch.float32)  # made under the mode
        torch.manual_seed(2)
        gradient = learner.meta_gradient(batch)
        outputs = learner.query_outputs(batch, every_step=True, alone=True)
        predictor = learner.adapt(batch.support_x[0], batch.support_y[0])
        return gradient, outputs, predictor(batch.query_x[0])

    expected = results()
    for mode in (
        torch.no_grad,
        torch.inference_mode,
        torch.enable_grad,
        lambda: torch.autocast("cpu", torch.bfloat16),
        default_float64,
    ):
        with mode():
            gradient, outputs, answer = results()
        same_bits(gradient, expected[0])
        assert torch.equal(outputs, expected[1])
        assert torch.equal(answer, expected[2])
        assert not answer.requires_grad


class default_float64:
    def __enter__(self):
        torch.set_default_dtype(torch.float64)

    def __exit__(self, *_):
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("first", ["fake", "real"])
def test_passes_on_fake_tensors_leave_real_ones_alone(first):
    """Before and after, with one learner and another, of equal shapes."""

    def made():
        torch.manual_seed(0)
        method = fewstep.preset("maml", steps=1, norm__statistics="support")
        norm = nn.BatchNorm2d(4)
        model = nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(196, 3))
        return fewstep.Learner(model, method, strategy="loop")

    def real():
        learner = made()
        return learner, seeded(learner, images(dtype=torch.float32))

    def fake():
        with FakeTensorMode():
            learner, y, x = made(), torch.arange(3).repeat(2, 2), torch.randn(2, 6, 1, 16, 16)
            for strategy in ("loop", "vectorized"):
                result = learner.meta_gradient(fewstep.TaskBatch(x, y, x, y), strategy=strategy)
                assert result.query_logits.shape == (2, 6, 3)

    if first == "fake":
        fake()
        _, expected = real()
    else:
        learner, expected = real()
        fake()
        same_bits(seeded(learner, images(dtype=torch.float32)), expected)
    same_bits(real()[1], expected)


def test_real_tensors_under_fake_mode_are_refused_and_leave_no_trace():
    learner, batch = learner_of(net(nn.Dropout(0.5))), vectors()
    with FakeTensorMode(), pytest.raises(fewstep.BadInput, match="FakeTensorMode"):
        learner.meta_gradient(batch)
    same_bits(seeded(learner), seeded(learner_of(learner.model)))
    x, y = batch.support_x[0], batch.support_y[0]
    with FakeTensorMode(), pytest.raises(fewstep.BadInput, match="FakeTensorMode"):
        learner.adapt(x, y)
    same_bits(seeded(learner), seeded(learner_of(learner.model)))


# --- statistics of norms ---------------------------------------------------------------------------------------------


def pretrained():
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 5), nn.BatchNorm1d(5),
                          nn.Tanh(), nn.Linear(5, 3)).double()  # fmt: skip
    with torch.no_grad():
        for norm in (model[1], model[4]):
            norm.running_mean.uniform_(-1, 1)
            norm.running_var.uniform_(1, 4)
    return model


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("frozen", ["policy", "model", "first norm"])
def test_frozen_statistics_are_those_of_the_model(strategy, frozen):
    """By policy of all norms, or of those that are in evaluation mode, layer by layer."""
    model, batch = pretrained(), vectors()
    right = copy.deepcopy(model)
    {"policy": right.eval, "model": right.eval, "first norm": right[1].eval}[frozen]()
    adapted = ["6.weight", "6.bias"]
    if frozen != "policy":
        model.load_state_dict(right.state_dict())
        (model if frozen == "model" else model[1]).eval()
    policy = "frozen" if frozen == "policy" else "batch"
    learner = learner_of(model, strategy, adapted=Matching(("6.*",)), norm__statistics=policy)
    result = learner.meta_gradient(batch)
    loss, gradients = plain(right, batch, adapted)
    assert abs(result.loss - loss) < 1e-12
    assert relative(result.gradients, gradients) < 1e-10
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), pretrained().buffers(), strict=True))
    assert [layer.training for layer in model] == {
        "policy": [True] * 7, "model": [False] * 7, "first norm": [True, False, *[True] * 5]
    }[frozen]  # fmt: skip


def test_a_frozen_model_answers_as_it_does_by_itself_and_takes_one_example():
    model, batch = pretrained(), vectors()
    learner = learner_of(model, steps=0, norm__statistics="frozen")
    found = learner.adapt(batch.support_x[0], batch.support_y[0])(batch.query_x[0])
    torch.testing.assert_close(found, model.eval()(batch.query_x[0]))
    one = vectors(ways=1, shots=1)
    assert learner_of(model, norm__statistics="frozen").meta_gradient(one).loss.isfinite()
    bare = net(nn.BatchNorm1d(6, track_running_stats=False))
    with pytest.raises(fewstep.BadInput, match=r"frozen, but 1 \(BatchNorm1d\) keeps no running statistics"):
        learner_of(bare, norm__statistics="frozen").meta_gradient(batch)


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("name", ["maml", "sam"])
def test_running_statistics_see_the_passes_of_a_method_without_steps_too(name, steps):
    model = net(nn.BatchNorm1d(6))
    method = fewstep.preset(name, steps=steps, norm__statistics="running")
    if name == "sam":  # its passes are at a point beside the model
        method = method.replace(sharpness__outer=1e-12)
    learner, batch = fewstep.Learner(model, method), vectors()
    result = learner.meta_gradient(batch)
    learner.update_running(result.statistics)
    momentum = learner.method.norm.momentum
    x = batch.support_x if steps else batch.query_x
    first = torch.stack([model[0](each).mean(0) for each in x]).mean(0)
    torch.testing.assert_close(dict(learner.running.named_buffers())["1.mean"][0], (momentum * first).detach())


def test_a_subclass_of_batch_norm_keeps_its_forward_and_hooks():
    """In adaptation without steps the learner's output is the model's."""

    class Active(nn.BatchNorm1d):
        def forward(self, x):
            return F.relu(super().forward(x))

    model, called = net(Active(6)), []
    model[1].register_forward_hook(lambda *given: called.append(len(given)))
    batch = vectors()
    found = learner_of(model).adapt(batch.support_x[0], batch.support_y[0], 0, "batch")(batch.query_x[0])
    assert called
    torch.testing.assert_close(found, model(batch.query_x[0]), rtol=1e-12, atol=1e-12)


def test_buffers_that_passes_move_come_out_and_are_taken_over():
    """The mean over tasks of where the support passes left them."""
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3))).double()
    before = copy.deepcopy(dict(model.named_buffers()))
    learner = learner_of(model)
    result = learner.meta_gradient(vectors())
    assert all(torch.equal(before[n], b) for n, b in model.named_buffers())
    assert set(result.moved) == set(before)
    learner.update_buffers(result)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, result.moved[name])
        assert not torch.equal(buffer, before[name])


# --- messages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_support_set_that_is_not_finite_is_refused(bad):
    for learner, batch in ((learner_of(net()), vectors()), (conv_learner(fewstep.preset("maml++")), images())):
        x = batch.support_x[0].clone()
        x.view(-1)[0] = bad
        with pytest.raises(fewstep.BadInput, match="support set holds values that are not finite"):
            learner.adapt(x, batch.support_y[0])
        learner.adapt(batch.support_x[0], batch.support_y[0])


def test_an_adaptation_that_diverges_is_refused():
    method = fewstep.preset("maml", steps=20, rule__rate=1e30)
    learner = fewstep.Learner(nn.Linear(4, 3).double(), method, F.mse_loss)
    with pytest.raises(fewstep.BadInput, match="adapting diverged"):
        learner.adapt(vectors().support_x[0], torch.ones(6, 3, dtype=torch.float64))


class Hugging(nn.Module):
    """Gives a dictionary."""

    def __init__(self):
        super().__init__()
        self.layers = net()

    def forward(self, x):
        logits = self.layers(x)
        return {"logits": logits, "hidden": (logits.sin(),)}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_dictionary_is_an_output_that_the_loss_takes(strategy):
    torch.manual_seed(1)
    method, batch = fewstep.preset("maml", steps=2), vectors()

    def loss(output, y):
        return F.cross_entropy(output["logits"], y) + output["hidden"][0].square().mean()

    def straight(output, y):
        return F.cross_entropy(output, y) + output.sin().square().mean()

    model = Hugging()
    found = fewstep.Learner(model, method, loss, strategy).meta_gradient(batch)
    right = fewstep.Learner(model.layers, method, straight, strategy).meta_gradient(batch)
    assert torch.equal(found.task_losses, right.task_losses)
    for name, gradient in right.gradients.items():
        torch.testing.assert_close(found.gradients[name.replace("model.", "model.layers.")], gradient)
    predictor = fewstep.Learner(model, method, loss).adapt(batch.support_x[0], batch.support_y[0])
    assert predictor(batch.query_x[0])["logits"].shape == (12, 3)
    with pytest.raises(fewstep.BadInput, match="one output tensor, and the model gives a dict"):
        fewstep.Learner(model, method, loss, strategy).query_outputs(batch)
    with pytest.raises(fewstep.BadInput, match="cross-entropy needs the model's output"):
        fewstep.Learner(model, method, strategy=strategy).meta_gradient(batch)


def test_a_run_goes_on_with_its_own_model_and_loss_alone(tmp_path):
    """Equal shapes are not enough."""
    tasks = fewstep.sinusoid()

    def learner(loss, activation):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(1, 4), activation, nn.Linear(4, 1))
        return fewstep.Learner(model, fewstep.preset("maml", setting="sinusoid", steps=1), loss)

    length = {"epochs": 1, "iterations": 2, "meta_batch": 2, "validation_tasks": 3}
    fewstep.train(learner(F.mse_loss, nn.ReLU()), tasks, tmp_path, **length)
    for loss, activation, word in ((F.l1_loss, nn.ReLU(), "loss"), (F.mse_loss, nn.Tanh(), "model")):
        with pytest.raises(fewstep.BadInput, match=word):
            fewstep.train(learner(loss, activation), tasks, tmp_path, **length)
    fewstep.train(learner(F.mse_loss, nn.ReLU()), tasks, tmp_path, **length)


# --- rules and losses that remember ----------------------------------------------------------------------------------


def test_recompute_refuses_what_does_not_repeat():
    learner, calls = learner_of(net(), "recompute"), []

    def loss(output, y):
        calls.append(1)
        return F.cross_entropy(output, y) * (1 + 0.1 * len(calls))

    learner.loss = loss
    with pytest.raises(fewstep.BadInput, match="when it is taken again"):
        learner.meta_gradient(vectors())


def test_vmap_that_gives_other_numbers_than_a_loop_is_refused_and_left_by_auto():
    """Torch's scripted modules have wrong second derivatives under vmap."""

    class Telling(nn.Module):
        """Gives other numbers where several tasks come at once."""

        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3).double()

        def forward(self, x):
            return self.linear(x) * (2 if torch._C._functorch.maybe_get_level(x) > 0 else 1)

    model = Telling()
    with pytest.raises(fewstep.BadInput, match="cannot run vectorized"):
        learner_of(model, "vectorized").meta_gradient(vectors())
    same_bits(learner_of(model, "auto").meta_gradient(vectors()), learner_of(model).meta_gradient(vectors()))


def test_all_weights_are_adapted_where_that_is_asked():
    """`All` means norms too, in copies and in the model itself alike."""
    model, batch = net(nn.BatchNorm1d(6)), vectors()
    learner = learner_of(model, adapted=All())
    loss, gradients = plain(model, batch, list(dict(model.named_parameters())))
    result = learner.meta_gradient(batch)
    assert abs(result.loss - loss) < 1e-12
    assert relative(result.gradients, gradients) < 1e-10


# --- what was found by trying to break it ----------------------------------------------------------------------------


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


class MaskedByLambda(Plain):
    """Its last class is masked, and its weights are reached by a closure."""

    def __init__(self):
        super().__init__()
        self.run = lambda x: self.b(torch.tanh(self.a(x)))

    def forward(self, x):
        return torch.cat([self.run(x), x.new_full((len(x), 1), -torch.inf)], 1)


class Filling(Plain):
    def __init__(self):
        super().__init__()
        self.register_buffer("state", None)

    def forward(self, x):
        self.state = x.mean(0) if self.state is None else (self.state + x.mean(0)) / 2
        return super().forward(x - self.state)


class Writing(Plain):
    def forward(self, x):
        return super().forward(x.mul_(1.5))


class Untouched(Plain):
    @torch.no_grad()
    def forward(self, x):
        return super().forward(x)


class NotCopied(nn.BatchNorm1d):
    def __deepcopy__(self, memo):
        return self


def test_an_output_that_is_infinite_in_part_still_proves():
    model = MaskedByLambda().double()
    found = fewstep.Learner(model, fewstep.preset("maml")).meta_gradient(vectors()).gradients
    assert all(g.any() for g in found.values())


@pytest.mark.parametrize(
    ("model", "said"),
    [(Filling, "fills the buffer state"), (Writing, "writes to its input"), (Untouched, "none of its weights")],
)
def test_what_cannot_be_a_function_is_refused_by_name(model, said):
    batch = vectors()
    x, made = batch.support_x.clone(), model().double()
    with pytest.raises(fewstep.BadInput, match=said):
        fewstep.Learner(made, fewstep.preset("maml")).meta_gradient(batch)
    assert torch.equal(batch.support_x, x)
    assert getattr(made, "state", None) is None


def test_a_norm_that_is_used_twice_has_no_one_mean_of_a_support_set():
    norm = nn.BatchNorm1d(6)
    model = nn.Sequential(nn.Linear(4, 6), norm, nn.Tanh(), norm, nn.Linear(6, 3)).double()
    learner, batch = fewstep.Learner(model, fewstep.preset("maml")), vectors()
    learner.meta_gradient(batch)
    with pytest.raises(fewstep.BadInput, match="1 normalises several times in one pass"):
        learner.adapt(batch.support_x[0], batch.support_y[0])
    learner.adapt(batch.support_x[0], batch.support_y[0], statistics="batch")


def test_a_layer_that_gives_itself_for_its_copy_keeps_its_forward():
    model = nn.Sequential(nn.Linear(4, 6), NotCopied(6), nn.Linear(6, 3)).double()
    fewstep.Learner(model, fewstep.preset("maml")).meta_gradient(vectors())
    assert "forward" not in model[1].__dict__
    assert not model[1].running_mean.any()
