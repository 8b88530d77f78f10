"""Sinusoid regression, the smallest problem on which learning to learn shows (Finn et al. 2017, section 5.1)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fewstep.errors import BadInput
from fewstep.tasks.batch import TaskBatch
from fewstep.tasks.image_dataset import TEST_SEED, USER_SEEDS, VALIDATION_SEED
from fewstep.tasks.randomness import bits, uniform
from fewstep.tasks.source import Tasks


def sinusoid(
    shots: int = 10,
    queries: int = 10,
    seed: int = 0,
    evaluation_queries: int | None = None,
    amplitude: tuple[float, float] = (0.1, 5.0),
    phase: tuple[float, float] = (0.0, float(np.pi)),
    inputs: tuple[float, float] = (-5.0, 5.0),
) -> Tasks:
    """Tasks of regressing one sine wave from a few of its points.

        y = A sin(x - phi)

    A and phi are drawn once a task and x once a point, all uniformly.

    Arguments:
        shots, queries: points to adapt to, and to be judged on.
        seed: of the training tasks, 0 to 2^63 - 1; validation and test tasks are always the same ones.
        evaluation_queries: points to be judged on in validation and test tasks; `queries` when None.
        amplitude, phase, inputs: bounds of A, of phi (radians) and of x.

    Raises:
        BadInput: a size below 1, a seed out of range, bounds that are out of order or not finite.

    Source: Finn et al. 2017 (arXiv 1703.03400), section 5.1.

    Shapes: B numbers -> x and y of (B, shots, 1) and (B, queries, 1), float32.

    Example:
        >>> batch = sinusoid(shots=5).train([0, 1])
        >>> tuple(batch.support_x.shape), tuple(batch.query_y.shape)
        ((2, 5, 1), (2, 10, 1))
    """
    later = queries if evaluation_queries is None else evaluation_queries
    for name, size in (("shots", shots), ("queries", queries), ("evaluation_queries", later)):
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise BadInput(f"{name} is {size!r}; it must be a whole number of at least 1")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < USER_SEEDS:
        raise BadInput(f"seed is {seed!r}; it must be a whole number from 0 to 2^63 - 1")
    bounds = {"amplitude": amplitude, "phase": phase, "inputs": inputs}
    for name, (low, high) in bounds.items():
        if not (np.isfinite([low, high]).all() and low <= high):
            raise BadInput(f"{name} runs from {low} to {high}; give finite bounds, the lower one first")

    description = {
        "name": "sinusoid",
        "shots": shots,
        "queries": queries,
        "evaluation_queries": later,
        "seed": seed,
        "options": {name: list(pair) for name, pair in bounds.items()},
    }
    train, validation, test = (
        _Waves(one_seed, shots, size, amplitude, phase, inputs)
        for one_seed, size in ((seed, queries), (VALIDATION_SEED, later), (TEST_SEED, later))
    )
    return Tasks(train, validation, test, description)


@dataclass(frozen=True)
class _Waves:
    """The tasks of one split; a record, not a closure, so that worker processes can be handed a copy."""

    seed: int
    shots: int
    queries: int
    amplitude: tuple[float, float]
    phase: tuple[float, float]
    inputs: tuple[float, float]

    def __call__(self, indices: Sequence[int]) -> TaskBatch:
        keys = bits(self.seed, np.asarray(indices, np.int64))[:, None]
        a = _between(*self.amplitude, uniform(bits(keys, 0)))
        phi = _between(*self.phase, uniform(bits(keys, 1)))
        x = _between(*self.inputs, uniform(bits(keys, 2, np.arange(self.shots + self.queries))))
        px, py = (torch.from_numpy(values).to(torch.float32)[..., None] for values in (x, a * np.sin(x - phi)))
        return TaskBatch(px[:, : self.shots], py[:, : self.shots], px[:, self.shots :], py[:, self.shots :])


def _between(low: float, high: float, fraction: NDArray[np.float64]) -> NDArray[np.float64]:
    return low + (high - low) * fraction
