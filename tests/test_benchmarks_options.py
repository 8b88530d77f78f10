"""The benchmark of options: its tables, and a training of each that needs no compiler."""

import doctest
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))  # the benchmark is not part of the installed package

from benchmarks import options, tables  # noqa: E402

RECORD = {
    "machine": {"processor": "A processor", "cores": 2},
    "speed": {"W4": {
        "seconds": {"default": [1.0, 1.0, 1.2], "bf16": [2.0, 2.0, 3.0], "compile": [0.5, 0.5, 0.6]},
        "first": {"empty": 99.6, "kept": 6.2},
    }},
    "accuracy": {"strokes": {
        "default": {"0": 0.5, "1": 0.6, "2": 0.7, "3": 0.1},
        "compile": {"0": 0.51, "1": 0.62, "2": 0.73},
    }},
}  # fmt: skip


def test_examples():
    assert doctest.testmod(options).failed == 0


def test_tables():
    shown = tables.markdown(RECORD)
    assert "| W4 | 1.000 | 0.50 (0.40–0.50) | 2.00 (2.00–2.00) | 100 | 6 |" in shown
    assert "| strokes | default | 50.0, 60.0, 70.0, 10.0 | – |" in shown
    assert "| strokes | compile | 51.0, 62.0, 73.0 | +2.0 ± 2.5 |" in shown  # 4.303 · 1 / √3


def test_accuracy_is_recorded_and_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(options, "prepare", lambda *_: None)  # the allocator of the test process stays as it is
    monkeypatch.setattr(options, "DATA", ("strokes",))
    monkeypatch.setattr(options, "BUDGET", {"epochs": 1, "iterations": 1, "meta_batch": 1, "validation_tasks": 2})
    record = tmp_path / "options.json"
    arguments = ["accuracy", "--seeds", "0", "1", "--options", "default", "bf16", "--threads", "1"]
    arguments += ["--directory", str(tmp_path / "runs"), "--json", str(record)]
    for _ in range(2):  # what is trained is not trained again
        options.main(arguments)
    found = json.loads(record.read_text())["accuracy"]["strokes"]
    assert found.keys() == {"default", "bf16"}
    assert all(len(values) == 2 and all(0 <= v <= 1 for v in values.values()) for values in found.values())
    assert "| strokes | bf16 |" in capsys.readouterr().out


def test_steps_are_timed_in_turn(monkeypatch):
    calls = []
    monkeypatch.setattr(options, "step", lambda _workload, option: lambda: calls.append(option))
    monkeypatch.setattr(options, "ask", lambda *_, **__: 2.0)
    found = options.speed("W4", rounds=2, threads=1)
    assert calls == list(options.OPTIONS) * 3  # one that does not count
    assert found["first"] == {"empty": 2.0, "kept": 2.0}
    assert all(len(seconds) == 2 for seconds in found["seconds"].values())


@pytest.mark.parametrize(
    ("arguments", "says"), [(["speed", "W9"], "'W9' is not a workload that trains"), (["speed", "W7"], "W7")]
)
def test_mistakes_are_told_in_a_sentence(arguments, says, capsys):
    with pytest.raises(SystemExit):
        options.main(arguments)
    assert says in capsys.readouterr().err
