"""The device a command runs on."""

import pytest
import torch

from fewstep.cli.machine import device
from fewstep.cli.main import main
from fewstep.errors import BadInput

without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


def test_names():
    assert device("cpu") == torch.device("cpu")
    assert device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("gpu", "cuda:", "cuda:-1", "cuda:x", ""):
        with pytest.raises(BadInput, match=r"unknown device .*Known: auto, cpu, cuda, cuda:0"):
            device(name)


@without_cuda
@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_cuda_that_is_missing(name):
    with pytest.raises(BadInput, match=rf"^device is {name}, but .*; take cpu or auto, `fewstep doctor` lists"):
        device(name)


def test_a_device_beyond_the_last(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device("auto") == device("cuda") == torch.device("cuda")
    assert device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(BadInput, match="device is cuda:2, but the last of this machine is cuda:1"):
        device("cuda:2")


@without_cuda
@pytest.mark.parametrize("verb", [("train", "maml"), ("compare", "maml"), ("ablate", "maml++"), ("evaluate", ".")])
def test_every_verb_says_so_before_it_does_anything(tmp_path, monkeypatch, capsys, verb):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        main([*verb, "--device", "cuda"])
    assert left.value.code == 2
    assert "fewstep: device is cuda, but" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
