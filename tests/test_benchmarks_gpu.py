"""The benchmark of an accelerator, on tiny shapes, on whatever device there is."""

import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))  # the benchmark is not part of the installed package

from benchmarks import gpu, kernels, omniglot20  # noqa: E402
from benchmarks.workloads import WORKLOADS  # noqa: E402
from fewstep.training.run import Run  # noqa: E402


def test_a_run_checks_times_and_splits(tmp_path, capsys):
    arguments = ["--only", "W7", "--scale", "0.1", "--repeats", "2", "--precisions", "float32", "bf16"]
    assert gpu.main([*arguments, "--json", str(tmp_path / "gpu.json")]) == 0
    record = json.loads((tmp_path / "gpu.json").read_text())
    for each in record["workloads"].values():
        assert each["left_out"] == {}
        assert set(each["found"]) == {
            "fewstep vectorized float32", "fewstep vectorized bf16", "loop float32", "higher float32"
        }  # fmt: skip
        for found in each["found"].values():
            assert len(found["seconds"]) == 2
            assert min(found["seconds"]) > 0
            assert found["kernels"]["kinds"]["convolution"] > 0
            assert sum(found["kernels"]["kinds"].values()) == pytest.approx(found["kernels"]["busy"])
        assert each["found"]["fewstep vectorized float32"]["distance"]["float64"] < 1e-8
        assert each["found"]["fewstep vectorized bf16"]["distance"]["float64"] is None
    printed = capsys.readouterr().out
    assert "W7  Omniglot" in printed
    assert "higher float32" in printed


def test_ours_is_compiled_too_where_that_is_asked_for():
    labels = [c.label for c in gpu.contenders(["bf16"], compiled=True)]
    assert labels == ["fewstep vectorized bf16", "fewstep vectorized bf16 compiled"]
    assert [c.label for c in gpu.contenders(["bf16"], compiled=False)] == labels[:1]


def test_who_computes_something_else_is_not_timed(monkeypatch):
    monkeypatch.setattr(gpu, "TOLERANCE", 0.0)
    those, w = [gpu.Contender("loop"), gpu.Contender("higher")], WORKLOADS["W2"].scaled(0.1)
    record = gpu.measure(w, torch.device("cpu"), those, 1, lambda _: None)
    assert "its float64 result differs from the plain loop's by" in record["left_out"]["higher float32"]
    assert "higher float32" not in record["found"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sm90_xmma_fprop_implicit_gemm_bf16", "convolution"),
        ("void cudnn::bn_fw_tr_1C11_kernel_NCHW", "normalisation"),
        ("void at::native::max_pool_forward_nhwc", "pooling"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>", "elementwise"),
        ("ampere_sgemm_128x64_nn", "matrix product"),
        ("Memcpy HtoD (Pinned -> Device)", "copy"),
    ],
)
def test_kernels_by_their_names(name, expected):
    assert kernels.kind(name) == expected


@pytest.mark.slow
def test_a_training_in_pieces(tmp_path):
    """On strokes and tiny; the last of several options wins."""
    small = "--data strokes --ways 3 --steps 2 --tasks 1 --filters 4 --epochs 2 --iterations 300 --validation-tasks 4"
    own = ["--directory", str(tmp_path / "run"), "--json", str(tmp_path / "x.json"), "--count", "4", "--device", "cpu"]
    assert omniglot20.main([*own, "--seconds", "30", *small.split()]) == omniglot20.UNFINISHED
    assert not (tmp_path / "x.json").exists()
    assert omniglot20.main([*own, "--seconds", "200", *small.split()]) == 0
    assert Run(tmp_path / "run").finished
    assert json.loads((tmp_path / "x.json").read_text())["score"]["single"]["count"] == 4
