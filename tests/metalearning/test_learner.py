"""Learner and predictor: names, purity, statistics policies, any module, clear errors."""

import pytest
import torch
import torch.nn.functional as F
from problems import conv_learner, directional, images, mlp_learner, relative, vectors
from torch import nn

import fewstep
from fewstep.models import Conv4


def test_names_of_meta_parameters_and_gradients():
    learner = conv_learner(fewstep.preset("maml++", steps=2))
    names = list(learner.meta_parameters())
    assert names == list(learner.meta_gradient(images()).gradients)
    assert "model.blocks.0.conv.weight" in names
    assert "rates.blocks.0.conv.weight" in names
    assert "norm.blocks.0.norm.weight" in names
    assert "model.blocks.0.norm.weight" not in names  # learned for each step instead
    assert "rates.blocks.0.norm.weight" not in names  # norms stay out of the inner loop
    assert learner.meta_parameters()["norm.blocks.0.norm.weight"].shape == (2, 4)
    assert learner.meta_parameters()["rates.head.bias"].shape == (2,)


@pytest.mark.parametrize("statistics", [None, "running", "support"])
def test_a_prediction_does_not_depend_on_the_other_queries(statistics):
    learner, batch = conv_learner(fewstep.preset("maml++")), images(queries=3)
    predictor = learner.adapt(batch.support_x[0], batch.support_y[0], statistics=statistics)
    crowd = predictor(batch.query_x[0])
    alone = torch.cat([predictor(x[None]) for x in batch.query_x[0]])
    assert torch.allclose(crowd, alone, rtol=1e-9)


def test_batch_statistics_are_transductive_and_equal_the_training_pass():
    learner, batch = conv_learner(fewstep.preset("maml++")), images(tasks=1, queries=3)
    predictor = learner.adapt(batch.support_x[0], batch.support_y[0], statistics="batch")
    crowd = predictor(batch.query_x[0])
    assert torch.allclose(crowd, learner.meta_gradient(batch).query_logits[0], rtol=1e-9)
    assert not torch.allclose(crowd[:2], predictor(batch.query_x[0][:2]), rtol=1e-3)


def test_support_policy_trains_through_the_statistics_of_the_support_set():
    learner, batch = conv_learner(fewstep.preset("maml", steps=2, norm__statistics="support")), images()
    result = learner.meta_gradient(batch)
    predictor = learner.adapt(batch.support_x[0], batch.support_y[0])
    assert torch.allclose(result.query_logits[0], predictor(batch.query_x[0]), rtol=1e-9)
    name = "model.blocks.0.conv.weight"
    slope, direction = directional(learner, batch, 0.0, [name])
    assert float((result.gradients[name] * direction[name]).sum()) == pytest.approx(slope, rel=1e-5)
    vectorized = learner.meta_gradient(batch, strategy="vectorized").gradients
    assert relative(result.gradients, vectorized) < 1e-9


def test_running_statistics_move_by_the_momentum_and_belong_to_steps():
    learner, batch = conv_learner(fewstep.preset("maml", steps=3, norm__statistics="running")), images(tasks=1)
    seen = learner.meta_gradient(batch).statistics
    learner.update_running(seen)
    for part, start in (("mean", 0.0), ("var", 1.0)):
        running = learner.running.get_buffer(f"blocks.1.norm.{part}")
        assert running.shape == (3, 4)
        assert torch.allclose(running, 0.9 * start + 0.1 * getattr(seen["blocks.1.norm"], part))
    first = learner.model.blocks[0].conv(batch.support_x[0])
    assert torch.allclose(seen["blocks.0.norm"].mean[0], first.mean((0, 2, 3)))
    assert torch.allclose(seen["blocks.0.norm"].var[0], first.var((0, 2, 3), correction=0))
    assert not torch.allclose(seen["blocks.1.norm"].mean[0], seen["blocks.1.norm"].mean[2])


