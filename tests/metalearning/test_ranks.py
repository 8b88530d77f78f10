"""Two processes equal one. They are started once and write what they find; the tests compare it.

python tests/metalearning/test_ranks.py RANK FOLDER      what each of the two does
"""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from problems import conv_learner, images, lively, vectors
from safetensors.torch import load_file, save_file
from torch.utils._pytree import tree_map

import fewstep
from fewstep.metalearning.ranks import RankGone, Ranks
from fewstep.models import Conv4
from fewstep.training.checkpoint import load_checkpoint

SIZE = 2
EARLY, LATE = 0.05, 0.9
# Tasks of the meta-batch (the second rank has one fewer, or none), progress, micro-batch.
CASES = [(3, EARLY, 1), (1, LATE, None)]
LENGTH = {"epochs": 2, "iterations": 3, "meta_batch": 3, "validation_tasks": 5}


def meta_gradient(name, case, ranks):
    """Everything `meta_gradient` returns, by name, for Conv4 with batch norm."""
    count, progress, micro_batch = case
    torch.manual_seed(0)
    learner = conv_learner(lively(name, at_most=2), filters=2, size=8, strategy="loop", blocks=2)
    learner.ranks, learner.micro_batch = ranks, micro_batch
    found = learner.meta_gradient(images(tasks=count, shots=1, size=8), progress)
    statistics = {f"{n}.{part}": getattr(m, part) for n, m in found.statistics.items() for part in ("mean", "var")}
    one = {"loss": found.loss, "task_losses": found.task_losses, "query_logits": found.query_logits}
    return one | {f"gradient {n}": g for n, g in found.gradients.items()} | statistics


class Restless(torch.nn.Linear):
    """Asks for a value, which vmap cannot tell."""

    def __init__(self):
        super().__init__(4, 3, dtype=torch.float64)

    def forward(self, x):
        return super().forward(x) if x.sum().item() < 1e9 else x  # no value can be told under vmap


def fallen_back(ranks):
    """The gradient where `auto` tries `vectorized` first, for one task and a second pass."""
    torch.manual_seed(0)
    learner = fewstep.Learner(Restless(), fewstep.preset("maml", steps=2, sharpness__outer=0.1))
    learner.ranks = ranks
    batch = vectors(tasks=1)
    assert learner.chosen_strategy(batch) == "vectorized"
    gradients = learner.meta_gradient(batch).gradients
    assert learner.chosen_strategy(batch) == "loop"
    return gradients


def dropped(ranks):
    """The gradient of a model that draws random numbers, and what torch draws afterwards."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(), torch.nn.Linear(8, 3)).double()
    learner = fewstep.Learner(model, fewstep.preset("maml", steps=2, sharpness__outer=0.1))
    learner.ranks = ranks
    result = learner.meta_gradient(vectors(tasks=3))
    return result.gradients | {"task_losses": result.task_losses, "afterwards": torch.rand(8).double()}


def tasks(train=lambda _: None, poisoned=()):
    """Noise images, each task of its own; `train` is told the numbers, validation tasks may have a NaN."""

    def function(numbers):
        batch = fewstep.TaskBatch.concatenate([images(1, shots=1, size=8, seed=n) for n in numbers])
        for place, number in enumerate(numbers):
            if number in poisoned:
                batch.query_x[place] = float("nan")
        return batch

    def training(numbers):
        train(numbers)
        return function([1000 + n for n in numbers])

    return fewstep.Tasks(training, function, function)


def training(folder, ranks, dropout=0.0, source=None, seed=0):
    """Train in float64 by steps that depend on the gradient smoothly; the learner's state afterwards."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(Conv4(ways=3, filters=2, image_size=8, blocks=2), torch.nn.Dropout(dropout)).double()
    method = fewstep.preset("maml++", steps=2, outer__optimiser="sgd", order=fewstep.methods.SecondOrder())
    learner = fewstep.Learner(model, method)
    learner.ranks = ranks
    fewstep.train(learner, source or tasks(), folder, **LENGTH)
    return learner.state_dict()


def interrupt(numbers):
    if 3 in numbers:  # those of the second outer step, which may be drawn while the first is computed
        signal.raise_signal(signal.SIGINT)


