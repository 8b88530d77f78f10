"""Outer steps that are read some at a time, as on an accelerator: nothing waits, nothing that is not finite stays."""

import pytest
import torch
from problems import conv_learner, images, with_rates

import fewstep
from fewstep.models import Conv4
from fewstep.training import ledger, trainer
from fewstep.training.checkpoint import load_checkpoint

TASKS = fewstep.strokes(classes=(30, 10, 10), drawers=4).tasks(ways=3, shots=1, queries=1)
LENGTH = {"epochs": 2, "iterations": 3, "meta_batch": 2, "validation_tasks": 4}


def learner(name="maml++"):
    torch.manual_seed(1)
    return fewstep.Learner(Conv4(ways=3, filters=4), fewstep.preset(name, steps=2))


@pytest.fixture
def late(monkeypatch):
    """The CPU is treated as a device that must be waited for; steps are read at the end of an epoch."""
    monkeypatch.setattr(ledger, "waits", lambda _: False)
    monkeypatch.setattr(trainer, "RECORDS_AN_EPOCH", 1)


def poisoned(step):
    """Tasks with a NaN in an outer step."""

    def train(numbers):
        batch = TASKS.train(numbers)
        if step * LENGTH["meta_batch"] in numbers:
            batch.query_x[1, 0] = float("nan")
        return batch

    return fewstep.Tasks(train, TASKS.validation, TASKS.test)


def test_when_steps_are_read_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "RECORDS_AN_EPOCH", 1)
    soon, later = learner(), learner()
    first = fewstep.train(soon, TASKS, tmp_path / "soon", **LENGTH)
    monkeypatch.setattr(ledger, "waits", lambda _: False)
    second = fewstep.train(later, TASKS, tmp_path / "late", **LENGTH)
    assert all(torch.equal(v, later.state_dict()[k]) for k, v in soon.state_dict().items())
    told = [[(r["step"], r.get("loss"), r.get("accuracy"), r.get("value")) for r in run.metrics()]
            for run in (first, second)]  # fmt: skip
    assert told[0] == told[1]


@pytest.mark.usefixtures("late")
@pytest.mark.parametrize("step", [1, 4])
def test_what_is_not_finite_is_undone_and_named(tmp_path, step):
    trained, applied = learner(), []
    start = {k: v.clone() for k, v in trained.state_dict().items()}
    with pytest.raises(fewstep.BadInput, match=r"query_x of task 1 in the meta-batch holds values that are not finite"):
        fewstep.train(trained, poisoned(step), tmp_path, watch=lambda kind, _: applied.append(kind), **LENGTH)
    run = fewstep.Run(tmp_path)
    assert applied.count("step") == {1: 2, 4: 5}[step]  # the steps after it ran: nobody had looked
    if step == 1:
        assert not run.last.exists()
        kept = start
    else:
        assert run.state()["step"] == 3
        kept = {k.removeprefix("learner."): v for k, v in load_checkpoint(run.last)[0].items() if "learner." in k}
    assert all(torch.equal(v, kept[k]) for k, v in trained.state_dict().items())


@pytest.mark.usefixtures("late")
def test_a_divergence_names_epoch_step_and_tensor(tmp_path):
    torch.manual_seed(0)
    wild = with_rates(fewstep.preset("maml", steps=40), 1e6)
    sine = fewstep.Learner(fewstep.models.MLP(1, 1), wild, torch.nn.functional.mse_loss)
    with pytest.raises(fewstep.BadInput, match=r"^the meta-loss is not finite in epoch 0, outer step 0: .*diverged"):
        fewstep.train(sine, fewstep.sinusoid(), tmp_path, **LENGTH)
    assert all(t.isfinite().all() for t in sine.state_dict().values())


@pytest.mark.parametrize(
    ("name", "strategy"),
    [("maml++", "vectorized"), ("maml++", "loop"), ("maml++", "recompute"), ("sharp-maml-both", "vectorized"),
     ("meta-sgd", "vectorized"), ("reptile", "vectorized")],
)  # fmt: skip
def test_an_outer_step_asks_the_device_for_nothing(tmp_path, monkeypatch, name, strategy):
    """Tensors without data run everything and cannot tell a value: only the read of the record asks for one."""
    monkeypatch.setattr(trainer, "RECORDS_AN_EPOCH", 1)
    made, steps = conv_learner(fewstep.preset(name, steps=2), size=16, strategy=strategy).to("meta"), []
    tasks = fewstep.Tasks(*[lambda numbers: images(tasks=len(numbers), size=16)] * 3)
    with pytest.raises(RuntimeError, match=r"meta tensors?|aten::_local_scalar_dense|'meta'|Meta"):
        fewstep.train(made, tasks, tmp_path, watch=lambda _, record: steps.append(record["step"]), **LENGTH)
    assert steps == [1, 2]  # the third is read before it is told


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["maml++", "sharp-maml-both"])
def test_torch_sees_no_synchronisation_in_an_outer_step(name):
    made, batch = learner(name).to("cuda"), TASKS.train(range(4))
    optimizer = made.method.outer.optimizer(dict(made.meta_parameters()))
    book = ledger.Ledger(made, 3, lambda _: batch)
    for number in range(3):
        torch.cuda.set_sync_debug_mode("default" if number == 0 else "error")  # the first step warms up
        try:
            here = batch.to("cuda")
            result = made.meta_gradient(here)
            book.note(number, result, here.query_y)
            trainer._outer_step(optimizer, made.meta_parameters(), made.method.outer.clamped(result.gradients), 1e-3)
            made.update_running(result.statistics)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    book.read()
    assert book.sums.steps == 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("made", "taken"), [("cpu", "cuda"), ("cuda", "cpu")])
def test_a_run_goes_on_on_another_device(tmp_path, made, taken):
    def stop(kind, record):
        if kind == "step" and record["step"] == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fewstep.train(learner().to(made), TASKS, tmp_path, watch=stop, **LENGTH)
    assert fewstep.Run(tmp_path).state()["step"] == 3
    other = learner().to(taken)
    assert fewstep.train(other, TASKS, tmp_path, **LENGTH).finished
    values = [fewstep.evaluate(other.to(where), TASKS, count=20).value for where in (taken, made)]
    assert values[0] == pytest.approx(values[1], abs=0.05)
