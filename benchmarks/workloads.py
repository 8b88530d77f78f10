"""The workloads: shapes, method, and how much faster and smaller than the best other fewstep is to be."""

from dataclasses import dataclass, replace

CONV4, RESNET12 = "Conv4", "ResNet-12"


@dataclass(frozen=True)
class Workload:
    """One outer step on random tensors; or, where `predict`, adapting to one task and predicting its queries.

    Arguments:
        what: a line for people.
        ways, shots, queries: of a task; shots and queries are per class.
        tasks, steps: tasks of the meta-batch, inner steps.
        size, channels: of the images.
        model, filters, blocks: Conv4 with so many filters, or ResNet-12 with those in its first block, twice as many in
            every next one.
        second: second derivatives, or the inner gradients as constants.
        plus: MAML++: rates and norm weights learned for each step, and the query loss after every step.
        predict: adapt without a meta-gradient, then predict.
        faster: the target for seconds of the fastest other over ours.
        memory: the target for our peak memory over that of the smallest other.
        rate: inner rate, where it is not learned; where it is, about what it starts from. Times do not depend on it;
            one this low keeps the inner loop on random images from diverging.
    """

    what: str
    ways: int
    tasks: int
    faster: float = 1.0
    memory: float = 1.0
    shots: int = 1
    queries: int = 1
    steps: int = 5
    size: int = 28
    channels: int = 1
    filters: int = 64
    second: bool = True
    plus: bool = False
    predict: bool = False
    rate: float = 0.01
    model: str = CONV4
    blocks: int = 4

    @property
    def widths(self) -> list[int]:
        """Filters of every block."""
        return [self.filters << block if self.model == RESNET12 else self.filters for block in range(self.blocks)]

    @property
    def shapes(self) -> str:
        images = f"{self.tasks} × ({self.ways * self.shots} + {self.ways * self.queries})"
        return f"{images} images {self.size}×{self.size}×{self.channels}, Conv4-{self.filters}, {self.steps} steps"

    def scaled(self, factor: float) -> "Workload":
        """The same work on smaller shapes, for a look at whether everything runs."""

        def less(value: int, least: int) -> int:
            return max(min(value, least), round(value * factor))

        return replace(
            self, ways=less(self.ways, 3), tasks=less(self.tasks, 2), queries=less(self.queries, 2),
            size=less(self.size, 16), filters=less(self.filters, 4), steps=less(self.steps, 2),
        )  # fmt: skip


def _mini(shots: int) -> Workload:
    what = f"mini-ImageNet 5-way {shots}-shot, MAML++ with all its parts"
    return Workload(what, 5, 2, 3.0, 0.7, shots=shots, queries=15, size=84, channels=3, filters=48, plus=True)


WORKLOADS = {
    "W1": Workload("Omniglot 20-way 1-shot, MAML++ with all its parts", 20, 8, 1.8, 1.0, plus=True),
    "W2": Workload("Omniglot 20-way 1-shot, MAML", 20, 8, 1.8, 1.0),
    "W3": Workload("Omniglot 20-way 1-shot, first-order MAML", 20, 8, 1.8, 1.0, second=False),
    "W4": Workload("Omniglot 5-way 1-shot, MAML, one inner step", 5, 32, 2.5, 1.0, steps=1),
    "W4b": Workload("Omniglot 5-way 1-shot, 15 queries, MAML, one inner step", 5, 32, 2.5, 1.0, queries=15, steps=1),
    "W5": _mini(1),
    "W6": _mini(5),
    "W7": Workload("Omniglot 5-way 1-shot: adapt with MAML++ and predict 75 queries", 5, 1, 4.0, 1.0, queries=15,
                   plus=True, predict=True),
}  # fmt: skip
