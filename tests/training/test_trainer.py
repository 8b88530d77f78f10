"""The trainer: resuming is as if nothing had happened, bad input stops it cleanly, the best epoch wins."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

import fewstep
from fewstep.models import MLP, Conv4
from fewstep.training.checkpoint import load_checkpoint

DATA = fewstep.strokes(classes=(30, 10, 10), drawers=4)
TASKS = DATA.tasks(ways=3, shots=1, queries=1)
LENGTH = {"epochs": 2, "iterations": 3, "meta_batch": 2, "validation_tasks": 4}


def learner(name="maml++", seed=1, dropout=0.2, **changes):
    """A network that draws random numbers, so that resuming must restore their state too."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(Conv4(ways=6, filters=4), torch.nn.Dropout(dropout), torch.nn.Linear(6, 3))
    return fewstep.Learner(model, fewstep.preset(name, steps=2, **changes))


def without_times(records):
    spent = ("seconds", "tasks_per_second", "peak_memory")
    return [{k: v for k, v in r.items() if k not in spent} for r in records]


class Crash(RuntimeError):
    pass


def crash_at(step):
    def watch(kind, record):
        if kind == "step" and record["step"] == step:
            raise Crash

    return watch


def interrupt_at(step, number=signal.SIGINT):
    def watch(kind, record):
        if kind == "step" and record["step"] == step:
            signal.raise_signal(number)

    return watch


@pytest.mark.parametrize("name", ["maml", "maml++"])
@pytest.mark.parametrize("step", [2, 3, 4])
@pytest.mark.parametrize("stop", ["crash", "SIGINT", "SIGTERM"])
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path, name, step, stop):
    straight = learner(name)
    whole = fewstep.train(straight, TASKS, tmp_path / "whole", **LENGTH)
    other = learner(name)
    if stop == "crash":
        with pytest.raises(Crash):
            fewstep.train(other, TASKS, tmp_path / "cut", watch=crash_at(step), **LENGTH)
    else:
        with pytest.raises(fewstep.Interrupted, match=f"stopped after outer step {step} of 6"):
            fewstep.train(other, TASKS, tmp_path / "cut", watch=interrupt_at(step, signal.Signals[stop]), **LENGTH)
    assert not fewstep.Run(tmp_path / "cut").finished
    begun = (tmp_path / "cut" / "checkpoints").is_dir()
    fresh = learner(name, seed=99 if begun else 1)  # other weights, another random state
    cut = fewstep.train(fresh, TASKS, tmp_path / "cut", **LENGTH)
    for a, b in ((whole.last, cut.last), (whole.epoch_path(1), cut.epoch_path(1))):
        if a.is_file() or b.is_file():
            left, right = load_checkpoint(a)[0], load_checkpoint(b)[0]
            assert left.keys() == right.keys()
            assert all(torch.equal(left[k], right[k]) for k in left)
    assert all(torch.equal(v, fresh.state_dict()[k]) for k, v in straight.state_dict().items())
    assert without_times(whole.metrics()) == without_times(cut.metrics())


KILLED = """
import torch, fewstep, sys, time
torch.set_num_threads(1)
sys.path.insert(0, {folder!r})
from test_trainer import TASKS, LENGTH, learner
def watch(kind, record):
    if kind == "step" and record["step"] == 4:
        print("now", flush=True)
        time.sleep(60)
fewstep.train(learner(), TASKS, {directory!r}, watch=watch, **LENGTH)
"""


def test_a_killed_process_continues_where_it_stopped(tmp_path):
    code = KILLED.format(folder=os.path.dirname(__file__), directory=str(tmp_path / "cut"))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"now\n"
    process.kill()
    process.wait()
    process.stdout.close()
    assert fewstep.Run(tmp_path / "cut").state()["step"] == 3
    straight = learner()
    fewstep.train(straight, TASKS, tmp_path / "whole", **LENGTH)
    other = learner(seed=99)
    fewstep.train(other, TASKS, tmp_path / "cut", **LENGTH)
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in straight.state_dict().items())


