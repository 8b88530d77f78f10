"""Names of folders as a person may choose them, and options that would change nothing."""

import shlex

import pytest

from fewstep import Run
from fewstep.cli.main import main

TINY = ["--data", "sinusoid", "--shots", "4", "--epochs", "1", "--iterations", "2", "--tasks", "2",
        "--validation-tasks", "4", "--threads", "1"]  # fmt: skip
NAME = "[red]x[/bold] :smile: `y`$(z)"


def here(*arguments):
    """The command line in this process; its exit status."""
    with pytest.raises(SystemExit) as stopped:
        main([*map(str, arguments)])
    return stopped.value.code


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / NAME
    assert here("train", "maml", *TINY, "--directory", directory) == 0
    return directory


def test_a_name_is_printed_as_it_is(tmp_path, capfd):
    directory = tmp_path / NAME
    assert here("train", "maml", *TINY, "--directory", directory) == 0
    output = capfd.readouterr().out
    assert output.startswith(f"{directory}: maml on sinusoid")
    assert f"run  {directory}\npage {directory}/report.html\n" in output
    (following,) = [line for line in output.splitlines() if line.startswith("next ")]
    assert shlex.split(following)[-2:] == ["evaluate", str(directory)]  # pasted, it reads that run and runs nothing
    assert here("train", "maml", *TINY, "--directory", directory) == 0
    assert f"{directory} is finished: nothing to train" in capfd.readouterr().out


def test_evaluate_and_compare_print_it_as_it_is(run, tmp_path, capfd):
    assert here("evaluate", run, "--count", 3) == 0
    assert f"run  {run}\npage {run}/report.html\n" in capfd.readouterr().out
    assert here("compare", run, "--count", 3, "--directory", tmp_path / "[red]c[/bold]") == 0
    output = capfd.readouterr().out
    assert f"\n{run} *" in output
    assert f"rows  {tmp_path}/[red]c[/bold]/comparison.csv" in output


@pytest.mark.parametrize(("name", "shown"), [("a\x1b[31mb", r"'a\x1b[31mb'"), ("a\udcff", r"'a\udcff'")])
def test_a_name_that_cannot_be_printed_is_refused_before_training(tmp_path, capfd, monkeypatch, name, shown):
    monkeypatch.chdir(tmp_path)
    assert here("train", "maml", *TINY, "--directory", name) == 2
    assert f"--directory {shown} holds characters that cannot be printed" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", [["--ways", 7], ["--filters", 7], ["--image-size", 7], ["--downsample", "stride"]])
def test_options_of_images_are_refused_where_there_are_none(tmp_path, capfd, option):
    for verb in (["train", "maml"], ["compare", "maml"], ["ablate", "fomaml"]):
        assert here(*verb, *TINY, *option, "--directory", tmp_path / "r") == 2
        assert f"{option[0]} is an option of images; sinusoid has none" in capfd.readouterr().err


def test_a_run_that_recorded_such_an_option_goes_on(tmp_path, monkeypatch):
    from fewstep.training.experiment import Experiment

    with monkeypatch.context() as before:
        before.setattr(Experiment, "refuse_unused", lambda self: None)  # noqa: ARG005
        assert here("train", "maml", *TINY, "--ways", 7, "--directory", tmp_path / "r") == 0
    assert Run(tmp_path / "r").config["experiment"]["ways"] == 7
    assert here("train", "maml", *TINY, "--ways", 7, "--directory", tmp_path / "r") == 0
    assert here("evaluate", tmp_path / "r", "--count", 2) == 0


@pytest.mark.parametrize("option", [["--filters", 7], ["--inner-rate", "-inf"], ["--epochs", 2], ["--set", "steps=1"]])
def test_options_of_training_are_refused_where_nothing_is_trained(run, tmp_path, capfd, option):
    assert here("compare", run, "--count", 3, *option, "--directory", tmp_path / "c") == 2
    assert f"{option[0]} is an option of training, but no preset is given to train" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--outer-rate", "nan"], "fewstep: --outer-rate nan: Constant: rates must be finite numbers"),
        (["--outer-rate=-1"], "fewstep: --outer-rate -1.0: Constant: rates must be finite numbers"),
        (["--inner-radius", "-1"], "fewstep: --inner-radius -1.0: sharpness radii are -1.0 and 0.0"),
        (["--adapted", "heads"], "fewstep: --adapted heads: unknown adapted 'heads'; did you mean 'head'?"),
        (["--set", "outer.rate.rate=-1"], "fewstep: --set outer.rate.rate=-1: Constant: rates must be"),
    ],
)
def test_an_error_names_the_option_as_it_is_typed(tmp_path, capfd, arguments, message):
    assert here("train", "maml", *TINY, *arguments, "--directory", tmp_path / "r") == 2
    assert capfd.readouterr().err.startswith(message)
