"""Options become parts of the method; what older runs recorded still reads."""

import json

import pytest

import fewstep
from fewstep.methods import (
    All,
    AllButNorm,
    Annealed,
    Body,
    Constant,
    Cosine,
    FirstThenSecond,
    Head,
    PerLayerPerStep,
    Sharpness,
    differences,
)
from fewstep.models import ResNet12
from fewstep.training.experiment import Experiment
from fewstep.training.run import differing


@pytest.mark.parametrize(
    ("preset", "options", "path", "value"),
    [
        ("maml", {"adapted": "all"}, "adapted", All()),
        ("anil", {"adapted": "all-but-norm"}, "adapted", AllButNorm()),
        ("maml", {"adapted": "head"}, "adapted", Head()),
        ("maml", {"adapted": "body"}, "adapted", Body()),
        ("maml", {"inner_radius": 0.1}, "sharpness__inner", 0.1),
        ("sharp-maml-low", {"inner_radius": 0.0}, "sharpness__inner", 0.0),
        ("maml", {"outer_radius": 0.2}, "sharpness__outer", 0.2),
        ("maml", {"adaptive": True}, "sharpness__adaptive", True),
        ("maml", {"detached": True}, "sharpness__detached", True),
        ("maml", {"outer_rate": 0.01}, "outer__rate", Constant(0.01)),
        ("maml++", {"outer_rate": 0.01}, "outer__rate", Cosine(0.01, 1e-5, levels=150)),
        ("maml", {"schedule": "cosine", "outer_rate": 0.01}, "outer__rate", Cosine(0.01, 1e-5, levels=150)),
        ("maml", {"set": ("norm.momentum=0.2",)}, "norm__momentum", 0.2),
        ("maml", {"steps": 3, "set": ("steps=2", "steps=4")}, "steps", 4),
    ],
)
def test_an_option_changes_its_part_and_no_other(preset, options, path, value):
    changed = differences(Experiment(preset, **options).method(), fewstep.preset(preset))
    assert {p: new for p, (new, _) in changed.items()} == {path: value}


def test_false_and_zero_are_choices_too():
    method = Experiment("sharp-maml++", inner_radius=0.0, outer_radius=0.0, adaptive=False, detached=False).method()
    assert method.sharpness == Sharpness()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"outer_rate": -1.0}, "rates must be finite numbers from 0 up"),
        ({"outer_rate": float("nan")}, "rates must be finite numbers"),
        ({"schedule": "cosine", "outer_rate": float("inf")}, "rates must be finite numbers"),
        ({"inner_radius": -0.1}, "must not be negative"),
        ({"outer_radius": float("nan")}, "must not be negative"),
    ],
)
def test_values_out_of_range(options, message):
    with pytest.raises(fewstep.BadInput, match=message):
        Experiment("maml", **options).method()


def test_an_unknown_choice_names_the_nearest():
    with pytest.raises(fewstep.BadInput, match="unknown adapted 'heads'; did you mean 'head'"):
        Experiment("maml", adapted="heads")


def test_a_record_gives_the_experiment_back():
    experiment = Experiment(
        "maml++", seed=3, ways=4, data_dir="elsewhere", set=("norm.momentum=0.2", "order=FirstOrder")
    )
    record = json.loads(json.dumps(experiment.to_json()))
    assert record["data_dir"] is None
    assert Experiment.from_json(record) == Experiment("maml++", seed=3, ways=4, set=experiment.set)


def test_a_run_from_before_an_option_existed_is_the_same_run():
    new = ("adapted", "inner_radius", "outer_radius", "adaptive", "detached", "outer_rate", "set", "model")
    record = {k: v for k, v in Experiment("maml").to_json().items() if k not in new}
    assert Experiment.from_json(record) == Experiment("maml")
    assert differing(Experiment("maml").to_json(), record) == []  # so that training it goes on
    assert differing(Experiment("maml", set=("steps=1",)).to_json(), record) == [("set", ["steps=1"], None)]


