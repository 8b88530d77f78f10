"""The compiled meta-gradient against the same uncompiled."""

import copy
import gc
import shutil

import pytest
import torch
from problems import conv_learner, images, lively, mlp_learner, relative, vectors
from torch import nn

import fewstep
from fewstep.metalearning import compiled
from fewstep.metalearning.memory import memory_needed
from fewstep.methods.presets import PRESETS
from fewstep.models import Conv4


@pytest.fixture
def traced(monkeypatch):
    """Graphs as inductor would get them, run as they are: the same functions in a hundredth of the time.

    Each graph is counted.
    """
    graphs = []

    def run_as_it_is(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(compiled, "inductor", run_as_it_is)
    yield graphs
    torch.compiler.reset()


def both(learner, batch, progress=0.0):
    learner.compiled = False
    plain = learner.meta_gradient(batch, progress)
    learner.compiled = True
    return learner.meta_gradient(batch, progress), plain


def assert_close(one, other, tolerance=1e-10):
    assert one.gradients.keys() == other.gradients.keys()
    assert relative(one.gradients, other.gradients) < tolerance
    outcomes = [(r.loss, r.query_logits, r.task_losses, r.statistics) for r in (one, other)]
    torch.testing.assert_close(*outcomes, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("strategy", ["loop", pytest.param("vectorized", marks=pytest.mark.slow)])
def test_every_preset_gives_the_same(name, strategy, traced):
    learner = conv_learner(lively(name, at_most=2), filters=8, size=8, strategy=strategy, blocks=2)
    assert_close(*both(learner, images(size=8, tasks=3)))
    assert traced


def test_training_goes_on_with_the_same_graphs(traced):
    """New values, evaluation in between and annealed weights make no new graph; a new set of query passes does."""
    learner, batch = conv_learner(fewstep.preset("maml++", steps=2), filters=8, size=8, blocks=2), images(size=8)
    assert_close(*both(learner, batch, 0.01))
    first = len(traced)
    with torch.no_grad():
        for parameter in learner.meta_parameters().values():
            parameter.add_(0.1)
    learner.update_running(learner.meta_gradient(batch, 0.02).statistics)
    fewstep.evaluate(learner, lambda tasks: images(size=8, tasks=len(tasks)), 2)
    with learner._forward.body(), learner._forward.body():  # as two threads take them
        pass
    assert_close(*both(learner, batch, 0.03))
    assert len(traced) == first
    assert learner.method.step_weights(0.01, 2) != learner.method.step_weights(0.03, 2)
    assert_close(*both(learner, batch, 0.2))  # the last query pass alone
    assert len(traced) > first


@pytest.mark.usefixtures("traced")
def test_learners_do_not_share_what_is_compiled():
    for slope in (0.0, 0.5):
        for model in (Conv4(3, 1, 8, 8, blocks=2, negative_slope=slope).double() for _ in range(2)):
            assert_close(*both(fewstep.Learner(model, fewstep.preset("fomaml", steps=1)), images(size=8)))
    learner = mlp_learner(fewstep.preset("maml", steps=1))
    assert_close(*both(learner, vectors()))
    assert_close(*both(copy.deepcopy(learner), vectors()))


@pytest.mark.usefixtures("traced")
def test_micro_batches_and_modes():
    learner = conv_learner(fewstep.preset("maml", steps=1), filters=8, size=8, blocks=2, strategy="vectorized")
    learner.micro_batch = 2
    assert_close(*both(learner, images(size=8, tasks=3)))
    learner.model.eval()
    assert_close(*both(learner, images(size=8, tasks=3)))


class Modal(nn.Linear):
    def forward(self, x):
        return super().forward(2 * x if self.training else x)


def single():
    """`vectors` in single precision."""
    batch = vectors()
    return fewstep.TaskBatch(batch.support_x.float(), batch.support_y, batch.query_x.float(), batch.query_y)


@pytest.mark.usefixtures("traced")
def test_what_is_changed_afterwards_counts():
    model = Modal(4, 3)
    learner, losses = fewstep.Learner(model, fewstep.preset("maml", steps=1), strategy="loop"), set()

    def compare(tolerance):
        found, plain = both(learner, single())
        assert_close(found, plain, tolerance)
        losses.add(float(found.loss))

    compare(1e-5)
    model.eval()
    compare(1e-5)
    learner.method = fewstep.preset("fomaml", steps=2, rule__rate=0.3)
    compare(1e-5)
    learner.precision = "bf16"
    compare(0.05)
    assert len(losses) == 4


@pytest.mark.parametrize("strategy", ["loop", "vectorized"])
@pytest.mark.usefixtures("traced")
def test_results_have_the_types_of_the_uncompiled(strategy):
    learner = fewstep.Learner(nn.Linear(4, 3), fewstep.preset("maml++", steps=2), strategy=strategy)
    found, plain = both(learner, single())
    assert_close(found, plain, 1e-5)  # and types
    assert found.loss.dtype == torch.float32


def test_both_passes_of_a_perturbation_are_one_graph(traced):
    assert_close(*both(conv_learner(lively("sam", at_most=1), filters=8, size=8, blocks=1), images(size=8)))
    assert len(traced) == 1


@pytest.mark.usefixtures("traced")
def test_what_is_compiled_goes_with_its_learner():
    learners = [mlp_learner(fewstep.preset("fomaml", steps=steps)) for steps in range(3)]
    with torch._dynamo.config.patch(recompile_limit=2):
        for learner in learners:
            assert_close(*both(learner, vectors()))
    assert len(compiled._made) == 3
    del learner, learners
    gc.collect()
    assert not len(compiled._made)


@pytest.mark.usefixtures("traced")
def test_the_limit_of_variants_is_told():
    learner = mlp_learner(fewstep.preset("fomaml", steps=1), strategy="vectorized")
    learner.compiled = True

    def many():
        for tasks in range(1, 20):
            learner.meta_gradient(vectors(tasks))

    with pytest.raises(
        fewstep.BadInput, match=r"compiled for 8 sets of shapes, orders .* by now, and torch keeps no more"
    ):
        many()


@pytest.mark.usefixtures("traced")
def test_zero_steps():
    assert_close(*both(mlp_learner(fewstep.preset("maml", steps=0)), vectors()))


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="torch's compiler needs another")
@pytest.mark.parametrize("strategy", [pytest.param("loop", marks=pytest.mark.slow), "vectorized"])
def test_compiled_code_gives_the_same(strategy):
    """By the real compiler, which takes seconds for this little."""
    learner = mlp_learner(fewstep.preset("maml", steps=1), strategy=strategy)
    assert_close(*both(learner, vectors()))
    torch.compiler.reset()


class Branching(nn.Linear):
    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)


