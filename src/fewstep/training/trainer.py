"""The outer loop: sample a meta-batch, take its meta-gradient, step; validate and save at the end of every epoch."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from fewstep.errors import BadInput
from fewstep.metalearning.learner import Learner
from fewstep.methods import to_json
from fewstep.tasks.batch import TaskBatch
from fewstep.tasks.source import Tasks
from fewstep.training.alone import alone
from fewstep.training.checkpoint import (
    load_checkpoint,
    optimizer_tensors,
    restore_module,
    restore_optimizer,
    save_checkpoint,
    with_prefix,
    without_prefix,
)
from fewstep.training.evaluation import validate
from fewstep.training.interrupt import Interrupted, stopping
from fewstep.training.ledger import Ledger, Sums
from fewstep.training.run import Run, peak_memory

SAVE_EVERY = 120  # seconds between checkpoints inside an epoch: what a crash can cost
RECORDS_AN_EPOCH = 10  # points of the training curve


@dataclass
class State:
    """Where a training stands; all that a checkpoint records beside tensors.

    step, total: outer steps done, and in all. best: [epoch, goodness] of the kept epochs, best first.
    sums: the training record in the making. seconds: spent so far.
    """

    step: int
    total: int
    best: list[list[float]] = field(default_factory=list)
    sums: Sums = field(default_factory=Sums)
    seconds: float = 0.0


Watch = Callable[[str, dict[str, Any]], None]  # called with ("step" | "train" | "validation", record)


def train(
    learner: Learner,
    tasks: Tasks,
    directory: str | Path,
    *,
    epochs: int | None = None,
    iterations: int | None = None,
    meta_batch: int | None = None,
    validation_tasks: int = 600,
    config: dict[str, Any] | None = None,
    watch: Watch | None = None,
) -> Run:
    """Meta-train a learner, resumably; it ends with the weights of its best validation epoch.

        meta ← meta − outer(∇_meta meta-loss(meta-batch t)),   t = 0 … epochs · iterations − 1

    The same call on an unfinished directory goes on where it stopped, with the same result as if it never had.

    Arguments:
        learner: what to train; where its `ranks` are several processes, all of them call this.
        tasks: where its tasks come from; task i is a pure function of i. directory: the run directory.
        epochs, iterations, meta_batch: outer steps are epochs × iterations, of `meta_batch` tasks each; those of the
            method's recipe where None.
        validation_tasks: tasks that every epoch is validated on; the best `recipe.ensemble` epochs are kept.
        config: recorded beside what this call knows; a directory made with another configuration is refused.
        watch: called with what happens, for progress bars; by the first process alone.

    Raises:
        BadInput: a loss or gradient that is not finite (names epoch, step and tensor; nothing of that step is applied
            and the last checkpoint stays; on an accelerator it is noticed at the next record, and the learner goes back
            to the one before), a directory of another run or in which another process trains, a full disk.
        RankGone: another process of this training ended.
        Interrupted: Ctrl-C or SIGTERM, after the current outer step and a checkpoint.

    Example:
        >>> import fewstep, tempfile
        >>> learner = fewstep.Learner(fewstep.models.MLP(1, 1), fewstep.preset("maml", setting="sinusoid"),
        ...                           loss=torch.nn.functional.mse_loss)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = train(learner, fewstep.sinusoid(), folder, epochs=1, iterations=2, validation_tasks=4)
        ...     run.finished
        True
    """
    recipe, run = learner.method.recipe, Run(Path(directory))
    epochs = recipe.epochs if epochs is None else epochs
    iterations = recipe.iterations if iterations is None else iterations
    meta_batch = recipe.tasks if meta_batch is None else meta_batch
    check_length(epochs, iterations, meta_batch, validation_tasks)
    training = {"epochs": epochs, "iterations": iterations, "meta_batch": meta_batch,
                "validation_tasks": validation_tasks}  # fmt: skip
    described = {
        **(config or {}),
        "method": to_json(learner.method),
        "tasks": tasks.description,
        "training": training,
        "precision": None if learner.precision == "float32" else learner.precision,  # None: as in a run without it
        "parameters": {name: list(p.shape) for name, p in learner.meta_parameters().items()},
    }
    with ExitStack() as held:
        learner.ranks.on_first(lambda: held.enter_context(alone(run.directory)))
        learner.ranks.on_first(lambda: run.open(described, str(learner.device), learner.ranks.size))
        _train(run, learner, tasks, **training, watch=watch)
    return run


def _train(
    run: Run,
    learner: Learner,
    tasks: Tasks,
    epochs: int,
    iterations: int,
    meta_batch: int,
    validation_tasks: int,
    watch: Watch | None,
) -> None:
    """From the run's last checkpoint to its end."""
    ranks = learner.ranks
    parameters = learner.meta_parameters()
    optimizer = learner.method.outer.optimizer(dict(parameters))
    state = ranks.together(lambda: _restore(run, learner, optimizer, State(0, epochs * iterations)))
    _start_alike(learner, state)
    ranks.on_first(lambda: run.rewind(state.step))  # records of work that a crash lost
    say = watch if watch and ranks.first else lambda *_: None
    saved = time.perf_counter()

    def drawn(step: int) -> TaskBatch:
        return tasks.train(range(step * meta_batch, (step + 1) * meta_batch))

    ledger = Ledger(learner, iterations, drawn)
    with stopping() as stop:
        while state.step < state.total:
            started = time.perf_counter()
            progress = state.step / state.total
            batch = drawn(state.step)
            learner.check(tree_map(lambda t: t[0], batch.support_x), batch.support_y)
            batch = batch.to(learner.device)
            result = learner.meta_gradient(batch, progress)
            ledger.note(state.step, result, batch.query_y, state.sums)
            rate = learner.method.outer.rate(progress)
            _outer_step(optimizer, parameters, learner.method.outer.clamped(result.gradients), rate)
            learner.update_buffers(result)
            state.step += 1
            epoch, iteration = divmod(state.step - 1, iterations)
            recorded = (iteration + 1) % max(iterations // RECORDS_AN_EPOCH, 1) == 0 or iteration + 1 == iterations
            if recorded:
                ledger.read(state.sums)
            state.sums.seconds += time.perf_counter() - started
            state.seconds += time.perf_counter() - started
            say("step", {"step": state.step, "total": state.total, "epoch": epoch, "epochs": epochs, "rate": rate})
            if recorded:
                record = _train_record(state, epoch, meta_batch, rate, batch)
                ranks.on_first(partial(run.append, record))
                say("train", record)
                state.sums = Sums()

            if iteration + 1 == iterations:
                _validate(run, learner, tasks, state, epoch, progress, validation_tasks, say)
            stopped, late = ranks.any(stop.asked, time.perf_counter() - saved >= SAVE_EVERY)
            if iteration + 1 < iterations and not stopped and not late:
                continue
            ledger.read(state.sums)  # nothing is saved that was not looked at
            ranks.on_first(lambda: _save(run, learner, optimizer, state))
            saved = time.perf_counter()
            if stopped and state.step < state.total:
                raise Interrupted(f"stopped after outer step {state.step} of {state.total}; saved in {run.directory}")
    ranks.on_first(lambda: run.load(learner))
    ranks.copy(learner.state_dict().values())


def check_length(epochs: int, iterations: int, meta_batch: int, validation_tasks: int) -> None:
    """Raise BadInput unless all are at least 1."""
    sizes = {"epochs": epochs, "iterations": iterations, "tasks in a meta-batch": meta_batch,
             "validation tasks": validation_tasks}  # fmt: skip
    for name, value in sizes.items():
        if value < 1:
            raise BadInput(f"the number of {name} is {value}; it must be at least 1")


def _outer_step(optimizer: torch.optim.Optimizer, parameters: dict, gradients: dict[str, Tensor], rate: float) -> None:
    for name, parameter in parameters.items():
        parameter.grad = gradients[name]
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad()


def _train_record(state: State, epoch: int, meta_batch: int, rate: float, batch: TaskBatch) -> dict[str, Any]:
    sums = state.sums
    return {
        "kind": "train",
        "step": state.step,
        "epoch": epoch,
        "loss": sums.loss / sums.steps,
        "accuracy": None if batch.query_y.is_floating_point() else sums.accuracy / sums.steps,
        "outer_rate": rate,
        "tasks_per_second": sums.steps * meta_batch / max(sums.seconds, 1e-9),
        "seconds": state.seconds,
    }


def _validate(
    run: Run, learner: Learner, tasks: Tasks, state: State, epoch: int, progress: float, count: int, say: Watch
) -> None:
    """Validate the epoch, keep it if it is among the best, record it with the learned rates."""
    score = validate(learner, tasks, count)
    state.seconds += score.seconds
    kept = max(learner.method.recipe.ensemble, 1)
    best = sorted([*state.best, [epoch, score.goodness]], key=lambda entry: -entry[1])[:kept]
    state.best = best
    record = {
        "kind": "validation",
        "step": state.step,
        "epoch": epoch,
        "metric": score.metric,
        "value": score.value,
        "interval95": score.interval95,
        "count": count,
        "statistics": score.statistics,
        "best_epoch": best[0][0],
        "order": learner.method.order(progress),
        "step_weights": list(learner.method.step_weights(progress, learner.method.steps)),
        "rates": {n[6:]: p.tolist() for n, p in learner.meta_parameters().items()
                  if n.startswith("rates.") and p.numel() <= 64},
        "seconds": state.seconds,
        "peak_memory": peak_memory(),
    }  # fmt: skip

    def keep() -> None:
        if [epoch, score.goodness] in best:
            save_checkpoint(run.epoch_path(epoch), with_prefix("learner.", learner.state_dict()), {"epoch": epoch})
        run.append(record)

    learner.ranks.on_first(keep)
    say("validation", record)


def _save(run: Run, learner: Learner, optimizer: torch.optim.Optimizer, state: State) -> None:
    names = list(learner.meta_parameters())
    tensors = with_prefix("learner.", learner.state_dict())
    tensors |= with_prefix("optimizer.", optimizer_tensors(optimizer, names))
    tensors["random"] = torch.get_rng_state()
    if learner.device.type == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state(learner.device)
    save_checkpoint(run.last, tensors, asdict(state))
    kept = {run.epoch_path(int(epoch)) for epoch, _ in state.best}
    for path in set(run.last.parent.glob("epoch-*.safetensors")) - kept:
        path.unlink()  # only now: the checkpoint that names the best ones is on the disk


def _restore(run: Run, learner: Learner, optimizer: torch.optim.Optimizer, start: State) -> State:
    """Where the run's last checkpoint stands, put into learner and optimiser; `start` where it has none."""
    if not run.last.is_file():
        return start
    tensors, record = load_checkpoint(run.last)
    restore_module(learner, without_prefix("learner.", tensors), run.last)
    restore_optimizer(optimizer, list(learner.meta_parameters()), without_prefix("optimizer.", tensors))
    torch.set_rng_state(tensors["random"])
    if learner.device.type == "cuda" and "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"], learner.device)
    return State(**{**record, "sums": Sums(**record["sums"])})


def _start_alike(learner: Learner, state: State) -> None:
    """Give every rank the first one's weights and random numbers; refuse ranks that found another checkpoint."""
    random, step = torch.get_rng_state(), torch.tensor(state.step)
    learner.ranks.copy([*learner.state_dict().values(), random, step])
    torch.set_rng_state(random)
    if any(learner.ranks.any(int(step) != state.step)):
        raise BadInput(
            "the processes found different checkpoints: on several machines, --directory must be a folder they share"
        )
