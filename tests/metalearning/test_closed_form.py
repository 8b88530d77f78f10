"""A step in closed form is a step by autograd, and is left to autograd wherever something else may be meant."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

import fewstep
from fewstep.metalearning import functional
from fewstep.metalearning.functional import Functional
from fewstep.metalearning.inner_loop import ClosedForm, Task, first_order
from fewstep.methods.rules import Sgd
from fewstep.models import Conv4, cross_entropy_gradients, native


def by_autograd():
    return first_order


pytestmark = pytest.mark.skipif(not native.there(), reason="no compiled kernels here")


def learner(name="maml", loss=F.cross_entropy, model=None, **options):
    torch.manual_seed(3)
    return fewstep.Learner(
        model or Conv4(**{"ways": 3, "filters": 16, "image_size": 16} | options), fewstep.preset(name), loss
    )


def task(ways=3, shots=2, channels=1, size=(16, 16), dtype=torch.float32):
    torch.manual_seed(4)
    return torch.randn(ways * shots, channels, *size, dtype=dtype), torch.arange(ways).repeat(shots)


def found(made, x, y):
    """What the learner's model gives for an inner step from its parameters."""
    meta = made.frozen()
    inner = made.inner_loop(x.nan_to_num(), meta, "batch")
    formula = inner.forward.cross_entropy_gradients(made.adapted, x, y, inner.setting)
    return formula and formula(meta.model)


def after(made, gradient, x, y, steps=3):
    meta = made.frozen()
    inner = made.inner_loop(x.nan_to_num(), meta, "batch", sharp=True)
    with torch.no_grad():
        *_, last = inner.adapt(meta, Task(x, y, None, None), steps, gradient())
    return last


SHAPES = [
    {"ways": 3, "filters": 16, "image_size": 16},
    {"ways": 7, "filters": 16, "image_size": (37, 18), "channels": 3},  # pixels that no window holds; a wide head
    {"ways": 2, "filters": 16, "image_size": 9, "blocks": 1, "negative_slope": 0.0},
    {"ways": 2, "filters": 16, "image_size": 12, "channels": 8, "blocks": 2},
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ["maml", "maml++", "meta-sgd", "sharp-maml-both"])
def test_steps_in_closed_form_are_those_of_autograd(name, shape):
    made = learner(name, **shape).double()
    size = shape["image_size"] if isinstance(shape["image_size"], tuple) else (shape["image_size"],) * 2
    given = task(shape["ways"], 2, shape.get("channels", 1), size, torch.float64)
    assert found(made, *given)
    own, torchs = after(made, ClosedForm, *given), after(made, by_autograd, *given)
    torch.testing.assert_close(own, torchs, rtol=1e-10, atol=1e-12)


def test_the_loss_and_its_gradients_match_finite_differences():
    made, (x, y) = learner().double(), task(dtype=torch.float64)
    model, meta = made.model, made.frozen().model
    gradients, loss, _ = found(made, x, y)
    torch.testing.assert_close(loss, F.cross_entropy(model(x), y))
    for name, tensor in meta.items():
        if name in gradients:
            direction = torch.randn_like(tensor)
            ends = [F.cross_entropy(torch.func.functional_call(model, meta | {name: tensor + e * direction}, x), y)
                    for e in (1e-6, -1e-6)]  # fmt: skip
            slope = (ends[0] - ends[1]) / 2e-6
            torch.testing.assert_close((gradients[name] * direction).sum(), slope, rtol=1e-4, atol=1e-7)


def test_adapting_goes_in_closed_form_and_with_all_threads_alike(monkeypatch):
    made, given = learner("maml++"), task()
    made.adapt(*given, statistics="batch")  # what is found out once
    monkeypatch.setattr(Functional, "__call__", None)  # the model is not called
    threads = torch.get_num_threads()
    try:
        weights = []
        for count in (1, 3):
            torch.set_num_threads(count)
            weights.append(made.adapt(*given, statistics="batch").parameters)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


class Doubled(Conv4):
    def forward(self, x):
        return 2 * super().forward(x)


class Tied(Conv4):
    def __init__(self, **options):
        super().__init__(**options)
        self.blocks[2].conv.weight = self.blocks[1].conv.weight


def hooked(model, layer):
    model.get_submodule(layer).register_forward_hook(lambda *_: None)
    return model


def with_head(head):
    model = Conv4(ways=3, filters=16, image_size=16)
    model.head = head
    return model


class Scaled(nn.Linear):
    """A class that may have a forward of its own."""


def with_a_parameter(model):
    model.scale = nn.Parameter(torch.ones(1))
    return model


OTHERS = {
    "a parameter of its own": lambda: with_a_parameter(Conv4(ways=3, filters=16, image_size=16)),
    "a head of another class": lambda: with_head(Scaled(16, 3)),
    "a forward of its own": lambda: Doubled(ways=3, filters=16, image_size=16),
    "tied filters": lambda: Tied(ways=3, filters=16, image_size=16),
    "a hook on the model": lambda: hooked(Conv4(ways=3, filters=16, image_size=16), ""),
    "a hook on the head": lambda: hooked(Conv4(ways=3, filters=16, image_size=16), "head"),
    "a hook in a block": lambda: hooked(Conv4(ways=3, filters=16, image_size=16), "blocks.1.conv"),
    "another head": lambda: with_head(nn.Sequential(nn.Linear(16, 3), nn.Tanh())),
    "a head without bias": lambda: with_head(nn.Linear(16, 3, bias=False)),
    "strides": lambda: Conv4(ways=3, filters=16, image_size=17, downsample="stride"),
    "no vector's worth of filters": lambda: Conv4(ways=3, filters=3, image_size=16),
}


