"""Checkpoints: what is saved comes back, what is not ours is refused by name."""

import errno
import os

import pytest
import torch
from safetensors.torch import save_file

import fewstep
from fewstep.models import MLP
from fewstep.training.checkpoint import load_checkpoint, restore_module, save_checkpoint, write_atomically


def test_what_is_saved_comes_back(tmp_path):
    tensors = {
        "a": torch.randn(3, 4),
        "b": torch.arange(5),
        "c": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    }
    save_checkpoint(tmp_path / "x.safetensors", tensors, {"step": 3, "loss": 0.1})
    loaded, record = load_checkpoint(tmp_path / "x.safetensors")
    assert all(torch.equal(loaded[k], v) for k, v in tensors.items())
    assert record == {"step": 3, "loss": 0.1}


def test_missing(tmp_path):
    with pytest.raises(fewstep.BadInput, match=r"no checkpoint at .*nothing.safetensors"):
        load_checkpoint(tmp_path / "nothing.safetensors")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint at all", b"\xff" * 64])
def test_unreadable(tmp_path, content):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(
        fewstep.BadInput, match=r"x.safetensors is not a readable checkpoint .* truncated or of another kind"
    ):
        load_checkpoint(tmp_path / "x.safetensors")


def test_truncated(tmp_path):
    path = tmp_path / "x.safetensors"
    save_checkpoint(path, {"a": torch.randn(100)}, {})
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(fewstep.BadInput, match=r"not a readable checkpoint"):
        load_checkpoint(path)


def saved(path):
    tensors = {"b": torch.arange(5), "a": torch.randn(3, 4), "scalar": torch.tensor(2.0), "none": torch.zeros(0)}
    save_checkpoint(path, tensors | {"half": torch.ones(2, dtype=torch.bfloat16)}, {"step": 12, "loss": 0.125})
    return path.read_bytes()


def test_one_changed_bit_anywhere_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    content = saved(path)
    head = 8 + int.from_bytes(content[:8], "little")
    assert content[head:].strip(b"\0")
    refusals = []
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            loaded, record = load_checkpoint(path)
        except fewstep.BadInput as error:
            refusals.append((place, str(error)))
        else:  # blanks of the header, which say nothing
            assert content[place : place + 1] == b" ", content[:head]
            assert record == {"step": 12, "loss": 0.125}
            assert torch.equal(loaded["b"], torch.arange(5))
    inside = [message for place, message in refusals if place >= head]
    assert len(inside) == len(content) - head
    assert set(inside) == {f"{path} is damaged: its checksum is not that of what was saved"}


def test_a_changed_record_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(saved(path).replace(b'step\\": 12', b'step\\": 13'))
    with pytest.raises(fewstep.BadInput, match=r"x.safetensors is damaged: its checksum is not that of what was saved"):
        load_checkpoint(path)


def test_a_file_of_before_there_were_checksums_is_read(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "x.safetensors", metadata={"fewstep": '{"step": 3}'})
    loaded, record = load_checkpoint(tmp_path / "x.safetensors")
    assert (loaded["a"].tolist(), record) == ([1.0, 1.0], {"step": 3})


def test_foreign(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors")
    with pytest.raises(fewstep.BadInput, match=r"a safetensors file, but not a checkpoint of fewstep"):
        load_checkpoint(tmp_path / "x.safetensors")


def test_of_another_model(tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(
        fewstep.BadInput, match=r"belongs to another model: layers.0.weight is \(7, 1\) there, \(40, 1\) here"
    ):
        restore_module(MLP(1, 1), MLP(1, 1, (7, 7)).state_dict(), path)
    with pytest.raises(fewstep.BadInput, match=r"belongs to another model: the checkpoint lacks layers.1.bias"):
        restore_module(MLP(1, 1), MLP(1, 1, (40,)).state_dict(), path)


def test_a_folder_that_cannot_be_opened_fails_no_save_that_has_succeeded(tmp_path, monkeypatch):
    """As on Windows."""
    plainly = os.open

    def windows(path, *rest, **named):
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return plainly(path, *rest, **named)

    monkeypatch.setattr("os.open", windows)
    write_atomically(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"new"


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    write_atomically(tmp_path / "x", b"old")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(
        fewstep.BadInput,
        match=r"cannot save .*x: No space left on device; the previous one is intact. To go on, make room",
    ):
        write_atomically(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
