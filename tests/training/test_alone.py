"""One training at a time in a run directory; whoever has ended, however, holds nobody up."""

import errno
import fcntl
import subprocess
import sys
import threading

import pytest
import torch

import fewstep
from fewstep.errors import BadInput
from fewstep.training.alone import LOCK, alone

HOLD = """
import sys, pathlib
from fewstep.training.alone import alone
with alone(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the directory."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], text=True, stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE)  # fmt: skip
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_another_process_is_named(holder, tmp_path):
    with pytest.raises(BadInput, match=rf"{tmp_path} is being trained in by process {holder.pid} on .+: wait for it"):
        alone(tmp_path).__enter__()
    holder.communicate("")  # it ends by itself
    assert not list(tmp_path.iterdir())
    with alone(tmp_path):
        assert (tmp_path / LOCK).is_file()


def test_the_lock_of_a_killed_process_is_taken_over(holder, tmp_path):
    holder.kill()
    holder.wait()
    assert (tmp_path / LOCK).is_file()
    with alone(tmp_path), pytest.raises(BadInput, match="is being trained in"):
        alone(tmp_path).__enter__()
    assert not list(tmp_path.iterdir())


def test_never_two_though_many_try_and_go(tmp_path):
    inside, most, entered = [], [], []

    def work(index):
        for _ in range(100):
            try:
                with alone(tmp_path):
                    inside.append(index)
                    most.append(len(inside))
                    inside.remove(index)
                    entered.append(index)
            except BadInput:
                pass

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
    assert len(entered) > 1


@pytest.mark.parametrize("anew", [False, True])
def test_a_file_that_its_owner_removes_just_now_is_no_lock(tmp_path, monkeypatch, anew):
    def flock(file, how, real=fcntl.flock):
        if not raced:
            raced.append((tmp_path / LOCK).unlink())
            if anew:
                (tmp_path / LOCK).touch()
        real(file, how)

    raced = []
    monkeypatch.setattr(fcntl, "flock", flock)
    with alone(tmp_path), pytest.raises(BadInput, match="is being trained in"):
        alone(tmp_path).__enter__()


def test_without_locks_a_training_goes_on(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    went_on = []
    with alone(tmp_path), alone(tmp_path):
        went_on.append("without locks")
    (tmp_path / "a-file").touch()
    with alone(tmp_path / "a-file" / "x"):
        went_on.append("without a folder")
    assert went_on == ["without locks", "without a folder"]


def test_a_second_training_is_refused_and_the_first_goes_on(tmp_path):
    def learner():
        torch.manual_seed(0)
        return fewstep.Learner(fewstep.models.MLP(1, 1), fewstep.preset("maml", setting="sinusoid"),
                               loss=torch.nn.functional.mse_loss)  # fmt: skip

    def train(name, watch=None, **changes):
        length = {"epochs": 1, "iterations": 3, "meta_batch": 2, "validation_tasks": 4, **changes}
        return fewstep.train(learner(), fewstep.sinusoid(), tmp_path / name, **length, watch=watch)

    def second(kind, record):
        if kind == "step" and record["step"] == 1:
            with pytest.raises(BadInput, match="is being trained in by process"):
                train("run", epochs=7)
            refused.append(record)

    refused = []
    train("run", second)
    assert len(refused) == 1
    records = [[r["value"] for r in train(name).metrics() if "value" in r] for name in ("run", "alone")]
    assert records[0] == records[1]
    assert not (tmp_path / "run" / LOCK).exists()


def test_a_foreign_folder_stays_as_it_was(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    learner = fewstep.Learner(fewstep.models.MLP(1, 1), fewstep.preset("maml", setting="sinusoid"),
                              loss=torch.nn.functional.mse_loss)  # fmt: skip
    with pytest.raises(BadInput, match="is not empty and not a run directory"):
        fewstep.train(learner, fewstep.sinusoid(), tmp_path, epochs=1, iterations=1)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