class Attending(nn.Linear):
    def forward(self, x):
        return super().forward(nn.functional.scaled_dot_product_attention(*[x[:, None]] * 3)[:, 0])


class _Twice(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x * 2

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(_ctx, a):
        return a * 2


class Doubling(nn.Linear):
    def forward(self, x):
        return _Twice.apply(super().forward(x))


class Summing(nn.Linear):
    """vmap cannot write a task's values into what belongs to none."""

    def forward(self, x):
        total = torch.zeros(4, dtype=x.dtype)
        total.add_(x.sum(0))
        return super().forward(x + total)


class Peaks(nn.Linear):
    def forward(self, x):
        return super().forward(x) - torch.cdist(x, self.weight)


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("strategy", ["auto", "loop", "vectorized"])
@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)), "attention or draws random numbers, .* cannot be compiled"),
        (Attending(4, 3), "attention or draws random numbers, .* cannot be compiled"),
        (Branching(4, 3), r"torch cannot compile this model with this method \(.*branch.*\); train it uncompiled"),
        (Doubling(4, 3), "torch cannot compile this model with this method .*train it uncompiled"),
        (Peaks(4, 3), "second order needs second derivatives, which torch lacks for Peaks"),
    ],
)
def test_what_cannot_be_compiled_is_said(model, reason, strategy):
    learner = fewstep.Learner(model.double(), fewstep.preset("maml", steps=1), compiled=True, strategy=strategy)
    with pytest.raises(fewstep.BadInput, match=reason):
        learner.meta_gradient(vectors())


@pytest.mark.parametrize("strategy", ["auto", "loop"])
@pytest.mark.usefixtures("traced")
def test_a_function_would_lose_its_derivative(strategy):
    learner = fewstep.Learner(
        Doubling(4, 3).double(), fewstep.preset("maml", steps=1), strategy=strategy, compiled=True
    )
    with pytest.raises(fewstep.BadInput, match=r"a torch\.autograd\.Function in it would lose its own derivative"):
        learner.meta_gradient(vectors())


def test_auto_goes_on_by_loop_where_vmap_cannot_take_the_model(traced):
    learner = fewstep.Learner(Summing(4, 3).double(), fewstep.preset("maml", steps=1))
    assert learner.chosen_strategy(vectors()) == "vectorized"
    learner.compiled = True
    found = learner.meta_gradient(vectors())
    assert (learner.chosen_strategy(vectors()), len(traced)) == ("loop", 1)
    learner.compiled = False
    assert_close(found, learner.meta_gradient(vectors()))


def test_recompute_is_not_compiled():
    learner = fewstep.Learner(nn.Linear(4, 3).double(), fewstep.preset("maml"), strategy="recompute", compiled=True)
    with pytest.raises(fewstep.BadInput, match="strategy recompute cannot be compiled; take loop or vectorized"):
        learner.meta_gradient(vectors())


def test_the_estimate_of_memory_compiles_nothing(traced):
    learner = mlp_learner(fewstep.preset("maml", steps=2))
    learner.compiled = True
    assert memory_needed(learner, vectors()).bytes > 0
    assert not traced
    assert learner.compiled
