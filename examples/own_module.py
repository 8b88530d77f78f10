"""Meta-train a small transformer with dropout on sequences, then adapt it to a new task from two examples a class.

A class is a template sequence, an example the template with noise. Any `nn.Module` works as it is: attention is
differentiated twice by torch's exact kernel, which is chosen, and said, without asking.

    python examples/own_module.py
"""

import sys

import torch
from torch import Tensor, nn

import fewstep

WAYS, SHOTS, TOKENS, FEATURES = 3, 2, 6, 4


class SequenceClassifier(nn.Module):
    """Tokens are embedded, attend to each other, and their mean is classified."""

    def __init__(self, ways: int, width: int = 16) -> None:
        super().__init__()
        self.embed = nn.Linear(FEATURES, width)
        self.encoder = nn.TransformerEncoderLayer(width, nhead=2, dim_feedforward=32, dropout=0.1, batch_first=True)
        self.head = nn.Linear(width, ways)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x)).mean(1))


def sequences(seed: int) -> fewstep.tasks.source.TaskFunction:
    """Task i of a split: a pure function of i, so a resumed training sees the same tasks."""

    def function(numbers) -> fewstep.TaskBatch:
        def task(number: int) -> fewstep.TaskBatch:
            g = torch.Generator().manual_seed(seed + number)
            templates = torch.randn(WAYS, TOKENS, FEATURES, generator=g).repeat(2 * SHOTS, 1, 1)
            x = templates + 0.7 * torch.randn(templates.shape, generator=g)
            y = torch.arange(WAYS).repeat(2 * SHOTS)
            half = WAYS * SHOTS
            return fewstep.TaskBatch(x[None, :half], y[None, :half], x[None, half:], y[None, half:])

        return fewstep.TaskBatch.concatenate([task(number) for number in numbers])

    return function


def main(directory: str = "runs/own-module", iterations: int = 100, count: int = 200) -> fewstep.Score:
    torch.manual_seed(0)
    tasks = fewstep.Tasks(sequences(0), sequences(10**6), sequences(2 * 10**6))
    method = fewstep.preset("maml++", steps=3)
    learner = fewstep.Learner(SequenceClassifier(WAYS), method)
    fewstep.train(learner, tasks, directory, epochs=2, iterations=iterations, meta_batch=8, validation_tasks=20)
    score = fewstep.evaluate(learner, tasks, count=count)
    print(f"unseen classes: {score}, without adaptation {score.by_step[0]:.1%}, chance {score.chance:.1%}")
    return score


if __name__ == "__main__":
    main(*sys.argv[1:2])
