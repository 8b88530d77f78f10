"""`compare` and `ablate` as a person meets them: trainings in real processes, the table, the files, the refusals."""

import csv
import json
import math
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import time

import pytest

from fewstep import Run, train
from fewstep.cli.main import main
from fewstep.methods import from_json
from fewstep.training.experiment import Experiment
from fewstep.training.interval import student

TINY = ["--data", "sinusoid", "--shots", "4", "--epochs", "1", "--iterations", "4", "--tasks", "2",
        "--validation-tasks", "4", "--threads", "1"]  # fmt: skip
COUNT = ["--count", "12"]


def command(*arguments):
    return [sys.executable, "-m", "fewstep.cli.main", *map(str, arguments)]


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80"}


def here(*arguments):
    """The command line in this process, where no process of its own is at stake; its exit status."""
    with pytest.raises(SystemExit) as stopped:
        main([*map(str, arguments)])
    return stopped.value.code


def sentence(capfd, *arguments):
    """What a user's mistake prints: one sentence, no traceback, exit status 2."""
    assert here(*arguments) == 2
    output, error = capfd.readouterr()
    assert "Traceback" not in error + output
    assert output == ""
    return error


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Two seeds of one preset, trained by `compare`, beside two runs that are taken as they are."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        taken = ["--rule", "per-layer-per-step", "--directory", folder / f"taken-s{seed}"]
        assert here("train", "maml", *TINY, "--seed", seed, *taken) == 0
    arguments = ["compare", "maml", *(folder / f"taken-s{seed}" for seed in (0, 1)), *TINY, *COUNT,
                 "--seeds", 0, 1, "--directory", folder / "c"]  # fmt: skip
    done = subprocess.run(command(*arguments), capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done
    return folder, arguments, done


def test_the_table_is_on_standard_output_and_progress_is_not(compared):
    folder, _, done = compared
    sentence, _, header, maml, taken, *rest = done.stdout.splitlines()
    assert re.search(
        r"is best: loss .* a difference of [+-]\d.\d{4} ± \d.\d{4}, (within|outside) its interval", sentence
    )
    for title in ("seeds", "loss", "over seeds", "minus maml", "training", "evaluation", "memory"):
        assert title in header
    number = r"\d+\.\d{4}"
    assert re.fullmatch(rf"maml( \*)? +0 1 +{number} ± {number} +{number} +– +\d+ s +\d+ s +\d+ MB *", maml)
    assert taken.startswith(f"{folder}/taken-s*")
    assert re.search(rf"0 1 +{number} ± {number} +{number} +[+-]{number} ± {number} +\d+ s +\d+ s +\d+ MB", taken)
    assert (" *  " in maml) != (" *  " in taken)
    assert "12 test tasks, the same for all" in done.stdout
    assert "one training each" not in done.stdout
    assert str(folder / "c" / "comparison.csv") in rest[-2]
    assert "\x1b" not in done.stdout + done.stderr
    assert "[1/2] maml, seed 0: training" in done.stderr
    assert re.search(r"\[2/2\] maml, seed 1: epoch 1, step 4/4 · validation \d.* · 0.0 min left", done.stderr)


def test_the_files_hold_all_that_the_table_is_made_of(compared):
    folder, _, _ = compared
    record = json.loads((folder / "c" / "comparison.json").read_text())
    rows = list(csv.DictReader((folder / "c" / "comparison.csv").read_text().splitlines()))
    values = []
    for entry, row in zip(record["entries"], rows, strict=True):
        runs = [run["score"]["per_task"] for run in entry["runs"]]
        assert [len(run) for run in runs] == [12, 12]
        values.append([statistics.fmean(task) for task in zip(*runs, strict=True)])
        assert float(row["value"]) == entry["value"] == pytest.approx(statistics.fmean(values[-1]))
        assert entry["interval95"] == pytest.approx(student(11) * statistics.stdev(values[-1]) / math.sqrt(12))
        assert float(row["spread"]) == pytest.approx(statistics.stdev(map(statistics.fmean, runs)))
        for run in entry["runs"]:
            assert run["peak_memory"] > 50e6
            assert 0 < run["training_seconds"] < 60
            assert run["config"]["experiment"]["preset"] == "maml"
            assert run["environment"]["torch"]
    differences = [b - a for a, b in zip(*values, strict=True)]
    assert rows[0]["difference"] == ""
    assert float(rows[1]["difference"]) == pytest.approx(statistics.fmean(differences))
    assert float(rows[1]["difference_interval95"]) == pytest.approx(
        student(11) * statistics.stdev(differences) / math.sqrt(12)
    )
    assert record["tasks"]["description"]["shots"] == 4
    assert len(record["tasks"]["fingerprint"]) == 64
    assert record["environment"]["torch"]
    assert record["headline"].startswith(next(row["name"] for row in rows if row["best"] == "True"))


def test_the_same_command_trains_nothing_again_and_prints_json_alone(compared, capfd):
    folder, arguments, _ = compared
    written = folder / "c" / "maml-s1" / "checkpoints" / "last.safetensors"
    before, whole = written.stat().st_mtime_ns, json.loads((folder / "c" / "comparison.json").read_text())
    assert here(*arguments, "--format", "json") == 0
    output, error = capfd.readouterr()
    again = json.loads(output)
    assert error == ""
    assert written.stat().st_mtime_ns == before
    for old, new in zip(whole["entries"], again["entries"], strict=True):
        assert [run["score"]["per_task"] for run in old["runs"]] == [run["score"]["per_task"] for run in new["runs"]]


@pytest.mark.parametrize("entry", [0, 1])
def test_the_recorded_command_is_the_training(compared, capfd, entry):
    folder, _, _ = compared
    record = json.loads((folder / "c" / "comparison.json").read_text())
    program, *words = shlex.split(record["entries"][entry]["runs"][1]["command"])
    assert program == "fewstep"
    assert here(*words) == 0
    assert "is finished: nothing to train" in capfd.readouterr().out


def test_runs_of_other_tasks_are_refused(compared, capfd, tmp_path):
    folder, _, _ = compared
    run = folder / "taken-s0"
    assert "taken-s0 has other test tasks than maml: shots is 4, not 3; only runs with the same test tasks" in sentence(
        capfd, "compare", "maml", run, *TINY, "--shots", 3, "--directory", tmp_path
    )
    assert "than maml: evaluation_queries is 10, not 7; only" in sentence(  # queries in training are no reason
        capfd, "compare", "maml", run, *TINY, "--queries", 3, "--evaluation-queries", 7, "--directory", tmp_path
    )
    assert "name is sinusoid, not strokes" in sentence(
        capfd, "compare", "maml", run, "--filters", 4, "--directory", tmp_path
    )
    assert not list(tmp_path.iterdir())  # refused before anything is trained


def test_runs_that_differ_in_training_tasks_alone_are_compared(compared, capfd, tmp_path):
    folder, _, _ = compared
    assert (
        here("train", "maml", *TINY, "--queries", 3, "--evaluation-queries", 10, "--directory", tmp_path / "few") == 0
    )
    assert here("compare", folder / "taken-s0", tmp_path / "few", *COUNT, "--directory", tmp_path / "c") == 0
    assert "one training each: how much another seed would change is not known" in capfd.readouterr().out


def test_what_cannot_be_compared_is_one_sentence(compared, capfd, tmp_path, monkeypatch):
    folder, _, _ = compared
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for arguments, expected in (
        (["compare"], "name presets or run directories"),
        (["compare", "mamll"], "unknown preset or run directory 'mamll'; did you mean 'maml'"),
        (["compare", "empty"], "empty is not a run directory"),
        (["compare", "maml", "maml"], "maml is given twice"),
        (["compare", folder / "taken-s0", f"{folder}/c/../taken-s0"], "are the same training"),
        (["compare", "maml", *TINY, "--seeds", "1", "1"], "seeds are 1 1; give at least one, and each once"),
        (["compare", "maml", *TINY, "--seeds", "-1"], "seed is -1"),
        (["compare", "maml", *TINY, "--count", "0"], "count is 0"),
        (["compare", "maml", *TINY, "--epochs", "0"], "the number of epochs is 0"),
        (["compare", "maml", *TINY, "--outer-rate", "-1"], "rates must be finite numbers from 0 up"),
        (["compare", "maml", *TINY, "--filterz", "1"], "compare has no option --filterz; did you mean --filters"),
        (["compare", "maml", *TINY, "--iterations", "5", "--directory", folder / "c"],
         "was made with another configuration (training.iterations is 4 there, 5 now)"),
        (["ablate", "maml"], "maml does not differ from maml: there is nothing to ablate"),
        (["ablate", "maml++", *TINY, "--set", "norm.affin=shared"], "did you mean 'affine'"),
        (["ablate", "maml++", "--adapted", "all"], "norm.affine is per_step, but All() lets the inner loop adapt"),
    ):  # fmt: skip
        assert expected in sentence(capfd, *arguments), arguments
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def half_trained(directory, config):
    """A run that stopped after the first of its two epochs."""
    experiment = Experiment("maml", data="sinusoid", shots=4)
    learner, tasks = experiment.build()

    def watch(kind, record):
        if kind == "step" and record["step"] == 3:
            raise RuntimeError

    config = {"experiment": experiment.to_json()} if config else None
    with pytest.raises(RuntimeError):
        train(learner, tasks, directory, epochs=2, iterations=2, meta_batch=2, validation_tasks=4, config=config,
              watch=watch)  # fmt: skip
    assert not Run(directory).finished


def test_a_run_that_is_not_finished_is_taken_as_it_is_and_said_so(tmp_path, capfd):
    half_trained(tmp_path / "half", config=True)
    assert here("compare", tmp_path / "half", *COUNT, "--directory", tmp_path / "c") == 0
    assert f"{tmp_path}/half, seed 0, is not finished: outer step 2 of 4" in capfd.readouterr().out
    half_trained(tmp_path / "python", config=False)
    assert "was trained from Python" in sentence(capfd, "compare", tmp_path / "python", "--directory", tmp_path / "c")


@pytest.mark.parametrize("verb", ["compare", "ablate"])
def test_help_fits_a_screen_and_gives_an_example(verb, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert here(verb, "--help") == 0
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) <= 46
    assert max(map(len, shown.splitlines())) <= 110
    assert f"Example: fewstep {verb}" in shown
    assert "--seeds" in shown
    assert "--filters" not in shown
    assert here(verb, "--help-all") == 0
    assert "--filters" in capsys.readouterr().out
    assert here("--help") == 0
    assert verb in capsys.readouterr().out


def test_an_entry_that_diverges_does_not_cost_the_others(tmp_path, capfd):
    directory = ["--directory", tmp_path / "c"]
    assert here("train", "sam", *TINY, "--directory", tmp_path / "sam") == 0
    assert here("compare", tmp_path / "sam", "maml", *TINY, *COUNT, "--inner-rate", "1e30", *directory) == 0
    output = capfd.readouterr().out
    assert "maml, seed 0, failed and is left out" in output
    assert "is not finite in epoch 0, outer step 0: the training diverged" in output
    record = json.loads((tmp_path / "c" / "comparison.json").read_text())
    assert [entry["name"] for entry in record["entries"]] == [str(tmp_path / "sam")]
    assert len(record["notes"]) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_an_interrupted_comparison_saves_and_prints_how_to_go_on(tmp_path, number):
    # Steps so long that a second signal would come before the first has been heeded.
    length = ["--epochs", "1000", "--iterations", "10", "--tasks", "200", "--strategy", "loop"]
    arguments = ["compare", "maml", "fomaml", *TINY, *length, "--directory", "a folder"]
    process = subprocess.Popen(command(*arguments), cwd=tmp_path, text=True, env=environment(),
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)  # fmt: skip
    run, deadline = Run(tmp_path / "a folder" / "maml-s0"), time.monotonic() + 60
    log = tmp_path / "a folder" / "maml-s0.log"
    while not run.metrics() and time.monotonic() < deadline:
        time.sleep(0.05)
    # A terminal's Ctrl-C goes to the whole group of processes, a SIGTERM to the one that was started.
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    output, error = process.communicate(timeout=60)
    assert process.returncode == 130, (output, error)
    assert "Traceback" not in output + error + log.read_text()
    assert (
        "what is trained stays. Go on with:\n  python -m fewstep.cli.main compare maml fomaml --data sinusoid" in error
    )
    assert error.rstrip().endswith("--tasks 200 --strategy loop --directory 'a folder'")
    assert 0 < run.state()["step"] < 100000  # the training in its own process was told, and saved
    assert "stopped after outer step" in log.read_text()
    assert not (tmp_path / "a folder" / "fomaml-s0").exists()


def train_here(arguments, run, log, watch):  # noqa: ARG001 - the signature of train_apart
    """A training without a process of its own, whose start is most of the time of so small a one."""
    assert here("train", *arguments) == 0
    watch(run.metrics()[-1])


@pytest.mark.parametrize("apart", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_ablate_trains_each_part_off_and_each_alone(tmp_path, capfd, monkeypatch, apart):
    if not apart:
        monkeypatch.setattr("fewstep.cli.contest.train_apart", train_here)
    arguments = ["ablate", "meta-sgd", "--base", "fomaml", *TINY, *COUNT, "--directory", tmp_path, "--format", "json"]
    assert here(*arguments) == 0
    output, error = capfd.readouterr()
    record = json.loads(output.splitlines()[-1])
    names = ["meta-sgd", "meta-sgd without rule", "meta-sgd without order", "fomaml"]
    assert [entry["name"] for entry in record["entries"]] == names
    methods = [from_json(entry["runs"][0]["config"]["method"]) for entry in record["entries"]]
    ours, without_rule, without_order, base = methods
    assert (without_rule.rule, without_rule.order) == (base.rule, ours.order)
    assert (without_order.rule, without_order.order) == (ours.rule, base.order)
    assert [method.name for method in methods] == names
    assert (tmp_path / "meta-sgd-without-rule-s0").is_dir()
    assert "fomaml with rule is meta-sgd without order: one row" in record["notes"]
    assert "[4/4] fomaml, seed 0" in error


def test_all_rows_of_an_ablation_are_trained_as_long_as_the_preset(tmp_path, monkeypatch):
    """What `train` is asked for, without training: the recipe of maml++ has 150 epochs, that of maml 140."""
    from fewstep.cli.contest import Contest

    held = []
    monkeypatch.setattr(Contest, "hold", lambda self: held.append(self) or 0)
    assert here("ablate", "maml++", "--data", "sinusoid", "--seeds", 3, 4, "--directory", tmp_path) == 0
    (contest,) = held
    trainings = [training for several in contest.entries.values() for training in several]
    assert len(contest.entries) == len(trainings) / 2 > 10
    for training in trainings:
        words = training.arguments
        assert words[words.index("--epochs") + 1] == "150"
        assert words[words.index("--tasks") + 1] == "16"
        assert training.steps == (0, 150 * 500)
        assert words[words.index("--seed") + 1] in ("3", "4")


def test_parts_that_do_not_go_together_are_left_out_with_a_line(tmp_path, monkeypatch):
    from fewstep.cli.contest import Contest
    from fewstep.methods import All, preset
    from fewstep.methods.presets import PRESETS

    held = []
    monkeypatch.setattr(Contest, "hold", lambda self: held.append(self) or 0)
    monkeypatch.setitem(PRESETS, "maml", lambda setting, _: preset("fomaml", setting=setting, adapted=All()))
    small = ["--filters", 2, "--directory", tmp_path]
    assert here("ablate", "maml++", *small) == 0
    (contest,) = held
    assert "maml++ without adapted" not in contest.entries
    (note,) = [note for note in contest.notes if note.startswith("maml++ without adapted is left out: ")]
    assert "norm.affine is per_step, but All() lets the inner loop adapt norm weights" in note
    assert "maml++ without rule (LSLR)" in contest.entries
