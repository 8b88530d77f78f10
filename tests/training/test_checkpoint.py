"""Checkpoints: what is saved comes back, what is not ours is refused by name."""

import errno

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
