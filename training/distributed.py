"""A batch that several processes share: the pairs of each, embeddings gathered with their gradient, gradients added up.

Each process embeds its own pairs and compares them with all others; what it loses is its share of the loss, so that
gradients of the weights add up to those of one process with the whole batch. Alone, everything here does nothing.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as collectives

from features.distributed import from_first, in_touch, rank, size
from features.images.views import ALL, Rows
from losses import Scores
from metrics.similarity import Scores as Similarity
from settings import CLOSED_FORMS
from training.run import RunPlan
from utils import BadInput


@dataclass(frozen=True)
class Share:
    """The pairs of a batch of `count` that are this process's, from `start` to `stop`: alone, all of them."""

    count: int

    @property
    def starts(self) -> list[int]:
        """Return where the pairs of each process begin, and the last ones end.

        >>> Share(7).starts
        [0, 7]
        """
        return [self.count * number // size() for number in range(size() + 1)]

    def rows(self, halves: int = 1) -> Rows:
        """Return the rows of the batch that its pairs are made of, of each of `halves` one; one pair at least.

        >>> Share(3).rows()
        slice(None, None, None)
        """
        if size() == 1:
            return ALL
        start, stop = self.starts[rank() : rank() + 2]
        rows = np.arange(start, max(stop, start + 1))  # a network wants one row, which `cut` takes away again
        return np.concatenate([rows + half * self.count for half in range(halves)])

    def cut(self, x: Tensor) -> Tensor:
        """Return of what `rows` has made what belongs to its pairs."""
        start, stop = self.starts[rank() : rank() + 2]
        return x if len(x) == stop - start else x[: stop - start]

    def first(self, x: Tensor) -> Tensor:
        """Return rows of all pairs with those of this process before the others: (count, …) → (count, …)."""
        return x if size() == 1 else x.roll(-self.starts[rank()], 0)

    def gather(self, x: Tensor) -> Tensor:
        """Return the rows of the pairs of all processes, those of this one first: (pairs, …) → (count, …)."""
        return x if size() == 1 else self.first(_Gather.apply(x, np.diff(self.starts).tolist()))

    def scores(self, similarity: Similarity, images: Tensor, captions: Tensor) -> Scores:
        """Return the scores of its images and captions (pairs, D) with all of the batch, as losses.py takes them."""
        if size() == 1:
            return similarity(images, captions)
        return similarity(images, self.gather(captions)), similarity(self.gather(images), captions).T


class _Gather(torch.autograd.Function):
    """Rows of all processes, in their order. Backward adds up what all of them ask of a process's rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        padded = x.new_zeros(max(sizes), *x.shape[1:])  # collectives want equal shapes
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in sizes]
        with in_touch():
            collectives.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.clone(memory_format=torch.contiguous_format)
        with in_touch():
            collectives.all_reduce(total)
        return total.split(ctx.sizes)[rank()], None


@torch.no_grad()
def add_up(tensors: Iterable[Tensor]) -> None:
    """Let each tensor be its sum over all processes."""
    if size() == 1:
        return
    pairs = [(tensor, tensor.contiguous()) for tensor in tensors]  # what collectives want
    with in_touch():
        for under_way in [collectives.all_reduce(total, async_op=True) for _, total in pairs]:
            under_way.wait()
    for tensor, total in pairs:
        if total is not tensor:
            tensor.copy_(total)


@torch.no_grad()
def begin_alike(model: nn.Module) -> None:
    """Give the model of every process the weights that it has in the first one."""
    if size() > 1:
        with in_touch():
            for weight in model.state_dict().values():
                collectives.broadcast(weight, 0)


@contextlib.contextmanager
def own_draws(random: np.random.Generator) -> Iterator[None]:
    """Let torch draw in each process for itself (dropout, random negatives); before and after, all draw the same.

    random: gives the seed, with nothing drawn of it.
    """
    if size() == 1:
        yield
        return
    (child,), state = random.spawn(1), torch.get_rng_state()
    torch.manual_seed(int(child.integers(2**62)) + rank())
    yield
    torch.set_rng_state(state)


def check_together(plans: Sequence[RunPlan], jobs: int) -> None:
    """Raise BadInput unless these processes, if they are several, can train the runs together."""
    if size() == 1:
        return
    if jobs > 1:
        raise BadInput(f"`jobs` {jobs}: runs side by side are forks of one process; leave `jobs` out, or torchrun")
    for plan in plans:
        if plan.settings.loss.name in CLOSED_FORMS:
            raise BadInput(f"{plan.folder.name}: is fitted in closed form, by one process; train it without torchrun")
    known = [[plan.folder.name, plan.info.captions, *plan.info.digests] for plan in plans]
    if known != from_first(lambda: known):
        raise BadInput(f"process {rank()}: has other runs or data before it than the first one; give all the same")


def resume(rows: Sequence[dict[str, Any]], threads: int | None) -> str:
    """Take up the threads of the epochs behind, unless others are asked for; return what is said of both."""
    before, processes = rows[-1]["threads"], rows[-1].get("processes", 1)
    torch.set_num_threads(threads or before)
    changes = [("threads", threads or before, before), ("processes", size(), processes)]
    others = [f"{what}, {now} for {then}" for what, now, then in changes if now != then]
    if not others:
        return f"epoch {len(rows)}"
    return f"epoch {len(rows)} with other {' and '.join(others)}: no longer to the same bits"
