"""A run directory tells what its training took, also where part of that was not recorded."""

import subprocess
import sys

import pytest

from fewstep import BadInput, Run
from fewstep.training.run import peak_memory

MEGABYTE = 2**20


def test_seconds_and_memory_over_all_processes_of_a_training(tmp_path):
    run = Run(tmp_path)
    assert run.seconds() is run.peak_memory() is None
    record = {"kind": "train", "step": 1, "epoch": 0}
    run.append({**record, "seconds": 1.5})
    run.append({**record, "kind": "validation", "seconds": 2.5, "peak_memory": 300})
    run.append({**record, "kind": "validation", "seconds": 9.0, "peak_memory": None})
    run.append({**record, "kind": "validation", "seconds": 9.5, "peak_memory": 200})
    assert (run.seconds(), run.peak_memory()) == (9.5, 300)


def test_the_peak_is_this_process_own():
    """The system lets a new process begin with the peak of the one that started it; that is not what it held."""
    before = peak_memory()
    held = b"x" * (800 * MEGABYTE)
    assert peak_memory() >= before
    assert peak_memory() > 800 * MEGABYTE
    code = "from fewstep.training.run import peak_memory; print(peak_memory())"
    theirs = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert 20 * MEGABYTE < theirs < len(held)


def test_what_is_required_names_what_differs(tmp_path):
    run = Run(tmp_path / "run")
    run.open({"experiment": {"ways": 5, "shots": 1}}, "cpu")
    run.require({"experiment": {"ways": 5, "shots": 1}})
    with pytest.raises(BadInput, match=r"another configuration \(experiment.ways is 5 there, 4 now\)"):
        run.require({"experiment": {"ways": 4, "shots": 1}})
    assert not run.begun  # nothing would be lost
    run.open({"experiment": {"ways": 4}}, "cpu")
    run.append({"kind": "train", "step": 1, "epoch": 0})
    assert run.begun
    with pytest.raises(BadInput, match=r"experiment.ways is 4 there, 3 now"):
        run.open({"experiment": {"ways": 3}}, "cpu")


def test_an_environment_that_cannot_be_read_is_empty(tmp_path):
    run = Run(tmp_path)
    assert run.environment == {}
    for content in ("{", "[1]", ""):
        (tmp_path / "environment.json").write_text(content)
        assert run.environment == {}
