"""Take a pretrained body, freeze its first layer, and meta-learn a head that adapts: what a practitioner starts from.

The body is pretrained here on an ordinary classification of the training characters; from a hub it would be loaded.
Frozen parameters (`requires_grad_(False)`) are no meta-parameters and are never adapted; gradients pass through them.

    python examples/pretrained.py
"""

import sys

import torch
import torch.nn.functional as F
from torch import nn

import fewstep

CLASSES = 20


def pretrained_body(images: torch.Tensor, labels: torch.Tensor, steps: int) -> nn.Sequential:
    """A small convolutional body, trained to tell the training classes apart."""
    body = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten()),
    )
    classifier = nn.Sequential(body, nn.LazyLinear(CLASSES))
    classifier(images[:2])
    optimiser = torch.optim.Adam(classifier.parameters(), lr=3e-3)
    for step in range(steps):
        rows = torch.arange(step * 64, step * 64 + 64) % len(images)
        optimiser.zero_grad()
        F.cross_entropy(classifier(images[rows]), labels[rows]).backward()
        optimiser.step()
    return body


def main(directory: str = "runs/pretrained", iterations: int = 50, count: int = 200) -> fewstep.Score:
    torch.manual_seed(0)
    data = fewstep.strokes(classes=(CLASSES, 20, 40))
    batch = data.tasks(ways=CLASSES, shots=10, queries=1).train([0])
    body = pretrained_body(batch.support_x[0], batch.support_y[0], steps=2 * iterations)
    body[0].requires_grad_(False)
    features = body(batch.support_x[0, :2]).shape[1]

    tasks = data.tasks(ways=5, shots=1, queries=3)
    learner = fewstep.Learner(nn.Sequential(body, nn.Linear(features, 5)), fewstep.preset("anil", rule__rate=0.5))
    fewstep.train(learner, tasks, directory, epochs=2, iterations=iterations, meta_batch=4, validation_tasks=20)
    score = fewstep.evaluate(learner, tasks, count=count)
    print(f"unseen characters: {score}, without adaptation {score.by_step[0]:.1%}, chance {score.chance:.1%}")
    return score


if __name__ == "__main__":
    main(*sys.argv[1:2])
