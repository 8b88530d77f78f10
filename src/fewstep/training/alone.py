"""One training at a time in a run directory."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from fewstep.errors import BadInput

try:
    import fcntl
except ImportError:  # not a Unix
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"


@contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Inside it, no other process or thread trains in the directory.

    The operating system holds the lock and frees it when the process ends, however it ends. Where there are no locks or
    the folder cannot be written, nothing is held.

    Raises:
        BadInput: another one is at it; names its process.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, alone(Path(folder)), alone(Path(folder)):
        ...     pass
        Traceback (most recent call last):
        fewstep.errors.BadInput: ... is being trained in by process ...: wait for it, or choose another --directory
    """
    path = directory / LOCK
    file = _locked(path)
    try:
        yield
    finally:
        if file:
            with suppress(OSError):
                path.unlink()  # still held: whoever waits finds out that this one is gone
            file.close()


def _locked(path: Path) -> TextIO | None:
    """The lock's file, open and held; None where there can be none."""
    while fcntl:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = open(path, "a+")  # noqa: SIM115 - open means held
        except OSError:
            return None  # what is written there next says why
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                with suppress(OSError):  # on a full disk nobody learns whose it is; held it is all the same
                    file.truncate(0)
                    os.write(file.fileno(), f"{os.getpid()} on {os.uname().nodename}\n".encode())
                return file
            file.close()
        except BlockingIOError as error:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            file.close()
            raise BadInput(
                f"{path.parent} is being trained in by process {owner}: wait for it, or choose another --directory"
            ) from error
        except FileNotFoundError:
            file.close()  # whoever held it has removed it since we opened it: there is a new one to be had
        except OSError:
            file.close()
            return None  # a file system without locks
    return None
