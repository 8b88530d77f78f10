"""A new part is one dataclass in one file: options, JSON, help and messages find it there."""

import json
from dataclasses import dataclass, fields

import pytest
import torch

import fewstep
from fewstep.cli.options import help_line
from fewstep.methods import as_change, changed, differences, from_json, preset, to_json
from fewstep.methods.records import PARTS, arguments, fits, parts_of
from fewstep.methods.rules import Rule
from fewstep.training.choices import Choices
from fewstep.training.experiment import Experiment


@pytest.fixture
def momentum():
    @dataclass(frozen=True)
    class HeavyBall(Rule):
        """Descent with a fixed share of the last step.

        Arguments:
            rate: how far a step goes.
            share: of the last step.
        """

        rate: float = 0.1
        share: float = 0.9
        names: tuple[str, ...] = ("a", "b")

        def rates(self, fast, steps):  # noqa: ARG002
            return {}

        def update(self, fast, gradients, rates, step):  # noqa: ARG002
            return {name: weight - self.rate * gradients[name] for name, weight in fast.items()}

    yield HeavyBall
    del PARTS["HeavyBall"]


def test_a_new_rule_is_an_option_and_survives_json(momentum):
    maml = preset("maml")
    assert changed(maml, "rule=HeavyBall").rule == momentum()
    method = changed(changed(maml, "rule=HeavyBall"), "rule.share=0.5")
    assert method.rule == momentum(share=0.5)
    assert from_json(json.loads(json.dumps(to_json(method)))) == method
    assert changed(maml, as_change("rule", method.rule)) == method
    assert differences(method, maml) == {"rule": (momentum(share=0.5), maml.rule)}
    with pytest.raises(fewstep.BadInput, match=r"known: Sgd, PerParameter, PerLayerPerStep.*, HeavyBall"):
        changed(maml, "rule=FirstOrder")
    with pytest.raises(fewstep.BadInput, match="unknown field of HeavyBall 'shar'; did you mean 'share'"):
        changed(method, "rule.shar=1")


def test_its_word_is_one_of_the_short_option(momentum):
    """The rate that was there stays, as with every exchange of a rule."""
    assert Experiment("maml", rule="heavy-ball").method().rule == momentum(rate=0.1)
    assert Experiment("maml", rule="heavy-ball", inner_rate=0.3).method().rule == momentum(rate=0.3)
    (rule,) = (f for f in fields(Choices) if f.name == "rule")
    assert help_line(Choices, rule).startswith("sgd, per-parameter, per-layer-per-step (LSLR)")


def test_a_new_rule_trains(momentum):
    learner = fewstep.Learner(torch.nn.Linear(2, 2), preset("maml", rule=momentum(), steps=1))
    x, y = torch.randn(1, 4, 2), torch.tensor([[0, 1, 0, 1]])
    assert learner.meta_gradient(fewstep.TaskBatch(x, y, x, y)).loss.isfinite()


def test_a_name_that_another_module_has_is_refused():
    with pytest.raises(fewstep.BadInput, match=r"fewstep.methods.rules has a part Sgd; give this one another name"):

        class Sgd(Rule): ...

    assert PARTS["Sgd"] is fewstep.methods.Sgd


def test_every_family_lists_its_parts():
    names = {family.__name__: [part.__name__ for part in parts_of(family).values()] for family in PARTS.values()}
    assert names["MetaLoss"] == ["QueryLoss", "Distance"]
    assert names["Adapted"] == ["All", "AllButNorm", "Head", "Body", "Matching"]
    assert all(not parts for name, parts in names.items() if name in ("Norm", "Cosine"))


def test_every_field_of_a_part_is_documented_or_plain():
    """A short option takes its help from there."""
    for f in (f for f in fields(Choices) if f.metadata):
        line = help_line(Choices, f)
        assert line[0].isupper() or ", " in line
        assert line.endswith((".", "…"))
        assert len(line) <= 54, line


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (1, float, True), (True, float, False), (True, int, False), (1.0, int, False), (None, int | None, True),
        ("a", str, True), (("a", "b"), tuple[str, ...], True), (("a", 1), tuple[str, ...], False),
        ((0.9, 1), tuple[float, float], True), ((0.9,), tuple[float, float], False), (["a"], tuple[str, ...], False),
    ],
)  # fmt: skip
def test_what_a_field_may_hold(value, kind, expected):
    assert fits(value, kind) is expected


def test_arguments_of_a_docstring():
    found = arguments(fewstep.methods.Annealed)
    assert set(found) > {"over", "floor", "keep_floor", "levels"}
    assert arguments(fewstep.methods.PerParameter)["high"] == "every rate starts uniformly between them."
    assert found["keep_floor"].endswith("instead of the last step alone.")


def test_a_record_that_is_damaged_is_named():
    record = to_json(preset("maml"))
    for damage, message in (
        ({"steps": "5"}, "steps is '5'; it must be a whole number"),
        ({"rule": "Sgd"}, "rule is 'Sgd'; it must be"),
        ({"rule": {"part": "Rule"}}, "unknown part 'Rule'"),
        ({"outer": {**record["outer"], "betas": [0.9]}}, r"betas is \(0.9,\)"),
        ({"adapted": {"part": "Matching"}}, "is no Matching: it lacks patterns"),
    ):
        with pytest.raises(fewstep.BadInput, match=message):
            from_json({**record, **damage})