def test_the_best_epochs_are_kept_and_the_best_one_is_loaded(tmp_path):
    trained = learner("maml++")  # its recipe keeps three
    run = fewstep.train(trained, TASKS, tmp_path / "run", epochs=5, iterations=1, meta_batch=2, validation_tasks=6)
    values = [r["value"] for r in run.metrics() if r["kind"] == "validation"]
    best = run.best()
    assert [v for _, v in best] == sorted(values, reverse=True)[:3]
    assert all(values[epoch] == value for epoch, value in best)
    kept = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == sorted([f"epoch-{e:04d}.safetensors" for e, _ in best] + ["last.safetensors"])
    again = run.load(learner("maml++"))
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in trained.state_dict().items())
    members = run.ensemble(again, 3)
    score = fewstep.evaluate(again, TASKS, count=4, members=members)
    assert score.members == 3


def test_a_finished_run_trains_no_more(tmp_path):
    fewstep.train(learner(), TASKS, tmp_path / "run", **LENGTH)
    records = (tmp_path / "run" / "metrics.jsonl").read_text()
    fewstep.train(learner(), TASKS, tmp_path / "run", watch=crash_at(1), **LENGTH)
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == records


def test_another_configuration_is_refused(tmp_path):
    fewstep.train(learner(), TASKS, tmp_path / "run", **LENGTH)
    with pytest.raises(fewstep.BadInput, match=r"made with another configuration \(method.steps is 2 there, 3 now"):
        fewstep.train(fewstep.Learner(learner().model, fewstep.preset("maml++", steps=3)), TASKS,
                      tmp_path / "run", **LENGTH)  # fmt: skip
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("dear")
    with pytest.raises(fewstep.BadInput, match=r"not empty and not a run directory"):
        fewstep.train(learner(), TASKS, tmp_path / "other", **LENGTH)
    assert (tmp_path / "other" / "thesis.tex").read_text() == "dear"


def test_nan_in_data_stops_with_the_field_named_and_the_checkpoint_kept(tmp_path):
    def poisoned(numbers):
        batch = TASKS.train(numbers)
        if 8 in numbers:  # outer step 4, epoch 1
            batch.query_x[0, 0] = float("nan")
        return batch

    tasks = fewstep.Tasks(poisoned, TASKS.validation, TASKS.test)
    with pytest.raises(fewstep.BadInput, match=r"query_x of task 0 in the meta-batch holds values that are not finite"):
        fewstep.train(learner(), tasks, tmp_path / "run", **LENGTH)
    assert fewstep.Run(tmp_path / "run").state()["step"] == 3


def test_a_diverging_inner_rate_stops_with_epoch_step_and_tensor(tmp_path):
    torch.manual_seed(0)
    sine = fewstep.Learner(MLP(1, 1), fewstep.preset("maml", steps=40, rule__rate=1e6), F.mse_loss)
    before = {k: v.clone() for k, v in sine.state_dict().items()}
    with pytest.raises(
        fewstep.BadInput, match=r"the meta-loss is not finite in epoch 0, outer step 0.*lower inner rate"
    ):
        fewstep.train(sine, fewstep.sinusoid(), tmp_path / "run", epochs=1, iterations=2)
    assert all(torch.equal(before[k], v) for k, v in sine.state_dict().items())


FULL = """
import resource, signal, sys, torch, fewstep
torch.set_num_threads(1)
sys.path.insert(0, {folder!r})
from test_trainer import TASKS, LENGTH, learner
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
def watch(kind, record):
    if kind == "step" and record["step"] == 4:  # from here on there is room for records, not for checkpoints
        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
try:
    fewstep.train(learner(), TASKS, {directory!r}, watch=watch, **LENGTH)
except fewstep.BadInput as error:
    print(error)
"""


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path):
    """A real failing write: the process may not write files of that size any more."""
    directory = tmp_path / "run"
    code = FULL.format(folder=os.path.dirname(__file__), directory=str(directory))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert re.search(r"cannot save .*/checkpoints/.*safetensors: File too large; .* make room", done.stdout), done
    assert fewstep.Run(directory).state()["step"] == 3
    assert not list(directory.rglob("*.tmp"))
    straight = learner()
    fewstep.train(straight, TASKS, tmp_path / "whole", **LENGTH)
    other = learner(seed=99)
    fewstep.train(other, TASKS, directory, **LENGTH)
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in straight.state_dict().items())