def message(work):
    """What comes out of work that must fail."""
    try:
        work()
    except (fewstep.BadInput, KeyboardInterrupt, RankGone) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def worker(rank, folder):
    """What each of the two processes does."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=SIZE)
    ranks, tensors, said = Ranks(rank, SIZE), {}, {}

    def keep(label, found):
        tensors.update({f"{label}/{n}": t.contiguous() for n, t in found.items()})

    for name in fewstep.preset_names():
        for number, case in enumerate(CASES):
            keep(f"{name}/{number}", meta_gradient(name, case, ranks))
    keep("fallen back", fallen_back(ranks))
    keep("trained", training(folder / "trained", ranks, seed=rank))  # the first one's weights are everybody's
    keep("dropout", training(folder / "dropout", ranks, dropout=0.5))
    only_here = interrupt if rank == 1 else lambda _: None
    said["stopped"] = message(lambda: training(folder / "cut", ranks, dropout=0.5, source=tasks(only_here)))
    keep("resumed", training(folder / "cut", ranks, dropout=0.5, seed=7))
    bad = tasks(poisoned=[4] if rank == 1 else [])
    said["validation"] = message(lambda: training(folder / "bad", ranks, source=bad))
    said["refused"] = message(lambda: training(folder, ranks))
    keep("random", dropped(ranks))
    save_file(tensors, folder / f"{rank}.safetensors")
    if rank == 0:
        said["gone"] = message(lambda: meta_gradient("maml", CASES[0], ranks))
    (folder / f"{rank}.json").write_text(json.dumps(said))
    os._exit(0)  # without a farewell, as a process that was killed


if __name__ == "__main__":
    worker(int(sys.argv[1]), Path(sys.argv[2]))


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The folder, and of each rank its tensors and messages."""
    folder = tmp_path_factory.mktemp("ranks")
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(folder)], env=environment, stderr=subprocess.PIPE)
        for rank in range(SIZE)
    ]
    try:
        for process in processes:
            errors = process.communicate(timeout=300)[1].decode()
            assert process.returncode == 0, errors
    finally:  # where one has failed
        for process in processes:
            process.kill()
            process.communicate()
    return folder, [
        (load_file(folder / f"{rank}.safetensors"), json.loads((folder / f"{rank}.json").read_text()))
        for rank in range(SIZE)
    ]


def of(tensors, label):
    return {n.removeprefix(f"{label}/"): t for n, t in tensors.items() if n.startswith(f"{label}/")}


def test_all_ranks_have_the_same_bits(both):
    (first, _), (second, _) = both[1]
    assert first.keys() == second.keys()
    assert all(torch.equal(first[n], second[n]) for n in first)


@pytest.mark.parametrize("case", range(len(CASES)), ids=["3 tasks", "1 task"])
@pytest.mark.parametrize("name", fewstep.preset_names())
def test_the_meta_gradient_of_two_processes_is_that_of_one(both, name, case):
    expected = meta_gradient(name, CASES[case], Ranks())
    found = of(both[1][0][0], f"{name}/{case}")
    assert any(n.startswith("0.") or ".norm" in n for n in found)
    torch.testing.assert_close(found, tree_map(lambda t: t.contiguous(), expected), rtol=1e-10, atol=1e-10)


def test_all_ranks_fall_back_to_the_loop_together(both):
    torch.testing.assert_close(of(both[1][0][0], "fallen back"), fallen_back(Ranks()), rtol=1e-10, atol=1e-10)


def test_a_training_by_two_processes_is_that_of_one(both, tmp_path):
    folder, [(found, _), _] = both
    expected = training(tmp_path, Ranks())
    torch.testing.assert_close(of(found, "trained"), dict(expected), rtol=1e-9, atol=1e-9)
    two, one = (fewstep.Run(d).metrics() for d in (folder / "trained", tmp_path))
    assert len(two) == len(one) == 8
    for a, b in zip(two, one, strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() - {"seconds", "tasks_per_second", "peak_memory"}:
            if isinstance(a[name], str):
                assert a[name] == b[name]
            else:
                torch.testing.assert_close(a[name], b[name], rtol=1e-9, atol=1e-9)
    assert fewstep.Run(folder / "trained").environment["processes"] == 2
    last = (load_checkpoint(fewstep.Run(d).last)[0] for d in (folder / "trained", tmp_path))
    a, b = last
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_stopped_by_a_signal_to_one_and_resumed_is_as_if_never_stopped(both):
    for _, said in both[1]:
        assert re.match(r"Interrupted: stopped after outer step [12] of 6", said["stopped"])
    found = both[1][0][0]
    whole, resumed = of(found, "dropout"), of(found, "resumed")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[n], resumed[n]) for n in whole)


def test_what_fails_on_one_ends_all_alike(both):
    said = [messages for _, messages in both[1]]
    assert said[0]["validation"] == said[1]["validation"]
    assert "BadInput: process 1 of 2: query_x of task 1 in the meta-batch holds values" in said[0]["validation"]
    assert said[0]["refused"] == said[1]["refused"]
    assert "is not empty and not a run directory" in said[0]["refused"]
    assert "RankGone: another process of this training has ended" in said[0]["gone"]


def test_tasks_draw_the_same_numbers_with_any_number_of_processes(both):
    random, alone = of(both[1][0][0], "random"), dropped(Ranks())
    assert len(set(random["task_losses"].tolist())) == 3
    torch.testing.assert_close(random, alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [1, 2, 3, 8, 64])
@pytest.mark.parametrize("count", [1, 3, 8])
def test_the_parts_are_disjoint_and_all(size, count):
    parts = [Ranks(rank, size).part(count) for rank in range(size)]
    assert [n for part in parts for n in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
