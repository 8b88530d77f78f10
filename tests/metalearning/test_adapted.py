"""What the inner loop updates."""

import pytest
import torch
from observers import Calls
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


@pytest.mark.parametrize("chosen", ["blocks.3.*", "blocks.1.norm.*", "blocks.0.conv.weight"])
@pytest.mark.parametrize("name", ["maml", "fomaml"])
def test_adapting_a_part_gives_the_gradient_of_torchs_operators(name, chosen):
    """With 8 filters and double numbers the kernels, where they are, take all blocks at once."""
    learner = conv_learner(fewstep.preset(name, steps=2, adapted=Matching((chosen, "head.*"))), filters=8)
    batch = images()
    mine = learner.meta_gradient(batch).gradients
    with Calls():
        torch.testing.assert_close(learner.meta_gradient(batch).gradients, mine, rtol=1e-9, atol=1e-11)


def test_a_pattern_that_matches_nothing():
    with pytest.raises(fewstep.BadInput, match="no trainable parameter like that"):
        conv_learner(fewstep.preset("maml", adapted=Matching(("encoder.*",))))


def test_meta_sgd_learns_a_rate_for_every_scalar():
    learner = fewstep.Learner(Conv4(ways=3, filters=3, image_size=16), fewstep.preset("meta-sgd"))
    rates = {n: p for n, p in learner.meta_parameters().items() if n.startswith("rates.")}
    assert {n[6:] for n in rates} == CONVS | HEAD
    assert all(p.shape == learner.model.get_parameter(n[6:]).shape for n, p in rates.items())
    assert all(((p >= 0.005) & (p <= 0.1)).all() for p in rates.values())