def test_running_buffers_do_not_matter_under_the_batch_policy():
    learner, batch = conv_learner(fewstep.preset("maml++")), images()
    before = learner.meta_gradient(batch).query_logits
    for buffer in learner.running.buffers():
        buffer.mul_(7.0)
    assert torch.equal(before, learner.meta_gradient(batch).query_logits)
    running = learner.adapt(batch.support_x[0], batch.support_y[0], statistics="running")
    assert not torch.allclose(running(batch.query_x[0]), before[0])


def test_more_steps_than_trained_reuse_the_last_row():
    learner, batch = conv_learner(fewstep.preset("maml++", steps=2)), images()
    longer = conv_learner(fewstep.preset("maml++", steps=4))
    state = learner.state_dict()
    stretched = {
        k: torch.cat([v, v[-1:], v[-1:]]) if k.split(".")[0] in ("rates", "norm", "running") else v
        for k, v in state.items()
    }
    longer.load_state_dict(stretched)
    task = batch.support_x[0], batch.support_y[0]
    assert torch.equal(learner.adapt(*task, steps=4)(batch.query_x[0]), longer.adapt(*task)(batch.query_x[0]))


class Twice(nn.Module):
    """Two inputs, tied weights, a buffer, a frozen part."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.register_buffer("shift", torch.ones(4))
        self.head = nn.Linear(4, 3)

    def forward(self, a, b):
        return self.head(torch.tanh(self.second(torch.tanh(self.first(a))) + self.frozen(b) + self.shift))


@pytest.mark.parametrize("strategy", ["loop", "vectorized"])
def test_any_module_several_inputs_tied_and_frozen_weights(strategy):
    model, batch = Twice().double(), vectors()
    pair = fewstep.TaskBatch(
        (batch.support_x, batch.support_x.flip(1)),
        batch.support_y,
        (batch.query_x, batch.query_x.flip(1)),
        batch.query_y,
    )
    learner = fewstep.Learner(model, fewstep.preset("maml++", steps=2), strategy=strategy)
    result = learner.meta_gradient(pair, 0.9)
    assert "model.frozen.weight" not in result.gradients
    name = "model.first.weight"
    slope, direction = directional(learner, pair, 0.9, [name])
    assert float((result.gradients[name] * direction[name]).sum()) == pytest.approx(slope, rel=1e-5)
    assert learner.adapt((pair.support_x[0][0], pair.support_x[1][0]), pair.support_y[0])(
        (pair.query_x[0][0], pair.query_x[1][0])
    ).shape == (12, 3)


def test_regression_with_a_vector_output():
    x, y = torch.randn(2, 5, 4), torch.randn(2, 5, 3)
    learner = fewstep.Learner(
        nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)), fewstep.preset("maml"), F.mse_loss
    )
    assert learner.meta_gradient(fewstep.TaskBatch(x, y, x, y)).query_logits.shape == (2, 5, 3)


def test_the_learner_shares_the_models_parameters_and_moves_as_a_module():
    model = Conv4(ways=3, filters=2, image_size=16)
    learner = fewstep.Learner(model, fewstep.preset("maml++")).double()
    assert learner.model is model
    assert learner.meta_gradient(images()).loss.dtype == torch.float64


def test_labels_that_the_model_has_no_output_for():
    learner = conv_learner(fewstep.preset("maml"), ways=3)
    with pytest.raises(
        fewstep.BadInput, match=r"labels up to 4, but the model has 3 outputs: build the model for 5 ways"
    ):
        learner.meta_gradient(images(ways=5))
    with pytest.raises(fewstep.BadInput, match=r"labels up to 4"):
        learner.adapt(images(ways=5).support_x[0], images(ways=5).support_y[0])
    with pytest.raises(fewstep.BadInput, match=r"labels count from 0"):
        learner.adapt(images().support_x[0], images().support_y[0] - 1)


def test_unknown_strategy_names_the_nearest():
    with pytest.raises(fewstep.BadInput, match=r"did you mean 'vectorized'"):
        mlp_learner(fewstep.preset("maml"), strategy="vectorised")


def test_nothing_to_adapt():
    with pytest.raises(fewstep.BadInput, match=r"no trainable parameter"):
        fewstep.Learner(nn.Linear(2, 2).requires_grad_(False), fewstep.preset("maml"))


def test_evaluation_keeps_no_graph():
    """Adapted weights must not drag the graph of their inner steps along."""
    learner, batch = conv_learner(fewstep.preset("maml")), images()
    predictor = learner.adapt(batch.support_x[0], batch.support_y[0])
    assert all(not p.requires_grad and p.grad_fn is None for p in predictor.parameters.values())


class Counting(nn.Module):
    """A module that writes to its buffer in training, as spectral norms and moving averages do."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x):
        if self.training:
            self.mean.lerp_(x.detach().mean(0), 0.5)
        return self.linear(x - self.mean)


