"""Ablation: what lies between two methods, one choice at a time, and the text that carries a change."""

import itertools

import pytest

import fewstep
from fewstep.methods import All, FirstOrder, Norm, ablation, as_change, changed, differences
from fewstep.methods.presets import PRESETS

MAML = fewstep.preset("maml")
SETTINGS = ["omniglot", "mini_imagenet", "sinusoid"]


def test_the_rows_of_maml_plus_plus():
    variants, equal = ablation(fewstep.preset("maml++"), MAML)
    parts = ["rule (LSLR)", "order (DA)", "step_weights (MSL)", "norm.affine (BNWB)", "outer.rate (CA)", "outer.betas"]
    assert [v.name for v in variants] == [
        "maml++", *(f"maml++ without {p}" for p in parts), *(f"maml with {p}" for p in parts), "maml",
    ]  # fmt: skip
    assert equal == {}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", sorted(set(PRESETS) - {"maml"}))
def test_every_row_is_one_choice_away_from_its_start(name, setting):
    method, base = (fewstep.preset(n, setting=setting) for n in (name, "maml"))
    if not differences(method, base):
        pytest.skip("the two do not differ in this setting")
    variants, equal = ablation(method, base)
    assert (variants[0].method, variants[-1].method) == (method, base)
    for variant in variants[1:-1]:
        start, other = (base, method) if variant.of_base else (method, base)
        assert list(differences(variant.method, start)) == [variant.path]
        assert variant.path not in differences(variant.method, other)
    for one, two in itertools.combinations(variants, 2):
        assert differences(one.method, two.method), (one.name, two.name)
    assert len(variants) + len(equal) == 2 + 2 * len(differences(method, base))
    assert set(equal.values()) <= {v.name for v in variants}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", sorted(set(PRESETS) - {"maml"}))
def test_the_text_of_a_change_gives_the_variant_back(name, setting):
    method, base = (fewstep.preset(n, setting=setting) for n in (name, "maml"))
    if not differences(method, base):
        pytest.skip("the two do not differ in this setting")
    for variant in ablation(method, base)[0][1:-1]:
        start = base if variant.of_base else method
        assert changed(start, as_change(variant.path, variant.value)) == variant.method


def test_two_methods_that_do_not_differ():
    with pytest.raises(fewstep.BadInput, match="maml does not differ from maml: there is nothing to ablate"):
        ablation(MAML, MAML)


@pytest.mark.parametrize(
    ("change", "path", "value"),
    [
        ("steps=3", "steps", 3),
        ("norm.statistics=support", "norm.statistics", "support"),
        ("norm.momentum=1", "norm.momentum", 1),
        ("outer.clamp=0.5", "outer.clamp", 0.5),
        ("outer.clamp=null", "outer.clamp", None),
        ("outer.clamp=None", "outer.clamp", None),
        ("sharpness.adaptive=True", "sharpness.adaptive", True),
        ("sharpness.adaptive=true", "sharpness.adaptive", True),
        ("outer.betas=[0.5, 0.6]", "outer.betas", (0.5, 0.6)),
        ("adapted=All", "adapted", All()),
        ('norm={"part": "Norm", "affine": "per_step"}', "norm", Norm(affine="per_step")),
        ("name=a name", "name", "a name"),
        ("name=first", "name", "first"),
        ("order=first", "order", FirstOrder()),
        ("recipe.epochs=2", "recipe.epochs", 2),
    ],
)
def test_changes(change, path, value):
    method = changed(fewstep.preset("maml", setting="mini_imagenet"), change)
    for part in path.split("."):
        method = getattr(method, part)
    assert method == value
    assert type(method) is type(value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("steps", "--set steps: write FIELD=VALUE, as in norm.affine=per_step"),
        ("stepz=3", "unknown field of Method 'stepz'; did you mean 'steps'"),
        ("norm.affin=shared", "unknown field of Norm 'affin'; did you mean 'affine'"),
        ("steps.more=3", "unknown field of int 'more'"),
        ("steps=many", "steps cannot be many; without it, it is 5"),
        ("steps=1.5", "steps cannot be 1.5"),
        ("steps=true", "steps cannot be true"),
        ("steps=-1", "steps is -1"),
        ("norm.affine=shred", "norm.affine cannot be shred"),
        ("outer.clamp=0", "outer.clamp is 0"),
        ("outer.betas=[0.5]", r"outer.betas cannot be \[0.5\]"),
        ("order=Sgd", "cannot be Sgd; without it, it is SecondOrder; known: SecondOrder, FirstOrder, FirstThenSecond"),
        ("order=frist", "unknown order 'frist'; did you mean 'first'"),
        ('rule={"part": "Sdg"}', "unknown part 'Sdg'; did you mean 'Sgd'"),
        ('rule={"part": "Sgd", "speed": 1}', "unknown field of Sgd 'speed'"),
        ('rule={"part": "Sgd", "rate": "x"}', "rate is 'x'; it must be a number"),
        ("adapted=Matching", "is no Matching: it lacks patterns"),
        ("adapted=matching", "Matching needs patterns"),
        ("outer.rate.rate=-1", "rates must be finite numbers from 0 up"),
    ],
)  # fmt: skip
def test_changes_that_make_no_sense_are_one_sentence(change, message):
    with pytest.raises(fewstep.BadInput, match=message):
        changed(MAML, change)
