"""Checkpoints: one safetensors file of tensors with a JSON record in its header, replaced atomically.

No pickle is read or written. A save goes to a temporary name, is synced, then renamed, so a reader finds the old file
or the new one, and a failed save leaves the old one. The header holds a checksum of all the rest: what has been damaged
since is refused, not believed.
"""

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import Tensor, nn

from fewstep.errors import BadInput

KEY, CHECKSUM = "fewstep", "blake2b"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all.

    Raises:
        BadInput: the disk is full or the folder cannot be written; a previous file of that name is intact.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        kept = "the previous one is intact" if path.exists() else "nothing was written"
        cure = "make room" if error.errno in FULL else "look at its folder"
        raise BadInput(f"cannot save {path}: {error.strerror or error}; {kept}. To go on, {cure}") from error
    with contextlib.suppress(OSError):  # Windows opens no folder; the file is there all the same
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Save tensors and a JSON record as one file.

    Raises:
        BadInput: the disk is full or the folder cannot be written.
    """
    # Tied weights share memory, which the format refuses, and channels-last ones are not contiguous: copy them all.
    plain = {n: t.detach().cpu().clone(memory_format=torch.contiguous_format) for n, t in tensors.items()}
    text = json.dumps(record)
    write_atomically(path, serialise(plain, metadata={KEY: text, CHECKSUM: _checksum(plain, text)}))


def _checksum(tensors: Mapping[str, Tensor], record: str) -> str:
    """Of the record's text, and of the name, type, shape and bytes of every tensor."""
    sum_ = hashlib.blake2b(record.encode(), digest_size=32)
    for name, tensor in sorted(tensors.items()):
        sum_.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sum_.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sum_.hexdigest()


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the record of a checkpoint.

    Raises:
        BadInput: no such file, a truncated, unreadable or damaged one, or a safetensors file of something else.
    """
    if not path.is_file():
        raise BadInput(f"no checkpoint at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if KEY not in header:
                raise BadInput(f"{path} is a safetensors file, but not a checkpoint of fewstep")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        # Where there is nothing but the record, it is of before there were checksums.
        if header.keys() != {KEY} and header.get(CHECKSUM) != _checksum(tensors, header[KEY]):
            raise BadInput(f"{path} is damaged: its checksum is not that of what was saved")
        return tensors, json.loads(header[KEY])
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise BadInput(f"{path} is not a readable checkpoint ({error}); it is truncated or of another kind") from error


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


@torch.no_grad()
def restore_module(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Copy a checkpoint's tensors into a module, in place.

    Raises:
        BadInput: the checkpoint belongs to another model; names the first tensor that does not fit.
    """
    own = module.state_dict()
    for name in sorted(set(own) ^ set(tensors)):
        where = "the checkpoint lacks" if name in own else "the model has no"
        raise BadInput(f"{path} belongs to another model: {where} {name}")
    for name, tensor in own.items():
        if tensor.shape != tensors[name].shape:
            raise BadInput(
                f"{path} belongs to another model: {name} is {tuple(tensors[name].shape)} there, "
                f"{tuple(tensor.shape)} here"
            )
    module.load_state_dict(dict(tensors))


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, Tensor]:
    """The optimiser's state by meta-parameter name, as `<name>/<entry>`."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return {
        f"{name}/{entry}": value
        for name, parameter in zip(names, parameters, strict=True)
        for entry, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, names: list[str], tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave; moments take the layout of their parameter."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for name, parameter in zip(names, parameters, strict=True):
        state = without_prefix(f"{name}/", tensors)
        if state:
            optimizer.state[parameter] = {
                entry: torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape and value.ndim
                else value.clone()
                for entry, value in state.items()
            }  # fmt: skip
