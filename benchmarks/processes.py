"""Fresh processes that do what they are asked; between two questions they wait, and take no time from the others."""

import contextlib
import importlib
import multiprocessing
import os
import signal
from multiprocessing.connection import Connection
from typing import Any
from unittest.mock import patch


class Gone(Exception):
    """A process that cannot go on, and why."""


def prepare(allocator: str, threads: int) -> None:
    """Threads, and the allocator: `ours` is what fewstep's commands set, `theirs` what Python started with."""
    if allocator == "ours":
        from fewstep.cli.machine import prepare

        prepare(threads)
    import torch

    torch.set_num_threads(threads)


def serve(connection: Connection, target: str, allocator: str, threads: int, arguments: dict[str, Any]) -> None:
    """What runs in the process: answer until nobody asks any more, or something is raised."""
    try:
        prepare(allocator, threads)
        module, _, name = target.partition(".")
        asked = importlib.import_module(f"benchmarks.{module}")
        if name:
            asked = getattr(asked, name)(**arguments)
        while True:
            do, question = connection.recv()
            connection.send((getattr(asked, do)(**question), None))
    except (EOFError, KeyboardInterrupt):
        return
    except Exception as error:
        connection.send((None, f"{type(error).__name__}: {error}".splitlines()[0]))


class Process:
    """A fresh process; to be used as a context.

    Arguments:
        target: what it answers for, a module of the benchmark or `module.Class`.
        threads: of the process; also told to OpenMP, before anything is imported.
        allocator: `ours` or `theirs`.
        arguments: what the class is made with.
    """

    def __init__(self, target: str, threads: int = 1, allocator: str = "ours", **arguments: Any):
        spawning = multiprocessing.get_context("spawn")
        self._connection, theirs = spawning.Pipe()
        self._process = spawning.Process(target=serve, args=(theirs, target, allocator, threads, arguments))
        with patch.dict(os.environ, OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads)):
            self._process.start()
        theirs.close()

    def ask(self, do: str, **arguments: Any) -> Any:
        """What a function of the module, or a method of the class, returns.

        Raises:
            Gone: it raised something, or the process ended.
        """
        with contextlib.suppress(ConnectionError):  # one that has ended may have said why
            self._connection.send((do, arguments))
        try:
            answer, error = self._connection.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            status = self._process.exitcode or 0
            reason = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
            raise Gone(f"ended {reason}" + (", as when memory runs out" if status == -signal.SIGKILL else "")) from None
        if error:
            raise Gone(error)
        return answer

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._process.kill()
        self._process.join()


def ask(target: str, do: str, threads: int = 1, made_with: dict[str, Any] | None = None, **arguments: Any) -> Any:
    """The answer of a fresh process; `made_with`: the arguments of a class."""
    with Process(target, threads, **(made_with or {})) as process:
        return process.ask(do, **arguments)
