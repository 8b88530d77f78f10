"""The trainer: resuming is as if nothing had happened, bad input stops it cleanly, the best epoch wins."""

import functools
import json
import os
import re
import signal
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import fewstep
from fewstep.models import MLP, Conv4
from fewstep.training.checkpoint import load_checkpoint
from fewstep.training.identity import named

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


def assert_alike(whole, cut):
    """Two runs: the same checkpoints, and the same records."""
    names = [sorted(p.name for p in run.last.parent.iterdir()) for run in (whole, cut)]
    assert names[0] == names[1]
    for name in names[0]:
        left, right = (load_checkpoint(run.last.parent / name)[0] for run in (whole, cut))
        assert left.keys() == right.keys()
        assert all(torch.equal(left[k], right[k]) for k in left)
    assert whole.best() == cut.best()
    assert without_times(whole.metrics()) == without_times(cut.metrics())


@pytest.mark.parametrize("name", ["maml", "maml++"])
@pytest.mark.parametrize("step", [2, 3, 4, 6])
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
    assert_alike(whole, cut)
    assert all(torch.equal(v, fresh.state_dict()[k]) for k, v in straight.state_dict().items())


def failing(where, error):
    """Tasks whose validation fails the so-manieth time that it is begun."""
    begun = []

    def validation(numbers):
        begun.extend([0] if 0 in numbers else [])
        if len(begun) == where:
            raise error
        return TASKS.validation(numbers)

    return fewstep.Tasks(TASKS.train, validation, TASKS.test, TASKS.description)


@pytest.mark.parametrize("epoch", [0, 1])
@pytest.mark.parametrize("error", [fewstep.BadInput("a file is gone"), KeyboardInterrupt()], ids=["bad", "interrupt"])
def test_a_validation_that_fails_loses_nothing(tmp_path, epoch, error):
    straight = learner()
    whole = fewstep.train(straight, TASKS, tmp_path / "whole", **LENGTH)
    with pytest.raises(type(error)):
        fewstep.train(learner(), failing(epoch + 1, error), tmp_path / "cut", **LENGTH)
    cut = fewstep.Run(tmp_path / "cut")
    assert cut.state()["step"] == 3 * (epoch + 1)
    assert not cut.finished  # at the last epoch too: it waits for its validation
    assert [r["epoch"] for r in cut.metrics() if r["kind"] == "validation"] == [0][:epoch]
    fresh = learner(seed=99)
    fewstep.train(fresh, TASKS, tmp_path / "cut", **LENGTH)
    assert cut.finished
    assert_alike(whole, cut)
    assert all(torch.equal(v, fresh.state_dict()[k]) for k, v in straight.state_dict().items())


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_crash_between_a_validation_and_its_checkpoint_doubles_no_record(tmp_path, epoch):
    def watch(kind, record):
        if kind == "validation" and record["epoch"] == epoch:
            raise Crash

    whole = fewstep.train(learner(), TASKS, tmp_path / "whole", **LENGTH)
    with pytest.raises(Crash):
        fewstep.train(learner(), TASKS, tmp_path / "cut", watch=watch, **LENGTH)
    assert_alike(whole, fewstep.train(learner(seed=99), TASKS, tmp_path / "cut", **LENGTH))


def test_a_validation_task_that_diverges_ends_nothing(tmp_path):
    """Support examples so large that adapting to them gives NaN from finite data."""

    def tasks(numbers):
        y = torch.arange(3).repeat(len(numbers), 4)
        x = F.one_hot(y, 4).double()
        sizes = torch.tensor([1e200 if n == 1 else 1.0 for n in numbers], dtype=x.dtype)[:, None, None]
        return fewstep.TaskBatch(x * sizes, y, x + 1, y)

    made = fewstep.Learner(torch.nn.Linear(4, 3).double(), fewstep.preset("maml", steps=2))
    source = fewstep.Tasks(lambda numbers: tasks([n + 10 for n in numbers]), tasks, tasks)
    run = fewstep.train(made, source, tmp_path, **LENGTH)
    records = [r for r in run.metrics() if r["kind"] == "validation"]
    assert [r["diverged"] for r in records] == [1, 1]
    assert all(0 < r["value"] < 1 for r in records)


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


def test_the_best_value_is_the_recorded_one_also_of_a_loss(tmp_path):
    sine = fewstep.Learner(MLP(1, 1), fewstep.preset("maml", setting="sinusoid"), F.mse_loss)
    run = fewstep.train(sine, fewstep.sinusoid(), tmp_path, **LENGTH | {"epochs": 3})
    values = {r["epoch"]: r["value"] for r in run.metrics() if r["kind"] == "validation"}
    assert run.best() == [min(values.items(), key=lambda entry: entry[1])]
    assert run.best()[0][1] > 0


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


@pytest.mark.parametrize(
    ("model", "loss", "message"),
    [
        (torch.nn.ReLU(), F.l1_loss, r"\(loss is torch.nn.functional.mse_loss there, torch.*functional.l1_loss now\);"),
        (torch.nn.ReLU(), torch.nn.MSELoss(), r"torch.nn.modules.loss.MSELoss: MSELoss\(\) now"),
        (torch.nn.Tanh(), F.mse_loss, r"\(model is \(1\): ReLU\(\) there, \(1\): Tanh\(\) now\); choose another --dir"),
    ],
)
def test_another_loss_or_model_of_equal_shapes_is_refused(tmp_path, model, loss, message):
    def made(middle, loss):
        layers = torch.nn.Sequential(torch.nn.Linear(1, 4), middle, torch.nn.Linear(4, 1))
        return fewstep.Learner(layers, fewstep.preset("maml", steps=1), loss)

    fewstep.train(made(torch.nn.ReLU(), F.mse_loss), fewstep.sinusoid(), tmp_path, **LENGTH)
    with pytest.raises(fewstep.BadInput, match=message):
        fewstep.train(made(model, loss), fewstep.sinusoid(), tmp_path, **LENGTH)
    config = json.loads((tmp_path / "config.json").read_text())
    for key in ("loss", "model"):  # as before they were recorded: what is not there is not compared
        del config[key]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert fewstep.train(made(model, loss), fewstep.sinusoid(), tmp_path, **LENGTH).finished


def test_a_loss_is_the_same_one_in_every_process():
    twice = [named(functools.partial(F.cross_entropy, label_smoothing=0.1)) for _ in range(2)]
    assert twice[0] == twice[1]
    assert "cross_entropy" in twice[0]
    assert "0x" not in twice[0]


def test_a_checkpoint_of_before_validations_were_noted_goes_on(tmp_path):
    whole = fewstep.train(learner(), TASKS, tmp_path / "whole", **LENGTH)
    with pytest.raises(Crash):
        fewstep.train(learner(), TASKS, tmp_path / "cut", watch=crash_at(4), **LENGTH)
    last = fewstep.Run(tmp_path / "cut").last
    tensors, record = load_checkpoint(last)
    assert record.pop("validated") is True
    save_file(tensors, last, metadata={"fewstep": json.dumps(record)})
    assert_alike(whole, fewstep.train(learner(seed=99), TASKS, tmp_path / "cut", **LENGTH))


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
