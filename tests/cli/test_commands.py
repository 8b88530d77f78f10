"""The command line as a person meets it: real processes, exit codes, messages."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TINY = ["--ways", "3", "--filters", "4", "--steps", "1", "--epochs", "2", "--iterations", "3", "--tasks", "2",
        "--validation-tasks", "4", "--threads", "1"]  # fmt: skip


def fewstep(*arguments, cwd=None, environment=None):
    command = [sys.executable, "-m", "fewstep.cli.main", *map(str, arguments)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80", **(environment or {})}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "tiny"
    done = fewstep("train", "maml++", *TINY, "--directory", directory)
    assert done.returncode == 0, done
    return directory, done.stdout


def sentence(done):
    """What a user's mistake prints: one sentence, no traceback, exit status 2."""
    assert done.returncode == 2, done
    assert "Traceback" not in done.stderr + done.stdout
    return re.sub(r"[\s│]+", " ", done.stderr)


def test_training_prints_plain_lines_and_says_what_is_next(run):
    directory, output = run
    assert re.search(r"step 3/6: loss \d.\d+ · query accuracy .*tasks/s · outer rate .*left", output)
    assert re.search(r"epoch 2: validation \d+.\d\d% ± \d+.\d\d% on 4 tasks", output)
    assert re.search(r"^needs about \d+ MiB of memory\nstep 1/6", output, flags=re.MULTILINE)
    assert "\x1b" not in output
    assert f"next python -m fewstep.cli.main evaluate {directory}" in output
    assert (directory / "report.html").stat().st_size > 1e6


def test_the_same_command_on_a_finished_run_says_so(run):
    directory, _ = run
    again = fewstep("train", "maml++", *TINY, "--directory", directory)
    assert again.returncode == 0
    assert "is finished: nothing to train" in again.stdout


def test_another_configuration_on_it_is_refused(run):
    directory, _ = run
    assert "was made with another configuration (experiment.seed is 0 there, 1 now" in sentence(
        fewstep("train", "maml++", *TINY, "--seed", 1, "--directory", directory)
    )


def test_evaluate_prints_accuracy_beside_no_adaptation_and_chance(run):
    directory, _ = run
    done = fewstep("evaluate", directory, "--count", 12)
    assert done.returncode == 0, done
    for expected in ("12 test tasks, 1 inner steps; queries normalised by their own batch: transductive",
                     "accuracy after adaptation", "without adaptation", "chance                    33.3%",
                     "each query alone", "ensemble of the best 2", "after 0, 1, … steps", "page "):  # fmt: skip
        assert expected in done.stdout, done.stdout
    assert json.loads((directory / "score.json").read_text())["single"]["count"] == 12


def test_json_alone_on_standard_output(run):
    directory, _ = run
    record = json.loads(fewstep("evaluate", directory, "--count", 5, "--format", "json").stdout)
    assert len(record["single"]["per_task"]) == 5
    assert record["ensemble"]["members"] == 2
    assert "maml" in json.loads(fewstep("presets", "--format", "json").stdout)
    assert json.loads(fewstep("doctor", "--format", "json").stdout)["found"]["torch"]
    assert "strokes" in json.loads(fewstep("data", "--format", "json").stdout)


@pytest.mark.parametrize("verb", ["train", "evaluate", "presets", "data", "doctor"])
def test_help_fits_a_screen_and_gives_an_example(verb):
    done = fewstep(verb, "--help")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) <= 46
    assert f"Example: fewstep {verb}" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 110


def test_presets_explain_themselves():
    listed = fewstep("presets").stdout
    assert all(name in listed for name in ("maml", "fomaml", "maml++", "maml++-released"))
    one = fewstep("presets", "maml++").stdout
    for expected in ("arXiv 1810.09502", "θ_{l,i+1}", "PerLayerPerStep(rate=0.1)", "Differences", "LSLR"):
        assert expected in one


def test_unknown_flags_presets_and_verbs_name_the_nearest():
    assert "--filters" in sentence(fewstep("train", "maml", "--filterz", 3))
    assert "'maml++'" in sentence(fewstep("train", "mamlpp"))
    assert "train" in sentence(fewstep("tran"))
    assert "--ways" in sentence(fewstep("train", "maml", "--ways", "many"))


def test_a_config_file_lies_under_the_command_line(tmp_path):
    lines = ['preset = "maml"', "ways = 4", "filters = 2", "steps = 1", "inner-rate = 0.2", "epochs = 1"]
    lines += ["iterations = 1", "tasks = 1", "validation-tasks = 2", "threads = 1"]
    (tmp_path / "c.toml").write_text("\n".join(lines))
    done = fewstep("train", "--config", "c.toml", "--ways", 3, "--directory", "run", cwd=tmp_path)
    assert done.returncode == 0, done
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["experiment"]["preset"] == "maml"
    assert config["experiment"]["ways"] == 3
    assert config["experiment"]["filters"] == 2
    assert config["method"]["rule"]["rate"] == 0.2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("filterz = 3", "unknown key in c.toml: 'filterz'; did you mean 'filters'"),
        ("ways = = 3", "--config c.toml is not TOML"),
        ("[ways]\na = 1", "c.toml: ways is a table or list"),
        ('ways = "many"', "--ways"),
        (None, "--config c.toml: No such file"),
    ],
)
def test_bad_config_files(tmp_path, content, message):
    if content is not None:
        (tmp_path / "c.toml").write_text(content)
    assert message in sentence(fewstep("train", "maml", "--config", "c.toml", cwd=tmp_path))


