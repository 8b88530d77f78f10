"""Modules of every kind: attention, layers without a second derivative, a pretrained and partly frozen network."""

import copy
import logging
import threading

import pytest
import torch
from problems import vectors
from torch import nn

import fewstep
from fewstep.methods import Matching

STRATEGIES = ["loop", "vectorized"]


class Transformer(nn.Module):
    """Rows of four numbers as tokens, one encoder layer, the mean over tokens classified."""

    def __init__(self, ways=3, width=8):
        super().__init__()
        self.embed = nn.Linear(4, width)
        self.encoder = nn.TransformerEncoderLayer(width, 2, 16, dropout=0.0, activation="gelu", batch_first=True)
        self.head = nn.Linear(width, ways)

    def forward(self, x):
        return self.head(self.encoder(self.embed(x)).mean(1))


def sentences(tasks=2, ways=3, shots=2, tokens=5):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, tasks, ways * shots, tokens, 4, generator=g, dtype=torch.float64)
    y = torch.arange(ways).repeat(tasks, shots)
    return fewstep.TaskBatch(x[0], y, x[1], y)


@pytest.fixture
def transformer():
    torch.manual_seed(0)
    return Transformer().double()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_attention_is_differentiated_twice(transformer, strategy):
    """The fused kernel has no second derivative and no vmap rule: the exact one is chosen, by finite differences."""
    learner = fewstep.Learner(transformer, fewstep.preset("maml", steps=2, rule__rate=0.3), strategy=strategy)
    batch, gradients = sentences(), learner.meta_gradient(sentences()).gradients
    direction, losses = {n: torch.randn_like(p) for n, p in learner.meta_parameters().items()}, []
    for sign in (1, -2, 1):
        with torch.no_grad():
            for name, parameter in learner.meta_parameters().items():
                parameter.add_(direction[name], alpha=sign * 1e-6)
        losses.append(learner.meta_gradient(batch).loss.item())
    expected = (losses[0] - losses[1]) / 2e-6
    assert abs(sum(float((gradients[n] * direction[n]).sum()) for n in direction) - expected) < 1e-6 * abs(expected)


def test_the_choice_of_kernel_is_said_once_and_leaves_torchs_settings(transformer, caplog):
    settings = torch.backends.cuda.flash_sdp_enabled(), torch.backends.mha.get_fastpath_enabled()
    learner = fewstep.Learner(transformer, fewstep.preset("maml", steps=1))
    with caplog.at_level(logging.WARNING, "fewstep"):
        learner.meta_gradient(sentences())
        learner.meta_gradient(sentences())
    assert [r.message for r in caplog.records] == [
        "attention runs by torch's math kernel: the fused ones have no second derivative"
    ]
    assert settings == (torch.backends.cuda.flash_sdp_enabled(), torch.backends.mha.get_fastpath_enabled())


def test_evaluation_takes_attention_vectorized_as_in_the_loop(transformer):
    results = [
        fewstep.evaluate(
            fewstep.Learner(transformer, fewstep.preset("maml"), strategy=strategy), lambda _: sentences(), count=2
        ).by_step
        for strategy in STRATEGIES
    ]
    assert results[0] == results[1]


class Prototypes(nn.Module):
    """Minus the distance to learned prototypes; `cdist` has no second derivative."""

    def __init__(self, features, ways):
        super().__init__()
        self.points = nn.Parameter(torch.randn(ways, features, dtype=torch.float64))

    def forward(self, x):
        return -torch.cdist(x, self.points)


@pytest.mark.parametrize("strategy", ["auto", *STRATEGIES])
def test_a_layer_without_second_derivative_is_named(strategy):
    model = nn.Sequential()
    model.add_module("body", nn.Linear(4, 5).double())
    model.add_module("metric", Prototypes(5, 3))
    learner = fewstep.Learner(model, fewstep.preset("maml"), strategy=strategy)
    with pytest.raises(fewstep.BadInput, match=r"lacks for layer metric \(Prototypes\): .*cdist_backward.*first order"):
        learner.meta_gradient(vectors())
    fewstep.Learner(model, fewstep.preset("fomaml"), strategy=strategy).meta_gradient(vectors())


def test_an_error_of_another_kind_stays_what_it_is():
    learner = fewstep.Learner(nn.Linear(5, 3).double(), fewstep.preset("maml"))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        learner.meta_gradient(vectors(features=4))


def test_a_pretrained_body_stays_frozen_and_its_head_learns():
    """Frozen layers are no meta-parameters, are not adapted, and pass gradients through."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 6)).double()
    body(torch.randn(64, 4, dtype=torch.float64) + 1)  # its running statistics have seen data
    for parameter in body[0].parameters():
        parameter.requires_grad_(False)
    before = copy.deepcopy(body.state_dict())
    learner = fewstep.Learner(nn.Sequential(body, nn.Linear(6, 3).double()), fewstep.preset("maml++", steps=2))
    names = set(learner.meta_gradient(vectors(), 0.5).gradients)
    assert not any("0.0." in name for name in names)
    assert {"model.0.3.weight", "model.1.bias", "rates.0.3.weight", "norm.0.1.weight"} <= names
    running = dict(learner.running.named_buffers())["0.1.mean"]
    assert torch.equal(running, before["1.running_mean"].expand(2, 6))  # evaluation by `running` starts from these
    assert all(torch.equal(before[name], value) for name, value in body.state_dict().items())


def test_patterns_choose_what_is_adapted(transformer):
    method = fewstep.preset("maml", adapted=Matching(("encoder.linear*", "head.*")))
    assert fewstep.Learner(transformer, method).adapted == tuple(
        f"{layer}.{part}" for layer in ("encoder.linear1", "encoder.linear2", "head") for part in ("weight", "bias")
    )


def test_predictors_and_copies_answer_from_several_threads():
    """A call swaps tensors in a module that predictors of one learner share."""
    torch.manual_seed(0)
    learner = copy.deepcopy(fewstep.Learner(nn.Linear(4, 3).double(), fewstep.preset("maml")))
    batch = vectors(tasks=4)
    predictors = [learner.adapt(x, y) for x, y in zip(batch.support_x, batch.support_y, strict=True)]
    expected = [p(x) for p, x in zip(predictors, batch.query_x, strict=True)]
    wrong = []

    def ask(index):
        for _ in range(200):
            if not torch.equal(predictors[index](batch.query_x[index]), expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_an_empty_container_drops_out_in_training_and_not_in_adaptation():
    """A module of no length is false, and still a module."""

    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)).double()

        def __len__(self):
            return 0

        def forward(self, x):
            return self.layers(x)

    learner, batch = fewstep.Learner(Bag(), fewstep.preset("maml", steps=0)), vectors()
    assert (learner.meta_gradient(batch).query_logits == 0).any()
    assert not (learner.adapt(batch.support_x[0], batch.support_y[0])(batch.query_x[0]) == 0).any()
