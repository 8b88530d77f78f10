"""Scaling: what is sent is counted right, efficiencies are those of the records, the page says what the code counts."""

import doctest
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import fewstep

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))  # the benchmark is not part of the installed package

from benchmarks import efficiency  # noqa: E402
from benchmarks.flops import counts  # noqa: E402
from benchmarks.implementations.ours import learner  # noqa: E402
from benchmarks.network import start  # noqa: E402
from benchmarks.workloads import WORKLOADS  # noqa: E402

PAGE = (ROOT / "docs" / "scaling.md").read_text()
TINY = ["W1", "--scale", "0.05", "--repeats", "2"]


def numbers(w):
    """Meta-parameters, statistics (mean and variance of four norms, each step), losses, query outputs."""
    parameters = sum(p.numel() for p in learner(w, start(w), "auto").meta_parameters().values())
    return parameters + 2 * 4 * w.filters * w.steps + w.tasks * (1 + w.queries * w.ways**2)


def test_what_is_sent_is_what_the_page_counts():
    tiny = replace(WORKLOADS["W1"].scaled(0.05), tasks=3)
    with fewstep.torchrun() as ranks:
        result = efficiency.outer_step(tiny, ranks)()
    assert efficiency.reduced_numbers(result) == numbers(tiny)
    w = WORKLOADS["W1"]
    assert f"{numbers(w):,}, or {4 * numbers(w):,} bytes" in PAGE
    assert f"{counts(w)['flops'] / w.tasks / 1e10:.1f}·10¹⁰" in PAGE


def test_the_page_s_example_runs():
    for block in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL):
        exec(compile(block, "scaling.md", "exec"), {})
    assert doctest.testmod(efficiency).failed == 0


def test_one_process_is_its_own_yardstick_and_a_second_run_takes_the_place_of_the_first(tmp_path, capsys):
    path = tmp_path / "e.json"
    for _ in range(2):
        assert efficiency.main([*TINY, "--json", str(path)]) == 0
    runs = json.loads(path.read_text())["runs"]
    assert [(r["kind"], r["processes"], len(r["seconds"])) for r in runs] == [("strong", 1, 2), ("weak", 1, 2)]
    assert capsys.readouterr().out.count("| 100.0%") == 4


def test_efficiencies_are_against_the_run_of_one_process_alike():
    def record(kind, processes, seconds, **other):
        about = {"workload": "W1", "scale": 1.0, "device": "cpu", "threads": 1}
        return {**about, "kind": kind, "processes": processes, "seconds": seconds, "tasks": 8, **other}

    records = [record("strong", 1, [8.0, 9.0, 7.0]), record("weak", 1, [8.0])]
    assert efficiency.efficiency(record("strong", 4, [2.5, 2.5]), records) == pytest.approx(0.8)
    assert efficiency.efficiency(record("weak", 4, [10.0]), records) == pytest.approx(0.8)
    assert efficiency.efficiency(record("weak", 4, [10.0], threads=2), records) is None
    shown = efficiency._row(record("strong", 3, [3.0], all_reduce={"bytes": 4, "seconds": [0.1]}), records)
    assert "88.9% (at most 88.9%)" in shown


@pytest.mark.parametrize("bad", [["W9"], ["W1", "--scale", "2"], ["W1", "--repeats", "0"]])
def test_bad_input_is_a_sentence(bad, capsys):
    with pytest.raises(SystemExit) as exit:
        efficiency.main(bad)
    assert exit.value.code == 2
    assert "error: " in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_record_both_kinds(tmp_path):
    path = tmp_path / "e.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    words = [*command, "-m", "benchmarks.efficiency", *TINY, "--json", str(path)]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done
    runs = json.loads(path.read_text())["runs"]
    assert [(r["kind"], r["processes"], r["tasks"]) for r in runs] == [("strong", 2, 2), ("weak", 2, 4)]
    assert min(runs[0]["all_reduce"]["seconds"]) > 0
    assert done.stdout.count("no run of one process is recorded") == 2
