"""The record of memory: estimates are what fresh processes then take; its page comes from the record."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))  # the benchmark is not part of the installed package

from benchmarks import memory, memory_page  # noqa: E402

RECORD = ROOT / "results" / "memory.json"


@pytest.fixture(autouse=True)
def _here(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["loop", "vectorized", "recompute"])
def test_an_estimate_is_what_a_fresh_process_then_takes(strategy):
    shapes = {"workload": "W2", "strategy": strategy, "tasks": 4, "steps": 4, "filters": 48}
    true, estimate = (memory.several(do, 3, **shapes)["bytes"] for do in ("truth", "foreseen"))
    assert estimate == pytest.approx(true, rel=0.25)


def test_a_fresh_process_tells_truth_and_estimate():
    shapes = {"workload": "W2", "strategy": "loop", "tasks": 3, "steps": 3, "filters": 32}
    true, estimate = memory.ask("truth", **shapes), memory.ask("foreseen", **shapes)
    assert true["strategy"] == estimate["strategy"] == "loop"
    assert estimate["bytes"] == pytest.approx(true["bytes"], rel=0.5)  # of one process each; medians are closer


def test_the_page_has_what_was_measured():
    record = json.loads(RECORD.read_text())
    page = (ROOT / "docs" / "memory.md").read_text()
    assert memory_page.markdown(record) in page
    assert memory_page.svg(record["steps"]) == (ROOT / "docs" / "performance" / "memory.svg").read_text()


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
