"""The benchmark: everyone computes the same, operations are counted right, a small run ends in well-formed tables."""

import doctest
import importlib
import itertools
import json
import os
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))  # the benchmark is not part of the installed package

from benchmarks import __main__ as command  # noqa: E402
from benchmarks import cost, flops, held, performance_page, rounds, shares, tables, timing  # noqa: E402
from benchmarks.__main__ import main  # noqa: E402
from benchmarks.contender import Contender  # noqa: E402
from benchmarks.implementations import IMPLEMENTATIONS, OURS, WITHOUT_PLUS, plain_loop  # noqa: E402
from benchmarks.network import distance, start, tasks  # noqa: E402
from benchmarks.performance_page import AS_RUN, EQUAL, UNTOUCHED  # noqa: E402
from benchmarks.processes import Gone, Process  # noqa: E402
from benchmarks.workloads import WORKLOADS  # noqa: E402

SMALL = {name: w.scaled(0.1) for name, w in WORKLOADS.items()}


def step(name, w, dtype=torch.float64):
    """A step of an implementation; skips where its library is missing or it does not write this workload."""
    try:
        module = importlib.import_module(IMPLEMENTATIONS[name])
    except ImportError as error:
        if (error.name or "").partition(".")[0] in ("benchmarks", "fewstep"):
            raise  # no library of somebody else's
        pytest.skip(str(error))
    if w.plus and name in WITHOUT_PLUS:
        pytest.skip(f"{name} does not write this workload")
    torch.set_default_dtype(dtype)
    try:
        strategy = (OURS[name],) if name in OURS else ()
        return module.build(w, start(w).to("cpu", dtype), tasks(w).to("cpu", dtype), *strategy)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("workload", ["W1", "W2", "W3", "W7"])
def test_everyone_computes_the_same_again_and_again(name, workload):
    w = SMALL[workload]
    expected, call = step("loop", w)(), step(name, w)
    assert distance(call(), expected) < 1e-10
    assert distance(call(), expected) < 1e-10  # nothing of the first call is left


def test_distance_sees_what_is_wrong_and_not_what_is_rounding():
    right = step("loop", SMALL["W2"])()
    assert distance(step("loop", SMALL["W3"])(), right) > 1e-3  # first order is another gradient
    assert distance({name: g for name, g in right.items() if name != "head.bias"}, right) == float("inf")
    assert distance({**right, "head.bias": right["head.bias"] * float("nan")}, right) == float("inf")
    assert distance({**right, "head.bias": right["head.bias"] * 1.001}, right) == pytest.approx(1e-3, rel=0.1)
    noise = right["blocks.0.conv.bias"]  # in front of a batch norm: zero but for rounding
    assert distance({**right, "blocks.0.conv.bias": -noise}, right) < 1e-10


@pytest.mark.parametrize("workload", WORKLOADS)
def test_operations_are_those_torch_counts(workload):
    w = SMALL[workload]
    call = plain_loop.build(w, start(w), tasks(w))
    with FlopCounterMode(display=False) as counter:
        call()
    counted = sum(n for op, n in counter.get_flop_counts()["Global"].items() if "convolution" in str(op))
    unasked = 0
    if w.second and not w.predict:  # torch also takes the second gradient by the images, which nobody asks for
        unasked = w.tasks * w.steps * w.ways * w.shots * 2 * 9 * w.channels * w.filters * w.size**2
    assert counted == flops.counts(w)["flops"] + unasked


