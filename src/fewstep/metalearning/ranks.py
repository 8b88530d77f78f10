"""Several processes that train as one: which tasks are this one's, and what all of them have found.

    ∇ = Σ_ranks (tasks of the rank / tasks of the meta-batch) · mean of the gradients of the rank's tasks

`DistributedDataParallel` averages what `backward` leaves, equally over ranks; a meta-gradient comes from
`torch.autograd.grad`, and a meta-batch need not divide by the ranks. So the tasks are split, and one flat all-reduce a
pass carries all that must agree afterwards: gradients, losses and query outputs of every task, batch-norm statistics.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from fewstep.errors import BadInput
from fewstep.metalearning.meta_gradient import Outcome, Result, Work

T = TypeVar("T")
CPU = torch.device("cpu")
MESSAGE = 4096  # bytes of an error that are passed on


class RankGone(ConnectionError):
    """Another process of the training has ended."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that train as one; alone where there is no other.

    Arguments:
        rank, size: this one's number, and how many there are. device: what this one computes on.

    Example:
        >>> Ranks(rank=1, size=3).part(8), Ranks().part(8)
        (range(3, 6), range(0, 8))
    """

    rank: int = 0
    size: int = 1
    device: torch.device = CPU

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and prints."""
        return self.rank == 0

    def part(self, count: int) -> range:
        """Which of `count` tasks are this rank's: an equal share, or one more on the first ranks; maybe none."""
        share, rest = divmod(count, self.size)
        start = self.rank * share + min(self.rank, rest)
        return range(start, start + share + (self.rank < rest))

    def pooled(self, take: Callable[[Work], Result], work: Work) -> Result:
        """What `take` gives for the whole meta-batch, each rank having done its part; the same bits on every rank.

        Moments and moved tensors come back as their mean over tasks, with a task axis of one. A rank without tasks does
        the first one's work and adds zeros: so it knows every shape, and a model that fails does so on all ranks.
        """
        if self.size == 1:
            return take(work)
        count = len(work.batch)
        part = self.part(count)
        share = len(part) / count
        result = take(work.part(part or range(1)))
        gradients, outcome = result if part else tree_map(torch.zeros_like, result)

        def placed(own: Tensor) -> Tensor:
            whole = own.new_zeros(count, *own.shape[1:])
            whole[part.start : part.stop] = own[: len(part)]
            return whole

        moments, moved = tree_map(
            lambda m: (m if m.is_floating_point() else m.double()).mean(0, keepdim=True) * share,
            (outcome.moments, outcome.moved),
        )
        found = {n: g * share for n, g in gradients.items()}
        return self._summed((found, Outcome(placed(outcome.loss), placed(outcome.query_logits), moments, moved)))

    def _summed(self, result: Result) -> Result:
        leaves, structure = tree_flatten(result)
        flat = self.sum(torch.cat([leaf.flatten() for leaf in leaves]))
        pieces = flat.split([leaf.numel() for leaf in leaves])
        # In the layout of before: channels-last gradients stay so.
        back = [torch.empty_like(leaf).copy_(p.view(leaf.shape)) for leaf, p in zip(leaves, pieces, strict=True)]
        return tree_unflatten(back, structure)

    # --- agreement ---------------------------------------------------------------------------------------------------

    def sum(self, own: Tensor) -> Tensor:
        """The sum over ranks, in place.

        Raises:
            RankGone: another rank has ended.
        """
        if self.size > 1:
            with _gone():
                dist.all_reduce(own)
        return own

    def any(self, *flags: bool) -> list[bool]:
        """Of each flag, whether it is true on any rank."""
        return [bool(count) for count in self.sum(torch.tensor(flags, dtype=torch.int32))]

    def copy(self, tensors: Iterable[Tensor]) -> None:
        """Make the tensors those of the first rank, in place."""
        if self.size == 1:
            return
        for tensor in tensors:
            plain = tensor.detach().contiguous()
            with _gone():
                dist.broadcast(plain, 0)
            tensor.detach().copy_(plain)

    def together(self, work: Callable[[], T]) -> T:
        """`work()` on every rank; bad input on one is raised on all, so that all end alike.

        Raises:
            BadInput: what `work` raised, on whichever rank.
        """
        if self.size == 1:
            return work()
        said, failed = "", torch.zeros(self.size, dtype=torch.int32)
        try:
            result = work()
        except (BadInput, OSError) as error:
            said, failed[self.rank] = str(error), 1
        if not self.sum(failed).any():
            return result
        speaker = int(failed.argmax())
        text = torch.zeros(MESSAGE, dtype=torch.uint8)
        own = said.encode()[:MESSAGE]
        text[: len(own)] = torch.frombuffer(bytearray(own), dtype=torch.uint8) if own else 0
        with _gone():
            dist.broadcast(text, speaker)
        message = bytes(text.tolist()).rstrip(b"\0").decode(errors="ignore")
        raise BadInput(f"process {speaker} of {self.size}: {message}" if speaker else message)

    def on_first(self, work: Callable[[], object]) -> None:
        """`work()` on the first rank while the others wait; bad input there is raised on all."""
        self.together(lambda: work() if self.first else None)


@contextmanager
def _gone() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RankGone(f"another process of this training has ended, and so does this one ({reason})") from error
