"""Sinusoid regression of the MAML paper, with a vector output: sine and cosine of one wave from ten points.

python examples/regression.py
"""

import sys

import torch
import torch.nn.functional as F

import fewstep
from fewstep.models import MLP


def waves(seed: int) -> fewstep.tasks.source.TaskFunction:
    """Task i: x in [−5, 5], targets A sin(x + φ) and A cos(x + φ), with A and φ of the task."""

    def function(numbers) -> fewstep.TaskBatch:
        draws = torch.stack([torch.rand(22, generator=torch.Generator().manual_seed(seed + n)) for n in numbers])
        amplitude, phase = 0.1 + 4.9 * draws[:, :1, None], torch.pi * draws[:, 1:2, None]
        x = 10 * draws[:, 2:, None] - 5
        y = amplitude * torch.cat([torch.sin(x + phase), torch.cos(x + phase)], dim=-1)
        return fewstep.TaskBatch(x[:, :10], y[:, :10], x[:, 10:], y[:, 10:])

    return function


def main(directory: str = "runs/regression", iterations: int = 500, count: int = 200) -> fewstep.Score:
    torch.manual_seed(0)
    tasks = fewstep.Tasks(waves(0), waves(10**6), waves(2 * 10**6))
    method = fewstep.preset("maml", setting="sinusoid", steps=5)
    learner = fewstep.Learner(MLP(1, 2, (40, 40)), method, loss=F.mse_loss)
    fewstep.train(learner, tasks, directory, epochs=2, iterations=iterations, meta_batch=10, validation_tasks=20)
    score = fewstep.evaluate(learner, tasks, count=count)
    print(f"unseen waves: {score}, before adaptation {score.by_step[0]:.4f}")
    return score


if __name__ == "__main__":
    main(*sys.argv[1:2])
