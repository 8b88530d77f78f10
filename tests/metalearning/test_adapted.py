"""What the inner loop updates."""

import pytest
import torch
from problems import conv_learner, images

import fewstep
from fewstep.methods import All, Matching
from fewstep.models import Conv4

HEAD = {"head.weight", "head.bias"}
CONVS = {f"blocks.{i}.conv.{kind}" for i in range(4) for kind in ("weight", "bias")}
NORMS = {f"blocks.{i}.norm.{kind}" for i in range(4) for kind in ("weight", "bias")}


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("maml", {}, CONVS | HEAD),
        ("maml", {"adapted": All()}, CONVS | HEAD | NORMS),
        ("anil", {}, HEAD),
        ("boil", {}, CONVS),
        ("maml", {"adapted": Matching(("blocks.3.*", "head.bias"))},
         {"blocks.3.conv.weight", "blocks.3.conv.bias", "blocks.3.norm.weight", "blocks.3.norm.bias", "head.bias"}),
    ],
)  # fmt: skip
def test_only_the_chosen_parameters_move(name, changes, expected):
    learner, batch = conv_learner(fewstep.preset(name, **changes)), images()
    assert set(learner.adapted) == expected
    adapted = learner.adapt(batch.support_x[0], batch.support_y[0]).parameters
    moved = {n for n, p in learner.model.named_parameters() if not torch.equal(adapted[n], p)}
    assert moved <= expected
    # A convolution's bias in front of a batch norm has no gradient, so it need not move.
    assert moved >= {n for n in expected if not n.endswith("conv.bias")}
    assert set(learner.meta_gradient(batch).gradients) == {f"model.{n}" for n in CONVS | HEAD | NORMS}


def test_a_pattern_that_matches_nothing():
    with pytest.raises(fewstep.BadInput, match="no trainable parameter like that"):
        conv_learner(fewstep.preset("maml", adapted=Matching(("encoder.*",))))


def test_meta_sgd_learns_a_rate_for_every_scalar():
    learner = fewstep.Learner(Conv4(ways=3, filters=3, image_size=16), fewstep.preset("meta-sgd"))
    rates = {n: p for n, p in learner.meta_parameters().items() if n.startswith("rates.")}
    assert {n[6:] for n in rates} == CONVS | HEAD
    assert all(p.shape == learner.model.get_parameter(n[6:]).shape for n, p in rates.items())
    assert all(((p >= 0.005) & (p <= 0.1)).all() for p in rates.values())
