import numpy as np
import pytest
import torch

from fewstep.errors import BadInput
from fewstep.tasks import sinusoid


def test_points_lie_on_one_wave_a_task():
    batch = sinusoid(shots=10, queries=7, seed=4).train(range(200))
    assert batch.support_x.shape == (200, 10, 1)
    assert batch.query_y.dtype == torch.float32
    x = torch.cat([batch.support_x, batch.query_x], 1).double()
    y = torch.cat([batch.support_y, batch.query_y], 1).double()
    # A sin(x - phi) = (A cos phi) sin x - (A sin phi) cos x is linear in two unknowns, so the wave can be solved for.
    basis = torch.cat([x.sin(), -x.cos()], 2)
    solution = torch.linalg.lstsq(basis, y).solution
    assert torch.allclose(basis @ solution, y, atol=1e-5)
    amplitude = solution.norm(dim=1)[:, 0]
    phase = torch.atan2(solution[:, 1, 0], solution[:, 0, 0])
    assert amplitude.min() >= 0.1 - 1e-5
    assert amplitude.max() <= 5 + 1e-5
    assert phase.min() >= -1e-4
    assert phase.max() <= np.pi + 1e-4
    assert x.abs().max() <= 5
    assert abs(amplitude.mean() - 2.55) < 0.4
    assert abs(phase.mean() - np.pi / 2) < 0.3


def test_a_task_depends_on_seed_and_number_alone():
    tasks = sinusoid(seed=1)
    assert torch.equal(tasks.train([3, 8]).query_y[1:], sinusoid(seed=1).train([8]).query_y)
    assert not torch.equal(tasks.train([8]).query_y, sinusoid(seed=2).train([8]).query_y)
    assert torch.equal(tasks.test([8]).query_y, sinusoid(seed=2).test([8]).query_y)
    assert not torch.equal(tasks.test([8]).query_y, tasks.validation([8]).query_y)


def test_bad_input():
    with pytest.raises(BadInput, match="shots is 0; it must be a whole number of at least 1"):
        sinusoid(shots=0)
    with pytest.raises(BadInput, match="seed is -1"):
        sinusoid(seed=-1)
    with pytest.raises(BadInput, match="amplitude runs from 5 to 1; give finite bounds, the lower one first"):
        sinusoid(amplitude=(5, 1))