def test_the_model_is_a_choice():
    experiment = Experiment("maml", model="resnet12", filters=3, ways=4)
    record = json.loads(json.dumps(experiment.to_json()))
    assert record["model"] == "resnet12"
    assert Experiment.from_json(record) == experiment
    learner, tasks = experiment.build(fewstep.strokes(classes=(5, 5, 5)))
    assert isinstance(learner.model, ResNet12)
    widths = [block.convs[0].out_channels for block in learner.model.blocks]
    assert widths == [3, 6, 12, 24]
    assert learner.meta_gradient(tasks.train([0, 1])).query_logits.shape == (2, 4, 4)
    assert differing(record, Experiment("maml", filters=3, ways=4).to_json()) == [("model", "resnet12", None)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "resnet"}, "unknown model 'resnet'; did you mean 'resnet12'"),
        ({"model": "resnet12", "data": "sinusoid"}, "--model is an option of images"),
        ({"model": "resnet12", "downsample": "stride"}, "--downsample stride is an option of conv4"),
    ],
)
def test_models_that_make_no_sense(options, message):
    with pytest.raises(fewstep.BadInput, match=message):
        Experiment("maml", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"outer_rate": float("nan")}, "^--outer-rate nan: Constant: rates must be finite"),
        ({"schedule": "cosine", "outer_rate": -1.0}, "^--outer-rate -1.0: Cosine: rates must be finite"),
        ({"inner_radius": -1.0}, "^--inner-radius -1.0: sharpness radii are -1.0 and 0.0"),
        ({"inner_rate": float("inf")}, "^--inner-rate inf: Sgd: a rate must be a finite number"),
        ({"set": ("outer.rate=Cosine", "outer.rate.levels=0")}, "^--set outer.rate.levels=0: Cosine: "),
        ({"adapted": "matching"}, "^--adapted matching: Matching needs patterns; write it as JSON"),
        ({"inner_rate": 0.1, "rule": "per-parameter"}, "^--inner-rate 0.1: unknown field of PerParameter 'rate'"),
    ],
)
def test_an_error_names_the_option_as_it_is_typed(options, message):
    with pytest.raises(fewstep.BadInput, match=message):
        Experiment("maml", **options).method()


# Of version 0.1, for `fewstep train maml --rule per-layer-per-step --order annealed --inner-rate 0.2`.
OLD = {
    "split": None, "rotations": None, "invert": None, "resize": None, "image_size": 28, "downsample": "max_pool",
    "data": "strokes", "data_dir": None, "ways": 5, "shots": None, "queries": None, "evaluation_queries": None,
    "model": None, "filters": 64, "precision": None, "steps": None, "inner_rate": 0.2, "rule": "per-layer-per-step",
    "adapted": None, "order": "annealed", "step_weights": None, "affine": None, "statistics": None,
    "inner_radius": None, "outer_radius": None, "adaptive": None, "detached": None, "outer_rate": None,
    "schedule": None, "clamp": None, "set": None, "preset": "maml", "seed": 0,
}  # fmt: skip


def test_the_record_of_version_0_1_is_the_record_of_now():
    experiment = Experiment("maml", rule="per-layer-per-step", order="annealed", inner_rate=0.2)
    assert json.loads(json.dumps(experiment.to_json())) == OLD
    assert Experiment.from_json(OLD) == experiment
    method = fewstep.preset("maml", rule=PerLayerPerStep(0.2), order=FirstThenSecond(until=50 / 150, levels=150))
    assert experiment.method() == method


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"wayz": 5}, "unknown field of Experiment 'wayz'; did you mean 'ways'"),
        ({"ways": "5"}, "ways is '5'; it must be a whole number"),
        ({"order": 3}, "order is 3"),
        ({"set": "steps=1"}, "set is 'steps=1'"),
    ],
)
def test_a_damaged_record_is_named(damage, message):
    with pytest.raises(fewstep.BadInput, match=message):
        Experiment.from_json({**OLD, **damage})


@pytest.mark.parametrize("preset", ["maml", "maml++", "maml++-released", "reptile"])
@pytest.mark.parametrize(("option", "word"), [("order", "annealed"), ("step_weights", "annealed"),
                                              ("schedule", "cosine"), ("rule", "per-layer-per-step")])  # fmt: skip
def test_a_choice_that_the_preset_has_made_keeps_its_numbers(preset, option, word):
    method, before = Experiment(preset, **{option: word}).method(), fewstep.preset(preset)
    chosen = {"order": FirstThenSecond(levels=150), "step_weights": Annealed(levels=150),
              "schedule": Cosine(levels=150), "rule": PerLayerPerStep(0.1)}[option]  # fmt: skip
    for was, now in ((before.order, method.order), (before.step_weights, method.step_weights),
                     (before.outer.rate, method.outer.rate), (before.rule, method.rule)):  # fmt: skip
        assert now == (was if type(was) is type(now) else chosen)
