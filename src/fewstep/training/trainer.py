"""The outer loop: sample a meta-batch, take its meta-gradient, step; save, then validate at the end of every epoch."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

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
from fewstep.training.clock import Clock
from fewstep.training.drawing import Ahead, drawn
from fewstep.training.evaluation import validate
from fewstep.training.identity import identity
from fewstep.training.interrupt import Interrupted, Stop, stopping
from fewstep.training.interval import plain
from fewstep.training.ledger import Ledger, Sums
from fewstep.training.run import Run, peak_memory

SAVE_EVERY = 120  # seconds between checkpoints inside an epoch: what a crash can cost
RECORDS_AN_EPOCH = 10  # points of the training curve


@dataclass
class State:
    """Where a training stands; what a checkpoint records beside tensors and the ledger's sums.

    step, total: outer steps done, and in all. best: [epoch, goodness] of the kept epochs, best first.
    seconds: spent so far. validated: False from the last step of an epoch until its validation.
    """

    step: int
    total: int
    best: list[list[float]] = field(default_factory=list)
    seconds: float = 0.0
    validated: bool = True

    @property
    def done(self) -> bool:
        return self.step == self.total and self.validated

    @property
    def progress(self) -> float:
        """The fraction of the training that is done."""
        return self.step / self.total


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
        tasks: where its tasks come from; task i is a pure function of i, drawn on a thread while the step before it is
            computed. directory: the run directory.
        epochs, iterations, meta_batch: outer steps are epochs × iterations, of `meta_batch` tasks each; those of the
            method's recipe where None.
        validation_tasks: tasks that every epoch is validated on; the best `recipe.ensemble` epochs are kept.
        config: recorded beside what this call knows; a directory made with another configuration, model or loss is
            refused.
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
    length = {
        "epochs": recipe.epochs if epochs is None else epochs,
        "iterations": recipe.iterations if iterations is None else iterations,
        "meta_batch": recipe.tasks if meta_batch is None else meta_batch,
        "validation_tasks": validation_tasks,
    }
    check_length(**length)
    described = {
        **(config or {}),
        **identity(learner),
        "method": to_json(learner.method),
        "tasks": tasks.description,
        "training": length,
        "precision": None if learner.precision == "float32" else learner.precision,  # None: as in a run without it
        "parameters": {name: list(p.shape) for name, p in learner.meta_parameters().items()},
    }
    say = watch if watch and learner.ranks.first else lambda *_: None
    with ExitStack() as held:
        learner.ranks.on_first(lambda: held.enter_context(alone(run.directory)))
        learner.ranks.on_first(lambda: run.open(described, str(learner.device), learner.ranks.size))
        _Training(run, learner, tasks, **length, say=say).go_on()
    return run


@dataclass
class _Training:
    """A training under way: `train`'s arguments, and where it stands."""

    run: Run
    learner: Learner
    tasks: Tasks
    epochs: int
    iterations: int
    meta_batch: int
    validation_tasks: int
    say: Watch
    parameters: dict[str, nn.Parameter] = field(init=False)
    optimizer: torch.optim.Optimizer = field(init=False)
    state: State = field(init=False)
    ledger: Ledger = field(init=False)
    clock: Clock = field(init=False)

    def go_on(self) -> None:
        """From the run's last checkpoint to its end."""
        learner, ranks, iterations = self.learner, self.learner.ranks, self.iterations
        self.parameters = learner.meta_parameters()
        self.optimizer = learner.method.outer.optimizer(dict(self.parameters))
        self.state, sums = ranks.together(self._restored)
        _start_alike(learner, self.state)
        ranks.on_first(lambda: self.run.rewind(self.state.step, self.state.validated))  # of work that a crash lost
        with Ahead(self._draw, iterations) as batches, stopping() as stop:
            self.ledger = Ledger(learner, iterations, batches, sums)
            self._loop(batches, stop)
        ranks.on_first(lambda: self.run.load(learner))
        ranks.copy(learner.state_dict().values())

    def _loop(self, batches: Ahead, stop: Stop) -> None:
        learner, outer, state, ledger = self.learner, self.learner.method.outer, self.state, self.ledger
        self.clock, saved = Clock(), Clock()
        while not state.done:
            if state.validated:
                batch = batches(state.step)
                result = learner.meta_gradient(batch, state.progress)
                ledger.note(state.step, result, batch.query_y.to(learner.device, non_blocking=True))
                rate = outer.rate(state.progress)
                _outer_step(self.optimizer, self.parameters, outer.clamped(result.gradients), rate)
                learner.update_buffers(result)
                state.step += 1
                state.validated = state.step % self.iterations > 0  # the epoch's weights are saved, then validated
                self._tell(rate)
            else:
                self._validate()
                state.validated = True
            stopped, late = learner.ranks.any(stop.asked, saved.past(SAVE_EVERY))
            if stopped or late or state.step % self.iterations == 0:
                ledger.read()  # nothing is saved that was not looked at
                learner.ranks.on_first(self._save)
                saved.lap()
            if stopped and not state.done:
                done = f"outer step {state.step} of {state.total}"
                raise Interrupted(f"stopped after {done}; saved in {self.run.directory}")

    def _draw(self, step: int) -> TaskBatch:
        return drawn(self.tasks.train, range(step * self.meta_batch, (step + 1) * self.meta_batch), "train")

    @property
    def _epoch(self) -> int:
        """The one of the last outer step."""
        return (self.state.step - 1) // self.iterations

    def _tell(self, rate: float) -> None:
        """Say that an outer step is done; read and record the ledger, where that is due."""
        state, ledger = self.state, self.ledger
        due = state.step % self.iterations % max(self.iterations // RECORDS_AN_EPOCH, 1) == 0
        if due:
            ledger.read()
        seconds = self.clock.lap()
        ledger.sums.seconds += seconds
        state.seconds += seconds
        of = {"total": state.total, "epoch": self._epoch, "epochs": self.epochs}
        self.say("step", {"step": state.step, **of, "rate": rate})
        if due:
            self._record("train", ledger.close(self.meta_batch) | {"outer_rate": rate})

    def _record(self, kind: str, found: dict[str, Any]) -> None:
        record = {"kind": kind, "step": self.state.step, "epoch": self._epoch, **found, "seconds": self.state.seconds}
        self.learner.ranks.on_first(lambda: self.run.append(record))
        self.say(kind, record)

    def _validate(self) -> None:
        """Validate the epoch, keep it if it is among the best, record it with the learned rates."""
        learner, state, epoch = self.learner, self.state, self._epoch
        score = validate(learner, self.tasks, self.validation_tasks)
        state.seconds += self.clock.lap()
        kept = max(learner.method.recipe.ensemble, 1)
        state.best = sorted([*state.best, [epoch, score.goodness]], key=lambda entry: -entry[1])[:kept]
        if [epoch, score.goodness] in state.best:
            tensors = with_prefix("learner.", learner.state_dict())
            learner.ranks.on_first(lambda: save_checkpoint(self.run.epoch_path(epoch), tensors, {"epoch": epoch}))
        progress = (state.step - 1) / state.total  # of the last outer step
        self._record("validation", {
            "metric": score.metric,
            "value": score.value,
            "interval95": plain(score.interval95),
            "count": score.count,
            "diverged": score.diverged,
            "statistics": score.statistics,
            "best_epoch": state.best[0][0],
            "order": learner.method.order(progress),
            "step_weights": list(learner.method.step_weights(progress, learner.method.steps)),
            "rates": {n[6:]: p.tolist() for n, p in self.parameters.items()
                      if n.startswith("rates.") and p.numel() <= 64},
            "peak_memory": peak_memory(),
        })  # fmt: skip

    def _save(self) -> None:
        learner = self.learner
        tensors = with_prefix("learner.", learner.state_dict())
        tensors |= with_prefix("optimizer.", optimizer_tensors(self.optimizer, list(self.parameters)))
        tensors["random"] = torch.get_rng_state()
        if learner.device.type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state(learner.device)
        save_checkpoint(self.run.last, tensors, {**asdict(self.state), "sums": asdict(self.ledger.sums)})
        kept = {self.run.epoch_path(int(epoch)) for epoch, _ in self.state.best}
        for path in set(self.run.last.parent.glob("epoch-*.safetensors")) - kept:
            path.unlink()  # only now: the checkpoint that names the best ones is on the disk

    def _restored(self) -> tuple[State, Sums]:
        """Where the run's last checkpoint stands, put into learner and optimiser; the beginning where it has none."""
        learner, last = self.learner, self.run.last
        if not last.is_file():
            return State(0, self.epochs * self.iterations), Sums()
        tensors, record = load_checkpoint(last)
        restore_module(learner, without_prefix("learner.", tensors), last)
        restore_optimizer(self.optimizer, list(self.parameters), without_prefix("optimizer.", tensors))
        torch.set_rng_state(tensors["random"])
        if learner.device.type == "cuda" and "random.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["random.cuda"], learner.device)
        sums = Sums(**record.pop("sums"))
        return State(**record), sums


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


def _start_alike(learner: Learner, state: State) -> None:
    """Give every rank the first one's weights and random numbers; refuse ranks that found another checkpoint."""
    random, step = torch.get_rng_state(), torch.tensor(state.step)
    learner.ranks.copy([*learner.state_dict().values(), random, step])
    learner.load_state_dict(learner.state_dict())  # the model was changed with the learner, not behind its back
    torch.set_rng_state(random)
    if any(learner.ranks.any(int(step) != state.step)):
        raise BadInput(
            "the processes found different checkpoints: on several machines, --directory must be a folder they share"
        )
