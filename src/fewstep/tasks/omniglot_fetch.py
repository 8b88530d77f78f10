"""Downloading Omniglot's two archives from the authors' public repository."""

import hashlib
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from fewstep.errors import BadInput

BASE_URL = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python"
CHECKSUMS = {
    "images_background.zip": "68d2efa1b9178cc56df9314c21c6e718",
    "images_evaluation.zip": "6b91aef0f799c5bb55b94e3f2daec811",
}
_TIMEOUT = 30  # seconds without a byte
_CHUNK = 1 << 18


def fetch(directory: str | os.PathLike[str], report: Callable[[str], object] = print, base_url: str = BASE_URL) -> None:
    """Put images_background.zip and images_evaluation.zip (14 MB) into a folder, checked by their md5.

    A file appears under its name only when complete and right; one that is there and right is kept.

    Arguments:
        directory: made if missing.
        report: called with a line of text for each file.
        base_url: where the two files lie; the authors' repository unless told otherwise.

    Raises:
        BadInput: no network, a folder that cannot be written, a wrong checksum; says what to do by hand.

    Example:
        >>> fetch("data/omniglot")  # doctest: +SKIP
    """
    folder = Path(directory)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"cannot make the folder {folder} ({error.strerror}); choose another") from error
    for name, checksum in CHECKSUMS.items():
        target, url = folder / name, f"{base_url}/{name}"
        if target.exists():
            found = _md5(target)
            if found != checksum:
                raise BadInput(
                    f"{target} is there already but is not the authors' file (its md5 is {found}, not "
                    f"{checksum}); move it away to download it again"
                )
            report(f"{target}: already there, checksum right")
            continue
        report(f"{target}: downloading {url}")
        _download(url, target, checksum)
        report(f"{target}: {target.stat().st_size:,} bytes, checksum right")


def _download(url: str, target: Path, checksum: str) -> None:
    partial = target.with_name(f"{target.name}.partial-{os.getpid()}")
    try:
        try:
            with urllib.request.urlopen(url, timeout=_TIMEOUT) as response:
                content = b"".join(iter(lambda: response.read(_CHUNK), b""))
        except (OSError, EOFError, ValueError) as error:  # URLError, HTTPError and timeouts are OSErrors
            reason = getattr(error, "reason", error)
            raise BadInput(
                f"cannot download {url} ({reason}); without a network, bring the file from another machine "
                f"and put it at {target}"
            ) from error
        partial.write_bytes(content)
        found = _md5(partial)
        if found != checksum:
            raise BadInput(
                f"{url} came with md5 {found}, not {checksum}; nothing was kept: try again, or bring the "
                f"file by hand to {target}"
            )
        os.replace(partial, target)
    except OSError as error:
        raise BadInput(f"cannot write {target} ({error.strerror}); free some space or choose another folder") from error
    finally:
        partial.unlink(missing_ok=True)


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
