"""The record of memory: estimates are what fresh processes then take; its page comes from the record."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))  # the benchmark is not part of the installed package

from benchmarks import memory, tables  # noqa: E402
from benchmarks.workloads import WORKLOADS  # noqa: E402

RECORD = ROOT / "results" / "memory.json"


@pytest.fixture(autouse=True)
def _here(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["loop", "vectorized", "recompute"])
def test_an_estimate_is_what_a_fresh_process_then_takes(strategy):
    w = replace(WORKLOADS["W2"], tasks=4, steps=4, filters=48)
    true, estimate = (asked(3, w, strategy)["bytes"] for asked in (memory.truth, memory.estimate))
    assert estimate == pytest.approx(true, rel=0.25)


def test_a_fresh_process_tells_truth_and_estimate():
    w = replace(WORKLOADS["W2"], tasks=3, steps=3, filters=32)
    true, estimate = memory.truth(1, w, "loop"), memory.estimate(1, w, "loop")
    assert true["strategy"] == estimate["strategy"] == "loop"
    assert estimate["bytes"] == pytest.approx(true["bytes"], rel=0.5)  # of one process each; medians are closer


def test_the_page_has_what_was_measured():
    record = json.loads(RECORD.read_text())
    page = (ROOT / "docs" / "memory.md").read_text()
    assert tables.markdown(record) in page


def test_its_figure_is_drawn_from_the_record(tmp_path):
    pytest.importorskip("matplotlib")
    memory.draw(json.loads(RECORD.read_text()), tmp_path)
    assert (tmp_path / "memory.svg").read_text() == (ROOT / "docs" / "performance" / "memory.svg").read_text()


def test_parts_are_added_to_the_record(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(memory, "TASKS", (2,))
    path = tmp_path / "memory.json"
    for _ in range(2):
        assert memory.main(["--parts", "evaluation", "--repeats", "1", "--json", str(path)]) == 0
    (entry,) = json.loads(path.read_text())["evaluation"]
    assert entry["tasks"] == 2
    assert "| 2 | " in capsys.readouterr().out


def test_the_record_shows_what_the_page_says():
    """Of whatever it holds: its parts can be measured one by one."""
    record = json.loads(RECORD.read_text())
    assert all(e["difference"]["float64"] < 1e-10 for e in record["steps"])
    few, *_, many = record["steps"]
    assert many["loop"]["bytes"] / few["loop"]["bytes"] > 1.5 * many["recompute"]["bytes"] / few["recompute"]["bytes"]
    by_auto = {e["workload"]: e["estimate"]["bytes"] / e["truth"]["bytes"] for e in record["needs"] if e["auto"]}
    assert by_auto
    assert all(0.75 <= ratio <= 1.25 for ratio in by_auto.values()), by_auto
    few, *_, many = record["evaluation"]
    assert many["bytes"] < few["bytes"] + 20e6
