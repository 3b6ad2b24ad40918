"""How quick is attention pooling with folded projections, against nn.MultiheadAttention called plainly?

    python benchmarks/attention_pooling.py

Every figure is a ratio of times taken in turn in the same run; single times vary with the machine.
"""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from timing import Timing, compare, timings_table

from layers.pooling import AttentionPool
from metrics.table import as_text

BATCH, GRID, CHANNELS = 64, (7, 7), 1280


def plain_pool(pool: AttentionPool, maps: Tensor) -> Tensor:
    """The definition: the mean and the positions as a sequence, through nn.MultiheadAttention."""
    positions = maps.flatten(1, 2)
    tokens = torch.cat([positions.mean(dim=1, keepdim=True), positions], dim=1) + pool.positional_embedding
    return pool.attention(tokens[:, :1], tokens, tokens, need_weights=False)[0][:, 0]


def backward(pool: Callable[[Tensor], Tensor], maps: Tensor) -> None:
    pool(maps).square().sum().backward()


def timings(pairs: int = 5) -> Iterator[Timing]:
    """Yield what a batch takes, forward and backward, and forward alone."""
    torch.manual_seed(0)
    pool = AttentionPool(GRID, CHANNELS)
    maps = torch.randn(BATCH, *GRID, CHANNELS)
    what, plain = f"attention over {BATCH} maps of {GRID[0]} x {GRID[1]} x {CHANNELS}", "nn.MultiheadAttention"
    ours, theirs = (partial(backward, pooled, maps) for pooled in (pool, partial(plain_pool, pool)))
    yield compare(f"{what}, and back", ours, theirs, plain, pairs)
    with torch.inference_mode():
        yield compare(what, lambda: pool(maps), lambda: plain_pool(pool, maps), plain, pairs)


def main() -> None:
    print(as_text(timings_table(list(timings()))))


if __name__ == "__main__":
    main()
