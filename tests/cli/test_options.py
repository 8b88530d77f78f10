"""Options: one definition, and the way from records to arguments and back."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.cli.main import VERBS, parsed
from fewstep.cli.options import Budget, as_arguments, check_options, option_names
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
    verb = parsed(["train", "maml", *as_arguments(choices, images, budget)])
    assert (verb.of(Choices), verb.of(Images), verb.of(Budget)) == (choices, images, budget)


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
    ("written", "given", "same"),
    [
        ("entries = ['maml', 'fomaml']\nseeds = [0, 1]\nepochs = 2", "", "maml fomaml --seeds 0 1 --epochs 2"),
        ("entries = ['maml']\nseeds = [0, 1]", "anil", "anil --seeds 0 1"),
        ("entries = ['maml']\nseeds = [0, 1]", "--seeds 2 3", "maml --seeds 2 3"),
        ("entries = 'maml'\nseeds = 4", "", "maml --seeds 4"),
        ("set = ['steps=1', 'norm.affine=shared']", "anil", "anil --set steps=1 --set norm.affine=shared"),
        ("set = 'steps=1'", "anil --set steps=2", "anil --set steps=1 --set steps=2"),
        ("compile = true\nepochs = 2", "anil", "anil --compile --epochs 2"),
        ("compile = false\nepochs = 2", "anil", "anil --epochs 2"),
        ("compile = true", "anil --no-compile", "anil"),
        ("entries = ['maml']", "--compile anil", "anil --compile"),
        ("inner-rate = 1\ndirectory = 'a folder'", "anil", "anil --inner-rate 1.0 --directory a_folder"),
        ("ways = 4", "anil --ways=3", "anil --ways 3"),
        (f"inner-rate = 1{'0' * 400}", "anil", "anil --inner-rate inf"),
    ],
)
def test_a_config_file_lies_under_the_command_line(tmp_path, written, given, same):
    path = tmp_path / "c.toml"
    path.write_text(written)
    expected = parsed(["compare", *(word.replace("_", " ") for word in same.split())])
    for config in (["--config", str(path)], [f"--config={path}"]):
        verb = parsed(["compare", *given.split(), *config])
        assert verb.config == path
        assert replace(verb, config=None) == expected


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("compile = 'yes'", "compile is 'yes'; it must be true or false"),
        ("ways = [3, 4]", "ways is a table or list"),
        ("ways = '4'", "--ways: ways is '4'; it must be a whole number"),
        ("statistics = 'runing'", "unknown statistics 'runing'; did you mean 'running'"),
        ("set = [1]", r"set is \(1,\); it must be text"),
        ("wayz = 4", "unknown key in .*: 'wayz'; did you mean 'ways'"),
        (f"epochs = {'9' * 6000}", "is not TOML: Exceeds the limit"),
        ("a = " + "[" * 5000 + "]" * 5000, "is not TOML: "),
        ("x=1\n" * 300_000, "is not TOML: it is larger than 1000000 bytes"),
        ("\udcff", "is not TOML: 'utf-8' codec"),
    ],
)
def test_a_file_that_makes_no_sense_is_one_sentence(tmp_path, written, message):
    path = tmp_path / "c.toml"
    path.write_bytes(written.encode(errors="surrogateescape"))
    with pytest.raises(BadInput, match=message):
        parsed(["compare", "maml", "--config", str(path)])


def test_a_file_without_end_is_not_read_to_its_end():
    with pytest.raises(BadInput, match="--config /dev/zero is not TOML"):
        parsed(["train", "maml", "--config", "/dev/zero"])