def test_bad_input_is_one_sentence(tmp_path, run):
    directory, _ = run
    nothing = {"FEWSTEP_DATA": ""}
    assert "Omniglot is not in any of" in sentence(
        fewstep("train", "maml", "--data", "omniglot", cwd=tmp_path, environment=nothing)
    )
    assert "unknown data set 'omniglt'; did you mean 'omniglot'" in sentence(
        fewstep("train", "maml", "--data", "omniglt")
    )
    assert "too small for 4 blocks" in sentence(fewstep("train", "maml", "--image-size", 15, cwd=tmp_path))
    assert re.search("(shots|queries)", sentence(fewstep("train", "maml", "--shots", 30, cwd=tmp_path)))
    assert "is not a run directory" in sentence(fewstep("evaluate", tmp_path))
    assert "--split is an option of omniglot, not of strokes" in sentence(fewstep("train", "maml", "--split", "lake"))
    assert "count is 0" in sentence(fewstep("evaluate", directory, "--count", 0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "-1"], "tasks in a meta-batch is -1; it must be at least 1"),
        (["--epochs", "0"], "the number of epochs is 0"),
        (["--queries", "0"], "queries is 0; it must be at least 1"),
        (["--ways", "1"], "ways is 1; it must be at least 2"),
        (["--steps", "-1"], "steps is -1"),
        (["--threads", "0"], "threads is 0"),
        (["--inner-rate", "nan"], "a rate must be a finite number"),
        (["--clamp", "nan"], "it must be positive"),
        (["--seed", "-1"], "seed is -1"),
        (["--seed", "100000000000000000000"], "seed is 100000000000000000000"),
        (["--directory", "a-file"], "a-file"),
        (["--directory", "a-file/sub"], "a-file"),
        (["--data", "sinusoid", "--rotations", "task"], "--rotations is an option"),
        (["--data", "omniglot", "--data-dir", "a-file"], "a-file"),
    ],
)
def test_values_out_of_range_are_one_sentence(tmp_path, arguments, message):
    (tmp_path / "a-file").write_text("text")
    small = ["--filters", "2", "--epochs", "1", "--iterations", "1", "--threads", "1"]
    assert message in sentence(fewstep("train", "maml", *small, *arguments, cwd=tmp_path))


def test_evaluate_refuses_what_makes_no_sense(run):
    directory, _ = run
    assert "ensemble is 0" in sentence(fewstep("evaluate", directory, "--ensemble", 0))
    assert "steps is -1" in sentence(fewstep("evaluate", directory, "--steps", -1))


def test_a_damaged_checkpoint_is_named(run, tmp_path):
    directory, _ = run
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(directory, broken)
    for path in (broken / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    assert "is not a readable checkpoint" in sentence(fewstep("evaluate", broken))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_training_saves_and_prints_how_to_resume(tmp_path, number):
    arguments = ["train", "maml", *TINY, "--iterations", "400", "--directory", "run"]
    process = subprocess.Popen([sys.executable, "-m", "fewstep.cli.main", *arguments], cwd=tmp_path, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    for line in process.stdout:
        if line.startswith("step "):
            break
    process.send_signal(number)
    output, error = process.communicate(timeout=60)
    assert process.returncode == 130, (output, error)
    assert "Traceback" not in error
    command = re.search(r"Resume with:\n +python -m fewstep.cli.main (.*)", output)[1]
    assert command == " ".join(arguments)
    step = int(re.search(r"stopped after outer step (\d+) of 800", output)[1])
    resumed = subprocess.Popen([sys.executable, "-m", "fewstep.cli.main", *arguments], cwd=tmp_path, text=True,
                               stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    assert f"resuming after outer step {step}" in resumed.stdout.readline()
    time.sleep(0.1)
    resumed.kill()
    resumed.communicate()


def test_sinusoid_from_the_command_line(tmp_path):
    done = fewstep("train", "maml", "--data", "sinusoid", "--epochs", 1, "--iterations", 5, "--validation-tasks", 5,
                   cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done
    assert "validation loss" in done.stdout
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name == "maml-sinusoid-10-shot"  # it has no ways
    assert "loss after adaptation" in fewstep("evaluate", run, "--count", 5, cwd=tmp_path).stdout


def shared_omniglot():
    named = os.environ.get("FEWSTEP_DATA")
    places = [Path(named)] if named else [p / "shared" / "data" for p in Path(__file__).parents]
    return next((p for p in places if (p / "omniglot" / "omniglot.npz").is_file()), None)


@pytest.mark.skipif(shared_omniglot() is None, reason="real Omniglot is not here: set FEWSTEP_DATA to test with it")
def test_real_omniglot_trains_and_evaluates(tmp_path):
    data = ["--data", "omniglot", "--data-dir", str(shared_omniglot())]
    done = fewstep("train", "maml++", *data, *TINY, "--split", "lake", "--directory", "run", cwd=tmp_path)
    assert done.returncode == 0, done
    done = fewstep("evaluate", "run", "--count", 4, "--data-dir", shared_omniglot(), cwd=tmp_path)
    assert done.returncode == 0, done
    assert "classes" in fewstep("data", "check", "--data-dir", shared_omniglot()).stdout