def test_ratios_are_against_the_fastest_and_the_smallest_other():
    def found(seconds, used):
        return {"seconds": seconds, "memory": {"used": used, "before": 0}}

    run = {
        "fewstep": found([1.0, 1.1, 0.9], 60), "fewstep-loop": found([0.1, 0.1, 0.1], 1),
        UNTOUCHED: found([2.0, 2.0, 2.0], 1), "loop": found([2.0, 2.2, 3.6], 100), "vmap": found([3.0, 3.0, 3.0], 50),
    }  # fmt: skip
    settings = {AS_RUN: run, EQUAL: {"fewstep": found([1.0] * 3, 60), "vmap": found([1.5] * 3, 50)}}
    record = {"settings": settings, "flops": 3e9, "target": {"faster": 2.0, "memory": 1.0}}
    assert performance_page._verdict("W0", record, 12e9) == [
        "W0", "1.000", "**2.20** (2.00–4.00), loop", "2", "met", "**1.50** (1.50–1.50), vmap",
        "**1.10** (1.00–1.80), loop", "1.20, vmap", "1", "not met", "25%", "–",
    ]  # fmt: skip


def test_a_contender_that_gives_memory_back_warms_up_untimed():
    calls = []
    contender = Contender("loop", asdict(SMALL["W7"]))
    contender.step = lambda: calls.append(time.sleep(0.01))
    assert contender.time(count=2, release=True)["seconds"] == pytest.approx(0.01, abs=0.009)
    assert len(calls) == 3
    contender.time(count=2)
    assert len(calls) == 5


def test_memory_is_what_was_held_meanwhile():
    found = held.held(lambda: torch.ones(10**7).sum())
    assert 3e7 < found["used"] < 3e8
    assert found["peak"] - found["before"] == found["used"]


def test_a_process_that_cannot_go_on_says_why():
    with Process("contender.Contender", implementation="nobody", workload={}) as process, pytest.raises(Gone) as reason:
        process.ask("memory")
    assert str(reason.value) == "KeyError: 'nobody'"
    with Process("peak") as process:
        os.kill(process._process.pid, signal.SIGKILL)
        with pytest.raises(Gone, match="ended by SIGKILL, as when memory runs out"):
            process.ask("best", seconds=1)


def test_shares_of_an_epoch():
    parts = {"sampling": 0.1, "transfer": 0.0, "meta_gradient": 0.7, "rest": 0.2}
    record = {"what": "W", "step": parts, "checkpoint": 2.0, "validation_task": 2.0,
              "epoch": {"steps": 10, "validation_tasks": 4}}  # fmt: skip
    expected = ["W", "1.000", "10.00%", "0.00%", "70.00%", "20.00%", "20.00%", "40.0%"]
    assert performance_page._training(record) == expected


def test_shares_are_of_a_real_training():
    whole = {name: vars(shares.trainer)[name] for name in ("save_checkpoint", "validate")}
    record = shares.shares(ways=3, iterations=2, filters=4, meta_batch=2, validation_tasks=2)
    assert {name: vars(shares.trainer)[name] for name in whole} == whole
    assert min(*record["step"].values(), record["checkpoint"], record["validation_task"]) > 0
    assert record["step"]["meta_gradient"] > record["step"]["sampling"]
    shown = performance_page._training(record)
    assert shown[0] == "3-way 1-shot, MAML++, Conv4-4, 2 tasks"
    assert sum(float(share.rstrip("%")) for share in shown[2:6]) == pytest.approx(100, abs=0.1)


@pytest.mark.parametrize("module", [command, flops, performance_page, tables, timing])
def test_examples(module):
    assert doctest.testmod(module).failed == 0


