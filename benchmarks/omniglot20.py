"""The published training, in pieces: Omniglot 20-way 1-shot, MAML++, 50 000 outer steps of 8 tasks, then its score.

    python -m benchmarks.omniglot20 --data-dir DATA --directory runs/omniglot20 --json results/omniglot20.json

Trains for that long, saves, and exits with status 3 where there is more to do: the same command goes on. Once the
training is done it measures 600 test tasks and writes what was measured. Options it does not know go to the training.
"""

import argparse
import json
import shlex
import signal
import subprocess
import sys
from pathlib import Path

from fewstep.training.checkpoint import write_atomically
from fewstep.training.run import Run

TRAINING = "maml++ --data omniglot --ways 20 --shots 1 --queries 1 --steps 5 --tasks 8 --epochs 100 --iterations 500"
UNFINISHED = 3


def piece(command: list[str], seconds: float) -> int:
    """Run a training for so long at most; its exit status, 130 where it was stopped and has saved."""
    process = subprocess.Popen(command)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        return 130 if process.wait() else 0  # whatever it says: it may still have been loading its libraries


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.omniglot20", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--data-dir", default=None)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seconds", type=float, default=540, help="of a piece (540)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="where the score goes")
    parser.add_argument("--count", type=int, default=600)
    asked, more = parser.parse_known_args(arguments)
    fewstep = [sys.executable, "-m", "fewstep.cli.main"]
    place = ["--device", asked.device, *(["--data-dir", asked.data_dir] if asked.data_dir else [])]
    command = [*fewstep, "train", *TRAINING.split(), *place, "--directory", str(asked.directory), *more]
    status = piece(command, asked.seconds)
    run = Run(asked.directory)
    if status == 130:
        done = f"after outer step {run.state()['step']} of {run.state()['total']}" if run.last.is_file() else "early"
        print(f"stopped {done}; the same command goes on", flush=True)
        return UNFINISHED
    if status:
        return status
    measured = subprocess.run([*fewstep, "evaluate", str(asked.directory), "--count", str(asked.count), *place])
    if measured.returncode == 0 and asked.json:
        record = {
            "training": shlex.join(["fewstep", *command[3:]]), "training_seconds": run.seconds(),
            "environment": run.environment, "score": json.loads((asked.directory / "score.json").read_text()),
        }  # fmt: skip
        write_atomically(asked.json, (json.dumps(record, indent=1) + "\n").encode())
    return measured.returncode


if __name__ == "__main__":
    sys.exit(main())
