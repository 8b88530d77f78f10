"""`fewstep train` under torchrun: real processes, what they print, what they write, how they end."""

import os
import re
import signal
import subprocess
import sys

import pytest
import torch

import fewstep
from fewstep.training.checkpoint import load_checkpoint

# Plain outer steps: Adam would make a unit of what is zero but for rounding, such as a bias in front of a batch norm.
TINY = ["maml++", "--ways", "3", "--filters", "4", "--steps", "1", "--epochs", "2", "--iterations", "3", "--tasks", "3",
        "--validation-tasks", "5", "--threads", "1", "--set", "outer.optimiser=sgd"]  # fmt: skip
LONG = ["maml", "--data", "sinusoid", "--epochs", "1", "--iterations", "2000", "--tasks", "2", "--threads", "1"]
ALONE = [sys.executable, "-m", "fewstep"]
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "fewstep"]
PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}


def start(command, *arguments):
    words = [*command, "train", *map(str, arguments)]
    return subprocess.Popen(words, env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}, **PIPES)


def train(command, *arguments):
    process = start(command, *arguments)
    output, errors = process.communicate(timeout=200)
    return process.returncode, output, errors


def ours(errors):
    """What this project's processes print on standard error; torchrun reports every end with a traceback of its own."""
    assert not re.search(r'File ".*/fewstep/', errors), errors
    return [line for line in errors.splitlines() if line.startswith("fewstep: ")]


def exit_codes(errors):
    return sorted(map(int, re.findall(r"^ +exitcode *: (-?\d+)", errors, flags=re.MULTILINE)))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    one, two = (train(command, *TINY, "--directory", folder / name) for name, command in (("1", ALONE), ("2", TWO)))
    assert one[0] == two[0] == 0, (one, two)
    return fewstep.Run(folder / "1"), fewstep.Run(folder / "2"), two[1]


def test_two_processes_give_the_metrics_and_weights_of_one(runs):
    one, two, output = runs
    close = {"rtol": 1e-4, "atol": 1e-5}
    assert len(one.metrics()) == len(two.metrics()) == 8
    for a, b in zip(one.metrics(), two.metrics(), strict=True):
        assert a["kind"] == b["kind"]
        for name in {"loss", "accuracy", "value", "interval95", "best_epoch"} & a.keys():
            assert b[name] == pytest.approx(a[name], rel=1e-4), name
    for a, b in ((one.last, two.last), (one.epoch_path(1), two.epoch_path(1))):
        left, right = load_checkpoint(a)[0], load_checkpoint(b)[0]
        left.pop("random", None), right.pop("random", None)
        torch.testing.assert_close(right, left, **close)
    assert output.count("epoch 2: validation") == output.count("step 6/6") == 1
    assert (two.environment["processes"], two.environment["device"]) == (2, "cpu")
    assert (two.directory / "report.html").is_file()


@pytest.mark.slow
def test_a_refusal_is_said_once_and_ends_all_with_status_2(runs):
    status, _, errors = train(TWO, *TINY, "--seed", 1, "--directory", runs[1].directory)
    said = ours(errors)
    assert len(said) == 1
    assert "was made with another configuration (experiment.seed is 0 there, 1 now" in said[0]
    assert exit_codes(errors) == [2, 2]
    assert status == 1  # torchrun's own, whatever its processes say


@pytest.mark.slow
def test_other_commands_are_refused(tmp_path):
    words = [*TWO[:-2], "-m", "fewstep", "compare", "maml", "--directory", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ours(done.stderr) == ["fewstep: torchrun is for `fewstep train` alone; run every other command without it"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_training_saves_and_resumes(tmp_path, number):
    process = start(TWO, *LONG, "--directory", tmp_path / "run")
    next(line for line in process.stdout if line.startswith("step "))
    process.send_signal(number)
    output, errors = process.communicate(timeout=120)
    assert re.search(r"stopped after outer step \d+ of 2000; saved in .* Resume with the same torchrun command", output)
    assert ours(errors) == []
    state = fewstep.Run(tmp_path / "run").state()
    again = start(TWO, *LONG, "--directory", tmp_path / "run")
    assert f"resuming after outer step {state['step']}" in again.stdout.readline()
    again.send_signal(number)
    again.communicate(timeout=120)


@pytest.mark.slow
def test_a_killed_process_ends_the_other(tmp_path):
    process = start(TWO, *LONG, "--directory", tmp_path / "run")
    next(line for line in process.stdout if line.startswith("step "))
    children = subprocess.run(["ps", "--ppid", str(process.pid), "-o", "pid="], capture_output=True, text=True)
    os.kill(int(children.stdout.split()[-1]), signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert [line[:56] for line in ours(errors)] == ["fewstep: another process of this training has ended, and"]
    assert exit_codes(errors) == [-9, 1]
