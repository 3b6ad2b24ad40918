"""How quick are order scores, forward and backward, against the plain tensor expression and against cosine?

    python benchmarks/order_scores.py

Every figure is a ratio of times taken in turn in the same run; single times vary with the machine.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from timing import ratio

from metrics.similarity import exact_cosine_scores, order_scores


def plain_order_scores(images: torch.Tensor, captions: torch.Tensor, rows: int = 8) -> torch.Tensor:
    """The definition as one expression, a few images at a time so that it fits the memory."""
    parts = [
        -(captions[None] - images[i : i + rows, None]).clamp(min=0).square().sum(-1)
        for i in range(0, len(images), rows)
    ]
    return torch.cat(parts)


def backward(scores: Callable, images: torch.Tensor, captions: torch.Tensor) -> None:
    images, captions = images.clone().requires_grad_(), captions.clone().requires_grad_()
    result = scores(images, captions)
    (0.05 + result - result.diagonal()[:, None]).clamp(min=0).sum().backward()


def main() -> None:
    generator = torch.Generator().manual_seed(0)

    def embed(rows: int) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.randn(rows, 1024, generator=generator), dim=1).abs()

    images, captions = embed(200), embed(5000)
    ours, plain = ratio(lambda: order_scores(images, captions), lambda: plain_order_scores(images, captions))
    speed = 200 * 5000 * 1024 / ours / 1e9
    print(f"ranking, 200 x 5,000 x 1024: {speed:.1f} G element operations/s; plain / ours {plain:.1f}")
    _, cosine = ratio(lambda: exact_cosine_scores(images, captions), lambda: order_scores(images, captions))
    print(f"ranking: order / cosine {cosine:.1f}")
    images, captions = embed(128), embed(128)
    _, plain = ratio(
        lambda: backward(order_scores, images, captions), lambda: backward(plain_order_scores, images, captions)
    )
    print(f"a training batch of 128, forward and backward: plain / ours {plain:.1f}")


if __name__ == "__main__":
    main()
