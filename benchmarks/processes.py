"""Worker processes, as the one that asks them sees them. Nothing here imports torch: the asking process stays small."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from types import TracebackType
from typing import Any


class Gone(Exception):
    """A worker that cannot go on, and why."""


class Process:
    """`python -m benchmarks.MODULE …`, asked and answering in JSON lines.

    Arguments:
        arguments: module and its arguments.
        threads: of the process; also told to OpenMP, before anything is imported.
    """

    def __init__(self, *arguments: str, threads: int):
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by close()
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        module, *rest = arguments
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"benchmarks.{module}", *rest, "--threads", str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, env=environment,
        )  # fmt: skip

    def answer(self) -> dict[str, Any]:
        """The next answer.

        Raises:
            Gone: the process ended, or says that it has nothing to do here.
        """
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise Gone(self._last_words())
        found = json.loads(line)
        if "unavailable" in found:
            raise Gone(found["unavailable"])
        return found

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):  # the answer says why
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
        return self.answer()

    def _last_words(self) -> str:
        status = self._process.wait()
        if status < 0:
            name = signal.Signals(-status).name
            return f"ended by {name}" + (", as when memory runs out" if name == "SIGKILL" else "")
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors if line.strip()]
        return lines[-1] if lines else f"ended with status {status}"

    def close(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                if stream:
                    stream.close()
        self._process.kill()
        self._process.wait()
        self._errors.close()

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()