# --- the command -----------------------------------------------------------------------------------------------------

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
TINY = ["--scale", "0.2", "--threads", "1", "--repeats", "2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Real processes on tiny shapes: ours, the reference, and one that does not write MAML++ or is not installed."""
    folder, old = tmp_path_factory.mktemp("run"), Path.cwd()
    document = folder / "performance.md"
    document.write_text(f"# Performance\n\n{BEGIN}\nold\n{END}\n\nThe end.\n")
    arguments = ["--only", "W1", "--implementations", "fewstep", "loop", "learn2learn", *TINY]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        status = main([*arguments, "--json", str(folder / "run.json"), "--table", str(document)])
    assert Path.cwd() == old
    return folder, document, status


def test_a_run_records_every_round_in_both_settings(run):
    folder, _, status = run
    results = json.loads((folder / "run.json").read_text())
    record = results["workloads"]["W1"]
    assert status == 0
    assert list(record["settings"][AS_RUN]) == ["fewstep", "loop", UNTOUCHED]
    assert list(record["settings"][EQUAL]) == ["fewstep", "loop"]
    for setting in record["settings"].values():
        assert all(len(found["seconds"]) == 2 and min(found["seconds"]) > 0 for found in setting.values())
    ours = record["settings"][AS_RUN]["fewstep"]
    assert ours["distance"]["float64"] < 1e-8
    assert ours["distance"]["float32"] < 1e-4
    assert ours["memory"]["strategy"] in ("loop", "vectorized")
    assert 1e7 < ours["memory"]["before"] < 2e9
    assert abs(ours["memory"]["used"]) < 1e8
    assert list(record["left_out"]) == ["learn2learn"]
    assert results["peak"]["both"] > 1e8
    assert record["flops"] == flops.counts(WORKLOADS["W1"].scaled(0.2))["flops"]


def test_its_tables_go_between_the_marks_and_come_again_from_the_record(run, capsys):
    folder, document, _ = run
    before, _, rest = document.read_text().partition(BEGIN)
    shown, _, after = rest.partition(END)
    assert (before, after) == ("# Performance\n\n", "\n\nThe end.\n")
    assert "old" not in shown
    assert "no measure of speed" in shown
    assert "learn2learn on W1: " in shown
    rows = [line for line in shown.splitlines() if line.startswith("|")]
    assert sum(line.startswith("| W1 | ") for line in rows) == 5
    for above, below in itertools.pairwise(rows):
        if "---" in below:
            assert above.count("|") == below.count("|")
    assert main(["table", str(folder / "run.json")]) == 0
    assert capsys.readouterr().out.strip() == shown.strip()


def test_who_computes_something_else_is_not_timed(monkeypatch, capsys):
    monkeypatch.setitem(rounds.TOLERANCE, "float64", -1.0)
    options = rounds.Options(rounds=1, threads=1, scale=0.05)
    record = rounds.measure("W7", command.settings(["loop"]), options)
    assert "differs from the plain loop's by" in record["left_out"]["loop"]
    assert record["settings"] == {AS_RUN: {}, EQUAL: {}}
    assert "loop is left out" in capsys.readouterr().err


def test_every_preset_costs_something_beside_maml(tmp_path, capsys):
    path = tmp_path / "cost.json"
    arguments = ["--rounds", "1", "--filters", "4", "--tasks", "1", "--json", str(path)]
    threads = torch.get_num_threads()
    assert cost.main(arguments) == 0
    torch.set_num_threads(threads)
    presets = json.loads(path.read_text())["presets"]
    assert presets["maml"]["rounds"] == [1.0]
    assert min(entry["low"] for entry in presets.values()) > 0
    assert "| `maml++` | " in capsys.readouterr().out


@pytest.mark.parametrize("name", ["performance", "scaling", "memory", "options", "efficiency", "cost"])
def test_every_record_is_shown_by_one_command(name, capsys):
    assert main(["table", str(ROOT / "results" / f"{name}.json")]) == 0
    assert "| --- |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--only", "W9"], "invalid choice: 'W9'"),
        (["--implementations", "hihger"], "invalid choice: 'hihger'"),
        (["--repeats", "0"], "is 0; it must be at least 1"),
        (["--scale", "2"], "is 2; it must lie above 0 and not above 1"),
        (["--json", "/nowhere/x.json"], "there is no folder /nowhere"),
        (["table", "/nowhere/x.json"], "cannot read /nowhere/x.json: No such file or directory"),
        (["table", str(ROOT / "Makefile")], "is not what --json wrote"),
    ],
)
def test_bad_input_is_a_sentence(arguments, expected, capsys):
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    assert expected in capsys.readouterr().err