def test_tied_weights_are_saved_and_resumed(tmp_path):
    def tied(seed):
        torch.manual_seed(seed)
        model = torch.nn.Sequential(
            torch.nn.Linear(1, 4), torch.nn.Tanh(), torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
        )
        model[3].weight = model[2].weight
        return fewstep.Learner(
            torch.nn.Sequential(model, torch.nn.Linear(4, 1)), fewstep.preset("maml", steps=1), F.mse_loss
        )

    length = {"epochs": 1, "iterations": 4, "meta_batch": 2, "validation_tasks": 2}
    straight, other = tied(0), tied(0)
    fewstep.train(straight, fewstep.sinusoid(), tmp_path / "whole", **length)
    with pytest.raises(fewstep.Interrupted):
        fewstep.train(other, fewstep.sinusoid(), tmp_path / "cut", watch=interrupt_at(2), **length)
    other = tied(1)
    fewstep.train(other, fewstep.sinusoid(), tmp_path / "cut", **length)
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in straight.state_dict().items())


def test_sizes_that_make_no_sense_are_refused_and_spoil_nothing(tmp_path):
    for name in LENGTH:
        with pytest.raises(fewstep.BadInput, match="must be at least 1"):
            fewstep.train(learner(), TASKS, tmp_path / "run", **{**LENGTH, name: 0})
    assert not (tmp_path / "run").exists()


def test_a_directory_where_nothing_was_learned_yet_takes_another_configuration(tmp_path):
    broken = fewstep.Learner(MLP(1, 1), fewstep.preset("maml", steps=40, rule__rate=1e6), F.mse_loss)
    with pytest.raises(fewstep.BadInput, match="diverged"):
        fewstep.train(broken, fewstep.sinusoid(), tmp_path / "run", epochs=1, iterations=2)
    mended = fewstep.Learner(MLP(1, 1), fewstep.preset("maml", steps=1), F.mse_loss)
    run = fewstep.train(mended, fewstep.sinusoid(), tmp_path / "run", epochs=1, iterations=2, validation_tasks=2)
    assert run.finished


def test_damaged_records_are_named_and_a_cut_off_last_line_is_not(tmp_path):
    run = fewstep.train(learner(), TASKS, tmp_path / "run", **LENGTH)
    path = run.directory / "metrics.jsonl"
    whole = path.read_text()
    path.write_text(whole[:-20])
    assert len(run.metrics()) == len(whole.splitlines()) - 1
    lines = whole.splitlines()
    path.write_text("\n".join([lines[0], "garbage", *lines[2:]]) + "\n")
    with pytest.raises(fewstep.BadInput, match=r"metrics.jsonl: line 2 is damaged"):
        run.metrics()


def test_the_run_directory_says_what_ran(tmp_path):
    annealed = learner(order=fewstep.methods.FirstThenSecond(until=0.5))
    run = fewstep.train(annealed, TASKS, tmp_path / "run", **LENGTH)
    assert fewstep.methods.from_json(run.config["method"]) == annealed.method
    assert run.config["tasks"]["name"] == "strokes"
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["torch"].startswith(torch.__version__[:4])
    validation = [r for r in run.metrics() if r["kind"] == "validation"]
    assert [r["epoch"] for r in validation] == [0, 1]
    assert len(validation[-1]["rates"]["0.head.weight"]) == 2
    assert validation[0]["order"] == "first"
    assert validation[1]["order"] == "second"