def test_tasks_do_not_meet_in_a_modules_buffers():
    learner, batch = fewstep.Learner(Counting().double(), fewstep.preset("maml"), strategy="loop"), vectors()
    losses = learner.meta_gradient(batch).task_losses
    turned = fewstep.TaskBatch(*(t.flip(0) for t in (batch.support_x, batch.support_y, batch.query_x, batch.query_y)))
    assert torch.equal(losses.flip(0), learner.meta_gradient(turned).task_losses)
    assert torch.equal(learner.model.mean, torch.zeros(4, dtype=torch.float64))


def test_auto_goes_on_by_loop_where_vmap_cannot_take_the_model():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru, self.head = nn.GRU(2, 4, batch_first=True), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.gru(x.reshape(len(x), 2, 2))[0][:, -1])

    learner, batch = fewstep.Learner(Recurrent().double(), fewstep.preset("maml", steps=1)), vectors()
    assert learner.chosen_strategy(batch) == "vectorized"
    auto = learner.meta_gradient(batch).gradients
    assert relative(auto, learner.meta_gradient(batch, strategy="loop").gradients) == 0.0
    assert learner.chosen_strategy(batch) == "loop"
    assert fewstep.evaluate(learner, lambda _: batch, count=3).count == 3
    with pytest.raises(fewstep.BadInput, match=r"cannot run vectorized .*; use strategy loop"):
        learner.meta_gradient(batch, strategy="vectorized")


def test_dense_labels_count_their_classes_along_the_second_axis():
    model = nn.Conv1d(1, 3, 1)
    x, y = torch.randn(2, 4, 1, 7), torch.randint(0, 3, (2, 4, 7))
    learner, batch = fewstep.Learner(model, fewstep.preset("maml")), fewstep.TaskBatch(x, y, x, y)
    assert learner.meta_gradient(batch).query_logits.shape == (2, 4, 3, 7)
    score = fewstep.evaluate(learner, lambda _: batch, count=2)
    expected = (learner.adapt(x[0], y[0])(x[0]).argmax(1) == y[0]).double().mean().item()
    assert score.per_task[0] == pytest.approx(expected)


def test_bad_arguments_of_adapt():
    learner, batch = mlp_learner(fewstep.preset("maml")), vectors()
    task = batch.support_x[0], batch.support_y[0]
    with pytest.raises(fewstep.BadInput, match="unknown statistics 'runing'; did you mean 'running'"):
        learner.adapt(*task, statistics="runing")
    with pytest.raises(fewstep.BadInput, match="steps is -1"):
        learner.adapt(*task, steps=-1)


def test_per_step_norm_weights_cannot_be_adapted_as_well():
    with pytest.raises(fewstep.BadInput, match="lets the inner loop adapt norm weights"):
        conv_learner(fewstep.preset("maml++", adapted=fewstep.methods.All()))