@pytest.mark.parametrize("model", OTHERS.values(), ids=OTHERS)
def test_other_models_step_by_autograd(model):
    made = learner(model=model())
    given = task(size=(17, 17) if made.model.image_shape[1] == 17 else (16, 16))
    assert not found(made, *given)
    torch.testing.assert_close(after(made, ClosedForm, *given), after(made, by_autograd, *given), rtol=0, atol=0)


def smoothed(output, target):
    return F.cross_entropy(output, target, label_smoothing=0.5)


def test_another_loss_or_few_adapted_parameters_or_given_statistics_go_by_autograd(monkeypatch):
    given = task()
    anil, other, bf16 = learner("anil"), learner(loss=smoothed), learner()
    bf16.precision = "bf16"
    assert not found(anil, *given)
    assert not found(bf16, *given)
    assert found(other, *given)  # the model has a formula, but not of this loss
    torch.testing.assert_close(after(other, ClosedForm, *given), after(other, by_autograd, *given), rtol=0, atol=0)
    running = learner("maml++")
    running.method = running.method.replace(norm__statistics="running")
    monkeypatch.setattr(functional, "cross_entropy_gradients", lambda *_: pytest.fail("statistics were given"))
    running.adapt(*given)


def test_labels_without_an_output_are_left_to_torch():
    made, (x, y) = learner(), task()
    for label in (3, -1, -100):
        y[0] = label
        assert found(made, x, y) is None
    own, torchs = (after(made, gradient, x, y, 1) for gradient in (ClosedForm, by_autograd))  # −100 is ignored
    torch.testing.assert_close(own, torchs, rtol=0, atol=0)
    assert found(made, x, y.float()) is None
    assert found(made, x, y[:-1]) is None


def test_numbers_that_are_none_are_left_to_torch():
    made, (x, y) = learner(), task()
    x[0, 0, 0, 0] = torch.nan
    assert found(made, x, y) is None
    assert after(made, ClosedForm, x, y, 1).parameters["head.bias"].isnan().any()


def test_transforms_see_through_torchs_operators():
    model, (x, y) = Conv4(ways=3, filters=16, image_size=16), task()
    parameters, seen = dict(model.named_parameters()), []
    torch.func.vmap(lambda x: seen.append(cross_entropy_gradients(model, x, y)(parameters)) or x.sum())(x[None])
    torch.func.grad(lambda x: seen.append(cross_entropy_gradients(model, x, y)(parameters)) or x.sum())(x)
    assert seen == [None, None]
    assert cross_entropy_gradients(model, x, y)(parameters)


def test_a_tensor_that_is_no_parameter_is_left_to_torch():
    model, given = Conv4(ways=3, filters=16, image_size=16), task()
    assert cross_entropy_gradients(model, *given)
    weight = model.blocks[1].norm.weight.detach()
    del model.blocks[1].norm.weight
    model.blocks[1].norm.weight = weight
    assert cross_entropy_gradients(model, *given) is None


def test_parameters_that_are_missing_are_not_made_up():
    model, given = Conv4(ways=3, filters=16, image_size=16), task()
    parameters = dict(model.named_parameters())
    del parameters["blocks.2.norm.weight"]
    assert cross_entropy_gradients(model, *given)(parameters) is None


def test_no_step_asks_for_no_formula():
    made = learner()
    nothing = torch.empty(0), torch.empty(0, dtype=torch.long)
    assert made.adapt(*nothing, steps=0, statistics="batch")(task()[0]).shape == (6, 3)


def test_modes_see_torchs_functions():
    class Watch(TorchFunctionMode):
        seen = ()

        def __torch_function__(self, function, types, args=(), kwargs=None):
            self.seen = (*self.seen, function)
            return function(*args, **(kwargs or {}))

    made, given = learner(), task()
    with Watch() as watch:
        made.adapt(*given)
    assert F.cross_entropy in watch.seen


def test_a_predictor_shares_no_memory_with_its_learner():
    """Not even where a rule leaves some of the adapted weights as they are, or no step is taken."""

    class Lazy(Sgd):
        def update(self, fast, gradients, rates, step):  # noqa: ARG002
            return dict(fast) | {"head.weight": fast["head.weight"] - gradients["head.weight"]}

    made, given = learner(), task()
    made.method = made.method.replace(rule=Lazy())
    for steps in (0, 2):
        for statistics in ("batch", "running", "support"):
            predictor = made.adapt(*given, steps=steps, statistics=statistics)
            kept = [*predictor.parameters.values(), *(t for m in (predictor.given or {}).values() for t in m)]
            own = {t.untyped_storage()._cdata for t in (*made.parameters(), *made.buffers())}
            assert not own & {t.untyped_storage()._cdata for t in kept}
