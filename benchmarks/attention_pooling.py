"""How quick is attention pooling with folded projections, against nn.MultiheadAttention called plainly?

    python benchmarks/attention_pooling.py

Every figure is a ratio of times taken in turn in the same run; single times vary with the machine.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from timing import ratio

from layers.pooling import AttentionPool

BATCH, GRID, CHANNELS = 64, (7, 7), 1280


def plain_pool(pool: AttentionPool, maps: Tensor) -> Tensor:
    """The definition: the mean and the positions as a sequence, through nn.MultiheadAttention."""
    positions = maps.flatten(1, 2)
    tokens = torch.cat([positions.mean(dim=1, keepdim=True), positions], dim=1) + pool.positional_embedding
    return pool.attention(tokens[:, :1], tokens, tokens, need_weights=False)[0][:, 0]


def backward(pool: Callable[[Tensor], Tensor], maps: Tensor) -> None:
    pool(maps).square().sum().backward()


def main() -> None:
    torch.manual_seed(0)
    pool = AttentionPool(GRID, CHANNELS)
    maps = torch.randn(BATCH, *GRID, CHANNELS)
    shape = f"{BATCH} maps of {GRID[0]} x {GRID[1]} x {CHANNELS}, {pool.num_heads} heads"
    ours, plain = ratio(lambda: backward(pool, maps), lambda: backward(lambda m: plain_pool(pool, m), maps))
    print(f"forward and backward, {shape}: {1000 * ours:.0f} ms; plain / ours {plain:.1f}")
    with torch.inference_mode():
        ours, plain = ratio(lambda: pool(maps), lambda: plain_pool(pool, maps))
    print(f"forward alone: {1000 * ours:.0f} ms; plain / ours {plain:.1f}")


if __name__ == "__main__":
    main()
