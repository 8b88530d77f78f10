"""Options: one definition, and the way from records to arguments and back."""

import tomllib

import pytest
import tyro
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.cli.main import VERBS
from fewstep.cli.options import Budget, as_arguments, check_options, option_names
from fewstep.cli.overlay import with_config
from fewstep.cli.train import Train
from fewstep.errors import BadInput
from fewstep.training.choices import Choices, Images

RECORDS = st.builds(
    Choices,
    data=st.sampled_from(["strokes", "sinusoid"]),
    data_dir=st.none() | st.just("a folder"),
    ways=st.integers(2, 9),
    model=st.sampled_from(["conv4", "resnet12"]),
    inner_rate=st.none() | st.floats(-2, 2),
    order=st.sampled_from([None, "first", "annealed"]),
    adapted=st.sampled_from([None, "all-but-norm", "body"]),
    adaptive=st.sampled_from([None, True, False]),
    set=st.sampled_from([(), ("steps=3",), ("name=with blanks", 'rule={"part": "Sgd", "rate": 0.5}')]),
)


@settings(deadline=None, max_examples=20)
@given(RECORDS)
def test_arguments_say_all_that_a_record_holds(choices):
    images, budget = (
        Images(split="lake", invert=False, downsample="stride"),
        Budget(epochs=3, strategy="loop", compile=True),
    )
    words = ["maml", *as_arguments(choices, images, budget)]
    parsed = tyro.cli(Train, args=words)
    assert (parsed.choices, parsed.images, parsed.budget) == (choices, images, budget)


@pytest.mark.parametrize("verb", ["train", "compare", "ablate"])
def test_the_verbs_that_train_share_one_definition(verb):
    shared = {name for kind in (Choices, Images, Budget) for name in option_names(kind)}
    assert shared <= set(option_names(VERBS[verb]))
    assert {"outer_rate", "adapted", "inner_radius", "outer_radius", "adaptive", "detached", "set"} <= shared
    assert len(option_names(VERBS[verb])) == len(set(option_names(VERBS[verb])))


@pytest.mark.parametrize("verb", list(VERBS))
def test_unknown_options_name_the_nearest(verb):
    name = f"--{option_names(VERBS[verb])[-1].replace('_', '-')}"
    check_options(verb, VERBS[verb], [name, f"{name}=3", name.replace("-", "_").replace("__", "--"), "--help", "-h"])
    with pytest.raises(BadInput, match=f"{verb} has no option {name}z; did you mean {name}"):
        check_options(verb, VERBS[verb], [f"{name}z", "3"])


def test_a_switch_is_known_where_it_is_an_option():
    check_options("train", VERBS["train"], ["--compile", "--no-compile"])
    for flag in ("--compile", "--no-compile"):
        with pytest.raises(BadInput, match=f"evaluate has no option {flag}"):
            check_options("evaluate", VERBS["evaluate"], [flag])


@pytest.mark.parametrize(
    ("written", "given", "expected"),
    [
        ("entries = ['maml', 'fomaml']\nseeds = [0, 1]\nepochs = 2", [], "maml fomaml --seeds 0 1 --epochs 2"),
        ("entries = ['maml']\nseeds = [0, 1]", ["anil"], "--seeds 0 1 --config FILE anil"),
        ("entries = ['maml']\nseeds = [0, 1]", ["--seeds", "2", "3"], "maml --seeds 0 1 --config FILE --seeds 2 3"),
        ("set = ['steps=1', 'norm.affine=shared']", ["anil"], "--set steps=1 --set norm.affine=shared"),
        ("compile = true\nepochs = 2", ["anil"], "compare --compile --epochs 2 --config FILE anil"),
        ("compile = false\nepochs = 2", ["anil"], "compare --epochs 2 --config FILE anil"),
        ("entries = ['maml']", ["--compile", "anil"], "compare --config FILE --compile anil"),
    ],
)
def test_a_config_file_may_list_what_takes_several(tmp_path, written, given, expected):
    path = tmp_path / "c.toml"
    path.write_text(written)
    assert tomllib.loads(written)
    laid = with_config(["compare", *given, "--config", str(path)], VERBS)
    assert expected.replace("FILE", str(path)) in " ".join(laid)


def test_laid_seeds_do_not_swallow_what_follows(tmp_path):
    from fewstep.cli.compare import Compare

    path = tmp_path / "c.toml"
    path.write_text("seeds = [4, 5]")
    laid = with_config(["compare", "maml", "anil", "--config", str(path)], VERBS)
    parsed = tyro.cli(Compare, args=laid[1:])
    assert (parsed.entries, parsed.measuring.seeds) == (("maml", "anil"), (4, 5))


def test_a_switch_in_a_file_is_on_or_off(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text("compile = 'yes'")
    with pytest.raises(BadInput, match="compile is 'yes'; it must be true or false"):
        with_config(["train", "maml", "--config", str(path)], VERBS)


def test_other_lists_are_refused(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text("ways = [3, 4]")
    with pytest.raises(BadInput, match="ways is a table or list"):
        with_config(["compare", "--config", str(path)], VERBS)
