"""How quick are order scores, forward and backward, against the plain tensor expression and against cosine?

    python benchmarks/order_scores.py

Every figure is a ratio of times taken in turn in the same run; single times vary with the machine.
"""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from timing import Timing, compare, timings_table

from features.device import default_device
from metrics.similarity import exact_cosine_scores, order_scores
from metrics.table import as_text


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


def timings(pairs: int = 5) -> Iterator[Timing]:
    """Yield what scores for ranking and for a batch of training take."""
    generator = torch.Generator().manual_seed(0)

    def embed(rows: int) -> torch.Tensor:
        drawn = torch.nn.functional.normalize(torch.randn(rows, 1024, generator=generator), dim=1).abs()
        return drawn.to(default_device())

    plain, many = "images x captions x D, by blocks", (embed(200), embed(5000))
    what = "order scores, 200 x 5,000 x 1,024"
    yield compare(what, lambda: order_scores(*many), lambda: plain_order_scores(*many), plain, pairs)
    what, order = "cosine scores of these", "order / cosine"
    yield compare(what, lambda: exact_cosine_scores(*many), lambda: order_scores(*many), order, pairs)
    what, batch = "order scores of a batch of 128, and back", (embed(128), embed(128))
    ours, theirs = (partial(backward, scores, *batch) for scores in (order_scores, plain_order_scores))
    yield compare(what, ours, theirs, plain, pairs)


def main() -> None:
    print(as_text(timings_table(list(timings()))))


if __name__ == "__main__":
    main()
