"""Trainings in processes of their own, so that the memory and the randomness of one are no other's."""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fewstep.training.interrupt import Interrupted, stopping
from fewstep.training.run import Run

POLL = 0.2  # seconds


def train_apart(arguments: Sequence[str], run: Run, log: Path, watch: Callable[[dict[str, Any]], None]) -> str | None:
    """Run `fewstep train` in a process of its own.

    Arguments:
        arguments: those after `train`. run: the directory they name. log: the file that gets what it prints.
        watch: called with the latest record of the run's metrics, whenever there is a new one.

    Returns:
        What went wrong; None if nothing did.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; the training has saved and ended.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "fewstep.cli.main", "train", *arguments]
    with stopping() as stop, open(log, "ab") as output:
        # In a group of its own a Ctrl-C of the terminal reaches it once, through us, and not twice.
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, process_group=0)
        seen = _changed(run)
        try:
            while process.poll() is None and not stop.asked:
                time.sleep(POLL)
                if _changed(run) != seen:
                    seen = _changed(run)
                    for record in run.metrics()[-1:]:
                        watch(record)
            if stop.asked:
                process.terminate()
                process.wait()
                raise Interrupted(f"stopped in {run.directory}")
        finally:  # a second Ctrl-C, a fault of ours
            if process.poll() is None:
                process.kill()
                process.wait()
    if process.returncode == 0:
        return None
    if process.returncode < 0:
        return f"its process was ended by signal {-process.returncode}"
    lines = log.read_text(errors="replace").strip().splitlines() or ["nothing was printed"]
    return lines[-1].removeprefix("fewstep: ")


def _changed(run: Run) -> int:
    path = run.directory / "metrics.jsonl"
    return path.stat().st_mtime_ns if path.is_file() else 0
