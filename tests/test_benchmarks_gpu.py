"""The benchmark of an accelerator, on tiny shapes, on whatever device there is."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))  # the benchmark is not part of the installed package

from benchmarks import kernels, rounds  # noqa: E402
from benchmarks.__main__ import by_precision, main  # noqa: E402
from benchmarks.contender import Contender  # noqa: E402


class Here:
    """A contender in this process and on a CPU, whatever device was asked for."""

    def __init__(self, *_, **arguments):
        del arguments["device"]
        self.contender = Contender(**arguments)

    def ask(self, do, **arguments):
        return json.loads(json.dumps(getattr(self.contender, do)(**arguments)))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


def test_a_run_checks_times_and_splits_by_precision(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(rounds, "Process", Here)
    path = tmp_path / "gpu.json"
    arguments = ["--only", "W7", "--scale", "0.1", "--repeats", "2", "--precisions", "float32", "bf16"]
    names = ["--implementations", "fewstep-vectorized", "loop", "higher"]
    assert main([*arguments, *names, "--device", "cuda", "--json", str(path)]) == 0
    record = json.loads(path.read_text())["workloads"]["W7"]
    assert record["left_out"] == {}
    found = record["settings"]["cuda"]
    assert list(found) == ["fewstep-vectorized float32", "loop float32", "higher float32", "fewstep-vectorized bf16"]
    for each in found.values():
        assert len(each["seconds"]) == 2
        assert min(each["seconds"]) > 0
        assert each["kernels"]["kinds"]["convolution"] > 0
        assert sum(each["kernels"]["kinds"].values()) == pytest.approx(each["kernels"]["busy"])
        assert each["cosine"] > 0.9
    assert found["fewstep-vectorized float32"]["distance"]["float64"] < 1e-8
    assert list(found["fewstep-vectorized bf16"]["distance"]) == ["timed"]
    printed = capsys.readouterr().out
    assert "## Where the time goes, by kernel" in printed
    assert "| W7 | 0." in printed


def test_ours_is_compiled_too_where_that_is_asked_for():
    labels = list(by_precision(["fewstep-loop", "higher"], ["bf16"], compiled=True))
    assert labels == ["fewstep-loop bf16", "fewstep-loop bf16 compiled"]


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
