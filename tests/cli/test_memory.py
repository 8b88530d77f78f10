"""What `train` says of memory, and what it advises."""

import pytest
import torch
from problems import conv_learner, images

import fewstep
from fewstep.cli import memory
from fewstep.cli.memory import Memory, machine_memory, memory_line
from fewstep.metalearning.memory import memory_needed

PLENTY = Memory(2**40, 2**40)


def learner(strategy, steps=3):
    return conv_learner(fewstep.preset("maml", steps=steps), filters=16, size=28, strategy=strategy)


def test_what_fits_is_said_without_advice():
    assert memory_line(learner("loop"), images(size=28), PLENTY).startswith("needs about ")
    assert ":" not in memory_line(learner("loop"), images(size=28), PLENTY)


def test_fewer_tasks_at_once_where_that_is_enough():
    made, batch = learner("vectorized"), images(tasks=8, size=28)
    free = memory_needed(made, batch).bytes // 2
    line = memory_line(made, batch, Memory(free, 2**40))
    size = int(line.partition("use --micro-batch ")[2].split()[0])
    assert 1 <= size <= 6
    made.micro_batch = size
    assert memory_needed(made, batch).bytes < 1.4 * free


def test_recompute_where_not_even_one_task_fits():
    made, batch = learner("loop", steps=16), images(tasks=1, size=28)
    line = memory_line(made, batch, Memory(int(memory_needed(made, batch).bytes * 0.6), 2**40))
    assert "are free: use --strategy recompute (about " in line


def test_nothing_fits():
    line = memory_line(learner("recompute"), images(size=28), Memory(1000, 2**40))
    assert line.endswith("no strategy fits; use fewer ways, shots or queries, smaller images or fewer filters")


def test_more_than_there_is_in_all_is_refused():
    with pytest.raises(
        fewstep.BadInput, match=r"^training needs about \d+ MiB of memory, and this machine has 1 MiB: "
    ):
        memory_line(learner("loop"), images(size=28), Memory(1000, 2**20))


def test_a_control_group_limits_what_the_machine_has(monkeypatch, tmp_path):
    found = machine_memory(torch.device("cpu"))
    assert 0 < found.free <= found.total
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    (tmp_path / "memory.current").write_text("600000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert machine_memory(torch.device("cpu")).total >= found.total
    (tmp_path / "memory.max").write_text("1000000\n")
    assert machine_memory(torch.device("cpu")) == (400_000, 1_000_000)
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 100000\n")
    assert machine_memory(torch.device("cpu")) == (500_000, 1_000_000)


def test_a_machine_that_does_not_tell(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "none")
    assert machine_memory(torch.device("cpu")) is None
    assert ":" not in memory_line(learner("loop"), images(size=28))
