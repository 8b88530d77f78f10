"""Options become parts of the method; what older runs recorded still reads."""

import json
from dataclasses import fields

import pytest

import fewstep
from fewstep.methods import All, AllButNorm, Body, Constant, Cosine, Head, Sharpness, differences
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


def test_every_field_has_a_line_of_help_that_fits():
    """`train --help` is made of them, at 80 columns."""
    import inspect

    from fewstep.training.choices import Choices, Images

    for kind in (Choices, Images):
        source = inspect.getsource(kind)
        for f in fields(kind):
            line = source.split(f"    {f.name}: ")[1].splitlines()[1].strip()
            assert line.startswith('"""'), f.name
            assert len(line) <= 60, f.name
