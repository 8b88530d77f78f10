"""Presets: published values, differences, switches, records."""

import json

import pytest
import torch

import fewstep
from fewstep.methods import (
    PRESETS,
    Annealed,
    Constant,
    Cosine,
    FirstThenSecond,
    Norm,
    PerLayerPerStep,
    SecondOrder,
    Sgd,
    differences,
    from_json,
    preset,
    to_json,
)


def test_maml_plus_plus_of_the_paper():
    method = preset("maml++")
    assert method.steps == 5
    assert method.rule == PerLayerPerStep(0.1)
    assert method.order == FirstThenSecond(50 / 150, levels=150)
    assert method.step_weights == Annealed(15 / 150, floor=0.03, levels=150)
    assert method.norm == Norm("per_step", "batch")
    assert method.outer.rate == Cosine(1e-3, 1e-5, levels=150)
    assert method.outer.betas == (0.9, 0.99)
    assert method.outer.clamp is None
    assert (method.recipe.epochs, method.recipe.iterations, method.recipe.tasks, method.recipe.ensemble) == (
        150,
        500,
        16,
        3,
    )
    assert preset("maml++", setting="mini_imagenet").recipe.tasks == 4
    assert preset("maml++", setting="mini_imagenet", shots=5).recipe.tasks == 2
    assert preset("maml++", setting="mini_imagenet").outer.rate == Cosine(1e-3, 1e-5, levels=150)


def test_maml_plus_plus_as_released():
    method = preset("maml++-released")
    assert method.order == SecondOrder()
    assert method.step_weights == Annealed(10 / 100, floor=0.03, levels=100)
    assert method.outer.rate == Cosine(1e-3, 1e-5, levels=100)
    assert method.outer.betas == (0.9, 0.999)
    assert (method.recipe.epochs, method.recipe.iterations, method.recipe.tasks, method.recipe.ensemble) == (
        100,
        500,
        8,
        5,
    )
    mini = preset("maml++-released", setting="mini_imagenet")
    assert mini.step_weights == Annealed(15 / 100, floor=0.03, levels=100)
    assert mini.outer.rate == Constant(1e-3)
    assert mini.outer.clamp == 10.0
    assert mini.recipe.tasks == 2


def test_maml_in_its_settings():
    assert preset("maml").rule == Sgd(0.1)
    assert preset("maml", setting="sinusoid").rule == Sgd(0.01)
    assert preset("maml", setting="sinusoid").steps == 1
    mini = preset("maml", setting="mini_imagenet")
    assert mini.rule == Sgd(0.05)  # 0.01 on the sum over five ways
    assert mini.outer.clamp == 10.0
    assert differences(preset("fomaml"), preset("maml")).keys() == {"order"}


SIX = {
    "MSL": {"step_weights": Annealed(15 / 150, levels=150)},
    "DA": {"order": FirstThenSecond(50 / 150, levels=150)},
    "BNRS": {"norm__statistics": "running"},
    "BNWB": {"norm__affine": "per_step"},
    "LSLR": {"rule": PerLayerPerStep(0.1)},
    "CA": {"outer__rate": Cosine(1e-3, 1e-5, levels=150)},
}


@pytest.mark.parametrize("change", SIX)
def test_each_change_alone_on_maml_and_off_from_maml_plus_plus(change):
    ((field, value),) = SIX[change].items()
    alone = preset("maml", **SIX[change])
    assert differences(alone, preset("maml")).keys() == {field}
    whole = preset("maml++", norm__statistics="running")  # the paper's text: all six on
    assert differences(whole, preset("maml"))[field][0] == value
    off = whole.replace(**{field: differences(whole, preset("maml"))[field][1]})
    assert field not in differences(off, preset("maml"))
    assert len(differences(off, preset("maml"))) == len(differences(whole, preset("maml"))) - 1


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("setting", ["omniglot", "mini_imagenet", "sinusoid"])
def test_records_survive_json(name, setting):
    method = preset(name, setting=setting)
    assert from_json(json.loads(json.dumps(to_json(method)))) == method
    assert method.name == name


@pytest.mark.parametrize("name", PRESETS)
def test_docstrings_hold_what_the_command_line_prints(name):
    text = PRESETS[name].__doc__
    assert "Paper: " in text
    assert "Differences" in text
    assert "θ" in text


def test_unknown_names_are_errors_that_name_the_nearest():
    with pytest.raises(fewstep.BadInput, match=r"unknown preset 'mamlpp'; did you mean 'maml"):
        preset("mamlpp")
    with pytest.raises(fewstep.BadInput, match=r"unknown field of Method 'step'; did you mean 'steps'"):
        preset("maml", step=3)
    with pytest.raises(fewstep.BadInput, match=r"unknown field of Norm 'afine'; did you mean 'affine'"):
        preset("maml", norm__afine="per_step")
    with pytest.raises(fewstep.BadInput, match=r"unknown norm.statistics 'runing'; did you mean 'running'"):
        preset("maml", norm__statistics="runing")
    with pytest.raises(fewstep.BadInput, match=r"unknown setting 'omniglt'; did you mean 'omniglot'"):
        preset("maml", setting="omniglt")
    with pytest.raises(fewstep.BadInput, match=r"unknown part 'Sdg'; did you mean 'Sgd'"):
        from_json({**to_json(preset("maml")), "rule": {"part": "Sdg"}})
    with pytest.raises(fewstep.BadInput, match=r"unknown field of Method 'stpes'; did you mean 'steps'"):
        from_json({"stpes": 3})
    with pytest.raises(fewstep.BadInput, match=r"steps is -1"):
        preset("maml", steps=-1)


@pytest.mark.parametrize("name", PRESETS)
def test_adapting_an_untrained_network_to_sinusoids_does_not_diverge(name):
    """Rates that suit images are too high for regression."""
    torch.manual_seed(0)
    model = fewstep.models.MLP(1, 1, (40,))
    learner = fewstep.Learner(model, preset(name, setting="sinusoid"), torch.nn.functional.mse_loss)
    score = fewstep.evaluate(learner, fewstep.sinusoid(), count=100)
    assert score.by_step[-1] < 10 * score.by_step[0]
